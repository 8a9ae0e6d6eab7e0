"""Make the picture of the README from the shipped checkpoint and the example photographs of the package.

python scripts/make_figures.py          (or: make figures)
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from colorized_pipeline import EXAMPLES, load_default
from colorized_pipeline.batch.sheets import paint_sheet

PHOTOS = ("nurse", "family", "street", "astronaut")
SEEDS = (0, 1)
HEIGHT = 240


def column(name: str) -> list[tuple[str, Image.Image]]:
    """Captioned pictures of one photo: grey, and one result a seed."""
    photo = next(path for path in EXAMPLES if path.stem == name)
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    pictures = [("grey", Image.open(photo).convert("RGB"))]
    for seed in SEEDS:
        result = pipe(photo, generator=torch.Generator().manual_seed(seed)).images[0]
        pictures.append((f"seed {seed}", result))
    size = (round(result.width * HEIGHT / result.height), HEIGHT)
    return [(caption, picture.resize(size, Image.Resampling.LANCZOS)) for caption, picture in pictures]


def sheet(columns: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Photos beside one another, their pictures below one another, captioned."""
    rows = list(zip(*columns, strict=True))
    return paint_sheet(
        [[picture for _, picture in row] for row in rows], captions=[[caption for caption, _ in row] for row in rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/results.jpg"), help="file for the picture")
    args = parser.parse_args()
    args.output.parent.mkdir(exist_ok=True)
    sheet([column(name) for name in PHOTOS]).save(args.output, quality=90)
    print(args.output)


if __name__ == "__main__":
    main()
