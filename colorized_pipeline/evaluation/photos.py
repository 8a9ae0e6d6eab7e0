"""The true photos that colours are judged by: square crops, and whether each is a face or has a class.

Every photo is read once, its shorter side is scaled by an antialiased filter, and the central square is cut out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..training.data import CROP_MARGIN
from ..training.film import draw_film, photograph
from ..training.index import NEARLY_GRAY, Fit
from ..training.sources import PhotoSource, decode_lab8

SHARP_REDUCTION = 2  # a photo is scaled down at least so many times to count as sharp

# ImageNet's classes behind the column "subject" of photos whose "source" is imagenette160. "object" stands for two
# of the ten.
IMAGENETTE = {
    "animal (fish, often held by a person)": (0,),  # tench
    "animal": (217,),  # English springer
    "object": (482, 574),  # cassette player, golf ball
    "object (chain saw, often with a person)": (491,),
    "building": (497,),  # church
    "person (French horn)": (566,),
    "vehicle": (569,),  # garbage truck
    "street": (571,),  # gas pump
    "outdoor (parachute)": (701,),
}
FACES = "utkface"  # "source" of faces that fill their photo


@dataclass(frozen=True)
class PhotoSet:
    """True photos of one size.

    Attributes:
        name: of the set, for the report.
        truth: CIELAB ``[N, 3, R, R]``.
        classes: a photo's classes of ImageNet's 1,000, any of which is right; empty where it isn't known.
        faces: whether the photo is a face.
        groups: a label a photo, if a column of labels was named.
        sides: a photo's shorter side in pixels before it was scaled.
        crop: how the crops were made, in words.
        left_out: photos that couldn't be used, by name, with the reason.
        source, indices: where the photos come from, and which of it these are.
    """

    name: str
    truth: torch.Tensor
    classes: tuple[tuple[int, ...], ...]
    faces: tuple[bool, ...]
    groups: tuple[str, ...] | None
    sides: tuple[int, ...]
    crop: str
    left_out: tuple[str, ...]
    source: PhotoSource
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def resolution(self) -> int:
        """Edge of the crops in pixels."""
        return self.truth.shape[-1]

    @property
    def lightness(self) -> torch.Tensor:
        """What a model is given: L* ``[N, 1, R, R]``."""
        return self.truth[:, :1]

    def take(self, chosen: Sequence[int]) -> "PhotoSet":
        """Some of the photos, by their places in the set."""
        known: dict[str, Any] = {
            name: getattr(self, name) for name in ("classes", "faces", "groups", "sides", "indices")
        }
        some: dict[str, Any] = {
            name: values and tuple(values[place] for place in chosen) for name, values in known.items()
        }
        return replace(self, truth=self.truth[list(chosen)], **some)

    def through_film(self, *, seed: int) -> torch.Tensor:
        """L* ``[N, 1, R, R]`` of the photos as an old film saw them, each by a film of its own."""
        rngs = [np.random.default_rng((seed, index)) for index in range(len(self))]
        return torch.stack([photograph(lab, draw_film(rng), rng) for lab, rng in zip(self.truth, rngs, strict=True)])

    def large(self, least: int, *, count: int) -> list[torch.Tensor]:
        """Central squares of up to ``count`` photos of at least ``least`` pixels, spread over the set, unscaled.

        CIELAB ``[3, S, S]`` each, S the photo's shorter side.
        """
        enough = [index for index, side in zip(self.indices, self.sides, strict=True) if side >= least]
        chosen = enough[:: max(1, len(enough) // count)][:count]
        return [decode_lab8(_central(lab8, min(lab8.shape[-2:]))) for lab8 in map(self.source.load, chosen)]


def read_photos(
    source: PhotoSource,
    *,
    name: str,
    resolution: int = 128,
    sharp: bool = False,
    group_column: str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> PhotoSet:
    """The central crops of the colour photos of a source.

    Args:
        source: the photos. Unreadable and nearly grey ones are left out.
        name: of the set.
        resolution: edge of the crops in pixels.
        sharp: scale the shorter side to the crop's edge, and leave out photos that aren't scaled down
            SHARP_REDUCTION times: what is left has chroma as fine as its lightness. Otherwise the shorter side is
            scaled to CROP_MARGIN times the crop's edge, as in training.
        group_column: column with a label a photo.
        limit: only the first so many photos.
        progress: show a bar.

    Raises:
        ValueError: if fewer than two photos can be used, or there is no such column.
    """
    side = resolution if sharp else round(resolution * CROP_MARGIN)
    crops, kept, sides, left_out = [], [], [], []
    candidates = range(len(source) if limit is None else min(limit, len(source)))
    for index in tqdm(candidates, desc="reading photos", unit="photo", disable=not progress):
        try:
            lab8 = source.load(index)
            if sharp and min(lab8.shape[-2:]) < SHARP_REDUCTION * resolution:
                raise ValueError(f"under {SHARP_REDUCTION * resolution} pixels")
            if decode_lab8(lab8)[1:].norm(dim=0).mean() < NEARLY_GRAY:
                raise ValueError("nearly grey")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            left_out.append(f"{source.name(index)} ({error})")
            continue
        crops.append(decode_lab8(_central(Fit(side)(lab8), resolution)))
        kept.append(index)
        sides.append(min(lab8.shape[-2:]))
    if len(crops) < 2:
        raise ValueError(f"{name}: {len(crops)} usable colour photos, at least 2 are needed; left out: {left_out[:5]}")
    sources, subjects = (_labels(source, column, kept) for column in ("source", "subject"))
    return PhotoSet(
        name=name,
        truth=torch.stack(crops),
        classes=tuple(
            IMAGENETTE.get(subject, ()) if origin == "imagenette160" else ()
            for origin, subject in zip(sources, subjects, strict=True)
        ),
        faces=tuple(origin == FACES for origin in sources),
        groups=tuple(source.labels(group_column, kept)) if group_column else None,
        sides=tuple(sides),
        crop=f"central {resolution} x {resolution} crops, shorter side scaled to {side}",
        left_out=tuple(left_out),
        source=source,
        indices=tuple(kept),
    )


def _labels(source: PhotoSource, column: str, kept: Sequence[int]) -> list[str]:
    """What a column says, or nothing where there is no such column."""
    try:
        return source.labels(column, kept)
    except ValueError:
        return [""] * len(kept)


def _central(lab8: torch.Tensor, edge: int) -> torch.Tensor:
    """The central square ``[3, edge, edge]``."""
    top, left = (lab8.shape[-2] - edge) // 2, (lab8.shape[-1] - edge) // 2
    return lab8[:, top : top + edge, left : left + edge]
