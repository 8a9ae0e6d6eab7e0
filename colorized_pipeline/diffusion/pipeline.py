"""The colorization pipeline: a diffusion model of P(chroma | lightness) in CIELAB.

The grey photo *is* the lightness; only a*, b* are drawn by the diffusion, on a coarse grid, and joined with the
untouched full-size lightness. What travels with a checkpoint to the Hub (``CODE_FILES``) imports nothing else of this
project.
"""

import inspect
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import ImageOps
from transformers import PreTrainedModel

from .bands import BANDS, owed_noise
from .color import (
    L_MAX,
    Scratch,
    gray_to_lightness,
    lab_to_displayable_rgb,
    lab_to_rgb8,
    lightness_to_gray,
    rgb_to_lab,
    upsample_columns,
    upsample_rows,
)
from .hints import Hint, HintMap, map_hints
from .steering import HintSteer, Palette, PaletteSteer, Steer, SteerInTurn, fit_palette, steered_prediction
from .variants import check_answers, count_variants, order_by_typicality, spread

PhotoInput = str | Path | PIL.Image.Image | np.ndarray | torch.Tensor

# What travels with a checkpoint
CODE_FILES = ("pipeline.py", "bands.py", "color.py", "hints.py", "steering.py", "variants.py")

_LONGEST_OVER_WORKING_SIZE = 16  # a strip that is longer than this is scaled down to it and padded
_ENCODER_STRIDE = 32  # ImageNet networks halve their input five times
_ENCODER_PIXELS = 2**19
_NEARLY_GREY = 2.0  # a mean chroma below it is no palette
_STRIP_PIXELS = 2**17  # full-size conversion goes by strips of about this many pixels: fastest of 2^15 ... 2^20
_SHALLOW_PIXELS = 2**20  # of a strip of 8 bits, whose conversion goes by smaller parts itself

_scratch = Scratch()


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
            digits: a network's sums depend on the batch a little). ``None`` if one was drawn.
        uncertainty: of each input a map ``[H, W]`` of how far its variants differ, float32, in ΔE*ab: see
            :func:`spread`; tensors for ``"pt"``, else arrays. ``None`` if not asked for.
    """

    images: list[Any]
    variants: list[list[Any]] | None = None
    seeds: list[list[int]] | None = None
    uncertainty: list[Any] | None = None


class Lightness:
    """A photo's L* at full size, float32 only strip by strip: a scan of whole numbers keeps its 1 or 2 bytes a pixel.

    Args:
        values: L* ``[1, H, W]`` in [0, 100], float32; or sRGB-encoded grey ``[H, W]`` over the full range of uint8 or
            uint16.
    """

    def __init__(self, values: torch.Tensor | np.ndarray) -> None:
        self._values = values
        self.height, self.width = int(values.shape[-2]), int(values.shape[-1])

    def rows(self, top: int, bottom: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows ``top`` to ``bottom`` as L* ``[1, rows, W]`` in [0, 100], float32, in ``out`` if that is given."""
        if isinstance(self._values, torch.Tensor):
            rows = self._values[:, top:bottom]
            return rows if out is None else out.copy_(rows)
        table = _lightness_table(np.iinfo(self._values.dtype).max)
        values = self._values[top:bottom]
        codes = _scratch.take("codes", *values.shape, dtype=torch.int32)
        codes.numpy()[:] = values
        flat = None if out is None else out.view(-1)
        return torch.index_select(table, 0, codes.view(-1), out=flat).view(1, *codes.shape)

    def crop(self, top: int, left: int, bottom: int, right: int) -> "Lightness":
        """A part of the photo, without a copy."""
        return Lightness(self._values[..., top:bottom, left:right])

    def strips(self, *, multiple_of: int = 1, pixels: int = _STRIP_PIXELS) -> Iterator[tuple[int, int]]:
        """``(top, bottom)`` of strips of rows that are small enough to work on in the processor's cache.

        All but the last have a multiple of ``multiple_of`` rows, about ``pixels`` pixels.
        """
        rows = max(1, pixels // (self.width * multiple_of)) * multiple_of
        for top in range(0, self.height, rows):
            yield top, min(top + rows, self.height)


@cache
def _lightness_table(largest: int) -> torch.Tensor:
    """L* of every grey value 0 ... ``largest``, float32."""
    return gray_to_lightness(torch.arange(largest + 1, dtype=torch.float64) / largest).float()


@dataclass(frozen=True)
class WorkingPhoto:
    """What the network reads of a photo, and how its chroma grid lies on the photo.

    Attributes:
        lightness: L* ``[1, h, w]`` in [0, 100] at working size, padded to the UNet's stride.
        cell: height and width of a cell of the chroma grid, in pixels of the photo.
        box: top, left, bottom and right of the part that is colorized, in pixels; what surrounds it stays grey.
    """

    lightness: torch.Tensor
    cell: tuple[float, float]
    box: tuple[int, int, int, int]


def encode_lightness(
    lightness: torch.Tensor,
    *,
    luma_factor: int,
    image_encoder: PreTrainedModel | None = None,
    encoder_layers: Sequence[int] = (),
    encoder_mean: float = 0.0,
    encoder_std: float = 1.0,
    encoder_scale: int = 1,
) -> torch.Tensor:
    """What the UNet is told of the grey photo: its fine detail, and, with an encoder, what it shows.

    Args:
        lightness: L* ``[B, 1, H, W]`` in [0, 100]; height and width divisible by ``luma_factor``.
        luma_factor: each cell of the chroma grid gets its luma_factor² lightness pixels as channels, in [-1, 1]
            (space-to-depth).
        image_encoder: frozen network; sees the photo as three equal sRGB channels x in [0, 1], given as
            ``(x - encoder_mean) / encoder_std``.
        encoder_scale: the encoder sees the photo bilinearly enlarged so many times. A network that learnt from larger
            pictures than the working size recognizes more then, and its features are finer by this factor.
        encoder_layers: which of its hidden states are used. Each location's feature vector is standardized over its
            channels (so no encoder needs a scale of its own) and brought to the chroma grid bilinearly.

    Returns:
        ``[B, luma_factor ** 2 + K, H / luma_factor, W / luma_factor]`` with K feature channels.
    """
    condition = F.pixel_unshuffle(lightness * (2 / L_MAX) - 1, luma_factor)
    if image_encoder is None:
        return condition
    gray = (lightness_to_gray(lightness) - encoder_mean) / encoder_std
    if encoder_scale != 1:
        gray = F.interpolate(gray, scale_factor=encoder_scale, mode="bilinear")
    pixels = gray.expand(-1, 3, -1, -1).to(image_encoder.dtype)
    # Parts whose activations stay near the processor's cache: three times as fast as 64 photos of 256 pixels at once
    at_once = max(1, _ENCODER_PIXELS // pixels[0, 0].numel()) if pixels.device.type == "cpu" else len(pixels)
    parts = []
    for part in pixels.split(at_once):
        hidden_states = image_encoder(part, output_hidden_states=True).hidden_states
        parts.append([hidden_states[layer] for layer in encoder_layers])
    maps = [condition]
    for layer in zip(*parts, strict=True):
        features = torch.cat(layer).to(condition.dtype)
        features = F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
        maps.append(F.interpolate(features, condition.shape[-2:], mode="bilinear"))
    return torch.cat(maps, dim=1)


def condition_channels(
    luma_factor: int, image_encoder: PreTrainedModel | None = None, encoder_layers: Sequence[int] = ()
) -> int:
    """How many channels :func:`encode_lightness` returns for this encoder: the UNet's in_channels less 2."""
    probe = torch.full((1, 1, 64, 64), L_MAX / 2, device=image_encoder.device if image_encoder is not None else None)
    with torch.no_grad():
        return encode_lightness(
            probe, luma_factor=luma_factor, image_encoder=image_encoder, encoder_layers=encoder_layers
        ).shape[1]


class ColorizationPipeline(DiffusionPipeline):
    """Gives grey photos plausible colours by conditional diffusion in CIELAB.

    Args:
        unet: ``UNet2DModel`` with in_channels = luma_factor² (lightness) + K (features of ``image_encoder``) + 2
            (noisy chroma) and out_channels = 2.
        scheduler: the noise schedule that the UNet was trained with. For sampling any diffusers scheduler does:
            ``pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)``.
        image_encoder: optional frozen transformers vision model with ``hidden_states``, read from the grey photo.
        luma_factor: lightness pixels per chroma cell along each axis.
        chroma_scale: a*, b* divided by this are what the diffusion sees.
        working_size: shorter side, in pixels, at which the network reads a photo.
        default_steps: number of denoising steps when a call doesn't say.
        default_guidance: guidance scale when a call doesn't say. Above 1 it needs a UNet that was trained with
            condition dropout.
        chroma_spread: standard deviation of a photo's chroma around what the network guesses from pure noise, over
            ``chroma_scale``, in each of 6 bands of spatial frequency from fine to coarse. With it a DDPM step also
            draws what the network's guess leaves open, see :func:`owed_noise`. As measured, or tuned: less in coarse
            bands and more in fine ones came nearer to real photos. ``None``: steps as DDPM's.
        encoder_layers, encoder_mean, encoder_std, encoder_scale: see :func:`encode_lightness`.
        objective: ``"diffusion"``, or ``"regression"`` for a UNet trained to predict mean chroma in one pass (a
            baseline; steps and scheduler then mean nothing).

    >>> from colorized_pipeline import ColorizationPipeline
    >>> pipe = ColorizationPipeline.from_pretrained("path/or/hub-id")
    >>> pipe("scan.jpg", generator=torch.Generator().manual_seed(0)).images[0].save("colour.png")
    """

    model_cpu_offload_seq = "image_encoder->unet"
    _optional_components: ClassVar[list[str]] = ["image_encoder"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        image_encoder: PreTrainedModel | None = None,
        luma_factor: int = 4,
        chroma_scale: float = 40.0,
        working_size: int = 128,
        default_steps: int = 25,
        default_guidance: float = 1.0,
        chroma_spread: list[float] | tuple[float, ...] | None = None,
        encoder_layers: list[int] | tuple[int, ...] = (11, 16),
        encoder_mean: float = 127 / 255,
        encoder_std: float = 128 / 255,
        encoder_scale: int = 1,
        objective: str = "diffusion",
    ) -> None:
        super().__init__()
        if objective not in ("diffusion", "regression"):
            raise ValueError(f"objective must be 'diffusion' or 'regression', got {objective!r}")
        if unet.config.out_channels != 2:
            raise ValueError(f"unet must have out_channels=2 (a*, b*), got {unet.config.out_channels}")
        # None and not an empty list where there is none: diffusers' download from the Hub fails on that
        if chroma_spread is not None and (len(chroma_spread) != BANDS or min(chroma_spread) < 0):
            raise ValueError(f"chroma_spread must be {BANDS} numbers of at least 0, or None, got {chroma_spread!r}")
        self.register_modules(unet=unet, scheduler=scheduler, image_encoder=image_encoder)
        self.register_to_config(
            luma_factor=luma_factor,
            chroma_scale=chroma_scale,
            working_size=working_size,
            default_steps=default_steps,
            default_guidance=default_guidance,
            chroma_spread=None if chroma_spread is None else list(chroma_spread),
            encoder_layers=tuple(encoder_layers),
            encoder_mean=encoder_mean,
            encoder_std=encoder_std,
            encoder_scale=encoder_scale,
            objective=objective,
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
    ) -> ColorizationPipelineOutput:
        """Colorize one photo or a list of photos, of any sizes.

        Args:
            image: path, PIL image of any mode, array (``[H, W]`` or ``[H, W, C]``) or tensor (``[H, W]``,
                ``[1, H, W]``, ``[3, H, W]`` or a batch ``[B, C, H, W]``); integers over their dtype's full range,
                floats in [0, 1]. Or a list of these. A colour photo is taken as its lightness.
            num_inference_steps: denoising steps; more is slower and finer. Default: the checkpoint's
                ``default_steps``.
            generator: source of randomness, or one per photo. The same generator state gives the same picture,
                however photos are batched.
            guidance_scale: how far each step leans from what the network says of any photo towards what it says of
                this one: 1 is the plain answer, above 1 costs a second pass a step and gives surer, stronger colours.
                Default: the checkpoint's.
            intensity: factor on chroma: 0 is grey, 1 what the model drew, above 1 more vivid.
            working_size: shorter side at which the network reads the photo, in pixels. Default: the checkpoint's.
            batch_size: photos of one working shape that are denoised together, variants counted; those of one photo
                always are.
            hints: colours that are known: a list of (region, colour), for a list of photos one such list (or None) a
                photo. Region: ``(x, y, radius)`` or ``(left, top, right, bottom)`` in pixels of the upright photo, or
                a mask picture of its size, light where the colour is. Colour: a CSS name, hex, or CIELAB
                ``(L*, a*, b*)``; its a*, b* count, as lightness stays the photo's. Instead of a pair: a picture of
                the photo's size, transparent (or, without transparency, black) where nothing is known. The hinted
                places get their colour as it is, whatever ``intensity``, and the others follow.
            reference: a colour photo, e.g. a later one of the same place, whose palette the results shall have: how
                much of each colour, and which with which lightness.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            return_dict: ``False`` returns a plain tuple of the output's fields that aren't ``None``: ``(images,)``,
                with variants ``(images, variants, seeds)``, and then the uncertainty if asked for.
            num_variants: different colourings of each photo. The photo is read, scaled and shown to the image encoder
                once. Default: 1, or 8 where ``consensus`` or ``return_uncertainty`` needs several.
            consensus: what ``images`` holds of several variants, for the cautious: ``"medoid"``, the most typical of
                them (so it is without this argument), or ``"mean"``, the mean of their chroma at each place: nearest
                to the truth on average, paler than any one of them.
            return_uncertainty: also a map of how far the variants differ.

        Returns:
            :class:`ColorizationPipelineOutput`. Lightness is the input's; colours that sRGB can't show at that
            lightness lose chroma, not hue.

        Raises:
            ValueError, TypeError: for an argument that can't be used; the message says which and why.
        """
        # 1. Arguments, with defaults from the checkpoint's config
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        size = self.config.working_size if working_size is None else working_size
        _check_counts(num_inference_steps=steps, working_size=size, batch_size=batch_size)
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        if not 0 <= guidance <= 20:
            raise ValueError(f"guidance_scale must be between 0 and 20, got {guidance_scale!r}")
        if not 0 <= intensity <= 10:
            raise ValueError(f"intensity must be between 0 (grey) and 10, got {intensity!r}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
        variants = count_variants(num_variants, consensus=consensus, uncertainty=return_uncertainty)
        _check_counts(num_variants=variants)
        check_answers(self.config.objective, variants)

        # 2. Every accepted input becomes full-size lightness, [1, H, W] in [0, 100]
        palette = None if reference is None else self.read_palette(reference)
        given = _as_list(image)
        photos = [Lightness(_read_lightness(one)) for one in given]
        generators = self._spawn_generators(generator, len(photos))
        seeds = [_draw_seeds(one, variants) for one in generators] if variants > 1 else None

        # 3. Lightness at working size, padded to the UNet's stride; photos of one shape go through it together
        working = [self.prepare(photo, working_size=size) for photo in photos]
        hinted = self._map_hints(hints, photos, working, alone=given[0] is image)
        groups: dict[tuple[torch.Size, bool], list[int]] = {}
        for index, one in enumerate(working):
            groups.setdefault((one.lightness.shape, hinted[index] is not None), []).append(index)
        at_once = max(1, batch_size // variants)
        batches = [group[i : i + at_once] for group in groups.values() for i in range(0, len(group), at_once)]

        # 4. Reverse diffusion of chroma on its coarse grid
        chroma: dict[int, torch.Tensor] = {}  # [V, 2, h, w] a photo
        with self.progress_bar(total=len(batches) * steps) as bar:
            for batch in batches:
                lightness = torch.stack([working[index].lightness for index in batch])  # [B, 1, h, w]
                drawn = self.draw_chroma(
                    lightness.repeat_interleave(variants, dim=0),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generators=[one for i in batch for one in (_seeded(seeds[i]) if seeds else generators[i : i + 1])],
                    on_step=bar.update,
                    variants=variants,
                    steer=self.steer(
                        lightness.repeat_interleave(variants, dim=0),
                        hints=[hinted[index] for index in batch for _ in range(variants)],
                        palette=palette,
                        steps=steps,
                    ),
                )
                chroma.update(zip(batch, drawn.split(variants), strict=True))

        # 5. Chroma to full size, joined with the untouched lightness; of variants the most typical first
        images, pictures, maps = [], [], []
        deep = output_type != "pil"
        for index, photo in enumerate(photos):
            drawn, place = impose_hints(chroma[index] * intensity, hinted[index], working=working[index])
            if seeds:
                order = order_by_typicality(seen_chroma(drawn, working=place))
                drawn, seeds[index] = drawn[order], [seeds[index][i] for i in order]
            pictures.append(
                [_to_output(photo, compose(photo, one, working=place, deep=deep), output_type) for one in drawn]
            )
            images.append(pictures[index][0])
            if consensus == "mean":
                mean = compose(photo, drawn.mean(dim=0), working=place, deep=deep)
                images[index] = _to_output(photo, mean, output_type)
            if return_uncertainty:
                doubt = torch.cat(list(measure_spread(photo, drawn, working=place)))  # [H, W]
                maps.append(doubt if output_type == "pt" else doubt.numpy())

        self.maybe_free_model_hooks()
        output = ColorizationPipelineOutput(
            images=images, variants=pictures if seeds else None, seeds=seeds, uncertainty=maps or None
        )
        return output if return_dict else output.to_tuple()

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

    @torch.no_grad()
    def draw_chroma(
        self,
        lightness: torch.Tensor,
        *,
        num_inference_steps: int,
        generators: list[torch.Generator],
        guidance_scale: float = 1.0,
        on_step: Callable[[], object] | None = None,
        variants: int = 1,
        steer: Steer | None = None,
    ) -> torch.Tensor:
        """Sample a*, b* ``[B, 2, h, w]`` in CIELAB units for lightness ``[B, 1, h * f, w * f]``, noise to picture.

        One generator a row; ``on_step`` is called after each denoising step. Each ``variants`` rows in turn are one
        photo repeated, and its image encoder's work is done once. ``steer`` corrects each guess of x_0.
        """
        device = self._execution_device
        condition = self.condition(lightness[::variants].to(device)).repeat_interleave(variants, dim=0)  # [B, C, h, w]
        shape = (len(lightness), 2, *condition.shape[-2:])
        if self.config.objective == "regression":
            nothing = torch.zeros(shape, device=device)
            predicted = self.unet(torch.cat((condition, nothing), dim=1).to(self.unet.dtype), 0).sample
            for _ in range(num_inference_steps):
                if on_step:
                    on_step()
            return predicted.float().cpu() * self.config.chroma_scale
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generators} if takes_generator else {}

        chroma = randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)
        chroma = chroma * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            noisy = self.scheduler.scale_model_input(chroma, timestep)
            answer = partial(self.predict, timestep=timestep, condition=condition, guidance_scale=guidance_scale)
            if steer is None:
                predicted = answer(noisy)
            else:
                predicted, moved = steered_prediction(
                    answer,
                    noisy,
                    steer=steer,
                    alpha_bar=self.scheduler.alphas_cumprod[int(timestep)].to(noisy),
                    prediction_type=self.scheduler.config.prediction_type,
                )
                chroma = chroma + (moved - noisy) * (chroma.norm() / noisy.norm())
            # The sampler's sums stay in float32: half precision would add its own noise at every step.
            chroma = self.scheduler.step(predicted, timestep, chroma, **extra).prev_sample
            chroma = self.add_owed_noise(chroma, timestep, generators=generators)
            if on_step:
                on_step()
        return chroma.cpu() * self.config.chroma_scale

    def add_owed_noise(
        self, chroma: torch.Tensor, timestep: torch.Tensor, *, generators: list[torch.Generator]
    ) -> torch.Tensor:
        """Noisy chroma ``[B, 2, h, w]`` after the scheduler's step from ``timestep``, with what the step left out.

        That is :func:`owed_noise`, one generator a row. After the last step, with another scheduler than DDPM's and
        without ``chroma_spread`` nothing is owed.
        """
        scheduler, spread = self.scheduler, self.config.chroma_spread
        if spread is None or not isinstance(scheduler, DDPMScheduler) or timestep == scheduler.timesteps[-1]:
            return chroma
        white = randn_tensor(chroma.shape, generator=generators, device=chroma.device, dtype=chroma.dtype)
        start, reached = int(timestep), int(scheduler.previous_timestep(timestep))
        alpha_bar, next_alpha_bar = scheduler.alphas_cumprod[[start, reached]].tolist()
        return chroma + owed_noise(white, spread=spread, alpha_bar=alpha_bar, next_alpha_bar=next_alpha_bar)

    def predict(
        self, noisy: torch.Tensor, timestep: torch.Tensor, *, condition: torch.Tensor, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """The network's answer (v or noise) for noisy chroma ``[B, 2, h, w]``, float32, of the same shape.

        ``timestep`` is one for all photos, or ``[B]``.

        With ``guidance_scale`` w other than 1 it is untold + w (told - untold), where *untold* is the answer of the
        same network when the condition ``[B, C, h, w]`` is hidden, i.e. 0 (classifier-free guidance, Ho & Salimans
        2022, eq. 6 with w counted from 0). Its derivative by ``noisy``, where one is wanted, is that of *told* alone:
        how the colours of this photo go together, which is what hints follow.
        """
        told = torch.cat((condition, noisy), dim=1).to(self.unet.dtype)
        if guidance_scale == 1:
            return self.unet(told, timestep).sample.float()
        untold = torch.cat((torch.zeros_like(condition), noisy), dim=1).to(self.unet.dtype)
        if torch.is_grad_enabled():
            with_condition = self.unet(told, timestep).sample.float()
            with torch.no_grad():
                without = self.unet(untold, timestep).sample.float()
            return with_condition + (guidance_scale - 1) * (with_condition.detach() - without)
        both = timestep.repeat(2) if timestep.ndim else timestep
        answers = self.unet(torch.cat((told, untold)), both).sample.float()
        with_condition, without = answers.chunk(2)
        return without + guidance_scale * (with_condition - without)

    def steer(
        self,
        lightness: torch.Tensor,
        *,
        steps: int,
        hints: Sequence[HintMap | None] = (),
        palette: Palette | None = None,
    ) -> Steer | None:
        """What steers the drawing of a batch, in so many steps, towards its photos' hints or a palette; None without.

        Raises:
            ValueError: if this checkpoint or its scheduler can't be steered.
        """
        given = next((one for one in hints if one is not None), None)
        if given is None and palette is None:
            return None
        if self.config.objective != "diffusion":
            raise ValueError("hints and reference need a diffusion checkpoint; this one is a regression, in one pass")
        if not hasattr(self.scheduler, "alphas_cumprod"):
            raise ValueError(f"hints and reference don't work with {type(self.scheduler).__name__}; use DDPMScheduler")
        factor, scale, device = self.config.luma_factor, self.config.chroma_scale, self._execution_device
        steers: list[Steer] = []
        if palette is not None:
            cells = F.avg_pool2d(lightness, factor).to(device)
            steers.append(PaletteSteer(palette, cells, scale=scale, steps=steps))
        if given is not None:
            nothing = HintMap(torch.zeros_like(given.chroma), torch.zeros_like(given.known))
            targets, shares = zip(*((one or nothing).on_grid(factor) for one in hints), strict=True)
            steers.append(HintSteer(torch.stack(targets).to(device) / scale, torch.stack(shares).to(device)))
        return steers[0] if len(steers) == 1 else SteerInTurn(steers)

    def read_palette(self, reference: PhotoInput) -> Palette:
        """The palette of a colour photo, seen on a grid as coarse as that on which chroma is drawn.

        Raises:
            ValueError, TypeError: if it can't be read or is grey.
        """
        try:
            pixels = _read_pixels(reference)
        except ValueError as error:
            raise ValueError(f"reference: {error}") from error
        edge = self.config.working_size // self.config.luma_factor
        shrink = edge / min(pixels.shape[-2:])
        size = [max(1, round(length * shrink)) for length in pixels.shape[-2:]]
        small = F.interpolate(pixels[None, :3], size, mode="bilinear", antialias=True)
        lab = rgb_to_lab(small.expand(-1, 3, -1, -1))
        if lab[:, 1:].norm(dim=1).mean() < _NEARLY_GREY:
            raise ValueError("reference is grey or nearly so: give a colour photo")
        return fit_palette(lab[:, :1], lab[:, 1:])

    def map_hints(self, hints: Sequence[Hint], photo: Lightness, working: WorkingPhoto) -> HintMap | None:
        """Hints placed on a photo's working picture; None without any. Raises ``ValueError`` or ``TypeError``."""
        if len(hints) == 0:
            return None
        top, left, bottom, right = working.box
        return map_hints(
            hints,
            size=(photo.height, photo.width),
            box=working.box,
            rows=round((bottom - top) / working.cell[0] * self.config.luma_factor),
            columns=round((right - left) / working.cell[1] * self.config.luma_factor),
            padded=(working.lightness.shape[-2], working.lightness.shape[-1]),
        )

    def _map_hints(
        self, hints: Any, photos: Sequence[Lightness], working: Sequence[WorkingPhoto], *, alone: bool
    ) -> list[HintMap | None]:
        """The argument ``hints`` of a call, one map or None a photo."""
        if hints is None:
            return [None] * len(photos)
        each = [hints] if alone else hints
        if not isinstance(each, (list, tuple)) or len(each) != len(photos):
            raise ValueError(f"hints must be a list with a list of hints (or None) for each of {len(photos)} photos")
        maps = []
        for index, one in enumerate(each):
            try:
                maps.append(self.map_hints(one or [], photos[index], working[index]))
            except (ValueError, TypeError) as error:
                raise error if alone else type(error)(f"photo {index}: {error}") from error
        return maps

    def prepare(
        self, photo: Lightness, *, working_size: int | None = None, box: tuple[int, int, int, int] | None = None
    ) -> WorkingPhoto:
        """Scale a photo, or the part of it inside ``box``, to the working size and pad it to the UNet's stride."""
        size = self.config.working_size if working_size is None else working_size
        box = box or (0, 0, photo.height, photo.width)
        height, width = box[2] - box[0], box[3] - box[1]
        pixel = max(min(height, width) / size, max(height, width) / (size * _LONGEST_OVER_WORKING_SIZE))
        rows, columns = max(1, round(height / pixel)), max(1, round(width / pixel))
        scaled = _scale(photo, box, rows=rows, columns=columns)
        factor = self.config.luma_factor
        stride = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if self.image_encoder is not None:
            stride = math.lcm(stride, _ENCODER_STRIDE)
        down, right = -rows % stride, -columns % stride
        mode = "reflect" if down < rows and right < columns else "replicate"
        padded = F.pad(scaled[None], (0, right, 0, down), mode=mode)[0]
        return WorkingPhoto(lightness=padded, cell=(height / rows * factor, width / columns * factor), box=box)

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


def _draw_seeds(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()


def _seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _as_list(image: PhotoInput | Sequence[PhotoInput]) -> list[PhotoInput]:
    if isinstance(image, (list, tuple)):
        if not image:
            raise ValueError("image is an empty list: give at least one photo")
        return list(image)
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    return [image]  # type: ignore[list-item]


def _read_lightness(image: PhotoInput) -> torch.Tensor:
    """Any accepted photo to L* ``[1, H, W]`` in [0, 100], float32 on the CPU."""
    pixels = _read_pixels(image)
    return gray_to_lightness(pixels) if pixels.shape[0] == 1 else rgb_to_lab(pixels[:3])[:1]


def _read_pixels(image: PhotoInput) -> torch.Tensor:
    """Any accepted photo to gamma-encoded values ``[1, 3 or 4, H, W]`` in [0, 1], float32 on the CPU."""
    if isinstance(image, (str, Path)):
        decoded = _decode_file(image)
        try:
            return _read_pixels(decoded)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    if isinstance(image, PIL.Image.Image):
        pixels = _pixels_of_pil(image)
    elif isinstance(image, np.ndarray):
        channels_first = image if image.ndim == 2 else np.moveaxis(image, -1, 0)
        pixels = torch.from_numpy(np.ascontiguousarray(_to_unit_range(channels_first)))
    elif isinstance(image, torch.Tensor):
        values = image.detach().cpu()
        values = values.float() if image.is_floating_point() else values  # NumPy has no bfloat16
        pixels = torch.from_numpy(_to_unit_range(values.numpy()))
    else:
        raise TypeError(
            f"image must be a path, PIL image, array, tensor or a list of them, got {type(image).__name__}"
        )

    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or not pixels.numel():
        raise ValueError(
            f"image has shape {tuple(pixels.shape)} (channels first); expected [H, W], or 1, 3 or 4 channels: "
            "arrays as [H, W, C], tensors as [C, H, W]"
        )
    return pixels


def _decode_file(file: str | Path) -> PIL.Image.Image:
    """The photo in a file, decoded whole and upright. Raises ``OSError`` that names the file."""
    try:
        with PIL.Image.open(file) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types for damaged files
        raise OSError(f"{file}: can't be read as a photo ({error})") from error


def _pixels_of_pil(image: PIL.Image.Image) -> torch.Tensor:
    """sRGB or grey in [0, 1], ``[H, W]`` or ``[3, H, W]``; 16-bit grey keeps its 16 bits, transparency is dropped."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"image has mode {image.mode} with values {values.min()} to {values.max()}: not 16-bit grey"
            )
        return torch.from_numpy(values / 65535)
    if image.mode == "F":
        return torch.from_numpy(_to_unit_range(np.asarray(image)).copy())
    image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels if pixels.ndim == 2 else pixels.movedim(-1, 0)


def _to_unit_range(array: np.ndarray) -> np.ndarray:
    """Integers over their dtype's range, booleans, or floats in [0, 1], to float32 in [0, 1]."""
    if array.dtype == bool:
        return array.astype(np.float32)
    if array.dtype.kind in "ui":
        return (array.astype(np.float64) / np.iinfo(array.dtype).max).astype(np.float32)
    if array.dtype.kind != "f":
        raise TypeError(f"image has dtype {array.dtype}; use an integer or a floating-point dtype")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("image holds NaN or infinite values")
    if values.size and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"image is {array.dtype} with values from {values.min():g} to {values.max():g}; floats must lie in [0, 1] "
            "(divide by 255, or pass an integer dtype)"
        )
    return values


def _scale(photo: Lightness, box: tuple[int, int, int, int], *, rows: int, columns: int) -> torch.Tensor:
    """The part of a photo inside ``box`` at another size, L* ``[1, rows, columns]``, antialiased.

    Narrowed strip by strip, then shortened: the full-size float32 picture never exists.
    """
    top, left, bottom, right = box
    narrow = [
        F.interpolate(
            photo.rows(max(start, top), min(stop, bottom))[None, ..., left:right],
            (min(stop, bottom) - max(start, top), columns),
            mode="bilinear",
            antialias=True,
        )
        for start, stop in photo.strips()
        if start < bottom and stop > top
    ]
    return F.interpolate(torch.cat(narrow, dim=-2), (rows, columns), mode="bilinear", antialias=True)[0]


def compose(
    photo: Lightness, chroma: torch.Tensor, *, working: WorkingPhoto, deep: bool = True
) -> Iterator[torch.Tensor]:
    """Join a photo's full-size lightness with its chroma grid ``[2, h, w]``, strip by strip from the top.

    Yields:
        sRGB ``[3, rows, W]`` in [0, 1], float32, for each of ``photo.strips()``; if not ``deep`` 8-bit sRGB
        ``[rows, W, 4]``, much faster, for larger strips: see :func:`lab_to_rgb8`.
    """
    top, left, bottom, right = working.box
    columns = upsample_columns(chroma.float(), right - left, working.cell[1])  # [2, h, right - left]
    for start, stop in photo.strips(pixels=_STRIP_PIXELS if deep else _SHALLOW_PIXELS):
        lab = _scratch.take("lab", 3, stop - start, photo.width)
        photo.rows(start, stop, out=lab[:1])
        inside = slice(max(start, top) - start, max(min(stop, bottom) - start, 0))
        if working.box == (0, 0, photo.height, photo.width):
            upsample_rows(columns, start, stop, working.cell[0], out=lab[1:])
        else:
            lab[1:] = 0.0
            if inside.start < inside.stop:
                lab[1:, inside, left:right] = upsample_rows(
                    columns, max(start, top) - top, min(stop, bottom) - top, working.cell[0]
                )
        yield lab_to_displayable_rgb(lab) if deep else lab_to_rgb8(lab)


def impose_hints(
    chroma: torch.Tensor, hints: HintMap | None, *, working: WorkingPhoto
) -> tuple[torch.Tensor, WorkingPhoto]:
    """Drawn chroma ``[..., 2, h, w]`` with its hints exactly as given, and how the finer grid that it takes lies."""
    if hints is None:
        return chroma, working
    factor = hints.known.shape[-1] // chroma.shape[-1]
    cell = (working.cell[0] / factor, working.cell[1] / factor)
    return hints.impose(chroma, factor), replace(working, cell=cell)


def seen_chroma(chroma: torch.Tensor, *, working: WorkingPhoto) -> torch.Tensor:
    """A photo's chroma grid ``[..., h, w]`` without the cells that lie wholly in its padding."""
    top, left, bottom, right = working.box
    rows, columns = (bottom - top) / working.cell[0], (right - left) / working.cell[1]
    return chroma[..., : math.ceil(rows - 1e-6), : math.ceil(columns - 1e-6)]


def measure_spread(photo: Lightness, chroma: torch.Tensor, *, working: WorkingPhoto) -> Iterator[torch.Tensor]:
    """How far the colourings ``[N, 2, h, w]`` of a photo differ as they are shown, strip by strip from the top.

    Colours that sRGB lacks are shown with less chroma, so the deepest shadows and the lights differ little.

    Yields:
        ``[rows, W]`` in ΔE*ab, see :func:`spread`, for each of ``photo.strips()``.
    """
    for strips in zip(*(compose(photo, one, working=working) for one in chroma), strict=True):
        yield spread(torch.stack([rgb_to_lab(rgb)[1:] for rgb in strips]))


def _to_output(
    photo: Lightness, strips: Iterator[torch.Tensor], output_type: str
) -> PIL.Image.Image | np.ndarray | torch.Tensor:
    """Collect the strips of :func:`compose`, deep ones but for "pil", without a second full-size copy."""
    if output_type == "pil":
        pixels = np.empty((photo.height, photo.width, 3), np.uint8)
        top = 0
        for rgb in strips:
            pixels[top : top + len(rgb)] = rgb.numpy()[..., :3]
            top += len(rgb)
        return PIL.Image.fromarray(pixels)
    full = torch.empty(3, photo.height, photo.width)
    for (top, bottom), rgb in zip(photo.strips(), strips, strict=True):
        full[:, top:bottom] = rgb
    return full if output_type == "pt" else full.movedim(0, -1).numpy()
