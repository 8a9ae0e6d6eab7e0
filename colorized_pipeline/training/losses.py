"""Training objectives: what the network is shown, what it should predict, and the loss.

No random number is drawn here. A training step is the same for all of them; noise and timesteps are arguments::

    noisy, at = objective.add_noise(chroma, noise, timesteps)
    predicted = network(torch.cat((condition, noisy), dim=1), at)
    target = objective.target(chroma, noise, at)
    loss = objective.loss(predicted, target, at)

Everywhere ``chroma`` is the true chroma as it is diffused, ``noise`` is standard normal, ``noisy`` is what the network
sees of the chroma, all ``[B, N, h, w]``; ``condition`` is what is known of the grey photo, ``[B, C, h, w]``;
``timesteps`` are the drawn ones, integers in [0, T), ``at`` those that the network is given, both ``[B]``.

:class:`LastStage` comes after such a training: a loss on the photos that the network draws itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..diffusion.color import lab_to_linear, lightness_to_gray, linear_to_srgb
from ..diffusion.pipeline import ColorizationPipeline

DETAIL_WEIGHT = 0.1  # of the channels that a grid twice as fine adds: they hold a small part of the colour
_OTHER_COLOR = 0.3  # c of the chroma loss, of a* and b* as they are diffused: a larger error counts as another colour
_CHROMA_UNIT = 10  # of a* and b*, as the discriminator sees them


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


class Discriminator(nn.Module):
    """Tells true colours of a grey photo from drawn ones by feature maps of a frozen network.

    A small head for each map (Sauer et al. 2021, Projected GANs) sees what colour changed in the features, in units of
    what true colour usually changes, the features of the grey photo, and the mean colour of each place: a classifier's
    features hardly tell a strong colour from a weak one. The coarsest features of the grey photo say what is there,
    so all heads see these too. Without them the finer ones can't tell a face from another smooth thing, and faces
    turn too red.

    Args:
        channels: of each feature map.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 96) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(spectral_norm(nn.Conv2d(2 * count + 2, width, 1)) for count in channels)
        self.contexts = nn.ModuleList(nn.Conv2d(channels[-1], width, 1) for _ in channels)
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 1)),
            )
            for _ in channels
        )
        for parameter in self.contexts.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, maps: Sequence[Tensor], gray: Sequence[Tensor], changes: Sequence[Tensor], chroma: Tensor
    ) -> list[Tensor]:
        """A score ``[B, 1, h, w]`` for each map, above 0 where the colours look true.

        Args:
            maps, gray: features ``[B, C, h, w]`` of the photo in colour and of the grey one.
            changes: what true colour usually changes, ``[1, C, 1, 1]``.
            chroma: a* and b* of the photo in colour, ``[B, 2, H, W]``.
        """
        coarsest, scores = F.group_norm(gray[-1], 1), []
        heads = zip(self.inputs, self.contexts, self.outputs, strict=True)
        for (first, around, rest), seen, other, change in zip(heads, maps, gray, changes, strict=True):
            size = seen.shape[-2], seen.shape[-1]
            means = F.adaptive_avg_pool2d(chroma, size) / _CHROMA_UNIT
            changed = first(torch.cat(((seen - other) / change, F.group_norm(other, 1), means), dim=1))
            scores.append(rest(changed + F.interpolate(around(coarsest), size, mode="bilinear")))
        return scores


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class LastStage:
    """A loss on photos as the sampler draws them in a few steps, so that few passes without guidance suffice.

    In training a network sees true chroma under noise. When it draws it sees its own predictions under noise. These
    are means, so the picture turns pale. Here the network sees what it draws, as in adversarial diffusion distillation
    (Sauer et al. 2023), and the frozen image encoder judges the photo that its prediction of x_0 gives:

    - chroma loss: the squared error r of the drawn a* and b*, as r / (1 + r / c²) (Geman & McClure 1985). The other
      two alone let all faces turn too red. A small error is drawn to the true colour. A large one is left alone: the
      photo may have had another colour there that fits as well, and their mean would be grey;
    - perceptual loss: squared distance to the true photo's features, 1 for grey (Johnson et al. 2016; Lin & Yang
      2024 train diffusion by it);
    - adversarial loss: the hinge loss of :class:`Discriminator`, which is trained beside.

    Args:
        pipe: gives the image encoder, the noise schedule and the scales; the UNet is an argument where it is used.
        steps: in how many steps photos are drawn.
        chroma_weight, perceptual_weight, adversarial_weight: of the three losses.

    Raises:
        ValueError: if the pipeline has no image encoder.
    """

    def __init__(
        self,
        pipe: ColorizationPipeline,
        *,
        steps: int,
        chroma_weight: float,
        perceptual_weight: float,
        adversarial_weight: float,
    ) -> None:
        if pipe.image_encoder is None:
            raise ValueError("--last_stage_steps needs a checkpoint with an image encoder")
        self.pipe, self.steps = pipe, steps
        self.chroma_weight, self.perceptual_weight = chroma_weight, perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.scheduler.set_timesteps(steps, device=pipe.image_encoder.device)
        with torch.no_grad():
            maps = self._features(torch.zeros(1, 3, 64, 64, device=pipe.image_encoder.device))
        self.changes: list[Tensor] = []  # of each map what true colour changes, [1, C, 1, 1], by a running mean
        self.discriminator = Discriminator([one.shape[1] for one in maps[:-1]]).to(maps[0].device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=4e-4, betas=(0.5, 0.99))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        parts = {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}
        return parts | {"changes": self.changes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.changes = state["changes"]

    def draw(
        self, unet: Any, condition: Tensor, noise: Tensor, *, steps: int, generator: torch.Generator | None
    ) -> Tensor:
        """The prediction of x_0 ``[B, N, h, w]`` after so many steps; gradients come from the last."""
        latents = noise * self.pipe.config.initial_noise
        for number, timestep in enumerate(self.scheduler.timesteps[:steps], start=1):
            with torch.set_grad_enabled(number == steps and torch.is_grad_enabled()):
                predicted = unet(torch.cat((condition, latents), dim=1), timestep).sample.float()
                step = self.scheduler.step(predicted, timestep, latents, generator=generator)
            latents = step.prev_sample
        return step.pred_original_sample

    def loss(
        self, drawn: Tensor, chroma: Tensor, lightness: Tensor, *, reduce: Callable[[Tensor], Tensor] = _itself
    ) -> dict[str, Tensor]:
        """The losses of drawn chroma against the true, each a scalar by its name; ``"loss"`` is their weighted sum.

        The discriminator is trained by one step before it judges.

        Args:
            drawn, chroma: ``[B, N, h, w]``, as it is diffused; ``lightness`` L* ``[B, 1, H, W]``.
            reduce: the mean of a tensor over all processes.
        """
        seen, true, gray = self._features_of(drawn, chroma, lightness)
        for number, (one, other) in enumerate(zip(true, gray, strict=True)):
            change = reduce((one - other).square().mean(dim=(0, 2, 3), keepdim=True)).sqrt() + 1e-3
            self.changes[number : number + 1] = [
                self.changes[number].lerp(change, 0.01) if number < len(self.changes) else change
            ]
        distances = [
            (one - other).square().mean() / change.square().mean()
            for one, other, change in zip(seen, true, self.changes, strict=True)
        ]
        perceptual = torch.stack(distances).mean()
        ours, real = self.pipe.latents_to_chroma(drawn), self.pipe.latents_to_chroma(chroma)
        separation = self._train_discriminator(
            ([one.detach() for one in seen], ours.detach()), (true, real), gray, reduce
        )
        adversarial = -_mean(self.discriminator(seen[:-1], gray[:-1], self.changes[:-1], ours))
        squared = (drawn[:, :2] - chroma[:, :2]).square().mean(dim=1)
        error = (squared / (1 + squared / _OTHER_COLOR**2)).mean()
        loss = self.chroma_weight * error + self.perceptual_weight * perceptual + self.adversarial_weight * adversarial
        return {
            "loss": loss,
            "chroma": error,
            "perceptual": perceptual,
            "adversarial": adversarial,
            "discriminator": separation,
        }

    @torch.no_grad()
    def distance(self, drawn: Tensor, chroma: Tensor, lightness: Tensor) -> tuple[float, float]:
        """Squared distances to the true photos by the encoder's last features, summed: of the drawn, of the grey."""
        seen, true, gray = (maps[-1] for maps in self._features_of(drawn, chroma, lightness))
        return (seen - true).square().sum().item(), (gray - true).square().sum().item()

    def _train_discriminator(
        self,
        ours: tuple[list[Tensor], Tensor],
        true: tuple[list[Tensor], Tensor],
        gray: list[Tensor],
        reduce: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """One step on features and chroma of drawn and of true photos; returns the hinge loss, 2 for a blind guess."""
        drawn, real = (
            self.discriminator(maps[:-1], gray[:-1], self.changes[:-1], chroma) for maps, chroma in (ours, true)
        )
        loss = _mean([F.relu(1 + one) for one in drawn]) + _mean([F.relu(1 - one) for one in real])
        self.optimizer.zero_grad()
        loss.backward(inputs=list(self.discriminator.parameters()))
        for weight in self.discriminator.parameters():
            assert weight.grad is not None
            weight.grad = reduce(weight.grad)
        self.optimizer.step()
        return loss.detach()

    def _features_of(self, drawn: Tensor, chroma: Tensor, lightness: Tensor) -> tuple[list[Tensor], ...]:
        with torch.no_grad():
            true = self._features(self._paint(chroma, lightness))
            gray = self._features(lightness_to_gray(lightness).expand(-1, 3, -1, -1))
        return self._features(self._paint(drawn, lightness)), true, gray

    def _features(self, rgb: Tensor) -> list[Tensor]:
        """Of photos ``[B, 3, H, W]`` the encoder's last map of each size but the largest, then its last's mean."""
        pixels = (rgb - self.pipe.config.encoder_mean) / self.pipe.config.encoder_std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        output = self.pipe.image_encoder(pixels, output_hidden_states=True)
        by_size = {one.shape[-1]: one for one in output.hidden_states}
        return [*list(by_size.values())[1:], output.last_hidden_state.mean(dim=(2, 3), keepdim=True)]

    def _paint(self, latents: Tensor, lightness: Tensor) -> Tensor:
        """The photo, sRGB ``[B, 3, H, W]``; black has a trace of light, as the curve is too steep there."""
        chroma = F.interpolate(self.pipe.latents_to_chroma(latents), lightness.shape[-2:], mode="bilinear")
        return linear_to_srgb(lab_to_linear(torch.cat((lightness, chroma), dim=1)).clamp(1e-4, 1))


def _mean(scores: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.mean() for one in scores]).mean()
