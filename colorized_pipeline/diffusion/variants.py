"""Several colourings of one photo: which is the most typical, what they agree on, how far they differ.

Chroma is a*, b* in CIELAB units, ``[N, 2, ...]`` for N colourings. A difference is ΔE*ab (CIE 1976) at equal
lightness: the distance between two points (a*, b*).
"""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SAME = 0.1  # ΔE*ab that rounding leaves between equal colours
CONSENSUS_VARIANTS = 8  # how many are drawn when they are compared and no number is given


def order_by_typicality(chroma: "torch.Tensor") -> list[int]:
    """Indices from the most typical colouring, the medoid, outwards: by their mean ΔE*ab to all the others.

    Args:
        chroma: ``[N, 2, ...]``. Of equal distances the earlier comes first.
    """
    import torch  # here, so that numbers of variants are checked without it

    distances = torch.stack([(chroma - one).norm(dim=1).mean() for one in chroma.double()])
    return distances.argsort(stable=True).tolist()


def spread(chroma: "torch.Tensor") -> "torch.Tensor":
    """How far N >= 2 colourings ``[N, 2, ...]`` differ in each place, ``[...]``, in ΔE*ab.

    It is their root mean square distance from their mean, over N - 1 (a sample's standard deviation, so that it
    doesn't grow with N). If the colourings are draws from what the true colour may be, the true colour's root mean
    square distance is ``spread * sqrt(1 + 1 / N)`` from their mean and ``spread * sqrt(2)`` from any one of them.
    """
    if len(chroma) < 2:
        raise ValueError(f"chroma holds {len(chroma)} colouring; a spread needs at least 2")
    return chroma.var(dim=0, correction=1).sum(dim=0).sqrt()


def state_uncertainty(
    spread: "torch.Tensor", lightness: "torch.Tensor", fit: Sequence[float] | None = None
) -> "torch.Tensor":
    """How far off the true colour may be where colourings differ by ``spread`` ``[...]``: a standard deviation, ΔE*ab.

    The network is surer of itself than it is right, and where its colourings agree they can all be wrong. So the
    variance is ``floor * 4 L* (100 - L*) / 100² + factor * spread²``: black and white have no colour to be wrong in.
    Where all colourings are the same, the colour is known and not drawn: a hint gave it, or a border stays grey.

    Args:
        lightness: L* ``[...]``.
        fit: (floor, factor), found on photos whose colours are known, see
            ``colorized_pipeline.evaluation.calibration.fit_uncertainty``. Without it the spread is stated as it is.
    """
    if fit is None:
        return spread
    floor, factor = fit
    drawn = spread > _SAME
    return (drawn * floor * room_for_color(lightness) + factor * spread.square()).sqrt()


def room_for_color(lightness: "torch.Tensor") -> "torch.Tensor":
    """0 at L* 0 and 100, where sRGB has no colours but black and white, 1 at L* 50: a parabola."""
    return 4 * lightness.clamp(0, 100) * (100 - lightness.clamp(0, 100)) / 100**2


def count_variants(num_variants: int | None, *, consensus: str | None, uncertainty: bool) -> int:
    """How many colourings are drawn of a photo: as many as asked for, or enough to tell what they agree on.

    Raises:
        ValueError: for a consensus of an unknown kind, and if one colouring is asked for and what needs several.
    """
    if consensus not in (None, "mean", "medoid"):
        raise ValueError(f"consensus must be 'mean' or 'medoid', got {consensus!r}")
    needs_several = uncertainty or consensus is not None
    if num_variants is None:
        return CONSENSUS_VARIANTS if needs_several else 1
    if needs_several and num_variants == 1:
        raise ValueError(
            "num_variants=1 (--variants 1) is one colouring, which has no uncertainty or consensus; "
            f"give at least 2, or leave it out for {CONSENSUS_VARIANTS}"
        )
    return check_count("num_variants", num_variants)


def choose_variants(variants: int | None, *, consensus: str | None, uncertainty: bool) -> tuple[int, str]:
    """How many colourings are drawn, and what is kept of them: ``"medoid"``, ``"mean"``, or all if empty.

    A map of uncertainty alone comes with the most typical colouring.
    """
    kept = consensus or ("medoid" if uncertainty and variants is None else "")
    return count_variants(variants, consensus=kept or None, uncertainty=uncertainty), kept


def has_variants(config: Any, *, steps: int) -> bool:
    """Whether seeds give different pictures, by a pipeline's config and the number of denoising steps.

    A regression gives one picture, and so does one step from the mean of the noise.
    """
    return config.objective == "diffusion" and (steps > 1 or config.get("initial_noise", 1.0) > 0)


def check_variants(config: Any, variants: int, *, steps: int) -> None:
    """Raises ``ValueError`` if several variants are asked for and all would be the same picture."""
    if variants > 1 and config.objective == "regression":
        raise ValueError(
            f"this checkpoint is a regression, which predicts one colouring: {variants} variants would be equal"
        )
    if variants > 1 and not has_variants(config, steps=steps):
        raise ValueError(
            f"{variants} variants in 1 step would be equal: this checkpoint starts from the mean of the noise, and "
            "noise comes in with the steps after; give 2 steps or more (--steps, num_inference_steps), or 1 variant"
        )


def check_count(name: str, value: int) -> int:
    """``value`` as an int, NumPy's whole numbers too. Raises ``ValueError`` unless it is whole and at least 1."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return count
