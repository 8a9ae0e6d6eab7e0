"""Measure whether the uncertainty that variants state is true: docs/measurements/uncertainty.md.

    python scripts/measure_uncertainty.py --photos 'scenes/validation-*.parquet' --write DOCUMENT

Needs ``pip install 'colorized[train,evaluate,figures]'``. Colours of every photo are drawn as a user draws them, with
``num_variants`` and ``return_uncertainty``; then stated spreads are compared with the distance of the true colours.
"""

import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from measuring import load, make_parser, open_photos, provenance, spread_over
from tqdm.auto import tqdm

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion.color import downsample_chroma, fit_gamut, lab_to_rgb, lightness_to_gray, rgb_to_lab
from colorized_pipeline.evaluation.calibration import (
    Bin,
    bootstrap_interval,
    overconfidence,
    rank_correlation,
    reliability,
    within_photos,
)
from colorized_pipeline.evaluation.colors import colourfulness, delta_e

_START, _END = "<!-- uncertainty: start -->", "<!-- uncertainty: end -->"


def draw(
    pipe: ColorizationPipeline, truth: torch.Tensor, *, variants: int, steps: int | None, seed: int, at_once: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variants ``[N, V, 3, H, W]`` in CIELAB and stated spreads ``[N, H, W]`` of true photos ``[N, 3, H, W]``."""
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(truth))]
    labs, spreads = [], []
    for start in tqdm(range(0, len(truth), at_once), desc="photos", unit_scale=at_once):
        part = slice(start, start + at_once)
        grays = list(lightness_to_gray(truth[part, :1]).clamp(0, 1))
        result = pipe(
            grays,
            num_inference_steps=steps,
            generator=generators[part],
            num_variants=variants,
            return_uncertainty=True,
            batch_size=32,
            output_type="pt",
        )
        assert result.variants is not None and result.uncertainty is not None
        labs.append(rgb_to_lab(torch.stack([torch.stack(one) for one in result.variants])))
        spreads.append(torch.stack(result.uncertainty))
    return torch.cat(labs), torch.cat(spreads)


def mean_colors(variants: torch.Tensor) -> torch.Tensor:
    """The consensus ``[N, 3, H, W]`` of variants as shown, ``[N, V, 3, H, W]``, CIELAB."""
    return fit_gamut(variants.mean(dim=1))


def photo_figures(variants: torch.Tensor, truth: torch.Tensor, *, seed: int) -> dict[str, dict[str, float]]:
    """What each kind of picture costs and looks like, a mean over photos."""
    generator = torch.Generator().manual_seed(seed)
    any_one = torch.randint(variants.shape[1], (len(variants),), generator=generator)
    true_colors = colourfulness(lab_to_rgb(truth).clamp(0, 1)).mean()
    errors = torch.stack([delta_e(one, truth) for one in variants.unbind(1)])  # [V, N]
    pictures = {
        "any one variant": variants[torch.arange(len(variants)), any_one],
        "the most typical (medoid)": variants[:, 0],
        "the least typical": variants[:, -1],
        "the mean": mean_colors(variants),
    }
    rows = {
        name: {
            "delta_e2000": delta_e(lab, truth).mean().item(),
            "delta_e76": (lab - truth)[:, 1:].norm(dim=1).mean().item(),
            "colourfulness_ratio": (colourfulness(lab_to_rgb(lab).clamp(0, 1)).mean() / true_colors).item(),
        }
        for name, lab in pictures.items()
    }
    rows["any one variant"]["delta_e2000"] = errors.mean().item()  # over all of them: less chance
    rows["the best of them (needs the truth)"] = {"delta_e2000": errors.min(0).values.mean().item()}
    return rows


def measure(
    variants: torch.Tensor, stated: torch.Tensor, truth: torch.Tensor, *, cell: int, seed: int
) -> dict[str, Any]:
    """All figures; ``cell`` is the edge of the places that are compared, in pixels."""
    count = variants.shape[1]
    mean = mean_colors(variants)
    squared = (mean - truth)[:, 1:].square().sum(1)  # [N, H, W]
    cells = downsample_chroma(torch.stack((stated.square(), squared), dim=1), cell)  # [N, 2, h, w], mean squares
    cell_stated, cell_squared = cells[:, 0].sqrt(), cells[:, 1]
    photo_stated = stated.mean((1, 2))  # the manifest's one number a photo
    photo_square = cells[:, 0].mean((1, 2)).sqrt()
    typical_error = delta_e(variants[:, 0], truth)
    mean_error = (mean - truth)[:, 1:].norm(dim=1).mean((1, 2))
    mean_chroma = mean[:, 1:].norm(dim=1)
    ranks = {
        "photos: uncertainty and ΔE2000 of the most typical variant": (photo_stated, typical_error),
        "photos: uncertainty and ΔE*ab of the mean": (photo_stated, mean_error),
        "photos, rival: mean's own chroma and ΔE*ab of the mean": (mean_chroma.mean((1, 2)), mean_error),
    }
    cell_chroma = downsample_chroma(mean_chroma[:, None].repeat(1, 2, 1, 1), cell)[:, 0]
    return {
        "photos": len(truth),
        "variants": count,
        "cell_pixels": cell,
        "uncertainty": {"mean": photo_stated.mean().item(), "quartiles": _quartiles(photo_stated)},
        "rank_correlation": {
            **{
                name: {"value": rank_correlation(*pair), "interval_95": bootstrap_interval(*pair, seed=seed)}
                for name, pair in ranks.items()
            },
            "cells: all together": {"value": rank_correlation(cell_stated.flatten(), cell_squared.flatten())},
            "cells: within a photo, mean": {"value": within_photos(cell_stated, cell_squared)},
            "cells, rival: within a photo, by the mean's own chroma": {
                "value": within_photos(cell_chroma, cell_squared)
            },
        },
        "overconfidence": overconfidence(cell_stated, cell_squared, variants=count),
        "reliability_photos": _bins(photo_square, squared.mean((1, 2)), count),
        "reliability_cells": _bins(cell_stated, cell_squared, count),
        "pictures": photo_figures(variants, truth, seed=seed),
    }


def _bins(stated: torch.Tensor, squared: torch.Tensor, count: int) -> list[dict[str, float]]:
    return [vars(one) for one in reliability(stated, squared, variants=count)]


def _quartiles(values: torch.Tensor) -> list[float]:
    return values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()


def plot(figures: dict[str, Any], file: Path) -> None:
    """Reliability of cells and of photos: stated spread against actual error, root mean square in both."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    for ax, kind, title in ((axes[0], "cells", "places"), (axes[1], "photos", "photos")):
        bins = [Bin(**one) for one in figures[f"reliability_{kind}"]]
        stated, actual = [one.stated for one in bins], [one.actual for one in bins]
        top = 1.08 * max(*stated, *actual)
        ax.plot([0, top], [0, top], color="0.6", linestyle="--", label="errors as stated")
        ax.plot(stated, actual, marker="o", color="tab:blue", label=f"measured, {bins[0].count} {title} a point")
        ax.set(xlim=(0, top), ylim=(0, top), xlabel="stated spread, ΔE*ab", ylabel="actual error, ΔE*ab", title=title)
        ax.set_aspect("equal")
        ax.legend(loc="lower right", frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def markdown(figures: dict[str, Any]) -> str:
    """The figures in words and tables, with what gave them."""
    f, (low, middle, high) = figures, figures["uncertainty"]["quartiles"]
    factor = f["overconfidence"]
    judgement = (
        f"about as far away as stated (factor {factor:.2f})"
        if 0.9 < factor < 1.1
        else f"{factor:.2f} times as far away as stated: "
        + ("the model is too sure of itself" if factor > 1 else "the model is less sure of itself than it may be")
    )
    lines = [
        f"{f['set']}: {f['photos']} photos, {f['variants']} variants each, central {f['resolution']} x "
        f"{f['resolution']} crops, places of {f['cell_pixels']} x {f['cell_pixels']} pixels, {f['steps']} steps of "
        f"{f['scheduler']}, guidance {f['guidance']:g}, seed {f['seed']}; {f['hardware']}; weights `{f['weights']}`.",
        "",
        f"A photo's uncertainty is {f['uncertainty']['mean']:.1f} ΔE*ab on average, in a quarter of the photos below "
        f"{low:.1f}, in half above {middle:.1f}, in a quarter above {high:.1f}. The true colours are {judgement}.",
        "",
        "| rank correlation (Spearman) | value | 95 % interval over photos |",
        "| --- | --- | --- |",
    ]
    for name, one in f["rank_correlation"].items():
        interval = "{:.2f} to {:.2f}".format(*one["interval_95"]) if "interval_95" in one else ""
        lines.append(f"| {name} | {one['value']:.2f} | {interval} |")
    lines += ["", "| picture | ΔE2000 ↓ | ΔE*ab ↓ | colourfulness / truth |", "| --- | --- | --- | --- |"]
    for name, row in f["pictures"].items():
        more = [f"{row[key]:.2f}" if key in row else "" for key in ("delta_e76", "colourfulness_ratio")]
        lines.append(f"| {name} | {row['delta_e2000']:.2f} | {more[0]} | {more[1]} |")
    return "\n".join(lines)


def write_between_markers(file: Path, text: str) -> None:
    """Replace what stands between a document's two marker comments."""
    before, start, rest = file.read_text(encoding="utf-8").partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise SystemExit(f"{file}: has no block from {_START} to {_END}; add the two lines")
    file.write_text(f"{before}{_START}\n{text}\n{_END}{after}", encoding="utf-8")


def main() -> None:
    parser = make_parser(__doc__, limit=400)
    parser.add_argument("--output", type=Path, default=Path("docs/measurements"), help="folder for both files")
    parser.add_argument("--variants", type=int, default=8, help="colourings a photo")
    parser.add_argument("--cell", type=int, default=8, help="edge of the places that are compared, pixels")
    parser.add_argument("--write", type=Path, help="document whose figures are to be filled in")
    args = parser.parse_args()

    pipe = load(args.checkpoint, device=args.device)
    dataset = open_photos(pipe, args.photos, resolution=args.resolution)
    chosen = spread_over(len(dataset), args.limit)
    truth = torch.stack([dataset.lab(index) for index in chosen])
    variants, stated = draw(pipe, truth, variants=args.variants, steps=args.steps, seed=args.seed)
    figures = {
        **provenance(pipe, args.photos, count=len(truth), seed=args.seed),
        **measure(variants, stated, truth, cell=args.cell, seed=args.seed),
        "resolution": args.resolution,
        "steps": args.steps or pipe.config.default_steps,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "uncertainty.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    plot(figures, args.output / "uncertainty.png")
    if args.write:
        picture = Path(os.path.relpath(args.output / "uncertainty.png", args.write.parent)).as_posix()
        caption = "Reliability: stated spread against actual error, of places and of photos"
        write_between_markers(args.write, f"{markdown(figures)}\n\n![{caption}]({picture})")
    print(markdown(figures))


if __name__ == "__main__":
    main()
