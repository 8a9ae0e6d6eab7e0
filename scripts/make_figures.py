"""Make the pictures of README and docs/how-to/hints.md from the shipped checkpoint.

python scripts/make_figures.py          (or: make figures)
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from skimage import data

from colorized_pipeline import EXAMPLES, ColorizationPipeline, load_default
from colorized_pipeline.batch.sheets import paint_sheet

PHOTOS = ("nurse", "family", "street", "astronaut")
SEEDS = (0, 1)
HEIGHT = 240
HINTED_EDGE = 300
PLACE = (210, 420, 24)  # x, y, radius on the lawn
SKY = (60, 60, 24)
COLORS = ("#8a6b3a", "#5f8f3a")

Column = list[tuple[str, Image.Image]]


def colorize(pipe: ColorizationPipeline, photo: Path | Image.Image, seed: int, **options: Any) -> Image.Image:
    return pipe(photo, generator=torch.Generator().manual_seed(seed), **options).images[0]


def seeds_column(pipe: ColorizationPipeline, name: str) -> Column:
    """Captioned pictures of an example photo: grey, and one result a seed."""
    photo = next(path for path in EXAMPLES if path.stem == name)
    results = [(f"seed {seed}", colorize(pipe, photo, seed)) for seed in SEEDS]
    return [("grey", Image.open(photo).convert("RGB")), *results]


def hints_row(pipe: ColorizationPipeline) -> list[Column]:
    """A photo that scikit-image ships, without hints and with hints."""
    gray = Image.fromarray(data.camera())
    pictures = [("no hint", colorize(pipe, gray, 0))]
    for color in COLORS:
        result = colorize(pipe, gray, 0, hints=[(PLACE, color), (SKY, "lightskyblue")])
        draw = ImageDraw.Draw(result)
        for x, y, radius in (PLACE, SKY):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="white", width=3)
        pictures.append((f"hints: ground {color}, sky lightskyblue", result))
    return [[picture] for picture in pictures]


def sheet(columns: list[Column], *, height: int) -> Image.Image:
    """Photos beside one another, their pictures below one another, captioned, of one height."""
    rows = list(zip(*columns, strict=True))
    sizes = [(round(one[-1][1].width * height / one[-1][1].height), height) for one in columns]
    tiles = [
        [picture.resize(size, Image.Resampling.LANCZOS) for (_, picture), size in zip(row, sizes, strict=True)]
        for row in rows
    ]
    return paint_sheet(tiles, captions=[[caption for caption, _ in row] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="folder for the pictures")
    folder = parser.parse_args().output
    folder.mkdir(exist_ok=True)
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    sheet([seeds_column(pipe, name) for name in PHOTOS], height=HEIGHT).save(folder / "results.jpg", quality=90)
    sheet(hints_row(pipe), height=HINTED_EDGE).save(folder / "hints.jpg", quality=90)
    print(folder / "results.jpg", folder / "hints.jpg", sep="\n")


if __name__ == "__main__":
    main()
