"""What a photo file says about itself, read once and as it stands, to be said on by its colour copy."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO

from PIL import Image

from ..diffusion.reading import jpeg_segments, png_chunks
from .ifd import Directory, decode_text, read_block, read_directory
from .labels import Label, build_xmp, join_xmp, read_xmp

IMAGE_DESCRIPTION, XMP_TAG, IPTC_TAG, PHOTOSHOP_TAG = 270, 700, 33723, 34377
IPTC_RESOURCE = 0x0404
_RESOLUTION_RESOURCE, _XMP_RESOURCE, _EXIF_RESOURCE = 0x03ED, 0x0424, 0x0422
# Of Photoshop's image resources: resolution, thumbnails, profile, EXIF, XMP, layers. True of the scan's pixels only.
_NOT_CARRIED_RESOURCES = {_RESOLUTION_RESOURCE, 0x0409, 0x040C, 0x040F, _EXIF_RESOURCE, 0x0423, _XMP_RESOURCE}
_NOT_CARRIED_RESOURCES |= {0x0400, 0x0402, 0x0408, 0x0410, 0x0414, 0x0415, 0x0416, 0x0417, 0x042D, 0x0430, 0x043A}
_COPYRIGHTED, _URL = 0x040A, 0x040B
_CAPTION_DIGEST = 0x0425
RESOURCES_IN_XMP = {_COPYRIGHTED, _URL, _CAPTION_DIGEST}
_GEO_TAGS = {33550, 33920, 33922, 34264, 34735, 34736, 34737}
_LAYERS_TAG, _COMPRESSION = 37724, 259
_LOSSY_COMPRESSIONS = {6, 7, 34892, 50001, 50002, 34927}  # JPEG of three kinds, WebP, JPEG XL

JP2_EXIF = b"JpgTiffExif->JP2"
JP2_XMP = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
JP2_IPTC = bytes.fromhex("33C7A4D2B81D4723A0BAF1A3E097AD38")
JP2_PHOTOSHOP = bytes.fromhex("2C4C0100850440B9A03E562148D6DFEB")
JP2_GEO = bytes.fromhex("B14BF8BD083D4B43A5AE8CD7D5A6CE03")
_JP2_BLOCKS = {JP2_EXIF: "exif", JP2_XMP: "xmp", JP2_IPTC: "iptc", JP2_PHOTOSHOP: "photoshop", JP2_GEO: "geo"}
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
JPEG_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
JPEG_PHOTOSHOP = b"Photoshop 3.0\0"
# Chunks of a PNG that say how its pixels are stored or shown
_PNG_PIXELS = set("IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sBIT sRGB cICP bKGD hIST sPLT acTL fcTL fdAT tIME".split())
_PNG_RAW = "Raw profile type "  # what ImageMagick and exiftool call a block of another format
_MOST_TEXT = 2**24
_LONGEST_TEXT = 2**18
# PNG's keywords and the XMP properties that mean the same (XMP Specification Part 3, 1.1.5)
_XMP_OF_TEXTS = {
    "Title": ("dc:title", "Alt"),
    "Author": ("dc:creator", "Seq"),
    "Description": ("dc:description", "Alt"),
    "Copyright": ("dc:rights", "Alt"),
    "Creation Time": ("xmp:CreateDate", ""),
}


@dataclass(frozen=True)
class Text:
    """A text of a PNG, a JPEG's or GIF's comment: its keyword as PNG has it, its language if it says so."""

    keyword: str
    text: str
    language: str = ""


@dataclass
class Metadata:
    """What a page says about itself and its colour copy should say on.

    Attributes:
        dpi: horizontal and vertical resolution of the upright picture, pixels per inch, if the file has it.
        exif: the first EXIF directory with those under it, or a TIFF page's own; orientation not yet applied.
        xmp: the XMP packet, its extended part joined in.
        iptc: IPTC-IIM records, as they stand in the file.
        photoshop: Photoshop's other image resources, ``{number: data}``.
        texts: in the file's order.
        lossless: the file keeps its pixels as they are; so does its copy, where a format can do both.
        notes: what had to be left out, in words for users.
    """

    dpi: tuple[float, float] | None = None
    exif: Directory = field(default_factory=Directory)
    xmp: bytes | None = None
    iptc: bytes | None = None
    photoshop: dict[int, bytes] = field(default_factory=dict)
    texts: list[Text] = field(default_factory=list)
    lossless: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """EXIF's description, empty if there is none or it is written for programs."""
        caption = self.exif.text(IMAGE_DESCRIPTION)
        return "" if is_for_programs(caption) else caption

    def label(self, label: Label) -> bytes:
        """The XMP packet of this page's copy: ``label``, and what the page says that XMP has a word for."""
        try:
            return build_xmp(label, xmp=self.xmp, iptc=self.iptc, caption=self.caption, more=self._more())
        except ValueError as error:
            self.notes.append(f"its {error} and is left out; our label is in")
            return build_xmp(label, iptc=self.iptc, caption=self.caption, more=self._more())

    def _more(self) -> dict[str, tuple[str, list[str]]]:
        more: dict[str, tuple[str, list[str]]] = {}
        for text in self.texts:
            name, kind = _XMP_OF_TEXTS.get(text.keyword, ("colorized:SourceText", "Bag"))
            value = text.text if text.keyword in _XMP_OF_TEXTS else f"{text.keyword}: {text.text}"
            more.setdefault(name, (kind, []))[1].append(value)
        for number, name in ((_COPYRIGHTED, "xmpRights:Marked"), (_URL, "xmpRights:WebStatement")):
            if block := self.photoshop.get(number):
                more[name] = ("", [decode_text(block) if number == _URL else str(block != b"\0")])
        description = self.exif.text(IMAGE_DESCRIPTION)
        if description and not self.caption:
            more["colorized:SourceImageDescription"] = ("", [description])
        return more


def is_for_programs(description: str) -> bool:
    """Whether an ImageDescription tells a program (tifffile, OME, ImageJ, MetaMorph ...) how the array is stored."""
    start = description.lstrip("\ufeff \t\r\n")
    return bool(re.match(r"\{\s*\"|<\?xml|<OME|<MetaData|ImageJ=|SCANIMAGE|state\.|\[?version=|Aperio ", start))


@dataclass
class _Blocks:
    """Blocks of metadata as a container holds them, before they are understood."""

    exif: bytes = b""
    xmp: bytes = b""
    more_xmp: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    iptc: bytes = b""
    photoshop: bytes = b""
    geo: bytes = b""
    texts: list[Text] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_metadata(file: Path, image: Image.Image, *, orientation: int = 1) -> Metadata:
    """What a photo file says about itself.

    Args:
        file: where it is.
        image: the same, opened by Pillow.
        orientation: how the picture will be turned, 1 ... 8, for its resolution.
    """
    blocks = _Blocks()
    read = {"JPEG": _read_jpeg, "MPO": _read_jpeg, "PNG": _read_png, "JPEG2000": _read_jp2}.get(image.format or "")
    try:
        if read:
            with file.open("rb") as stream:
                read(stream, blocks)
        else:
            _read_info(image, blocks)
    except (struct.error, ValueError, zlib.error, EOFError) as error:  # what was read before the damage is kept
        blocks.notes.append(f"what it says about itself is damaged and can't all be read ({error})")
    metadata = Metadata(texts=[text for text in blocks.texts if len(text.text) <= _LONGEST_TEXT], notes=blocks.notes)
    long = [f"{text.keyword} ({len(text.text)} letters)" for text in blocks.texts if len(text.text) > _LONGEST_TEXT]
    metadata.lossless = _is_lossless(file, image.format or "")
    if long:
        metadata.notes.append(f"left out, since they are too long for a label: texts {', '.join(long)}")
    if blocks.unknown:
        metadata.notes.append(f"left out, since it can't be understood: {', '.join(dict.fromkeys(blocks.unknown))}")
    try:
        metadata.exif = read_block(blocks.exif) if blocks.exif else Directory()
    except (struct.error, ValueError) as error:
        metadata.notes.append(f"its EXIF data can't be read and are left out ({error})")
    if blocks.geo:
        metadata.exif.tags |= geo_tags(read_block(blocks.geo))
    metadata.xmp, metadata.iptc = _joined_xmp(blocks, metadata.notes), blocks.iptc or None
    _take_photoshop(metadata, blocks.photoshop)
    stated = _pair(image.info.get("dpi"))
    _finish(metadata, stated, orientation)
    return metadata


def read_page(stream: IO[bytes], offset: int, order: str, *, big: bool = False, orientation: int = 1) -> Metadata:
    """What a page of a TIFF says about itself: its directory stands at ``offset``."""
    metadata = Metadata(exif=read_directory(stream, offset, order, big=big))
    tags = metadata.exif.tags
    metadata.lossless = not {int(number) for number in metadata.exif.numbers(_COMPRESSION)} & _LOSSY_COMPRESSIONS
    _, packet = tags.pop(XMP_TAG, (1, b""))
    metadata.xmp = packet.strip(b"\0") or None
    kind, records = tags.pop(IPTC_TAG, (1, b""))
    if kind == 4 and records[:1] != b"\x1c":  # libtiff's LONGs, swapped with the rest of the file
        records = b"".join(records[start : start + 4][::-1] for start in range(0, len(records), 4))
    metadata.iptc = records or None
    _take_photoshop(metadata, tags.pop(PHOTOSHOP_TAG, (1, b""))[1])
    if _LAYERS_TAG in tags:
        metadata.notes.append("its Photoshop layers are left out")
    _finish(metadata, _resolution(metadata.exif), orientation)
    return metadata


def _is_lossless(file: Path, format_name: str) -> bool:
    if format_name == "WEBP":
        with file.open("rb") as stream:
            return b"VP8L" in stream.read(2**16)
    return format_name in ("PNG", "BMP", "DIB", "PPM", "GIF", "JPEG2000")


def _finish(metadata: Metadata, stated: tuple[float, float] | None, orientation: int) -> None:
    """Resolution from wherever it is written; what is no longer true of a turned picture goes."""
    dpi = stated or _resolution(metadata.exif) or _photoshop_dpi(metadata.photoshop) or _xmp_dpi(metadata.xmp)
    metadata.photoshop = {n: data for n, data in metadata.photoshop.items() if n not in _NOT_CARRIED_RESOURCES}
    if dpi:
        x, y = (round(value, 2) for value in dpi)
        metadata.dpi = (y, x) if orientation >= 5 else (x, y)
    if orientation > 1 and metadata.exif.tags.keys() & _GEO_TAGS:
        metadata.notes.append("its GeoTIFF tags are left out, since the picture is turned")
        for tag in _GEO_TAGS:
            metadata.exif.tags.pop(tag, None)


def geo_tags(directory: Directory) -> dict[int, tuple[int, bytes]]:
    """Those of GeoTIFF."""
    return {code: tag for code, tag in directory.tags.items() if code in _GEO_TAGS}


def _pair(dpi: object) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 < x < 1e5 and 1 < y < 1e5 else None  # "1" is an aspect ratio without a unit


def _resolution(exif: Directory) -> tuple[float, float] | None:
    unit = {1: 0.0, 2: 1.0, 3: 2.54}.get(int((exif.numbers(296) or (2,))[0]), 0.0)
    return _pair([number * unit for number in (*exif.numbers(282)[:1], *exif.numbers(283)[:1])])


def _photoshop_dpi(resources: dict[int, bytes]) -> tuple[float, float] | None:
    data = resources.get(_RESOLUTION_RESOURCE, b"")
    if len(data) < 16:
        return None
    x, _, _, y = struct.unpack(">IHHI", data[:12])
    return _pair((x / 65536, y / 65536))


def _xmp_dpi(packet: bytes | None) -> tuple[float, float] | None:
    try:
        found = read_xmp(packet) if packet else {}
        x, y = (float(Fraction(found[f"tiff:{name}Resolution"])) for name in "XY")
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    unit = {"2": 1.0, "3": 2.54}.get(found.get("tiff:ResolutionUnit", "2"), 0.0)
    return _pair((x * unit, y * unit))


def _joined_xmp(blocks: _Blocks, notes: list[str]) -> bytes | None:
    if not blocks.xmp or not blocks.more_xmp:
        return blocks.xmp or None
    named = [more for guid, more in blocks.more_xmp.items() if guid in blocks.xmp]
    more = b"".join(part for _, part in sorted(named[0])) if named else b""
    try:
        return join_xmp(blocks.xmp, more)
    except ValueError as error:
        notes.append(f"the second part of its XMP is left out ({error})")
        return blocks.xmp


def _take_photoshop(metadata: Metadata, data: bytes) -> None:
    """Photoshop's image resources (Adobe Photoshop file formats specification); IPTC is one of them."""
    position = 0
    while data[position : position + 4] == b"8BIM" and position + 12 <= len(data):
        (number,) = struct.unpack(">H", data[position + 4 : position + 6])
        position += 6 + (data[position + 6] + 2) // 2 * 2  # its name, of an even number of bytes
        (length,) = struct.unpack(">I", data[position : position + 4].rjust(4, b"\0"))
        value = data[position + 4 : position + 4 + length]
        position += 4 + length + length % 2
        if number == IPTC_RESOURCE:
            metadata.iptc = metadata.iptc or value or None
        elif number == _XMP_RESOURCE:
            metadata.xmp = metadata.xmp or value
        else:
            metadata.photoshop.setdefault(number, value)


# Containers


def _read_info(image: Image.Image, blocks: _Blocks) -> None:
    """WebP, AVIF, HEIC, GIF and others: Pillow hands their blocks out unchanged."""
    exif, xmp, comment = (image.info.get(name) or b"" for name in ("exif", "xmp", "comment"))
    blocks.exif, blocks.xmp = exif, xmp.encode() if isinstance(xmp, str) else xmp
    if comment:
        text = comment if isinstance(comment, str) else _decoded(comment)
        blocks.texts.append(Text("Comment", text))


def _decoded(value: bytes) -> str:
    return decode_text(value.strip(b"\0"))


def _read_jpeg(stream: IO[bytes], blocks: _Blocks) -> None:
    for marker, data in jpeg_segments(stream):
        if marker == 0xE1 and data.startswith(b"Exif\0"):
            blocks.exif += data[6:]  # more than 64 kB stand in several segments
        elif marker == 0xE1 and data.startswith(JPEG_XMP):
            blocks.xmp = blocks.xmp or data[len(JPEG_XMP) :]
        elif marker == 0xE1 and data.startswith(JPEG_MORE_XMP):
            guid, place = data[35:67], int.from_bytes(data[71:75], "big")
            blocks.more_xmp.setdefault(guid, []).append((place, data[75:]))
        elif marker == 0xED and data.startswith(JPEG_PHOTOSHOP):
            blocks.photoshop += data[len(JPEG_PHOTOSHOP) :]
        elif marker == 0xFE:
            blocks.texts.append(Text("Comment", _decoded(data)))
        elif marker not in (0xE0, 0xE2, 0xEE, 0xEB) and 0xE0 <= marker <= 0xEF:
            name = re.match(rb"[\w -]*", data)
            blocks.unknown.append(f"JPEG segment APP{marker - 0xE0} {name[0].decode() if name else ''}".strip())
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - 2**16))
    if b"\xff\xd9" not in stream.read():
        blocks.notes.append("the marker of its end is missing; all its pixels are there")


def _read_png(stream: IO[bytes], blocks: _Blocks) -> None:
    for _, kind, data, wrong in png_chunks(stream):
        if wrong and kind not in _PNG_PIXELS:
            blocks.notes.append(f"the checksum of its chunk {kind} is wrong; what that says may be damaged")
        if kind == "eXIf":
            blocks.exif = data
        elif kind in ("tEXt", "zTXt", "iTXt"):
            try:
                _take_png_text(kind, data, blocks)
            except (ValueError, zlib.error) as error:
                blocks.unknown.append(f"a damaged text chunk ({error})")
        elif kind not in _PNG_PIXELS and kind != "pHYs":
            blocks.unknown.append(f"PNG chunk {kind}")


def _take_png_text(kind: str, data: bytes, blocks: _Blocks) -> None:
    name, _, rest = data.partition(b"\0")
    keyword, language = name.decode("latin-1"), ""
    if kind == "iTXt":
        packed, (language_bytes, _, text) = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
        language = language_bytes.decode("latin-1")
        text = _inflate(text) if packed else text
    else:
        text = _inflate(rest[1:]) if kind == "zTXt" else rest
    if keyword == "XML:com.adobe.xmp":
        blocks.xmp = blocks.xmp or text
    elif keyword.startswith(_PNG_RAW):
        _take_raw_profile(keyword.removeprefix(_PNG_RAW), text, blocks)
    else:  # tEXt is Latin-1 by the book; programs write UTF-8 all the same
        blocks.texts.append(Text(keyword, _decoded(text), language))


def _inflate(data: bytes) -> bytes:
    unpacked = zlib.decompressobj().decompress(data, _MOST_TEXT)
    if len(unpacked) == _MOST_TEXT:
        raise ValueError("a text of more than 16 MB")
    return unpacked


def _take_raw_profile(kind: str, text: bytes, blocks: _Blocks) -> None:
    """A block of another format in hexadecimal, behind its name and length."""
    match = re.match(rb"\s*[^\n]*\n\s*\d+\n([\s0-9a-fA-F]*)$", text)
    if not match:
        raise ValueError(f"PNG profile {kind}")
    data = bytes.fromhex(match[1].decode())
    if kind in ("iptc", "8bim"):
        if data.startswith(b"8BIM"):
            blocks.photoshop += data
        else:
            blocks.iptc = blocks.iptc or data
    elif kind == "xmp":
        blocks.xmp = blocks.xmp or data
    elif kind == "exif" or data.startswith(b"Exif\0\0"):
        blocks.exif = blocks.exif or data
    elif data.startswith(JPEG_XMP):  # "APP1"
        blocks.xmp = blocks.xmp or data[len(JPEG_XMP) :]
    elif kind not in ("icc", "icm"):
        blocks.unknown.append(f"PNG profile {kind}")


def _read_jp2(stream: IO[bytes], blocks: _Blocks) -> None:
    for kind, data in _jp2_boxes(stream):
        if kind == "xml ":
            blocks.texts.append(Text("XML", _decoded(data)))
        elif data[:16] in _JP2_BLOCKS:
            setattr(blocks, _JP2_BLOCKS[data[:16]], data[16:])
        else:
            blocks.unknown.append(f"JPEG 2000 box {data[:16].hex() if kind == 'uuid' else kind.strip()}")


def _jp2_boxes(stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Boxes that may tell of the photo: type and content (ISO/IEC 15444-1, annex I)."""
    stream.seek(0)
    if stream.read(4) == b"\xff\x4f\xff\x51":  # a codestream without boxes
        return
    stream.seek(0)
    while len(header := stream.read(8)) == 8:
        length, kind = int.from_bytes(header[:4], "big"), header[4:].decode("latin-1")
        size = 8
        if length == 1:
            length, size = int.from_bytes(stream.read(8), "big"), 16
        if kind in ("uuid", "xml ", "uinf", "jp2i", "asoc"):
            yield kind, stream.read(length - size if length else -1)
        elif length == 0:
            return
        else:
            stream.seek(length - size, io.SEEK_CUR)
