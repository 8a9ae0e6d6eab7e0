"""`colorized evaluate`: a checkpoint on colour photos, beside its baselines: figures, tables and a contact sheet."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw

from .._version import __version__
from ..diffusion.color import fit_gamut, lab_to_rgb, lightness_to_gray, rgb_to_lab
from ..diffusion.pipeline import ColorizationPipeline
from ..training.data import ColorizationDataset
from .bound import VariationalBound, mean_and_error, variational_bound
from .metrics import (
    Comparison,
    delta_e,
    diversity,
    grey_baseline,
    grid_ceiling,
    in_batches,
    inception_fid,
    psnr,
    ssim,
)

BIN_WIDTH = 1.0  # CIELAB units: chroma is told to one unit of a* and b*, about what the eye can tell
_BATCH = 32
_SHEET_PHOTOS = 8
_CARD_START, _CARD_END = "<!-- figures: start -->", "<!-- figures: end -->"

# name in JSON -> (column head, format)
_COLUMNS = {
    "fd_lite0": ("FD-Lite0 ↓", "{:.1f}"),
    "closed": ("closed ↑", "{:.3f}"),
    "kid_lite0": ("KID-Lite0 ↓", "{:.4f}"),
    "colourfulness_ratio": ("colourfulness / truth", "{:.2f}"),
    "delta_e": ("ΔE2000 ↓", "{:.2f}"),
    "psnr": ("PSNR, dB ↑", "{:.2f}"),
    "ssim": ("SSIM ↑", "{:.3f}"),
    "lightness_error": ("L* error ↓", "{:.2f}"),
}

_CARD_METRICS = {
    "fd_lite0": "FD-Lite0",
    "closed": "part of FD-Lite0 closed",
    "colourfulness_ratio": "colourfulness over truth",
    "delta_e": "CIEDE2000",
}


@dataclass(frozen=True)
class Extent:
    """How much of the photos the costly figures use; 0 leaves one out.

    Attributes:
        variants: colourings a photo, for the best of them and for diversity.
        variant_photos: photos that they are drawn for.
        bound_photos: photos of the variational bound.
        film: also colorize every photo as seen through an old film.
    """

    variants: int = 8
    variant_photos: int = 64
    bound_photos: int = 64
    film: bool = True


@dataclass
class Report:
    """What :func:`evaluate` found: ``figures`` as JSON has them, and the contact sheet."""

    figures: dict[str, Any]
    sheet: Image.Image = field(repr=False)

    def save(self, folder: Path) -> None:
        """Write ``report.json``, ``report.md`` and ``sheet.png`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.figures, indent=2) + "\n")
        (folder / "report.md").write_text(markdown(self.figures) + "\n")
        self.sheet.save(folder / "sheet.png")


def evaluate(
    pipe: ColorizationPipeline,
    dataset: ColorizationDataset,
    *,
    name: str,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    extent: Extent = Extent(),
    groups: Sequence[str] | None = None,
    others: dict[str, ColorizationPipeline] | None = None,
    fid: bool = False,
    cache: Path | None = None,
) -> Report:
    """Every figure of one checkpoint.

    Args:
        pipe: the checkpoint.
        dataset: true photos; their central crops are used.
        name: of the photo set, for the report.
        steps: denoising steps; the checkpoint's default if None.
        guidance: guidance scale; the checkpoint's default if None.
        seed: of everything that is drawn.
        extent: how much of the photos the costly figures use.
        groups: a label a photo, for a table by label.
        others: further rows of the table, by name: checkpoints to compare with (a regression twin, say).
        fid: also standard FID, which needs torch-fidelity.
        cache: folder for features of true photos.
    """
    steps = pipe.config.default_steps if steps is None else steps
    guidance = pipe.config.default_guidance if guidance is None else guidance
    drawn: dict[str, Any] = dict(steps=steps, guidance=guidance, seed=seed)
    truth = torch.stack([dataset.lab(index) for index in range(len(dataset))])  # [N, 3, R, R]
    comparison = Comparison(truth, cache=cache)
    results = colorize(pipe, truth[:, :1], **drawn)
    figures: dict[str, Any] = {
        "set": name,
        "photos": len(truth),
        "resolution": dataset.resolution,
        "steps": steps,
        "guidance": guidance,
        "chroma_spread": pipe.config.chroma_spread,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": seed,
        "version": __version__,
        "weights": weights_digest(pipe),
        "hardware": hardware(pipe.device),
        "rows": {
            "grey": comparison.figures(grey_baseline(truth)),
            "true chroma on the model's grid": comparison.figures(
                in_batches(lambda lab: grid_ceiling(lab, pipe.config.luma_factor), truth)
            ),
        },
    }
    if _one_pass_is_the_mean(pipe):
        one_pass = colorize(pipe, truth[:, :1], steps=1, guidance=1.0, seed=seed)
        figures["rows"]["one pass (mean colour)"] = comparison.figures(one_pass)
    for other_name, other in (others or {}).items():
        figures["rows"][other_name] = comparison.figures(colorize(other, truth[:, :1], seed=seed))
    figures["rows"]["COLORIZED"] = comparison.figures(results)
    if fid:
        figures["fid"] = inception_fid(results, comparison.truth_rgb)
    if extent.film:
        figures["film"] = _film_figures(pipe, dataset, comparison, **drawn)
        figures["film_fd_ratio"] = figures["film"]["fd_lite0"] / figures["rows"]["COLORIZED"]["fd_lite0"]
    if extent.variants > 1 and extent.variant_photos:
        few = truth[:: max(1, len(truth) // extent.variant_photos)][: extent.variant_photos]
        figures["variants"] = _variant_figures(pipe, few, count=extent.variants, **drawn)
    if groups is not None:
        figures["groups"] = _group_figures(results, truth, groups)
    if extent.bound_photos and pipe.config.objective == "diffusion":
        figures["bound"] = bound_figures(pipe, dataset, photos=extent.bound_photos, seed=seed)
    return Report(figures, contact_sheet(results, truth))


def colorize(
    pipe: ColorizationPipeline,
    lightness: torch.Tensor,
    *,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
) -> torch.Tensor:
    """What a user gets for L* ``[N, 1, H, W]``: sRGB ``[N, 3, H, W]`` on the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    grays = list(lightness_to_gray(lightness).clamp(0, 1))
    images = pipe(grays, steps, generator, guidance_scale=guidance, batch_size=_BATCH, output_type="pt").images
    return (torch.stack(images) * 255).round() / 255


def _one_pass_is_the_mean(pipe: ColorizationPipeline) -> bool:
    """From pure noise (zero terminal SNR) the network can only answer E[chroma | grey]: the regression answer."""
    config = pipe.scheduler.config
    return (
        pipe.config.objective == "diffusion"
        and config.prediction_type == "v_prediction"
        and bool(config.get("rescale_betas_zero_snr"))
    )


def _film_figures(
    pipe: ColorizationPipeline, dataset: ColorizationDataset, comparison: Comparison, **drawn: Any
) -> dict[str, float]:
    """Colours drawn for photos seen through an old film, shown on the clean lightness: only colour is compared."""
    degraded = dataset.through_film()
    lightness = torch.stack([degraded[0, index]["lightness"] for index in range(len(degraded))])

    def on_clean(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        lab = fit_gamut(torch.cat((truth[:, :1], rgb_to_lab(result)[:, 1:]), dim=1))
        return lab_to_rgb(lab).clamp(0, 1)

    results = colorize(pipe, lightness, **drawn)
    return comparison.figures(in_batches(on_clean, results, comparison.truth))


def _variant_figures(
    pipe: ColorizationPipeline, truth: torch.Tensor, *, count: int, seed: int, **drawn: Any
) -> dict[str, float]:
    """The first of ``count`` colourings against the best of them for each photo, and how they differ."""
    samples = torch.stack([colorize(pipe, truth[:, :1], seed=seed + i, **drawn) for i in range(count)])
    labs, truth_rgb = rgb_to_lab(samples), lab_to_rgb(truth).clamp(0, 1)
    errors = torch.stack([delta_e(lab, truth) for lab in labs])  # [S, N]
    ratios = torch.stack([psnr(sample, truth_rgb) for sample in samples])
    similarities = torch.stack([ssim(sample, truth_rgb) for sample in samples])
    return {
        "photos": len(truth),
        "count": count,
        "delta_e": errors[0].mean().item(),
        "delta_e_best": errors.min(0).values.mean().item(),
        "psnr": ratios[0].mean().item(),
        "psnr_best": ratios.max(0).values.mean().item(),
        "ssim": similarities[0].mean().item(),
        "ssim_best": similarities.max(0).values.mean().item(),
        "diversity": diversity(labs).mean().item(),
    }


def _group_figures(results: torch.Tensor, truth: torch.Tensor, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    figures = {}
    for group in sorted(set(groups)):
        chosen = torch.tensor([label == group for label in groups])
        if chosen.sum() > 1:
            figures[group] = {"photos": int(chosen.sum()), **Comparison(truth[chosen]).figures(results[chosen])}
    return figures


def bound_figures(
    pipe: ColorizationPipeline, dataset: ColorizationDataset, *, photos: int, seed: int
) -> dict[str, Any]:
    """The variational bound in bits per chroma dimension, chroma rounded to BIN_WIDTH."""
    generator = torch.Generator().manual_seed(seed)
    chosen = range(0, len(dataset), max(1, len(dataset) // photos))[:photos]
    parts = []
    for start in range(0, len(chosen), _BATCH):
        items = [dataset[0, index] for index in chosen[start : start + _BATCH]]
        chroma = torch.stack([item["chroma"] for item in items]).div(BIN_WIDTH).round().mul(BIN_WIDTH)
        with torch.no_grad():
            condition = pipe.condition(torch.stack([item["lightness"] for item in items]).to(pipe.device))
        bound = variational_bound(
            lambda x, t: pipe.unet(x.to(pipe.unet.dtype), t).sample.float(),
            pipe.scheduler,
            chroma=chroma.to(pipe.device) / pipe.config.chroma_scale,
            condition=condition,
            bin_width=BIN_WIDTH / pipe.config.chroma_scale,
            generator=generator,
        )
        parts.append(bound)
    joined = VariationalBound.join(parts)
    total, error = mean_and_error(joined.total)
    return {
        "photos": len(chosen),
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


def weights_digest(pipe: ColorizationPipeline) -> str:
    """First 16 hexadecimal digits of the SHA-256 over the networks' weights, by name."""
    digest = hashlib.sha256()
    for part in (pipe.unet, pipe.image_encoder):
        for name, value in sorted(part.state_dict().items()) if part is not None else ():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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
    shown = min(_SHEET_PHOTOS, len(order))
    middle = (len(order) - shown) // 2
    parts = {"best": order[:shown], "median": order[middle : middle + shown], "worst": order[-shown:]}
    edge, caption = truth.shape[-1], 14
    sheet = Image.new("RGB", (4 * 3 * edge, 3 * 2 * (edge + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for part, (title, indices) in enumerate(parts.items()):
        for place, index in enumerate(indices):
            lab = truth[index : index + 1]
            row = (grey_baseline(lab)[0], results[index], lab_to_rgb(lab)[0].clamp(0, 1))
            triple = torch.cat(row, dim=-1).movedim(0, -1)
            left, top = place % 4 * 3 * edge, (2 * part + place // 4) * (edge + caption)
            text = f"{title}: CIEDE2000 {errors[index]:.1f}  (grey, result, truth)"
            draw.text((left + 2, top + 1), text, fill="black")
            sheet.paste(Image.fromarray((triple * 255).round().byte().numpy()), (left, top + caption))
    return sheet


def markdown(figures: dict[str, Any]) -> str:
    """The figures as tables, with what gave them."""
    lines = [
        f"{figures['set']}: {figures['photos']} photos, central {figures['resolution']} x {figures['resolution']} "
        f"crops, {figures['steps']} steps of {figures['scheduler']}, guidance {figures['guidance']:g}, seed "
        f"{figures['seed']}; {figures['hardware']}; weights `{figures['weights']}`.",
        "",
        *_table("", figures["rows"]),
    ]
    for name, row in figures["rows"].items():
        if name.endswith(" twin"):
            ratio = figures["rows"]["COLORIZED"]["fd_lite0"] / row["fd_lite0"]
            lines += ["", f"COLORIZED's FD-Lite0 is {ratio:.2f} times that of the {name}."]
    if "fid" in figures:
        lines += ["", f"FID (Inception): {figures['fid']:.2f}."]
    if "film" in figures:
        lines += [
            "",
            "Seen through an old film (other emulsions, fading, grain, blur, scratches; fixed seed), the colours "
            f"shown on the clean lightness: FD-Lite0 {figures['film']['fd_lite0']:.1f}, "
            f"{figures['film_fd_ratio']:.2f} times that of clean photos; closed {figures['film']['closed']:.3f}; "
            f"colourfulness / truth {figures['film']['colourfulness_ratio']:.2f}.",
        ]
    if "variants" in figures:
        v = figures["variants"]
        lines += [
            "",
            f"One colouring against the best of {v['count']} ({v['photos']} photos): ΔE2000 {v['delta_e']:.2f} and "
            f"{v['delta_e_best']:.2f}, PSNR {v['psnr']:.2f} and {v['psnr_best']:.2f} dB, SSIM {v['ssim']:.3f} and "
            f"{v['ssim_best']:.3f}. Mean ΔE2000 between two colourings of a photo: {v['diversity']:.2f}.",
        ]
    if "bound" in figures:
        b = figures["bound"]
        lines += [
            "",
            f"Variational bound: {b['bits_per_dimension']:.3f} ± {b['standard_error']:.3f} bits per chroma dimension "
            f"({b['photos']} photos, chroma told to {b['bin_width']:g} CIELAB unit; L_T {b['prior']:.4f}, "
            f"L_0 {b['decoder']:.3f}).",
        ]
    if "groups" in figures:
        lines += ["", *_table("photos", figures["groups"])]
    return "\n".join(lines)


def _table(count: str, rows: dict[str, dict[str, float]]) -> list[str]:
    """Markdown rows; with ``count`` a column of that name after the first, and none that needs many photos."""
    columns = {k: v for k, v in _COLUMNS.items() if not (count and k == "kid_lite0")}
    heads = [head for head, _ in columns.values()]
    lines = ["| | " + " | ".join(([count] if count else []) + heads) + " |"]
    lines.append("| --- " * (1 + bool(count) + len(heads)) + "|")
    for name, row in rows.items():
        cells = [str(row[count])] if count else []
        cells += [form.format(row[key]) for key, (_, form) in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def card_block(figures: dict[str, Any]) -> str:
    """What stands between the model card's two markers."""
    return f"{_CARD_START}\n{markdown(figures)}\n{_CARD_END}"


def write_card(card_file: Path, figures: dict[str, Any]) -> None:
    """Put the figures between a file's two marker comments; in a model card also into its model-index metadata.

    Raises:
        ValueError: if the file doesn't hold the markers; it is left as it is.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    text = card_file.read_text(encoding="utf-8")
    before, start, rest = text.partition(_CARD_START)
    _, end, after = rest.partition(_CARD_END)
    if not start or not end:
        raise ValueError(f"{card_file}: has no block from {_CARD_START} to {_CARD_END}; add the two lines")
    text = before + card_block(figures) + after
    if not text.startswith("---\n"):  # no metadata: a README, say
        card_file.write_text(text, encoding="utf-8")
        return
    card = ModelCard(text)
    data = cast(ModelCardData, card.data)
    data.model_name = "COLORIZED"
    data.eval_results = [
        EvalResult(
            task_type="image-to-image",
            task_name="colorization",
            dataset_type="image",
            dataset_name=figures["set"],
            metric_type=metric,
            metric_name=metric_name,
            metric_value=round(figures["rows"]["COLORIZED"][metric], 4),
        )
        for metric, metric_name in _CARD_METRICS.items()
    ]
    card.save(card_file)
