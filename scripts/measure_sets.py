"""How far two pictures of one scene differ in colour, each drawn for itself and the second tied to the first.

    python scripts/measure_sets.py --photos fine/test-*.parquet --count 24

The second picture is the same photo as another crop, as another print (lighter, other contrast, grain), and mirrored
and cropped, as a stand-in for the other side of a building. Differences are means of ΔE*ab at equal lightness over
places that both show.
"""

import argparse
import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from colorized_pipeline import load_pipeline
from colorized_pipeline.diffusion.photo import PreparedPhoto
from colorized_pipeline.sets.groups import likeness, summarize

_POINTS = 48  # along each edge, at which colours are compared


@dataclass(frozen=True)
class Second:
    """Another picture of a scene.

    Attributes:
        box: left, top, right and bottom of what it shows, over the first one's width and height.
        mirrored: left and right are exchanged.
        contrast, haze, grain: exponent of its values in [0, 1], grey laid over it, standard deviation of its noise.
    """

    box: tuple[float, float, float, float] = (0, 0, 1, 1)
    mirrored: bool = False
    contrast: float = 1.0
    haze: float = 0.0
    grain: float = 0.0

    def take(self, photo: Image.Image) -> Image.Image:
        """The picture, of a grey photo."""
        edges = [round(part * length) for part, length in zip(self.box, photo.size * 2, strict=True)]
        part = photo.crop((edges[0], edges[1], edges[2], edges[3]))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else part
        values = (np.asarray(part) / 255) ** self.contrast * (1 - 2 * self.haze) + self.haze
        noise = np.random.default_rng(0).normal(0, self.grain, values.shape)
        return Image.fromarray((np.clip(values + noise, 0, 1) * 255).round().astype(np.uint8))

    def difference(self, photos: list[PreparedPhoto], chroma: list[torch.Tensor]) -> float:
        """Mean distance of two chroma grids ``[2, h, w]`` at places that both photos show."""
        steps = (torch.arange(_POINTS) + 0.5) / _POINTS
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        left, top, right, bottom = self.box
        across = 1 - x if self.mirrored else x
        first = _sample(photos[0], chroma[0], left + across * (right - left), top + y * (bottom - top))
        return float((first - _sample(photos[1], chroma[1], x, y)).norm(dim=0).mean())


SECONDS = {
    "another crop": Second(box=(0.2, 0.1, 0.98, 0.88)),
    "another print": Second(contrast=1.35, haze=0.05, grain=0.03),
    "mirrored, cropped, lighter": Second(box=(0.15, 0.05, 1, 1), mirrored=True, contrast=0.85),
}


def _sample(photo: PreparedPhoto, chroma: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Colours at places given as parts of a photo's width and height."""
    top, left, bottom, right = photo.box
    x = x * (right - left) / photo.cell[1] / chroma.shape[-1]
    y = y * (bottom - top) / photo.cell[0] / chroma.shape[-2]
    return F.grid_sample(chroma[None], torch.stack((x, y), dim=-1)[None] * 2 - 1, align_corners=False)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="parquet file with a column image")
    parser.add_argument("--count", type=int, default=24, help="photos, evenly from the file")
    parser.add_argument("--checkpoint", help="pipeline folder; the one in the package if not given")
    arguments = parser.parse_args()
    pipe = load_pipeline(arguments.checkpoint, device="cpu")
    table = datasets.Dataset.from_parquet(str(arguments.photos)).cast_column("image", datasets.Image(decode=False))
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in SECONDS}
    unlike: list[float] = []
    before = None
    for number, index in enumerate(
        islice(range(0, len(table), max(1, len(table) // arguments.count)), arguments.count)
    ):
        photo = Image.open(io.BytesIO(table[index]["image"]["bytes"])).convert("L")
        first, seed = pipe.prepare(photo), 2 * number
        (chroma,) = pipe.draw(first, generators=[torch.Generator().manual_seed(seed)])
        seen = summarize(pipe, first)
        unlike += [likeness(before, seen)] if before is not None else []
        before = seen
        for name, one in SECONDS.items():
            second = pipe.prepare(one.take(photo))
            differences = []
            for ties in (None, [pipe.tie(second, first, chroma)]):
                (other,) = pipe.draw(second, generators=[torch.Generator().manual_seed(seed + 1)], ties=ties)
                differences.append(one.difference([first, second], [chroma, other]))
            found[name].append((*differences, likeness(seen, summarize(pipe, second))))
            mean = np.mean(found[name], axis=0)
            print(
                f"{name}, {len(found[name])} photos: apart {mean[0]:.2f}, tied {mean[1]:.2f}, tied over apart "
                f"{mean[1] / mean[0]:.2f}; least likeness {min(row[2] for row in found[name]):.2f}",
                flush=True,
            )
    print(f"likeness of {len(unlike)} pairs of other photos: at most {max(unlike, default=0):.2f}")


if __name__ == "__main__":
    main()
