"""Reading scans: any photo file to upright grey pages at full precision, with what the file says about itself.

A page's pixels become sRGB-encoded grey of the same lightness, through the file's ICC profile if it has one. Whole
numbers stay whole numbers: 8-bit grey without a profile stays as it is, everything else becomes 16-bit.
"""

import hashlib
import io
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms, UnidentifiedImageError

from .metadata import Metadata, read_metadata, read_page, tiff_pages

DEFAULT_MAX_MEGAPIXELS = 300
_STRIP_PIXELS = 2**18
_UINT16_MAX = 65535
_MOST_PAGES = 10_000
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis")
_ORIENTATION = 0x0112
_open_lock = threading.Lock()

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said by our own error


class ScanError(ValueError):
    """A file can be read but not colorized as it is; the message says why and what to do."""


class TooLargeError(ScanError):
    """A scan has more pixels than the caller allows."""


@dataclass(frozen=True)
class Scan:
    """A photo file, opened but not decoded.

    Attributes:
        file: where it is.
        sha256: of the file's content, hexadecimal.
        format: Pillow's name of its format, such as ``"TIFF"``.
        sizes: height and width of each page, upright.
        bits: 16 if a page has more than 8 bits per sample, else 8.
        page_metadata: what each page says about itself.
    """

    file: Path
    sha256: str
    format: str
    sizes: tuple[tuple[int, int], ...]
    bits: int
    page_metadata: tuple[Metadata, ...]
    _pages: tuple[int, ...]

    @property
    def metadata(self) -> Metadata:
        """Of the first page."""
        return self.page_metadata[0]

    @property
    def notes(self) -> list[str]:
        """What had to be left out, in words for users."""
        return list(dict.fromkeys(note for metadata in self.page_metadata for note in metadata.notes))

    def read_page(self, number: int = 0) -> np.ndarray:
        """Grey ``[H, W]`` of a page, sRGB-encoded, upright, uint8 or uint16 over its full range.

        Raises ``OSError`` or ``ValueError`` that names the file.
        """
        with _named(self.file):
            index = self._pages[number]
            gray, orientation = _decode_tiff(self.file, index) if self.format == "TIFF" else _decode(self.file)
            upright = _turn(gray, orientation)
            if upright.shape != self.sizes[number]:
                raise ScanError(f"decoded to {upright.shape}, not to the {self.sizes[number]} that its header says")
            return upright


def open_scan(
    file: Path, *, pages: str = "all", max_megapixels: float = DEFAULT_MAX_MEGAPIXELS, sha256: str | None = None
) -> Scan:
    """Read what a photo file says about itself.

    Args:
        file: any format that Pillow or tifffile reads; HEIC needs ``pip install 'colorized[heif]'``.
        pages: ``"all"`` pages of a TIFF or the ``"first"``; of other formats always the first picture.
        max_megapixels: refuse larger pictures, which may be a small file made to fill the memory.
        sha256: the file's hash, if known already.

    Raises:
        OSError: if it can't be read as a photo.
        TooLargeError: if it has too many pixels.
    """
    with _named(file):
        if not file.is_file():
            raise FileNotFoundError("no such file" if not file.exists() else "not a regular file")
        if file.stat().st_size == 0:
            raise ScanError("the file is empty; copy or scan it again")
        sha256 = sha256 or hash_file(file)
        with file.open("rb") as stream:
            start = stream.read(32)
        if start[:4] in _TIFF_STARTS:
            scan = _open_tiff(file, pages, sha256)
        else:
            scan = _open_with_pillow(file, start, sha256)
        for height, width in scan.sizes:
            if height * width > max_megapixels * 1e6:
                raise TooLargeError(
                    f"{width} x {height} pixels are more than {max_megapixels:g} megapixels; "
                    "if the scan really is that large, raise --max-megapixels"
                )
        return scan


def peek_pixels(file: Path) -> float:
    """About how many pixels a photo has, from its header alone; 0 if that can't be told. Never raises."""
    try:
        if not file.is_file():  # opening a pipe would wait for its writer
            return 0.0
        with _pillow(file) as image:
            return image.width * image.height
    except Exception:  # what is wrong with the file is said when it is read
        return 0.0


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Every error of a decoder becomes one ``OSError`` or ``ValueError`` that names the file."""
    try:
        yield
    except ScanError as error:
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


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow's own limit of pixels, a global, gives way to ours."""
    with _open_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _pillow(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    with _without_limit():
        opened = Image.open(file)
    with opened:
        yield opened


def _open_with_pillow(file: Path, start: bytes, sha256: str) -> Scan:
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        _register_heif()
    with _pillow(file) as image:
        orientation = orientation_of(image)
        metadata = read_metadata(file, image, orientation=orientation)
        profile = image.info.get("icc_profile")
        if profile and not _profile_space(profile):
            metadata.notes.append("its ICC profile is damaged; its values are taken as sRGB")
        size = (image.height, image.width)
        bits = 16 if image.mode.startswith(("I", "F")) or _png_depth(start) == 16 else 8
        return Scan(file, sha256, image.format or "", (_turned(size, orientation),), bits, (metadata,), (0,))


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImportError("HEIC needs one more package: pip install 'colorized[heif]'") from None
    register_heif_opener()


def _png_depth(start: bytes) -> int:
    return start[24] if start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) > 25 else 0


def _open_tiff(file: Path, pages: str, sha256: str) -> Scan:
    count = _count_directories(file)
    with tifffile.TiffFile(file) as tiff:
        # Bit 0 of NewSubfileType marks thumbnails, bit 2 transparency masks
        every = [full_page(tiff.pages[index]) for index in range(count)]
        whole = [index for index, page in enumerate(every) if not int(page.subfiletype or 0) & 5] or [0]
        chosen = whole if pages == "all" else whole[:1]
        parts = [every[index] for index in chosen]
        sizes = tuple(_turned((page.imagelength, page.imagewidth), _tiff_orientation(page)) for page in parts)
        bits = 16 if any(page.bitspersample > 8 for page in parts) else 8
        page_metadata = tuple(_tiff_metadata(file, page, index) for page, index in zip(parts, chosen, strict=True))
    if len(whole) > len(chosen):
        page_metadata[0].notes.append(
            f"has {len(whole)} pages; only the first is colorized (--pages all takes every page)"
        )
    return Scan(file, sha256, "TIFF", sizes, bits, page_metadata, tuple(chosen))


def _count_directories(file: Path) -> int:
    """How many image directories are chained in a TIFF. tifffile would follow a chain that bites its tail for ever."""
    with file.open("rb") as stream:
        order = "<" if stream.read(2) == b"II" else ">"
        big = struct.unpack(f"{order}H", stream.read(2))[0] == 43
        tags, pointer, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        seen: set[int] = set()
        stream.seek(8 if big else 4)
        (offset,) = struct.unpack(order + pointer, stream.read(struct.calcsize(pointer)))
        while offset:
            if offset in seen or len(seen) >= _MOST_PAGES:
                raise ScanError(f"its chain of pages doesn't end, or has more than {_MOST_PAGES}; copy it again")
            seen.add(offset)
            stream.seek(offset)
            (count,) = struct.unpack(order + tags, stream.read(struct.calcsize(tags)))
            stream.seek(offset + struct.calcsize(tags) + count * entry)
            (offset,) = struct.unpack(order + pointer, stream.read(struct.calcsize(pointer)))
    if not seen:
        raise ScanError("it holds no picture; copy or scan it again")
    return len(seen)


def full_page(page: tifffile.TiffPage | tifffile.TiffFrame) -> tifffile.TiffPage:
    """A page with its own tags, which tifffile reads only when asked."""
    return page if isinstance(page, tifffile.TiffPage) else page.aspage()


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _tiff_metadata(file: Path, page: tifffile.TiffPage, index: int) -> Metadata:
    with file.open("rb") as stream:
        offset, order, big = tiff_pages(stream)[index]
        metadata = read_page(stream, offset, order, big=big, orientation=_tiff_orientation(page))
    tag = page.tags.get(34675)
    if tag is not None and not _profile_space(bytes(tag.value)):
        metadata.notes.append("its ICC profile is damaged; its values are taken as sRGB")
    return metadata


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 ... 8; 1 if there is none or it can't be read."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # decoders raise errors of every type for damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def _turn(gray: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF's orientation, 1 ... 8 (Exif 3.0, 4.6.5.1.6)."""
    if orientation >= 5:
        gray = gray.T
    if orientation in (3, 4, 7, 8):
        gray = gray[::-1]
    if orientation in (2, 3, 6, 7):
        gray = gray[:, ::-1]
    return np.ascontiguousarray(gray)


def _decode(file: Path) -> tuple[np.ndarray, int]:
    with file.open("rb") as stream:
        start = stream.read(32)
    with _pillow(file) as image:
        orientation = orientation_of(image)
        profile = image.info.get("icc_profile")
        if _png_depth(start) == 16 and image.mode not in ("I;16", "I"):
            # Pillow would drop the lower 8 bits of each colour
            return _to_gray(*_kind(imagecodecs.png_decode(file.read_bytes())), profile=profile), orientation
        image.load()
        return _gray_of_pil(image, profile), orientation


def _kind(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    if pixels.ndim == 2 or pixels.shape[-1] <= 2:
        return pixels.reshape(*pixels.shape[:2], -1)[..., :1], "GRAY"
    return pixels[..., :3], "RGB "


def _gray_of_pil(image: Image.Image, profile: bytes | None) -> np.ndarray:
    mode = image.mode
    if mode in ("1", "L", "LA", "La"):
        pixels, space = np.asarray(image.convert("L"))[..., None], "GRAY"
    elif mode.startswith("I"):
        pixels, space = _as_uint16(np.asarray(image))[..., None], "GRAY"
    elif mode == "F":
        pixels, space = _as_uint16(np.asarray(image))[..., None], "GRAY"
    elif mode == "LAB":
        pixels, space = np.asarray(image)[..., :1], "Lab "
    elif mode == "CMYK" and profile:
        pixels, space = np.asarray(image), "CMYK"
    else:
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        pixels, space = np.asarray(image.convert("RGB")), "RGB "
    return _to_gray(pixels, space, profile=profile)


def _decode_tiff(file: Path, index: int) -> tuple[np.ndarray, int]:
    with tifffile.TiffFile(file) as tiff:
        page = full_page(tiff.pages[index])
        orientation = _tiff_orientation(page)
        tag = page.tags.get(34675)
        profile = bytes(tag.value) if tag is not None else None
        if _pillow_interprets(page):
            with _pillow(_without_orientation(file, page)) as image:
                with _without_limit():
                    image.seek(index)
                image.load()
                return _gray_of_pil(image, profile), orientation
        return _gray_of_tiff(page, profile), orientation


def _pillow_interprets(page: tifffile.TiffPage) -> bool:
    """Palettes, L*a*b*, bits, JPEG inside TIFF: of 8 bits at most, and Pillow knows what they mean."""
    plain = page.bitspersample == 8 and int(page.photometric) in (0, 1, 2, 5) and int(page.compression) not in (6, 7)
    return page.bitspersample <= 8 and page.sampleformat in (1, None) and not plain


def _without_orientation(file: Path, page: tifffile.TiffPage) -> Path | io.BytesIO:
    """Pillow (13.0) turns some TIFFs while it loads them and others not, so it doesn't get to see the tag."""
    tag = page.tags.get(_ORIENTATION)
    if tag is None or tag.value == 1:
        return file
    content = bytearray(file.read_bytes())
    content[tag.valueoffset : tag.valueoffset + 2] = struct.pack(page.parent.byteorder + "H", 1)
    return io.BytesIO(content)


def _gray_of_tiff(page: tifffile.TiffPage, profile: bytes | None) -> np.ndarray:
    photometric = int(page.photometric)
    spaces = {0: "GRAY", 1: "GRAY", 2: "RGB ", 5: "CMYK", 8: "Lab ", 9: "ICCL"}
    if photometric not in spaces:
        raise ScanError(f"TIFF of kind {page.photometric!s} isn't a finished picture; develop it to grey or RGB")
    pixels = page.asarray(maxworkers=1)
    pixels = pixels.reshape(page.shaped[-4:]) if pixels.ndim > 3 else pixels
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and page.planarconfig == 2 and pixels.shape[-2:] == (page.imagelength, page.imagewidth):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or pixels.shape[:2] != (page.imagelength, page.imagewidth):
        raise ScanError(f"TIFF page of shape {page.shape} isn't a flat picture; save its layers as pages")
    space = spaces[photometric]
    wanted = {"GRAY": 1, "RGB ": 3, "CMYK": 4}.get(space, 1)
    if pixels.shape[-1] < wanted:
        raise ScanError(f"TIFF of kind {page.photometric!s} has {pixels.shape[-1]} samples a pixel, not {wanted}")
    values = pixels[..., :wanted]
    if values.dtype != np.uint8:
        values = _as_uint16(values, bits=int(page.bitspersample))
    if photometric == 0:
        values = np.iinfo(values.dtype).max - values
    return _to_gray(values, space, profile=profile)


def _as_uint16(values: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Whole numbers of ``bits`` bits, or floats in [0, 1], to the full range of uint16."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ScanError("it holds NaN or infinite values; export it as 16-bit whole numbers")
        if values.min() < 0 or values.max() > 1:
            raise ScanError(
                f"floating-point values from {values.min():g} to {values.max():g}; they must lie in [0, 1]: "
                "export it as 16-bit whole numbers"
            )
        return np.round(values * np.float32(_UINT16_MAX)).astype(np.uint16)
    if values.dtype == np.uint16 and bits in (None, 16):
        return values
    if values.dtype.kind not in "ui":
        raise ScanError(f"values of type {values.dtype} aren't grey; export it as 16-bit whole numbers")
    largest = _UINT16_MAX if bits is None or (values.dtype.kind == "i" and bits == 32) else 2**bits - 1
    if values.min() < 0 or values.max() > largest:
        raise ScanError(
            f"values from {values.min()} to {values.max()} aren't {bits or 16}-bit grey; "
            "export it as 16-bit whole numbers"
        )
    return np.round(values.astype(np.float64) * (_UINT16_MAX / largest)).astype(np.uint16)


def _to_gray(pixels: np.ndarray, space: str, *, profile: bytes | None) -> np.ndarray:
    """Pixels ``[H, W, C]``, uint8 or uint16, of an ICC colour space to sRGB grey ``[H, W]``, uint8 or uint16."""
    if space == "Lab ":
        return _lab_table(np.iinfo(pixels.dtype).max)[pixels[..., 0]]
    if space == "ICCL":  # in ICC's 16-bit encoding 100 is 0xFF00
        return _lab_table(0xFF00)[np.minimum(pixels[..., 0], 0xFF00)]
    transform = _profile_for(profile, space)
    if space == "GRAY":
        return _convert_grey(pixels[..., 0], profile if transform else None, transform)
    gray = np.empty(pixels.shape[:2], np.uint16)
    rows = max(1, _STRIP_PIXELS // max(1, pixels.shape[1]))
    for top in range(0, len(pixels), rows):
        strip = np.ascontiguousarray(pixels[top : top + rows])
        if transform:
            rgb = _through_profile(strip, profile or b"", transform)
        elif space == "CMYK":
            ink = strip.astype(np.float32) / np.iinfo(strip.dtype).max
            rgb = (1 - ink[..., :3]) * (1 - ink[..., 3:])
        else:
            rgb = strip.astype(np.float32) / np.iinfo(strip.dtype).max
        gray[top : top + rows] = _gray_of_rgb(rgb)
    return gray


def _gray_of_rgb(rgb: np.ndarray) -> np.ndarray:
    """sRGB ``[h, w, 3]`` in [0, 1] to uint16 grey ``[h, w]`` of the same lightness."""
    import torch  # here, so that a file's label is read without it

    from ..diffusion.color import rgb_to_gray

    gray = rgb_to_gray(torch.from_numpy(rgb).movedim(-1, 0))[0]
    return (gray * _UINT16_MAX).round().numpy().astype(np.uint16)


def _convert_grey(values: np.ndarray, profile: bytes | None, transform: str) -> np.ndarray:
    if not profile:
        return values
    ramp = np.arange(np.iinfo(values.dtype).max + 1, dtype=values.dtype)[None, :, None]
    if transform == "rgb":  # grey pixels with an RGB profile: equal parts of its three primaries
        ramp = np.repeat(ramp, 3, axis=-1)
    rgb = _through_profile(np.ascontiguousarray(ramp), profile, transform)
    return _gray_of_rgb(rgb)[0][values]


def _through_profile(pixels: np.ndarray, profile: bytes, transform: str) -> np.ndarray:
    """Pixels ``[h, w, C]`` to sRGB ``[h, w, 3]``, float32, relative colorimetric."""
    if transform == "gray":
        pixels = pixels[..., 0]
    return imagecodecs.cms_transform(
        pixels, profile, srgb_profile(), colorspace=transform, outcolorspace="rgb", outdtype="float32", intent=1
    )


def _profile_for(profile: bytes | None, space: str) -> str:
    """How lcms is to read these pixels with this profile; empty if the profile is sRGB, missing or not theirs."""
    wants = _profile_space(profile) if profile else ""
    if wants == "sRGB":
        return ""
    if wants == space or (space == "GRAY" and wants == "RGB "):
        return wants.strip().lower()
    return ""


def _profile_space(profile: bytes) -> str:
    """ICC's signature of a profile's colour space, ``"sRGB"`` for sRGB itself, empty for a damaged profile."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, name = opened.profile.xcolor_space, ImageCms.getProfileDescription(opened)
    except (OSError, ImageCms.PyCMSError, ValueError):
        return ""
    return "sRGB" if space == "RGB " and "sRGB" in name else space


def _lab_table(largest: int) -> np.ndarray:
    """The sRGB grey, uint16, of every L* that 0 ... ``largest`` can encode."""
    import torch

    from ..diffusion.color import lightness_to_gray

    gray = lightness_to_gray(torch.linspace(0, 100, largest + 1, dtype=torch.float64)).clamp(0, 1)
    return (gray * _UINT16_MAX).round().numpy().astype(np.uint16)


def srgb_profile() -> bytes:
    """An sRGB ICC profile, the same bytes at every call."""
    return _SRGB_PROFILE


def _make_srgb_profile() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The header's date of creation would make every run's files differ
    profile[24:36] = bytes((0x07, 0xD0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    return bytes(profile)


_SRGB_PROFILE = _make_srgb_profile()
