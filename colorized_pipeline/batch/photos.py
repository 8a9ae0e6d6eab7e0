"""What is done with a photo before it is written: opened, prepared for the network, drawn."""

import re
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..archive.copies import FORMATS, is_deep
from ..archive.files import Job, output_format
from ..archive.labels import Label
from ..archive.scans import Scan, open_scan
from ..diffusion.photo import Lightness, PreparedPhoto
from ..diffusion.pipeline import ColorizationPipeline
from ..diffusion.steering import Palette, Tie, join_palettes
from ..sets.known import read_hints
from .manifest import Records, check_targets
from .settings import Settings, derive_seed


@dataclass(eq=False)
class OpenPhoto:
    """A photo between reading and writing.

    A *row* is what the network draws at once: one variant of one page. A page's variants follow one another.

    Attributes:
        job: which photo it is, and where its result goes.
        scan: its file.
        format_name: of the result.
        pages: what the network sees of each page.
        seeds: of each row.
        chroma: what has been drawn, by row.
        started: when its reading began, by ``time.monotonic``.
        settings: with what is known of this photo alone.
        record: what the manifest keeps of them.
        deep: its copies have 16 bits.
        palette: of a reference photo.
        ties: of each row, to the photo whose colours it gets.
    """

    job: Job
    scan: Scan
    format_name: str
    pages: list[PreparedPhoto]
    seeds: list[int]
    started: float
    settings: Settings
    record: dict[str, Any]
    deep: bool
    palette: Palette | None = None
    ties: list[Tie] = field(default_factory=list)
    chroma: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def variants(self) -> int:
        return len(self.seeds) // len(self.pages)

    def kind(self, row: int) -> Hashable:
        """What rows that are drawn together have in common: the working shape, and how they are steered."""
        page = self.pages[row // self.variants]
        return page.lightness.shape, page.hints is None, self.palette is None, not self.ties

    def drawn(self, page: int) -> torch.Tensor:
        """A page's variants ``[V, 2, h, w]``, in the order of their seeds."""
        first = page * self.variants
        return torch.stack([self.chroma[row] for row in range(first, first + self.variants)])

    def page(self, number: int) -> PreparedPhoto:
        """A page with its full-size lightness. Of several pages it is read again: one at a time is in the memory."""
        if len(self.pages) == 1:
            return self.pages[0]
        return replace(self.pages[number], photo=Lightness(self.scan.read_page(number)))

    def describe(self, seeds: Sequence[int], *, base_seed: int, averaged: int = 0) -> Label:
        """The label of a result of these seeds; of a mean with how many variants are ``averaged``."""
        numbers = {"Seed": ", ".join(map(str, seeds)), "BaseSeed": base_seed}
        mean = {"Consensus": f"mean of {averaged} variants"} if averaged else {}
        settings = {**numbers, **self.settings.label(), **mean, **self.job.origin}
        return Label(source_name=self.job.source.name, source_sha256=self.scan.sha256, settings=settings)


def open_photo(
    pipe: ColorizationPipeline,
    job: Job,
    settings: Settings,
    *,
    output: Path | None = None,
    manifest: Records | None = None,
    overwrite: bool = False,
    read_palette: Callable[[Path], Palette] | None = None,
) -> OpenPhoto:
    """Read a photo and prepare it for the network; arguments as of :class:`Batch`.

    Args:
        read_palette: reads a reference photo; ``pipe.read_palette`` if not given.

    Raises:
        DoneBefore: if the manifest knows its results.
        OSError, ValueError, TypeError, MemoryError: if it can't be colorized; the message says why.
    """
    started = time.monotonic()
    settings = settings.of(job)
    files, record = settings.files(job.target), settings.record()
    sha256 = check_targets(job, files, output=output, manifest=manifest, settings=record, overwrite=overwrite)
    format_name = output_format(job.target)
    scan = open_scan(job.source, pages=settings.pages, max_megapixels=settings.max_megapixels, sha256=sha256)
    if len(scan.sizes) > 1:
        _check_pages(scan, job, settings, format_name)
    reference = settings.reference
    palette = (read_palette or pipe.read_palette)(reference) if reference else None
    bases = range(settings.seed, settings.seed + settings.variants)
    pages, seeds = [], []
    for number in range(len(scan.sizes)):
        page = _prepare(pipe, Lightness(scan.read_page(number)), job, settings)
        pages.append(page if len(scan.sizes) == 1 else replace(page, photo=Lightness(np.empty((0, 0), np.uint8))))
        seeds += [derive_seed(base, scan.sha256, number) for base in bases]
    deep = is_deep(format_name, scan.bits)
    return OpenPhoto(job, scan, format_name, pages, seeds, started, settings, record, deep, palette)


def _prepare(pipe: ColorizationPipeline, page: Lightness, job: Job, settings: Settings) -> PreparedPhoto:
    """A page with its hints; an error about one that stands in a file names its place there."""
    entries = [one.entry for one in job.known if not one.is_reference]
    hints = [*read_hints(job.known, (page.height, page.width)), *settings.hints]
    try:
        return pipe.prepare(page, working_size=settings.working_size, borders=settings.borders, hints=hints)
    except (ValueError, TypeError) as error:
        number = re.match(r"hints\[(\d+)\]: ", str(error))
        if number is None or int(number[1]) >= len(entries):
            raise
        raise ValueError(f"{entries[int(number[1])]}: place: {str(error)[number.end() :]}") from error


def _check_pages(scan: Scan, job: Job, settings: Settings, format_name: str) -> None:
    """Raises ``ValueError`` for what doesn't go together with several pages."""
    several, first = f"{job.source}: has {len(scan.sizes)} pages", "take the first page with --pages first"
    if not FORMATS[format_name].pages:
        raise ValueError(f"{several}, and {job.target.suffix} holds one: save as .tif, or {first}")
    if settings.hints or any(not one.is_reference for one in job.known):
        raise ValueError(f"{several}, and hints are places on one: save it as a file of its own, or {first}")
    if settings.uncertainty:
        raise ValueError(f"{several}, and a map of uncertainty shows one: leave out --uncertainty, or {first}")


def draw_rows(
    pipe: ColorizationPipeline,
    settings: Settings,
    rows: Sequence[tuple[OpenPhoto, int]],
    *,
    on_step: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Draw the chroma ``[N, 2, h, w]`` of N rows of photos of one kind, at most ``settings.batch_size``.

    The network always sees ``batch_size`` rows, a short batch filled up, since its results differ (in the seventh
    digit) at another size. So a row doesn't depend on its neighbours.
    """
    filled = [*rows, *([rows[-1]] * (settings.batch_size - len(rows)))]
    drawn = pipe.draw(
        [photo.pages[row // photo.variants] for photo, row in filled],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generators=[torch.Generator().manual_seed(photo.seeds[row]) for photo, row in filled],
        palette=join_palettes([photo.palette for photo, _ in filled]),
        ties=[photo.ties[row] for photo, row in filled if photo.ties] or None,
        on_step=on_step,
    )
    return drawn[: len(rows)]
