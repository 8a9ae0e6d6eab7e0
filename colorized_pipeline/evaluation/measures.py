"""What is measured of every row of a report: MEASURES is the list. Knows photos, not models."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from ..diffusion.color import lab_to_rgb, rgb_to_lab
from .colors import (
    SKIN_TOLERANCE,
    chroma_ratio,
    colourfulness,
    delta_e,
    gray_baseline,
    hue_error,
    in_batches,
    lightness_error,
    psnr,
    skin_colors,
    skin_within,
    ssim,
    stray_color,
    thirds,
)
from .distances import (
    ImageNetFeatures,
    feature_distance,
    feature_statistics,
    frechet_distance,
    kernel_distance,
)
from .photos import PhotoSet

Figures = dict[str, float]


@dataclass(frozen=True)
class Shown:
    """Photos as one row shows them: sRGB and CIELAB ``[N, 3, R, R]``, features ``[N, D]`` by network.

    ``named`` is the class of ImageNet that Lite2 names, ``[N]``.
    """

    rgb: torch.Tensor
    lab: torch.Tensor
    features: dict[str, torch.Tensor]
    named: torch.Tensor

    def take(self, chosen: torch.Tensor) -> "Shown":
        """Of the photos those with the indices ``chosen``."""
        features = {network: values[chosen] for network, values in self.features.items()}
        return Shown(self.rgb[chosen], self.lab[chosen], features, self.named[chosen])


@dataclass(frozen=True)
class Case:
    """What a measure is computed from: a row's photos, the same in true colours and in grey, and what they are.

    Attributes:
        row, truth, gray: the photos.
        classes: each photo's right classes, or none where they aren't known.
        faces: indices of the faces.
        figures: what was measured of this row before.
        gray_figures: what was measured of the grey row before.
    """

    row: Shown
    truth: Shown
    gray: Shown
    classes: Sequence[Sequence[int]]
    faces: torch.Tensor
    figures: Figures
    gray_figures: Figures

    def frechet(self, network: str) -> float:
        """Fréchet distance to the true photos."""
        return frechet_distance(*(feature_statistics(one.features[network]) for one in (self.row, self.truth)))

    def kernel(self, network: str) -> float:
        """Kernel distance to the true photos."""
        return kernel_distance(self.row.features[network], self.truth.features[network])

    def closed(self, distance: str) -> float:
        """The part of the way from grey to truth: 1 - distance / grey's distance."""
        return 1 - self.figures[distance] / self.gray_figures[distance]

    def own_distance(self, network: str) -> float:
        """Squared feature distance to each photo's own truth, over the grey photo's."""
        own, gray, true = (one.features[network] for one in (self.row, self.gray, self.truth))
        return feature_distance(own, true) / feature_distance(gray, true)

    def mean(self, measure: Callable[..., torch.Tensor], part: str) -> float:
        """Mean over photos of a measure that compares each with its truth; ``part`` is ``"rgb"`` or ``"lab"``."""
        return in_batches(measure, getattr(self.row, part), getattr(self.truth, part)).mean().item()

    def over_truth(self, measure: Callable[[torch.Tensor], torch.Tensor], part: str) -> float:
        """Mean over photos of a measure of one photo, over the same mean of the true photos."""
        own, true = (in_batches(measure, getattr(one, part)).mean() for one in (self.row, self.truth))
        return (own / true).item()

    def skin(self, measure: Callable[[torch.Tensor, torch.Tensor], float], third: str = "") -> float:
        """A measure of the faces' mean colours; of one third of the faces by true L*, if it is named."""
        own, true = (skin_colors(one.lab[self.faces]) for one in (self.row, self.truth))
        chosen = thirds(true[:, 0])[third] if third else torch.arange(len(true))
        return measure(own[chosen], true[chosen])

    def top1(self) -> float:
        """Of the photos whose class is known the share whose class Lite2 names."""
        known = [int(named) in right for named, right in zip(self.row.named, self.classes, strict=True) if right]
        return sum(known) / len(known)


@dataclass(frozen=True)
class Column:
    """A number in a table: its name in report.json, its column's head and how it is written in report.md."""

    key: str
    head: str
    form: str


@dataclass(frozen=True)
class Measure(Column):
    """One number of a row.

    Attributes:
        compute: the number.
        needs: network whose features it needs, or ``"classes"`` or ``"faces"``: photos of which these are known.
        table: the table of report.md that shows it.
    """

    compute: Callable[[Case], float]
    needs: str = ""
    table: str = "colours"


def _distances(network: str) -> tuple[Measure, ...]:
    name, fd, kid = network.capitalize(), f"fd_{network}", f"kid_{network}"
    measure = partial(Measure, needs=network, table="distances")
    return (
        measure(fd, f"FD-{name} ↓", "{:.1f}", lambda c: c.frechet(network)),
        measure(f"closed_{network}", "closed ↑", "{:.3f}", lambda c: c.closed(fd)),
        measure(kid, f"KID-{name} ↓", "{:.4f}", lambda c: c.kernel(network)),
        measure(f"kid_closed_{network}", "closed ↑", "{:.3f}", lambda c: c.closed(kid)),
    )


def _skin(third: str) -> tuple[Measure, ...]:
    measure = partial(Measure, needs="faces", table="faces")
    key, name = f"_{third}" if third else "", third or "all"
    return (
        measure(
            f"skin_within{key}", f"{name}: within {SKIN_TOLERANCE:g} ↑", "{:.2f}", lambda c: c.skin(skin_within, third)
        ),
        measure(f"skin_hue_error{key}", f"{name}: hue error, ° ↓", "{:.0f}", lambda c: c.skin(hue_error, third)),
    )


MEASURES = (
    # Lite2 first: the model's own encoder is Lite0, so a distance in its space isn't independent
    *_distances("lite2"),
    Measure(
        "own_lite2", "to own truth ↓", "{:.3f}", lambda c: c.own_distance("lite2"), needs="lite2", table="distances"
    ),
    Measure("top1", "top-1 ↑", "{:.3f}", lambda c: c.top1(), needs="classes", table="distances"),
    *_distances("lite0"),
    Measure("colourfulness_ratio", "colourfulness / truth", "{:.2f}", lambda c: c.over_truth(colourfulness, "rgb")),
    Measure("stray_ratio", "stray / truth", "{:.2f}", lambda c: c.over_truth(stray_color, "lab")),
    Measure("delta_e", "ΔE2000 ↓", "{:.2f}", lambda c: c.mean(delta_e, "lab")),
    Measure("psnr", "PSNR, dB ↑", "{:.2f}", lambda c: c.mean(psnr, "rgb")),
    Measure("ssim", "SSIM ↑", "{:.3f}", lambda c: c.mean(ssim, "rgb")),
    Measure("lightness_error", "L* error ↓", "{:.2f}", lambda c: c.mean(lightness_error, "lab")),
    *(one for third in ("", "darker", "middle", "lighter") for one in _skin(third)),
    Measure(
        "skin_chroma_ratio", "chroma / truth", "{:.2f}", lambda c: c.skin(chroma_ratio), needs="faces", table="faces"
    ),
)


class Comparison:
    """Colours of a set of photos against the true ones, whose features are computed once.

    Args:
        photos: the true photos.
        networks: whose features are used; measures that need another one are left out.
        cache: folder that keeps features, see :class:`ImageNetFeatures`.
    """

    def __init__(
        self, photos: PhotoSet, *, networks: Sequence[str] = ("lite2", "lite0"), cache: Path | None = None
    ) -> None:
        self.photos = photos
        self._extractors = {network: ImageNetFeatures(network, cache=cache) for network in networks}
        self.truth = self.show(in_batches(lambda lab: lab_to_rgb(lab).clamp(0, 1), photos.truth), lab=photos.truth)
        self.gray = self.show(gray_baseline(photos.truth))

    def show(self, rgb: torch.Tensor, *, lab: torch.Tensor | None = None) -> Shown:
        """Photos in sRGB ``[N, 3, R, R]``, in the set's order, as their measures need them."""
        features = {network: extract(rgb) for network, extract in self._extractors.items()}
        named = self._extractors["lite2"].name_classes(features["lite2"])
        return Shown(rgb, in_batches(rgb_to_lab, rgb) if lab is None else lab, features, named)

    def case(self, row: Shown) -> Case:
        """What the measures of a row are computed from."""
        faces = torch.tensor([index for index, is_face in enumerate(self.photos.faces) if is_face])
        figures: Figures = {}
        grays = figures if row is self.gray else self.gray_figures
        return Case(row, self.truth, self.gray, self.photos.classes, faces, figures, grays)

    def figures(self, row: Shown) -> Figures:
        """All measures of a row that this set of photos allows."""
        case = self.case(row)
        possible = {"", *self._extractors}
        possible |= {"classes"} if any(self.photos.classes) else set()
        possible |= {"faces"} if len(case.faces) >= 3 else set()
        for measure in MEASURES:
            if measure.needs in possible:
                case.figures[measure.key] = measure.compute(case)
        return case.figures

    @cached_property
    def gray_figures(self) -> Figures:
        """All measures of the photos without their colour."""
        return self.figures(self.gray)

    def take(self, chosen: torch.Tensor) -> "Comparison":
        """The same of some of the photos alone, by their indices."""
        part = copy.copy(self)
        part.__dict__.pop("gray_figures", None)
        part.photos = self.photos.take(chosen.tolist())
        part.truth, part.gray = self.truth.take(chosen), self.gray.take(chosen)
        return part
