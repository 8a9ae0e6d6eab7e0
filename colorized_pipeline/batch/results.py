"""What is written of a photo: its colour copies, their sheet and the map of uncertainty, each with its label."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..archive.copies import ColorPage, write_copy
from ..archive.files import NewFile, output_format
from ..archive.labels import build_xmp
from ..archive.provenance import Signer
from ..diffusion.photo import measure_uncertainty, seen_chroma, show_small
from ..diffusion.pipeline import ColorizationPipeline
from ..diffusion.variants import order_by_typicality
from .manifest import Records, describe_source
from .photos import OpenPhoto
from .settings import Settings
from .sheets import draw_map, draw_variants

MEASURED_EDGE = 1500  # pixels of the longer edge at which uncertainty is measured; chroma is smooth
_TILE_EDGE = 360  # of a sheet's pictures


@dataclass(frozen=True)
class Copy:
    """What a colour copy shows.

    Attributes:
        chroma: of each page.
        seeds: of each page; of the mean of variants, of each page's variants.
        base_seed: what ``--seed`` gives this copy; of a mean, the first one's.
        averaged: it is the mean of so many variants.
    """

    chroma: list[torch.Tensor]
    seeds: list[int]
    base_seed: int
    averaged: int = 0


@dataclass(frozen=True)
class ResultFile:
    """A finished picture and the file that it goes into.

    Attributes:
        target: the file.
        content: its pages, or a map.
        facts: what is recorded of it.
        is_copy: a colour copy, which may get a mark, a signature and the time stamps of its scan.
    """

    target: Path
    content: Iterable[ColorPage] | Image.Image
    facts: Mapping[str, Any]
    is_copy: bool = False


@dataclass(frozen=True)
class Writer:
    """Writes the results of photos, each whole or not at all, and records them. Attributes as of :class:`Batch`."""

    pipe: ColorizationPipeline
    settings: Settings
    manifest: Records | None = None
    temporary: Path | None = None
    signer: Signer | None = None
    keep_times: bool = False

    def write(self, photo: OpenPhoto) -> None:
        """All results of a photo whose every row is drawn."""
        for result in self._results(photo):
            self._put(photo, result)

    def write_copy(self, photo: OpenPhoto, copy: Copy, target: Path) -> None:
        """One colour copy alone."""
        self._put(photo, ResultFile(target, self._pages(photo, copy), {"seeds": copy.seeds}, is_copy=True))

    def choose_copies(self, photo: OpenPhoto) -> list[Copy]:
        """The copies to write: of several variants from the most typical outwards, or what they agree on."""
        copies = [self.variant(photo, number) for number in range(photo.variants)]
        drawn = [photo.drawn(page) for page in range(len(photo.pages))]
        if self.settings.consensus == "mean":
            means = [chroma.mean(dim=0) for chroma in drawn]
            return [Copy(means, photo.seeds, self.settings.seed, averaged=self.settings.variants)]
        if len(copies) == 1:
            return copies
        seen = [seen_chroma(page, chroma).flatten(2) for page, chroma in zip(photo.pages, drawn, strict=True)]
        order = order_by_typicality(torch.cat(seen, dim=2))
        return [copies[number] for number in order[: self.settings.copies]]

    def variant(self, photo: OpenPhoto, number: int) -> Copy:
        """The copy of one variant. Its label is that of a run with its own seed, so that this gives the same bytes."""
        rows = range(number, len(photo.seeds), photo.variants)
        chroma, seeds = [photo.chroma[row] for row in rows], [photo.seeds[row] for row in rows]
        return Copy(chroma, seeds, self.settings.seed + number)

    def _results(self, photo: OpenPhoto) -> Iterator[ResultFile]:
        """The map, the copies and the sheet of several; each is made when the one before it is written."""
        settings, facts = self.settings, dict[str, Any]()
        files = settings.files(photo.job.target)
        copies = self.choose_copies(photo)
        if settings.uncertainty:
            chroma = photo.drawn(0) * settings.intensity
            page = photo.page(0)
            fit = self.pipe.config.uncertainty_fit
            stated = measure_uncertainty(page, chroma, fit=fit, longest=MEASURED_EDGE).numpy()
            facts["uncertainty"] = round(float(stated.mean()), 3)
            image = draw_map(stated, (page.photo.height, page.photo.width), variants=settings.variants)
            yield ResultFile(files[-1], image, {"seeds": photo.seeds, **facts})
        for number, (copy, target) in enumerate(zip(copies, files, strict=False), start=1):
            variant = {"base_seed": copy.base_seed, "variant": number} if settings.variants > 1 else {}
            yield ResultFile(target, self._pages(photo, copy), {"seeds": copy.seeds, **variant, **facts}, is_copy=True)
        if len(copies) > 1:  # side by side, labelled as a copy is
            label = photo.describe(photo.seeds, base_seed=settings.seed)
            page = photo.page(0)
            grids = [None, *(one.chroma[0] * settings.intensity for one in copies)]
            tiles = [show_small(page, grid, longest=_TILE_EDGE) for grid in grids]
            captions = ["grey", *(f"{number}: seed {one.base_seed}" for number, one in enumerate(copies, start=1))]
            captions[1] += ", most typical"
            sheet = ColorPage.of(np.asarray(draw_variants(tiles, captions=captions)), build_xmp(label))
            yield ResultFile(files[len(copies)], [sheet], {"seeds": photo.seeds, **facts})

    def _pages(self, photo: OpenPhoto, copy: Copy) -> Iterator[ColorPage]:
        """A copy's pages, one at a time."""
        label = photo.describe(copy.seeds, base_seed=copy.base_seed, averaged=copy.averaged)
        for number, chroma in enumerate(copy.chroma):
            page = photo.page(number)
            metadata = photo.scan.page_metadata[number]
            strips = self.pipe.show(page, chroma, intensity=self.settings.intensity, deep=photo.deep)
            yield ColorPage(page.photo.height, page.photo.width, strips, metadata, metadata.label(label))

    def _put(self, photo: OpenPhoto, result: ResultFile) -> None:
        """Write a result into its file, and record it before the file gets its name."""
        source, signer = photo.job.source, self.signer if result.is_copy else None
        record = describe_source(source, photo.scan.sha256)
        times_of = source if self.keep_times and result.is_copy else None
        with NewFile(result.target, temporary=self.temporary, times_of=times_of) as new, ExitStack() as stack:
            stream: Any = new.stream
            if signer:  # it copies a finished file
                folder = self.temporary or result.target.parent
                unsigned = tempfile.NamedTemporaryFile(dir=folder, prefix=".colorized-")
                stream = stack.enter_context(unsigned).file
            if isinstance(result.content, Image.Image):
                result.content.save(stream, "PNG")
            else:
                format_name, mark = output_format(result.target), self.settings.mark and result.is_copy
                write_copy(stream, result.content, format_name=format_name, bits=photo.scan.bits, mark=mark)
            if signer:
                signer.sign(
                    stream, new.stream, format_name=photo.format_name, source=source, source_format=photo.scan.format
                )
            record |= {"output_sha256": new.finish(), **result.facts}
            record |= {"notes": photo.scan.notes} if photo.scan.notes else {}
            if self.manifest:
                seconds = round(time.monotonic() - photo.started, 3)
                self.manifest.add(photo.job, result.target, **record, settings=photo.record, seconds=seconds)
