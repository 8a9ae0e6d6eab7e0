"""The colorization pipeline: a diffusion model of P(chroma | lightness) in CIELAB.

The grey photo *is* the lightness; only a*, b* are drawn by the diffusion, on a coarse grid, and joined with the
untouched full-size lightness. A photo goes one road: ``prepare`` → ``draw`` → ``show``.
"""

import hashlib
import inspect
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput, is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel

from .color import chroma_to_latents, latents_to_chroma, rgb_to_lab
from .hints import Hint, HintMap
from .photo import (
    PhotoInput,
    PreparedPhoto,
    compose,
    encode_lightness,
    list_photos,
    measure_uncertainty,
    prepare_photo,
    read_colors,
    read_photo,
    seen_chroma,
)
from .reading import PhotoError
from .steering import (
    HintSteer,
    Palette,
    PaletteSteer,
    Steer,
    Tie,
    TieSteer,
    fit_palette,
    match_colors,
    steered_prediction,
)
from .variants import check_count, check_variants, count_variants, order_by_typicality

# What travels with a checkpoint: every module of this folder
CODE_FILES = (
    "color.py",
    "hints.py",
    "photo.py",
    "pipeline.py",
    "reading.py",
    "steering.py",
    "variants.py",
)

# Those of diffusers' schedulers that give colours as strong as DDPM's; others end elsewhere, or fail, at a noise
# schedule that begins with pure noise
SCHEDULERS = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
_OTHER_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
_ENCODER_STRIDE = 32  # ImageNet networks halve their input five times
_NEARLY_GRAY = 2.0  # a mean chroma below it is no palette


@dataclass
class ColorizationPipelineOutput(BaseOutput):
    """What :class:`ColorizationPipeline` returns.

    Attributes:
        images: one colour photo per input, at the input's size: PIL images (RGB), or for ``output_type="np"`` arrays
            ``[H, W, 3]`` and for ``"pt"`` tensors ``[3, H, W]``, float32 sRGB in [0, 1]. Of several variants the most
            typical one, or their mean.
        variants: of each input all its colourings, from the most typical outwards. ``None`` if one was drawn.
        seeds: of each input the seed of each variant, in the same order: with
            ``generator=[torch.Generator().manual_seed(seed)]`` a call for that photo alone gives that variant (to 6
            digits: a network's last digits depend on the batch). ``None`` if one was drawn.
        uncertainty: of each input a map ``[H, W]`` of how far off the true colours may be, judged by its variants,
            float32, in ΔE*ab: see :func:`state_uncertainty`; tensors for ``"pt"``, else arrays. ``None`` if not
            asked for.
    """

    images: list[Any]
    variants: list[list[Any]] | None = None
    seeds: list[list[int]] | None = None
    uncertainty: list[Any] | None = None


class ColorizationPipeline(DiffusionPipeline):
    """Gives grey photos plausible colours by conditional diffusion in CIELAB.

    Args:
        unet: ``UNet2DModel`` with in_channels = luma_factor² (lightness) + K (features of ``image_encoder``) + C
            (noisy chroma) and out_channels = C, where C is 2, or 8 with ``detail_scales``.
        scheduler: the noise schedule that the UNet was trained with. For sampling many of diffusers' do:
            ``pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)``.
        image_encoder: optional frozen transformers vision model with ``hidden_states``, read from the grey photo.
        luma_factor: lightness pixels per cell of the UNet's grid along each axis.
        chroma_scale: a*, b* divided by this are what the diffusion sees.
        detail_scales: chroma is drawn on a grid twice as fine as the UNet's, see :func:`chroma_to_latents`.
        working_size: shorter side, in pixels, at which the network reads a photo.
        default_steps: number of denoising steps when a call doesn't say.
        default_guidance: guidance scale when a call doesn't say. Above 1 it needs a UNet that was trained with
            condition dropout.
        uncertainty_fit: what differences of variants say about the truth, see :func:`state_uncertainty`.
        encoder_layers, encoder_mean, encoder_std, encoder_scale: see :func:`encode_lightness`.
        initial_noise: what drawing starts from, in units of the noise of the first timestep: 1 is a sample of it; 0 is
            its mean, which makes the first prediction the same for every seed, and colours calmer.
        objective: ``"diffusion"``, or ``"regression"`` for a UNet trained to predict mean chroma in one pass (a
            baseline; steps and scheduler then mean nothing).

    >>> from colorized_pipeline import ColorizationPipeline
    >>> pipe = ColorizationPipeline.from_pretrained("path/or/hub-id")
    >>> pipe("scan.jpg", generator=torch.Generator().manual_seed(0)).images[0].save("colour.png")
    """

    model_cpu_offload_seq = "image_encoder->unet"
    _optional_components: ClassVar[list[str]] = ["image_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "condition"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        image_encoder: PreTrainedModel | None = None,
        luma_factor: int = 4,
        chroma_scale: float = 40.0,
        detail_scales: list[float] | tuple[float, float] | None = None,
        working_size: int = 128,
        default_steps: int = 25,
        default_guidance: float = 1.0,
        encoder_layers: list[int] | tuple[int, ...] = (11, 16),
        encoder_mean: float = 127 / 255,
        encoder_std: float = 128 / 255,
        encoder_scale: int = 1,
        initial_noise: float = 1.0,
        objective: str = "diffusion",
        uncertainty_fit: list[float] | tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if objective not in ("diffusion", "regression"):
            raise ValueError(f"objective must be 'diffusion' or 'regression', got {objective!r}")
        if uncertainty_fit is not None and not (len(uncertainty_fit) == 2 and min(uncertainty_fit) >= 0):
            raise ValueError(
                f"uncertainty_fit must be two numbers of at least 0, floor and factor, got {uncertainty_fit!r}"
            )
        channels = 2 if detail_scales is None else 8
        if unet.config.out_channels != channels:
            raise ValueError(
                f"unet must have out_channels={channels} with detail_scales={detail_scales}, got "
                f"{unet.config.out_channels}"
            )
        self.register_modules(unet=unet, scheduler=scheduler, image_encoder=image_encoder)
        self.register_to_config(
            luma_factor=luma_factor,
            chroma_scale=chroma_scale,
            detail_scales=None if detail_scales is None else list(detail_scales),
            working_size=working_size,
            default_steps=default_steps,
            default_guidance=default_guidance,
            encoder_layers=tuple(encoder_layers),
            encoder_mean=encoder_mean,
            encoder_std=encoder_std,
            encoder_scale=encoder_scale,
            initial_noise=initial_noise,
            objective=objective,
            uncertainty_fit=None if uncertainty_fit is None else list(uncertainty_fit),
        )

    @torch.no_grad()
    def __call__(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float | None = None,
        intensity: float = 1.0,
        working_size: int | None = None,
        batch_size: int = 8,
        hints: Sequence[Hint] | Sequence[Sequence[Hint] | None] | None = None,
        reference: PhotoInput | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_variants: int | None = None,
        consensus: str | None = None,
        return_uncertainty: bool = False,
        borders: bool = True,
        callback_on_step_end: Callable[..., dict[str, torch.Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ColorizationPipelineOutput:
        """Colorize one photo or a list of photos, of any sizes.

        Lightness is the input's; colours that sRGB can't show at that lightness lose chroma, not hue.

        Args:
            image: a photo or a list of photos, see :data:`PhotoInput`. A colour photo is taken as its lightness.
            num_inference_steps: denoising steps; more is slower and finer. Default: the checkpoint's.
            generator: source of randomness, or one per photo. The same generator state gives the same picture,
                however photos are batched.
            guidance_scale: 1 is the plain prediction; above 1 costs a second pass a step and gives surer, stronger
                colours, see :meth:`predict`. Default: the checkpoint's.
            intensity: factor on chroma: 0 is grey, 1 what the model drew, above 1 more vivid.
            working_size: shorter side at which the network reads the photo, in pixels. Default: the checkpoint's.
            batch_size: rows that are denoised together: photos of one working shape times variants.
            hints: colours that are known: a list of (region, colour), see :data:`Hint`; for a list of photos one such
                list (or None) a photo. These places get their colour as it is, and the others follow.
            reference: a colour photo, e.g. a later one of the same place, whose palette the results get.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            return_dict: ``False`` returns a plain tuple of the output's fields that aren't ``None``.
            num_variants: different colourings of each photo. Default: 1, or 8 where they are compared.
            consensus: what ``images`` holds of several variants: ``"medoid"``, the most typical of them (so it is
                without this argument), or ``"mean"``: nearest to the truth on average, paler than any one of them.
            return_uncertainty: also a map of how far off the colours may be, judged by the variants.
            borders: plain borders, such as a mount, are found and stay grey.
            callback_on_step_end: called as ``callback(pipe, step, timestep, tensors)`` after each denoising step of
                each batch; what its dict returns replaces the tensors.
            callback_on_step_end_tensor_inputs: which it gets: ``"latents"`` (noisy chroma, scaled), ``"condition"``.
        """
        # 1. Arguments; what isn't given comes from the checkpoint's config
        steps, guidance = self._resolve(num_inference_steps, guidance_scale)
        variants = count_variants(num_variants, consensus=consensus, uncertainty=return_uncertainty)
        check_variants(self.config, variants, steps=steps)
        at_once = max(1, check_count("batch_size", batch_size) // variants)
        _check_shown(intensity, output_type)
        palette = None if reference is None else self.read_palette(reference)

        # 2. Every photo is read, and scaled to what the network sees of it
        photos = self._prepare_all(image, hints, working_size=working_size, borders=borders)
        generators = self._spawn_generators(generator, len(photos))
        seeds = [_draw_seeds(one, variants) for one in generators] if variants > 1 else None
        sources = [_seeded(one) for one in seeds] if seeds else [[one] for one in generators]

        # 3. Reverse diffusion of chroma on its coarse grid, photos of one working shape together
        chroma = self._draw_all(
            photos,
            sources,
            at_once=at_once,
            num_inference_steps=steps,
            guidance_scale=guidance,
            palette=palette,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

        # 4. Chroma to full size, joined with the untouched lightness; of variants the most typical first
        images, pictures, maps = [], [], []
        for index, (photo, drawn) in enumerate(zip(photos, chroma, strict=True)):
            if seeds:
                order = order_by_typicality(seen_chroma(photo, drawn))
                drawn, seeds[index] = drawn[order], [seeds[index][i] for i in order]
            shown = [drawn.mean(dim=0), *drawn] if consensus == "mean" else drawn
            shown = [self._picture(photo, one, intensity, output_type) for one in shown]
            images.append(shown[0])
            pictures.append(shown[-variants:])
            if return_uncertainty:
                stated = measure_uncertainty(photo, drawn * intensity, fit=self.config.uncertainty_fit)  # [H, W]
                maps.append(stated if output_type == "pt" else stated.numpy())
        output = ColorizationPipelineOutput(images, pictures if seeds else None, seeds, maps or None)
        return output if return_dict else output.to_tuple()

    def prepare(
        self,
        photo: PhotoInput,
        *,
        working_size: int | None = None,
        borders: bool = True,
        hints: Sequence[Hint] = (),
    ) -> PreparedPhoto:
        """Read a photo and scale it to what the network sees of it.

        Args:
            photo: see :data:`PhotoInput`.
            working_size, borders, hints: as of a call, for this photo.
        """
        size = self.config.working_size if working_size is None else working_size
        return prepare_photo(
            read_photo(photo),
            working_size=check_count("working_size", size),
            stride=self.stride,
            cell=self.chroma_cell,
            borders=borders,
            hints=hints,
        )

    @torch.no_grad()
    def draw(
        self,
        prepared: PreparedPhoto | Sequence[PreparedPhoto],
        *,
        generators: Sequence[torch.Generator],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        palette: Palette | None = None,
        ties: Sequence[Tie] | None = None,
        on_step: Callable[[], object] | None = None,
        callback_on_step_end: Callable[..., dict[str, torch.Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """Draw the chroma grids a*, b* ``[N, 2, h, w]`` of N rows, from noise to picture, in CIELAB units.

        Args:
            prepared: a photo for each row, all of one working shape; the same one several times for variants of it.
                Or one photo for all rows.
            generators: source of randomness of each row.
            palette: of a reference photo, see :meth:`read_palette`; of one for all rows, or of one for each.
            ties: of each row, to a photo whose colours it gets, see :meth:`tie`.
            on_step: called after each denoising step.
            num_inference_steps, guidance_scale, callback_on_step_end, callback_on_step_end_tensor_inputs: as of a
                call.
        """
        steps, guidance = self._resolve(num_inference_steps, guidance_scale)
        photos = [prepared] * len(generators) if isinstance(prepared, PreparedPhoto) else list(prepared)
        if len(photos) != len(generators):
            raise ValueError(f"generators has {len(generators)} entries for {len(photos)} rows; give one each")
        self._check_callback(callback_on_step_end_tensor_inputs)
        device = self._execution_device
        steers = self._steers(photos, steps=steps, palette=palette, ties=ties, device=device)
        condition = self._condition_rows(photos, device).to(self.unet.dtype)  # [N, C, h, w]
        shape = (len(photos), self.unet.config.out_channels, *condition.shape[-2:])
        if self.config.objective == "regression":
            predicted = self.predict(torch.zeros(shape, device=device), torch.tensor(0), condition=condition)
            for _ in range(steps if on_step else 0):
                on_step()  # type: ignore[misc]
            return self.latents_to_chroma(predicted.cpu())
        scheduler = check_scheduler(self.scheduler)
        scheduler.set_timesteps(steps, device=device)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": list(generators)} if takes_generator else {}

        latents = randn_tensor(shape, generator=list(generators), device=device, dtype=torch.float32)
        latents = latents * (scheduler.init_noise_sigma * self.config.initial_noise)
        for step, timestep in enumerate(scheduler.timesteps):
            scale = scheduler.scale_model_input(torch.ones((), device=device), timestep)
            noisy = latents * scale
            predict = partial(self.predict, timestep=timestep, condition=condition, guidance_scale=guidance)
            if not steers:
                predicted = predict(noisy)
            else:
                alpha_bar = scheduler.alphas_cumprod[int(timestep)].to(noisy)
                kind = scheduler.config.prediction_type
                predicted, moved = steered_prediction(
                    predict, noisy, steers=steers, alpha_bar=alpha_bar, prediction_type=kind
                )
                latents = moved / scale
            # The sampler's arithmetic stays in float32: half precision would add its own noise at every step.
            latents = scheduler.step(predicted, timestep, latents, **extra).prev_sample
            if callback_on_step_end:
                tensors = {"latents": latents, "condition": condition}
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                tensors |= callback_on_step_end(self, step, timestep, given) or {}
                latents, condition = tensors["latents"], tensors["condition"]
            if on_step:
                on_step()
        return self.latents_to_chroma(latents.cpu())

    @torch.no_grad()
    def features(self, prepared: PreparedPhoto) -> torch.Tensor:
        """What the image encoder sees of a photo, ``[K, h, w]`` on the UNet's grid; its pixels without an encoder."""
        pixels = self.config.luma_factor**2 if self.image_encoder is not None else 0
        return self._condition_rows([prepared], self._execution_device)[0, pixels:].float().cpu()

    def tie(self, prepared: PreparedPhoto, other: PreparedPhoto, chroma: torch.Tensor) -> Tie:
        """What ties a photo's colours to those ``[2, h, w]`` that were drawn of another photo which shows the same."""
        features, others = self.features(prepared), self.features(other)
        level, other_level = (F.avg_pool2d(photo.lightness, self.config.luma_factor) for photo in (prepared, other))
        return match_colors(
            features,
            level,
            known=(others, other_level, F.interpolate(chroma[None], other_level.shape[-2:], mode="area")[0]),
        )

    def show(
        self, prepared: PreparedPhoto, chroma: torch.Tensor, *, intensity: float = 1.0, deep: bool = True
    ) -> Iterator[torch.Tensor]:
        """A photo's picture with the chroma grid ``[2, h, w]``, strip by strip from the top.

        Args:
            intensity: factor on chroma; hinted places get their colour as it is.
            deep: yields float32 sRGB ``[3, rows, W]`` in [0, 1]; else 8-bit ``[rows, W, 4]``, see :func:`compose`.
        """
        return compose(prepared, chroma * intensity, deep=deep)

    @property
    def _execution_device(self) -> torch.device:
        """Where the networks run. diffusers searches all modules for hooks, 2 ms; only offloaded ones need that."""
        offloaded = any(hasattr(self.unet, hook) for hook in ("_hf_hook", "_diffusers_hook"))
        return super()._execution_device if offloaded else self.unet.device

    @property
    def stride(self) -> int:
        """What height and width of the picture at working size are multiples of."""
        stride = self.config.luma_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        return stride if self.image_encoder is None else math.lcm(stride, _ENCODER_STRIDE)

    @property
    def chroma_cell(self) -> int:
        """Edge of a cell of the chroma grid, in pixels at working size."""
        return self.config.luma_factor // (1 if self.config.detail_scales is None else 2)

    @property
    def components(self) -> dict[str, Any]:
        """All that ``__init__`` takes: ``ColorizationPipeline(**pipe.components)`` is the same pipeline.

        diffusers keeps the config's numbers apart, in ``parameters``; who forgets them gets another picture.
        """
        return {**super().components, **super().parameters}

    @property
    def parameters(self) -> dict[str, Any]:
        """Empty, as ``components`` holds everything, so that both together can be given too."""
        return {}

    def chroma_to_latents(self, chroma: torch.Tensor) -> torch.Tensor:
        """:func:`chroma_to_latents` with this pipeline's scales."""
        return chroma_to_latents(chroma, self.config.chroma_scale, self.config.detail_scales)

    def latents_to_chroma(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`chroma_to_latents`."""
        return latents_to_chroma(latents, self.config.chroma_scale, self.config.detail_scales)

    def condition(self, lightness: torch.Tensor) -> torch.Tensor:
        """:func:`encode_lightness` with this pipeline's encoder and config."""
        return encode_lightness(
            lightness,
            luma_factor=self.config.luma_factor,
            image_encoder=self.image_encoder,
            encoder_layers=self.config.encoder_layers,
            encoder_mean=self.config.encoder_mean,
            encoder_std=self.config.encoder_std,
            encoder_scale=self.config.encoder_scale,
        )

    def predict(
        self, noisy: torch.Tensor, timestep: torch.Tensor, *, condition: torch.Tensor, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """The network's prediction (v or noise) for latents ``[B, C, h, w]``, float32, of the same shape.

        ``timestep`` is one for all photos, or ``[B]``; the network works in the dtype of the condition.

        With ``guidance_scale`` w other than 1 it is unconditional + w (conditional - unconditional). The
        *unconditional* prediction is that of the same network when the condition ``[B, C, h, w]`` is hidden, i.e. 0
        (classifier-free guidance, Ho & Salimans 2022, eq. 6 with w counted from 0). The derivative by ``noisy``, where
        one is wanted, is that of the *conditional* one alone: how the colours of this photo go together, which is what
        hints follow.
        """
        seen = torch.cat((condition, noisy), dim=1).to(condition.dtype)
        if guidance_scale == 1:
            return self.unet(seen, timestep).sample.float()
        hidden = torch.cat((torch.zeros_like(condition), noisy), dim=1).to(condition.dtype)
        if torch.is_grad_enabled():
            conditional = self.unet(seen, timestep).sample.float()
            with torch.no_grad():
                unconditional = self.unet(hidden, timestep).sample.float()
            return conditional + (guidance_scale - 1) * (conditional.detach() - unconditional)
        both = timestep.repeat(2) if timestep.ndim else timestep
        conditional, unconditional = self.unet(torch.cat((seen, hidden)), both).sample.float().chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def read_palette(self, reference: PhotoInput) -> Palette:
        """The palette of a colour photo, seen on a grid as coarse as that on which chroma is drawn.

        Raises:
            ValueError, TypeError: if it can't be read or is grey.
        """
        try:
            colors = read_colors(reference)
        except ValueError as error:
            raise PhotoError(f"reference: {error}") from error
        edge = self.config.working_size // self.config.luma_factor
        shrink = edge / min(colors.shape[-2:])
        size = [max(1, round(length * shrink)) for length in colors.shape[-2:]]
        lab = rgb_to_lab(F.interpolate(colors[None], size, mode="bilinear", antialias=True))
        if lab[:, 1:].norm(dim=1).mean() < _NEARLY_GRAY:
            raise PhotoError("reference is grey or nearly so: give a colour photo")
        return fit_palette(lab[:, :1], lab[:, 1:])

    @classmethod
    def from_pretrained(cls, source: str | Path | None, **kwargs: Any) -> "ColorizationPipeline":
        """As in diffusers, but weights as pickles, which can run any code when they are loaded, are refused."""
        # Without accelerate diffusers would choose the same, with a warning
        low_memory = {"low_cpu_mem_usage": is_accelerate_available()}
        return super().from_pretrained(source, **{**low_memory, **kwargs, "use_safetensors": True})

    def digest(self) -> str:
        """What this checkpoint is known by: SHA-256 of its weights (16 digits), and of its configuration (8 digits).

        Defaults that a call may change (steps, guidance scale, working size) aren't part of it. Take it before another
        precision takes the place of the UNet's.
        """
        weights = hashlib.sha256()
        for part in (self.unet, self.image_encoder):
            for name, value in sorted(part.state_dict().items()) if part is not None else ():
                weights.update(name.encode())
                weights.update(value.detach().float().cpu().reshape(-1).numpy())
        left_out = {"default_steps", "default_guidance", "working_size", "unet", "scheduler", "image_encoder"}
        # Checkpoints from before these stay known by the same
        neutral = {"uncertainty_fit": None, "initial_noise": 1.0}
        left_out |= {name for name, value in neutral.items() if self.config.get(name, value) == value}
        configs = [
            {name: value for name, value in one.items() if not name.startswith("_") and name not in left_out}
            for one in (self.config, self.unet.config, self.scheduler.config)
        ]
        text = json.dumps([type(self.scheduler).__name__, *configs], sort_keys=True)
        return f"{weights.hexdigest()[:16]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As in diffusers, and the pipeline's own code beside the weights.

        With it ``DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`` loads the
        checkpoint where this package isn't installed.
        """
        here = Path(__file__).parent
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for name in CODE_FILES:
            target = Path(save_directory) / name
            if target.resolve() != (here / name).resolve():
                shutil.copyfile(here / name, target)
        # diffusers notes where parts were loaded from: a folder of somebody's machine, which must not be published
        for part in (self, self.unet):
            part.register_to_config(_name_or_path="")
        super().save_pretrained(save_directory, **kwargs)

    def _resolve(self, num_inference_steps: int | None, guidance_scale: float | None) -> tuple[int, float]:
        """Steps and guidance scale of a call, the checkpoint's where none is given."""
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        if not 0 <= guidance <= 20:
            raise ValueError(f"guidance_scale must be between 0 and 20, got {guidance_scale!r}")
        return check_count("num_inference_steps", steps), guidance

    def _prepare_all(
        self, image: PhotoInput | Sequence[PhotoInput], hints: Any, **options: Any
    ) -> list[PreparedPhoto]:
        """Each photo of a call with its hints; an error says which photo it is about."""
        photos = list_photos(image)
        if photos[0] is image:
            return [self.prepare(photos[0], hints=[] if hints is None else hints, **options)]
        each = [None] * len(photos) if hints is None else hints
        if not isinstance(each, (list, tuple)) or len(each) != len(photos):
            raise ValueError(f"hints must be a list with a list of hints (or None) for each of {len(photos)} photos")
        prepared = []
        for index, (photo, known) in enumerate(zip(photos, each, strict=True)):
            try:
                prepared.append(self.prepare(photo, hints=known or [], **options))
            except (ValueError, TypeError) as error:
                raise type(error)(f"photo {index}: {error}") from error
        return prepared

    def _check_callback(self, tensor_inputs: Sequence[str]) -> None:
        unknown = sorted(set(tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise ValueError(f"callback_on_step_end_tensor_inputs must be of {allowed}; got {', '.join(unknown)}")

    def _draw_all(
        self,
        photos: Sequence[PreparedPhoto],
        sources: Sequence[Sequence[torch.Generator]],
        *,
        at_once: int,
        num_inference_steps: int,
        **options: Any,
    ) -> list[torch.Tensor]:
        """The chroma ``[V, 2, h, w]`` of each photo, one variant for each of its ``sources``, under a progress bar."""
        batches = _group(photos, at_once=at_once)
        chroma: dict[int, torch.Tensor] = {}
        with self.progress_bar(total=len(batches) * num_inference_steps) as bar:
            for batch in batches:
                drawn = self.draw(
                    [photos[index] for index in batch for _ in sources[index]],
                    generators=[one for index in batch for one in sources[index]],
                    num_inference_steps=num_inference_steps,
                    on_step=bar.update,
                    **options,
                )
                chroma.update(zip(batch, drawn.split(len(sources[0])), strict=True))
        self.maybe_free_model_hooks()
        return [chroma[index] for index in range(len(photos))]

    def _picture(
        self, prepared: PreparedPhoto, chroma: torch.Tensor, intensity: float, output_type: str
    ) -> PIL.Image.Image | np.ndarray | torch.Tensor:
        """The whole picture that :meth:`show` yields strip by strip, without a second full-size copy."""
        photo, pil = prepared.photo, output_type == "pil"
        strips = self.show(prepared, chroma, intensity=intensity, deep=not pil)
        if pil:
            pixels, top = np.empty((photo.height, photo.width, 3), np.uint8), 0
            for rgb in strips:
                pixels[top : top + len(rgb)] = rgb.numpy()[..., :3]
                top += len(rgb)
            return PIL.Image.fromarray(pixels)
        full = torch.empty(3, photo.height, photo.width)
        for (top, bottom), rgb in zip(photo.strips(), strips, strict=True):
            full[:, top:bottom] = rgb
        return full if output_type == "pt" else full.movedim(0, -1).numpy()

    def _spawn_generators(
        self, generator: torch.Generator | list[torch.Generator] | None, photos: int
    ) -> list[torch.Generator]:
        """One CPU generator a photo, so that a photo's noise doesn't depend on what it is batched with."""
        if isinstance(generator, list):
            if len(generator) != photos:
                raise ValueError(f"generator has {len(generator)} entries for {photos} photos; give one each, or one")
            return generator
        source = generator if generator is not None else torch.default_generator
        return _seeded(_draw_seeds(source, photos))

    def _condition_rows(self, photos: Sequence[PreparedPhoto], device: torch.device) -> torch.Tensor:
        """The condition ``[N, C, h, w]`` of N rows. Each photo goes through the image encoder once, by itself."""
        for photo in photos:
            with photo.lock:
                if photo.condition is None:
                    photo.condition = self.condition(photo.lightness[None].to(device))[0]
        return torch.stack([photo.condition for photo in photos])  # type: ignore[misc]

    def _steers(
        self,
        photos: Sequence[PreparedPhoto],
        *,
        steps: int,
        palette: Palette | None,
        ties: Sequence[Tie] | None,
        device: torch.device,
    ) -> list[Steer]:
        """What steers the drawing of these rows towards their hints, a palette or other photos.

        Raises:
            ValueError: if this checkpoint or its scheduler can't be steered.
        """
        hinted = [photo.hints for photo in photos]
        given = next((one for one in hinted if one is not None), None)
        if given is None and palette is None and ties is None:
            return []
        if self.config.objective != "diffusion":
            raise ValueError("known colours need a diffusion checkpoint; this one is a regression, in one pass")
        if not hasattr(self.scheduler, "alphas_cumprod"):
            raise ValueError(f"known colours don't work with {type(self.scheduler).__name__}; use DDPMScheduler")
        factor, scale = self.config.luma_factor, self.config.chroma_scale
        steers: list[Steer] = []
        if palette is not None:
            cells = F.avg_pool2d(torch.stack([photo.lightness for photo in photos]), factor).to(device)
            steers.append(PaletteSteer(palette, cells, scale=scale, steps=steps))
        if ties is not None:
            steers.append(TieSteer(ties, scale=scale, steps=steps))
        if given is not None:
            nothing = HintMap(torch.zeros_like(given.chroma), torch.zeros_like(given.known))
            targets, shares = zip(*((one or nothing).on_grid(factor) for one in hinted), strict=True)
            steers.append(HintSteer(torch.stack(targets).to(device) / scale, torch.stack(shares).to(device)))
        return steers


def _draw_seeds(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()


def _seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def check_scheduler(scheduler: Any) -> Any:
    """The scheduler, if it is one that draws right. Raises ``ValueError`` that says what to use instead."""
    name = type(scheduler).__name__
    remedy = "use pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
    if name not in SCHEDULERS:
        raise ValueError(f"{name} doesn't draw right colours with this pipeline; {remedy}, or one of {SCHEDULERS}")
    takes = inspect.signature(type(scheduler).__init__).parameters  # a config keeps what it had of another scheduler
    spacing = next((one for one in _OTHER_SPACINGS if one in takes and scheduler.config.get(one)), None)
    if spacing:
        raise ValueError(f"{name} with {spacing}=True doesn't draw right colours with this pipeline; leave it out")
    return scheduler


def _check_shown(intensity: float, output_type: str) -> None:
    if not 0 <= intensity <= 10:
        raise ValueError(f"intensity must be between 0 (grey) and 10, got {intensity!r}")
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")


def _group(photos: Sequence[PreparedPhoto], *, at_once: int) -> list[list[int]]:
    """Indices of photos that are drawn together: of one working shape, with hints or without."""
    groups: dict[tuple[torch.Size, bool], list[int]] = {}
    for index, photo in enumerate(photos):
        groups.setdefault((photo.lightness.shape, photo.hints is not None), []).append(index)
    return [group[i : i + at_once] for group in groups.values() for i in range(0, len(group), at_once)]
