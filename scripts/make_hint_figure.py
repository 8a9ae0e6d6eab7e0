"""Make the picture of docs/how-to/hints.md: a photo that scikit-image ships, without hints and with hints.

python scripts/make_hint_figure.py          (or: make figures)
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from make_figures import sheet
from PIL import Image, ImageDraw
from skimage import data

from colorized_pipeline import load_default

EDGE = 300
PLACE = (210, 420, 24)  # x, y, radius on the lawn
SKY = (60, 60, 24)
COLORS = ("#8a6b3a", "#5f8f3a")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/hints.jpg"), help="file for the picture")
    args = parser.parse_args()
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    gray = Image.fromarray(data.camera())

    def colorize(**arguments: Any) -> Image.Image:
        return pipe(gray, generator=torch.Generator().manual_seed(0), **arguments).images[0]

    pictures = [("no hint", colorize())]
    for color in COLORS:
        hints = [(PLACE, color), (SKY, "lightskyblue")]
        result = colorize(hints=hints)
        draw = ImageDraw.Draw(result)
        for x, y, radius in (PLACE, SKY):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="white", width=3)
        pictures.append((f"hints: ground {color}, sky lightskyblue", result))
    small = [(caption, picture.resize((EDGE, EDGE), Image.Resampling.LANCZOS)) for caption, picture in pictures]
    sheet([[one] for one in small]).save(args.output, quality=90)
    print(args.output)


if __name__ == "__main__":
    main()
