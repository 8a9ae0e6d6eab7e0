"""What is recorded of results in the output folder, and what is known from it: done before, changed, unfinished."""

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from .._version import __version__
from ..archive.files import MANIFEST_NAME, Job, check_inside, output_format
from ..archive.scans import hash_file

_OF_ONE_PHOTO = ("known", "tied_to")  # settings that files beside the photos decide
_PARTIAL_NAME = ".colorized-partial"


class DoneBefore(Exception):
    """The photo's results exist, whole, with these settings."""


@dataclass
class Outcome:
    """What became of one photo: ``"done"``, ``"skipped"`` (done before), ``"failed"``; ``"planned"`` by a dry run."""

    job: Job
    state: str
    message: str = ""
    notes: list[str] = field(default_factory=list)


def explain(error: BaseException, photo: Path) -> str:
    """An error in one line that begins with the photo's name, which is left as it is."""
    text, start = str(error) or type(error).__name__, f"{photo}: "
    return start + " ".join(text.removeprefix(start).split())


class Records(Protocol):
    """What the work on photos asks of a :class:`Manifest`; on a cluster another process keeps that."""

    def find(self, output: Path) -> dict[str, Any] | None:
        """The latest record of a finished result."""

    def add(self, job: Job, output: Path, **facts: Any) -> None:
        """Record a result or a failure, and wait until it is on the disk."""


class PastRecords:
    """What the manifests in an output folder say of its finished results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: dict[str, bytes] = {}  # a quarter of the memory that the records need
        for file in sorted(folder.glob(f"{MANIFEST_NAME}*.jsonl")):
            for record, line in _read_records(file):
                if "error" in record:  # a run that was refused leaves what was done before as it is
                    continue
                known = self._lines.get(record["output"])
                if known is None or record["finished"] >= json.loads(known)["finished"]:
                    self._lines[record["output"]] = line

    def find(self, output: Path) -> dict[str, Any] | None:
        """The latest record of a finished result."""
        line = self._lines.get(self._key(output))
        return json.loads(line) if line else None

    def _key(self, output: Path) -> str:
        return output.relative_to(self.folder).as_posix()


class Manifest(PastRecords):
    """JSON lines in the output folder: for each photo its source, hash, output, seed, time and, if it failed, why.

    A line is written and on the disk *before* its result gets its final name. So a result that exists and has the
    hash of its line is whole, and one that doesn't was never finished.

    Args:
        folder: the output folder. Every manifest in it is read, so that a run can go on with another number of
            processes.
        part: of the manifest that this process alone writes.
    """

    def __init__(self, folder: Path, *, part: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._lock = threading.Lock()
        self._file = (folder / f"{MANIFEST_NAME}{part}.jsonl").open("ab+")
        self._end_torn_line()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, job: Job, output: Path, **facts: Any) -> None:
        """Record a result, or with the fact ``error`` a failure, and wait until it is on the disk."""
        record = {"source": job.name.as_posix(), "output": self._key(output), **facts, "version": __version__}
        record["finished"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            if "error" not in record:
                self._lines[record["output"]] = line

    def _end_torn_line(self) -> None:
        """After a crash in the middle of a line the next one must not continue it."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


def _read_records(file: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    with file.open("rb") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a crash
            if isinstance(record, dict) and isinstance(record.get("output"), str) and "finished" in record:
                yield record, line


def describe_source(source: Path, sha256: str) -> dict[str, Any]:
    """What a record says of a photo's file, by which an unchanged one is known again without reading it."""
    status = source.stat()
    return {"sha256": sha256, "source_bytes": status.st_size, "source_mtime_ns": status.st_mtime_ns}


def check_targets(
    job: Job,
    files: Sequence[Path],
    *,
    output: Path | None,
    manifest: PastRecords | Records | None,
    settings: Mapping[str, Any],
    overwrite: bool,
    dry: bool = False,
) -> str | None:
    """Whether a photo's results may be made; its hash, if the manifest knows it.

    A result that isn't what the manifest says is moved aside, not replaced.

    Args:
        files: all that come of it.
        output: the folder outside of which none may lie, if there is one.
        settings: what must be equal for a result to count as done.
        overwrite: replace files that exist already and aren't known results.
        dry: move nothing aside.

    Raises:
        DoneBefore: if all of them are there.
        ValueError: if one would destroy another file, or can't be written.
    """
    if job.refusal:
        raise ValueError(job.refusal)
    output_format(job.target)
    if output:
        check_inside(job.target, output)
    done, sha256 = 0, None
    for file in files:
        known = manifest.find(file) if manifest else None
        try:
            sha256 = _check_target(job, file, known, settings, overwrite=overwrite, dry=dry) or sha256
        except DoneBefore:
            done += 1
            sha256 = known["sha256"] if known else None
    if done == len(files):
        raise DoneBefore
    return sha256


def _check_target(
    job: Job, file: Path, known: Mapping[str, Any] | None, settings: Mapping[str, Any], *, overwrite: bool, dry: bool
) -> str | None:
    sha256 = known["sha256"] if known and _unchanged(job.source, known) else None
    if not file.exists():
        return sha256
    if known and known.get("output_sha256"):
        found = hash_file(file)
        if found != known["output_sha256"]:
            if not dry:
                file.rename(file.with_name(f"{file.stem[:60]}.changed-{found[:12]}{file.suffix}"))
            return sha256
        sha256 = sha256 or hash_file(job.source)
        same_settings = known["settings"] == settings
        if same_settings and sha256 == known["sha256"]:
            raise DoneBefore
        if sha256 == known["sha256"] and _without_known(known["settings"]) == _without_known(settings):
            return sha256  # who says other colours of a photo wants it anew
        if not overwrite:
            what = "of another version of the photo" if same_settings else "with other settings"
            raise ValueError(f"{file} was made {what}; add --overwrite to replace it")
    if not overwrite:
        raise ValueError(f"{file} exists; add --overwrite to replace it")
    return sha256


def _without_known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what is said of one photo alone."""
    return {name: value for name, value in settings.items() if name not in _OF_ONE_PHOTO}


def _unchanged(source: Path, known: Mapping[str, Any]) -> bool:
    try:
        found = describe_source(source, known["sha256"])
    except OSError:
        return False
    return all(known.get(name) == value for name, value in found.items())


@contextmanager
def partial_folder(output: Path, *, part: str = "") -> Iterator[Path]:
    """A folder in ``output`` for unfinished files, emptied of what a killed run left, locked against a second run.

    Raises:
        ValueError: if another run is writing here.
    """
    folder = output / f"{_PARTIAL_NAME}{part}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            for file in folder.iterdir():
                if file.name != "lock":
                    file.unlink()
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        raise ValueError(
            f"another run is writing into {output}; wait for it, or share the work with --shard"
        ) from None
