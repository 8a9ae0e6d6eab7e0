"""Bands of spatial frequency, and posterior noise: against closed forms for Gaussian data."""

import pytest
import torch
from conftest import make_scheduler

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion.bands import BANDS, band_spread, posterior_noise, posterior_std


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(32, 32), (24, 56), (8, 8), (7, 33), (1, 5)])
def test_bands_of_any_shape_hold_all_there_is(shape: tuple[int, int]) -> None:
    chroma = white(3, 2, *shape)
    torch.testing.assert_close(band_spread(chroma).square().sum(1), chroma.square().mean((1, 2, 3)))


def test_each_band_holds_its_scale() -> None:
    cells = torch.arange(64)
    waves = [torch.cos(2 * torch.pi * (cells + 0.5) / length) for length in (3, 6, 12, 24, 40, 128)]
    energy = torch.cat([band_spread(wave.expand(1, 1, 64, 64)) for wave in waves]).square()
    assert energy.argmax(dim=1).tolist() == list(range(BANDS))
    assert (energy.diagonal() / energy.sum(1)).min() > 0.85
    mean = band_spread(torch.full((1, 1, 32, 32), -3.0))[0]
    assert mean[-1] == pytest.approx(3) and mean[:-1].max() < 1e-5


def test_white_noise_is_white_in_every_band() -> None:
    """At pure noise the posterior noise has the given spread, in every band."""
    spread = [0.3, 0.25, 0.2, 0.15, 0.1, 0.05]
    for shape in ((32, 32), (40, 72), (16, 24)):
        noise = posterior_noise(white(500, 2, *shape), spread=spread, alpha_bar=0.0, next_alpha_bar=0.25)
        assert band_spread(noise).square().mean(0).sqrt() * 2 == pytest.approx(spread, rel=0.05)


def test_std_is_the_posterior_of_gaussians() -> None:
    assert posterior_std(0.3, alpha_bar=0.0, share=0.75) == 0.3  # pure noise tells nothing
    assert posterior_std(0.3, alpha_bar=1.0, share=0.75) == 0
    # The last band of a 32 x 32 grid is one number, the mean; white noise has 1/1024 of its variance there
    alpha_bar, spread = 0.3, 0.04
    clean = spread * white(10**6)
    seen = alpha_bar**0.5 * clean + ((1 - alpha_bar) / 1024) ** 0.5 * white(10**6, seed=1)
    left = clean - (clean @ seen) / (seen @ seen) * seen
    assert posterior_std(spread, alpha_bar=alpha_bar, share=1 / 1024) == pytest.approx(left.std().item(), rel=0.01)


def test_a_step_with_posterior_noise_keeps_the_variance_of_gaussian_data() -> None:
    """Data that is one Gaussian number a photo, an exact denoiser, and one step from x_t to x_s."""
    alphas_bar, spread, photos = make_scheduler().alphas_cumprod.double(), 0.1, 10**5
    start, reached = alphas_bar[700].item(), alphas_bar[300].item()
    clean = spread * white(photos, 1, 2, 2).mean((2, 3), keepdim=True) * 2
    noisy = (start**0.5 * clean + (1 - start) ** 0.5 * white(photos, 1, 2, 2, seed=1)).mean((2, 3), keepdim=True)
    guess = start**0.5 * spread**2 / (start * spread**2 + (1 - start) / 4) * noisy
    of_clean = reached**0.5 * (1 - start / reached) / (1 - start)
    of_noisy = (start / reached) ** 0.5 * (1 - reached) / (1 - start)
    drawn = ((1 - start / reached) * (1 - reached) / (1 - start)) ** 0.5 * white(photos, 1, 2, 2, seed=2)
    step = (of_clean * guess + of_noisy * noisy + drawn).mean((1, 2, 3))
    noise = posterior_noise(
        white(photos, 1, 2, 2, seed=3),
        spread=[0.0] * (BANDS - 1) + [spread],
        alpha_bar=start,
        next_alpha_bar=reached,
    ).mean((1, 2, 3))
    wanted = reached * spread**2 + (1 - reached) / 4
    assert step.var().item() < 0.96 * wanted
    assert (step + noise).var().item() == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("spread", [[], [0.1] * 5, [0.1] * 5 + [-0.1]])
def test_a_spread_that_makes_no_sense_is_refused(plain_pipe: ColorizationPipeline, spread: list[float]) -> None:
    with pytest.raises(ValueError, match=r"chroma_spread must be 6 numbers of at least 0"):
        ColorizationPipeline(plain_pipe.unet, plain_pipe.scheduler, chroma_spread=spread)
