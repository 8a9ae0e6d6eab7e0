"""Scans: any photo file with its pages, their sizes and what it says about itself; its pixels are read elsewhere."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..diffusion.reading import (
    DEFAULT_MAX_MEGAPIXELS,
    PhotoError,
    TooLargeError,
    check_file,
    check_size,
    is_tiff,
    naming,
    open_image,
    open_tiff,
    orientation_of,
    png_depth,
    profile_space,
    read_gray,
    tiff_orientation,
    turned,
)
from .metadata import Metadata, read_metadata, read_page


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
        gray = read_gray(self.file, self._pages[number], max_megapixels=float("inf"))
        if gray.shape != self.sizes[number]:
            found, said = gray.shape, self.sizes[number]
            raise PhotoError(f"{self.file}: decoded to {found}, not to {said} as its header says; save it anew")
        return gray


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
    with naming(file):
        start = check_file(file)
        sha256 = sha256 or hash_file(file)
        scan = _open_tiff(file, pages, sha256) if is_tiff(start) else _open_with_pillow(file, start, sha256)
        for height, width in scan.sizes:
            check_size(height, width, max_megapixels)
        return scan


def check_all_pages(file: Path, most: float, *, pages: str = "all") -> None:
    """Raises ``TooLargeError`` for a photo whose pages have more megapixels together than a page or server takes.

    Only headers are read. Other errors as of :func:`open_scan`.
    """
    sizes = open_scan(file, pages=pages, max_megapixels=float("inf"), sha256="-").sizes
    found = sum(height * width for height, width in sizes) / 1e6
    if found > most:
        shape = f"{sizes[0][1]} x {sizes[0][0]} pixels are"
        shape = shape if len(sizes) == 1 else f"its {len(sizes)} pages have {found:.3g} megapixels,"
        raise TooLargeError(f"{file}: {shape} more than {most:g} megapixels, the most that is taken here")


def peek_pixels(file: Path) -> float:
    """About how many pixels a photo has, from its header alone; 0 if that can't be told. Never raises."""
    try:
        if not file.is_file():  # opening a pipe would wait for its writer
            return 0.0
        with open_image(file) as image:
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


def hash_once(file: Path) -> str:
    """:func:`hash_file` of a file that many photos refer to, taken anew only when it changes."""
    status = file.stat()
    return _hash_version(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _hash_version(file: Path, *_: int) -> str:
    return hash_file(file)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers over the full range of uint8 or uint16 as uint8."""
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _open_with_pillow(file: Path, start: bytes, sha256: str) -> Scan:
    with open_image(file) as image:
        orientation = orientation_of(image)
        metadata = read_metadata(file, image, orientation=orientation)
        profile = image.info.get("icc_profile")
        if profile and not profile_space(profile):
            metadata.notes.append("its ICC profile is damaged; its values are taken as sRGB")
        size = (image.height, image.width)
        bits = 16 if image.mode.startswith(("I", "F")) or png_depth(start) == 16 else 8
        return Scan(file, sha256, image.format or "", (turned(size, orientation),), bits, (metadata,), (0,))


def _open_tiff(file: Path, pages: str, sha256: str) -> Scan:
    with open_tiff(file) as (every, whole):
        chosen = whole if pages == "all" else whole[:1]
        parts = [every[index] for index in chosen]
        sizes = tuple(turned((page.imagelength, page.imagewidth), tiff_orientation(page)) for page in parts)
        bits = 16 if any(page.bitspersample > 8 for page in parts) else 8
        page_metadata = tuple(map(_tiff_metadata, parts))
    if len(whole) > len(chosen):
        page_metadata[0].notes.append(
            f"has {len(whole)} pages; only the first is colorized (--pages all takes every page)"
        )
    return Scan(file, sha256, "TIFF", sizes, bits, page_metadata, tuple(chosen))


def _tiff_metadata(page: Any) -> Metadata:
    """Of the page, even if its pixels stand in a SubIFD."""
    tiff, orientation = page.parent, tiff_orientation(page)
    offset = tiff.pages[page.treeindex[0]].offset
    metadata = read_page(tiff.filehandle, offset, tiff.byteorder, big=tiff.is_bigtiff, orientation=orientation)
    tag = page.tags.get(34675)
    if tag is not None and not profile_space(bytes(tag.value)):
        metadata.notes.append("its ICC profile is damaged; its values are taken as sRGB")
    return metadata
