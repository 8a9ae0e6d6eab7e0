"""What is written of a photo: its colour copies, their sheet and the map of uncertainty, each with its label."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..archive.copies import ColourPage, is_deep, write_copy
from ..archive.files import NewFile
from ..archive.labels import Label, build_xmp
from ..archive.provenance import Signer
from ..diffusion.photo import seen_chroma
from ..diffusion.pipeline import ColorizationPipeline
from ..diffusion.variants import order_by_typicality
from .manifest import Records, describe_source
from .photos import OpenPhoto
from .settings import Settings
from .sheets import draw_map, draw_variants, spread_map, to_tensor


@dataclass(frozen=True)
class Copy:
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


@dataclass(frozen=True)
class Writer:
    """Writes the results of photos, each whole or not at all, and records them.

    Attributes:
        pipe: what drew them.
        settings: of every photo.
        manifest: where results are recorded.
        temporary: folder for unfinished files.
        signer: adds a signed C2PA manifest to each copy.
        keep_times: copies get the time stamps of their scans.
    """

    pipe: ColorizationPipeline
    settings: Settings
    manifest: Records | None = None
    temporary: Path | None = None
    signer: Signer | None = None
    keep_times: bool = False

    def write(self, photo: OpenPhoto) -> None:
        """All results of a photo whose every row is drawn."""
        copies, facts = self.choose_copies(photo), dict[str, Any]()
        if self.settings.uncertainty:
            facts["uncertainty"] = self._write_map(photo)
        for number, copy in enumerate(copies, start=1):
            variant = {"base_seed": copy.base_seed, "variant": number} if self.settings.variants > 1 else {}
            self.write_copy(photo, copy, **variant, **facts)
        if len(copies) > 1:
            self._write_sheet(photo, copies, facts)

    def choose_copies(self, photo: OpenPhoto) -> list[Copy]:
        """The copies to write: of several variants from the most typical outwards, or what they agree on."""
        settings, target = self.settings, photo.job.target
        drawn = [photo.drawn(page) for page in range(len(photo.pages))]
        if settings.consensus == "mean":
            means = [chroma.mean(dim=0) for chroma in drawn]
            return [Copy(target, means, photo.seeds, settings.seed, averaged=settings.variants)]
        seen = [seen_chroma(page, chroma).flatten(2) for page, chroma in zip(photo.pages, drawn, strict=True)]
        order = order_by_typicality(torch.cat(seen, dim=2))
        files = settings.files(target)[: settings.copies]
        return [self.variant(photo, number, file) for number, file in zip(order, files, strict=False)]

    def variant(self, photo: OpenPhoto, number: int, target: Path) -> Copy:
        """The copy of one variant. Its label is that of a run with its own seed, so that this gives the same bytes."""
        rows = range(number, len(photo.seeds), photo.variants)
        chroma, seeds = [photo.chroma[row] for row in rows], [photo.seeds[row] for row in rows]
        return Copy(target, chroma, seeds, self.settings.seed + number)

    def write_copy(self, photo: OpenPhoto, copy: Copy, **facts: Any) -> None:
        """Write one colour copy; ``facts`` are recorded with it."""
        times_of = photo.job.source if self.keep_times else None
        with NewFile(copy.target, temporary=self.temporary, times_of=times_of) as new:
            if self.signer is None:
                self._write_pages(new.stream, photo, copy)
            else:
                folder = self.temporary or copy.target.parent
                with tempfile.NamedTemporaryFile(dir=folder, prefix=".colorized-") as unsigned:
                    self._write_pages(unsigned.file, photo, copy)
                    self.signer.sign(
                        unsigned.file,
                        new.stream,
                        format_name=photo.format_name,
                        source=photo.job.source,
                        source_format=photo.scan.format,
                    )
            self._record(photo, new, seeds=copy.seeds, **facts)

    def _write_pages(self, stream: Any, photo: OpenPhoto, copy: Copy) -> None:
        write_copy(
            stream,
            self._pages(photo, copy),
            format_name=photo.format_name,
            bits=photo.scan.bits,
            mark=self.settings.mark,
        )

    def _pages(self, photo: OpenPhoto, copy: Copy) -> Iterator[ColourPage]:
        deep, label = is_deep(photo.format_name, photo.scan.bits), self._describe(photo, copy)
        for number, chroma in enumerate(copy.chroma):
            page, metadata = photo.page(number), photo.scan.page_metadata[number]
            strips = self.pipe.show(page, chroma, intensity=self.settings.intensity, deep=deep)
            yield ColourPage(page.photo.height, page.photo.width, strips, metadata, metadata.label(label))

    def _write_map(self, photo: OpenPhoto) -> float:
        """Write the map of how far a photo's variants differ; returns its mean, ΔE*ab."""
        page = photo.page(0)
        spread = spread_map(page, photo.drawn(0) * self.settings.intensity)
        mean = round(float(spread.mean()), 3)
        image = draw_map(spread, (page.photo.height, page.photo.width), variants=self.settings.variants)
        with NewFile(self.settings.files(photo.job.target)[-1], temporary=self.temporary) as new:
            image.save(new.stream, "PNG")
            self._record(photo, new, seeds=photo.seeds, uncertainty=mean)
        return mean

    def _write_sheet(self, photo: OpenPhoto, copies: list[Copy], facts: Mapping[str, Any]) -> None:
        """Write the first page's variants side by side, labelled as a colour copy is."""
        captions = [f"{number}: seed {one.base_seed}" for number, one in enumerate(copies, start=1)]
        captions[0] += ", most typical"
        chroma = [one.chroma[0] * self.settings.intensity for one in copies]
        sheet = to_tensor(draw_variants(photo.page(0), chroma, captions=captions))
        label = self._describe(photo, Copy(photo.job.target, [], photo.seeds, self.settings.seed))
        page = ColourPage(sheet.shape[1], sheet.shape[2], [sheet], xmp=build_xmp(label))
        with NewFile(self.settings.files(photo.job.target)[len(copies)], temporary=self.temporary) as new:
            write_copy(new.stream, [page], format_name="JPEG", bits=8)
            self._record(photo, new, seeds=photo.seeds, **facts)

    def _describe(self, photo: OpenPhoto, copy: Copy) -> Label:
        seeds = {"Seed": ", ".join(map(str, copy.seeds)), "BaseSeed": copy.base_seed}
        averaged = {"Consensus": f"mean of {copy.averaged} variants"} if copy.averaged else {}
        settings = {**seeds, **photo.settings.label(), **averaged, **photo.job.origin}
        return Label(source_name=photo.job.source.name, source_sha256=photo.scan.sha256, settings=settings)

    def _record(self, photo: OpenPhoto, new: NewFile, **facts: Any) -> None:
        """Record a finished file, before it gets its name."""
        sha256 = new.finish()
        if self.manifest:
            self.manifest.add(
                photo.job,
                new.target,
                **describe_source(photo.job.source, photo.scan.sha256),
                output_sha256=sha256,
                **facts,
                **({"notes": photo.scan.notes} if photo.scan.notes else {}),
                settings=photo.settings.record(),
                seconds=round(time.monotonic() - photo.started, 3),
            )
