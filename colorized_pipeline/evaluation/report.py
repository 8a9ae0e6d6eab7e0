"""``colorized evaluate``: a checkpoint on colour photos, beside its baselines. PARTS lists what is measured."""

import inspect
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from .._version import __version__
from ..batch.sheets import in_rows, paint_sheet
from ..diffusion.color import L_MAX, downsample_chroma, fit_gamut, lab_to_rgb, lightness_to_gray, rgb_to_lab
from ..diffusion.pipeline import ColorizationPipeline, ColorizationPipelineOutput
from ..diffusion.variants import has_variants, spread
from .bound import NoiseSchedule, VariationalBound, mean_and_error, variational_bound
from .calibration import fit_uncertainty, overconfidence, rank_correlation, within_photos
from .colors import delta_e, diversity, edge_error, gray_baseline, grid_oracle, in_batches
from .distances import inception_fid
from .measures import Comparison, Figures, Shown
from .photos import PhotoSet
from .tables import OURS, markdown

BIN_WIDTH = 1.0  # CIELAB units: chroma is rounded to one unit of a* and b*, about what the eye can see
LARGE = 256  # pixels: photos with a shorter side of at least this show what happens at edges
EDGE_SIZES = (512, 1024)  # pixels to which they are enlarged
CALIBRATION_CELL = 8  # edge in pixels of the places whose stated uncertainty is compared with their error
_BATCH = 32
_SHEET_PHOTOS = 8


@dataclass(frozen=True)
class Extent:
    """How much is measured beside the table of rows; 0 leaves a part out.

    Attributes:
        baselines: also rows of the grid oracle and of one pass.
        film: also colorize every photo as seen through an old film.
        variants: colourings a photo, for the best of them, their diversity and the uncertainty they state.
        variant_photos: photos that they are drawn for.
        edge_photos: large photos whose edges are looked at.
        bound_photos: photos of the variational bound.
        fid: also standard FID, which needs torch-fidelity.
        networks: whose feature distances are measured.
    """

    baselines: bool = True
    film: bool = True
    variants: int = 8
    variant_photos: int = 64
    edge_photos: int = 32
    bound_photos: int = 64
    fid: bool = False
    networks: tuple[str, ...] = ("lite2", "lite0")


QUICK = Extent(baselines=False, film=False, variant_photos=0, edge_photos=0, bound_photos=0, networks=("lite2",))


@dataclass
class Report:
    """What :func:`evaluate` found: ``figures`` as JSON has them, and the contact sheet."""

    figures: dict[str, Any]
    sheet: Image.Image = field(repr=False)

    def save(self, folder: Path) -> None:
        """Write ``report.json``, ``report.md`` and ``sheet.png`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(markdown(self.figures) + "\n", encoding="utf-8")
        self.sheet.save(folder / "sheet.png")


@dataclass(frozen=True)
class Model:
    """A checkpoint and how it draws: ``steps`` and ``guidance`` are its defaults if None."""

    pipe: ColorizationPipeline
    steps: int | None = None
    guidance: float | None = None

    @property
    def is_diffusion(self) -> bool:
        """Whether it draws; a regression gives one picture only."""
        return self.pipe.config.objective == "diffusion"

    @property
    def has_variants(self) -> bool:
        """Whether seeds give different pictures."""
        return has_variants(self.pipe.config, steps=self.steps or self.pipe.config.default_steps)

    def colorize(self, lightness: torch.Tensor | Sequence[torch.Tensor], *, seed: int) -> list[torch.Tensor]:
        """What a user gets for each L* ``[1, H, W]``: sRGB ``[3, H, W]``."""
        generator = torch.Generator().manual_seed(seed)
        grays = [lightness_to_gray(one).clamp(0, 1) for one in lightness]
        return self._draw(grays, generator=generator, batch_size=_BATCH).images

    def draw_variants(self, lightness: torch.Tensor, *, variants: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Variants of L* ``[N, 1, H, W]``, from the most typical on, CIELAB ``[N, V, 3, H, W]``, and the uncertainty
        that they state, ``[N, H, W]`` in ΔE*ab."""
        result = self._draw(
            list(lightness_to_gray(lightness).clamp(0, 1)),
            generator=[torch.Generator().manual_seed(seed + number) for number in range(len(lightness))],
            num_variants=variants,
            return_uncertainty=True,
            batch_size=2 * _BATCH,
        )
        pictures = torch.stack([torch.stack(one) for one in result.variants or ()])
        return rgb_to_lab(pictures), torch.stack(result.uncertainty or [])

    def _draw(self, grays: list[torch.Tensor], **options: Any) -> ColorizationPipelineOutput:
        drawing: dict[str, Any] = dict(num_inference_steps=self.steps, guidance_scale=self.guidance, output_type="pt")
        if "borders" in inspect.signature(self.pipe.__call__).parameters:  # the first generation has no such argument
            drawing["borders"] = False  # crops have none
        return self.pipe(grays, **drawing, **options)


def colorize(
    pipe: ColorizationPipeline,
    lightness: torch.Tensor,
    *,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
) -> torch.Tensor:
    """What a user gets for L* ``[N, 1, H, W]``: sRGB ``[N, 3, H, W]`` on the 8-bit grid."""
    return (torch.stack(Model(pipe, steps, guidance).colorize(lightness, seed=seed)) * 255).round() / 255


@dataclass(frozen=True)
class Work:
    """What the parts of an evaluation share: the checkpoint's own model is ``models[OURS]``, ``row`` its colours."""

    models: dict[str, Model]
    photos: PhotoSet
    comparison: Comparison
    row: Shown
    extent: Extent
    seed: int

    @property
    def ours(self) -> Model:
        return self.models[OURS]


@dataclass(frozen=True)
class Part:
    """A section of the report.

    Attributes:
        name: its key in report.json.
        measure: what is found.
        wanted: whether it was asked for.
        obstacle: why it can't be measured here, or nothing.
    """

    name: str
    measure: Callable[[Work], Any]
    wanted: Callable[[Work], object]
    obstacle: Callable[[Work], str] = lambda work: ""


def evaluate(
    pipe: ColorizationPipeline,
    photos: PhotoSet,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    precision: str = "float32",
    extent: Extent = Extent(),
    beside: dict[str, ColorizationPipeline] | None = None,
    cache: Path | None = None,
    on_part: Callable[[Report], object] | None = None,
) -> Report:
    """Every figure of one checkpoint.

    Args:
        pipe: the checkpoint.
        photos: true photos.
        steps: denoising steps; the checkpoint's default if None.
        guidance: guidance scale; the checkpoint's default if None.
        seed: of everything that is drawn.
        precision: of the UNets' arithmetic, ``"float32"`` or ``"bfloat16"``; they stay in it.
        extent: what is measured, on how many photos.
        beside: checkpoints to compare with, by name (a regression twin, the first generation), with their defaults.
        cache: folder for features of photos.
        on_part: gets the report so far after each part, so that nothing measured is lost if a later one fails.
    """
    steps = pipe.config.default_steps if steps is None else steps
    guidance = pipe.config.default_guidance if guidance is None else guidance
    others = {name: Model(other) for name, other in (beside or {}).items()}
    models = {**others, OURS: Model(pipe, steps, guidance)}
    # Before they are rounded
    weights = {name: ColorizationPipeline.digest(model.pipe) for name, model in models.items()}
    for model in models.values():
        model.pipe.unet.to(getattr(torch, precision)).to(memory_format=torch.channels_last)
    comparison = Comparison(photos, networks=extent.networks, cache=cache)
    rows, shown = _rows(models, comparison, extent=extent, seed=seed)
    figures: dict[str, Any] = {
        **_describe(photos, models[OURS], seed=seed),
        "precision": precision,
        "weights": weights[OURS],
        "beside": {name: weights[name] for name in others},
        "rows": rows,
        "not_measured": {},
    }
    report = Report(figures, contact_sheet(shown.rgb, photos.truth))
    work = Work(models, photos, comparison, shown, extent, seed)
    wanted = [part for part in PARTS if part.wanted(work)]
    for part in wanted:
        if reason := part.obstacle(work):
            figures["not_measured"][part.name] = reason
    for part in wanted:
        if on_part:
            on_part(report)
        if part.name not in figures["not_measured"]:
            figures[part.name] = part.measure(work)
    if on_part:
        on_part(report)
    return report


def _describe(photos: PhotoSet, model: Model, *, seed: int) -> dict[str, Any]:
    """What gave the figures."""
    return {
        "set": photos.name,
        "photos": len(photos),
        "left_out": list(photos.left_out),
        "crop": photos.crop,
        "resolution": photos.resolution,
        "classes": sum(map(bool, photos.classes)),
        "faces": sum(photos.faces),
        "steps": model.steps,
        "guidance": model.guidance,
        "scheduler": type(model.pipe.scheduler).__name__,
        "seed": seed,
        "version": __version__,
        "hardware": hardware(model.pipe.device),
    }


def _rows(
    models: dict[str, Model], comparison: Comparison, *, extent: Extent, seed: int
) -> tuple[dict[str, Figures], Shown]:
    """The table of rows, baselines first and ours last, and our colours."""
    photos = comparison.photos
    rows = {"grey": comparison.gray_figures}
    if extent.baselines:
        rows |= _baselines(models[OURS], comparison, seed=seed)
    for name, model in models.items():
        drawn = colorize(model.pipe, photos.lightness, steps=model.steps, guidance=model.guidance, seed=seed)
        shown = comparison.show(drawn)
        rows[name] = comparison.figures(shown)
    if any(photos.classes):
        rows["true colours"] = {"top1": comparison.case(comparison.truth).top1()}
    return rows, shown


def _baselines(model: Model, comparison: Comparison, *, seed: int) -> dict[str, Figures]:
    """What the model's grid allows, and what one pass from pure noise gives: of usual training the mean colour."""
    photos, cell = comparison.photos, model.pipe.chroma_cell
    oracle = in_batches(lambda lab: grid_oracle(lab, cell), photos.truth)
    rows = {"true chroma on the model's grid": comparison.figures(comparison.show(oracle))}
    if _draws_in_one_pass(model):
        one_pass = colorize(model.pipe, photos.lightness, steps=1, guidance=1.0, seed=seed)
        rows["one pass"] = comparison.figures(comparison.show(one_pass))
    return rows


def _draws_in_one_pass(model: Model) -> bool:
    """Whether drawing begins at pure noise (zero terminal SNR), from which the network predicts the chroma itself."""
    config = model.pipe.scheduler.config
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    return model.is_diffusion and config.prediction_type == "v_prediction" and zero_snr


def _film_figures(work: Work) -> Figures:
    """Colours drawn for photos seen through an old film, shown on the clean lightness: only colour is compared."""

    def on_clean(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        lab = fit_gamut(torch.cat((truth[:, :1], rgb_to_lab(result)[:, 1:]), dim=1))
        return lab_to_rgb(lab).clamp(0, 1)

    model = work.ours
    seen = work.photos.through_film(seed=work.seed)
    results = colorize(model.pipe, seen, steps=model.steps, guidance=model.guidance, seed=work.seed)
    shown = work.comparison.show(in_batches(on_clean, results, work.photos.truth))
    return work.comparison.figures(shown)


def _group_figures(work: Work) -> dict[str, dict[str, Any]]:
    """The same table for the photos of each label; labels with a single photo are left out."""
    groups = work.photos.groups or ()
    figures = {}
    for group in sorted(set(groups)):
        chosen = torch.tensor([index for index, label in enumerate(groups) if label == group])
        if len(chosen) > 1:
            part = work.comparison.take(chosen).figures(work.row.take(chosen))
            figures[group] = {"photos": len(chosen), **part}
    return figures


def _variant_figures(work: Work) -> dict[str, Any]:
    """For each model: one colouring against the best of several, and whether their uncertainty is true."""
    extent = work.extent
    truth = work.photos.truth[:: max(1, len(work.photos) // extent.variant_photos)][: extent.variant_photos]
    rows = {
        name: variant_figures(model, truth, variants=extent.variants, seed=work.seed)
        for name, model in work.models.items()
        if model.has_variants
    }
    return {"photos": len(truth), "count": extent.variants, "rows": rows}


def variant_figures(model: Model, truth: torch.Tensor, *, variants: int, seed: int) -> Figures:
    """Errors of one and of the best of several variants of true photos ``[N, 3, H, W]``, and their calibration."""
    parts = [
        model.draw_variants(part[:, :1], variants=variants, seed=seed + _BATCH * number)
        for number, part in enumerate(truth.split(_BATCH))
    ]
    labs, stated = (torch.cat(values) for values in zip(*parts, strict=True))
    errors = torch.stack([delta_e(lab, truth) for lab in labs.unbind(1)])  # [V, N]
    mean = fit_gamut(labs.mean(dim=1))
    squared = (mean - truth)[:, 1:].square().sum(1)  # [N, H, W]
    spreads = torch.stack([spread(one) for one in labs[:, :, 1:]])
    maps = torch.stack((stated.square(), squared, spreads.square(), truth[:, 0]), dim=1)
    places = downsample_chroma(maps, CALIBRATION_CELL)
    place_stated, place_squared = places[:, 0].sqrt(), places[:, 1]
    floor, factor = fit_uncertainty(places[:, 2].sqrt(), places[:, 3], place_squared, variants=variants)
    return {
        "delta_e": errors.mean().item(),
        "delta_e_best": errors.min(0).values.mean().item(),
        "diversity": diversity(labs.movedim(1, 0)).mean().item(),
        "uncertainty": stated.mean().item(),
        "uncertainty_floor": floor,
        "uncertainty_factor": factor,
        "overconfidence": overconfidence(place_stated, place_squared, variants=variants),
        "rank_photos": rank_correlation(stated.mean((1, 2)), squared.sqrt().mean((1, 2))),
        "rank_places": rank_correlation(place_stated.flatten(), place_squared.flatten()),
        "rank_within_photos": within_photos(place_stated, place_squared),
    }


def _edge_figures(work: Work) -> dict[str, Any]:
    """Errors of ∇ab of large photos, at their own size and enlarged; the network reads them at its working size."""
    squares = work.photos.large(LARGE, count=work.extent.edge_photos)
    rows: dict[str, Figures] = {}
    for size in (None, *EDGE_SIZES):
        truth = [square if size is None else _enlarge(square, size) for square in squares]
        grid = work.ours.pipe.config.working_size // work.ours.pipe.chroma_cell
        pictures = {
            "grey": [gray_baseline(lab[None])[0] for lab in truth],
            "true chroma on the model's grid": [_through_grid(lab, grid) for lab in truth],
        }
        for name, model in work.models.items():
            pictures[name] = model.colorize([lab[:1] for lab in truth], seed=work.seed)
        for name, shown in pictures.items():
            errors = [edge_error(rgb_to_lab(rgb)[None], lab[None]) for rgb, lab in zip(shown, truth, strict=True)]
            rows.setdefault(name, {})[str(size or "own size")] = torch.cat(errors).mean().item()
    return {"photos": len(squares), "own_size": squares[0].shape[-1], "rows": rows}


def _enlarge(lab: torch.Tensor, size: int) -> torch.Tensor:
    """A square CIELAB picture at another size."""
    larger = F.interpolate(lab[None], (size, size), mode="bicubic")[0]
    return torch.cat((larger[:1].clamp(0, L_MAX), larger[1:]))


def _through_grid(lab: torch.Tensor, grid: int) -> torch.Tensor:
    """The true chroma on a square grid of so many cells an edge, as sRGB."""
    coarse = F.interpolate(lab[None, 1:], (grid, grid), mode="area")
    chroma = F.interpolate(coarse, lab.shape[-2:], mode="bilinear")[0]
    return lab_to_rgb(fit_gamut(torch.cat((lab[:1], chroma)))).clamp(0, 1)


def _bound_obstacle(work: Work) -> str:
    if not work.ours.is_diffusion:
        return "a regression has no bound"
    if work.ours.pipe.config.detail_scales is not None:
        return "the bound's cells of chroma fit no checkpoint with detail_scales"
    try:
        NoiseSchedule.of(work.ours.pipe.scheduler)
    except ValueError as error:
        return f"{type(work.ours.pipe.scheduler).__name__}: {error}"
    return ""


def _bound_figures(work: Work) -> dict[str, Any]:
    truth = work.photos.truth[:: max(1, len(work.photos) // work.extent.bound_photos)][: work.extent.bound_photos]
    return bound_figures(work.ours.pipe, truth, seed=work.seed)


def bound_figures(pipe: ColorizationPipeline, truth: torch.Tensor, *, seed: int) -> dict[str, Any]:
    """The variational bound in bits per chroma dimension of photos ``[N, 3, H, W]``, chroma to one BIN_WIDTH."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for lab in truth.split(_BATCH):
        chroma = downsample_chroma(lab[:, 1:], pipe.chroma_cell).div(BIN_WIDTH).round().mul(BIN_WIDTH)
        with torch.no_grad():
            condition = pipe.condition(lab[:, :1].to(pipe.device))
        bound = variational_bound(
            lambda x, t: pipe.unet(x.to(pipe.unet.dtype), t).sample.float(),
            pipe.scheduler,
            chroma=pipe.chroma_to_latents(chroma.to(pipe.device)),
            condition=condition,
            bin_width=BIN_WIDTH / pipe.config.chroma_scale,
            generator=generator,
        )
        parts.append(bound)
    joined = VariationalBound.join(parts)
    total, error = mean_and_error(joined.total)
    return {
        "photos": len(truth),
        "bin_width": BIN_WIDTH,
        "bits_per_dimension": total,
        "standard_error": error,
        "prior": joined.prior.mean().item(),
        "decoder": joined.decoder.mean().item(),
        "steps": [
            {"first": first, "last": last, "bits": bits}
            for (first, last), bits in zip(joined.strata, joined.steps.mean(0).tolist(), strict=True)
        ],
    }


# What is measured beside the table of rows
PARTS = (
    Part("groups", _group_figures, wanted=lambda work: work.photos.groups),
    Part(
        "fid", lambda work: inception_fid(work.row.rgb, work.comparison.truth.rgb), wanted=lambda work: work.extent.fid
    ),
    Part("film", _film_figures, wanted=lambda work: work.extent.film),
    Part(
        "variants",
        _variant_figures,
        wanted=lambda work: work.extent.variant_photos and work.extent.variants > 1,
        obstacle=lambda work: "" if work.ours.has_variants else "all seeds give the same picture of a photo",
    ),
    Part(
        "edges",
        _edge_figures,
        wanted=lambda work: work.extent.edge_photos,
        obstacle=lambda work: (
            "" if max(work.photos.sides) >= LARGE else f"no photo has {LARGE} pixels on its shorter side"
        ),
    ),
    Part("bound", _bound_figures, wanted=lambda work: work.extent.bound_photos, obstacle=_bound_obstacle),
)


def hardware(device: torch.device) -> str:
    """What the figures were computed on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}, {device.type}, torch {torch.__version__}"


def contact_sheet(results: torch.Tensor, truth: torch.Tensor) -> Image.Image:
    """Best, median and worst photos by CIEDE2000, each as grey, result and truth."""
    errors = in_batches(lambda result, lab: delta_e(rgb_to_lab(result), lab), results, truth)
    order = errors.argsort().tolist()
    count = min(_SHEET_PHOTOS, len(order))
    middle = (len(order) - count) // 2
    parts = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    triples, captions = [], []
    for title, indices in parts.items():
        for index in indices:
            lab = truth[index : index + 1]
            row = (gray_baseline(lab)[0], results[index], lab_to_rgb(lab)[0].clamp(0, 1))
            triples.append(torch.cat(row, dim=-1))
            captions.append(f"{title}: CIEDE2000 {errors[index]:.1f}  (grey, result, truth)")
    return paint_sheet(in_rows(triples, 4), captions=in_rows(captions, 4))
