"""The variational bound on -log P(chroma | lightness), term by term, in bits per chroma dimension.

docs/explanation/theory.md derives what is computed here. Everything is a pure function of a ``predict`` callable
(the network, as in :func:`colorized_pipeline.training.losses.Diffusion`), a diffusers scheduler (its schedule,
``prediction_type``, ``variance_type`` and clipping) and tensors. Only the network runs on the tensors' device: sums
are in float64 on the CPU, since not every device has float64. ``timesteps`` count as in diffusers: 0 ... T - 1 stand
for t = 1 ... T.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import DDPMScheduler

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_LOG_2 = math.log(2)


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward chain and the reverse variances, float64 ``[T]``; entry i belongs to t = i + 1.

    Attributes:
        alpha_bar: the squared weight of x_0 in x_t; 0 at the end of a schedule with zero terminal SNR.
        alpha_bar_before: the same of x_{t-1}; 1 at t = 1.
        beta: variance that step t adds.
        posterior_variance: of q(x_{t-1} | x_t, x_0); 0 at t = 1.
        reverse_variance: of p(x_{t-1} | x_t), never 0: at t = 1 that of t = 2, as in Ho et al.'s code.
    """

    alpha_bar: torch.Tensor
    alpha_bar_before: torch.Tensor
    beta: torch.Tensor
    posterior_variance: torch.Tensor
    reverse_variance: torch.Tensor

    @classmethod
    def of(cls, scheduler: DDPMScheduler) -> "NoiseSchedule":
        """The scheduler's own (theory, eq. 1, 15, 26). ``variance_type`` must be a fixed one, and T at least 2."""
        alpha_bar = _wide(scheduler.alphas_cumprod)
        if len(alpha_bar) < 2:
            raise ValueError(f"num_train_timesteps={len(alpha_bar)} has no reverse chain to bound; use at least 2")
        before = torch.cat((alpha_bar.new_ones(1), alpha_bar[:-1]))
        beta = 1 - alpha_bar / before
        posterior = beta * (1 - before) / (1 - alpha_bar)
        kind = getattr(scheduler.config, "variance_type", None)
        if kind in ("fixed_small", "fixed_small_log"):
            reverse = torch.cat((posterior[1:2], posterior[1:]))
        elif kind in ("fixed_large", "fixed_large_log"):
            reverse = torch.cat((posterior[1:2], beta[1:]))
        else:
            raise ValueError(f"variance_type={kind!r} has no fixed reverse variance; use fixed_small or fixed_large")
        return cls(alpha_bar, before, beta, posterior, reverse)


def predicted_clean(
    scheduler: DDPMScheduler, output: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The network's estimate of x_0, float64, clipped as the scheduler clips when it samples (theory, eq. 33).

    Args:
        scheduler: says what ``output`` is: ``epsilon``, ``v_prediction`` or ``sample``.
        output: what the network predicted, ``[B, ...]``.
        noisy: the x_t it saw, ``[B, ...]``.
        timesteps: integers in [0, T), ``[B]``.

    Raises:
        ValueError: for another ``prediction_type``, dynamic thresholding, and for ``epsilon`` where alpha_bar is 0:
            there x_t is the noise, and nothing about x_0 follows from knowing it.
    """
    kind = scheduler.config.prediction_type
    if scheduler.config.thresholding:
        raise ValueError("thresholding=True: the bound of dynamically thresholded sampling isn't implemented")
    output, noisy = _wide(output), _wide(noisy)
    alpha_bar = _at(_wide(scheduler.alphas_cumprod), timesteps, like=output)
    if kind == "sample":
        clean = output
    elif kind == "v_prediction":
        clean = alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * output
    elif kind == "epsilon":
        if (alpha_bar == 0).any():
            raise ValueError(
                "prediction_type='epsilon' says nothing of x_0 where alpha_bar is 0 (zero terminal SNR); train with "
                "v_prediction, or set rescale_betas_zero_snr=False"
            )
        clean = (noisy - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    else:
        raise ValueError(f"prediction_type={kind!r} is unknown; use epsilon, v_prediction or sample")
    if scheduler.config.clip_sample:
        clean = clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return clean


def posterior_mean(
    scheduler: DDPMScheduler, clean: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Mean of q(x_{t-1} | x_t, x_0) for x_0 ``clean``, x_t ``noisy``, all ``[B, ...]``, float64 (theory, eq. 27)."""
    clean, noisy = _wide(clean), _wide(noisy)
    alpha_bar = _wide(scheduler.alphas_cumprod)
    before = torch.cat((alpha_bar.new_ones(1), alpha_bar[:-1]))
    alpha = alpha_bar / before
    of_clean = before.sqrt() * (1 - alpha) / (1 - alpha_bar)
    of_noisy = alpha.sqrt() * (1 - before) / (1 - alpha_bar)
    return _at(of_clean, timesteps, like=clean) * clean + _at(of_noisy, timesteps, like=clean) * noisy


def gaussian_kl(mean_difference: torch.Tensor, variance: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(N(m, variance) || N(m', other)) in nats, elementwise, for ``mean_difference`` m - m' (theory, eq. 29)."""
    return 0.5 * (torch.log(other / variance) + (variance + mean_difference.square()) / other - 1)


def discretized_gaussian_nll(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, *, bin_width: float
) -> torch.Tensor:
    """-log of the probability that N(mean, variance) gives to ``x ± bin_width / 2``: nats, float64, elementwise.

    Theory, eq. 24. The bins tile the whole line, so that for x on a grid of that width the probabilities sum to 1.
    Exact far out in the tails too.
    """
    if not bin_width > 0:
        raise ValueError(f"bin_width must be above 0, got {bin_width!r}")
    std = _wide(variance).sqrt()
    # The density is even: the upper tail is mirrored to the lower one, where log_ndtr loses no digits.
    offset = (_wide(x) - _wide(mean)).abs()
    upper = torch.special.log_ndtr((bin_width / 2 - offset) / std)
    lower = torch.special.log_ndtr((-bin_width / 2 - offset) / std)
    return -(upper + torch.log(-torch.expm1(lower - upper)))


def prior_term(scheduler: DDPMScheduler, chroma: torch.Tensor) -> torch.Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dimension of each photo: ``[B]`` for chroma ``[B, ...]``.

    Theory, eq. 25. Exactly 0 with zero terminal SNR. Has no parameters: the schedule alone decides it.
    """
    alpha_bar = _wide(scheduler.alphas_cumprod)[-1]
    return _bits(gaussian_kl(alpha_bar.sqrt() * _wide(chroma), 1 - alpha_bar, torch.ones_like(alpha_bar)))


def step_terms(
    predict: Predict,
    scheduler: DDPMScheduler,
    *,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    bin_width: float,
) -> torch.Tensor:
    """One draw of L_{t-1} (for t = 1: of L_0) for each photo, in bits per dimension, ``[B]`` float64.

    Theory, eq. 4, 22, 30.

    Args:
        predict: the network, ``(input [B, C + 2, h, w], timesteps [B]) -> [B, 2, h, w]``.
        scheduler: the noise schedule and the kind of prediction the network was trained for.
        chroma: the true a*, b* over chroma_scale, ``[B, 2, h, w]``.
        condition: what is known of the grey photo, ``[B, C, h, w]``.
        noise: standard normal, ``[B, 2, h, w]``: which x_t is looked at.
        timesteps: integers in [0, T), ``[B]``.
        bin_width: for L_0, width of the cells that chroma is known to, in units of ``chroma`` (one CIELAB unit is
            1 / chroma_scale). The bound is one on a discrete distribution if chroma lies on a grid of that width.
    """
    schedule, clean = NoiseSchedule.of(scheduler), _wide(chroma)
    alpha_bar = _at(schedule.alpha_bar, timesteps, like=clean)
    noisy = (alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * _wide(noise)).to(chroma)
    output = predict(torch.cat((condition, noisy), dim=1), timesteps)
    guess = predicted_clean(scheduler, output, noisy, timesteps)

    first = timesteps.cpu() == 0
    variance = _at(schedule.reverse_variance, timesteps, like=clean)
    # At t = 1 the mean is the estimate of x_0 itself, and the step has to hit x_0's bin.
    nll = discretized_gaussian_nll(clean, guess, variance, bin_width=bin_width)
    # Both means weigh x_t alike, so their difference is that of x_0 and its estimate, without cancellation.
    weight = _at(schedule.alpha_bar_before.sqrt() * schedule.beta / (1 - schedule.alpha_bar), timesteps, like=clean)
    true_variance = _at(schedule.posterior_variance, timesteps.clamp(min=1), like=clean)  # 0 at t = 1, where no KL is
    kl = gaussian_kl(weight * (clean - guess), true_variance, variance)
    return torch.where(first, _bits(nll), _bits(kl))


@dataclass(frozen=True)
class VariationalBound:
    """Estimates of the bound's parts for N photos, bits per dimension, float64 on the CPU.

    L_1 ... L_{T-1} are sampled in strata of neighbouring timesteps, ``strata[s] = (first, last)``, counted as in
    diffusers, both inclusive. Each photo has one random timestep and noise a stratum, so that the photos' estimates
    are independent and unbiased.

    Attributes:
        strata: from 1 to T - 1.
        prior: L_T, ``[N]``, exact.
        steps: one L_{t-1} a stratum, ``[N, S]``.
        decoder: L_0, ``[N]``.
    """

    strata: tuple[tuple[int, int], ...]
    prior: torch.Tensor
    steps: torch.Tensor
    decoder: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """The bound of each photo, ``[N]``: L_T + sum of L_{t-1} + L_0 (theory, eq. 21, 56)."""
        sizes = torch.tensor([last - first + 1 for first, last in self.strata], dtype=torch.float64)
        return self.prior + self.steps @ sizes + self.decoder

    @classmethod
    def join(cls, parts: "Sequence[VariationalBound]") -> "VariationalBound":
        """The estimates of several batches of photos as one."""
        if len({part.strata for part in parts}) != 1:
            raise ValueError("only bounds with the same strata can be joined, and at least one is needed")
        prior, steps, decoder = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("prior", "steps", "decoder")
        )
        return cls(parts[0].strata, prior, steps, decoder)


def variational_bound(
    predict: Predict,
    scheduler: DDPMScheduler,
    *,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    bin_width: float,
    generator: torch.Generator,
    strata: int = 32,
) -> VariationalBound:
    """Estimate the bound of a batch of photos with ``len(timestep_strata(T, strata)) + 1`` passes of the network.

    ``generator`` is a CPU generator: it decides timesteps and noise. The other arguments are :func:`step_terms`'s.
    See :func:`mean_and_error` for the Monte-Carlo error.
    """
    chosen = timestep_strata(scheduler.config.num_train_timesteps, strata)

    def term(first: int, last: int) -> torch.Tensor:
        timesteps = torch.randint(first, last + 1, (len(chroma),), generator=generator)
        noise = torch.randn(chroma.shape, generator=generator, dtype=chroma.dtype)
        return step_terms(
            predict,
            scheduler,
            chroma=chroma,
            condition=condition,
            noise=noise.to(chroma.device),
            timesteps=timesteps.to(chroma.device),
            bin_width=bin_width,
        )

    with torch.no_grad():
        decoder = term(0, 0)
        steps = torch.stack([term(first, last) for first, last in chosen], dim=1)
        return VariationalBound(chosen, prior_term(scheduler, chroma), steps, decoder)


def timestep_strata(num_timesteps: int, count: int) -> tuple[tuple[int, int], ...]:
    """At most ``count`` ranges (first, last) that tile the timesteps 1 ... T - 1, even on a logarithmic scale.

    L_{t-1} falls like 1 / t or faster, so that no stratum holds much more of the bound than the first ones, which are
    single timesteps.
    """
    if count < 1:
        raise ValueError(f"strata must be at least 1, got {count}")
    edges = {round(num_timesteps ** (k / count)) for k in range(count)} | {1, num_timesteps}
    ordered = sorted(edges)
    return tuple((first, after - 1) for first, after in pairwise(ordered))


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Mean over photos ``[N]`` and its standard error: Monte-Carlo noise and the spread of the photos together."""
    if len(values) < 2:
        raise ValueError(f"an error can't be estimated from {len(values)} photo; give at least 2")
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().double()


def _at(values: torch.Tensor, timesteps: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """``values`` ``[T]`` at each photo's timestep, ready to broadcast against ``like`` ``[B, ...]``."""
    return values[timesteps.cpu()].reshape(-1, *[1] * (like.ndim - 1))


def _bits(nats: torch.Tensor) -> torch.Tensor:
    """Mean over everything but photos, in bits: ``[B, ...]`` to ``[B]``."""
    return nats.flatten(1).mean(dim=1) / _LOG_2
