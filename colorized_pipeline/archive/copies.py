"""Writing colour copies: 8 or 16 bits, sRGB profile, resolution, EXIF, IPTC and XMP, in the format of the name."""

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont

from ..diffusion.reading import full_page, srgb_profile
from .ifd import EXIF, GPS, INTEROP, Directory, pack_block, pack_directory
from .labels import split_xmp, unmapped_iim, with_note
from .metadata import (
    IMAGE_DESCRIPTION,
    IPTC_RESOURCE,
    IPTC_TAG,
    JP2_EXIF,
    JP2_GEO,
    JP2_IPTC,
    JP2_PHOTOSHOP,
    JP2_XMP,
    JPEG_MORE_XMP,
    JPEG_PHOTOSHOP,
    JPEG_XMP,
    PHOTOSHOP_TAG,
    RESOURCES_IN_XMP,
    XMP_TAG,
    Metadata,
    geo_tags,
)

if TYPE_CHECKING:
    import torch

MARK = "colorized"
MARK_SIZE = 0.052  # of its letters, against the width of the picture: 13 of 250 pixels

# Tags of a page that say how its pixels are stored, or stand in blocks of their own (TIFF 6.0, TIFF/EP, DNG)
_PIXEL_TAGS = {*range(254, 260), *range(262, 267), *range(277, 285), *range(288, 294), *range(512, 535)}
_RESOLUTION_TAGS = (282, 283, 296)
_PIXEL_TAGS |= {273, 274, 296, 301, 317, 318, 319, *range(320, 327), 330, *range(332, 348), 351, 434, 435}
_PIXEL_TAGS |= {XMP_TAG, IPTC_TAG, PHOTOSHOP_TAG, 34675, 37724, 33421, 33422, 33424, 50838, 50839}
_PIXEL_TAGS |= {*range(50706, 50782), *range(50827, 50835), *range(51008, 51180), 0xEA1C, 0xEA1D}
# Maker's note (its offsets would be wrong), linked files, old size and colour space
_MAKER_NOTE, _COLOR_SPACE, _WIDTH, _HEIGHT = 0x927C, 0xA001, 0xA002, 0xA003
_PLAIN_TYPES = {*range(1, 13), 129}
_MAX_SEGMENT = 65_000  # of a JPEG, less headers


@dataclass(frozen=True)
class ColorPage:
    """One finished page, delivered strip by strip.

    Attributes:
        height, width: in pixels.
        strips: from the top, sRGB ``[3, rows, width]`` in [0, 1], float32; for 8-bit copies also uint8
            ``[rows, width, 4]``, the fourth of no meaning. Can be asked for once.
        metadata: of the scan's page, carried over; gets a note that names what the format can't hold.
        xmp: the label, a whole packet.
    """

    height: int
    width: int
    strips: "Iterable[torch.Tensor]"
    metadata: Metadata = field(default_factory=Metadata)
    xmp: bytes = b""

    @classmethod
    def of(cls, pixels: np.ndarray, xmp: bytes) -> "ColorPage":
        """A page of pixels ``[H, W, 3]``, uint8 or uint16, that isn't made of a scan's."""
        import torch

        strip = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).movedim(-1, 0)
        return cls(pixels.shape[0], pixels.shape[1], [strip], xmp=xmp)


@dataclass(frozen=True)
class CopyFormat:
    """How a file format is written.

    Attributes:
        write: a page or pages into a stream.
        deep, pages: whether it holds 16 bits, and several pages.
        exif, iptc, resolution: whether it holds these; if not, a note says so. The label holds the texts.
    """

    write: Callable[[IO[bytes], "Iterable[_Strips]"], None]
    deep: bool = False
    pages: bool = False
    exif: bool = True
    iptc: bool = True
    resolution: bool = True


def write_copy(
    stream: IO[bytes],
    pages: Iterable[ColorPage],
    *,
    format_name: str,
    bits: int,
    mark: bool = False,
) -> None:
    """Write finished pages as one photo file.

    Args:
        stream: open for writing and seeking.
        pages: one, or several for TIFF; each is asked for when the one before it is written.
        format_name: a key of ``FORMATS``.
        bits: 8 or 16 per sample; formats that can't hold 16 get 8.
        mark: write "colorized" into the lower right corner.
    """
    deep = is_deep(format_name, bits)
    parts = (_Strips(page, depth=16 if deep else 8, mark=mark, format_name=format_name) for page in pages)
    FORMATS[format_name].write(stream, parts)


def is_deep(format_name: str, bits: int) -> bool:
    """Whether a scan of so many bits gets a copy of 16 bits in this format, rather than of 8."""
    return bits == 16 and FORMATS[format_name].deep


class _Strips:
    """A page as strips of whole numbers ``[rows, W, 3]``, or ``[rows, W, 4]`` where the page has them."""

    def __init__(self, page: ColorPage, *, depth: int, mark: bool, format_name: str) -> None:
        self.page, self.height, self.width = page, page.height, page.width
        self.metadata, self.xmp = page.metadata, page.xmp
        self.dtype = np.uint16 if depth == 16 else np.uint8
        self.mask = mark_mask(page.height, page.width) if mark else None
        self.exif, left_out = carried_exif(page)
        if left_out := [*_not_held(page.metadata, self.exif, format_name), *left_out]:
            page.metadata.notes.append(f"left out of the copy: {', '.join(left_out)}")

    def __iter__(self) -> Iterator[np.ndarray]:
        largest, top = np.iinfo(self.dtype).max, 0
        for rgb in self.page.strips:
            if rgb.element_size() == 1:  # uint8
                strip = rgb.numpy()
            else:
                strip = (rgb.movedim(0, -1) * largest).round().contiguous().numpy().astype(self.dtype)
            if self.mask is not None:
                _blend(strip, self.mask, top=top, page=self.page)
            top += len(strip)
            yield strip

    def array(self, channels: int = 3) -> np.ndarray:
        """The whole page ``[H, W, channels]``; the fourth has no meaning."""
        shape, top = (self.height, self.width, channels), 0
        whole = np.empty(shape, self.dtype)
        for strip in self:
            if strip.shape == shape:
                return strip
            shared = min(channels, strip.shape[-1])
            whole[top : top + len(strip), :, :shared] = strip[..., :shared]
            top += len(strip)
        return whole

    def image(self) -> Image.Image:
        """The 8-bit page in Pillow's own layout of four bytes a pixel, which it needn't copy."""
        return Image.frombuffer("RGBX", (self.width, self.height), self.array(4), "raw", "RGBX", 0, 1)


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


def _blend(strip: np.ndarray, mask: np.ndarray, *, top: int, page: ColorPage) -> None:
    """Draw the rows of the mark that fall on this strip into the lower right corner."""
    first = page.height - len(mask)
    start, stop = max(top, first), top + len(strip)
    if start < stop:
        draw_mark(strip[start - top :, -mask.shape[1] :], mask[start - first : stop - first])


def _one(parts: Iterable[_Strips]) -> _Strips:
    (part,) = parts
    return part


def carried_exif(page: ColorPage) -> tuple[Directory, list[str]]:
    """EXIF for a copy: all that describes the photo, upright, sRGB, with our note; and what had to be left out."""
    old, left_out = page.metadata.exif, []
    new = Directory({code: tag for code, tag in old.tags.items() if code not in _PIXEL_TAGS})
    if page.metadata.caption:  # the note is ASCII, so it may follow text of any charset
        caption = new.tags[IMAGE_DESCRIPTION][1].rstrip(b"\0 ")
        new.tags[IMAGE_DESCRIPTION] = (2, with_note(caption.decode("latin-1")).encode("latin-1") + b"\0")
    elif new.tags.pop(IMAGE_DESCRIPTION, None):
        left_out.append("its ImageDescription, which is written for programs (it stands in the label)")
    if page.metadata.dpi:
        for code, dpi in zip(_RESOLUTION_TAGS, page.metadata.dpi, strict=False):
            ratio = Fraction(dpi).limit_denominator(10_000)
            new.put(code, 5, ratio.numerator, ratio.denominator)
        new.put(_RESOLUTION_TAGS[2], 3, 2)
    for code, child in old.children.items():
        tags = {tag: value for tag, value in child.tags.items() if tag != _MAKER_NOTE}
        new.children[code] = Directory(tags, dict(child.children))
        if _MAKER_NOTE in child.tags:
            left_out.append("the maker's note of its EXIF data")
    if EXIF in new.children:
        photo = new.children[EXIF]
        if INTEROP in photo.children and photo.children[INTEROP].text(1) == "R03":  # Adobe RGB
            del photo.children[INTEROP]
        photo.put(_COLOR_SPACE, 3, 1)
        photo.put(_WIDTH, 4, page.width)
        photo.put(_HEIGHT, 4, page.height)
    strange = [code for code, (kind, _) in new.tags.items() if kind not in _PLAIN_TYPES]
    left_out += [f"TIFF tag {code}" for code in strange]
    new.tags = {code: tag for code, tag in new.tags.items() if code not in strange}
    return new, left_out


def _not_held(metadata: Metadata, exif: Directory, format_name: str) -> list[str]:
    """What a page says that a format has no place for, and XMP no word."""
    form, left_out = FORMATS[format_name], []
    if not form.exif and (exif.children or exif.tags.keys() - {IMAGE_DESCRIPTION, *_RESOLUTION_TAGS}):
        left_out.append("EXIF and GPS data" if GPS in exif.children else "EXIF data")
    if not form.iptc:
        left_out += [f"IPTC record {number}" for number in unmapped_iim(metadata.iptc or b"")]
        left_out += [f"Photoshop resource 0x{n:04x}" for n in metadata.photoshop if n not in RESOURCES_IN_XMP]
    if metadata.dpi and not form.resolution:
        left_out.append("resolution")
    return left_out


def _write_jpeg(stream: IO[bytes], parts: Iterable[_Strips]) -> None:
    part = _one(parts)
    _check_edges("JPEG", part, 65_535)
    options = {"dpi": tuple(map(round, part.metadata.dpi))} if part.metadata.dpi else {}
    extra = b"".join(_jpeg_segments(part))
    part.image().save(
        stream, format="JPEG", quality=95, subsampling=0, icc_profile=srgb_profile(), extra=extra, **options
    )


def _jpeg_segments(part: _Strips) -> Iterator[bytes]:
    """EXIF, XMP in two parts if it is long, IPTC and Photoshop's resources, comments."""
    if part.exif:
        exif = pack_block(part.exif)
        if len(exif) > _MAX_SEGMENT:  # what isn't EXIF's own goes first
            few = Directory({c: t for c, t in part.exif.tags.items() if len(t[1]) < 1000}, part.exif.children)
            part.metadata.notes.append("left out of the copy: EXIF data beyond the 64 kB that JPEG holds")
            exif = pack_block(few)
        if len(exif) <= _MAX_SEGMENT:
            yield _segment(0xE1, b"Exif\0\0" + exif)
    packet, digest, more = split_xmp(part.xmp, _MAX_SEGMENT)
    if packet:
        yield _segment(0xE1, JPEG_XMP + packet)
    for start in range(0, len(more), _MAX_SEGMENT):
        head = JPEG_MORE_XMP + digest + struct.pack(">II", len(more), start)
        yield _segment(0xE1, head + more[start : start + _MAX_SEGMENT])
    resources = photoshop_block(part.metadata)
    for start in range(0, len(resources), _MAX_SEGMENT):
        yield _segment(0xED, JPEG_PHOTOSHOP + resources[start : start + _MAX_SEGMENT])
    for text in part.metadata.texts:
        if text.keyword == "Comment" and len(content := text.text.encode()) <= _MAX_SEGMENT:
            yield _segment(0xFE, content)


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def photoshop_block(metadata: Metadata) -> bytes:
    """IPTC and Photoshop's other image resources (Adobe Photoshop file formats specification)."""
    resources = {**({IPTC_RESOURCE: metadata.iptc} if metadata.iptc else {}), **metadata.photoshop}
    return b"".join(
        b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + b"\0" * (len(data) % 2)
        for number, data in resources.items()
    )


def _write_png(stream: IO[bytes], parts: Iterable[_Strips]) -> None:
    part = _one(parts)
    encoded = memoryview(imagecodecs.png_encode(part.array(), level=3))
    header = 8 + 12 + 13  # signature and IHDR; what describes the picture stands between it and the pixels
    stream.write(encoded[:header])
    stream.write(_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile())))
    if part.metadata.dpi:
        x, y = (round(dpi / 0.0254) for dpi in part.metadata.dpi)
        stream.write(_chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    stream.write(_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + part.xmp))
    if part.exif:
        stream.write(_chunk(b"eXIf", pack_block(part.exif)))
    if block := photoshop_block(part.metadata):  # as ImageMagick and exiftool write it
        lines = [block[start : start + 36].hex() for start in range(0, len(block), 36)]
        raw = "\n".join(["", "iptc", f"{len(block):8}", *lines, ""]).encode()
        stream.write(_chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(raw)))
    for text in part.metadata.texts:
        keyword = text.keyword.encode("latin-1", "replace")[:79] or b"Comment"
        content = with_note(text.text) if text.keyword == "Description" else text.text
        head = keyword + b"\0\0\0" + text.language.encode("ascii", "replace") + b"\0\0"
        stream.write(_chunk(b"iTXt", head + content.encode("utf-8", "replace")))
    stream.write(encoded[header:])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _write_webp(stream: IO[bytes], parts: Iterable[_Strips]) -> None:
    part = _one(parts)
    _check_edges("WebP", part, 16_383)
    Image.fromarray(part.array()).save(
        stream,
        format="WEBP",
        lossless=part.metadata.lossless,
        quality=75 if part.metadata.lossless else 95,  # of a lossless file this is effort
        method=4,
        icc_profile=srgb_profile(),
        exif=pack_block(part.exif) if part.exif else b"",
        xmp=part.xmp,
    )


def _write_tiff(stream: IO[bytes], parts: Iterable[_Strips]) -> None:
    children: list[dict[int, Directory]] = []
    with tifffile.TiffWriter(stream, byteorder="<") as writer:
        for part in parts:
            blocks = {XMP_TAG: part.xmp, IPTC_TAG: part.metadata.iptc or b""}
            blocks[PHOTOSHOP_TAG] = photoshop_block(replace(part.metadata, iptc=None))
            tags: list[tuple[int, int, int, Any, bool]]
            tags = [(code, 1, len(data), data, True) for code, data in blocks.items() if data]
            for code, (kind, data) in part.exif.tags.items():
                if code not in _RESOLUTION_TAGS:
                    tags.append((code, 2 if kind == 129 else kind, 0, data, True))
            tags += [(code - 1, 4, 1, 0, True) for code in part.exif.children]
            children.append(part.exif.children)
            x, y = (Fraction(value).limit_denominator(10_000) for value in part.metadata.dpi or (1, 1))
            writer.write(
                _deflated(part),
                shape=(part.height, part.width, 3),
                dtype=part.dtype,
                photometric="rgb",
                compression="adobe_deflate",
                predictor=True,
                rowsperstrip=_rows_per_strip(part),
                iccprofile=srgb_profile(),
                resolution=(x.as_integer_ratio(), y.as_integer_ratio()),
                resolutionunit="INCH" if part.metadata.dpi else "NONE",
                software=False,
                metadata=None,
                extratags=tags,
            )
    _append_children(stream, children)


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


def _append_children(stream: IO[bytes], children: list[dict[int, Directory]]) -> None:
    """Write the EXIF and GPS directories at the file's end.

    tifffile writes no pointers to them, so their places in the page's directory were kept by the unused tags that come
    just before; each gets its true number and points to what is appended.
    """
    stream.seek(0)
    with tifffile.TiffFile(stream) as tiff:
        wide = tiff.is_bigtiff
        places = [
            (code, child, full_page(page).tags[code - 1])
            for page, directories in zip(tiff.pages, children, strict=True)
            for code, child in directories.items()
        ]
    for code, child, placeholder in places:
        stream.seek(0, io.SEEK_END)
        stream.write(b"\0" * (stream.tell() % 2))
        position = stream.tell()
        stream.write(pack_directory(child, position, big=wide))
        stream.seek(placeholder.offset)
        stream.write(struct.pack("<H", code))
        stream.seek(placeholder.valueoffset)
        stream.write(struct.pack("<Q" if wide else "<I", position))


def _write_plain(format_name: str, stream: IO[bytes], parts: Iterable[_Strips]) -> None:
    """A format without a place for XMP: behind the picture it is found by scanning (XMP Specification Part 3, 1.2)."""
    part = _one(parts)
    options = {"dpi": part.metadata.dpi} if part.metadata.dpi else {}
    Image.fromarray(part.array()).save(stream, format=format_name, **options)
    stream.seek(0, io.SEEK_END)
    stream.write(part.xmp)


def _write_jp2(stream: IO[bytes], parts: Iterable[_Strips]) -> None:
    part, encoded = _one(parts), io.BytesIO()
    Image.fromarray(part.array()).save(encoded, format="JPEG2000")
    content = encoded.getvalue()
    place = content.index(b"jp2h") - 4
    end = place + int.from_bytes(content[place : place + 4], "big")
    header = content[place + 8 : end]
    if part.metadata.dpi:  # capture resolution, in pixels a metre (ISO/IEC 15444-1, I.5.3.7)
        (across, under, e), (above, below, f) = (_decimal(dpi / 0.0254) for dpi in part.metadata.dpi)
        header += _box(b"res ", _box(b"resc", struct.pack(">HHHHbb", above, below, across, under, f, e)))
    stream.write(content[:place] + _box(b"jp2h", header))
    for identity, block in {
        JP2_XMP: part.xmp,
        JP2_EXIF: pack_block(part.exif) if part.exif else b"",
        JP2_IPTC: part.metadata.iptc,
        JP2_PHOTOSHOP: photoshop_block(replace(part.metadata, iptc=None)),
        JP2_GEO: pack_block(Directory(geo)) if (geo := geo_tags(part.exif)) else b"",
    }.items():
        if block:
            stream.write(_box(b"uuid", identity + block))
    for text in part.metadata.texts:
        if text.keyword == "XML":
            stream.write(_box(b"xml ", text.text.encode()))
    stream.write(content[end:])


def _decimal(value: float) -> tuple[int, int, int]:
    """A number above 1 as numerator, denominator and power of ten, the first two of 16 bits."""
    exponent = max(0, math.ceil(math.log10(value / 65_535)))
    below = int(65_535 * 10**exponent / value)
    return round(value * below / 10**exponent), below, exponent


def _box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


def _check_edges(name: str, part: _Strips, longest: int) -> None:
    if max(part.height, part.width) > longest:
        raise ValueError(
            f"{part.width} x {part.height} pixels: {name} holds at most {longest} a side; save as .tif (--format tif)"
        )


FORMATS: Mapping[str, CopyFormat] = {
    "JPEG": CopyFormat(_write_jpeg),
    "PNG": CopyFormat(_write_png, deep=True),
    "TIFF": CopyFormat(_write_tiff, deep=True, pages=True),
    "WEBP": CopyFormat(_write_webp, iptc=False),
    "BMP": CopyFormat(partial(_write_plain, "BMP"), exif=False, iptc=False),
    "PPM": CopyFormat(partial(_write_plain, "PPM"), exif=False, iptc=False, resolution=False),
    "JPEG2000": CopyFormat(_write_jp2),
}
