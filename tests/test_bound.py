"""The variational bound against closed forms: Gaussian data, whose best denoiser and whose bound are known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_scheduler
from diffusers import DDPMScheduler
from scipy import integrate, stats

from colorized_pipeline.evaluation.bound import (
    NoiseSchedule,
    Predict,
    VariationalBound,
    discretized_gaussian_nll,
    gaussian_kl,
    mean_and_error,
    posterior_mean,
    predicted_clean,
    prior_term,
    step_terms,
    timestep_strata,
    variational_bound,
)

STD = 0.4  # of the Gaussian data; its mean is the condition
BIN = 0.02


def schedule(
    kind: str = "v_prediction", *, beta_schedule: str = "squaredcos_cap_v2", **changes: object
) -> DDPMScheduler:
    zero_snr = changes.pop("rescale_betas_zero_snr", kind == "v_prediction")
    return DDPMScheduler(
        prediction_type=kind,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
        clip_sample=False,
        **changes,
    )


def best_denoiser(scheduler: DDPMScheduler) -> Predict:
    """The exact E[target | x_t, condition] for x_0 ~ N(condition, STD²): no network can be better."""
    alphas_cumprod = scheduler.alphas_cumprod.double()

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        mean, noisy = x.double().chunk(2, dim=1)
        alpha_bar = alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        total = alpha_bar * STD**2 + 1 - alpha_bar
        clean = mean + STD**2 * alpha_bar.sqrt() / total * (noisy - alpha_bar.sqrt() * mean)
        noise = (1 - alpha_bar).sqrt() / total * (noisy - alpha_bar.sqrt() * mean)
        if scheduler.config.prediction_type == "epsilon":
            return noise
        if scheduler.config.prediction_type == "sample":
            return clean
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean

    return predict


def gaussian_photos(count: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float64) * 0.3
    chroma = mean + STD * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    return {"chroma": chroma, "condition": mean}


def closed_form(scheduler: DDPMScheduler) -> tuple[np.ndarray, float]:
    """(L_1 ... L_{T-1}), L_0 of Gaussian data with the best denoiser, in bits per dimension, written independently.

    x_0 - E[x_0 | x_t] is N(0, s²(1 - a) / (s²a + 1 - a)), so that only 1-D Gaussian integrals are left.
    """
    alpha_bar = scheduler.alphas_cumprod.double().numpy()
    before, beta = alpha_bar[:-1], 1 - alpha_bar[1:] / alpha_bar[:-1]  # at t = 2 ... T
    error = STD**2 * (1 - alpha_bar) / (STD**2 * alpha_bar + 1 - alpha_bar)
    true_variance = beta * (1 - before) / (1 - alpha_bar[1:])
    variance = true_variance if scheduler.config.variance_type == "fixed_small" else beta
    squared = before * (beta / (1 - alpha_bar[1:])) ** 2 * error[1:]
    steps = 0.5 * (np.log(variance / true_variance) + (true_variance + squared) / variance - 1)

    def integrand(offset: float) -> float:
        edges = np.array([-BIN / 2, BIN / 2]) - abs(offset)  # in the lower tail, where a difference keeps its digits
        mass = np.diff(stats.norm.cdf(edges, scale=math.sqrt(true_variance[0]))).item()
        return -math.log(mass) * stats.norm.pdf(offset, scale=math.sqrt(error[0]))

    reach = 8 * math.sqrt(error[0])
    decoder = integrate.quad(integrand, -reach, reach, epsabs=1e-12)[0]
    return steps / math.log(2), decoder / math.log(2)


SCHEDULES = {
    "v-zero-snr": schedule(),
    "epsilon": schedule("epsilon"),
    "sample-linear": schedule("sample", beta_schedule="linear"),
    "epsilon-linear-300": schedule("epsilon", beta_schedule="linear", num_train_timesteps=300),
    "v-300": schedule(rescale_betas_zero_snr=False, num_train_timesteps=300),
    "v-zero-snr-large": schedule(variance_type="fixed_large"),
    "epsilon-large": schedule("epsilon", variance_type="fixed_large"),
}


@pytest.mark.parametrize("scheduler", SCHEDULES.values(), ids=SCHEDULES)
def test_gaussian_data_closed_form(scheduler: DDPMScheduler) -> None:
    photos = gaussian_photos(600)
    steps, decoder = closed_form(scheduler)
    last = len(steps)
    for timestep in (1, 5, last // 2, last - 1, last):
        terms = step_terms(
            best_denoiser(scheduler),
            scheduler,
            **photos,
            noise=torch.randn(600, 2, 4, 4, generator=torch.Generator().manual_seed(timestep), dtype=torch.float64),
            timesteps=torch.full((600,), timestep),
            bin_width=BIN,
        )
        mean, error = mean_and_error(terms)
        assert error < 0.05 * mean and abs(mean - steps[timestep - 1]) < 4 * error

    bound = variational_bound(
        best_denoiser(scheduler), scheduler, **photos, bin_width=BIN, generator=torch.Generator().manual_seed(1)
    )
    mean, error = mean_and_error(bound.decoder)
    assert abs(mean - decoder) < 4 * error
    mean, error = mean_and_error(bound.total)
    expected = prior_term(scheduler, photos["chroma"]).mean().item() + steps.sum() + decoder
    assert error < 0.02 * mean and abs(mean - expected) < 4 * error
    entropy = math.log2(math.sqrt(2 * math.pi * math.e) * STD / BIN)  # of the binned data: no bound can be lower
    assert entropy < expected < entropy + 1.1


def test_more_steps_tighten_the_bound() -> None:
    """With the best denoiser the gap to the entropy is the price of the Gaussian chain's finite number of steps."""
    photos = gaussian_photos(10)
    bounds = []
    for count in (10, 100, 1000):
        scheduler = schedule(num_train_timesteps=count, variance_type="fixed_large")
        steps, decoder = closed_form(scheduler)
        bounds.append(steps.sum() + decoder + prior_term(scheduler, photos["chroma"]).mean().item())
    assert bounds[0] > bounds[1] > bounds[2]


def test_prior_term() -> None:
    photos = gaussian_photos(3)
    assert (prior_term(schedule(), photos["chroma"]) == 0).all()  # zero terminal SNR: x_T is exactly the prior
    scheduler = schedule("epsilon", beta_schedule="linear", num_train_timesteps=300)
    alpha_bar = scheduler.alphas_cumprod[-1].double()
    q = torch.distributions.Normal(alpha_bar.sqrt() * photos["chroma"], (1 - alpha_bar).sqrt())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean((1, 2, 3))
    found = prior_term(scheduler, photos["chroma"])
    assert torch.allclose(found, expected / math.log(2)) and (found > 1e-3).all()


def test_wrong_denoisers_and_variances_cost_bits() -> None:
    """For Gaussian data q(x_{t-1} | x_t) is wider than beta-tilde: fixed_large pays less here."""
    photos = gaussian_photos(200)

    def bound(scheduler: DDPMScheduler, predict: Predict) -> float:
        generator = torch.Generator().manual_seed(2)
        found = variational_bound(predict, scheduler, **photos, bin_width=BIN, generator=generator)
        return found.total.mean().item()

    small, large = schedule(), schedule(variance_type="fixed_large")
    best = bound(small, best_denoiser(small))
    assert bound(small, lambda x, t: 0.5 * best_denoiser(small)(x, t)) > best + 0.05
    assert bound(large, best_denoiser(large)) < best - 0.3


def test_kl_with_unequal_variances_against_torch() -> None:
    p, q = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-0.2, 0.8)
    found = gaussian_kl(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.64))
    assert torch.isclose(found, torch.distributions.kl_divergence(p, q))


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_reverse_step_is_the_schedulers(zero_snr: bool, clip: bool) -> None:
    """Mean and variance of p(x_{t-1} | x_t) are those with which DDPMScheduler samples, clipping included."""
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero_snr,
        clip_sample=clip,
        clip_sample_range=0.7,
    )
    noisy = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    output = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    for timestep in (0, 1, 500, 998, 999):
        at = torch.tensor([timestep])
        clean = predicted_clean(scheduler, output, noisy, at)
        mean = posterior_mean(scheduler, clean, noisy, at)
        noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(2))
        if timestep == 0:
            variance = torch.zeros(())  # the sampler adds no noise in its last step; L_0's decoder needs some
        else:
            variance = NoiseSchedule.of(scheduler).reverse_variance[timestep]
        step = scheduler.step(output, timestep, noisy, generator=torch.Generator().manual_seed(2))
        assert torch.allclose(step.pred_original_sample.double(), clean, atol=1e-4)
        assert torch.allclose(step.prev_sample.double(), mean + variance.sqrt() * noise, atol=2e-4)


def test_discretized_gaussian_is_a_distribution_and_exact_in_its_tails() -> None:
    grid = torch.arange(-400, 401, dtype=torch.float64) * BIN
    mean, variance = torch.tensor(0.123), torch.tensor(0.25)
    nll = discretized_gaussian_nll(grid, mean, variance, bin_width=BIN)
    assert torch.isclose(torch.exp(-nll).sum(), torch.ones((), dtype=torch.float64), atol=1e-9)
    middle = torch.arange(380, 430)
    cdf = stats.norm(loc=0.123, scale=0.5).cdf
    expected = -np.log(cdf(grid[middle].numpy() + BIN / 2) - cdf(grid[middle].numpy() - BIN / 2))
    assert np.allclose(nll[middle].numpy(), expected)
    far = discretized_gaussian_nll(torch.tensor([50.0, -50.0]), torch.zeros(2), torch.ones(2), bin_width=1e-3)
    density = 0.5 * 50**2 + 0.5 * math.log(2 * math.pi) - math.log(1e-3)
    assert torch.allclose(far, torch.tensor(density, dtype=torch.float64), rtol=1e-4)
    with pytest.raises(ValueError, match="bin_width"):
        discretized_gaussian_nll(grid, mean, variance, bin_width=0.0)


@pytest.mark.parametrize(("count", "strata"), [(1000, 32), (300, 10), (2, 5), (1000, 2000), (50, 1)])
def test_strata_tile_the_timesteps(count: int, strata: int) -> None:
    found = timestep_strata(count, strata)
    assert [t for first, last in found for t in range(first, last + 1)] == list(range(1, count))
    assert len(found) <= strata


def test_joined_batches_keep_every_photo() -> None:
    scheduler, photos = schedule(num_train_timesteps=20), gaussian_photos(6)
    parts = [
        variational_bound(
            best_denoiser(scheduler),
            scheduler,
            chroma=chroma,
            condition=condition,
            bin_width=BIN,
            generator=torch.Generator().manual_seed(number),
        )
        for number, (chroma, condition) in enumerate(
            zip(photos["chroma"].split(2), photos["condition"].split(2), strict=True)
        )
    ]
    joined = VariationalBound.join(parts)
    assert torch.allclose(joined.total, torch.cat([part.total for part in parts]))
    assert all(first[0] < second[0] for first, second in pairwise(joined.strata))
    mean, error = mean_and_error(joined.total)
    assert mean == pytest.approx(joined.total.numpy().mean())
    assert error == pytest.approx(stats.sem(joined.total.numpy()))
    with pytest.raises(ValueError, match="same strata"):
        VariationalBound.join([])


def test_impossible_settings_are_refused() -> None:
    at, x = torch.tensor([999]), torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"'epsilon'.*zero terminal SNR"):
        predicted_clean(schedule("epsilon", rescale_betas_zero_snr=True), x, x, at)
    with pytest.raises(ValueError, match="variance_type='learned'"):
        NoiseSchedule.of(schedule(variance_type="learned"))
    with pytest.raises(ValueError, match="thresholding"):
        predicted_clean(schedule(thresholding=True), x, x, at)
    with pytest.raises(ValueError, match="at least 2"):
        NoiseSchedule.of(DDPMScheduler(num_train_timesteps=1))
    with pytest.raises(ValueError, match="at least 2"):
        mean_and_error(torch.zeros(1))
    with pytest.raises(ValueError, match="strata"):
        timestep_strata(10, 0)


def test_takes_the_schedulers_that_training_makes() -> None:
    for kind in ("epsilon", "v_prediction"):
        photos = gaussian_photos(4)
        bound = variational_bound(
            best_denoiser(make_scheduler(kind)),
            make_scheduler(kind),
            chroma=photos["chroma"].float(),
            condition=photos["condition"].float(),
            bin_width=1 / 40,
            generator=torch.Generator().manual_seed(0),
            strata=4,
        )
        assert bound.steps.shape == (4, len(bound.strata)) and bound.total.isfinite().all()
