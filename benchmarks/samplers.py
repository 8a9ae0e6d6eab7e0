"""Which sampler, and how many steps: FD-Lite0 of one checkpoint over both, as a table and a plot.

    python benchmarks/samplers.py --photos 'scenes/validation-*.parquet' --limit 200 -o docs/measurements/speed

Every sampler gets the checkpoint's own noise schedule, prediction type and spacing, the same photos and the same seed.
A row is saved as soon as it is measured; the same command goes on where it was stopped. A combination that fails, or
that gives no picture, is a row too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import rounds
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from colorized_pipeline import DEFAULT_CHECKPOINT, ColorizationPipeline, __version__
from colorized_pipeline.evaluation.measures import Comparison
from colorized_pipeline.evaluation.photos import read_photos
from colorized_pipeline.evaluation.report import colorize, hardware
from colorized_pipeline.training.sources import open_source

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SAMPLERS = {
    "DDPM": DDPMScheduler,
    "DDIM": DDIMScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
STEPS = (1, 2, 3, 4, 8)
KNEE = 0.03  # the knee is the fewest steps that come this near, relatively, to the sampler's least distance


def make_sampler(name: str, trained: DDPMScheduler) -> Any:
    """The sampler of this name with everything that the training's scheduler says of the noise.

    Raises:
        ValueError: if the sampler has no such setting: it would walk along another schedule than the trained one.
    """
    sampler = SAMPLERS[name].from_config(trained.config)
    for setting in ("prediction_type", "beta_schedule", "rescale_betas_zero_snr", "timestep_spacing"):
        if sampler.config.get(setting) != trained.config.get(setting):
            raise ValueError(f"{name} doesn't keep {setting}={trained.config.get(setting)!r}")
    return sampler


def measure_row(
    pipe: ColorizationPipeline, comparison: Comparison, *, sampler: str, steps: int, seed: int
) -> dict[str, Any]:
    """Figures of one sampler at one number of steps, or, under ``error``, why there are none."""
    row: dict[str, Any] = {"sampler": sampler, "steps": steps}
    trained = pipe.scheduler
    try:
        pipe.scheduler = make_sampler(sampler, trained)
        results = colorize(pipe, comparison.photos.lightness, steps=steps, seed=seed)
        if not results.isfinite().all():
            raise ValueError("the pictures hold NaN or infinite values")
        return row | comparison.figures(comparison.show(results))
    except (
        ValueError,
        IndexError,
        RuntimeError,
        ZeroDivisionError,
    ) as error:  # diffusers' samplers raise any of these
        return row | {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    finally:
        pipe.scheduler = trained


def load_rows(file: Path, settings: dict[str, Any], *, overwrite: bool) -> list[dict[str, Any]]:
    """Rows measured before with the same settings.

    Raises:
        ValueError: if the file's rows have other settings and ``overwrite`` is off.
    """
    if not file.exists():
        return []
    before = json.loads(file.read_text())
    if before["settings"] == settings:
        return before["rows"]
    if overwrite:
        return []
    other = [name for name, value in settings.items() if before["settings"].get(name) != value]
    raise ValueError(f"{file} was measured with other {', '.join(other)}: add --overwrite, or choose another folder")


def save(folder: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """``samplers.json``, ``samplers.md`` and ``samplers.png``, each whole or not at all."""
    rows = sorted(rows, key=lambda row: (list(SAMPLERS).index(row["sampler"]), row["steps"]))
    rounds.save(folder, "samplers", {"settings": settings, "rows": rows}, markdown(settings, rows))
    draw(rows, folder / "samplers.png")


def knee(rows: list[dict[str, Any]], sampler: str) -> int | None:
    """The fewest steps whose distance is at most KNEE above the sampler's least; None for fewer than two rows."""
    measured = {row["steps"]: row["fd_lite0"] for row in rows if row["sampler"] == sampler and "error" not in row}
    if len(measured) < 2:
        return None
    limit = min(measured.values()) * (1 + KNEE)
    return min(steps for steps, distance in measured.items() if distance <= limit)


def markdown(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A table of each figure, samplers by steps, with what gave it."""
    columns = sorted({row["steps"] for row in rows})
    samplers = [name for name in SAMPLERS if any(row["sampler"] == name for row in rows)]
    cells = {(row["sampler"], row["steps"]): row for row in rows}
    lines = [
        f"{settings['set']}: {settings['photos']} photos, central {settings['resolution']} x "
        f"{settings['resolution']} crops, guidance {settings['guidance']:g}, seed {settings['seed']}; "
        f"{settings['hardware']}; weights `{settings['weights']}`.",
    ]
    figures = (
        ("FD-Lite0 ↓", "fd_lite0", "{:.1f}"),
        ("closed ↑", "closed_lite0", "{:.3f}"),
        ("KID-Lite0 ↓", "kid_lite0", "{:.4f}"),
        ("colourfulness / truth", "colourfulness_ratio", "{:.2f}"),
    )
    for head, figure, pattern in figures:
        lines += ["", f"| {head}; steps: | " + " | ".join(map(str, columns)) + " |"]
        lines.append("| --- " * (1 + len(columns)) + "|")
        for sampler in samplers:
            found = [cells.get((sampler, steps)) for steps in columns]
            shown = ["" if row is None else pattern.format(row[figure]) if figure in row else "fails" for row in found]
            lines.append(f"| {sampler} | " + " | ".join(shown) + " |")
    knees = [f"{sampler} {knee(rows, sampler) or 'unknown'}" for sampler in samplers]
    lines += ["", f"Fewest steps within {KNEE:.0%} of the sampler's least FD-Lite0: {', '.join(knees)}."]
    for row in rows:
        if "error" in row:
            lines += ["", f"{row['sampler']} in {row['steps']} steps fails: {row['error']}"]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Distances and colourfulness over steps, a line a sampler."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels = (
        ("fd_lite0", "FD-Lite0 (lower is better)"),
        ("kid_lite0", "KID-Lite0 (lower is better)"),
        ("colourfulness_ratio", "colourfulness / truth's"),
    )
    for axis, (name, title) in zip(axes, panels, strict=True):
        for sampler, marker in zip(SAMPLERS, "os^v", strict=True):
            points = [(row["steps"], row[name]) for row in rows if row["sampler"] == sampler and name in row]
            axis.plot([x for x, _ in points], [y for _, y in points], marker=marker, markersize=4, label=sampler)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({row["steps"] for row in rows}), [str(x) for x in sorted({r["steps"] for r in rows})])
        axis.set_xlabel("steps")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[2].axhline(1, color="grey", linewidth=0.8, linestyle="--")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True, help="colour photos: a folder or parquet files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for samplers.json, .md and .png")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), help="pipeline folder; the package's if none")
    parser.add_argument("--limit", type=int, default=200, help="only the first so many photos")
    parser.add_argument("--resolution", type=int, default=128, help="edge of the central crop, pixels")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--overwrite", action="store_true", help="replace rows of other weights, photos or seeds")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    pipe = ColorizationPipeline.from_pretrained(args.checkpoint, use_safetensors=True).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    name = ", ".join(Path(photo).name for photo in args.photos)
    photos = read_photos(open_source(args.photos), name=name, resolution=args.resolution, limit=args.limit)
    settings = {
        "set": name,
        "photos": len(photos),
        "resolution": args.resolution,
        "guidance": pipe.config.default_guidance,
        "seed": args.seed,
        "version": __version__,
        "weights": pipe.digest(),
        "hardware": hardware(pipe.device),
    }
    try:
        rows = load_rows(args.output / "samplers.json", settings, overwrite=args.overwrite)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None
    args.output.mkdir(parents=True, exist_ok=True)
    done = {(row["sampler"], row["steps"]) for row in rows}
    wanted = [(sampler, steps) for steps in sorted(args.steps) for sampler in args.samplers]
    comparison = Comparison(photos)
    for sampler, steps in wanted:
        if (sampler, steps) not in done:
            rows.append(measure_row(pipe, comparison, sampler=sampler, steps=steps, seed=args.seed))
            save(args.output, settings, rows)
            print({k: v for k, v in rows[-1].items() if k in ("sampler", "steps", "fd_lite0", "error")}, flush=True)
    save(args.output, settings, rows)
    print((args.output / "samplers.md").read_text())


if __name__ == "__main__":
    main()
