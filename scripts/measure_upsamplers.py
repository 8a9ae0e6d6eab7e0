"""Measure how chroma is best brought from its coarse grid to full size; prints a markdown table.

    python scripts/measure_upsamplers.py                     scikit-image's colour photos, and more given as files

The true chroma of colour photos is averaged to a grid of 32 cells along the shorter side and brought back by each
method, with the true full-size lightness as guide; the table has the colour difference that is left (CIE76: lightness
is equal). ``--crops FOLDER`` also writes the methods side by side at 100 %.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data as skimage_data

from colorized_pipeline.diffusion.color import (
    downsample_chroma,
    lab_to_rgb8,
    rgb_to_lab,
    upsample_columns,
    upsample_rows,
)

CELLS = 32
PHOTOS = ("astronaut", "coffee", "rocket", "chelsea")


def bilinear(grid: torch.Tensor, lightness: torch.Tensor, cell: int) -> torch.Tensor:
    """What the pipeline does: ``[2, h, w]`` to ``[2, h * cell, w * cell]``."""
    columns = upsample_columns(grid, lightness.shape[-1], cell)
    return upsample_rows(columns, 0, lightness.shape[-2], cell)


def guided(grid: torch.Tensor, lightness: torch.Tensor, cell: int, *, radius: int = 1, eps: float = 25.0):
    """Fast guided filter (He & Sun 2015): chroma as a linear function of lightness around each cell."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x[None], (radius,) * 4, mode="replicate")
        return F.avg_pool2d(padded, 2 * radius + 1, stride=1)[0]

    small = F.avg_pool2d(lightness, cell)
    variance = mean(small**2) - mean(small) ** 2
    slope = (mean(small * grid) - mean(small) * mean(grid)) / (variance + eps)
    offset = mean(grid) - slope * mean(small)
    return bilinear(mean(slope), lightness, cell) * lightness + bilinear(mean(offset), lightness, cell)


def joint_bilateral(grid: torch.Tensor, lightness: torch.Tensor, cell: int, *, space: float = 0.7, tone: float = 10.0):
    """Joint bilateral upsampling (Kopf et al. 2007) over the 5 x 5 nearest cells; ``tone`` in L*."""
    small = F.pad(torch.cat((F.avg_pool2d(lightness, cell), grid))[None], (2,) * 4, mode="replicate")[0]
    height, width = grid.shape[-2:]
    inside = (torch.arange(cell) + 0.5) / cell - 0.5  # from a cell's middle
    rows, columns = inside.repeat(height).unsqueeze(-1), inside.repeat(width)
    total, weights = torch.zeros(2, *lightness.shape[-2:]), torch.zeros_like(lightness)
    for down in range(-2, 3):
        for right in range(-2, 3):
            shifted = small[:, 2 + down : 2 + down + height, 2 + right : 2 + right + width]
            large = F.interpolate(shifted[None], scale_factor=cell, mode="nearest")[0]
            distance = ((down - rows) ** 2 + (right - columns) ** 2) / space**2
            weight = torch.exp(-0.5 * (distance + ((large[:1] - lightness) / tone) ** 2)) + 1e-12
            total, weights = total + weight * large[1:], weights + weight
    return total / weights


METHODS = {"bilinear": bilinear, "guided filter": guided, "joint bilateral": joint_bilateral}


def load(photo: np.ndarray, size: int) -> torch.Tensor:
    """A colour photo as CIELAB ``[3, H, W]``, its shorter side ``size`` pixels, cut to whole cells."""
    image = Image.fromarray(photo[..., :3])
    scale = size / min(image.size)
    image = image.resize([round(edge * scale) for edge in image.size], Image.Resampling.LANCZOS)
    cell = size // CELLS
    width, height = (edge // cell * cell for edge in image.size)
    pixels = torch.from_numpy(np.array(image.crop((0, 0, width, height)))).movedim(-1, 0) / 255
    return rgb_to_lab(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="*", help="more colour photos")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="shorter side, pixels")
    parser.add_argument("--crops", type=Path, help="folder for crops at 100 %%")
    args = parser.parse_args()
    photos = {name: getattr(skimage_data, name)() for name in PHOTOS}
    photos |= {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in args.photos}
    print("| photo | size | " + " | ".join(f"{name}: mean, 95 %" for name in METHODS) + " |")
    print("| --- " * (2 + len(METHODS)) + "|")
    spent = dict.fromkeys(METHODS, 0.0)
    pixels = 0
    for size in args.sizes:
        sums = []
        for name, photo in photos.items():
            lab, cell = load(photo, size), size // CELLS
            grid, found = downsample_chroma(lab[None, 1:], cell)[0], []
            pixels += lab[0].numel()
            for method, upsample in METHODS.items():
                started = time.process_time()
                chroma = upsample(grid, lab[:1], cell)
                spent[method] += time.process_time() - started
                error = (chroma - lab[1:]).norm(dim=0)
                found.append((error.mean().item(), error.flatten()[::7].quantile(0.95).item()))
                if args.crops:
                    args.crops.mkdir(parents=True, exist_ok=True)
                    rgb = lab_to_rgb8(torch.cat((lab[:1], chroma)))[..., :3].numpy()
                    top, left = rgb.shape[0] // 4, rgb.shape[1] // 3
                    crop = Image.fromarray(np.ascontiguousarray(rgb[top : top + 300, left : left + 300]))
                    crop.save(args.crops / f"{name}-{size}-{method.replace(' ', '-')}.png")
            sums.append(found)
            print_row(name, size, found)
        print_row("all", size, np.mean(sums, axis=0).tolist())
    costs = ", ".join(f"{name} {spent[name] / pixels * 1e9:.0f} ms" for name in METHODS)
    print(f"\nprocessor time a megapixel: {costs}")


def print_row(name: str, size: int, found: list) -> None:
    print(f"| {name} | {size} | " + " | ".join(f"{mean:.2f}, {most:.2f}" for mean, most in found) + " |", flush=True)


if __name__ == "__main__":
    main()
