"""Is the stated uncertainty true? Stated spreads against actual errors: ranks, and the factor between. No model here.

A spread is a standard deviation, so it is compared with root mean square errors: if the true colour were one more draw
from what the variants are drawn from, it would lie ``spread * sqrt(1 + 1 / N)`` from the mean of N variants, root mean
square (:func:`colorized_pipeline.diffusion.variants.spread`).
"""

import torch


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
