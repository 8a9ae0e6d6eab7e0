"""How exactly lightness and size survive colorization, for photos of several shapes; prints a markdown table.

python scripts/measure_lightness.py --photos 'photos/*.parquet'

The error is what a reader of the saved 8-bit picture finds: rounding included.
"""

import argparse

import numpy as np
import torch

from colorized_pipeline import load_default
from colorized_pipeline.diffusion.color import gray_to_lightness, lightness_to_gray, rgb_to_lab
from colorized_pipeline.training.data import ColorizationDataset
from colorized_pipeline.training.sources import open_source

# name -> height and width cut from the middle of a photo of at least 150 x 150 pixels
SHAPES = {"1 : 1": (150, 150), "3 : 1": (50, 150), "1 : 3": (150, 50), "1 x 1 pixel": (1, 1), "1 x 150": (1, 150)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True, help="a folder, or parquet files")
    parser.add_argument("--limit", type=int, default=400, help="at most this many photos")
    parser.add_argument("--steps", type=int, help="denoising steps; the checkpoint's default if not given")
    args = parser.parse_args()

    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    source = open_source(args.photos)
    chosen = range(min(args.limit, len(source)))
    photos = ColorizationDataset(source, resolution=150, luma_factor=1, augment=False, indices=chosen)
    print(f"{len(photos)} photos, {args.steps or pipe.config.default_steps} steps, seed 0\n")
    print("| shape | mean absolute L* error | largest of a photo's means | same size |\n| --- | --- | --- | --- |")
    for name, (height, width) in SHAPES.items():
        top, left = (150 - height) // 2, (150 - width) // 2
        grays = []
        for index in range(len(photos)):
            lightness = photos.lab(index)[0, top : top + height, left : left + width]
            grays.append((lightness_to_gray(lightness) * 255).round().clamp(0, 255).to(torch.uint8).numpy())
        images = pipe(
            grays, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0), batch_size=32
        ).images
        errors = []
        for gray, image in zip(grays, images, strict=True):
            expected = gray_to_lightness(torch.from_numpy(gray).float() / 255)
            found = rgb_to_lab(torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255)[0]
            errors.append((found - expected).abs().mean().item())
        same = all(image.size == (width, height) for image in images)
        print(f"| {name} | {np.mean(errors):.3f} | {max(errors):.3f} | {'yes' if same else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
