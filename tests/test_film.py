"""The film model: neutral film changes nothing, each wear does what its name says, and draws repeat."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from photos import colourful

from colorized_pipeline.diffusion.color import gray_to_lightness, rgb_to_lab
from colorized_pipeline.training.film import EMULSIONS, Film, draw_film, photograph


def flat(red: float, green: float, blue: float, size: int = 64) -> torch.Tensor:
    return rgb_to_lab(torch.tensor([red, green, blue]).reshape(3, 1, 1).expand(3, size, size))


def shoot(lab: torch.Tensor, seed: int = 0, **wear: object) -> torch.Tensor:
    return photograph(lab, replace(Film(), **wear), np.random.default_rng(seed))  # type: ignore[arg-type]


@pytest.fixture
def scene() -> torch.Tensor:
    return rgb_to_lab(torch.from_numpy(colourful(3, height=64, width=80)).movedim(-1, 0) / 255)


def test_neutral_film_gives_the_photos_own_lightness(scene: torch.Tensor) -> None:
    assert torch.allclose(shoot(scene), scene[:1], atol=0.02)


def test_old_emulsions_see_red_dark_and_blue_light() -> None:
    red, blue = flat(0.7, 0.2, 0.2), flat(0.2, 0.2, 0.7)
    for name in ("orthochromatic", "blue-sensitive"):
        seen = {"sensitivity": EMULSIONS[name]}
        assert shoot(red, **seen).mean() < shoot(red).mean() - 5
        assert shoot(blue, **seen).mean() > shoot(blue).mean() + 5
    for weights in EMULSIONS.values():
        assert sum(weights) == pytest.approx(1, abs=1e-6)  # so that grey stays grey
        assert torch.allclose(shoot(flat(0.4, 0.4, 0.4), sensitivity=weights), shoot(flat(0.4, 0.4, 0.4)), atol=0.05)


def test_fading_lifts_black_and_dulls_white(scene: torch.Tensor) -> None:
    faded = shoot(scene, black=0.2, white=0.8)
    low, high = gray_to_lightness(torch.tensor([0.2, 0.8])).tolist()
    assert faded.min() >= low - 1e-3 and faded.max() <= high + 1e-3


def test_tone_curve(scene: torch.Tensor) -> None:
    assert shoot(scene, gamma=1.4).mean() < scene[:1].mean() < shoot(scene, gamma=0.7).mean()
    assert shoot(scene, contrast=0.7).std() < scene[:1].std() < shoot(scene, contrast=1.3).std()


def test_vignette_darkens_corners_and_spares_the_middle() -> None:
    grey = flat(0.6, 0.6, 0.6, size=65)
    seen = shoot(grey, vignette=0.4)
    assert seen[0, 32, 32] == pytest.approx(grey[0, 32, 32].item(), abs=0.05)
    assert seen[0, 0, 0] == pytest.approx(gray_to_lightness(torch.tensor(0.36)).item(), abs=0.05)


def test_blur_keeps_the_mean_and_softens(scene: torch.Tensor) -> None:
    edge = torch.cat((flat(0.2, 0.2, 0.2), flat(0.8, 0.8, 0.8)), dim=-1)
    assert shoot(edge, blur=1.0).diff(dim=-1).abs().max() < 0.5 * edge[:1].diff(dim=-1).abs().max()
    assert torch.allclose(shoot(flat(0.5, 0.5, 0.5), blur=1.2), shoot(flat(0.5, 0.5, 0.5)), atol=1e-3)


@pytest.mark.parametrize("size", [0.0, 0.8])
def test_grain_has_the_strength_it_says(size: float) -> None:
    grey = flat(0.5, 0.5, 0.5, size=128)
    slope = (gray_to_lightness(torch.tensor(0.51)) - gray_to_lightness(torch.tensor(0.49))).item() / 0.02
    assert shoot(grey, grain=0.03, grain_size=size).std().item() == pytest.approx(0.03 * slope, rel=0.1)


def test_scratches_are_few_pixels_and_jpeg_is_close(scene: torch.Tensor) -> None:
    changed = (shoot(scene, scratches=3) - shoot(scene)).abs() > 0.5
    assert 0 < changed.float().mean() < 0.1
    assert 0 < (shoot(scene, jpeg_quality=60) - shoot(scene)).abs().mean() < 3


def test_draws_repeat_differ_and_stay_in_range(scene: torch.Tensor) -> None:
    def draw(seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return photograph(scene, draw_film(rng), rng)

    seen = [draw(seed) for seed in range(60)]
    assert all(torch.equal(draw(seed), seen[seed]) for seed in range(5))
    assert not any(torch.equal(seen[0], other) for other in seen[1:])
    stacked = torch.stack(seen)
    assert stacked.isfinite().all() and stacked.min() >= 0 and stacked.max() <= 100
    assert len({draw_film(np.random.default_rng(seed)).jpeg_quality is None for seed in range(20)}) == 2
