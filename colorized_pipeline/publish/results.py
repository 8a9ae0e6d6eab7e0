"""What an output folder holds: each scan with its colour copies and its map of uncertainty, as their labels say."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ..archive.files import PHOTO_SUFFIXES, result_files
from ..archive.inspection import read_own_label
from ..archive.labels import NOTE
from ..archive.scans import hash_file, open_scan, to_8_bits
from ..diffusion.reading import naming, read_pixels

_MOVED_ASIDE = re.compile(r"\.changed-[0-9a-f]{12}$")
_NUMBER = re.compile(r"-(\d+)$")
_EXTRAS = ("-variants", "-sheet")  # labelled as copies are, but made of several


@dataclass(frozen=True)
class ColorCopy:
    """A labelled colour copy.

    Attributes:
        file: where it is.
        xmp: its label as a packet.
        label: the same as ``{XMP property: text}``.
    """

    file: Path
    xmp: bytes
    label: Mapping[str, str]

    @property
    def source_name(self) -> str:
        """File name of its scan."""
        return unquote(self.label.get("xmpMM:DerivedFrom/stRef:filePath", ""))

    @property
    def source_sha256(self) -> str:
        """SHA-256 of its scan, hexadecimal."""
        return self.label["colorized:SourceSHA256"]

    @property
    def title(self) -> str:
        """What the photo is called: its title or headline, else its file's name."""
        names = ("dc:title", "photoshop:Headline", "colorized:SourceTitle")
        return next((self.label[name] for name in names if self.label.get(name)), Path(self.source_name).stem)

    @property
    def description(self) -> str:
        """What the scan says of itself, without our note."""
        text = self.label.get("dc:description", "").replace(f"[{NOTE}]", "").replace(NOTE, "")
        return text.strip("; \n")


@dataclass(frozen=True)
class Result:
    """A scan and what was made of it.

    Attributes:
        name: its place in the output folder, without ending and number of the variant.
        scan: the scan's file.
        copies: colour copies; the first is the one to show.
        uncertainty: map of how far variants differ, if there is one.
    """

    name: Path
    scan: Path
    copies: tuple[ColorCopy, ...]
    uncertainty: Path | None = None


def read_copy(file: Path) -> ColorCopy | None:
    """A colour copy with its label; ``None`` if it isn't one of ours. Raises ``OSError`` if it isn't a photo."""
    packet, label = read_own_label(file)
    return ColorCopy(file, packet, label) if label else None


def make_result(scan: Path, copies: list[Path]) -> Result:
    """The result of one scan whose colour copies are known.

    Raises:
        OSError: if a copy can't be read as a photo.
        ValueError: if a copy has no label, or was made of another scan.
    """
    sha256 = hash_file(scan)
    read = []
    for file in copies:
        copy = read_copy(file)
        if copy is None:
            raise ValueError(f"{file}: no label of COLORIZED; colorize {scan} again")
        if copy.source_sha256 != sha256:
            raise ValueError(f"{file}: made of another version of {scan}; colorize it again with --overwrite")
        read.append(copy)
    return _joined(scan, read)


def _joined(scan: Path, copies: list[ColorCopy]) -> Result:
    first = copies[0].file
    base = first.stem if len(copies) == 1 else _NUMBER.sub("", first.stem)
    uncertainty = result_files(first.with_name(f"{base}{first.suffix}"), uncertainty=True)[-1]
    return Result(Path(base), scan, tuple(copies), uncertainty if uncertainty.is_file() else None)


def find_results(colors: Path, scans: Path) -> tuple[list[Result], list[str]]:
    """Every scan with its colour copies, sorted by place, and what is wrong with those that are left out.

    Args:
        colors: output folder of ``colorized colorize``.
        scans: folder of the scans; each must have the content that its copies' labels name.

    Raises:
        ValueError: if there is no colour copy.
    """
    groups: dict[tuple[Path, str, str], list[ColorCopy]] = {}
    for copy in _copies(colors):
        groups.setdefault((copy.file.parent, copy.source_sha256, copy.source_name), []).append(copy)
    if not groups:
        raise ValueError(f"{colors}: no colour copy in this folder; make some: colorized colorize SCANS -o {colors}")
    candidates: dict[str, list[Path]] = {}
    for file in sorted(scans.rglob("*")):
        if file.is_file():
            candidates.setdefault(file.name, []).append(file)
    results, problems = [], []
    for (folder, sha256, source_name), copies in groups.items():
        place = folder.relative_to(colors)
        scan = _find_scan(candidates.get(source_name, []), scans / place / source_name, sha256)
        copies = _in_order(copies)
        if scan is None:
            problems.append(f"{copies[0].file}: its scan {source_name} (SHA-256 {sha256[:12]}...) isn't in {scans}")
            continue
        result = _joined(scan, copies)
        results.append(replace(result, name=place / result.name))
    return sorted(_named_apart(results), key=lambda result: result.name), problems


def _named_apart(results: list[Result]) -> Iterator[Result]:
    """Results of one name, such as of ``17.jpg`` and ``17.tif``, are called by their files' names."""
    counts = Counter(result.name for result in results)
    for result in results:
        same = counts[result.name] > 1
        yield replace(result, name=result.name.with_name(result.copies[0].file.name)) if same else result


def _copies(folder: Path) -> Iterator[ColorCopy]:
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.suffix.lower() not in PHOTO_SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        if file.is_file() and not _MOVED_ASIDE.search(file.stem):
            try:
                copy = read_copy(file)
            except OSError:
                continue  # not a photo at all, so not a colour copy
            if copy:
                yield copy


def _in_order(copies: list[ColorCopy]) -> list[ColorCopy]:
    """Copies by the number at the end of their names, without sheets of several."""
    single = [copy for copy in copies if not copy.file.stem.endswith(_EXTRAS)] or copies

    def number(copy: ColorCopy) -> tuple[int, str]:
        found = _NUMBER.search(copy.file.stem)
        return (int(found[1]) if found else 0), copy.file.name

    return sorted(single, key=number)


def _find_scan(candidates: list[Path], expected: Path, sha256: str) -> Path | None:
    """The file with this content, the one at the same place first."""
    for file in sorted(candidates, key=lambda file: file != expected):
        if hash_file(file) == sha256:
            return file
    return None


def page_count(result: Result) -> int:
    """Pages of a result: several of a TIFF, else one."""
    return len(open_scan(result.copies[0].file, max_megapixels=float("inf"), sha256="-").sizes)


def read_picture(file: Path, page: int = 0) -> np.ndarray:
    """A page of a colour copy, sRGB ``[H, W, 3]``, uint8, or uint16 where the file has 16 bits."""
    with naming(file):
        return read_pixels(file, page, max_megapixels=float("inf")).values


def read_map(file: Path, height: int, width: int) -> np.ndarray:
    """A photo's map of uncertainty ``[H, W, 3]``, uint8, without the legend below."""
    with Image.open(file) as image:
        return np.asarray(image.crop((0, 0, width, height)).convert("RGB"))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Grey ``[H, W]`` or colour ``[H, W, 3]`` of 8 or 16 bits as 8-bit colour ``[H, W, 3]``."""
    pixels = to_8_bits(pixels)
    return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)
