"""What is done with a photo before it is written: opened, prepared for the network, drawn."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..archive.copies import FORMATS
from ..archive.files import Job, check_inside, output_format
from ..archive.scans import Scan, open_scan
from ..diffusion.photo import Lightness, PreparedPhoto
from ..diffusion.pipeline import ColorizationPipeline
from ..diffusion.steering import Palette
from .manifest import Manifest, check_targets
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
    """

    job: Job
    scan: Scan
    format_name: str
    pages: list[PreparedPhoto]
    seeds: list[int]
    started: float
    chroma: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def variants(self) -> int:
        return len(self.seeds) // len(self.pages)

    def drawn(self, page: int) -> torch.Tensor:
        """A page's variants ``[V, 2, h, w]``, in the order of their seeds."""
        first = page * self.variants
        return torch.stack([self.chroma[row] for row in range(first, first + self.variants)])

    def page(self, number: int) -> PreparedPhoto:
        """A page with its full-size lightness. Of several pages it is read again: one at a time is in the memory."""
        if len(self.pages) == 1:
            return self.pages[0]
        return replace(self.pages[number], photo=Lightness(self.scan.read_page(number)))


def open_photo(
    pipe: ColorizationPipeline,
    job: Job,
    settings: Settings,
    *,
    output: Path | None = None,
    manifest: Manifest | None = None,
    overwrite: bool = False,
) -> OpenPhoto:
    """Read a photo and prepare it for the network; arguments as of :class:`Batch`.

    Raises:
        DoneBefore: if the manifest knows its results.
        OSError, ValueError, TypeError, MemoryError: if it can't be colorized; the message says why.
    """
    started = time.monotonic()
    if job.refusal:
        raise ValueError(job.refusal)
    format_name = output_format(job.target)
    if output:
        check_inside(job.target, output)
    files, record = settings.files(job.target), settings.record()
    sha256 = check_targets(job, files, manifest=manifest, settings=record, overwrite=overwrite)
    scan = open_scan(job.source, pages=settings.pages, max_megapixels=settings.max_megapixels, sha256=sha256)
    if len(scan.sizes) > 1:
        _check_pages(scan, job, settings, format_name)
    bases = range(settings.seed, settings.seed + settings.variants)
    pages, seeds = [], []
    for number in range(len(scan.sizes)):
        page = pipe.prepare(
            Lightness(scan.read_page(number)),
            working_size=settings.working_size,
            borders=settings.borders,
            hints=settings.hints,
        )
        pages.append(page if len(scan.sizes) == 1 else replace(page, photo=Lightness(np.empty((0, 0), np.uint8))))
        seeds += [derive_seed(base, scan.sha256, number) for base in bases]
    return OpenPhoto(job, scan, format_name, pages, seeds, started)


def _check_pages(scan: Scan, job: Job, settings: Settings, format_name: str) -> None:
    """Raises ``ValueError`` for what doesn't go together with several pages."""
    several, first = f"{job.source}: has {len(scan.sizes)} pages", "take the first page with --pages first"
    if not FORMATS[format_name].pages:
        raise ValueError(f"{several}, and {job.target.name} holds one: save as .tif, or {first}")
    if settings.hints:
        raise ValueError(f"{several}, and hints are places on one picture: {first}")
    if settings.uncertainty:
        raise ValueError(f"{several}, and a map of uncertainty shows one: leave out --uncertainty, or {first}")


def draw_rows(
    pipe: ColorizationPipeline,
    settings: Settings,
    rows: Sequence[tuple[OpenPhoto, int]],
    *,
    palette: Palette | None = None,
    on_step: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Draw the chroma ``[N, 2, h, w]`` of N rows of photos of one working shape, at most ``settings.batch_size``.

    The network always sees ``batch_size`` rows, a short batch filled up, since its sums come out differently (in the
    seventh digit) at another size. So a row doesn't depend on its neighbours.
    """
    filled = [*rows, *([rows[-1]] * (settings.batch_size - len(rows)))]
    drawn = pipe.draw(
        [photo.pages[row // photo.variants] for photo, row in filled],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generators=[torch.Generator().manual_seed(photo.seeds[row]) for photo, row in filled],
        palette=palette,
        on_step=on_step,
    )
    return drawn[: len(rows)]
