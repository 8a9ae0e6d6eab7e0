"""Reading photo files: any format to upright pixels, and pixels to grey of the same lightness, at full precision.

A file's pixels become sRGB-encoded grey of the same lightness, through its ICC profile if it has one. Whole numbers
stay whole numbers: 8-bit grey without a profile stays as it is, everything else becomes 16-bit. Packages that not
every file needs are loaded when one does: 8-bit JPEG and PNG are read with Pillow alone.
"""

import importlib
import io
import logging
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
from PIL import ImageCms, PngImagePlugin, UnidentifiedImageError

DEFAULT_MAX_MEGAPIXELS = 300.0
_STRIP_PIXELS = 2**18
_UINT16_MAX = 65535
_MOST_PAGES = 10_000
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")
_ORIENTATION, _SUBFILE_TYPE = 0x0112, 0x00FF
_PALETTE, _ICCLAB = 3, 9  # of TIFF's photometric interpretations
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue, as PNG has them
_open_lock = threading.Lock()


class PhotoError(ValueError):
    """A photo can be read but not colorized as it is; the message says why and what to do."""


class TooLargeError(PhotoError):
    """A photo has more pixels than the caller allows."""


def read_gray(
    file: Path, directory: int | None = None, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> np.ndarray:
    """Grey ``[H, W]`` of a file, sRGB-encoded, upright, uint8 or uint16 over its full range.

    Args:
        file: any format that Pillow or tifffile reads; HEIC needs ``pip install pillow-heif``.
        directory: which of a TIFF's images; the first page if None.
        max_megapixels: refuse larger pictures.

    Raises:
        OSError, ValueError: if it can't be read as a photo; the message names it.
    """
    with naming(file):
        return to_gray(read_pixels(file, directory, max_megapixels=max_megapixels))


# Files


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Every error of a decoder becomes one ``OSError`` or ``ValueError`` that names the file."""
    try:
        yield
    except PhotoError as error:
        raise type(error)(f"{file}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: {error.strerror or error}") from error
    except PermissionError as error:
        raise PermissionError(f"{file}: permission denied; make the file readable") from error
    except MemoryError as error:
        raise MemoryError(f"{file}: not enough memory to decode it") from error
    except Exception as error:  # decoders raise errors of every type for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a photo in any known format"
        if isinstance(error, (struct.error, IndexError)):
            reason = "the file is cut short or damaged"
        remedy = "copy it again, or save it as TIFF or PNG with a program that opens it"
        raise OSError(f"{file}: can't be read as a photo ({reason.replace(f'{file}: ', '')}); {remedy}") from error


def check_file(file: Path) -> bytes:
    """The first 32 bytes of a file that may be a photo. Raises ``FileNotFoundError`` or ``PhotoError``."""
    if not file.is_file():
        raise FileNotFoundError("no such file" if not file.exists() else "not a regular file")
    if file.stat().st_size == 0:
        raise PhotoError("the file is empty; copy or scan it again")
    with file.open("rb") as stream:
        return stream.read(32)


def check_size(height: int, width: int, max_megapixels: float) -> None:
    """Raises ``TooLargeError`` for a picture of more pixels."""
    if height * width > max_megapixels * 1e6:
        raise TooLargeError(
            f"{width} x {height} pixels are more than {max_megapixels:g} megapixels; "
            "if the scan really is that large, raise --max-megapixels (in Python, read_photo's max_megapixels)"
        )


def needed(package: str, what: str) -> Any:
    """A package that not every photo needs. Raises ``PhotoError`` that says which and for what."""
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise PhotoError(f"{what} needs one more package: pip install {package.replace('_', '-')}") from None
    if package == "tifffile":
        logging.getLogger(package).setLevel(logging.CRITICAL)  # what is wrong with a file is said by our own error
    return module


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow's own limit of pixels, a global, gives way to ours."""
    with _open_lock:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def open_image(file: Path | io.BytesIO) -> Iterator[PIL.Image.Image]:
    """A picture that Pillow has opened, not decoded yet. Of a 12-bit JPEG, which Pillow can't open, its size only."""
    source = file
    if isinstance(file, Path):
        with file.open("rb") as stream:
            start = stream.read(32)
            if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
                needed("pillow_heif", "HEIC").register_heif_opener()
            if png_depth(start) and (refused := _refused_chunks(stream)):
                source = _without_chunks(stream, refused)
            depth, size = jpeg_frame(stream)
            if depth == 12:
                image = PIL.Image.new("I;16", size)
                image.format = "JPEG"
                yield image
                return
    with _without_limit():
        opened = PIL.Image.open(source)
    with opened:
        if opened.format == "EPS":  # Pillow would run Ghostscript on it, which strangers' files shouldn't reach
            raise PhotoError("it is a PostScript page, not a photo; export it as TIFF or PNG")
        yield opened


def _load(image: PIL.Image.Image) -> None:
    """Decode a picture whose size has been checked. Pillow checks again what it decodes of a TIFF."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        with _without_limit():
            image.load()
    else:
        image.load()


def png_chunks(stream: IO[bytes]) -> Iterator[tuple[int, str, bytes, bool]]:
    """Place and type of each chunk of a PNG; of text and metadata also its data, and whether its checksum is wrong."""
    stream.seek(8)
    while len(header := stream.read(8)) == 8:
        place, length, kind = stream.tell() - 8, int.from_bytes(header[:4], "big"), header[4:].decode("latin-1")
        if kind in ("tEXt", "zTXt", "iTXt", "eXIf", "tIME"):
            data, checksum = stream.read(length), stream.read(4)
            yield place, kind, data, zlib.crc32(header[4:] + data) != int.from_bytes(checksum, "big")
        else:
            yield place, kind, b"", False
            stream.seek(place + length + 12)


def _refused_chunks(stream: IO[bytes]) -> list[tuple[int, int]]:
    """Place and length of a PNG's chunks of text or metadata that libpng would pass over and Pillow refuses.

    They have a wrong checksum, or more text than Pillow unpacks.
    """
    return [
        (place, len(data) + 12)
        for place, kind, data, wrong in png_chunks(stream)
        if wrong or (kind in ("zTXt", "iTXt") and _unpacks_to_much(data))
    ]


def _unpacks_to_much(data: bytes) -> bool:
    """Whether a chunk of packed text has more than Pillow accepts. Wherever its stream begins, it begins with 0x78."""
    start = data.find(b"\x78", data.find(b"\0"))
    if start < 0 or len(data) < PngImagePlugin.MAX_TEXT_CHUNK // 2000:
        return False
    try:
        unpacked = zlib.decompressobj().decompress(data[start:], PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return len(unpacked) >= PngImagePlugin.MAX_TEXT_CHUNK


def _without_chunks(stream: IO[bytes], chunks: list[tuple[int, int]]) -> io.BytesIO:
    parts, position = [], 0
    for place, length in chunks:
        stream.seek(position)
        parts.append(stream.read(place - position))
        position = place + length
    stream.seek(position)
    return io.BytesIO(b"".join([*parts, stream.read()]))


def jpeg_segments(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Marker and data of each segment of a JPEG before its picture; nothing of another file."""
    stream.seek(0)
    if stream.read(2) != b"\xff\xd8":
        return
    while (byte := stream.read(1)) == b"\xff":
        while byte == b"\xff":
            byte = stream.read(1)
        if not byte or byte[0] in (0xD9, 0xDA):
            return
        if 0xD0 <= byte[0] <= 0xD8 or byte[0] == 1:
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        yield byte[0], stream.read(length - 2)


def jpeg_frame(stream: IO[bytes]) -> tuple[int, tuple[int, int]]:
    """Bits a sample, and width and height, that a JPEG's frame header says; 0 for another file."""
    for marker, data in jpeg_segments(stream):
        if marker in _JPEG_FRAMES:
            depth, height, width = struct.unpack_from(">BHH", data)
            return depth, (width, height)
    return 0, (0, 0)


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts like this is a TIFF."""
    return start[:4] in _TIFF_STARTS


def png_depth(start: bytes) -> int:
    """Bits a sample of a PNG that starts like this; 0 of another file."""
    return start[24] if start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) > 25 else 0


def orientation_of(image: PIL.Image.Image) -> int:
    """EXIF's orientation, 1 ... 8; 1 if there is none or it can't be read."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # decoders raise errors of every type for damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width of an upright picture."""
    return (size[1], size[0]) if orientation >= 5 else size


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF's orientation, 1 ... 8 (Exif 3.0, 4.6.5.1.6)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class Pixels:
    """What a photo holds: ``values [H, W, C]``, uint8 or uint16, of an ICC colour space, with the profile for it."""

    values: np.ndarray
    space: str
    profile: bytes | None = None


def read_pixels(file: Path, directory: int | None = None, *, max_megapixels: float) -> Pixels:
    """The upright pixels of a file; raises as decoders do, see :func:`naming`. Arguments as of :func:`read_gray`."""
    start = check_file(file)
    pixels, orientation = (
        _decode_tiff(file, directory, max_megapixels) if is_tiff(start) else _decode(file, start, max_megapixels)
    )
    return replace(pixels, values=_turn(pixels.values, orientation))


def _decode(file: Path, start: bytes, max_megapixels: float) -> tuple[Pixels, int]:
    """The pixels of a file and how they are to be turned."""
    with open_image(file) as image:
        check_size(image.height, image.width, max_megapixels)
        if image.format == "JPEG":
            return _decode_jpeg(file, image), orientation_of(image)
        if png_depth(start) == 16 and image.mode not in ("I;16", "I"):
            # Pillow would drop the lower 8 bits of each colour
            values = needed("imagecodecs", "16-bit colour").png_decode(file.read_bytes())
            values = values.reshape(*values.shape[:2], -1)
            gray = values.shape[-1] <= 2
            kept, space = (values[..., :1], "GRAY") if gray else (values[..., :3], "RGB ")
            return Pixels(kept, space, _profile_of(image)), orientation_of(image)
        _load(image)
        return pixels_of_image(image), orientation_of(image)


def _decode_jpeg(file: Path, image: PIL.Image.Image) -> Pixels:
    if image.mode == "I;16":  # of 12 bits, see open_image
        values = needed("imagecodecs", "12-bit JPEG").jpeg8_decode(file.read_bytes())
        values = _as_uint16(values.reshape(*values.shape[:2], -1), bits=12)
        return Pixels(values, {1: "GRAY", 3: "RGB ", 4: "CMYK"}[values.shape[-1]], None)
    try:
        _load(image)
    except OSError:
        content, profile = file.read_bytes(), image.info.get("icc_profile")
        # Without the marker of its end, or cut short? What follows a whole picture doesn't change it
        endings = (b"", np.random.default_rng(0).integers(0, 255, 2**14, dtype=np.uint8).tobytes())
        first, second = (_pixels_of_bytes(content + ending + b"\xff\xd9") for ending in endings)
        if not np.array_equal(first.values, second.values):
            raise
        return replace(first, profile=profile)
    return pixels_of_image(image)


def _pixels_of_bytes(content: bytes) -> Pixels:
    with open_image(io.BytesIO(content)) as image:
        _load(image)
        return pixels_of_image(image)


def _profile_of(image: PIL.Image.Image) -> bytes | None:
    """The ICC profile of an image, or one of what a PNG without it says in gAMA and cHRM (PNG 3, 13.13)."""
    info = image.info
    profile = info.get("icc_profile")
    if profile or "srgb" in info or not info.get("gamma"):
        return profile
    gamma, primaries = 1 / info["gamma"], info.get("chromaticity") or _SRGB_PRIMARIES
    near = np.allclose(primaries, _SRGB_PRIMARIES, atol=2e-3)
    if not 0.1 < gamma < 10 or (near and abs(gamma - 2.2) < 0.05):
        return None  # every program writes 1 / 2.2 for sRGB
    try:
        codecs = needed("imagecodecs", "a PNG with a gamma of its own")
        if image.mode in ("1", "L", "LA", "I", "I;16"):
            return codecs.cms_profile("gray", gamma=gamma)
        return codecs.cms_profile("rgb", gamma=gamma, whitepoint=primaries[:2], primaries=primaries[2:])
    except (ValueError, RuntimeError):  # primaries that make no colour space
        return None


def pixels_of_image(image: PIL.Image.Image) -> Pixels:
    """The pixels of an image that Pillow has opened, as it lies."""
    mode, profile = image.mode, _profile_of(image)
    if mode in ("1", "L", "LA", "La"):
        values, space = np.asarray(image if mode == "L" else image.convert("L"))[..., None], "GRAY"
    elif mode.startswith("I") or mode == "F":
        values, space = _as_uint16(np.asarray(image))[..., None], "GRAY"
    elif mode == "LAB":
        values, space = np.asarray(image)[..., :1], "Lab "
    elif mode == "CMYK" and profile:
        values, space = np.asarray(image), "CMYK"
    else:
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        values, space = np.asarray(image.convert("RGB")), "RGB "
    return Pixels(values, space, profile)


# TIFF


def tiff_directories(stream: IO[bytes]) -> Iterator[tuple[int, str, bool]]:
    """Offset, byte order and wideness of each chained directory of a TIFF. EXIF is stored as one.

    Raises:
        PhotoError: for a chain that leads back into itself, which tifffile would follow for ever.
        ValueError, struct.error: for a damaged one.
    """

    def read(form: str) -> int:
        return struct.unpack(order + form, stream.read(struct.calcsize(form)))[0]

    stream.seek(0)
    mark = stream.read(2)
    if mark not in (b"II", b"MM"):
        raise ValueError("it doesn't begin with a byte order")
    order = "<" if mark == b"II" else ">"
    big = read("H") == 43
    count, pointer, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    stream.seek(8 if big else 4)
    seen: set[int] = set()
    while offset := read(pointer):
        if offset in seen or len(seen) >= _MOST_PAGES:
            raise PhotoError(f"its chain of pages doesn't end, or has more than {_MOST_PAGES}; copy it again")
        seen.add(offset)
        yield offset, order, big
        stream.seek(offset)
        stream.seek(offset + struct.calcsize(count) + read(count) * entry)


def _count_directories(file: Path) -> int:
    with file.open("rb") as stream:
        count = sum(1 for _ in tiff_directories(stream))
    if not count:
        raise PhotoError("it holds no picture; copy or scan it again")
    return count


def full_page(page: Any) -> Any:
    """A page with its own tags, which tifffile reads only when asked."""
    return page.aspage() if hasattr(page, "aspage") else page


@contextmanager
def open_tiff(file: Path) -> Iterator[tuple[list[Any], list[int]]]:
    """The images of a TIFF, as tifffile's pages, and which of them are whole pages, not thumbnails or masks."""
    tifffile, count = needed("tifffile", "TIFF"), _count_directories(file)
    with tifffile.TiffFile(file) as tiff:
        every = [_full_picture(tiff.pages[index]) for index in range(count)]
        yield every, [index for index, page in enumerate(every) if not _is_reduced(page)] or [0]


def _is_reduced(page: Any) -> bool:
    """Whether it is a thumbnail or a mask: bits 0 and 2 of NewSubfileType, or the older SubfileType."""
    older = page.tags.get(_SUBFILE_TYPE)
    return bool(int(page.subfiletype or 0) & 5) or (older is not None and older.value == 2)


def _full_picture(page: Any) -> Any:
    """A page, or what its SubIFDs hold if it is a thumbnail of that (TIFF/EP, 5.1)."""
    page = full_page(page)
    inside = [full_page(inner) for inner in page.pages or ()]
    larger = [
        inner
        for inner in inside
        if not _is_reduced(inner) and inner.imagelength * inner.imagewidth > page.imagelength * page.imagewidth
    ]
    return max(larger, key=lambda inner: inner.imagelength * inner.imagewidth, default=page)


def tiff_orientation(page: Any) -> int:
    """A TIFF page's orientation, 1 ... 8; a SubIFD that doesn't say it lies as the page that it belongs to."""
    tag = page.tags.get(_ORIENTATION)
    if tag is None and len(page.treeindex) > 1:
        tag = full_page(page.parent.pages[page.treeindex[0]]).tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _decode_tiff(file: Path, directory: int | None, max_megapixels: float) -> tuple[Pixels, int]:
    if directory is None:
        with open_tiff(file) as (_, whole):
            directory = whole[0]
    with needed("tifffile", "TIFF").TiffFile(file) as tiff:
        page = _full_picture(tiff.pages[directory])
        check_size(page.imagelength, page.imagewidth, max_megapixels)
        orientation = tiff_orientation(page)
        if _pillow_interprets(page):
            with open_image(_for_pillow(file, page)) as image:
                if len(page.treeindex) == 1:
                    with _without_limit():
                        image.seek(directory)
                _load(image)
                return pixels_of_image(image), orientation
        return _pixels_of_tiff(page), orientation


def _pillow_interprets(page: Any) -> bool:
    """L*a*b*, bits, JPEG inside TIFF: of 8 bits at most, and Pillow knows what they mean."""
    plain = page.bitspersample == 8 and int(page.photometric) in (0, 1, 2, 5) and int(page.compression) not in (6, 7)
    ours = plain or int(page.photometric) in (_PALETTE, _ICCLAB)
    return page.bitspersample <= 8 and page.sampleformat in (1, None) and not ours


def _for_pillow(file: Path, page: Any) -> Path | io.BytesIO:
    """Pillow (13.0) turns some TIFFs while it loads them and others not, so it doesn't get to see the tag.

    A SubIFD, which it doesn't reach, becomes the first page.
    """
    tag, inner = page.tags.get(_ORIENTATION), len(page.treeindex) > 1
    if not inner and (tag is None or tag.value == 1):
        return file
    content, order = bytearray(file.read_bytes()), page.parent.byteorder
    if tag is not None:
        content[tag.valueoffset : tag.valueoffset + 2] = struct.pack(order + "H", 1)
    if inner:
        place, form = (8, "Q") if page.parent.is_bigtiff else (4, "I")
        struct.pack_into(order + form, content, place, page.offset)
    return io.BytesIO(content)


def _pixels_of_tiff(page: Any) -> Pixels:
    tag = page.tags.get(34675)
    profile = bytes(tag.value) if tag is not None else None
    photometric = int(page.photometric)
    spaces = {0: "GRAY", 1: "GRAY", 2: "RGB ", _PALETTE: "RGB ", 5: "CMYK", 8: "Lab ", _ICCLAB: "ICCL"}
    if photometric not in spaces:
        raise PhotoError(f"TIFF of kind {page.photometric!s} isn't a finished picture; develop it to grey or RGB")
    pixels = page.asarray(maxworkers=1)
    pixels = pixels.reshape(page.shaped[-4:]) if pixels.ndim > 3 else pixels
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and page.planarconfig == 2 and pixels.shape[-2:] == (page.imagelength, page.imagewidth):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or pixels.shape[:2] != (page.imagelength, page.imagewidth):
        raise PhotoError(f"TIFF page of shape {page.shape} isn't a flat picture; save its layers as pages")
    space = spaces[photometric]
    if photometric == _PALETTE:
        pixels = _palette_of(page)[np.minimum(pixels[..., 0], page.colormap.shape[-1] - 1)]
    wanted = {"GRAY": 1, "RGB ": 3, "CMYK": 4}.get(space, 1)
    if pixels.shape[-1] < wanted:
        raise PhotoError(
            f"TIFF of kind {page.photometric!s} has {pixels.shape[-1]} samples a pixel, not {wanted}; save it anew"
        )
    values = pixels[..., :wanted]
    if values.dtype != np.uint8:
        values = _as_uint16(values, bits=int(page.bitspersample))
    if photometric == 0:
        values = np.iinfo(values.dtype).max - values
    return Pixels(values, space, profile)


def _palette_of(page: Any) -> np.ndarray:
    """A TIFF's colour map ``[N, 3]``, uint8, as libtiff reads it: old writers gave 0 ... 255 of its 65,535."""
    colors = np.asarray(page.colormap, np.uint16).T
    return (colors if colors.max() < 256 else colors >> 8).astype(np.uint8)


# Values


def check_floats(values: np.ndarray, remedy: str) -> None:
    """Raises ``PhotoError`` for floats outside of [0, 1]."""
    if not np.isfinite(values).all():
        raise PhotoError(f"it holds NaN or infinite values; {remedy}")
    if values.min() < 0 or values.max() > 1:
        lowest, highest = values.min(), values.max()
        raise PhotoError(f"floating-point values from {lowest:g} to {highest:g}; they must lie in [0, 1]: {remedy}")


def _as_uint16(values: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Whole numbers of ``bits`` bits, or floats in [0, 1], to the full range of uint16."""
    if values.dtype.kind == "f":
        check_floats(values, "export it as 16-bit whole numbers")
        return np.round(values * np.float32(_UINT16_MAX)).astype(np.uint16)
    if values.dtype == np.uint16 and bits in (None, 16):
        return values
    if values.dtype.kind not in "ui":
        raise PhotoError(f"values of type {values.dtype} aren't grey; export it as 16-bit whole numbers")
    largest = _UINT16_MAX if bits is None or (values.dtype.kind == "i" and bits == 32) else 2**bits - 1
    if values.min() < 0 or values.max() > largest:
        raise PhotoError(
            f"values from {values.min()} to {values.max()} aren't {bits or 16}-bit grey; "
            "export it as 16-bit whole numbers"
        )
    return np.round(values.astype(np.float64) * (_UINT16_MAX / largest)).astype(np.uint16)


def to_gray(pixels: Pixels) -> np.ndarray:
    """Pixels to sRGB grey ``[H, W]``, uint8 or uint16."""
    values, largest = pixels.values, np.iinfo(pixels.values.dtype).max
    if pixels.space == "Lab ":
        return _lab_table(largest)[values[..., 0]]
    if pixels.space == "ICCL":  # in ICC's 16-bit encoding 100 is 0xFF00, in that of 8 bits 0xFF
        top = min(largest, 0xFF00)
        return _lab_table(top)[np.minimum(values[..., 0], top)]
    transform = _profile_for(pixels.profile, pixels.space)
    if pixels.space == "GRAY":
        return _convert_gray(values[..., 0], pixels.profile or b"", transform) if transform else values[..., 0]
    gray, top = np.empty(values.shape[:2], np.uint16), 0
    for rgb in _rgb_strips(pixels, transform):
        gray[top : top + len(rgb)] = _gray_of_rgb(rgb)
        top += len(rgb)
    return gray


def to_rgb(pixels: Pixels) -> np.ndarray:
    """Pixels to sRGB ``[H, W, 3]`` in [0, 1], float32."""
    if pixels.space in ("Lab ", "ICCL"):
        raise PhotoError("its colours are L*a*b*; save it as RGB")
    if pixels.space == "GRAY":
        gray = to_gray(pixels)
        return (gray / np.float32(np.iinfo(gray.dtype).max))[..., None].repeat(3, axis=-1)
    return np.concatenate(list(_rgb_strips(pixels, _profile_for(pixels.profile, pixels.space))))


def _rgb_strips(pixels: Pixels, transform: str) -> Iterator[np.ndarray]:
    """sRGB ``[rows, W, 3]`` in [0, 1], float32, of RGB or CMYK pixels, strip by strip from the top."""
    rows = max(1, _STRIP_PIXELS // max(1, pixels.values.shape[1]))
    for top in range(0, len(pixels.values), rows):
        strip = np.ascontiguousarray(pixels.values[top : top + rows])
        if transform:
            yield _through_profile(strip, pixels.profile or b"", transform)
            continue
        unit = strip.astype(np.float32) / np.iinfo(strip.dtype).max
        yield (1 - unit[..., :3]) * (1 - unit[..., 3:]) if pixels.space == "CMYK" else unit


def _convert_gray(values: np.ndarray, profile: bytes, transform: str) -> np.ndarray:
    ramp = np.arange(np.iinfo(values.dtype).max + 1, dtype=values.dtype)[None, :, None]
    if transform == "rgb":  # grey pixels with an RGB profile: equal parts of its three primaries
        ramp = np.repeat(ramp, 3, axis=-1)
    rgb = _through_profile(np.ascontiguousarray(ramp), profile, transform)
    return _gray_of_rgb(rgb)[0][values]


def _gray_of_rgb(rgb: np.ndarray) -> np.ndarray:
    """sRGB ``[h, w, 3]`` in [0, 1] to uint16 grey ``[h, w]`` of the same lightness."""
    import torch  # here, so that what needs no pixels does without it

    from .color import rgb_to_gray

    gray = rgb_to_gray(torch.from_numpy(rgb).movedim(-1, 0))[0]
    return (gray * _UINT16_MAX).round().numpy().astype(np.uint16)


def _through_profile(pixels: np.ndarray, profile: bytes, transform: str) -> np.ndarray:
    """Pixels ``[h, w, C]`` to sRGB ``[h, w, 3]``, float32, relative colorimetric."""
    if transform == "gray":
        pixels = pixels[..., 0]
    return needed("imagecodecs", "a photo with an ICC profile").cms_transform(
        pixels, profile, srgb_profile(), colorspace=transform, outcolorspace="rgb", outdtype="float32", intent=1
    )


def _profile_for(profile: bytes | None, space: str) -> str:
    """How lcms is to read these pixels with this profile; empty if the profile is sRGB, missing or not theirs."""
    wants = profile_space(profile) if profile else ""
    if wants == "sRGB":
        return ""
    if wants == space or (space == "GRAY" and wants == "RGB "):
        return wants.strip().lower()
    return ""


@lru_cache(maxsize=64)
def profile_space(profile: bytes) -> str:
    """ICC's signature of a profile's colour space, ``"sRGB"`` for one that does what sRGB's does, empty if damaged."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space
        return "sRGB" if space == "RGB " and _is_srgb(opened) else space
    except (OSError, ImageCms.PyCMSError, ValueError):
        return ""


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile's curves and primaries are sRGB's, to one step of 8 bits. Its name may say anything."""
    ramp = np.arange(256, dtype=np.uint8)
    gray = np.repeat(ramp[:, None], 3, axis=1)
    colors = np.stack(np.meshgrid(*[ramp[::51]] * 3), axis=-1).reshape(-1, 3)
    probe = np.concatenate((gray, colors))[None]
    target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    image = PIL.Image.fromarray(probe)
    through = ImageCms.profileToProfile(image, profile, target, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC)
    return bool(np.abs(np.asarray(through).astype(int) - probe).max() <= 1)


def _lab_table(largest: int) -> np.ndarray:
    """The sRGB grey, uint16, of every L* that 0 ... ``largest`` can encode."""
    import torch

    from .color import lightness_to_gray

    gray = lightness_to_gray(torch.linspace(0, 100, largest + 1, dtype=torch.float64)).clamp(0, 1)
    return (gray * _UINT16_MAX).round().numpy().astype(np.uint16)


@cache
def srgb_profile() -> bytes:
    """An sRGB ICC profile, the same bytes at every call."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The header's date of creation would make every run's files differ
    profile[24:36] = bytes((0x07, 0xD0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    return bytes(profile)
