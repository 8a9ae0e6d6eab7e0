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
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from .._version import __version__
from ..archive.copies import FORMATS, ColourPage, is_deep, write_copy
from ..archive.files import MANIFEST_NAME, Job, check_inside, output_format, result_files, write_atomically
from ..archive.labels import Label, build_xmp
from ..archive.provenance import Signer
from ..archive.scans import Scan, hash_file, open_scan, peek_pixels
from ..diffusion.hints import Hint, describe_hints
from ..diffusion.photo import Lightness, PreparedPhoto, seen_chroma
from ..diffusion.pipeline import ColorizationPipeline
from ..diffusion.variants import order_by_typicality
from .sheets import draw_map, draw_sheet, spread_map

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
        engine: the program that runs the UNet, and in which precision.
        variants: colourings that are drawn of each photo, with seeds counted up from ``seed``.
        consensus: what is kept of several variants: ``"medoid"``, the most typical, or ``"mean"``; all if empty.
        uncertainty: also a map of how far the variants differ.
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
    engine: str = "torch float32"
    variants: int = 1
    consensus: str = ""
    uncertainty: bool = False

    @property
    def copies(self) -> int:
        """Colour copies that are written of each photo."""
        return 1 if self.consensus else self.variants

    hints: tuple[Hint, ...] = ()
    reference: Path | None = None

    def record(self) -> dict[str, Any]:
        """What must be equal for a result to count as done."""
        names = ("seed", "steps", "guidance", "intensity", "working_size", "checkpoint", "scheduler", "batch_size")
        several = ("variants", "consensus", "uncertainty") if self.variants > 1 else ()
        names = (*names, "pages", "mark", "borders", "signed", "engine", *several)
        return {name: getattr(self, name) for name in names} | self.guides()

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
                if "error" in record:  # a run that was refused leaves what was done before as it is
                    continue
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
        """The latest record of a finished result, by its path inside the output folder."""
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


@dataclass(frozen=True)
class Picture:
    """A colour copy that is to be written.

    Attributes:
        target: its file.
        chroma: of each page.
        seeds: of each page; of the mean of variants, of each page's variants.
        base_seed: what ``--seed`` gives this copy; of a mean, the first one's.
        averaged: it is the mean of so many variants.
    """

    target: Path
    chroma: list[torch.Tensor]
    seeds: list[int]
    base_seed: int
    averaged: int = 0


@dataclass(eq=False)
class _Open:
    """A photo between reading and writing. Every page counts once a variant, variants of a page in turn."""

    job: Job
    scan: Scan
    prepared: list[PreparedPhoto]
    seeds: list[int]
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
        for page, prepared in enumerate(photo.prepared):
            self._waiting.setdefault(prepared.lightness.shape, []).append((photo, page))
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
            if len(photo.chroma) == len(photo.prepared):
                task = self._writers.submit(self._write, photo)
                self._tasks[task] = lambda future, photo=photo: [  # type: ignore[misc]
                    self._close(photo.job, future.exception(), photo.scan.notes)
                ]
        return outcomes

    def _close(self, job: Job, error: BaseException | None, notes: Sequence[str] = ()) -> Outcome:
        del self._pixels[job.source]
        if isinstance(error, _DoneBefore):
            return Outcome(job, "skipped")
        if error is None:
            return Outcome(job, "done", notes=[f"{job.source}: {note}" for note in dict.fromkeys(notes)])
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
        if len(scan.sizes) > 1 and settings.uncertainty:
            raise ValueError(
                f"{job.source} has {len(scan.sizes)} pages and a map of doubt shows one: "
                "leave out --uncertainty, or take the first page with --pages first"
            )
        bases = range(settings.seed, settings.seed + settings.variants)
        seeds = [derive_seed(base, scan.sha256, page) for page in range(len(scan.sizes)) for base in bases]
        prepared: list[PreparedPhoto] = []
        for page in range(len(scan.sizes)):
            one = self.pipe.prepare(
                Lightness(scan.read_page(page)),
                working_size=settings.working_size,
                borders=settings.borders,
                hints=settings.hints,
            )
            if len(scan.sizes) > 1:  # read again when it is written
                one.photo = Lightness(np.empty((0, 0), np.uint8))
            prepared += [one] * settings.variants
        return _Open(job, scan, prepared, seeds, format_name, started)

    def _check_target(self, job: Job) -> str | None:
        """The photo's hash, if the manifest knows it. Raises if the photo is done, or its result would destroy a file.

        A result that isn't what the manifest says is moved aside, not replaced.
        """
        files, done, sha256 = self._files(job), 0, None
        for file in files:
            known = self.manifest.find(self._key(file)) if self.manifest else None
            try:
                sha256 = self._check_file(job, file, known) or sha256
            except _DoneBefore:
                done += 1
                sha256 = known["sha256"] if known else None
        if done == len(files):
            raise _DoneBefore
        return sha256

    def _check_file(self, job: Job, file: Path, known: Mapping[str, Any] | None) -> str | None:
        sha256 = known["sha256"] if known and _unchanged(job.source, known) else None
        if not file.exists():
            return sha256
        if known and known.get("output_sha256"):
            same_settings = known["settings"] == self.settings.record()
            found = hash_file(file)
            if found != known["output_sha256"]:
                file.rename(file.with_name(f"{file.stem[:60]}.changed-{found[:12]}{file.suffix}"))
                return sha256
            sha256 = sha256 or hash_file(job.source)
            if same_settings and sha256 == known["sha256"]:
                raise _DoneBefore
            if not self.overwrite:
                what = "of another version of the photo" if same_settings else "with other settings"
                raise ValueError(f"{file} was made {what}; add --overwrite to replace it")
        if not self.overwrite:
            raise ValueError(f"{file} exists; add --overwrite to replace it")
        return sha256

    def _sample(self, batch: list[tuple[_Open, int]], on_step: Callable[[], object] | None) -> torch.Tensor:
        if not hasattr(self._thread, "pipe"):
            self._thread.pipe = copy.copy(self.pipe)  # same weights; a scheduler counts its steps, so each its own
            self._thread.pipe.scheduler = copy.deepcopy(self.pipe.scheduler)
        filled = batch + batch[-1:] * (self.settings.batch_size - len(batch))
        return self._thread.pipe.draw(
            [photo.prepared[page] for photo, page in filled],
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            generators=[torch.Generator().manual_seed(photo.seeds[page]) for photo, page in filled],
            palette=self._palette,
            on_step=on_step,
        )

    def _write(self, photo: _Open) -> None:
        pictures, facts = self._pictures(photo), dict[str, Any]()
        if self.settings.uncertainty:
            facts["uncertainty"] = self._write_doubt(photo)
        for number, picture in enumerate(pictures, start=1):
            variant = {"base_seed": picture.base_seed, "variant": number} if self.settings.variants > 1 else {}
            self._write_copy(photo, picture, {**variant, **facts})
        if len(pictures) > 1:
            self._write_sheet(photo, pictures, facts)

    def _pictures(self, photo: _Open) -> list[Picture]:
        """The copies to write: of several variants from the most typical outwards, or what they agree on."""
        settings, target, pages = self.settings, photo.job.target, len(photo.scan.sizes)
        drawn = [self._variants(photo, page) for page in range(pages)]
        if settings.consensus == "mean":
            means = [chroma.mean(dim=0) for chroma in drawn]
            return [Picture(target, means, photo.seeds, settings.seed, averaged=settings.variants)]
        seen = [
            seen_chroma(photo.prepared[page * settings.variants], chroma).flatten(2)
            for page, chroma in enumerate(drawn)
        ]
        order = order_by_typicality(torch.cat(seen, dim=2))
        return [
            Picture(file, [page[i] for page in drawn], photo.seeds[i :: settings.variants], settings.seed + i)
            for file, i in zip(result_files(target, copies=settings.copies), order, strict=False)
        ]

    def _variants(self, photo: _Open, page: int) -> torch.Tensor:
        """A page's chroma ``[V, 2, h, w]``, in the order of their seeds."""
        count = self.settings.variants
        return torch.stack([photo.chroma[page * count + i] for i in range(count)])

    def _page(self, photo: _Open, page: int) -> PreparedPhoto:
        """A page with its full-size lightness."""
        prepared = photo.prepared[page * self.settings.variants]
        if len(photo.scan.sizes) == 1:
            return prepared
        return replace(prepared, photo=Lightness(photo.scan.read_page(page)))

    def _write_doubt(self, photo: _Open) -> float:
        """Write the map of how far a photo's variants differ; returns its mean, ΔE*ab."""
        prepared = self._page(photo, 0)
        spread = spread_map(prepared, self._variants(photo, 0) * self.settings.intensity)
        size = prepared.photo.height, prepared.photo.width
        image = draw_map(spread, size, variants=self.settings.variants)
        mean = round(float(spread.mean()), 3)
        self._write_extra(photo, self._files(photo.job)[-1], lambda stream: image.save(stream, "PNG"), mean)
        return mean

    def _write_sheet(self, photo: _Open, pictures: list[Picture], facts: Mapping[str, Any]) -> None:
        """Write the first page's variants side by side, labelled as a colour copy is."""
        captions = [f"{number}: seed {one.base_seed}" for number, one in enumerate(pictures, start=1)]
        captions[0] += ", most typical"
        chroma = [one.chroma[0] * self.settings.intensity for one in pictures]
        sheet = np.asarray(draw_sheet(self._page(photo, 0), chroma, captions=captions))
        strips = [torch.from_numpy(sheet.copy()).movedim(-1, 0) / 255]
        xmp = build_xmp(self._describe(photo, Picture(photo.job.target, [], photo.seeds, self.settings.seed)))
        page = ColourPage(sheet.shape[0], sheet.shape[1], strips, xmp=xmp)

        def write(stream: IO[bytes]) -> None:
            write_copy(stream, [page], format_name="JPEG", bits=8)

        file = result_files(photo.job.target, copies=len(pictures))[-1]
        self._write_extra(photo, file, write, facts.get("uncertainty"))

    def _write_extra(
        self, photo: _Open, file: Path, write: Callable[[IO[bytes]], None], uncertainty: float | None
    ) -> None:
        facts = {} if uncertainty is None else {"uncertainty": uncertainty}
        write_atomically(
            file,
            write,
            temporary=self.temporary,
            before_rename=lambda sha256: self._record(
                photo.job, photo=photo, output=file, output_sha256=sha256, facts={"seeds": photo.seeds, **facts}
            ),
        )

    def _write_copy(self, photo: _Open, picture: Picture, facts: Mapping[str, Any]) -> None:
        scan, settings = photo.scan, self.settings

        def write(stream: IO[bytes]) -> None:
            if self.signer is None:
                return write_pages(stream)
            folder = self.temporary or picture.target.parent
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
                self._pages(photo, picture),
                format_name=photo.format_name,
                bits=scan.bits,
                mark=settings.mark,
            )

        write_atomically(
            picture.target,
            write,
            temporary=self.temporary,
            before_rename=lambda output_sha256: self._record(
                photo.job,
                photo=photo,
                output=picture.target,
                output_sha256=output_sha256,
                facts={"seeds": picture.seeds, **facts},
            ),
        )

    def _pages(self, photo: _Open, picture: Picture) -> Iterator[ColourPage]:
        label = self._describe(photo, picture)
        for page, drawn in enumerate(picture.chroma):
            prepared = self._page(photo, page)
            deep = is_deep(photo.format_name, photo.scan.bits)
            strips = self.pipe.show(prepared, drawn, intensity=self.settings.intensity, deep=deep)
            metadata = photo.scan.page_metadata[page]
            yield ColourPage(prepared.photo.height, prepared.photo.width, strips, metadata, metadata.label(label))

    def _describe(self, photo: _Open, picture: Picture) -> Label:
        """A copy's label. A single variant's is that of a run with its own seed, so that this gives the same bytes."""
        settings = self.settings
        averaged = {"Consensus": f"mean of {picture.averaged} variants"} if picture.averaged else {}
        return Label(
            source_name=photo.job.source.name,
            source_sha256=photo.scan.sha256,
            settings={
                "Seed": ", ".join(map(str, picture.seeds)),
                "BaseSeed": picture.base_seed,
                "Steps": settings.steps,
                "Guidance": f"{settings.guidance:g}",
                "Intensity": f"{settings.intensity:g}",
                "WorkingSize": settings.working_size,
                "BatchSize": settings.batch_size,
                "Scheduler": settings.scheduler,
                "Engine": settings.engine,
                "CheckpointSHA256": settings.checkpoint,
                **averaged,
                **({"Hints": "; ".join(describe_hints(settings.hints))} if settings.hints else {}),
                **({"ReferenceSHA256": hash_file(settings.reference)} if settings.reference else {}),
            },
        )

    # The manifest

    def _key(self, file: Path) -> str:
        return file.relative_to(self.output).as_posix() if self.output else str(file)

    def _files(self, job: Job) -> list[Path]:
        return result_files(job.target, copies=self.settings.copies, doubt=self.settings.uncertainty)

    def _record(
        self,
        job: Job,
        *,
        photo: _Open | None = None,
        output: Path | None = None,
        output_sha256: str | None = None,
        facts: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        if not self.manifest or job.refusal:
            return
        record: dict[str, Any] = {"source": job.name.as_posix(), "output": self._key(output or self._files(job)[0])}
        if photo:
            status = job.source.stat()
            record |= {
                "sha256": photo.scan.sha256,
                "source_bytes": status.st_size,
                "source_mtime_ns": status.st_mtime_ns,
                "output_sha256": output_sha256,
                **(facts or {}),
                **({"notes": photo.scan.notes} if photo.scan.notes else {}),
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
