"""Colorizing many photos: who runs when. Reading, drawing and writing overlap, in threads of their own.

A photo's result depends on its content and the settings alone, not on its neighbours or on how often a run was
interrupted: its seed comes from its hash, and the network always sees batches of one size.
"""

import copy
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..archive.files import Job
from ..archive.provenance import Signer
from ..archive.scans import peek_pixels
from ..diffusion.photo import Lightness
from ..diffusion.pipeline import ColorizationPipeline
from .manifest import DoneBefore, Outcome, Records, explain
from .photos import OpenPhoto, draw_rows, open_photo
from .results import Writer
from .settings import Settings

_LEADERS_KEPT = 32
_OPEN_PIXELS = 4e8  # decoded at one time, unless a single photo is larger


_Rows = list[tuple[OpenPhoto, int]]


class Batch:
    """Colorizes photos with one pipeline.

    Args:
        pipe: on its device. On a CPU several batches are drawn at once, one per core, each on a single thread: faster
            than one batch on all cores, and results don't depend on the number of cores.
        settings: of every photo.
        output: the folder for results, if there is one; no result may lie outside of it.
        manifest: where results are recorded and known ones looked up.
        temporary: folder for unfinished files.
        overwrite: replace files that exist already and aren't known results.
        signer: adds a signed C2PA manifest to each result.
        keep_times: copies get the time stamps of their scans.
        cores: of the processor that it may use; all that there are if not given.
    """

    def __init__(
        self,
        pipe: ColorizationPipeline,
        settings: Settings,
        *,
        output: Path | None = None,
        manifest: Records | None = None,
        temporary: Path | None = None,
        overwrite: bool = False,
        signer: Signer | None = None,
        keep_times: bool = False,
        cores: int | None = None,
    ) -> None:
        self.pipe, self.settings, self.output = pipe, settings, output
        self.manifest, self.overwrite = manifest, overwrite
        self.writer = Writer(
            pipe, settings, manifest=manifest, temporary=temporary, signer=signer, keep_times=keep_times
        )
        self._on_cpu = pipe.device.type == "cpu"  # where the network's work is most of the work
        self._cores = cores or available_cores()
        self._samplers = self._cores if self._on_cpu else 1
        self._read_palette = lru_cache(maxsize=16)(pipe.read_palette)  # not as often as there are photos
        if settings.reference:
            self._read_palette(settings.reference)  # a bad one is an error of the run, not of each photo
        self._thread = threading.local()
        self._leaders: dict[Path, Future[OpenPhoto]] = {}
        self._leaders_lock = threading.Lock()
        self._tasks: dict[Future, Callable[[Future], list[Outcome]]] = {}
        self._waiting: dict[Hashable, _Rows] = {}
        self._pixels: dict[int, float] = {}  # of every photo that is open, by its job's identity
        self._reading = self._drawing = 0

    def run(self, jobs: Iterable[Job], *, on_step: Callable[[], object] | None = None) -> Iterator[Outcome]:
        """Colorize the photos; yields each one's outcome as soon as it is known, and raises nothing for a photo."""
        readers = max(1, self._cores // 4) if self._on_cpu else self._cores
        with one_thread() if self._on_cpu else nullcontext():
            self._readers = ThreadPoolExecutor(readers, "read")
            self._networks = ThreadPoolExecutor(self._samplers, "draw")
            self._writers = ThreadPoolExecutor(self._cores, "write")
            try:
                yield from self._run((replace(job) for job in jobs), on_step)  # one given twice is two
            finally:
                for pool in (self._readers, self._networks, self._writers):
                    pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, upcoming: Iterator[Job], on_step: Callable[[], object] | None) -> Iterator[Outcome]:
        held = next(upcoming, None)
        while True:
            while held and self._has_room(held):
                self._start_reading(held)
                held = next(upcoming, None)
            self._start_drawing(on_step)
            if not self._tasks:
                return
            finished, _ = wait(self._tasks, return_when=FIRST_COMPLETED)
            for future in [task for task in self._tasks if task in finished]:  # in the order of their start
                yield from self._tasks.pop(future)(future)

    # Who may go on

    def _has_room(self, job: Job) -> bool:
        if len(self._pixels) >= self.settings.batch_size * (self._samplers + 2):
            return False
        return not self._pixels or sum(self._pixels.values()) + peek_pixels(job.source) <= _OPEN_PIXELS

    def _start_reading(self, job: Job) -> None:
        self._pixels[id(job)] = peek_pixels(job.source)
        self._reading += 1
        self._tasks[self._readers.submit(self._read, job)] = lambda future: self._after_reading(job, future)

    def _start_drawing(self, on_step: Callable[[], object] | None) -> None:
        """Full batches go to the network at once, short ones only when nothing is being read that could fill them."""
        size = self.settings.batch_size
        while self._waiting:
            kind = max(self._waiting, key=lambda kind: len(self._waiting[kind]))
            rows, rest = self._waiting[kind][:size], self._waiting[kind][size:]
            if len(rows) < size and (self._reading or self._drawing >= self._samplers):
                return
            if rest:
                self._waiting[kind] = rest
            else:
                del self._waiting[kind]
            self._drawing += 1
            task = self._networks.submit(self._draw, rows, on_step)
            self._tasks[task] = lambda future, rows=rows: self._after_drawing(rows, future)  # type: ignore[misc]

    def _after_reading(self, job: Job, future: Future) -> list[Outcome]:
        self._reading -= 1
        if error := future.exception():
            return [self._close(job, error)]
        photo: OpenPhoto = future.result()
        for row in range(len(photo.seeds)):
            self._waiting.setdefault(photo.kind(row), []).append((photo, row))
        return []

    def _after_drawing(self, rows: _Rows, future: Future) -> list[Outcome]:
        self._drawing -= 1
        error = future.exception()
        outcomes = []
        for index, (photo, row) in enumerate(rows):
            if id(photo.job) not in self._pixels:  # another of its rows has failed
                continue
            if error:
                outcomes.append(self._close(photo.job, error))
                continue
            photo.chroma[row] = future.result()[index]
            if len(photo.chroma) == len(photo.seeds):
                task = self._writers.submit(self.writer.write, photo)
                self._tasks[task] = lambda future, photo=photo: [  # type: ignore[misc]
                    self._close(photo.job, future.exception(), photo.scan.notes)
                ]
        return outcomes

    def _close(self, job: Job, error: BaseException | None, notes: Sequence[str] = ()) -> Outcome:
        del self._pixels[id(job)]
        if isinstance(error, DoneBefore):
            return Outcome(job, "skipped")
        if error is None:
            return Outcome(job, "done", notes=[f"{job.source}: {note}" for note in dict.fromkeys(notes)])
        message = explain(error, job.source)
        if self.manifest and not job.refusal:
            self.manifest.add(job, self.settings.files(job.target)[0], error=message)
        return Outcome(job, "failed", message)

    # What is done with a photo, in threads of its own

    def _read(self, job: Job) -> OpenPhoto:
        photo = open_photo(
            self.pipe,
            job,
            self.settings,
            output=self.output,
            manifest=self.manifest,
            overwrite=self.overwrite,
            read_palette=self._read_palette,
        )
        if job.leader:
            leader = self._find_leader(job.leader).result()
            for row in range(len(photo.seeds)):
                page, variant = divmod(row, photo.variants)
                photo.ties.append(self.pipe.tie(photo.pages[page], leader.pages[0], leader.chroma[variant]))
        return photo

    def _find_leader(self, job: Job) -> "Future[OpenPhoto]":
        """A photo that others are tied to, with its first page drawn. Some stay in memory: groups come together."""
        with self._leaders_lock:
            if job.source not in self._leaders:
                self._leaders[job.source] = self._networks.submit(self._draw_leader, job)
                while len(self._leaders) > _LEADERS_KEPT:
                    del self._leaders[next(iter(self._leaders))]
            return self._leaders[job.source]

    def _draw_leader(self, job: Job) -> OpenPhoto:
        """Drawn for its colours alone, as it is when its own turn comes; nothing is written."""
        settings = replace(self.settings, pages="first", uncertainty=False)
        try:
            photo = open_photo(self.pipe, job, settings, overwrite=True, read_palette=self._read_palette)
        except (OSError, ValueError, MemoryError) as error:
            reason, remedy = explain(error, job.source), "mend it, or take it out of the folder"
            raise ValueError(f"gets the colours of a photo that can't be colorized ({reason}); {remedy}") from error
        rows, size = [(photo, row) for row in range(photo.variants)], settings.batch_size
        for start in range(0, len(rows), size):
            photo.chroma.update(enumerate(self._draw(rows[start : start + size], None), start=start))
        photo.pages = [replace(page, photo=Lightness(np.empty((0, 0), np.uint8))) for page in photo.pages]
        return photo

    def _draw(self, rows: _Rows, on_step: Callable[[], object] | None) -> torch.Tensor:
        if not hasattr(self._thread, "pipe"):
            self._thread.pipe = copy.copy(self.pipe)  # same weights; a scheduler counts its steps, so each its own
            self._thread.pipe.scheduler = copy.deepcopy(self.pipe.scheduler)
        return draw_rows(self._thread.pipe, self.settings, rows, on_step=on_step)


def without_folders(text: str, *folders: str | Path) -> str:
    """A message for somebody whose business the folders of this machine aren't."""
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


_threads_lock = threading.Lock()
_threads_before: list[int] = []  # of PyTorch, for each block of one_thread that is open


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch works on one thread inside the block, and as before when the last such block is left."""
    with _threads_lock:
        _threads_before.append(torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            before = _threads_before.pop()
            if not _threads_before:
                torch.set_num_threads(before)


def available_cores() -> int:
    """Cores of the processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
