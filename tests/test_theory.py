"""Every numbered equation of docs/explanation/theory.md, run: brute force, Monte Carlo, autograd, library oracles.

A test carries ``@equation(number, piece)`` for each equation that it runs; ``piece`` is a part of that equation's
source, so that a renumbered or rewritten equation can't keep a test that is about something else. The last tests keep
the document itself true: numbers, names, lines of code, links, and that its mathematics survives every renderer.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr
from markdown_it import MarkdownIt
from scipy import integrate, optimize, stats
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from colorized_pipeline.diffusion.color import downsample_chroma, fit_gamut, lab_to_rgb, rgb_to_lab
from colorized_pipeline.evaluation.bound import (
    NoiseSchedule,
    VariationalBound,
    discretized_gaussian_nll,
    gaussian_kl,
    mean_and_error,
    posterior_mean,
    predicted_clean,
    prior_term,
    step_terms,
    variational_bound,
)
from colorized_pipeline.training.losses import Diffusion
from colorized_pipeline.training.networks import build_unet

DOCUMENT = Path(__file__).parents[1] / "docs" / "explanation" / "theory.md"
TEXT = DOCUMENT.read_text()
BLOCKS = {int(number): block for block in re.findall(r"^\$\$\n(.*?)\n\$\$$", TEXT, re.M | re.S)
          for number in re.findall(r"\\tag\{(\d+)\}", block)}  # fmt: skip
TESTED: dict[int, list[str]] = {}

Test = TypeVar("Test", bound=Callable[..., None])
Array = np.ndarray


def equation(number: int, piece: str) -> Callable[[Test], Test]:
    """The decorated test runs equation ``number``, whose source contains ``piece``."""

    def register(test: Test) -> Test:
        TESTED.setdefault(number, []).append(piece)
        return test

    return register


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def make(kind: str = "linear", steps: int = 1000, **changes: Any) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=steps, beta_schedule=kind, clip_sample=False, **changes)


COSINE = make("squaredcos_cap_v2")
ZERO_SNR = make("squaredcos_cap_v2", rescale_betas_zero_snr=True, prediction_type="v_prediction")

# ---- A density with two peaks, for which everything is known by integration

PEAKS, PEAK_STD = torch.tensor([-1.0, 0.9], dtype=torch.float64), 0.3
SHARES = torch.tensor([0.4, 0.6], dtype=torch.float64)
GRID = np.linspace(-7, 7, 20001)


def log_peaks(x: torch.Tensor, signal: float = 1.0, noise: float = 0.0) -> torch.Tensor:
    """log density of √signal x_0 + √noise ε for x_0 of the two peaks."""
    std = math.sqrt(signal * PEAK_STD**2 + noise)
    parts = Normal(math.sqrt(signal) * PEAKS, std).log_prob(x.unsqueeze(-1))
    return torch.logsumexp(parts + SHARES.log(), dim=-1)


def on_grid(log_density: Array) -> Array:
    """A density on GRID, normalized."""
    density = np.exp(log_density - log_density.max())
    return density / np.trapezoid(density, GRID)


def mean_of(density: Array, values: Array = GRID) -> float:
    return float(np.trapezoid(density * values, GRID))


def cumulants(density: Array) -> tuple[float, float, float]:
    mean = mean_of(density)
    return mean, mean_of(density, (GRID - mean) ** 2), mean_of(density, (GRID - mean) ** 3)


def draw_peaks(count: int, seed: int = 0) -> torch.Tensor:
    first = torch.rand(count, generator=seeded(seed)) < SHARES[0]
    return torch.where(first, PEAKS[0], PEAKS[1]) + PEAK_STD * randn(count, seed=seed + 1)


# ---- Forward process


@equation(1, r"\sqrt{1-\beta_t}\ x_{t-1},\ \beta_t I")
def test_a_step_keeps_unit_variance() -> None:
    beta = NoiseSchedule.of(make()).beta
    assert torch.allclose(beta, make().betas.double(), atol=1e-7)
    x = randn(200_000)
    for t in (10, 500, 999):
        x = (1 - beta[t]).sqrt() * x + beta[t].sqrt() * randn(len(x), seed=t)
        assert x.var().item() == pytest.approx(1, abs=0.02)


@equation(2, r"\prod_{t=1}^{T} q(x_t \mid x_{t-1})")
def test_path_density_is_the_product_of_steps() -> None:
    """Against the joint Gaussian of (x_1, x_2, x_3), whose covariances follow from x_t = √(ā_t/ā_s) x_s + noise."""
    betas = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    a, b = torch.meshgrid(alpha_bar, alpha_bar, indexing="ij")
    earlier, later = torch.maximum(a, b), torch.minimum(a, b)
    joint = MultivariateNormal(alpha_bar.sqrt() * 0.8, (later / earlier).sqrt() * (1 - earlier))
    path = torch.tensor([0.8, 0.3, -0.2, 1.1], dtype=torch.float64)
    steps = Normal((1 - betas).sqrt() * path[:-1], betas.sqrt()).log_prob(path[1:]).sum()
    assert torch.isclose(joint.log_prob(path[1:]), steps)


@equation(3, r"\bar\alpha_t = \prod_{s=1}^{t} \alpha_s")
def test_alpha_bar_is_the_running_product() -> None:
    scheduler, product = make(), 1.0
    for t in range(1000):
        product *= 1 - scheduler.betas[t].item()
        assert scheduler.alphas_cumprod[t].item() == pytest.approx(product, rel=1e-4)


@equation(4, r"x_t = \sqrt{\bar\alpha_t}\ x_0 + \sqrt{1-\bar\alpha_t}\ \varepsilon")
@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
def test_closed_form_against_single_steps(kind: str) -> None:
    scheduler = make(kind, 300)
    x = torch.full((40_000,), 1.5, dtype=torch.float64)
    for t in range(300):
        beta = scheduler.betas[t].double()
        x = (1 - beta).sqrt() * x + beta.sqrt() * randn(len(x), seed=t)
        if t in (0, 100, 220, 299):
            a = scheduler.alphas_cumprod[t].double().item()
            closed = stats.norm(loc=math.sqrt(a) * 1.5, scale=math.sqrt(1 - a))
            assert stats.kstest(x.numpy(), closed.cdf).pvalue > 1e-3
            noise = randn(1, 4, seed=3)
            noisy = scheduler.add_noise(torch.full((1, 4), 1.5, dtype=torch.float64), noise, torch.tensor([t]))
            assert torch.allclose(noisy, math.sqrt(a) * 1.5 + math.sqrt(1 - a) * noise)


@equation(5, r"\sqrt{\bar\alpha_t / \bar\alpha_s}\ x_s")
def test_jump_between_two_times() -> None:
    scheduler = make(steps=60)
    s, t = 19, 50
    x = start = randn(100_000) * 0.5 + 1
    for step in range(s + 1, t + 1):
        beta = scheduler.betas[step].double()
        x = (1 - beta).sqrt() * x + beta.sqrt() * randn(len(x), seed=step)
    ratio = (scheduler.alphas_cumprod[t] / scheduler.alphas_cumprod[s]).double()
    rest = (x - ratio.sqrt() * start) / (1 - ratio).sqrt()
    assert stats.kstest(rest.numpy(), stats.norm.cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack((rest, start)))[0, 1]) < 0.015


@equation(6, r"\frac{t-1}{T-1} \left( \beta_T - \beta_1 \right)")
@equation(7, r"\cos^2 \left( \frac{t/T + s}{1+s} \cdot \frac{\pi}{2} \right)")
@equation(8, r"\frac{\bar\alpha_t}{1-\bar\alpha_t}")
@pytest.mark.parametrize("steps", [300, 1000])
def test_schedules(steps: int) -> None:
    t = np.arange(1, steps + 1)
    linear = 1e-4 + (t - 1) / (steps - 1) * (0.02 - 1e-4)
    assert np.allclose(make(steps=steps).betas.numpy(), linear, atol=1e-7)
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = np.minimum(1 - f[1:] / f[:-1], 0.999)
    scheduler = make("squaredcos_cap_v2", steps)
    assert np.allclose(scheduler.betas.numpy(), cosine, atol=1e-6)
    middle = torch.tensor([0, steps // 2, steps - 20])
    snr = compute_snr(scheduler, middle)
    alpha_bar = scheduler.alphas_cumprod[middle]
    assert torch.allclose(snr, alpha_bar / (1 - alpha_bar)) and torch.allclose(alpha_bar, snr / (1 + snr))
    assert np.allclose(alpha_bar.numpy(), f[middle.numpy() + 1] / f[0], rtol=1e-4)


def test_what_the_text_says_of_the_schedules() -> None:
    schedule = NoiseSchedule.of(ZERO_SNR)
    growth = schedule.beta / (1 - schedule.alpha_bar)
    assert growth[0] == 1 and growth[99].item() == pytest.approx(0.02, abs=0.005)
    assert 40 * schedule.reverse_variance[0].sqrt().item() == pytest.approx(0.2, abs=0.03)
    even = torch.cumprod(1 - torch.arange(1, 1001, dtype=torch.float64) / 1000, 0)
    assert (even > 0.5).sum() == 36  # "half of the variance would be noise after 37 of 1000 steps"
    assert even[99] < 0.01
    assert make(steps=1000).alphas_cumprod[-1].item() == pytest.approx(4e-5, rel=0.05)
    assert make(steps=300).alphas_cumprod[-1].item() == pytest.approx(0.048, abs=5e-4)
    assert make(steps=300).betas.sum().item() == pytest.approx(3, abs=0.05)


# ---- Reverse process


@equation(9, r"\frac{q(x_t \mid x_{t-1})\ q(x_{t-1} \mid c)}{q(x_t \mid c)}")
def test_exact_reverse_step_by_bayes_against_drawing() -> None:
    signal, beta, seen = 0.8, 0.3, 0.25
    prior = log_peaks(torch.from_numpy(GRID), signal, 1 - signal).numpy()
    exact = on_grid(prior + stats.norm.logpdf(seen, math.sqrt(1 - beta) * GRID, math.sqrt(beta)))
    before = math.sqrt(signal) * draw_peaks(2_000_000) + math.sqrt(1 - signal) * randn(2_000_000, seed=5)
    after = math.sqrt(1 - beta) * before + math.sqrt(beta) * randn(2_000_000, seed=6)
    kept = before[(after - seen).abs() < 0.01]
    mean, variance, third = cumulants(exact)
    assert len(kept) > 5000
    assert kept.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / len(kept)))
    assert kept.var().item() == pytest.approx(variance, rel=0.06)
    assert ((kept - kept.mean()) ** 3).mean().item() == pytest.approx(third, abs=0.02)


@equation(10, r"q(x_{t-1} \mid x_t, x_{t+1}, \ldots, x_T, c)")
def test_reversed_markov_chain_is_markov() -> None:
    """Three states, four times, arbitrary transitions: all conditionals by summation."""
    rng = np.random.default_rng(0)
    start, *steps = rng.dirichlet(np.ones(3)), *(rng.dirichlet(np.ones(3), 3) for _ in range(3))
    joint = np.einsum("a,ab,bc,cd->abcd", start, *steps)
    given_all = joint / joint.sum(0)  # q(x_0 | x_1, x_2, x_3)
    given_next = joint.sum((2, 3)) / joint.sum((0, 2, 3))  # q(x_0 | x_1)
    assert np.allclose(given_all, given_next[:, :, None, None])
    assert not np.allclose(given_next.T, steps[0])  # and it isn't the forward chain read backwards


@equation(11, r"\kappa_n = \beta^n\ \ell^{(n)}(y)")
@pytest.mark.parametrize("beta", [0.05, 0.3, 0.8])
def test_cumulants_of_the_reverse_step(beta: float) -> None:
    """u = √α x_{t-1}, y = u + √β ε: by integration, and from derivatives of log q(y) by autograd."""
    log_prior = log_peaks(torch.from_numpy(GRID), 1 - beta, 0).numpy()
    y = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    exact = cumulants(on_grid(log_prior + stats.norm.logpdf(y.item(), GRID, math.sqrt(beta))))
    derivatives, value = [], log_peaks(y, 1 - beta, beta)
    for _ in range(3):
        (value,) = torch.autograd.grad(value, y, create_graph=True)
        derivatives.append(value.item())
    first, second, third = derivatives
    expected = (y.item() + beta * first, beta + beta**2 * second, beta**3 * third)
    assert np.allclose(exact, expected, rtol=1e-4, atol=1e-7)


@equation(12, r"\frac{x_t + \beta_t \nabla \log q(x_t \mid c)}{\sqrt{1-\beta_t}}")
def test_small_steps_have_a_gaussian_reverse() -> None:
    distances, skews = [], []
    betas = (0.3, 0.03, 0.003, 0.0003)
    for beta in betas:
        y = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        (score,) = torch.autograd.grad(log_peaks(y, 1 - beta, beta), y)
        prior = log_peaks(torch.from_numpy(GRID)).numpy()
        exact = on_grid(prior + stats.norm.logpdf(y.item(), math.sqrt(1 - beta) * GRID, math.sqrt(beta)))
        mean = (y.item() + beta * score.item()) / math.sqrt(1 - beta)
        gaussian = on_grid(stats.norm.logpdf(GRID, mean, math.sqrt(beta)))
        distances.append(0.5 * np.trapezoid(abs(exact - gaussian), GRID))
        _, variance, third = cumulants(exact)
        skews.append(abs(third) / variance**1.5)
    assert distances[0] > 0.25 and distances[1] < 0.1 and distances[2] < 0.01
    rate = math.log(skews[2] / skews[3]) / math.log(betas[2] / betas[3])
    assert rate == pytest.approx(1.5, abs=0.1)


@equation(13, r"\frac{\mathbb E \left[ \varepsilon \mid x_t, c \right]}{\sqrt{1-\bar\alpha_t}}")
@pytest.mark.parametrize("alpha_bar", [0.1, 0.6, 0.95])
def test_score_is_denoising(alpha_bar: float) -> None:
    x = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(log_peaks(x, alpha_bar, 1 - alpha_bar), x)
    likelihood = stats.norm.logpdf(x.item(), math.sqrt(alpha_bar) * GRID, math.sqrt(1 - alpha_bar))
    posterior = on_grid(log_peaks(torch.from_numpy(GRID)).numpy() + likelihood)
    clean = mean_of(posterior)
    noise = mean_of(posterior, (x.item() - math.sqrt(alpha_bar) * GRID) / math.sqrt(1 - alpha_bar))
    assert score.item() == pytest.approx((math.sqrt(alpha_bar) * clean - x.item()) / (1 - alpha_bar), rel=1e-6)
    assert score.item() == pytest.approx(-noise / math.sqrt(1 - alpha_bar), rel=1e-6)


# ---- A reverse chain whose every density is Gaussian, so that the bound and what it bounds are known exactly


class LinearModel:
    """T = 3, one dimension: p(x_{t-1} | x_t, c) = N(slope_t x_t + shift_t c, std_t²), x_0 at index 0."""

    betas = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    slope = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    shift = torch.tensor([0.1, 0.3, 0.4], dtype=torch.float64)
    std = torch.tensor([0.4, 0.6, 0.9], dtype=torch.float64)
    c = 0.7
    alpha_bar = torch.cumprod(1 - betas, 0)

    def forward_path(self, clean: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Draws of x_1, x_2, x_3 by single steps, ``[N, 3]``."""
        path, x = [], clean
        for t, beta in enumerate(self.betas):
            x = (1 - beta).sqrt() * x + beta.sqrt() * randn(len(clean), seed=seed + t)
            path.append(x)
        return torch.stack(path, dim=1)

    def log_forward(self, clean: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        before = torch.cat((clean[:, None], path[:, :-1]), dim=1)
        return Normal((1 - self.betas).sqrt() * before, self.betas.sqrt()).log_prob(path).sum(1)

    def log_model(self, clean: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        to = torch.cat((clean[:, None], path[:, :-1]), dim=1)
        steps = Normal(self.slope * path + self.shift * self.c, self.std).log_prob(to).sum(1)
        return steps + Normal(0.0, 1.0).log_prob(path[:, -1])

    def joint_model(self) -> MultivariateNormal:
        """p(x_0, x_1, x_2, x_3 | c), built from the noises: x = M z + m."""
        mix, mean = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        mix[3, 3] = 1
        for t in (2, 1, 0):
            mix[t] = self.slope[t] * mix[t + 1]
            mix[t, t] += self.std[t]
            mean[t] = self.slope[t] * mean[t + 1] + self.shift[t] * self.c
        return MultivariateNormal(mean, mix @ mix.T)

    def forward_given(self, clean: float) -> MultivariateNormal:
        """q(x_1, x_2, x_3 | x_0) by equation 5."""
        a, b = torch.meshgrid(self.alpha_bar, self.alpha_bar, indexing="ij")
        earlier, later = torch.maximum(a, b), torch.minimum(a, b)
        return MultivariateNormal(self.alpha_bar.sqrt() * clean, (later / earlier).sqrt() * (1 - earlier))

    def model_given(self, clean: float) -> MultivariateNormal:
        """p(x_1, x_2, x_3 | x_0, c): conditioning of the joint Gaussian."""
        joint = self.joint_model()
        gain = joint.covariance_matrix[1:, 0] / joint.covariance_matrix[0, 0]
        mean = joint.mean[1:] + gain * (clean - joint.mean[0])
        return MultivariateNormal(
            mean, joint.covariance_matrix[1:, 1:] - torch.outer(gain, joint.covariance_matrix[0, 1:])
        )

    def log_likelihood(self, clean: float) -> float:
        joint = self.joint_model()
        return Normal(joint.mean[0], joint.covariance_matrix[0, 0].sqrt()).log_prob(torch.tensor(clean)).item()

    def bound(self, clean: float) -> float:
        """E_q[log q(x_{1:T} | x_0) - log p(x_{0:T} | c)], exactly: a Gaussian's entropy and a mean of squares."""
        forward, joint = self.forward_given(clean), self.joint_model()
        offset = torch.cat((torch.tensor([clean]).double(), forward.mean)) - joint.mean
        spread = torch.zeros(4, 4, dtype=torch.float64)
        spread[1:, 1:] = forward.covariance_matrix
        inverse = joint.precision_matrix
        cross = 0.5 * (offset @ inverse @ offset + (inverse * spread).sum())
        cross += 0.5 * (4 * math.log(2 * math.pi) + joint.covariance_matrix.logdet())
        return (cross - forward.entropy()).item()

    def terms(self, clean: float) -> list[float]:
        """L_0, L_1, L_2, L_3 of equation 22, the mean over x_t taken by Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(20)
        weights = torch.from_numpy(weights / weights.sum())
        found = []
        for t in (1, 2, 3):
            a, beta = self.alpha_bar[t - 1], self.betas[t - 1]
            x = a.sqrt() * clean + (1 - a).sqrt() * torch.from_numpy(nodes)
            model = Normal(self.slope[t - 1] * x + self.shift[t - 1] * self.c, self.std[t - 1])
            if t == 1:
                values = -model.log_prob(torch.tensor(clean))
            else:
                before = self.alpha_bar[t - 2]
                mean = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x) / (1 - a)
                values = kl_divergence(Normal(mean, (beta * (1 - before) / (1 - a)).sqrt()), model)
            found.append((weights * values).sum().item())
        last = self.alpha_bar[-1]
        return [*found, kl_divergence(Normal(last.sqrt() * clean, (1 - last).sqrt()), Normal(0.0, 1.0)).item()]


MODEL = LinearModel()


@equation(14, r"p(x_T) \prod_{t=1}^{T} p_\theta(x_{t-1} \mid x_t, c)")
def test_density_of_the_reverse_chain() -> None:
    clean, path = randn(5), randn(5, 3, seed=1)
    joint = MODEL.joint_model().log_prob(torch.cat((clean[:, None], path), dim=1))
    assert torch.allclose(joint, MODEL.log_model(clean, path))


@equation(15, r"\mu_\theta(x_t, c, t),\ \sigma_t^2 I")
def test_a_sampling_step_is_gaussian_with_the_fixed_variance() -> None:
    for kind in ("fixed_small", "fixed_large"):
        scheduler = make("squaredcos_cap_v2", 20, variance_type=kind)
        x, output = torch.full((40_000, 1), 0.4), torch.full((40_000, 1), -0.3)
        drawn = scheduler.step(output, 9, x, generator=seeded()).prev_sample.double().flatten()
        at = torch.tensor([9])
        mean = posterior_mean(scheduler, predicted_clean(scheduler, output[:1], x[:1], at), x[:1], at).item()
        std = NoiseSchedule.of(scheduler).reverse_variance[9].sqrt().item()
        assert stats.kstest(drawn.numpy(), stats.norm(mean, std).cdf).pvalue > 1e-3


@equation(16, r"\mathrm{KL} \left( q(x_T \mid c)\ \Vert\ p(x_T) \right) \leq")
def test_conditioning_the_first_element_gains_at_most_the_prior_term() -> None:
    gains = []
    for scheduler in (make(steps=300), make(steps=1000), ZERO_SNR):
        a = scheduler.alphas_cumprod[-1].double().item()
        density = on_grid(log_peaks(torch.from_numpy(GRID), a, 1 - a).numpy())
        log_ratio = np.log(np.maximum(density, 1e-300)) - stats.norm.logpdf(GRID)
        gains.append(mean_of(density, log_ratio))
        terms = prior_term(scheduler, draw_peaks(20_000)[:, None]) * math.log(2)
        assert gains[-1] <= terms.mean().item() + 1e-9
    assert gains[0] > 1e-4 > gains[1] and gains[2] == pytest.approx(0, abs=1e-9)


@equation(17, r"-\log \mathbb E_{q(x_{1:T} \mid x_0)}")
def test_jensen() -> None:
    clean = torch.full((400_000,), 0.6, dtype=torch.float64)
    path = MODEL.forward_path(clean)
    log_ratio = MODEL.log_model(clean, path) - MODEL.log_forward(clean, path)
    likelihood = MODEL.log_likelihood(0.6)
    assert log_ratio.exp().mean().item() == pytest.approx(math.exp(likelihood), rel=0.02)
    assert -log_ratio.mean().item() == pytest.approx(MODEL.bound(0.6), abs=0.01)
    assert MODEL.bound(0.6) > -likelihood + 0.02


@equation(18, r"= L_{\mathrm{vlb}}(x_0, c) + \log p_\theta(x_0 \mid c)")
def test_the_gap_of_the_bound_is_a_kl() -> None:
    for clean in (-1.0, 0.0, 0.6, 2.0):
        gap = kl_divergence(MODEL.forward_given(clean), MODEL.model_given(clean)).item()
        assert gap == pytest.approx(MODEL.bound(clean) + MODEL.log_likelihood(clean), rel=1e-6)


@equation(
    19, r"\mathbb E_{q(x_{0:T} \mid c)} \left[ \log \frac{q(x_{1:T} \mid x_0)}{p_\theta(x_{0:T} \mid c)} \right]"
)
def test_mean_over_the_data_and_its_lower_limit() -> None:
    mean, std = 0.3, 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    inner_first = sum(w * MODEL.bound(mean + std * x) for x, w in zip(nodes, weights / weights.sum(), strict=True))
    clean = mean + std * randn(400_000, seed=9)
    path = MODEL.forward_path(clean)
    jointly = MODEL.log_forward(clean, path) - MODEL.log_model(clean, path)
    assert jointly.mean().item() == pytest.approx(inner_first, abs=0.02)
    joint, data = MODEL.joint_model(), Normal(torch.tensor(mean).double(), std)
    model = Normal(joint.mean[0], joint.covariance_matrix[0, 0].sqrt())
    limit = data.entropy() + kl_divergence(data, model)
    assert inner_first > limit.item() and limit > data.entropy()


@equation(20, r"q(x_{t-1} \mid x_t, x_0)\ \frac{q(x_t \mid x_0)}{q(x_{t-1} \mid x_0)}")
@equation(21, r"L_T + \sum_{t=2}^{T} L_{t-1} + L_0")
@equation(22, r"L_0 &= \mathbb E_{q(x_1 \mid x_0)} \left[ -\log p_\theta(x_0 \mid x_1, c) \right]")
def test_the_bound_is_the_sum_of_its_terms() -> None:
    for clean in (-1.0, 0.6, 2.0):
        assert sum(MODEL.terms(clean)) == pytest.approx(MODEL.bound(clean), rel=1e-6)
    a, before, beta = MODEL.alpha_bar[2], MODEL.alpha_bar[1], MODEL.betas[2]
    clean, x_before, x = randn(3, 5)
    posterior = Normal(
        (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x) / (1 - a),
        (beta * (1 - before) / (1 - a)).sqrt(),
    )
    bayes = (
        posterior.log_prob(x_before)
        + Normal(a.sqrt() * clean, (1 - a).sqrt()).log_prob(x)
        - Normal(before.sqrt() * clean, (1 - before).sqrt()).log_prob(x_before)
    )
    assert torch.allclose(bayes, Normal((1 - beta).sqrt() * x_before, beta.sqrt()).log_prob(x))


def test_regrouping_makes_single_terms_quiet() -> None:
    """The reason to rewrite the bound: log-ratios of single steps cancel only in their sum, KLs needn't cancel.

    Gaussian data and the best denoiser, one step in the middle of 1000.
    """
    schedule, t, std = NoiseSchedule.of(ZERO_SNR), 500, 0.4
    a, before, beta = schedule.alpha_bar[t], schedule.alpha_bar_before[t], schedule.beta[t]
    tilde = schedule.posterior_variance[t]
    clean = std * randn(50_000)
    x_before = before.sqrt() * clean + (1 - before).sqrt() * randn(50_000, seed=1)
    x = (1 - beta).sqrt() * x_before + beta.sqrt() * randn(50_000, seed=2)
    guess = std**2 * a.sqrt() / (std**2 * a + 1 - a) * x
    model = Normal(posterior_mean(ZERO_SNR, guess, x, torch.full((50_000,), t)), tilde.sqrt())
    posterior = Normal(posterior_mean(ZERO_SNR, clean, x, torch.full((50_000,), t)), tilde.sqrt())
    raw = Normal((1 - beta).sqrt() * x_before, beta.sqrt()).log_prob(x) - model.log_prob(x_before)
    ratio = posterior.log_prob(x_before) - model.log_prob(x_before)
    kl = kl_divergence(posterior, model)
    assert kl.mean().item() == pytest.approx(ratio.mean().item(), abs=4 * ratio.std().item() / 50_000**0.5)
    assert kl.std() < 0.05 * ratio.std() and kl.std() < 0.05 * raw.std()
    assert raw.std() > 100 * kl.mean()


@equation(23, r"\text{a part without } \theta")
def test_known_targets_have_the_unknown_one_as_their_mean() -> None:
    """The difference of both sides is the same for any two models, by integration over the two peaks."""
    alpha, before, seen = 0.7, 0.8, 0.1
    a, beta = alpha * before, 1 - alpha
    clean = np.linspace(-3, 3, 1201)
    weight = np.exp(log_peaks(torch.from_numpy(clean)).numpy()) * stats.norm.pdf(
        seen, np.sqrt(a) * clean, np.sqrt(1 - a)
    )
    weight /= weight.sum()
    means = (np.sqrt(before) * beta * clean + np.sqrt(alpha) * (1 - before) * seen) / (1 - a)
    variance = beta * (1 - before) / (1 - a)
    unknown = sum(w * stats.norm.pdf(GRID, m, np.sqrt(variance)) for w, m in zip(weight, means, strict=True))
    differences = []
    for mean, std in ((0.3, 0.5), (-0.2, 0.9)):
        known = 0.5 * (np.log(std**2 / variance) + (variance + (means - mean) ** 2) / std**2 - 1)
        log_ratio = np.log(np.maximum(unknown, 1e-300)) - stats.norm.logpdf(GRID, mean, std)
        differences.append((weight * known).sum() - mean_of(unknown, log_ratio))
    assert differences[0] == pytest.approx(differences[1], abs=1e-6) and differences[0] > 0.1


def test_directions_of_the_kl() -> None:
    """KL(q || p) makes p cover both peaks of q, KL(p || q) lets it choose one."""
    log_target = log_peaks(torch.from_numpy(GRID)).numpy()
    target = on_grid(log_target)

    def covering(parameters: Array) -> float:
        return mean_of(target, log_target - stats.norm.logpdf(GRID, parameters[0], np.exp(parameters[1])))

    def choosing(parameters: Array) -> float:
        p = on_grid(stats.norm.logpdf(GRID, parameters[0], np.exp(parameters[1])))
        return mean_of(p, np.log(np.maximum(p, 1e-300)) - log_target)

    covers = optimize.minimize(covering, [0.5, 0.0], method="Nelder-Mead").x
    chooses = optimize.minimize(choosing, [0.5, -1.0], method="Nelder-Mead").x
    mean, variance, _ = cumulants(target)
    assert covers[0] == pytest.approx(mean, abs=0.01) and np.exp(covers[1]) == pytest.approx(variance**0.5, abs=0.01)
    assert chooses[0] == pytest.approx(0.9, abs=0.05) and np.exp(chooses[1]) == pytest.approx(0.3, abs=0.03)


@equation(24, r"\Phi \left( \frac{x_{0,i} + \delta/2 - \hat x_{0,i}}{\sigma_1} \right)")
def test_decoder_term() -> None:
    delta, values = 0.025, torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    guess = torch.tensor([[0.48, -0.21, 0.11]], dtype=torch.float64)
    variance = NoiseSchedule.of(ZERO_SNR).reverse_variance[0]
    assert variance == NoiseSchedule.of(ZERO_SNR).posterior_variance[1]
    found = discretized_gaussian_nll(values, guess, variance, bin_width=delta).sum()
    z = stats.norm(guess.numpy(), variance.sqrt().item())
    mass = z.cdf(values.numpy() + delta / 2) - z.cdf(values.numpy() - delta / 2)
    assert found.item() == pytest.approx(-np.log(mass).sum(), rel=1e-5)
    # All of the grid together is certain, which no density could promise.
    everything = torch.arange(-300, 301) * delta
    masses = torch.exp(-discretized_gaussian_nll(everything, guess[0, :1], variance, bin_width=delta))
    assert masses.sum().item() == pytest.approx(1)


@equation(25, r"\bar\alpha_T \lVert x_0 \rVert^2 - D \left( \bar\alpha_T + \log ( 1-\bar\alpha_T ) \right)")
def test_prior_term_closed_form() -> None:
    scheduler, x = make(steps=300), randn(2, 2, 4, 4) * 0.4
    a = scheduler.alphas_cumprod[-1].double()
    nats = 0.5 * (a * x.square().sum((1, 2, 3)) - 32 * (a + torch.log1p(-a)))
    assert torch.allclose(prior_term(scheduler, x) * 32 * math.log(2), nats)
    q = Normal(a.sqrt() * x, (1 - a).sqrt())
    assert torch.allclose(nats, kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3)))
    assert prior_term(ZERO_SNR, x).abs().max() == 0


# ---- The posterior and the losses


@equation(26, r"\tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\ \beta_t")
@equation(27, r"\frac{\sqrt{\alpha_t}\ (1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\ x_t")
@equation(28, r"\frac{1}{\sqrt{\alpha_t}} \left( x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\ \varepsilon \right)")
@pytest.mark.parametrize("scheduler", [make(steps=20), ZERO_SNR], ids=["linear", "zero-snr"])
def test_posterior_against_brute_force_bayes(scheduler: DDPMScheduler) -> None:
    schedule, clean = NoiseSchedule.of(scheduler), 0.5
    last = len(schedule.beta) - 1
    for t in (1, last // 2, last):
        a, before, beta = (x[t].item() for x in (schedule.alpha_bar, schedule.alpha_bar_before, schedule.beta))
        seen, reach = math.sqrt(a) * clean + 1.3 * math.sqrt(1 - a), math.sqrt(1 - before)
        fine = np.linspace(math.sqrt(before) * clean - 9 * reach, math.sqrt(before) * clean + 9 * reach, 40001)
        log_density = stats.norm.logpdf(seen, math.sqrt(1 - beta) * fine, math.sqrt(beta))
        log_density += stats.norm.logpdf(fine, math.sqrt(before) * clean, reach)
        density = np.exp(log_density - log_density.max())
        density /= np.trapezoid(density, fine)
        mean = np.trapezoid(density * fine, fine)
        variance = np.trapezoid(density * (fine - mean) ** 2, fine)
        x_0, x_t, at = torch.tensor([clean]), torch.tensor([seen]), torch.tensor([t])
        assert posterior_mean(scheduler, x_0, x_t, at).item() == pytest.approx(mean, rel=1e-4)
        assert schedule.posterior_variance[t].item() == pytest.approx(variance, rel=1e-4)
        assert schedule.posterior_variance[t] <= schedule.beta[t]
        if beta < 1:
            noise = (seen - math.sqrt(a) * clean) / math.sqrt(1 - a)
            assert mean == pytest.approx((seen - beta / math.sqrt(1 - a) * noise) / math.sqrt(1 - beta), rel=1e-4)
    assert schedule.posterior_variance[0] == 0
    first = posterior_mean(scheduler, torch.tensor([clean]), torch.tensor([seen]), torch.tensor([0]))
    assert first.item() == pytest.approx(clean, rel=1e-6)


@equation(29, r"\frac{D}{2} \left( \log \frac{r}{s} + \frac{s}{r} - 1 \right) + \frac{\lVert a-b \rVert^2}{2r}")
def test_kl_of_gaussians_against_sampling() -> None:
    a, b, s, r = torch.tensor([0.3, -0.5, 1.0]).double(), torch.tensor([0.0, 0.2, 0.9]).double(), 0.4, 0.9
    x = a + math.sqrt(s) * randn(400_000, 3)
    sampled = (Normal(a, math.sqrt(s)).log_prob(x) - Normal(b, math.sqrt(r)).log_prob(x)).sum(1)
    formula = 1.5 * (math.log(r / s) + s / r - 1) + (a - b).square().sum() / (2 * r)
    assert sampled.mean().item() == pytest.approx(formula.item(), abs=4 * sampled.std().item() / 400_000**0.5)
    code = gaussian_kl(a - b, torch.tensor(s), torch.tensor(r)).sum()
    assert code.item() == pytest.approx(formula.item(), rel=1e-6)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "chroma": randn(6, 2, 4, 4, seed=seed) * 0.4,
        "condition": randn(6, 3, 4, 4, seed=seed + 1),
        "noise": randn(6, 2, 4, 4, seed=seed + 2),
        "timesteps": torch.tensor([1, 40, 300, 500, 800, 990]),
    }


def noisy_of(scheduler: DDPMScheduler, given: dict[str, torch.Tensor]) -> torch.Tensor:
    a = column(scheduler.alphas_cumprod.double(), given["timesteps"])
    return a.sqrt() * given["chroma"] + (1 - a).sqrt() * given["noise"]


def column(values: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return values[timesteps].reshape(-1, 1, 1, 1)


def per_photo(x: torch.Tensor) -> torch.Tensor:
    return x.sum((1, 2, 3))


@equation(30, r"\frac{1}{2\sigma_t^2} \lVert \tilde\mu_t(x_t, x_0) - \mu_\theta(x_t, c, t) \rVert^2")
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_step_term_is_the_kl_of_both_steps(kind: str) -> None:
    scheduler, given = make("squaredcos_cap_v2", variance_type=kind), batch()
    schedule, at = NoiseSchedule.of(scheduler), given["timesteps"]
    output, noisy = randn(6, 2, 4, 4, seed=8), noisy_of(scheduler, given)
    truth = posterior_mean(scheduler, given["chroma"], noisy, at)
    guess = posterior_mean(scheduler, predicted_clean(scheduler, output, noisy, at), noisy, at)
    tilde, sigma = column(schedule.posterior_variance, at), column(schedule.reverse_variance, at)
    formula = per_photo((truth - guess).square() / (2 * sigma) + 0.5 * (torch.log(sigma / tilde) + tilde / sigma - 1))
    library = per_photo(kl_divergence(Normal(truth, tilde.sqrt()), Normal(guess, sigma.sqrt())))
    found = step_terms(lambda x, t: output, scheduler, **given, bin_width=0.02) * 32 * math.log(2)
    assert torch.allclose(found, formula, rtol=1e-6) and torch.allclose(found, library, rtol=1e-6)


@equation(
    31,
    r"\sigma_t^{\star 2} = \tilde\beta_t + \left( \frac{\sqrt{\bar\alpha_{t-1}}\ \beta_t}{1-\bar\alpha_t} \right)^2",
)
def test_best_fixed_variance() -> None:
    schedule = NoiseSchedule.of(COSINE)
    for t in (1, 10, 500):
        a, before, beta = schedule.alpha_bar[t], schedule.alpha_bar_before[t], schedule.beta[t]
        tilde, weight = schedule.posterior_variance[t].item(), (before.sqrt() * beta / (1 - a)).item()
        for std in (0.0, 0.4, 1.0):  # of Gaussian data, whose best denoiser has this squared error:
            error = (std**2 * (1 - a) / (std**2 * a + 1 - a)).item()
            best = tilde + weight**2 * error

            def averaged(
                log_variance: float, error: float = error, tilde: float = tilde, weight: float = weight
            ) -> float:
                variance = math.exp(log_variance)
                return 0.5 * (weight**2 * error / variance + math.log(variance / tilde) + tilde / variance - 1)

            found = optimize.minimize_scalar(
                averaged, bounds=(math.log(tilde) - 2, math.log(tilde) + 4), method="bounded"
            )
            assert math.exp(found.x) == pytest.approx(best, rel=1e-3)
            assert tilde * (1 - 1e-9) <= best <= beta.item() * (1 + 1e-6)
            if std == 0.0:
                assert best == pytest.approx(tilde)
            if std == 1.0:
                assert best == pytest.approx(beta.item(), rel=1e-6)


def test_what_the_text_says_of_both_variances() -> None:
    """Gaussian data of standard deviation 0.4 in bins of 0.02, best denoiser: bits above the entropy."""
    schedule = NoiseSchedule.of(ZERO_SNR)
    a, before, beta, tilde = (x[1:] for x in (schedule.alpha_bar, schedule.alpha_bar_before, schedule.beta,
                                              schedule.posterior_variance))  # fmt: skip
    error = 0.16 * (1 - a) / (0.16 * a + 1 - a)
    squared = before * (beta / (1 - a)) ** 2 * error
    first = 0.16 * (1 - before[0]) / (0.16 * before[0] + 1 - before[0])
    offsets = torch.linspace(-8, 8, 4001).double() * first.sqrt()
    nll = discretized_gaussian_nll(offsets, torch.zeros(1), tilde[0], bin_width=0.02)
    weights = torch.exp(-offsets.square() / (2 * first))
    decoder = (nll * weights).sum() / weights.sum()
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.4 / 0.02)

    def excess(variance: torch.Tensor) -> float:
        steps = 0.5 * (torch.log(variance / tilde) + (tilde + squared) / variance - 1)
        return ((steps.sum() + decoder - entropy) / math.log(2)).item()

    assert 0 < excess(beta) < 0.05 and excess(tilde) == pytest.approx(0.6, abs=0.05)


@equation(32, r"v_t = \sqrt{\bar\alpha_t}\ \varepsilon - \sqrt{1-\bar\alpha_t}\ x_0")
@equation(33, r"\hat x_0 = \sqrt{\bar\alpha_t}\ x_t - \sqrt{1-\bar\alpha_t}\ \hat v")
@equation(34, r"\frac{1}{1+\mathrm{SNR}(t)} \lVert v_t - \hat v \rVert^2")
def test_three_predictions_are_one() -> None:
    given = batch()
    at, a = given["timesteps"], column(COSINE.alphas_cumprod.double(), given["timesteps"])
    noisy, snr = noisy_of(COSINE, given), a / (1 - a)
    v = COSINE.get_velocity(given["chroma"], given["noise"], at)
    assert torch.allclose(v, a.sqrt() * given["noise"] - (1 - a).sqrt() * given["chroma"])
    assert torch.allclose(a.sqrt() * v + (1 - a).sqrt() * noisy, given["noise"])
    assert torch.allclose(
        noisy.square() + v.square(), given["chroma"].square() + given["noise"].square()
    )  # a rotation
    angle = torch.acos(a.sqrt())
    slightly = angle + 1e-6
    moved = slightly.cos() * given["chroma"] + slightly.sin() * given["noise"]
    assert torch.allclose((moved - noisy) / 1e-6, v, atol=1e-5)  # the velocity along the turn

    guess = given["chroma"] + 0.1 * randn(6, 2, 4, 4, seed=4)
    noise_guess = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
    v_guess = a.sqrt() * noise_guess - (1 - a).sqrt() * guess
    for kind, output in (("sample", guess), ("epsilon", noise_guess), ("v_prediction", v_guess)):
        scheduler = make("squaredcos_cap_v2", prediction_type=kind)
        assert torch.allclose(predicted_clean(scheduler, output, noisy, at), guess, atol=1e-9)
    error = (given["chroma"] - guess).square()
    assert torch.allclose(error, (given["noise"] - noise_guess).square() / snr)
    assert torch.allclose(error, (v - v_guess).square() / (1 + snr))


@equation(35, r"\frac{1}{2} \left( \frac{\mathrm{SNR}(t-1)}{\mathrm{SNR}(t)} - 1 \right)")
@equation(36, r"\frac{\beta_t^2}{2 \sigma_t^2 \alpha_t (1-\bar\alpha_t)}")
@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_weights_of_the_losses_against_autograd(kind: str, variance: str) -> None:
    """The slope of the KL of both Gaussians, taken by autograd, is the weight times that of the squared error."""
    scheduler, given = make("squaredcos_cap_v2", prediction_type=kind, variance_type=variance), batch()
    schedule, at, noisy = NoiseSchedule.of(scheduler), given["timesteps"], noisy_of(scheduler, given)
    a, beta = column(schedule.alpha_bar, at), column(schedule.beta, at)
    target = {"sample": given["chroma"], "epsilon": given["noise"]}.get(kind)
    if target is None:
        target = a.sqrt() * given["noise"] - (1 - a).sqrt() * given["chroma"]
    output = randn(6, 2, 4, 4, seed=8).requires_grad_()
    truth = posterior_mean(scheduler, given["chroma"], noisy, at)
    guess = posterior_mean(scheduler, predicted_clean(scheduler, output, noisy, at), noisy, at)
    tilde, sigma = column(schedule.posterior_variance, at), column(schedule.reverse_variance, at)
    kl = kl_divergence(Normal(truth, tilde.sqrt()), Normal(guess, sigma.sqrt())).sum()
    (slope,) = torch.autograd.grad(kl, output)

    snr = a / (1 - a)
    before = column(schedule.alpha_bar_before, at)
    snr_before = before / (1 - before)
    weights = {
        "sample": 0.5 * (snr_before - snr),
        "epsilon": 0.5 * (snr_before / snr - 1),
        "v_prediction": 0.5 * (snr_before - snr) / (1 + snr),
    }
    assert torch.allclose(weights["epsilon"], beta**2 / (2 * tilde * (1 - beta) * (1 - a)))
    expected = weights[kind] * tilde / sigma * 2 * (output - target).detach()  # σ² divides instead of its own
    assert torch.allclose(slope, expected, rtol=1e-6)
    if variance == "fixed_small":
        found = step_terms(lambda x, t: output.detach(), scheduler, **given, bin_width=0.02) * 32 * math.log(2)
        assert torch.allclose(found, per_photo(weights[kind] * (output - target).detach().square()), rtol=1e-6)


def test_our_bound_of_gaussian_data() -> None:
    """Given the best denoiser all of (21) is known: (35) with E||x_0 - x̂_0||² = s²(1 - ā) / (s²ā + 1 - ā) a number."""
    scheduler, std, delta = make("squaredcos_cap_v2", 100), 0.4, 0.02
    a = scheduler.alphas_cumprod.double()

    def best(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        at = column(a, t)
        return (1 - at).sqrt() / (std**2 * at + 1 - at) * x

    x_0 = std * randn(400, 2, 4, 4)
    nothing = torch.empty(400, 0, 4, 4, dtype=torch.float64)
    bound = variational_bound(best, scheduler, chroma=x_0, condition=nothing, bin_width=delta, generator=seeded())
    errors, snr = std**2 * (1 - a) / (std**2 * a + 1 - a), a / (1 - a)
    steps = 0.5 * ((snr[:-1] - snr[1:]) * errors[1:]).sum()
    tilde = NoiseSchedule.of(scheduler).posterior_variance[1]
    offsets = errors[0].sqrt() * torch.linspace(-7, 7, 4001).double()
    weights = torch.exp(-offsets.square() / (2 * errors[0]))
    nll = discretized_gaussian_nll(offsets, torch.zeros(1), tilde, bin_width=delta)
    prior = 0.5 * (a[-1] * std**2 - a[-1] - torch.log1p(-a[-1]))
    closed = (prior + steps + (weights * nll).sum() / weights.sum()).item() / math.log(2)
    mean, error = mean_and_error(bound.total)
    assert error < 0.02 * mean and mean == pytest.approx(closed, abs=4 * error)


@equation(37, r"\frac{1}{D} \lVert \text{target} - f_\theta(x_t, c, t) \rVert^2")
@equation(38, r"w_v(t) = \frac{\min ( \mathrm{SNR}(t),\ \gamma )}{1+\mathrm{SNR}(t)}")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_simple_loss_and_min_snr(kind: str) -> None:
    scheduler = make("squaredcos_cap_v2", prediction_type=kind)
    given = {name: x.float() if x.is_floating_point() else x for name, x in batch().items()}
    output = torch.randn(6, 2, 4, 4, generator=seeded(5))
    snr = compute_snr(scheduler, given["timesteps"])
    a = (snr / (1 + snr)).reshape(-1, 1, 1, 1)
    target = given["noise"] if kind == "epsilon" else a.sqrt() * given["noise"] - (1 - a).sqrt() * given["chroma"]
    errors = per_photo((target - output).square()) / 32
    objective = Diffusion(scheduler)
    noisy, at = objective.add_noise(given["chroma"], given["noise"], given["timesteps"])
    found = objective.target(given["chroma"], given["noise"], at)
    assert torch.allclose(found, target, atol=1e-5)
    assert objective.loss(output, found, at).item() == pytest.approx(errors.mean().item(), rel=1e-4)
    assert torch.allclose(noisy, a.sqrt() * given["chroma"] + (1 - a).sqrt() * given["noise"], atol=1e-5)
    weights = snr.clamp(max=5) / (snr if kind == "epsilon" else 1 + snr)
    weighted = Diffusion(scheduler, snr_gamma=5.0).loss(output, found, at)
    assert weighted.item() == pytest.approx((weights * errors).mean().item(), rel=1e-4)


@equation(39, r"\lVert \mathbb E [ \text{target} \mid x_t, c ] - f \rVert^2")
@equation(40, r"f^{\star}(x_t, c, t) = \mathbb E \left[ \text{target} \mid x_t, c \right]")
def test_least_squares_learns_the_conditional_mean() -> None:
    a = 0.6
    clean, noise = draw_peaks(400_000), randn(400_000, seed=7)
    noisy = math.sqrt(a) * clean + math.sqrt(1 - a) * noise

    def exact(x: float) -> float:
        return mean_of(
            on_grid(
                log_peaks(torch.from_numpy(GRID)).numpy() + stats.norm.logpdf(x, np.sqrt(a) * GRID, np.sqrt(1 - a))
            )
        )

    # Least squares over functions of x_t that are constant in narrow cells
    for centre in (-1.0, 0.0, 0.8):
        cell = clean[(noisy - centre).abs() < 0.03]
        fitted = np.linalg.lstsq(np.ones((len(cell), 1)), cell.numpy(), rcond=None)[0].item()
        assert fitted == pytest.approx(exact(centre), abs=0.03)
        mean = exact(centre)
        for f in (mean, mean + 0.3):
            split = ((cell - mean) ** 2).mean() + (mean - f) ** 2
            assert ((cell - f) ** 2).mean().item() == pytest.approx(split.item(), abs=0.03)


# ---- Zero terminal SNR


@equation(41, r"\frac{\sqrt{\bar\alpha_1}}{\sqrt{\bar\alpha_1} - \sqrt{\bar\alpha_T}}")
@equation(42, r"\tilde\mu_T = \sqrt{\bar\alpha_{T-1}}\ x_0")
def test_zero_terminal_snr() -> None:
    plain = make(steps=300)
    root = plain.alphas_cumprod.double().sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    repaired = make(steps=300, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert torch.allclose(repaired.alphas_cumprod.double().sqrt(), expected, atol=1e-4)
    assert torch.allclose(rescale_zero_terminal_snr(plain.betas), repaired.betas)
    assert expected[0].item() == pytest.approx(root[0].item()) and repaired.alphas_cumprod[-1] == 0

    schedule, last = NoiseSchedule.of(repaired), torch.tensor([299])
    chroma, noise = randn(1, 2, 4, 4) * 0.4, randn(1, 2, 4, 4, seed=1)
    assert schedule.beta[-1] == 1 and prior_term(repaired, chroma).item() == 0
    mean = posterior_mean(repaired, chroma, noise, last)
    assert torch.allclose(mean, schedule.alpha_bar[-2].sqrt() * chroma)
    assert schedule.posterior_variance[-1] == 1 - schedule.alpha_bar[-2]
    assert torch.allclose(repaired.get_velocity(chroma, noise, last), -chroma)
    assert torch.allclose(predicted_clean(repaired, noise, noise, last), -noise)
    with pytest.raises(ValueError, match="epsilon"):
        predicted_clean(make(rescale_betas_zero_snr=True), noise, noise, torch.tensor([999]))


# ---- Sampling


@equation(43, r"x_{t-1} = \tilde\mu_t(x_t, \hat x_0) + \sigma_t z")
@equation(44, r"\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\ \hat\varepsilon \right) + \sigma_t z")
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_sampling_step_is_the_schedulers(variance: str) -> None:
    scheduler = make(steps=300, variance_type=variance)
    schedule, x, output = (
        NoiseSchedule.of(scheduler),
        torch.randn(1, 2, 4, 4, generator=seeded()),
        torch.randn(1, 2, 4, 4, generator=seeded(1)),
    )
    for t in (1, 150, 299):
        z = torch.randn(1, 2, 4, 4, generator=seeded(2))
        at = torch.tensor([t])
        a, beta = schedule.alpha_bar[t], schedule.beta[t]
        spread = schedule.reverse_variance[t].sqrt() * z
        with_clean = posterior_mean(scheduler, predicted_clean(scheduler, output, x, at), x, at) + spread
        with_noise = (x.double() - beta / (1 - a).sqrt() * output) / (1 - beta).sqrt() + spread
        found = scheduler.step(output, t, x, generator=seeded(2)).prev_sample.double()
        assert torch.allclose(found, with_clean, atol=5e-4) and torch.allclose(found, with_noise, atol=5e-4)
    last = scheduler.step(output, 0, x, generator=seeded(2))
    assert torch.allclose(last.prev_sample, last.pred_original_sample)  # no noise in the last step


def exact_v(scheduler: Any, x: torch.Tensor, t: int) -> torch.Tensor:
    """E[v | x_t] for the two peaks, in float64: the perfect network."""
    a = scheduler.alphas_cumprod[t].double()
    variance = PEAK_STD**2 * a + 1 - a
    offsets = x.double()[..., None] - a.sqrt() * PEAKS
    share = torch.softmax(SHARES.log() - offsets.square() / (2 * variance), dim=-1)
    clean = (share * (PEAKS + PEAK_STD**2 * a.sqrt() / variance * offsets)).sum(-1)
    noise = (share * (1 - a).sqrt() / variance * offsets).sum(-1)
    return a.sqrt() * noise - (1 - a).sqrt() * clean


def sample(scheduler: Any, steps: int, count: int, **extra: Any) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = randn(count, 1)
    for t in scheduler.timesteps:
        x = scheduler.step(exact_v(scheduler, x, int(t)), t, x, **extra).prev_sample
    return x.flatten()


def from_zero_snr(kind: Any, **changes: Any) -> Any:
    return kind.from_config(ZERO_SNR.config, timestep_spacing="trailing", clip_sample=False, **changes)


def test_algorithm_2_draws_from_the_data_and_not_their_mean() -> None:
    """With the exact denoiser, the chain makes both peaks in their shares; so do the faster samplers in 50 steps."""
    for scheduler, steps, extra in (
        (from_zero_snr(DDPMScheduler), 300, {"generator": seeded(1)}),
        (from_zero_snr(DDIMScheduler), 50, {}),
        (from_zero_snr(DPMSolverMultistepScheduler), 50, {}),
    ):
        x = sample(scheduler, steps, 20_000, **extra)
        assert (x < 0).double().mean().item() == pytest.approx(0.4, abs=0.03)
        assert x[x < -0.1].mean().item() == pytest.approx(-1, abs=0.05)
        assert x.std().item() == pytest.approx(math.sqrt(0.09 + 0.24 * 1.9**2), abs=0.03)
        assert (x.abs() < 0.1).double().mean() < 0.06  # where the mean is, there is nearly nothing


@equation(45, r"\beta_{t \mid s} = 1 - \alpha_{t \mid s}")
def test_fewer_steps() -> None:
    scheduler = make("squaredcos_cap_v2", timestep_spacing="trailing", prediction_type="v_prediction")
    scheduler.set_timesteps(25)
    times = scheduler.timesteps.tolist()
    assert times[0] == 999 and len(times) == 25
    t, s = times[7], times[8]
    a, before = scheduler.alphas_cumprod[t].double(), scheduler.alphas_cumprod[s].double()
    alpha = a / before
    x, output = torch.randn(1, 2, 4, 4, generator=seeded()), torch.randn(1, 2, 4, 4, generator=seeded(1))
    clean = a.sqrt() * x - (1 - a).sqrt() * output
    mean = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * x) / (1 - a)
    std = ((1 - before) / (1 - a) * (1 - alpha)).sqrt()
    expected = mean + std * torch.randn(1, 2, 4, 4, generator=seeded(2))
    found = scheduler.step(output, t, x, generator=seeded(2)).prev_sample
    assert torch.allclose(found, expected.float(), atol=1e-4)


def ddim(
    a: torch.Tensor, before: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The part of equation 46 without z."""
    return before.sqrt() * clean + (1 - before - sigma**2).sqrt() * noise


@equation(
    46, r"\sigma = \eta\ \sqrt{\frac{1-\bar\alpha_s}{1-\bar\alpha_t}} \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}"
)
@equation(47, r"\sqrt{1 - \bar\alpha_s - \sigma^2}\ \varepsilon + \sigma z")
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float) -> None:
    scheduler = from_zero_snr(DDIMScheduler)
    scheduler.set_timesteps(25)
    t, s = scheduler.timesteps[5].item(), scheduler.timesteps[6].item()
    a, before = scheduler.alphas_cumprod[t].double(), scheduler.alphas_cumprod[s].double()
    x, v = torch.randn(1, 2, 4, 4, generator=seeded()), torch.randn(1, 2, 4, 4, generator=seeded(1))
    clean, noise = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
    sigma = eta * ((1 - before) / (1 - a)).sqrt() * (1 - a / before).sqrt()
    z = torch.randn(1, 2, 4, 4, generator=seeded(2))
    expected = ddim(a, before, clean, noise, sigma) + sigma * z
    found = scheduler.step(v, t, x, eta=eta, generator=seeded(2)).prev_sample
    assert torch.allclose(found.double(), expected.double(), atol=1e-4)
    if eta == 1.0:  # Algorithm 2
        ancestral = from_zero_snr(DDPMScheduler)
        ancestral.set_timesteps(25)
        same = ancestral.step(v, t, x, generator=seeded(2)).prev_sample
        assert torch.allclose(found, same, atol=1e-4)
    mixed = (1 - before - sigma**2).sqrt() * randn(100_000) + sigma * randn(100_000, seed=1)
    assert stats.kstest(mixed.numpy(), stats.norm(0, (1 - before).sqrt().item()).cdf).pvalue > 1e-3


@equation(48, r"\int_{\lambda_t}^{\lambda_s} e^{\lambda}\ \hat x_0(x_\lambda, c, \lambda)\ d\lambda")
def test_exact_solution_of_the_probability_flow() -> None:
    """Gaussian data N(m, s²): on a solution, x_t keeps its place in the distribution N(√ā m, s²ā + 1 - ā)."""
    m, std, place = 0.4, 0.5, 1.3
    t_a, s_a = 0.3, 0.8  # ā at the start and the end of the step

    def solution(alpha_bar: float) -> float:
        return math.sqrt(alpha_bar) * m + math.sqrt(std**2 * alpha_bar + 1 - alpha_bar) * place

    def integrand(log_ratio: float) -> float:
        alpha_bar = 1 / (1 + math.exp(-2 * log_ratio))
        total = std**2 * alpha_bar + 1 - alpha_bar
        clean = m + std**2 * math.sqrt(alpha_bar) / total * (solution(alpha_bar) - math.sqrt(alpha_bar) * m)
        return math.exp(log_ratio) * clean

    start, end = (0.5 * math.log(a / (1 - a)) for a in (t_a, s_a))
    integral = integrate.quad(integrand, start, end)[0]
    expected = math.sqrt((1 - s_a) / (1 - t_a)) * solution(t_a) + math.sqrt(1 - s_a) * integral
    assert solution(s_a) == pytest.approx(expected, rel=1e-9)


@equation(49, r"\sqrt{\bar\alpha_s} \left( 1 - e^{-h} \right) \hat x_0")
@equation(50, r"\left( 1 + \frac{1}{2r} \right) \hat x_0(t) - \frac{1}{2r}\ \hat x_0(t')")
def test_dpm_solver() -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(
        COSINE.config, prediction_type="v_prediction", timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(12)
    times = scheduler.timesteps.tolist()
    a = scheduler.alphas_cumprod.double()[times]
    log_ratio = 0.5 * torch.log(a / (1 - a))
    x, mine, previous = torch.randn(1, 2, 4, 4, generator=seeded()).double(), None, None
    mine = x
    for k in range(8):
        v = torch.randn(1, 2, 4, 4, generator=seeded(10 + k)).double()
        clean = a[k].sqrt() * mine - (1 - a[k]).sqrt() * v
        h = log_ratio[k + 1] - log_ratio[k]
        used = clean
        if previous is not None:
            r = (log_ratio[k] - log_ratio[k - 1]) / h
            used = (1 + 1 / (2 * r)) * clean - previous / (2 * r)
        step = ((1 - a[k + 1]) / (1 - a[k])).sqrt() * mine + a[k + 1].sqrt() * (1 - torch.exp(-h)) * used
        if previous is None:  # the first step is of first order: DDIM
            noise = a[k].sqrt() * v + (1 - a[k]).sqrt() * mine
            assert torch.allclose(step, ddim(a[k], a[k + 1], clean, noise, torch.zeros(())))
        x = scheduler.step(v, times[k], x).prev_sample
        mine, previous = step, clean
        assert torch.allclose(x.double(), mine, rtol=1e-3, atol=1e-3)


def test_second_order_needs_fewer_steps() -> None:
    """Both follow the same equation; distances to its solution, found by 1000 steps of DDIM."""
    truth = sample(from_zero_snr(DDIMScheduler), 1000, 1000)
    first, second = (
        [(sample(from_zero_snr(kind), steps, 1000) - truth).abs().median().item() for steps in (20, 40)]
        for kind in (DDIMScheduler, DPMSolverMultistepScheduler)
    )
    assert second[0] < 0.5 * first[0] and second[1] < 0.1 * first[1]
    assert first[1] > 0.4 * first[0] and second[1] < 0.3 * second[0]  # half the step: half, a quarter


@equation(51, r"f_\theta(x_t, \varnothing, t) + w \left( f_\theta(x_t, c, t) - f_\theta(x_t, \varnothing, t) \right)")
@equation(52, r"\left( \frac{q(x_t \mid c)}{q(x_t)} \right)^{w}")
@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_guidance_is_the_score_of_a_tilted_density(w: float) -> None:
    """No condition: the two peaks. With it: a Gaussian. In ε, v and x_0 alike."""
    a, x = 0.5, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mean, std = 0.8, math.sqrt(a * 0.4**2 + 1 - a)

    def log_conditional(x: torch.Tensor) -> torch.Tensor:
        return Normal(math.sqrt(a) * mean, std).log_prob(x)

    (score,) = torch.autograd.grad(log_peaks(x, a, 1 - a) + w * (log_conditional(x) - log_peaks(x, a, 1 - a)), x)
    noises = [
        -math.sqrt(1 - a) * torch.autograd.grad(log(x), x)[0]
        for log in (lambda x: log_peaks(x, a, 1 - a), log_conditional)
    ]
    guided = noises[0] + w * (noises[1] - noises[0])
    assert torch.allclose(score, -guided / math.sqrt(1 - a))
    cleans = [(x - math.sqrt(1 - a) * noise) / math.sqrt(a) for noise in noises]
    velocities = [math.sqrt(a) * n - math.sqrt(1 - a) * c for n, c in zip(noises, cleans, strict=True)]
    velocity = velocities[0] + w * (velocities[1] - velocities[0])
    assert torch.allclose(math.sqrt(a) * velocity + math.sqrt(1 - a) * x, guided)


# ---- Lab chroma


@equation(53, r"\frac{1}{\kappa f^2} \sum_{u=1}^{f} \sum_{v=1}^{f}")
def test_chroma_vector_and_untouched_lightness() -> None:
    chroma, f, kappa = torch.randn(1, 2, 8, 12, generator=seeded()) * 20, 4, 40.0
    found = downsample_chroma(chroma, f) / kappa
    for k, i, j in np.ndindex(2, 2, 3):
        cell = chroma[0, k, f * i : f * i + f, f * j : f * j + f]
        assert found[0, k, i, j].item() == pytest.approx(cell.sum().item() / (kappa * f**2), rel=1e-5)
    assert found.numel() == 2 * 2 * 3  # D = 2 h w
    lab = torch.cat((torch.rand(1, 1, 8, 12, generator=seeded()) * 100, chroma * 3), dim=1)
    back = rgb_to_lab(lab_to_rgb(fit_gamut(lab)).clamp(0, 1))
    assert (back[:, 0] - lab[:, 0]).abs().max() < 0.05  # whatever is drawn, lightness comes out as it went in


def test_clipping_range_covers_srgb() -> None:
    levels = torch.linspace(0, 1, 33)
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, 33, -1)
    assert 100 < rgb_to_lab(cube)[1:].abs().max() < 110


@equation(54, r"\frac{S^2}{\kappa^2}\ \mathrm{SNR}(t)")
def test_scale_shifts_the_signal_to_noise_ratio() -> None:
    colours = 12.0 * randn(300_000)
    for kappa in (20.0, 40.0):
        x_0, a = colours / kappa, 0.4
        x = math.sqrt(a) * x_0 + math.sqrt(1 - a) * randn(300_000, seed=1)
        known = np.corrcoef(x_0.numpy(), x.numpy())[0, 1] ** 2  # part of the variance that x_t explains
        effective = 12.0**2 / kappa**2 * a / (1 - a)
        assert known == pytest.approx(effective / (1 + effective), abs=0.01)
        shift = math.log(effective) - math.log(a / (1 - a))
        assert shift == pytest.approx(2 * math.log(12) - 2 * math.log(kappa))


@equation(55, r"\mathbb E \lVert x_0 - \mathbb E [ x_0 \mid c ] \rVert^2")
def test_regression_loses_the_doubt() -> None:
    """Red or green by chance where c says nothing, one of them where it does."""
    c = torch.randint(0, 2, (200_000,), generator=seeded())
    red = torch.where(c == 1, torch.ones_like(c), torch.randint(0, 2, c.shape, generator=seeded(1))).bool()
    colour = torch.where(red[:, None], torch.tensor([50.0, 20.0]), torch.tensor([-40.0, 30.0]))
    colour = colour + 5 * torch.randn(len(c), 2, generator=seeded(2))
    means = torch.stack([colour[c == value].mean(0) for value in (0, 1)])[c]
    total, regression, doubt = (x.square().sum(1).mean().item() for x in (colour, means, colour - means))
    assert total == pytest.approx(regression + doubt, rel=1e-4)
    assert means[c == 0].norm(dim=1).mean() < 0.6 * colour[c == 0].norm(dim=1).mean()  # brown where it is unsure
    assert means[c == 1].norm(dim=1).mean() > 0.95 * colour[c == 1].norm(dim=1).mean()


@equation(56, r"\frac{L_{\mathrm{vlb}}(x_0, c)}{D \log 2}")
def test_bits_per_chroma_dimension() -> None:
    """The best code of N(0, s²) in bins of width δ needs h / log 2 - log2 δ bits; and κ cancels."""
    std, delta = 0.4, 0.025
    x = (std * randn(200_000) / delta).round() * delta
    variance = torch.tensor(std**2)
    bits = discretized_gaussian_nll(x, torch.zeros(1), variance, bin_width=delta) / math.log(2)
    differential = 0.5 * math.log(2 * math.pi * math.e * std**2)
    assert bits.mean().item() == pytest.approx(differential / math.log(2) - math.log2(delta), abs=0.01)
    scaled = discretized_gaussian_nll(x * 40, torch.zeros(1), variance * 1600, bin_width=delta * 40) / math.log(2)
    assert torch.allclose(scaled, bits, rtol=1e-5)

    scheduler, given = make("squaredcos_cap_v2", 4, prediction_type="v_prediction"), batch()
    nats = torch.zeros(6, dtype=torch.float64)
    parts = []
    for t in range(4):
        at = torch.full((6,), t)
        part = step_terms(lambda x, t: 0.1 * x[:, -2:], scheduler, **{**given, "timesteps": at}, bin_width=delta)
        parts.append(part)
        nats += part * 32 * math.log(2)
    nats += prior_term(scheduler, given["chroma"]) * 32 * math.log(2)
    strata = ((1, 1), (2, 2), (3, 3))
    bound = VariationalBound(strata, prior_term(scheduler, given["chroma"]), torch.stack(parts[1:], 1), parts[0])
    assert torch.allclose(bound.total, nats / (32 * math.log(2)))


# ---- Implementation


@equation(57, r"\omega_k = 10000^{-2k/d}")
def test_timestep_embedding() -> None:
    t, d = torch.tensor([0, 7, 999]), 32
    omega = 10000.0 ** (-2 * torch.arange(d // 2) / d)
    waves = t[:, None] * omega
    expected = torch.cat((waves.cos(), waves.sin()), dim=1)
    unet = build_unet("base", luma_factor=4)
    assert torch.allclose(unet.time_proj(t), expected, atol=1e-4)
    assert torch.allclose(
        get_timestep_embedding(t, d, flip_sin_to_cos=True, downscale_freq_shift=0), expected, atol=1e-4
    )
    assert 2 * math.pi / omega[0] == pytest.approx(2 * math.pi) and 1 / omega[-1] < 10000
    assert unet.time_embedding.linear_2.out_features == 4 * d


def test_the_network_is_as_described() -> None:
    unet = build_unet("base", luma_factor=4)
    assert [block.resnets[-1].out_channels for block in unet.down_blocks] == [32, 64, 128, 256]
    assert [len(block.resnets) for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)] == [1] * 4 + [2] * 5
    attention = [
        bool(getattr(block, "attentions", None)) for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    ]
    assert attention == [False, False, False, True, True, True, False, False, False]
    sizes: list[int] = []
    unet.mid_block.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        assert unet(torch.zeros(1, 18, 32, 32), 5).sample.shape == (1, 2, 32, 32)
    assert sizes == [4]


# ---- The document itself


def test_numbers_of_document_and_tests_agree() -> None:
    numbers = [int(number) for number in re.findall(r"\\tag\{(\d+)\}", TEXT)]
    assert numbers == list(range(1, len(numbers) + 1)), "equations are numbered 1, 2, 3, ... in their order"
    assert len(BLOCKS) == len(numbers), "every numbered equation is a block of its own"
    assert sorted(TESTED) == numbers, "every equation has a test, and every test an equation"
    for number, pieces in TESTED.items():
        for piece in pieces:
            assert piece in BLOCKS[number], f"equation {number} no longer contains {piece}"


def test_mentioned_equations_exist() -> None:
    mentioned = re.findall(r"(?:equations?|eq\.) (\d+(?:(?:, | and )\d+)*)", TEXT)
    assert len(mentioned) > 30
    for numbers in mentioned:
        assert all(int(number) in BLOCKS for number in re.findall(r"\d+", numbers)), numbers


def table_rows(heading: str) -> list[list[str]]:
    body = TEXT[TEXT.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in body]


def source_of(name: str) -> str:
    """The source of ``package.module.Class.method``; a property's is its getter's."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
        return inspect.getsource(inspect.unwrap(getattr(found, "fget", None) or getattr(found, "__func__", found)))
    raise AssertionError(f"{name} can't be imported")


def test_equations_lead_to_lines_of_code() -> None:
    rows = table_rows("| equation | code | line |")
    assert len(rows) > 25 and [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)
    # A line of diffusers is quoted from the version that was tested; of another one only the name has to exist
    tested = re.search(r"^diffusers==(\S+)$", (Path(__file__).parents[1] / "requirements.txt").read_text(), re.M)
    assert tested
    for number, name, line in rows:
        assert int(number) in BLOCKS
        source = source_of(name.strip("`"))
        if name.startswith("`colorized_pipeline.") or diffusers.__version__ == tested.group(1):
            assert line.strip("`") in source, f"{name} no longer contains {line}"


def test_code_leads_back_to_equations() -> None:
    there: dict[str, set[int]] = {}
    for number, name, _ in table_rows("| equation | code | line |"):
        there.setdefault(name, set()).add(int(number))
    back = {
        name: {int(number) for number in numbers.split(", ")} for name, numbers in table_rows("| code | equations |")
    }
    assert there == back


def test_docstrings_name_the_equations_they_compute() -> None:
    """bound.py says "theory, eq. 21, 56" where it computes these, as the document's table does."""
    rows = [(name.strip("`"), numbers) for name, numbers in table_rows("| code | equations |")]
    ours = [(name, numbers) for name, numbers in rows if name.startswith("colorized_pipeline.evaluation.bound.")]
    assert len(ours) >= 6
    for name, numbers in ours:
        assert re.search(rf"[Tt]heory, eq\. {numbers}[.)]", source_of(name)), f"{name} computes {numbers}"


def test_mathematics_survives_markdown() -> None:
    """Formulas come out whole even where Markdown is read first (GitHub), and none needs inline dollars (the Hub).

    That forbids what Markdown would change inside them: escapes such as ``\\,``, an underscore after a bracket, a line
    that begins like a list or a heading, blank lines, ``<``.
    """
    outside = re.sub(r"^\$\$\n.*?\n\$\$$", "", TEXT, flags=re.M | re.S)
    assert "$" not in outside, "a formula outside a block of its own: the Hub doesn't render $...$"
    markdown = MarkdownIt()
    for block in re.findall(r"^\$\$\n.*?\n\$\$$", TEXT, re.M | re.S):
        rendered = markdown.render(block)
        plain = re.fullmatch(r"<p>(.*)</p>\n", rendered, re.S)
        assert plain and "<" not in plain.group(1), f"Markdown changes {block}"
        assert plain.group(1).replace("&amp;", "&") == block, f"Markdown changes {block}"
        assert block.count("{") == block.count("}") and block.count(r"\left") == block.count(r"\right")
        assert not re.search(r"\\(operatorname|newcommand|def|label|ref)\b", block), "GitHub refuses this macro"


def test_links_and_pictures_exist() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(targets) > 25
    for target in targets:
        file, _, anchor = target.partition("#")
        if file.startswith("https://"):
            continue
        if file:
            assert (DOCUMENT.parent / file).exists(), target
        else:
            assert anchor in anchors, target
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert 1000 < (DOCUMENT.parent / picture).stat().st_size < 300_000, (
            f"{picture} is missing or too large for docs"
        )
