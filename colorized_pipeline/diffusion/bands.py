"""Posterior noise: the variance that a denoising step leaves out, by bands of spatial frequency.

A step of DDPM treats the network's prediction of the clean chroma x_0 as if it were x_0. It is only its mean: x_0
varies around it, and a step that leaves this out makes the picture's variations too weak, the more so the fewer steps
there are. By the law of total variance the step from x_t to x_s has the variance

    Var(x_s | x_t) = Var(x_s | x_t, x_0) + c^2 Var(x_0 | x_t),  c = sqrt(ᾱ_s) (1 - ᾱ_t / ᾱ_s) / (1 - ᾱ_t)

(Bao et al. 2022, Analytic-DPM, theorem 1), where c is the weight of x_0 in the mean of q(x_s | x_t, x_0). They take
one variance for all values; here each band has its own, as a photo's mean colour is settled long before its detail.

Bands are octaves of the discrete cosine transform: band 0 has waves of 2 to 4 cells, band 1 those of 4 to 8, and so
on; the last has all that is longer, the mean among it.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch

BANDS = 6


def band_spread(chroma: torch.Tensor) -> torch.Tensor:
    """Root mean square of each band ``[B, BANDS]``, fine to coarse, of ``[B, C, h, w]``: their squares' sum is its."""
    height, width = chroma.shape[-2:]
    waves = _cosines(height).to(chroma) @ chroma @ _cosines(width).to(chroma).T
    energy = waves.square().mean(1).flatten(1) / (height * width)
    bands = _band_of_wave(height, width).flatten().to(chroma.device)
    return torch.stack([energy[:, bands == band].sum(1) for band in range(BANDS)], dim=1).sqrt()


def posterior_std(spread: float, *, alpha_bar: float, share: float) -> float:
    """Root mean square of what x_0 may differ, in one band, from its mean given x_t and the photo.

    The band is taken for Gaussian, seen in x_t through white noise.

    Args:
        spread: the same given the photo alone, in units of x_0.
        alpha_bar: share of the signal's variance in x_t, 0 (pure noise) to 1.
        share: of the band in the variance of white noise.
    """
    noise = (1 - alpha_bar) * share
    return spread * math.sqrt(noise / (noise + alpha_bar * spread**2))


def posterior_noise(
    white: torch.Tensor, *, spread: Sequence[float], alpha_bar: float, next_alpha_bar: float
) -> torch.Tensor:
    """The noise that a DDPM step from x_t to x_s leaves out: c times how far x_0 may be from its prediction.

    Args:
        white: standard normal ``[B, C, h, w]``.
        spread: of each band, fine to coarse, see :func:`posterior_std`.
        alpha_bar: at t, where the step starts: below 1.
        next_alpha_bar: at s, where it ends.
    """
    height, width = white.shape[-2:]
    bands = _band_of_wave(height, width)
    shares = (torch.bincount(bands.flatten(), minlength=BANDS) / bands.numel()).tolist()
    weight = math.sqrt(next_alpha_bar) * (1 - alpha_bar / next_alpha_bar) / (1 - alpha_bar)
    scales = [
        weight * posterior_std(std, alpha_bar=alpha_bar, share=share) / math.sqrt(share) if share else 0.0
        for std, share in zip(spread, shares, strict=True)
    ]
    waves = white * torch.tensor(scales)[bands].to(white)
    return _cosines(height).to(white).T @ waves @ _cosines(width).to(white)


@cache
def _cosines(length: int) -> torch.Tensor:
    """The orthonormal discrete cosine transform (DCT-II) of so many values, a wave a row, float64."""
    wave, cell = torch.arange(length, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
    cosines = torch.cos(torch.pi * wave * (cell + 0.5) / length) * math.sqrt(2 / length)
    cosines[0] /= math.sqrt(2)
    return cosines


@cache
def _band_of_wave(height: int, width: int) -> torch.Tensor:
    """The band of each wave ``[height, width]``: that of its shorter wavelength along an axis."""
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    halvings = -torch.log2(torch.maximum(rows, columns))  # 1 at waves of 4 cells; infinite at the mean
    return (halvings.ceil() - 1).clamp(0, BANDS - 1).long()
