"""What decides a result, apart from the photo."""

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..archive.files import Job, result_files
from ..archive.scans import DEFAULT_MAX_MEGAPIXELS, hash_once
from ..diffusion.hints import Hint, describe_hints
from ..diffusion.pipeline import ColorizationPipeline
from ..diffusion.variants import check_variants, choose_variants

BATCH_SIZE = 4  # photos that the network sees at once, of several: a third faster than one after the other on a core


@dataclass(frozen=True)
class Settings:
    """Everything but the photo that decides what its colour copy looks like; see :func:`build_settings`.

    Attributes:
        checkpoint: its digest, see :meth:`ColorizationPipeline.digest`.
        scheduler: name of the sampler's class.
        seed: with the photo's hash it gives the photo's own seed, see :func:`derive_seed`.
        steps, guidance, intensity, working_size, borders, hints: see :class:`ColorizationPipeline`.
        batch_size: rows that the network sees at once. It moves a result in the fifth digit.
        pages: ``"all"`` or ``"first"`` of a TIFF.
        mark: a small visible mark.
        signed: with a C2PA manifest.
        engine: the program that runs the UNet, and in which precision.
        variants: colourings that are drawn of each photo, with seeds counted up from ``seed``.
        consensus: what is kept of several variants: ``"medoid"``, the most typical, or ``"mean"``; all if empty.
        uncertainty: also a map of how far off the colours may be, judged by the variants.
        reference: a colour photo whose palette the results get.
        tied_to: name and hash of the photo whose colours this one gets, and what is known of them.
        known: what is known of this photo's colours and who says so, in words, see :meth:`of`.
        max_megapixels: larger photos are refused.
    """

    checkpoint: str
    scheduler: str
    steps: int
    guidance: float
    working_size: int
    seed: int = 0
    intensity: float = 1.0
    batch_size: int = BATCH_SIZE
    pages: str = "all"
    mark: bool = False
    borders: bool = True
    signed: bool = False
    engine: str = "torch float32"
    variants: int = 1
    consensus: str = ""
    uncertainty: bool = False
    hints: tuple[Hint, ...] = ()
    reference: Path | None = None
    known: tuple[str, ...] = ()
    tied_to: tuple[str, ...] = ()
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS

    @property
    def copies(self) -> int:
        """Colour copies that are written of each photo."""
        return 1 if self.consensus else self.variants

    @property
    def reference_sha256(self) -> str:
        """Hash of the reference photo; empty without one."""
        return hash_once(self.reference) if self.reference else ""

    def files(self, target: Path) -> list[Path]:
        """Every file that comes of a photo whose result is called ``target``."""
        return result_files(target, copies=self.copies, uncertainty=self.uncertainty)

    def of(self, job: Job) -> "Settings":
        """These with what is known of one photo alone."""
        if not job.known and job.leader is None:
            return self
        reference = next((Path(str(one.place)) for one in job.known if one.is_reference), self.reference)
        known = tuple(one.described for one in job.known)
        tied_to = (
            (job.leader.source.name, hash_once(job.leader.source), *self.of(job.leader).known) if job.leader else ()
        )
        return replace(self, known=known, tied_to=tied_to, reference=reference)

    def record(self) -> dict[str, Any]:
        """What must be equal for a result to count as done."""
        left_out = {"hints", "reference", "known", "tied_to", "max_megapixels"}
        left_out |= {"variants", "consensus", "uncertainty"} if self.variants == 1 else set()
        record = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in left_out}
        record |= {"hints": describe_hints(self.hints)} if self.hints else {}
        record |= {"tied_to": list(self.tied_to)} if self.tied_to else {}
        record |= {"known": list(self.known)} if self.known else {}
        # One of this photo alone stands in ``known`` already
        if self.reference and not any(one.startswith("reference:") for one in self.known):
            record["reference_sha256"] = self.reference_sha256
        return record

    def label(self) -> dict[str, object]:
        """What a copy's label says of them, in XMP's style; its seeds come before these."""
        return {
            "Steps": self.steps,
            "Guidance": f"{self.guidance:g}",
            "Intensity": f"{self.intensity:g}",
            "WorkingSize": self.working_size,
            "BatchSize": self.batch_size,
            "Scheduler": self.scheduler,
            "Engine": self.engine,
            "Checkpoint": self.checkpoint,
            **({"Hints": "; ".join(describe_hints(self.hints))} if self.hints else {}),
            **({"TiedTo": "; ".join(self.tied_to)} if self.tied_to else {}),
            **({"KnownColours": "; ".join(self.known)} if self.known else {}),
            **({"ReferenceSHA256": self.reference_sha256} if self.reference else {}),
        }


def build_settings(
    pipe: ColorizationPipeline,
    *,
    checkpoint: str,
    alone: bool = False,
    steps: int | None = None,
    guidance: float | None = None,
    working_size: int | None = None,
    batch_size: int | None = None,
    variants: int | None = None,
    consensus: str | None = None,
    uncertainty: bool = False,
    **others: Any,
) -> Settings:
    """Settings for a pipeline; what is ``None`` is the checkpoint's or the usual.

    Args:
        pipe: what draws.
        checkpoint: its digest, taken before another precision took its UNet's place.
        alone: a single photo. The network sees its rows one by one then, and ``BATCH_SIZE`` of several photos.
        others: as they are in :class:`Settings`.

    Raises:
        ValueError: for numbers of variants that don't go together, or that this checkpoint can't draw.
    """
    drawn, kept = choose_variants(variants, consensus=consensus, uncertainty=uncertainty)
    steps = pipe.config.default_steps if steps is None else steps
    check_variants(pipe.config, drawn, steps=steps)
    return Settings(
        checkpoint=checkpoint,
        scheduler=type(pipe.scheduler).__name__,
        steps=steps,
        guidance=pipe.config.default_guidance if guidance is None else guidance,
        working_size=pipe.config.working_size if working_size is None else working_size,
        batch_size=batch_size or (1 if alone else BATCH_SIZE),
        variants=drawn,
        consensus=kept,
        uncertainty=uncertainty,
        **others,
    )


def derive_seed(seed: int, sha256: str, page: int = 0) -> int:
    """The seed of one page of a photo: equal for equal content, wherever and with whatever it is colorized."""
    digest = hashlib.sha256(f"{seed}/{sha256}/{page}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes seeds of 63 bits
