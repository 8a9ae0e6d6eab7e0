"""How far a layered file's picture, recombined by other programs, is from the colour copy.

python benchmarks/layers.py COLOURS SCANS
"""

import sys
from pathlib import Path

import numpy as np
from skimage import color as skimage_color

from colorized_pipeline.archive.scans import open_scan
from colorized_pipeline.publish.results import find_results, read_picture

_LUMA = np.array([0.3, 0.59, 0.11])  # of the mode "color" in PSD and OpenRaster


def recombined(base: np.ndarray, color: np.ndarray) -> np.ndarray:
    """The mode "color" as W3C's Compositing and Blending Level 1 defines it, of pictures ``[H, W, 3]`` in [0, 1].

    Hue and saturation are those of ``color``, the luminosity that of ``base``.
    """
    shifted = color + ((base - color) @ _LUMA)[..., None]
    luma = (shifted @ _LUMA)[..., None]
    low, high = shifted.min(axis=-1, keepdims=True), shifted.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = np.where(low < 0, luma + (shifted - luma) * luma / (luma - low), shifted)
        return np.where(high > 1, luma + (shifted - luma) * (1 - luma) / (high - luma), shifted)


def mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean CIEDE2000 of two pictures ``[H, W, 3]`` in [0, 1]."""
    return float(skimage_color.deltaE_ciede2000(skimage_color.rgb2lab(first), skimage_color.rgb2lab(second)).mean())


def measure(colors: Path, scans: Path) -> list[float]:
    """The difference of each photo's recombined picture from its colour copy."""
    differences = []
    for result in find_results(colors, scans)[0]:
        ours, gray = read_picture(result.copies[0].file), open_scan(result.scan).read_page()
        ours, gray = ours / np.iinfo(ours.dtype).max, gray / np.iinfo(gray.dtype).max
        differences.append(mean_difference(recombined(gray[..., None].repeat(3, axis=2), ours), ours))
    return differences


if __name__ == "__main__":
    found = measure(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{len(found)} photos: mean CIEDE2000 {np.mean(found):.2f}, largest of a photo {max(found):.2f}")
