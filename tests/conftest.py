"""Tiny real components: a UNet, the scheduler that training makes, an ImageNet-style encoder with random weights."""

import os
import signal
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import settings
from transformers import EfficientNetConfig, EfficientNetModel

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion.photo import condition_channels
from colorized_pipeline.training.networks import build_unet

torch.set_num_threads(1)
# Else programs that tests start ignore Ctrl-C where pytest is a shell's background job
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("long", max_examples=1000)

ENCODER_LAYERS = (1, 2)


def make_scheduler(prediction_type: str = "v_prediction") -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
        timestep_spacing="trailing",
        clip_sample_range=2.75,
    )


def make_encoder() -> EfficientNetModel:
    torch.manual_seed(1)
    config = EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, image_size=32)
    return EfficientNetModel(config).eval()


def make_pipeline(*, encoder: bool = False, luma_factor: int = 4) -> ColorizationPipeline:
    torch.manual_seed(0)
    image_encoder = make_encoder() if encoder else None
    features = condition_channels(luma_factor, image_encoder, ENCODER_LAYERS) - luma_factor**2
    pipe = ColorizationPipeline(
        unet=build_unet("tiny", luma_factor=luma_factor, feature_channels=features, sample_size=8).eval(),
        scheduler=make_scheduler(),
        image_encoder=image_encoder,
        luma_factor=luma_factor,
        working_size=32,
        default_steps=2,
        encoder_layers=ENCODER_LAYERS,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=[False, True], ids=["plain", "encoder"])
def pipe(request: pytest.FixtureRequest) -> ColorizationPipeline:
    """The pipeline in both its forms."""
    return make_pipeline(encoder=request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved plain pipeline."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def plain_pipe() -> ColorizationPipeline:
    return make_pipeline()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What this machine can't test is named at the end, with what it needs."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section(f"NOT TESTED HERE: {len(skipped)}", red=True, bold=True)
    places = Counter((one.nodeid.partition("::")[0], one.longrepr[2].removeprefix("Skipped: ")) for one in skipped)
    for (file, reason), count in sorted(places.items()):
        terminalreporter.line(f"{file}: {count} skipped, {reason}", red=True)
