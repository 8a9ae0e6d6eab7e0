"""Photo files of the command line: which there are, what their results are called, and writing them all or nothing."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

# File formats that keep 8-bit RGB, with the way to keep it best.
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"quality": 95, "method": 4},
    "TIFF": {"compression": "tiff_deflate"},
    "BMP": {},
    "JPEG2000": {},
    "PPM": {},
}
PHOTO_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif .jp2 .ppm .pgm .pnm".split())


def find_photos(inputs: Iterable[Path]) -> list[Path]:
    """Files as given, and for a folder the photos directly in it, by their suffix, sorted.

    Raises:
        FileNotFoundError: if an input doesn't exist.
        ValueError: if a folder holds no photo.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(
                file for file in path.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file()
            )
            if not inside:
                raise ValueError(
                    f"{path}: no photo in this folder (known endings: {' '.join(sorted(PHOTO_SUFFIXES))})"
                )
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


def plan_outputs(photos: Sequence[Path], output: Path, *, inputs: Sequence[Path]) -> list[Path]:
    """Where each photo's result goes.

    That is ``output`` itself for one photo file and a name with a photo's ending, else a file of the photo's name in
    the folder ``output``. The result of a GIF, which has room for 256 colours only, becomes a PNG.

    Raises:
        ValueError: if several photos are to go into one file.
    """
    one_file = len(photos) == 1 and not inputs[0].is_dir()
    if output.suffix.lower() in PHOTO_SUFFIXES and not output.is_dir():
        if not one_file:
            raise ValueError(f"{output} names one file, but there are {len(photos)} photos: give a folder")
        return [output]
    return [output / (photo.with_suffix(".png") if photo.suffix.lower() == ".gif" else photo).name for photo in photos]


def refuse_output(target: Path, *, photos: Sequence[Path], taken: set[Path], overwrite: bool) -> None:
    """Raises ``ValueError`` if writing ``target`` would destroy an input, an earlier result or another file."""
    resolved = target.resolve()
    if any(resolved == photo.resolve() or (target.exists() and target.samefile(photo)) for photo in photos):
        raise ValueError(f"{target} is one of the inputs; inputs are never overwritten: choose another output")
    if resolved in taken:
        raise ValueError(f"{target} is the result of another photo of the same name; colorize their folders apart")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; add --overwrite to replace it")


def save_photo(image: Image.Image, target: Path) -> None:
    """Write ``image`` in the format of the target's ending, under a temporary name, then rename: all or nothing.

    Raises:
        ValueError: if the ending names no format that keeps full colour.
        OSError: if it can't be written; nothing is left behind.
    """
    format_name = Image.registered_extensions().get(target.suffix.lower())
    if format_name not in _SAVE_OPTIONS:
        raise ValueError(
            f"{target}: can't save colour as {target.suffix or 'a file without ending'}; use .png, .tif or .jpg"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".colorized-", suffix=target.suffix, dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            image.save(file, format=format_name, **_SAVE_OPTIONS[format_name])
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp's files are private; a result is an ordinary file
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
