"""Every scheduler of diffusers either draws right, against a closed form, or is refused by its name."""

import diffusers
import pytest
import torch
from conftest import make_pipeline
from diffusers import DDPMScheduler, UNet2DModel

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion.pipeline import SCHEDULERS

ALL = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))
SPREAD = 0.4  # standard deviation of the chroma that is to be drawn, over chroma_scale


class GaussianDenoiser(torch.nn.Module):
    """The exact network for chroma that is white Gaussian noise of this spread, between the timesteps too."""

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, torch.float32, torch.device("cpu")
        self.alphas_bar = scheduler.alphas_cumprod

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> object:
        noisy, time = x[:, -2:], timestep.double().clamp(0, len(self.alphas_bar) - 1)
        alpha_bar = torch.lerp(*self.alphas_bar[[int(time.floor()), int(time.ceil())]], time.frac().float())
        clean = alpha_bar.sqrt() * SPREAD**2 * noisy / (alpha_bar * SPREAD**2 + 1 - alpha_bar)
        noise = (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
        return type("Output", (), {"sample": v})


@pytest.fixture(scope="module")
def gaussian() -> ColorizationPipeline:
    pipe = make_pipeline()
    pipe.register_modules(unet=GaussianDenoiser(pipe.unet, pipe.scheduler))
    pipe.trained = pipe.scheduler
    return pipe


def drawn_spread(pipe: ColorizationPipeline, steps: int) -> float:
    prepared = pipe.prepare(torch.full((64, 64), 0.5))
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    chroma = pipe.draw(prepared, generators=generators, num_inference_steps=steps)
    return chroma.std().item() / pipe.config.chroma_scale


@pytest.mark.parametrize("name", ALL)
def test_every_scheduler_draws_right_or_is_refused(gaussian: ColorizationPipeline, name: str) -> None:
    gaussian.scheduler = gaussian.trained
    wanted = drawn_spread(gaussian, 12)
    assert 0.7 * SPREAD < wanted < SPREAD  # DDPM's steps leave out some variance
    try:
        scheduler = getattr(diffusers, name).from_config(gaussian.trained.config)
    except (TypeError, ValueError, KeyError, ImportError):
        assert name not in SCHEDULERS  # diffusers itself refuses to make it
        return
    gaussian.scheduler = scheduler
    if name in SCHEDULERS:
        assert 0.75 < drawn_spread(gaussian, 12) / wanted < 1.4
        assert all(drawn_spread(gaussian, steps) < 1.2 * SPREAD for steps in (1, 2, 3))
    else:
        with pytest.raises(ValueError, match=rf"{name} doesn't draw right.*DDIMScheduler\.from_config"):
            drawn_spread(gaussian, 12)


@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_other_spacings_are_refused(gaussian: ColorizationPipeline, name: str, spacing: str) -> None:
    gaussian.scheduler = getattr(diffusers, name).from_config(gaussian.trained.config, **{spacing: True})
    with pytest.raises(ValueError, match=f"{name} with {spacing}=True"):
        drawn_spread(gaussian, 4)
    gaussian.scheduler = diffusers.DDIMScheduler.from_config(gaussian.scheduler.config)
    assert drawn_spread(gaussian, 4) < SPREAD
