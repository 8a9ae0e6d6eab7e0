"""Is the stated uncertainty true? Stated spreads against actual errors: ranks and reliability. No model in here.

A spread is a standard deviation, so it is compared with root mean square errors: if the true colour were one more draw
from what the variants are drawn from, it would lie ``spread * sqrt(1 + 1 / N)`` from the mean of N variants, root mean
square (:func:`colorized_pipeline.diffusion.variants.spread`).
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bin:
    """Places whose stated spreads are neighbours: how many, their spread and their error, both root mean square."""

    count: int
    stated: float
    actual: float


def rank_correlation(stated: torch.Tensor, actual: torch.Tensor) -> float:
    """Spearman's rank correlation of two ``[N]``: 1 if larger spreads always go with larger errors, 0 if none do."""
    from torchmetrics.functional.regression import spearman_corrcoef

    return float(spearman_corrcoef(stated.double(), actual.double()))


def bootstrap_interval(
    stated: torch.Tensor, actual: torch.Tensor, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of :func:`rank_correlation` over which photos were measured."""
    generator = torch.Generator().manual_seed(seed)
    rounds = (torch.randint(len(stated), (len(stated),), generator=generator) for _ in range(draws))
    values = torch.tensor([rank_correlation(stated[chosen], actual[chosen]) for chosen in rounds])
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def within_photos(stated: torch.Tensor, actual: torch.Tensor) -> float:
    """Mean over photos of the rank correlation inside each, of ``[N, ...]``: does the map know *where* it is wrong?"""
    values = [rank_correlation(one.flatten(), other.flatten()) for one, other in zip(stated, actual, strict=True)]
    return sum(values) / len(values)


def reliability(stated: torch.Tensor, squared_error: torch.Tensor, *, variants: int, bins: int = 10) -> list[Bin]:
    """Equally filled bins by stated spread.

    Args:
        stated: spreads, any shape.
        squared_error: squared distances of the truth from the mean of the variants, the same shape.
        variants: of how many variants; their mean's own error is taken out, so that ``actual == stated`` is perfect.
    """
    order = stated.flatten().argsort()
    parts = zip(stated.flatten()[order].chunk(bins), squared_error.flatten()[order].chunk(bins), strict=True)
    share = 1 + 1 / variants
    return [
        Bin(len(one), math.sqrt(one.square().mean().item()), math.sqrt(error.mean().item() / share))
        for one, error in parts
    ]


def overconfidence(stated: torch.Tensor, squared_error: torch.Tensor, *, variants: int) -> float:
    """The factor by which errors are larger than stated, over all places: 1 is calibrated, 2 is twice too sure."""
    (whole,) = reliability(stated, squared_error, variants=variants, bins=1)
    return whole.actual / whole.stated
