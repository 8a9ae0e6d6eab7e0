"""Writing colour copies: 8 or 16 bits, sRGB profile, resolution, EXIF, IPTC and XMP, in the format of the name."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image, ImageDraw, ImageFont, TiffImagePlugin

from .labels import find_packet, with_note
from .metadata import Metadata
from .scans import full_page, srgb_profile

MARK = "colorized"
MARK_SIZE = 0.052  # of its letters, against the width of the picture: 13 of 250 pixels

# IFD0 tags that describe the photo, not how its pixels are stored
_TEXT_TAGS = {269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 285: "PageName"}
_TEXT_TAGS |= {305: "Software", 306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright"}
_OTHER_TAGS = (18246, 18249, 40091, 40092, 40093, 40094, 40095)  # ratings; title, comment ... as Windows writes them
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_NOT_CARRIED_EXIF = (0x927C, 0xA005, 0xA002, 0xA003)  # maker's note (its offsets would be wrong), interop, old size
_COLOR_SPACE = 0xA001
_JP2_XMP = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
_MAX_SEGMENT = 65_000  # of a JPEG, less headers
MAX_XMP = {"JPEG": _MAX_SEGMENT}


@dataclass(frozen=True)
class ColourPage:
    """One finished page, delivered strip by strip.

    Attributes:
        height, width: in pixels.
        strips: from the top, sRGB ``[3, rows, width]`` in [0, 1], float32; for 8-bit copies also uint8
            ``[rows, width, 4]``, the fourth of no meaning. Can be asked for once.
    """

    height: int
    width: int
    strips: Iterable[torch.Tensor]


@dataclass(frozen=True)
class CopyFormat:
    """How a file format is written. ``pages`` and ``deep`` say whether it holds several pages, and 16 bits."""

    write: Callable[..., None]
    deep: bool = False
    pages: bool = False


def write_copy(
    stream: IO[bytes],
    pages: Iterable[ColourPage],
    *,
    format_name: str,
    bits: int,
    metadata: Metadata,
    xmp: bytes,
    mark: bool = False,
) -> None:
    """Write finished pages as one photo file.

    Args:
        stream: open for writing and seeking.
        pages: one, or several for TIFF; each is asked for when the one before it is written.
        format_name: a key of ``FORMATS``.
        bits: 8 or 16 per sample; formats that can't hold 16 get 8.
        metadata: the scan's, carried over.
        xmp: the label, a whole packet.
        mark: write "colorized" into the lower right corner.
    """
    deep = is_deep(format_name, bits)
    parts = (_Strips(page, depth=16 if deep else 8, mark=mark) for page in pages)
    FORMATS[format_name].write(stream, parts, metadata, xmp)


def is_deep(format_name: str, bits: int) -> bool:
    """Whether a scan of so many bits gets a copy of 16 bits in this format, rather than of 8."""
    return bits == 16 and FORMATS[format_name].deep


class _Strips:
    """A page as strips of whole numbers ``[rows, W, 3]``, or ``[rows, W, 4]`` where the page has them."""

    def __init__(self, page: ColourPage, *, depth: int, mark: bool) -> None:
        self.page, self.height, self.width = page, page.height, page.width
        self.dtype = np.uint16 if depth == 16 else np.uint8
        self.mask = mark_mask(page.height, page.width) if mark else None

    def __iter__(self) -> Iterator[np.ndarray]:
        largest, top = np.iinfo(self.dtype).max, 0
        for rgb in self.page.strips:
            if rgb.dtype == torch.uint8:
                strip = rgb.numpy()
            else:
                strip = (rgb.movedim(0, -1) * largest).round().contiguous().numpy().astype(self.dtype)
            if self.mask is not None:
                _blend(strip, self.mask, top=top, page=self.page)
            top += len(strip)
            yield strip

    def array(self) -> np.ndarray:
        whole, top = np.empty((self.height, self.width, 3), self.dtype), 0
        for strip in self:
            whole[top : top + len(strip)] = strip[..., :3]
            top += len(strip)
        return whole

    def image(self) -> Image.Image:
        """The 8-bit page in Pillow's own layout of four bytes a pixel, which it needn't copy."""
        whole, top = np.zeros((self.height, self.width, 4), np.uint8), 0
        for strip in self:
            whole[top : top + len(strip), :, : strip.shape[-1]] = strip
            top += len(strip)
        return Image.frombuffer("RGBX", (self.width, self.height), whole, "raw", "RGBX", 0, 1)


def mark_mask(height: int, width: int, *, shown_width: int | None = None) -> np.ndarray | None:
    """The mark as coverage ``[h, w]`` in [0, 1]; none where it doesn't fit.

    Its letters stay legible when the whole picture is shown 250 pixels wide, as a thumbnail or in a result list.

    Args:
        height, width: of the picture that is marked, in pixels.
        shown_width: of the whole picture, if this one is a part of it.
    """
    size = max(12, round((shown_width or width) * MARK_SIZE))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(MARK, stroke_width=size // 24)
    margin = size // 3
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin))
    place = (margin - left, margin - top)
    ImageDraw.Draw(image).text(place, MARK, fill=255, font=font, stroke_width=size // 24)
    mask = np.asarray(image, np.float32) / 255
    return mask if mask.shape[0] <= height and mask.shape[1] <= width else None


def draw_mark(area: np.ndarray, mask: np.ndarray) -> None:
    """Draw (part of) a mark on pixels of its size ``[h, w, 3]``, in place: light letters on a darkened ground."""
    letters = mask[..., None]
    area[:] = (area * (0.35 * (1 - letters)) + np.iinfo(area.dtype).max * 0.95 * letters).astype(area.dtype)


def _blend(strip: np.ndarray, mask: np.ndarray, *, top: int, page: ColourPage) -> None:
    """Draw the rows of the mark that fall on this strip into the lower right corner."""
    first = page.height - len(mask)
    start, stop = max(top, first), top + len(strip)
    if start < stop:
        draw_mark(strip[start - top :, -mask.shape[1] :], mask[start - first : stop - first])


def _one(parts: Iterable[_Strips]) -> _Strips:
    (part,) = parts
    return part


def carried_exif(metadata: Metadata, *, height: int, width: int) -> Image.Exif:
    """The scan's EXIF for its copy: what describes the photo, with upright orientation, sRGB and our note."""
    old, new = metadata.exif, Image.Exif()
    for tag in (*_TEXT_TAGS, *_OTHER_TAGS):
        value = old.get(tag)
        if value is not None and (tag in _OTHER_TAGS or isinstance(value, str)):
            new[tag] = value
    if old.get(270):
        new[270] = with_note(str(old[270]))
    if metadata.dpi:
        x, y = metadata.dpi
        new[282], new[283], new[296] = x, y, 2
    for ifd in (_EXIF_IFD, _GPS_IFD):
        values = {tag: value for tag, value in _ifd(old, ifd).items() if tag not in _NOT_CARRIED_EXIF}
        if ifd == _EXIF_IFD and values:
            values |= {_COLOR_SPACE: 1, 0xA002: width, 0xA003: height}
        new.get_ifd(ifd).update(values)
    return new


def _ifd(exif: Image.Exif, tag: int) -> dict[int, object]:
    try:
        return dict(exif.get_ifd(tag))
    except Exception:  # a damaged part of EXIF is left out, as Pillow can't say what it holds
        return {}


def _exif_bytes(metadata: Metadata, part: _Strips) -> bytes:
    exif = carried_exif(metadata, height=part.height, width=part.width)
    try:
        return exif.tobytes() if len(exif) or exif.get_ifd(_EXIF_IFD) or exif.get_ifd(_GPS_IFD) else b""
    except Exception as error:  # values that Pillow read but can't write
        metadata.notes.append(f"its EXIF data can't be carried over ({error})")
        return b""


def _write_jpeg(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    part = _one(parts)
    _check_edges("JPEG", part, 65_535)
    options: dict[str, object] = {"dpi": tuple(map(round, metadata.dpi))} if metadata.dpi else {}
    exif = _exif_bytes(metadata, part)
    if len(exif) <= _MAX_SEGMENT:
        options["exif"] = exif
    if metadata.iptc and len(metadata.iptc) <= _MAX_SEGMENT:
        options["extra"] = _photoshop_segment(metadata.iptc)
    part.image().save(stream, format="JPEG", quality=95, subsampling=0, icc_profile=srgb_profile(), xmp=xmp, **options)


def _photoshop_segment(iptc: bytes) -> bytes:
    """APP13 with one image resource, 0x0404, IPTC-IIM (Adobe Photoshop file formats specification)."""
    resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def _write_png(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    part = _one(parts)
    encoded = memoryview(imagecodecs.png_encode(part.array(), level=3))
    header = 8 + 12 + 13  # signature and IHDR; what describes the picture stands between it and the pixels
    stream.write(encoded[:header])
    stream.write(_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile())))
    if metadata.dpi:
        x, y = (round(dpi / 0.0254) for dpi in metadata.dpi)
        stream.write(_chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    stream.write(_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    if exif := _exif_bytes(metadata, part):
        stream.write(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    stream.write(encoded[header:])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_webp(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    part = _one(parts)
    _check_edges("WebP", part, 16_383)
    Image.fromarray(part.array()).save(
        stream,
        format="WEBP",
        quality=95,
        method=4,
        icc_profile=srgb_profile(),
        exif=_exif_bytes(metadata, part),
        xmp=xmp,
    )


def _write_tiff(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    with tifffile.TiffWriter(stream, byteorder="<") as writer:
        for part in parts:
            exif = carried_exif(metadata, height=part.height, width=part.width)
            tags: list[tuple] = [(700, 1, len(xmp), xmp, True)]
            tags += [(33723, 1, len(metadata.iptc), metadata.iptc, True)] if metadata.iptc else []
            tags += [(tag, 2, 0, str(exif[tag]).encode(), True) for tag in _TEXT_TAGS if tag in exif]
            tags += [(tag - 1, 4, 1, 0, True) for tag in (_EXIF_IFD, _GPS_IFD) if exif.get_ifd(tag)]
            writer.write(
                _deflated(part),
                shape=(part.height, part.width, 3),
                dtype=part.dtype,
                photometric="rgb",
                compression="adobe_deflate",
                predictor=True,
                rowsperstrip=_rows_per_strip(part),
                iccprofile=srgb_profile(),
                resolution=metadata.dpi or (1, 1),
                resolutionunit="INCH" if metadata.dpi else "NONE",
                software=False,
                metadata=None,
                extratags=tags,
            )
    _append_exif(stream, metadata)


def _rows_per_strip(part: _Strips) -> int:
    return max(1, 2**18 // part.width)


def _deflated(part: _Strips) -> Iterator[bytes]:
    """Encoded TIFF strips: differences along each row (predictor 2), then deflate; never the page as a whole."""
    rows, waiting = _rows_per_strip(part), np.empty((0, part.width, 3), part.dtype)
    for strip in part:
        strip = strip[..., :3]
        waiting = np.concatenate((waiting, strip)) if len(waiting) else strip
        while len(waiting) >= rows:
            yield _deflate(waiting[:rows])
            waiting = waiting[rows:]
    if len(waiting):
        yield _deflate(waiting)


def _deflate(strip: np.ndarray) -> bytes:
    differences = imagecodecs.delta_encode(np.ascontiguousarray(strip), axis=1).tobytes()
    return bytes(imagecodecs.deflate_encode(differences, level=1))  # higher levels: twice the time for 3 % of grain


def _append_exif(stream: IO[bytes], metadata: Metadata) -> None:
    """Write the EXIF and GPS directories at the file's end.

    tifffile writes no pointers to them, so their places in the page's directory were kept by the unused tags that come
    just before; each gets its true number and points to what is appended.
    """
    stream.seek(0)
    with tifffile.TiffFile(stream) as tiff:
        wide = tiff.is_bigtiff
        places = [
            (tag, page.tags[tag - 1], page.imagelength, page.imagewidth)
            for page in map(full_page, tiff.pages)
            for tag in (_EXIF_IFD, _GPS_IFD)
            if tag - 1 in page.tags
        ]
    for tag, placeholder, height, width in places:
        stream.seek(0, io.SEEK_END)
        stream.write(b"\0" * (stream.tell() % 2))
        position = stream.tell()
        ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
        for key, value in carried_exif(metadata, height=height, width=width).get_ifd(tag).items():
            ifd[key] = value
            if isinstance(value, bytes):
                ifd.tagtype[key] = 7  # "undefined" is what EXIF's byte strings are
        stream.write(ifd.tobytes(position))
        stream.seek(placeholder.offset)
        stream.write(struct.pack("<H", tag))
        stream.seek(placeholder.valueoffset)
        stream.write(struct.pack("<Q" if wide else "<I", position))


def _write_bmp(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    options = {"dpi": metadata.dpi} if metadata.dpi else {}
    Image.fromarray(_one(parts).array()).save(stream, format="BMP", **options)
    # BMP has no place for XMP; behind the picture it is found by scanning (XMP Specification Part 3, 1.2)
    stream.seek(0, io.SEEK_END)
    stream.write(xmp)


def _write_ppm(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    Image.fromarray(_one(parts).array()).save(stream, format="PPM")
    stream.seek(0, io.SEEK_END)
    stream.write(xmp)


def _write_jp2(stream: IO[bytes], parts: Iterable[_Strips], metadata: Metadata, xmp: bytes) -> None:
    Image.fromarray(_one(parts).array()).save(stream, format="JPEG2000")
    stream.seek(0, io.SEEK_END)
    stream.write(struct.pack(">I", 24 + len(xmp)) + b"uuid" + _JP2_XMP + xmp)


def _check_edges(name: str, part: _Strips, longest: int) -> None:
    if max(part.height, part.width) > longest:
        raise ValueError(
            f"{part.width} x {part.height} pixels: {name} holds at most {longest} a side; save as .tif (--format tif)"
        )


FORMATS: Mapping[str, CopyFormat] = {
    "JPEG": CopyFormat(_write_jpeg),
    "PNG": CopyFormat(_write_png, deep=True),
    "TIFF": CopyFormat(_write_tiff, deep=True, pages=True),
    "WEBP": CopyFormat(_write_webp),
    "BMP": CopyFormat(_write_bmp),
    "PPM": CopyFormat(_write_ppm),
    "JPEG2000": CopyFormat(_write_jp2),
}


def read_label(file: Path) -> bytes | None:
    """The XMP packet of a photo file, wherever its format keeps it; ``None`` if there is none.

    Raises:
        OSError: if it can't be read as a photo.
    """
    from .scans import open_scan

    packet = open_scan(file, max_megapixels=float("inf"), sha256="-").metadata.xmp
    return packet or find_packet(file.read_bytes())
