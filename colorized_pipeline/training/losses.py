"""Training objectives: what the network is shown, what it should answer, and the loss. Nothing is drawn here.

A training step is the same for all of them; noise and timesteps are arguments::

    noisy, at = objective.add_noise(chroma, noise, timesteps)
    predicted = network(torch.cat((condition, noisy), dim=1), at)
    target = objective.target(chroma, noise, at)
    loss = objective.loss(predicted, target, at)

Everywhere ``chroma`` is the true chroma as it is diffused, ``noise`` is standard normal, ``noisy`` is what the network
sees of the chroma, all ``[B, N, h, w]``; ``condition`` is what is known of the grey photo, ``[B, C, h, w]``;
``timesteps`` are the drawn ones, integers in [0, T), ``at`` those that the network is given, both ``[B]``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

DETAIL_WEIGHT = 0.1  # of the channels that a grid twice as fine adds: they hold a small part of the colour


def mean_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each photo, ``[B]``: of the means of a* and b*, and a tenth of that of the details."""
    errors = (predicted - target).square().mean(dim=(2, 3))  # [B, N]
    means, details = errors[:, :2].mean(dim=1), errors[:, 2:]
    return means + DETAIL_WEIGHT * details.mean(dim=1) if details.numel() else means


class Objective(ABC):
    """What a network is trained to do."""

    @abstractmethod
    def add_noise(self, chroma: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy chroma that the network is shown, and the timesteps that go with it."""

    @abstractmethod
    def target(self, chroma: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        """What the network should predict, ``[B, N, h, w]``."""

    def loss(self, predicted: Tensor, target: Tensor, at: Tensor) -> Tensor:
        """Mean squared error over the batch, a scalar."""
        return mean_error(predicted, target).mean()

    def unweighted(self) -> "Objective":
        """The same objective with all timesteps equal: what validation measures."""
        return self


@dataclass(frozen=True)
class Diffusion(Objective):
    """Predict the noise (Ho et al. 2020, eq. 14) or v (Salimans & Ho 2022), whichever the scheduler says.

    Attributes:
        scheduler: gives the noise schedule and ``prediction_type``: ``epsilon`` or ``v_prediction``.
        snr_gamma: if given, each timestep is weighted by min(SNR, gamma) over its implied weight on the error of x_0
            (Hang et al. 2023, min-SNR).
    """

    scheduler: DDPMScheduler
    snr_gamma: float | None = None

    def __post_init__(self) -> None:
        kind = self.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type={kind!r} can't be trained; use epsilon or v_prediction")

    def add_noise(self, chroma: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return self.scheduler.add_noise(chroma, noise, timesteps), timesteps

    def target(self, chroma: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        """The noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(chroma, noise, at)

    def loss(self, predicted: Tensor, target: Tensor, at: Tensor) -> Tensor:
        per_photo = mean_error(predicted, target)
        if self.snr_gamma is not None:
            snr = compute_snr(self.scheduler, at)
            implied = snr if self.scheduler.config.prediction_type == "epsilon" else snr + 1
            per_photo = per_photo * (snr.clamp(max=self.snr_gamma) / implied)
        return per_photo.mean()

    def unweighted(self) -> "Diffusion":
        return Diffusion(self.scheduler)


@dataclass(frozen=True)
class Regression(Objective):
    """Predict the chroma itself in one pass: the baseline of mean colours.

    The same network as for :class:`Diffusion`, given zeros for the noisy chroma and 0 for the timestep.
    """

    def add_noise(self, chroma: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(chroma), torch.zeros_like(timesteps)

    def target(self, chroma: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        return chroma


def draw_timesteps(count: int, train_timesteps: int, *, generator: torch.Generator) -> Tensor:
    """Timesteps ``[count]``, spread evenly over [0, T) from a random start.

    The even spread (Kingma et al. 2021, appendix I.1) leaves each timestep uniform and lowers the loss's variance.
    """
    spread = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1
    return (spread * train_timesteps).long()


def drop_condition(condition: Tensor, draws: Tensor, share: float) -> Tensor:
    """Hide the condition ``[B, C, h, w]`` of a share of the photos: it becomes 0 where ``draws`` ``[B]`` are below it.

    So one network also learns to predict without it. Guidance (Ho & Salimans 2022) needs both predictions.
    """
    kept = draws >= share
    return condition * kept[..., None, None, None]
