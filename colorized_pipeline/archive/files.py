"""Files of the command line: which photos there are, what their results are called, and writing all or nothing."""

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image

from ..diffusion.reading import open_image
from .copies import FORMATS
from .scans import hash_file

_KEPT_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .jp2 .ppm .pgm .pbm .pnm".split())
# Read, but written as PNG: 256 colours are too few, or no lossless writer is at hand
_TO_PNG_SUFFIXES = frozenset(".gif .heic .heif .avif .dib .mpo .jpx .jpf .j2k .j2c".split())
_GRAY_ONLY = {".pgm": ".ppm", ".pbm": ".ppm"}  # their colour relative in the same format
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}  # of formats not called like their ending
PHOTO_SUFFIXES = _KEPT_SUFFIXES | _TO_PNG_SUFFIXES
# No finished pictures, or none that we read: cameras' raw files, layered documents, pages, and JPEG XL
_UNREAD_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 "
    ".rwl .sr2 .srf .srw .x3f .psd .psb .xcf .kra .ora .afphoto .ai .eps .pdf .djvu .svg .jxl".split()
)
_SYSTEM_FOLDERS = frozenset("@eadir @recycle #recycle #snapshot $recycle.bin __macosx thumbs.db".split())
_SYSTEM_FOLDERS |= {"system volume information", "lost+found", "recycler", "network trash folder"}
MANIFEST_NAME = "colorized-manifest"  # a folder with a file that begins so is the output of a run

_UMASK = os.umask(0)  # can only be read by setting it, which is not for many threads at once
os.umask(_UMASK)


@dataclass(frozen=True)
class KnownColor:
    """A colour that somebody knows of a photo.

    Attributes:
        place: (x, y, radius), (left, top, right, bottom), or a picture: its file or a data address.
        color: see :func:`read_color`; empty for a painted picture.
        described: in words, with who says so; what a label and the manifest say of it.
        entry: the file and the place in it where this stands.
        is_reference: ``place`` is a colour photo whose palette the result gets.
    """

    place: tuple[float, ...] | str
    color: str
    described: str
    entry: str
    is_reference: bool = False


@dataclass(frozen=True)
class Job:
    """One photo to colorize.

    Attributes:
        source, target: where the photo is and where its colour copy goes.
        name: the photo's path inside the folder it was found in.
        refusal: why it can't be done, if planning already knows.
        known: colours that are known, the later ones counting where they overlap.
        leader: another photo, whose colours this one gets where it shows the same.
        origin: what its label says of where it comes from, such as ``{"SourceCanvas": "https://..."}``.
    """

    source: Path
    target: Path
    name: Path
    refusal: str = ""
    known: tuple[KnownColor, ...] = ()
    leader: "Job | None" = None
    origin: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Found:
    """Photos in the inputs, each with its path inside the folder it came from, and notes on what was passed over."""

    photos: list[tuple[Path, Path]]
    notes: list[str]


@dataclass
class _Passed:
    """What a walk through a folder passes over."""

    links: list[Path] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        notes = [
            f"{link}: a link to a folder isn't followed; name the folder itself to include it" for link in self.links
        ]
        notes += [
            f"{folder}: the output of another run is no input; name the folder itself to include it"
            for folder in self.outputs
        ]
        if self.hidden:
            names = sorted(set(self.hidden))
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            notes.append(f"{len(self.hidden)} hidden and system files and folders are passed over ({shown})")
        if self.unread:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.unread.items()))
            notes.append(f"passed over, since they are no pictures that can be read: {counts}; save them as TIFF")
        return notes


def find_photos(
    inputs: Sequence[Path], *, recursive: bool = False, output: Path | None = None, may_be_none: bool = False
) -> Found:
    """Files as given, and the photos in each folder by their suffix, sorted.

    Hidden files and folders, those of operating systems and network stores, and results of other runs are passed over.

    Args:
        inputs: files and folders. The tree of one folder keeps its names; of several, each is under its own name.
        recursive: go into folders in folders, but not into linked ones, and not into ``output``.
        may_be_none: a folder may hold no photo yet.

    Raises:
        FileNotFoundError: if an input doesn't exist.
        ValueError: if a folder holds no photo.
    """
    found: dict[str, tuple[Path, Path]] = {}
    passed = _Passed()
    for path in inputs:
        if not _exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.setdefault(_place(path), (path, Path(path.name)))
            continue
        root = Path(path.resolve().name) if recursive and len(inputs) > 1 else Path()
        inside = _walk(path, output, passed, recursive=recursive)
        if not (inside or may_be_none):
            reason = f"{path}: no photo in this folder (known: {' '.join(sorted(PHOTO_SUFFIXES))})"
            raise ValueError("; ".join([reason, *passed.notes()]))
        for file in sorted(inside):
            found.setdefault(_place(file), (file, root / file.relative_to(path)))
    return Found(list(found.values()), passed.notes())


def _place(path: Path) -> str:
    """What is the same for one name written in two ways, ``a.jpg`` and ``/home/me/a.jpg``. Links stay apart."""
    return os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}; give it a shorter name") from error


def _walk(folder: Path, output: Path | None, passed: _Passed, *, recursive: bool) -> list[Path]:
    results = output.resolve() if output else None
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        for name in names:
            file, suffix = here / name, Path(name).suffix.lower()
            if suffix not in PHOTO_SUFFIXES | _UNREAD_SUFFIXES or not (file.is_file() or file.is_symlink()):
                continue
            if name.startswith("."):
                passed.hidden.append("._*" if name.startswith("._") else name)
            elif suffix in _UNREAD_SUFFIXES:
                passed.unread[suffix] += 1
            else:
                files.append(file)
        entered = []
        for name in folders if recursive else ():
            inner = here / name
            if inner.is_symlink():
                passed.links.append(inner)
            elif name.startswith(".") or name.lower() in _SYSTEM_FOLDERS:
                passed.hidden.append(name)
            elif inner.resolve() != results and next(inner.glob(f"{MANIFEST_NAME}*.jsonl"), None):
                passed.outputs.append(inner)
            elif inner.resolve() != results:
                entered.append(name)
        folders[:] = entered
    return files


def result_files(target: Path, *, copies: int = 1, uncertainty: bool = False) -> list[Path]:
    """Every file that comes of a photo whose result is called ``target``: copies, their sheet, map of uncertainty.

    >>> [file.name for file in result_files(Path("a.tif"), copies=2, uncertainty=True)]
    ['a-1.tif', 'a-2.tif', 'a-variants.jpg', 'a-uncertainty.png']
    """
    if copies == 1:
        files = [target]
    else:
        files = [target.with_name(f"{target.stem}-{number}{target.suffix}") for number in range(1, copies + 1)]
        files.append(target.with_name(f"{target.stem}-variants.jpg"))
    return [*files, target.with_name(f"{target.stem}-uncertainty.png")] if uncertainty else files


def plan_jobs(
    found: Found,
    output: Path,
    *,
    inputs: Sequence[Path],
    recursive: bool = False,
    suffix: str = "",
    results: Callable[[Path], Sequence[Path]] = lambda target: [target],
) -> list[Job]:
    """Where each photo's result goes.

    That is ``output`` itself for one photo file and a name with a photo's ending, else the photo's name in the folder
    ``output``, with another ending if ``suffix`` says so or its own format can't hold the result. ``results`` tells
    all the files that come of one, see :func:`result_files`.

    Raises:
        ValueError: if several photos are to go into one file.
    """
    photos = found.photos
    _exists(output)
    if output.suffix.lower() in PHOTO_SUFFIXES and not output.is_dir():
        if len(photos) > 1 or inputs[0].is_dir():
            raise ValueError(f"{output} names one file, but there are {len(photos)} photos: give a folder")
        targets = [output]
    else:
        names = [name if recursive else Path(name.name) for _, name in photos]
        targets = [output / name.with_suffix(suffix or result_suffix(name)) for name in names]

    identities = {identity for source, _ in photos if (identity := _identity(source))}
    claims = Counter(file for target in targets for file in results(target))
    repeated = Counter(name.name for _, name in photos)
    # Photos whose names stay as they are come first; of the others, those that meet keep their ending in the name
    kept = [target.name == name.name for (_, name), target in zip(photos, targets, strict=True)]
    jobs: dict[int, Job] = {}
    taken: set[Path] = set()
    for index in sorted(range(len(photos)), key=lambda index: not kept[index]):
        (source, name), target = photos[index], targets[index]
        prefix = f"{source.parent.name}-" if repeated[name.name] > 1 else ""
        longer = target.with_name(f"{prefix}{name.name}" + ("" if prefix and kept[index] else target.suffix))
        crowded = not kept[index] and any(claims[file] > 1 for file in results(target))
        choices = [longer] if crowded else [target, longer]
        choice = next((one for one in choices if taken.isdisjoint(results(one))), choices[0])
        jobs[index] = Job(source, choice, name, _refusal(results(choice), identities, taken))
        taken.update(results(choice))
    return [jobs[index] for index in range(len(photos))]


def _refusal(files: Sequence[Path], identities: set[tuple[int, int]], taken: set[Path]) -> str:
    for file in files:
        if _identity(file) in identities:
            return f"{file} is one of the inputs; inputs are never overwritten: choose another output"
        if file in taken:
            return f"{file} is the result of another photo of the same name; give the photos different names"
    return ""


def result_suffix(name: Path) -> str:
    """The ending of a photo's result: its own, but another where that can't hold full colour or be written."""
    ending = name.suffix.lower()
    return ".png" if ending in _TO_PNG_SUFFIXES else _GRAY_ONLY.get(ending, name.suffix)


def suffix_for(photo: Path) -> str:
    """The ending that suits the content of a photo whose name has none; ``".png"`` if that is of no known format."""
    try:
        with open_image(photo) as image:
            format_name = image.format or ""
    except Exception:  # what is wrong with the file is said when it is read
        return ".png"
    return _SUFFIXES.get(format_name, f".{format_name.lower()}" if format_name in FORMATS else ".png")


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for one file under two names; ``None`` if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def output_format(target: Path) -> str:
    """The key of ``FORMATS`` for a file name. Raises ``ValueError`` if its ending names no format for full colour."""
    format_name = Image.registered_extensions().get(target.suffix.lower(), "")
    if target.suffix.lower() in _GRAY_ONLY:
        raise ValueError(f"{target}: {target.suffix} holds no colours; use {_GRAY_ONLY[target.suffix.lower()]}")
    if format_name not in FORMATS or target.suffix.lower() == ".pfm":  # Pillow would write a .ppm under that name
        raise ValueError(
            f"{target}: can't save colour as {target.suffix or 'a file without ending'}; use .png, .tif or .jpg"
        )
    return format_name


def check_inside(target: Path, folder: Path) -> None:
    """Raises ``ValueError`` if ``target`` would lie outside ``folder``, through a link in it for instance."""
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{target} would be outside of {folder} (a link leads there); choose another output")


class NewFile:
    """A file that appears under its name whole, or not at all.

    >>> with NewFile(Path("a.tif")) as new:
    ...     new.stream.write(b"...")
    ...     sha256 = new.finish()
    ...     # here it is safe on the disk, and nobody sees it yet

    Leaving the block gives it its name; an error in the block leaves nothing behind.

    Args:
        target: replaced if it exists.
        temporary: folder for its first name, on the same file system; the target's own if not given.
        times_of: a file whose time stamps it gets.

    Raises:
        OSError: if it can't be written; the message names ``target``.
    """

    def __init__(self, target: Path, *, temporary: Path | None = None, times_of: Path | None = None) -> None:
        self.target, self._times_of = target, times_of
        self._sha256 = ""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".colorized-", dir=temporary or target.parent)
        except OSError as error:
            raise _explained(error, target) from error
        os.close(descriptor)
        self._path = Path(name)
        self.stream: IO[bytes] = self._path.open("w+b")  # by its name: tifffile asks streams for it

    def finish(self) -> str:
        """Make sure that the content is on the disk; returns its SHA-256, hexadecimal."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self._sha256 = hash_file(self._path)
        return self._sha256

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if error is None:
                if not self._sha256:
                    self.finish()
                self._path.chmod(0o666 & ~_UMASK)  # mkstemp's files are private; a result is an ordinary file
                if self._times_of:
                    status = self._times_of.stat()
                    os.utime(self._path, ns=(status.st_atime_ns, status.st_mtime_ns))
                self._path.replace(self.target)
                _sync_folder(self.target.parent)
        except OSError as trouble:
            raise _explained(trouble, self.target) from trouble
        finally:
            with suppress(OSError):  # of a full disk, which is reported already
                self.stream.close()
            self._path.unlink(missing_ok=True)
        # Of the disk, and not of a scan that is read while its copy is written; Pillow's encoders drop the number
        if isinstance(error, OSError) and (error.errno or "encoder error" in str(error)):
            raise _explained(error, self.target) from error


def write_file(target: Path, content: bytes) -> Path:
    """Write a small file, whole or not at all."""
    with NewFile(target) as new:
        new.stream.write(content)
    return target


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than this system allows; save to another disk",
    errno.ENAMETOOLONG: "the name is too long for this disk; give the photo a shorter one",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; choose another output",
}


def _explained(error: OSError, target: Path) -> OSError:
    remedy = _REMEDIES.get(error.errno or 0, error.strerror or str(error))
    return OSError(f"{target}: can't be written ({remedy})")


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is; not every system can do that, and the file itself is safe."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
