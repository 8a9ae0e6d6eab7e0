"""What a run trains: the pipeline from nothing or from a checkpoint, its objective, its optimizer."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..diffusion.photo import condition_channels
from ..diffusion.pipeline import ColorizationPipeline
from ..loading import load_encoder, load_pipeline
from .losses import Diffusion, LastStage, Objective, Regression
from .options import PRESETS, ModelOptions, ObjectiveOptions, Options

logger = logging.getLogger(__name__)

_MAX_CHROMA = 110.0  # no colour in sRGB is further from grey along a* or b*
_WEIGHT_DECAY = 1e-2


def build_unet(
    preset: str, *, luma_factor: int, feature_channels: int = 0, chroma_channels: int = 2, sample_size: int = 32
) -> UNet2DModel:
    """A fresh UNet with attention at the lowest level.

    It has luma_factor² + feature_channels + chroma_channels channels in, chroma_channels out.
    """
    levels = len(PRESETS[preset]["block_out_channels"])
    direct = luma_factor**2 + chroma_channels
    unet = UNet2DModel(
        sample_size=sample_size,
        in_channels=direct + feature_channels,
        out_channels=chroma_channels,
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
            weight[:, -chroma_channels:].mul_(loud)
    return unet


def build_pipeline(options: Options) -> tuple[ColorizationPipeline, Options]:
    """The pipeline to train, fresh or that of ``--init_from``, and the options with the model's values filled in.

    Raises:
        ValueError: if the checkpoint can't be loaded, or an option contradicts it.
    """
    if options.model.init_from:
        pipe = load_pipeline(options.model.init_from)
        settled = checkpoint_options(pipe)
        options = options.resolved(settled)
        if options.model.detail_scales != settled["detail_scales"]:
            pipe = _with_detail(pipe, options.model)
        _set_up_checkpoint(pipe, options)
    else:
        options = options.resolved()
        pipe = _fresh_pipeline(options.model, options.objective)
    return pipe, options


def checkpoint_options(pipe: ColorizationPipeline) -> dict[str, Any]:
    """What a pipeline settles, by the options' names."""
    config, schedule = pipe.config, pipe.scheduler.config
    return {
        "preset": preset_of(pipe.unet),
        "resolution": config.working_size,
        "luma_factor": config.luma_factor,
        "detail_scales": tuple(config.detail_scales) if config.detail_scales else None,
        "chroma_scale": config.chroma_scale,
        "encoder_layers": tuple(config.encoder_layers),
        "encoder_scale": config.encoder_scale,
        "prediction_type": schedule.prediction_type,
        "beta_schedule": schedule.beta_schedule,
        "num_train_timesteps": schedule.num_train_timesteps,
    }


def preset_of(unet: UNet2DModel) -> str | None:
    """The name in :data:`PRESETS` of this UNet's size, None if it has another."""
    for name, sizes in PRESETS.items():
        if all(_plain(unet.config[key]) == _plain(value) for key, value in sizes.items()):
            return name
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _set_up_checkpoint(pipe: ColorizationPipeline, options: Options) -> None:
    """Give a loaded pipeline what this run changes in it."""
    objective = options.objective
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.register_to_config(clip_sample_range=_MAX_CHROMA / pipe.config.chroma_scale)
    pipe.register_modules(scheduler=scheduler)
    pipe.register_to_config(
        encoder_scale=options.model.encoder_scale, objective=objective.objective, uncertainty_fit=None
    )
    if objective.last_stage_steps:
        pipe.register_to_config(default_steps=objective.last_stage_steps, default_guidance=1.0, initial_noise=0.0)
    if objective.objective == "diffusion" and pipe.config.default_guidance != 1 and not objective.condition_dropout:
        logger.warning(
            "%s is drawn with guidance %g, which training without --condition_dropout slowly spoils; add "
            "--condition_dropout 0.1", options.model.init_from, pipe.config.default_guidance,
        )  # fmt: skip


def _chroma_channels(model: ModelOptions) -> int:
    return 2 if model.detail_scales is None else 8


def _with_detail(pipe: ColorizationPipeline, model: ModelOptions) -> ColorizationPipeline:
    """The pipeline with ``--detail_scales``: its UNet begins by drawing what it drew, and no detail."""
    if pipe.config.detail_scales is not None:
        raise ValueError(
            f"--detail_scales {model.detail_scales} contradicts --init_from {model.init_from}, which has "
            f"{pipe.config.detail_scales}; leave it out"
        )
    unet = widen_unet(pipe.unet, _chroma_channels(model))
    parts = {"unet": unet, "scheduler": pipe.scheduler, "image_encoder": pipe.image_encoder}
    config = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
    return ColorizationPipeline(**{**config, **parts, "detail_scales": model.detail_scales})


def widen_unet(unet: UNet2DModel, chroma_channels: int) -> UNet2DModel:
    """The same network for more channels of chroma, the last ones in and out: it gives 0 for those, whatever they are.

    For the others it gives what ``unet`` gives.
    """
    added = chroma_channels - unet.config.out_channels
    sizes = {"in_channels": unet.config.in_channels + added, "out_channels": chroma_channels}
    wide = UNet2DModel.from_config({**unet.config, **sizes})
    state = unet.state_dict()
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, added))
    state["conv_out.weight"] = F.pad(state["conv_out.weight"], (0, 0, 0, 0, 0, 0, 0, added))
    state["conv_out.bias"] = F.pad(state["conv_out.bias"], (0, added))
    wide.load_state_dict(state)
    return wide


def _fresh_pipeline(model: ModelOptions, objective: ObjectiveOptions) -> ColorizationPipeline:
    encoder: PreTrainedModel | None = None
    if model.image_encoder:
        encoder = load_encoder(model.image_encoder)
    assert model.luma_factor and model.resolution and model.chroma_scale and model.preset and model.encoder_layers
    features = condition_channels(model.luma_factor, encoder, model.encoder_layers) - model.luma_factor**2
    return ColorizationPipeline(
        unet=build_unet(
            model.preset,
            luma_factor=model.luma_factor,
            feature_channels=features,
            chroma_channels=_chroma_channels(model),
            sample_size=model.resolution // model.luma_factor,
        ),
        scheduler=DDPMScheduler(
            num_train_timesteps=objective.num_train_timesteps,
            beta_schedule=objective.beta_schedule,
            prediction_type=objective.prediction_type,
            rescale_betas_zero_snr=objective.prediction_type == "v_prediction",
            timestep_spacing="trailing",
            clip_sample_range=_MAX_CHROMA / model.chroma_scale,
        ),
        image_encoder=encoder,
        luma_factor=model.luma_factor,
        chroma_scale=model.chroma_scale,
        detail_scales=list(model.detail_scales) if model.detail_scales else None,
        working_size=model.resolution,
        encoder_layers=model.encoder_layers,
        encoder_scale=model.encoder_scale or 1,
        objective=objective.objective,
    )


def build_objective(pipe: ColorizationPipeline, options: ObjectiveOptions) -> Objective:
    """What the pipeline's UNet is trained to do."""
    return Regression() if options.objective == "regression" else Diffusion(pipe.scheduler, options.snr_gamma)


def build_last_stage(pipe: ColorizationPipeline, options: ObjectiveOptions) -> LastStage | None:
    """The loss of the last stage; None if this run isn't one."""
    if options.last_stage_steps is None:
        return None
    assert options.chroma_weight is not None
    assert options.perceptual_weight is not None and options.adversarial_weight is not None
    return LastStage(
        pipe,
        steps=options.last_stage_steps,
        chroma_weight=options.chroma_weight,
        perceptual_weight=options.perceptual_weight,
        adversarial_weight=options.adversarial_weight,
    )


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for weight matrices, AdamW for biases, norms and matrices narrower than 16.

    Muon orthogonalizes each step: the step is equally long along every direction of the matrix. AdamW's steps hardly
    move along directions that few photos ask for. A convolution's weight counts as a matrix, a row for each output
    channel. Steps are scaled to AdamW's size, so the same learning rates serve (Liu et al. 2025).

    ``torch.optim.Muon`` takes only matrices. It computes in bfloat16, which took 12 times as long as float32 on a
    processor without bfloat16 instructions.

    Args:
        parameters: of the network.
        lr, betas, weight_decay: as for AdamW; ``betas`` don't concern the matrices.
    """

    _NARROW, _MOMENTUM = 16, 0.95
    _NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # each iteration brings the singular values nearer to 1

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for weight in parameters:
            wide = weight.ndim > 1 and min(weight.flatten(1).shape) >= self._NARROW
            (matrices if wide else others).append(weight)
        groups = [{"params": matrices}, {"params": others}]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            if not self.state[weight]:  # AdamW looks for a step when it loads a state
                self.state[weight] |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(weight)}
            momentum = self.state[weight]["momentum"]
            momentum.lerp_(weight.grad, 1 - self._MOMENTUM)
            update = self._orthogonalize(weight.grad.lerp(momentum, self._MOMENTUM).flatten(1))
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.view_as(weight), alpha=-0.2 * group["lr"] * math.sqrt(max(update.shape)))
            weight.grad = None  # so that AdamW passes over it
        super().step()

    def _orthogonalize(self, matrix: Tensor) -> Tensor:
        """The matrix with all its singular values brought to about 1, by Newton-Schulz iterations."""
        if matrix.shape[0] > matrix.shape[1]:
            return self._orthogonalize(matrix.T).T
        matrix = matrix / matrix.norm().clamp(min=1e-7)
        for a, b, c in self._NEWTON_SCHULZ:
            gram = matrix @ matrix.T
            matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
        return matrix


def build_optimizer(unet: UNet2DModel, options: Options) -> torch.optim.Optimizer:
    """AdamW or :class:`Muon`; against a discriminator, which changes too, AdamW remembers for a shorter time."""
    chosen = options.optimization
    make = {"adamw": torch.optim.AdamW, "muon": Muon}[chosen.optimizer]
    betas = (0.9, 0.999) if options.objective.last_stage_steps is None else (0.9, 0.99)
    return make(unet.parameters(), lr=chosen.learning_rate, betas=betas, weight_decay=_WEIGHT_DECAY)


def learning_rate(step: int, *, base: float, warmup: int, decay: int, total: int) -> float:
    """Linear warm-up for ``warmup`` steps, ``base``, then half a cosine to 0 in the last ``decay`` of ``total``."""
    if step < warmup:
        return base * (step + 1) / warmup
    if step < total - decay:
        return base
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - (total - decay)) / max(1, decay))))
