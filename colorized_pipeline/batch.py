"""Colorizing many photos: reading, sampling and writing overlapped, with a manifest that survives a crash.

A photo's result depends on its content and the settings alone, not on its neighbours or on how often a run was
interrupted: its seed comes from its hash, and the network always sees batches of one size, short ones filled up, since
its sums come out differently (in the seventh digit) at another size.
"""

import copy
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from . import __version__
from .borders import find_picture
from .copies import FORMATS, MAX_XMP, ColourPage, write_copy
from .files import Job, check_inside, output_format, write_atomically
from .hints import Hint, HintMap, describe_hints
from .labels import Label, build_xmp
from .pipeline import ColorizationPipeline, Lightness, WorkingPhoto, compose, impose_hints
from .provenance import Signer
from .scans import Scan, hash_file, open_scan, peek_pixels

MANIFEST_NAME = "colorized-manifest"
_PARTIAL_NAME = ".colorized-partial"
_OPEN_PIXELS = 4e8  # decoded at one time, unless a single photo is larger


@dataclass(frozen=True)
class Settings:
    """Everything but the photo that decides what its colour copy looks like.

    Attributes:
        seed: with the photo's hash it gives the photo's own seed.
        steps, guidance, intensity, working_size: see :class:`ColorizationPipeline`.
        checkpoint: hash of the checkpoint, see :func:`hash_checkpoint`.
        batch_size: photos that the network sees at once.
        pages: ``"all"`` or ``"first"`` of a TIFF.
        mark: a small visible mark.
        borders: leave plain borders grey.
        signed: with a C2PA manifest.
        max_megapixels: larger photos are refused.
        hints: known colours, for a single picture; see :class:`ColorizationPipeline`.
        reference: a colour photo whose palette the results get.
    """

    seed: int
    steps: int
    intensity: float
    working_size: int
    checkpoint: str
    scheduler: str
    guidance: float = 1.0
    batch_size: int = 4
    pages: str = "all"
    mark: bool = False
    borders: bool = True
    signed: bool = False
    max_megapixels: float = 300.0
    hints: tuple[Hint, ...] = ()
    reference: Path | None = None

    def record(self) -> dict[str, Any]:
        """What must be equal for a result to count as done."""
        names = ("seed", "steps", "guidance", "intensity", "working_size", "checkpoint", "scheduler", "batch_size")
        record = {name: getattr(self, name) for name in (*names, "pages", "mark", "borders", "signed")}
        return record | self.guides()

    def guides(self) -> dict[str, list[str] | str]:
        """The hints in words and the reference photo's hash, as far as there are any."""
        hints = {"hints": describe_hints(self.hints)} if self.hints else {}
        return hints | ({"reference_sha256": hash_file(self.reference)} if self.reference else {})


def derive_seed(seed: int, sha256: str, page: int = 0) -> int:
    """The seed of one page of a photo: equal for equal content, wherever and with whatever it is colorized."""
    digest = hashlib.sha256(f"{seed}/{sha256}/{page}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes seeds of 63 bits


def hash_checkpoint(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights and configuration.

    It is the hash of their listing, so that it can be checked without this program, in the checkpoint's folder:
    ``find . -name '*.safetensors' -o -name '*.json' | LC_ALL=C sort | xargs sha256sum | sha256sum``.
    """
    files = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json") and file.is_file()]
    names = sorted(f"./{file.relative_to(folder).as_posix()}" for file in files)
    listing = "".join(f"{hash_file(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


class Manifest:
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
        self._records: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob(f"{MANIFEST_NAME}*.jsonl")):
            for record in _read_records(file):
                known = self._records.get(record["output"])
                if known is None or record["finished"] >= known["finished"]:
                    self._records[record["output"]] = record
        self._lock = threading.Lock()
        self._file = (folder / f"{MANIFEST_NAME}{part}.jsonl").open("ab+")
        self._end_torn_line()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def find(self, output: str) -> dict[str, Any] | None:
        """The latest record of a result, by its path inside the output folder."""
        return self._records.get(output)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record and wait until it is on the disk."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _end_torn_line(self) -> None:
        """After a crash in the middle of a line the next one must not continue it."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


def _read_records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a crash
            if isinstance(record, dict) and isinstance(record.get("output"), str) and "finished" in record:
                yield record


@dataclass
class Outcome:
    """What became of one photo: ``"done"``, ``"skipped"`` (done before) or ``"failed"``."""

    job: Job
    state: str
    message: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Open:
    """A photo between reading and writing."""

    job: Job
    scan: Scan
    working: list[WorkingPhoto]
    hints: list[HintMap | None]
    seeds: list[int]
    gray: np.ndarray | None  # of a photo with one page; pages of several are read again when they are written
    format_name: str
    started: float
    chroma: dict[int, torch.Tensor] = field(default_factory=dict)
    failed: bool = False


class _DoneBefore(Exception):
    """The photo's result exists, whole, with these settings."""


class Batch:
    """Colorizes photos with one pipeline.

    Args:
        pipe: on its device. On a CPU several batches run at once, one per core, each on a single thread: faster than
            one batch on all cores, and the sums don't depend on the number of cores.
        settings: of every photo.
        output: the folder for results, if there is one; no result may lie outside of it.
        manifest: where results are recorded and known ones looked up; needs ``output``.
        temporary: folder for unfinished files.
        overwrite: replace files that exist already and aren't known results.
        signer: adds a signed C2PA manifest to each result.
    """

    def __init__(
        self,
        pipe: ColorizationPipeline,
        settings: Settings,
        *,
        output: Path | None = None,
        manifest: Manifest | None = None,
        temporary: Path | None = None,
        overwrite: bool = False,
        signer: Signer | None = None,
    ) -> None:
        self.pipe, self.settings, self.output = pipe, settings, output
        self.manifest, self.temporary, self.overwrite, self.signer = manifest, temporary, overwrite, signer
        self.samplers, readers = 1, _cores()
        if pipe.device.type == "cpu":  # where the network's work is most of the work
            self.samplers, readers = _cores(), max(1, _cores() // 4)
            torch.set_num_threads(1)
        self._palette = pipe.read_palette(settings.reference) if settings.reference else None
        self._thread = threading.local()
        self._readers = ThreadPoolExecutor(readers, "read")
        self._networks = ThreadPoolExecutor(self.samplers, "sample")
        self._writers = ThreadPoolExecutor(_cores(), "write")
        self._tasks: dict[Future, Callable[[Future], list[Outcome]]] = {}
        self._waiting: dict[torch.Size, list[tuple[_Open, int]]] = {}
        self._pixels: dict[Path, float] = {}  # of every photo that is open
        self._reading = self._sampling = 0

    def run(self, jobs: Iterable[Job], *, on_step: Callable[[], object] | None = None) -> Iterator[Outcome]:
        """Colorize the photos; yields each one's outcome as soon as it is known, and raises nothing for a photo."""
        upcoming = iter(jobs)
        held = next(upcoming, None)
        try:
            while True:
                while held and self._has_room(held):
                    self._start_reading(held)
                    held = next(upcoming, None)
                self._start_sampling(on_step)
                if not self._tasks:
                    return
                finished, _ = wait(self._tasks, return_when=FIRST_COMPLETED)
                for future in [task for task in self._tasks if task in finished]:  # in the order of their start
                    yield from self._tasks.pop(future)(future)
        finally:
            for pool in (self._readers, self._networks, self._writers):
                pool.shutdown(wait=True, cancel_futures=True)

    # Who may go on

    def _has_room(self, job: Job) -> bool:
        if len(self._pixels) >= self.settings.batch_size * (self.samplers + 2):
            return False
        return not self._pixels or sum(self._pixels.values()) + peek_pixels(job.source) <= _OPEN_PIXELS

    def _start_reading(self, job: Job) -> None:
        self._pixels[job.source] = peek_pixels(job.source)
        self._reading += 1
        self._tasks[self._readers.submit(self._read, job)] = lambda future: self._after_reading(job, future)

    def _start_sampling(self, on_step: Callable[[], object] | None) -> None:
        """Full batches go to the network at once, short ones only when nothing is being read that could fill them."""
        size = self.settings.batch_size
        while self._waiting:
            shape = max(self._waiting, key=lambda shape: len(self._waiting[shape]))
            batch, rest = self._waiting[shape][:size], self._waiting[shape][size:]
            if len(batch) < size and (self._reading or self._sampling >= self.samplers):
                return
            if rest:
                self._waiting[shape] = rest
            else:
                del self._waiting[shape]
            self._sampling += 1
            task = self._networks.submit(self._sample, batch, on_step)
            self._tasks[task] = lambda future, batch=batch: self._after_sampling(batch, future)  # type: ignore[misc]

    def _after_reading(self, job: Job, future: Future) -> list[Outcome]:
        self._reading -= 1
        if error := future.exception():
            return [self._close(job, error)]
        photo: _Open = future.result()
        for page, working in enumerate(photo.working):
            self._waiting.setdefault(working.lightness.shape, []).append((photo, page))
        return []

    def _after_sampling(self, batch: list[tuple[_Open, int]], future: Future) -> list[Outcome]:
        self._sampling -= 1
        error = future.exception()
        outcomes = []
        for index, (photo, page) in enumerate(batch):
            if photo.failed:
                continue
            if error:
                photo.failed = True
                outcomes.append(self._close(photo.job, error))
                continue
            photo.chroma[page] = future.result()[index]
            if len(photo.chroma) == len(photo.working):
                task = self._writers.submit(self._write, photo)
                self._tasks[task] = lambda future, photo=photo: [  # type: ignore[misc]
                    self._close(photo.job, future.exception(), photo.scan.metadata.notes)
                ]
        return outcomes

    def _close(self, job: Job, error: BaseException | None, notes: Sequence[str] = ()) -> Outcome:
        del self._pixels[job.source]
        if isinstance(error, _DoneBefore):
            return Outcome(job, "skipped")
        if error is None:
            return Outcome(job, "done", notes=[f"{job.source}: {note}" for note in notes])
        reason = " ".join(str(error).split()) or type(error).__name__
        message = reason if str(job.source) in reason else f"{job.source}: {reason}"
        self._record(job, error=message)
        return Outcome(job, "failed", message)

    # What is done with a photo, in this order, each in threads of its own

    def _read(self, job: Job) -> _Open:
        started = time.monotonic()
        if job.refusal:
            raise ValueError(job.refusal)
        format_name = output_format(job.target)
        if self.output:
            check_inside(job.target, self.output)
        sha256 = self._check_target(job)
        settings = self.settings
        scan = open_scan(job.source, pages=settings.pages, max_megapixels=settings.max_megapixels, sha256=sha256)
        if len(scan.sizes) > 1 and not FORMATS[format_name].pages:
            raise ValueError(
                f"{job.source} has {len(scan.sizes)} pages and {job.target.name} holds one: "
                "save as .tif, or take the first page with --pages first"
            )
        if settings.hints and len(scan.sizes) > 1:
            raise ValueError(
                f"{job.source} has {len(scan.sizes)} pages, and hints are places on one picture: "
                "take the first with --pages first"
            )
        seeds = [derive_seed(settings.seed, scan.sha256, page) for page in range(len(scan.sizes))]
        working, gray, hints = [], None, []
        for page in range(len(scan.sizes)):
            gray = scan.read_page(page)
            photo = Lightness(gray)
            box = find_picture(photo) if settings.borders else None
            working.append(self.pipe.prepare(photo, working_size=settings.working_size, box=box))
            hints.append(self.pipe.map_hints(settings.hints, photo, working[-1]))
        return _Open(job, scan, working, hints, seeds, gray if len(working) == 1 else None, format_name, started)

    def _check_target(self, job: Job) -> str | None:
        """The photo's hash, if the manifest knows it. Raises if the photo is done, or its result would destroy a file.

        A result that isn't what the manifest says is moved aside, not replaced.
        """
        known = self.manifest.find(self._key(job)) if self.manifest else None
        sha256 = known["sha256"] if known and _unchanged(job.source, known) else None
        if not job.target.exists():
            return sha256
        if known and known.get("output_sha256"):
            same_settings = known["settings"] == self.settings.record()
            found = hash_file(job.target)
            if found != known["output_sha256"]:
                aside = job.target.with_name(f"{job.target.stem[:60]}.changed-{found[:12]}{job.target.suffix}")
                job.target.rename(aside)
                return sha256
            sha256 = sha256 or hash_file(job.source)
            if same_settings and sha256 == known["sha256"]:
                raise _DoneBefore
            if not self.overwrite:
                what = "of another version of the photo" if same_settings else "with other settings"
                raise ValueError(f"{job.target} was made {what}; add --overwrite to replace it")
        if not self.overwrite:
            raise ValueError(f"{job.target} exists; add --overwrite to replace it")
        return sha256

    def _sample(self, batch: list[tuple[_Open, int]], on_step: Callable[[], object] | None) -> torch.Tensor:
        if not hasattr(self._thread, "pipe"):
            self._thread.pipe = copy.copy(self.pipe)  # same weights; a scheduler counts its steps, so each its own
            self._thread.pipe.scheduler = copy.deepcopy(self.pipe.scheduler)
        filled = batch + batch[-1:] * (self.settings.batch_size - len(batch))
        lightness = torch.stack([photo.working[page].lightness for photo, page in filled])
        hints = [photo.hints[page] for photo, page in filled]
        return self._thread.pipe.draw_chroma(
            lightness,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            generators=[torch.Generator().manual_seed(photo.seeds[page]) for photo, page in filled],
            on_step=on_step,
            steer=self._thread.pipe.steer(lightness, hints=hints, palette=self._palette),
        )

    def _write(self, photo: _Open) -> None:
        scan, settings = photo.scan, self.settings
        xmp = self._label(photo)

        def write(stream: IO[bytes]) -> None:
            if self.signer is None:
                return write_pages(stream)
            folder = self.temporary or photo.job.target.parent
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".colorized-") as unsigned:
                write_pages(unsigned.file)
                self.signer.sign(
                    unsigned.file,
                    stream,
                    format_name=photo.format_name,
                    source=photo.job.source,
                    source_format=scan.format,
                )

        def write_pages(stream: IO[bytes]) -> None:
            write_copy(
                stream,
                self._pages(photo),
                format_name=photo.format_name,
                bits=scan.bits,
                metadata=scan.metadata,
                xmp=xmp,
                mark=settings.mark,
            )

        write_atomically(
            photo.job.target,
            write,
            temporary=self.temporary,
            before_rename=lambda output_sha256: self._record(photo.job, photo=photo, output_sha256=output_sha256),
        )

    def _pages(self, photo: _Open) -> Iterator[ColourPage]:
        for page, working in enumerate(photo.working):
            lightness = Lightness(photo.gray if photo.gray is not None else photo.scan.read_page(page))
            chroma = photo.chroma[page] * self.settings.intensity
            chroma, grid = impose_hints(chroma, photo.hints[page], working=working)
            yield ColourPage(lightness.height, lightness.width, compose(lightness, chroma, working=grid))

    def _label(self, photo: _Open) -> bytes:
        settings, metadata = self.settings, photo.scan.metadata
        label = Label(
            source_name=photo.job.source.name,
            source_sha256=photo.scan.sha256,
            settings={
                "Seed": ", ".join(map(str, photo.seeds)),
                "BaseSeed": settings.seed,
                "Steps": settings.steps,
                "Guidance": f"{settings.guidance:g}",
                "Intensity": f"{settings.intensity:g}",
                "WorkingSize": settings.working_size,
                "BatchSize": settings.batch_size,
                "Scheduler": settings.scheduler,
                "CheckpointSHA256": settings.checkpoint,
                **({"Hints": "; ".join(describe_hints(settings.hints))} if settings.hints else {}),
                **({"ReferenceSHA256": hash_file(settings.reference)} if settings.reference else {}),
            },
        )
        try:
            xmp = build_xmp(label, xmp=metadata.xmp, iptc=metadata.iptc)
            if len(xmp) <= MAX_XMP.get(photo.format_name, len(xmp)):
                return xmp
            metadata.notes.append("its XMP is too long for this format and is left out; our label is in")
        except ValueError as error:
            metadata.notes.append(f"its {error} and is left out; our label is in")
        return build_xmp(label, iptc=metadata.iptc)

    # The manifest

    def _key(self, job: Job) -> str:
        return job.target.relative_to(self.output).as_posix() if self.output else str(job.target)

    def _record(
        self, job: Job, *, photo: _Open | None = None, output_sha256: str | None = None, error: str | None = None
    ) -> None:
        if not self.manifest or job.refusal:
            return
        record: dict[str, Any] = {"source": job.name.as_posix(), "output": self._key(job)}
        if photo:
            status = job.source.stat()
            record |= {
                "sha256": photo.scan.sha256,
                "source_bytes": status.st_size,
                "source_mtime_ns": status.st_mtime_ns,
                "output_sha256": output_sha256,
                "seeds": photo.seeds,
                "settings": self.settings.record(),
                "seconds": round(time.monotonic() - photo.started, 3),
            }
        record |= {"error": error} if error else {}
        finished = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self.manifest.add({**record, "version": __version__, "finished": finished})


def _unchanged(source: Path, known: Mapping[str, Any]) -> bool:
    try:
        status = source.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (known.get("source_bytes"), known.get("source_mtime_ns"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
