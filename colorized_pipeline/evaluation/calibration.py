"""Is the stated uncertainty true? Stated against actual errors: ranks, the factor between, and a fit. No model here.

What is stated is a standard deviation, so it is compared with root mean square errors: if the true colour were one
more draw from what the variants are drawn from, it would lie ``spread * sqrt(1 + 1 / N)`` from the mean of N variants,
root mean square (:func:`colorized_pipeline.diffusion.variants.spread`).
"""

import torch

from ..diffusion.variants import room_for_color

_ROUNDS = 20


def rank_correlation(stated: torch.Tensor, actual: torch.Tensor) -> float:
    """Spearman's rank correlation of two ``[N]``: 1 if larger spreads always go with larger errors, 0 if none do."""
    from torchmetrics.functional.regression import spearman_corrcoef

    return float(spearman_corrcoef(stated.double(), actual.double()))


def within_photos(stated: torch.Tensor, actual: torch.Tensor) -> float:
    """Mean over photos of the rank correlation inside each, of ``[N, ...]``: does the map know *where* it is wrong?"""
    values = [rank_correlation(one.flatten(), other.flatten()) for one, other in zip(stated, actual, strict=True)]
    return sum(values) / len(values)


def overconfidence(stated: torch.Tensor, squared_error: torch.Tensor, *, variants: int) -> float:
    """The factor by which errors are larger than stated, over all places: 1 is calibrated, 2 is twice too sure."""
    return (squared_error.mean() / (1 + 1 / variants) / stated.square().mean()).sqrt().item()


def fit_uncertainty(
    spread: torch.Tensor, lightness: torch.Tensor, squared_error: torch.Tensor, *, variants: int
) -> tuple[float, float]:
    """The two numbers of :func:`~colorized_pipeline.diffusion.variants.state_uncertainty` that fit these places best.

    Least squares of squared errors, each weighted by its own expected size (quasi-likelihood, McCullagh & Nelder 1989,
    ch. 9, whose variance grows with the mean), so that the largest errors don't decide alone. Neither is below 0.

    Args:
        spread, lightness, squared_error: ``[...]`` of each place: how far N ``variants`` differ, L*, and the squared
            distance of the truth from their mean.
    """
    known = torch.stack((room_for_color(lightness), spread.square()), dim=-1).flatten(0, -2).double()
    wanted = squared_error.flatten().double() / (1 + 1 / variants)
    weight = torch.ones_like(wanted)
    for _ in range(_ROUNDS):
        weighted = known * weight[:, None]
        found = torch.linalg.solve(weighted.T @ known, weighted.T @ wanted).clamp(min=0)
        weight = 1 / (known @ found).clamp(min=1)
    floor, factor = found.tolist()
    return floor, factor
