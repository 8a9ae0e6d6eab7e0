"""Steering the reverse diffusion towards what is known of the colours, without retraining.

At each step the network's prediction of the clean chroma x_0 is corrected before the sampler uses it. A correction at
one place moves the others through the network itself: the covariance of x_0 given x_t is sigma_t^2 / sqrt(alpha_bar_t)
times the Jacobian of the prediction (Efron 2011; Song et al. 2023, ΠGDM; Chung et al. 2023, DPS). So one product of
the Jacobian with the error at the hints says how everything else moves along.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F

_RIDGE = 0.01  # variance, in CIELAB units squared, below which a colour or a lightness counts as constant
_STRETCH = 1.5  # a step makes a palette so much wider at most: the hues of a nearly grey prediction mean nothing
_SHARE = 0.85  # of the way from a photo's palette to the reference's: halves the distance, docs/measurements/hints.md
_SEEN = 1.5  # standard deviations of a photo's lightness around its mean, in which its palette holds
_UNSEEN = 15.0  # L* beyond what a reference shows, at which its palette has lost most of its weight
_TIE_SHARE = 0.95  # of the way to a tied photo's colours, docs/how-to/sets.md
_ALIKE = 0.03  # difference of two cells' likeness (a cosine) that divides their say by e
_SAME_LEVEL = 15.0  # L* by which cells of the same thing differ from print to print
_UNLIKE = 0.2  # likeness up to which a cell finds nothing of its own in the other photo
_LIKE = 0.4  # likeness from which it does
_AGREEMENT = 0.3  # least cosine between the error at the hints and what the network's correction would do there


class Steer(Protocol):
    """Corrects a prediction of x_0. ``clean`` depends on ``noisy``, through the network, for automatic derivatives."""

    needs_network: bool  # whether it takes derivatives through the network

    def __call__(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """The prediction ``[B, C, h, w]``, corrected; its first two channels are mean a*, b* over ``chroma_scale``."""


class HintSteer:
    """Pulls x_0 to hinted colours and lets the rest of the picture follow.

    Args:
        target: hinted a*, b* ``[B, 2, h, w]`` over ``chroma_scale``.
        share: how much of each cell is hinted ``[B, 1, h, w]``, 0 to 1.
    """

    needs_network = True

    def __init__(self, target: torch.Tensor, share: torch.Tensor) -> None:
        self.target, self.share = target, share
        self.weight = share / share.sum((2, 3), keepdim=True).clamp(min=1e-6)  # sums to 1 over a hinted photo

    def __call__(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        means = clean[:, :2]
        error = self.target - means.detach()
        moved = clean.detach() + self._follow(means, noisy, error)
        hinted = torch.lerp(moved[:, :2], self.target, self.share)
        return torch.cat((hinted, moved[:, 2:] * (1 - self.share)), dim=1)  # a hint has no detail

    def _follow(self, means: torch.Tensor, noisy: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        """What the whole picture does when its hinted cells move by ``error``: one step of conjugate gradients.

        The length of the step is the one that best removes the error, so there is no strength to choose. No cell moves
        further than the hinted ones, and none moves where the network's prediction doesn't point along the error: near
        pure noise it knows nothing.
        """
        (direction,) = torch.autograd.grad(means, noisy, self.weight * error)
        weighted = self.weight * error
        size = _sum(weighted * error)
        along = _sum(weighted * direction[:, :2])
        there = _sum(self.weight * direction[:, :2].square())
        agrees = along > _AGREEMENT * (size * there).sqrt()
        move = torch.where(agrees, size / along, 0.0) * direction
        length = move[:, :2].norm(dim=1, keepdim=True).clamp(min=1e-9)
        return move * (size.sqrt() / length).clamp(max=1)


@dataclass(frozen=True)
class Palette:
    """How chroma goes with lightness: a*, b* are ``offset + slope * L*``, and vary around that with ``covariance``.

    Attributes:
        offset, slope: ``[B, 2]``, CIELAB units, and those per unit of L*.
        covariance: ``[B, 2, 2]``.
        darkest, lightest: ``[B, 1]``, the L* between which that was seen.
    """

    offset: torch.Tensor
    slope: torch.Tensor
    covariance: torch.Tensor
    darkest: torch.Tensor
    lightest: torch.Tensor

    def to(self, like: torch.Tensor) -> "Palette":
        """The same on the device and in the precision of a tensor."""
        return Palette(*(getattr(self, part.name).to(like) for part in fields(self)))


def join_palettes(palettes: Sequence[Palette | None]) -> Palette | None:
    """Palettes of one photo each as those of several rows; ``None`` if there are none."""
    given = [one for one in palettes if one is not None]
    if not given:
        return None
    if len(given) != len(palettes):
        raise ValueError("rows that are drawn together must all have a palette, or none")
    return Palette(*(torch.cat([getattr(one, part.name) for one in given]) for part in fields(Palette)))


def fit_palette(lightness: torch.Tensor, chroma: torch.Tensor) -> Palette:
    """The palette of each photo: least squares over the cells of L* ``[B, 1, h, w]`` and a*, b* ``[B, 2, h, w]``."""
    level, colors = lightness.flatten(2), chroma.flatten(2)  # [B, 1, n], [B, 2, n]
    centred = level - level.mean(2, keepdim=True)
    slope = (colors * centred).mean(2) / (centred.square().mean(2) + _RIDGE)
    offset = colors.mean(2) - slope * level.mean(2)
    left = colors - offset[..., None] - slope[..., None] * level
    middle, reach = level.mean(2), _SEEN * level.std(2, correction=0)
    return Palette(offset, slope, left @ left.mT / level.shape[-1], middle - reach, middle + reach)


class PaletteSteer:
    """Gives x_0 the palette of a reference photo, by the linear map that is the optimal transport of Gaussians.

    Colours are taken relative to what is usual at their lightness, in the result as in the reference, so that a
    bright sky gets the reference's bright colours and dark ground its dark ones.

    Args:
        palette: of the reference (B = 1), or of each row's.
        lightness: L* ``[B, 1, h, w]`` of the cells.
        scale: the pipeline's ``chroma_scale``.
        steps: in how many steps the picture is drawn. Each goes an equal part of what is left of the way.
        share: of the way that they go together, at a palette that stood still; the rest is the network's.
    """

    needs_network = False

    def __init__(
        self, palette: Palette, lightness: torch.Tensor, *, scale: float, steps: int, share: float = _SHARE
    ) -> None:
        self.palette, self.lightness, self.scale = palette, lightness, scale
        self.strength = 1 - (1 - share) ** (1 / steps)

    def __call__(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        chroma = clean[:, :2].detach() * self.scale
        own, wanted = fit_palette(self.lightness, chroma), self.palette.to(chroma)
        level = self.lightness.flatten(2)
        left = chroma.flatten(2) - own.offset[..., None] - own.slope[..., None] * level
        carried = _transport(own.covariance, wanted.covariance) @ left
        # What is lighter than nearly all there gets the colour of its light parts, not one extrapolated; and what is
        # much lighter keeps its own: a forest says nothing of the sky
        seen = torch.clamp(level, wanted.darkest[..., None], wanted.lightest[..., None])
        carried = carried + wanted.offset[..., None] + wanted.slope[..., None] * seen
        known = torch.exp(-((level - seen) / _UNSEEN).square()).reshape(self.lightness.shape)
        change = self.strength * known * (carried.reshape(chroma.shape) - chroma)
        return torch.cat((clean[:, :2] + change / self.scale, clean[:, 2:]), dim=1)


def _transport(have: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix that carries N(0, have) to N(0, want), stretching nothing more than ``_STRETCH`` times."""
    root, inverse = _power(have, 0.5), _power(have, -0.5)
    values, vectors = torch.linalg.eigh(inverse @ _power(root @ want @ root, 0.5) @ inverse)
    return vectors * values.clamp(max=_STRETCH)[..., None, :] @ vectors.mT


def _power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power of symmetric matrices ``[..., 2, 2]`` with no eigenvalue below 0."""
    values, vectors = torch.linalg.eigh(matrix)
    powers = (values.clamp(min=0) + _RIDGE) ** exponent
    return vectors * powers[..., None, :] @ vectors.mT


@dataclass(frozen=True)
class Tie:
    """What another photo says of this one's colours, place by place.

    Attributes:
        target: a*, b* ``[2, h, w]`` in CIELAB units.
        weight: ``[1, h, w]``, 0 where the other photo shows nothing like it, to 1.
    """

    target: torch.Tensor
    weight: torch.Tensor


def match_colors(features: torch.Tensor, lightness: torch.Tensor, *, known: Sequence[torch.Tensor]) -> Tie:
    """The colours that a photo's cells have in another photo where they look alike.

    Each cell gets the mean of the other photo's colours, weighted by likeness: of what the features say and of L*.

    Args:
        features: ``[K, h, w]`` of the photo.
        lightness: L* ``[1, h, w]``.
        known: those of the other photo, of any size, and its a*, b* ``[2, h', w']``.
    """
    other, level, colors = (one.flatten(1) for one in known)
    usual = other.mean(1, keepdim=True)  # what all cells of a photo share tells nothing
    likeness = F.normalize(features.flatten(1) - usual, dim=0).T @ F.normalize(other - usual, dim=0)  # [h w, h' w']
    levels = (lightness.flatten()[:, None] - level) / _SAME_LEVEL
    share = torch.softmax(likeness / _ALIKE - levels.square() / 2, dim=1)
    target = (share @ colors.T).T.reshape(2, *features.shape[1:])
    sure = (likeness.amax(1) - _UNLIKE) / (_LIKE - _UNLIKE)
    return Tie(target, sure.clamp(0, 1).reshape(lightness.shape))


class TieSteer:
    """Draws x_0 towards the colours that another photo has where it looks alike.

    Args:
        ties: of each row.
        scale: the pipeline's ``chroma_scale``.
        steps: in how many steps the picture is drawn; each goes an equal part of what is left of the way.
        share: of the way that they go together; the rest is the network's.
    """

    needs_network = False

    def __init__(self, ties: Sequence[Tie], *, scale: float, steps: int, share: float = _TIE_SHARE) -> None:
        self.target = torch.stack([tie.target for tie in ties]) / scale  # [B, 2, h, w]
        self.strength = torch.stack([tie.weight for tie in ties]) * (1 - (1 - share) ** (1 / steps))

    def __call__(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        means = torch.lerp(clean[:, :2].detach(), self.target.to(clean), self.strength.to(clean))
        return torch.cat((means, clean[:, 2:]), dim=1)


def steered_prediction(
    predict: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    *,
    steers: Sequence[Steer],
    alpha_bar: torch.Tensor,
    prediction_type: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's prediction and ``noisy``, as they would be with x_0 as ``steers`` make it and the same noise.

    That ``noisy`` moves along, and not only the prediction, carries the correction whole into the next step.

    Args:
        predict: the network, given its condition: noisy chroma ``[B, C, h, w]`` to its prediction.
        steers: one after the other.
        alpha_bar: share of the signal's variance in ``noisy``, 0 (pure noise) to 1.
        prediction_type: the scheduler's: ``"v_prediction"``, ``"epsilon"`` or ``"sample"``.
    """
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    needs_network = any(steer.needs_network for steer in steers)
    with torch.set_grad_enabled(needs_network):
        noisy = noisy.detach().requires_grad_(needs_network)
        predicted = predict(noisy).float()
        if prediction_type == "v_prediction":
            clean = signal * noisy - noise * predicted
        elif prediction_type == "epsilon":
            clean = (noisy - noise * predicted) / signal
        else:
            clean = predicted
        steered = clean
        for steer in steers:
            steered = steer(steered, noisy)
    noisy, clean, steered, predicted = (one.detach() for one in (noisy, clean, steered, predicted))
    moved = noisy + signal * (steered - clean)
    if prediction_type == "v_prediction":
        predicted = predicted - (steered - clean) * noise  # v of the same noise and another x_0
    return steered if prediction_type == "sample" else predicted, moved


def _sum(values: torch.Tensor) -> Any:
    return values.sum((1, 2, 3), keepdim=True)
