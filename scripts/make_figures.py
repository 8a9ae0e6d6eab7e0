"""Make the pictures of the README from the shipped checkpoint and photographs that scikit-image ships.

python scripts/make_figures.py          (or: make figures)
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data

from colorized_pipeline import load_default

PHOTOS = ("camera", "rocket", "coffee", "astronaut")
SEEDS = (0, 1, 2)
HEIGHT, GAP, CAPTION = 240, 6, 16


def column(name: str) -> list[tuple[str, Image.Image]]:
    """Captioned pictures of one photo: grey, one result a seed, and the colour original where there is one."""
    original = Image.fromarray(getattr(data, name)())
    size = (round(original.width * HEIGHT / original.height), HEIGHT)
    grey = original.convert("L")
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    pictures = [("grey", grey.convert("RGB"))]
    for seed in SEEDS:
        result = pipe(grey, generator=torch.Generator().manual_seed(seed)).images[0]
        pictures.append((f"seed {seed}", result))
    pictures.append(
        ("original", original) if original.mode == "RGB" else ("no colour original", Image.new("RGB", size))
    )
    return [(caption, picture.resize(size, Image.Resampling.LANCZOS)) for caption, picture in pictures]


def sheet(columns: list[list[tuple[str, Image.Image]]], *, height: int = HEIGHT) -> Image.Image:
    """Photos beside one another, their pictures below one another."""
    width = sum(pictures[0][1].width + GAP for pictures in columns) - GAP
    rows = len(columns[0])
    result = Image.new("RGB", (width, rows * (height + CAPTION)), "white")
    draw, left = ImageDraw.Draw(result), 0
    for pictures in columns:
        for row, (caption, picture) in enumerate(pictures):
            top = row * (height + CAPTION)
            if np.asarray(picture).any():
                result.paste(picture, (left, top + CAPTION))
            draw.text((left + 2, top + 3), caption, fill="black")
        left += pictures[0][1].width + GAP
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/results.jpg"), help="file for the picture")
    args = parser.parse_args()
    args.output.parent.mkdir(exist_ok=True)
    sheet([column(name) for name in PHOTOS]).save(args.output, quality=90)
    print(args.output)


if __name__ == "__main__":
    main()
