"""The variational bound of several checkpoints of one training, on the same photos and noise: a table and a plot.

    python scripts/measure_bound.py --photos 'scenes/validation-*.parquet' \
        --checkpoints 16000:runs/a/best 64000:runs/b/best

Each checkpoint is given as PHOTOS_SEEN:FOLDER, oldest first. Figures go to ``bound.json`` and ``bound.png`` in
the output folder.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from measuring import load, open_photos, provenance, spread_over

from colorized_pipeline.evaluation.report import bound_figures


def point(text: str) -> tuple[int, Path]:
    """PHOTOS_SEEN:FOLDER of the command line."""
    seen, _, folder = text.partition(":")
    if not seen.isdecimal() or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} isn't PHOTOS_SEEN:FOLDER, such as 64000:runs/b/best")
    return int(seen), Path(folder)


def plot(rows: list[dict], what: str, file: Path) -> None:
    """The bound over photos seen, and L_t of each checkpoint."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    totals = np.array([[row["photos_seen"], row["bits_per_dimension"], row["standard_error"]] for row in rows])
    left.errorbar(totals[:, 0] / 1000, totals[:, 1], 2 * totals[:, 2], fmt="k.-", linewidth=0.8)
    left.set(xlabel="photos seen, thousands", ylabel="bound, bits per chroma dimension")
    for number, row in enumerate(rows):
        centres = [((step["first"] + 1) * (step["last"] + 1)) ** 0.5 for step in row["steps"]]
        bits = [step["bits"] for step in row["steps"]]
        shade = 0.85 * (1 - (number + 1) / len(rows))
        right.plot(centres, bits, color=str(shade), linewidth=1, label=f"{row['photos_seen']:,}")
    right.set(xscale="log", yscale="log", xlabel="t", ylabel="$L_{t-1}$, bits per dimension and step")
    right.legend(fontsize=8, title="photos seen", title_fontsize=8)
    figure.suptitle(what, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", type=point, required=True, metavar="PHOTOS_SEEN:FOLDER")
    parser.add_argument("--photos", nargs="+", required=True, help="colour photos: folder or parquet files")
    parser.add_argument("--count", type=int, default=64, help="photos to use, spread over the set")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output", type=Path, default=Path("docs/measurements"), help="folder for both files")
    args = parser.parse_args()

    rows = []
    for seen, folder in args.checkpoints:
        pipe = load(folder)
        dataset = open_photos(pipe, args.photos, resolution=pipe.config.working_size)
        truth = torch.stack([dataset.lab(index) for index in spread_over(len(dataset), args.count)])
        figures = bound_figures(pipe, truth, seed=args.seed)
        rows.append({"photos_seen": seen, "weights": pipe.digest(), **figures})
        total, error = figures["bits_per_dimension"], figures["standard_error"]
        print(f"{seen:>9,} photos seen: {total:.3f} ± {error:.3f} bits per chroma dimension", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    record = provenance(pipe, args.photos, count=rows[0]["photos"], seed=args.seed)
    report = {**record, "checkpoints": rows}
    (args.output / "bound.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(rows, f"{rows[0]['photos']} photos, bins of {rows[0]['bin_width']:g} CIELAB unit", args.output / "bound.png")


if __name__ == "__main__":
    main()
