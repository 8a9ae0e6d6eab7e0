"""What the training script is built from: UNet presets, the loss as a pure function, EMA swap, atomic checkpoints."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.training_utils import EMAModel, compute_snr

# name        channels a level        layers  norm groups   parameters (4 x 4 lightness, no encoder)
PRESETS: dict[str, dict[str, Any]] = {
    "base": dict(block_out_channels=(32, 64, 128, 256), layers_per_block=1, norm_num_groups=8),  # 10.7 M
    "wide": dict(block_out_channels=(64, 128, 256, 256), layers_per_block=1, norm_num_groups=16),  # 17.2 M
    "tiny": dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),  # 0.05 M, for tests
}

COMPLETE = "COMPLETE"
_CHECKPOINT_PREFIX = "checkpoint-"


def build_unet(preset: str, *, luma_factor: int, feature_channels: int = 0, sample_size: int = 32) -> UNet2DModel:
    """A fresh UNet: attention at the lowest level, luma_factor² + feature_channels + 2 channels in, 2 (a*, b*) out."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; choose from {', '.join(PRESETS)}")
    levels = len(PRESETS[preset]["block_out_channels"])
    direct = luma_factor**2 + 2
    unet = UNet2DModel(
        sample_size=sample_size,
        in_channels=direct + feature_channels,
        out_channels=2,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        **PRESETS[preset],
    )
    if feature_channels:
        # The default bound is 1 / sqrt(fan-in). Over hundreds of features the few channels of lightness and noisy
        # chroma would start almost unheard, so each group gets the bound of its own fan-in.
        luma, weight = luma_factor**2, unet.conv_in.weight
        with torch.no_grad():
            weight.mul_(math.sqrt((direct + feature_channels) / feature_channels) * math.sqrt(0.5))
            loud = math.sqrt(feature_channels / direct)
            weight[:, :luma].mul_(loud)
            weight[:, -2:].mul_(loud)
    return unet


def diffusion_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: DDPMScheduler,
    *,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error of the network's prediction: Ho et al. 2020, eq. 14, or its v form (Salimans & Ho 2022).

    Args:
        predict: the network, ``(input [B, C + 2, h, w], timesteps [B]) -> [B, 2, h, w]``.
        scheduler: gives the noise schedule and says what is predicted (``epsilon`` or ``v_prediction``).
        chroma: the true a*, b* over chroma_scale, ``[B, 2, h, w]``.
        condition: what is known of the grey photo, ``[B, C, h, w]``.
        noise: standard normal, ``[B, 2, h, w]``.
        timesteps: integers in [0, T), ``[B]``.
        snr_gamma: if given, each timestep is weighted by min(SNR, gamma) over its implied weight on the error of x_0
            (Hang et al. 2023, min-SNR).

    Returns:
        The mean over the batch, a scalar.
    """
    noisy = scheduler.add_noise(chroma, noise, timesteps)
    predicted = predict(torch.cat((condition, noisy), dim=1), timesteps).float()
    target = loss_target(scheduler, chroma, noise, timesteps)
    per_photo = (predicted - target).square().mean(dim=(1, 2, 3))  # [B]
    if snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        implied = snr if scheduler.config.prediction_type == "epsilon" else snr + 1
        per_photo = per_photo * snr.clamp(max=snr_gamma) / implied
    return per_photo.mean()


def regression_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, chroma: torch.Tensor, condition: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of a network that predicts chroma directly, in one pass: the baseline of mean colours.

    The same network as in :func:`diffusion_loss`, given zeros for the noisy chroma and 0 for the timestep.
    """
    timesteps = torch.zeros(len(chroma), dtype=torch.long, device=chroma.device)
    predicted = predict(torch.cat((condition, torch.zeros_like(chroma)), dim=1), timesteps).float()
    return (predicted - chroma).square().mean()


@dataclass(frozen=True)
class Teacher:
    """What a student with few steps learns from: a network, and the steps that it takes for one of the student's.

    Attributes:
        predict: the teacher's v, ``(noisy [B, 2, h, w], timesteps [B], condition [B, C, h, w]) -> [B, 2, h, w]``.
        student_steps: steps of the student from noise to photo.
        teacher_steps: the teacher's; a multiple of ``student_steps``.
    """

    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    student_steps: int
    teacher_steps: int


def distillation_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    teacher: Teacher,
    scheduler: DDIMScheduler,
    *,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of v against the v that takes one DDIM step to where the teacher's several steps end.

    Progressive distillation (Salimans & Ho 2022, algorithm 2). Arguments as in :func:`diffusion_loss`; each of
    ``timesteps`` stands for the student's step whose span holds it.
    """
    length = scheduler.config.num_train_timesteps
    span, substep = length // teacher.student_steps, length // teacher.teacher_steps
    start = (timesteps // span + 1) * span - 1  # the student's timestep, of trailing spacing
    alpha, sigma = signal_and_noise(scheduler, start)
    noisy = alpha * chroma + sigma * noise
    reached, at = noisy, start
    with torch.no_grad():
        for _ in range(teacher.teacher_steps // teacher.student_steps):
            a, s = signal_and_noise(scheduler, at)
            v = teacher.predict(reached, at, condition)
            clean, rest = a * reached - s * v, s * reached + a * v
            at = at - substep
            a, s = signal_and_noise(scheduler, at)
            reached = a * clean + s * rest
        # reached = a x + s (noisy - alpha x) / sigma, solved for the x that one step must predict
        clean = (reached - s / sigma * noisy) / (a - s / sigma * alpha)
        target = (alpha * noisy - clean) / sigma  # v = alpha noise - sigma x, with noise = (noisy - alpha x) / sigma
    predicted = predict(torch.cat((condition, noisy), dim=1), start).float()
    return (predicted - target).square().mean()


def signal_and_noise(scheduler: DDIMScheduler, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at ``timesteps`` ``[B]``, as ``[B, 1, 1, 1]``; 1 and 0 below 0."""
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps.clamp(min=0)]
    alpha_bar = torch.where(timesteps < 0, 1.0, alpha_bar)[:, None, None, None]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def drop_condition(
    condition: torch.Tensor, draws: torch.Tensor, *, luma_channels: int, everything: float, features: float
) -> torch.Tensor:
    """Hide part of what is known of some photos, so that one network also learns the answers of knowing less.

    Guidance (Ho & Salimans 2022) needs both answers: what the condition adds is their difference.

    Args:
        condition: ``[B, C, h, w]``, lightness first; hidden channels become 0.
        draws: uniform in [0, 1), ``[B]``.
        luma_channels: how many of the C channels are lightness; the others are the image encoder's features.
        everything: share of photos of which nothing is told.
        features: share of photos of which only the lightness is told.
    """
    told_luma = draws >= everything
    told_features = draws >= everything + features
    told = torch.cat(
        (
            told_luma[:, None].expand(-1, luma_channels),
            told_features[:, None].expand(-1, condition.shape[1] - luma_channels),
        ),
        dim=1,
    )
    return condition * told[..., None, None]


def loss_target(
    scheduler: DDPMScheduler, chroma: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the network should predict: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(chroma, noise, timesteps)
    raise ValueError(
        f"prediction_type={scheduler.config.prediction_type!r} can't be trained; use epsilon or v_prediction"
    )


def learning_rate(step: int, *, base: float, warmup: int, decay: int, total: int) -> float:
    """Linear warm-up for ``warmup`` steps, ``base``, then half a cosine to 0 in the last ``decay`` of ``total``."""
    if step < warmup:
        return base * (step + 1) / warmup
    if step < total - decay:
        return base
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - (total - decay)) / max(1, decay))))


@contextmanager
def ema_weights(ema: EMAModel, unet: UNet2DModel) -> Iterator[None]:
    """Inside the block the UNet has its averaged weights; after it, whatever happens, its own again."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.removeprefix(_CHECKPOINT_PREFIX))


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first. A folder without its marker was cut off while it was written: not listed."""
    found = [
        folder
        for folder in Path(output_dir).glob(f"{_CHECKPOINT_PREFIX}*")
        if folder.name.removeprefix(_CHECKPOINT_PREFIX).isdecimal() and (folder / COMPLETE).is_file()
    ]
    return sorted(found, key=checkpoint_step)


def save_checkpoint(accelerator: Any, output_dir: str | Path, state: dict[str, Any], *, limit: int | None) -> Path:
    """Save everything a resumed run needs as ``checkpoint-STEP``, all or nothing; call it on every process.

    ``state`` holds at least ``step`` and goes to ``training_state.json``. Written to a temporary folder, flushed to
    disk and renamed by the main process, so that no kill leaves a half-written checkpoint under a valid name. Then the
    oldest complete checkpoints beyond ``limit`` are deleted.
    """
    final = Path(output_dir) / f"{_CHECKPOINT_PREFIX}{state['step']}"
    temporary = final.with_name(f"partial-{final.name}")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / "training_state.json").write_text(json.dumps(state, indent=2))
        (temporary / COMPLETE).touch()
        _flush_to_disk(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        if limit is not None:
            for old in list_checkpoints(output_dir)[:-limit]:
                # Unmarked first: a kill while deleting must not leave a marked folder with files missing.
                (old / COMPLETE).unlink()
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def save_pipeline(pipe: DiffusionPipeline, folder: str | Path) -> None:
    """Save a pipeline so that ``folder`` holds the old one or the new one, never half of each."""
    folder = Path(folder)
    temporary = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary)
    _flush_to_disk(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _flush_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """The folder that ``--resume_from_checkpoint`` names: ``latest`` (None if there is none yet), or a path.

    Raises:
        FileNotFoundError: if a named checkpoint doesn't exist or is incomplete.
    """
    if wanted == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    for folder in (Path(wanted), Path(output_dir) / wanted):
        if (folder / COMPLETE).is_file():
            return folder
    raise FileNotFoundError(f"resume_from_checkpoint={wanted!r}: no complete checkpoint (one with a {COMPLETE} file)")
