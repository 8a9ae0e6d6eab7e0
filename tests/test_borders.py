"""Mounts and padding stay grey; skies and plain photos are not taken for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline.cli import app
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.diffusion.photo import Lightness, find_picture

PHOTO = skimage_data.camera()[:300, :400]


def mounted(
    top: int, left: int, bottom: int, right: int, *, level: int = 200, noise: float = 0.0, photo: np.ndarray = PHOTO
) -> np.ndarray:
    gray = np.pad(photo, ((top, bottom), (left, right)), constant_values=level).astype(float)
    gray += np.random.default_rng(0).normal(0, noise, gray.shape)
    gray[top : top + 300, left : left + 400] = photo
    return gray.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("sides", "level", "noise"),
    [
        ((40, 40, 40, 40), 255, 0.0),
        ((40, 40, 40, 40), 0, 0.0),
        ((30, 60, 90, 60), 215, 3.0),  # a paper mount, heavier below
        ((0, 80, 0, 80), 128, 0.0),  # padded to a wider shape
        ((100, 0, 100, 0), 20, 2.0),
    ],
)
def test_borders_are_found(sides: tuple[int, int, int, int], level: int, noise: float) -> None:
    top, left = sides[:2]
    box = find_picture(Lightness(mounted(*sides, level=level, noise=noise)))
    assert np.abs(np.subtract(box, (top, left, top + 300, left + 400))).max() <= 4


def film_scan(sides: tuple[int, int, int, int]) -> np.ndarray:
    """A negative's scan with edges of these widths: black, with numbers and notches that reach to the scan's rim."""
    gray = mounted(*sides, level=12, noise=2.0, photo=skimage_data.brick()[:300, :400])
    top, bottom = sides[0], sides[2]
    if bottom:
        gray[-bottom + 6 : -6, 150:240] = np.where(np.indices((bottom - 12, 90)).sum(axis=0) % 9 < 5, 250, 12)
    for left in range(20, 380, 60):
        gray[: top // 2, left : left + 20] = 255
    return gray


@pytest.mark.parametrize("sides", [(30, 40, 40, 40), (24, 20, 30, 20), (20, 30, 40, 0)])
def test_edges_of_film_are_found_with_their_numbers_and_notches(sides: tuple[int, int, int, int]) -> None:
    top, left = sides[:2]
    box = find_picture(Lightness(film_scan(sides)))
    assert np.abs(np.subtract(box, (top, left, top + 300, left + 400))).max() <= 4


def test_a_mount_within_the_edges_of_film_is_found() -> None:
    gray = np.pad(mounted(30, 30, 30, 30, level=235), 20, constant_values=10)
    assert np.abs(np.subtract(find_picture(Lightness(gray)), (50, 50, 350, 450))).max() <= 4


@pytest.mark.parametrize("photo", ["camera", "sky above", "plain", "gradient", "tiny", "night", "dark corner"])
def test_photos_without_borders_stay_whole(photo: str) -> None:
    sky = np.concatenate((np.full((100, 400), 220, np.uint8), PHOTO[100:]))
    gray = {
        "camera": PHOTO,
        "sky above": sky,
        "plain": np.full((200, 300), 128, np.uint8),
        "gradient": np.tile(np.linspace(0, 255, 300).astype(np.uint8), (200, 1)),
        "tiny": PHOTO[:9, :9],
        "night": PHOTO // 8,
        "dark corner": np.pad(PHOTO, ((30, 0), (30, 0)), constant_values=5),
    }[photo]
    assert find_picture(Lightness(np.ascontiguousarray(gray))) == (0, 0, *gray.shape)


def test_scaling_of_a_large_scan() -> None:
    gray = np.kron(mounted(40, 40, 40, 40, level=230), np.ones((5, 5), np.uint8))
    box = find_picture(Lightness(gray))
    assert np.abs(np.subtract(box, (200, 200, 1700, 2200))).max() <= 10


def test_a_quick_look_at_the_edges_never_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    photos = []
    for _ in range(40):
        sides = random.integers(0, 50, 4) * random.integers(0, 2, 4)
        gray = mounted(*sides.tolist(), level=int(random.integers(0, 256)), noise=float(random.integers(0, 3)))
        photos.append(Lightness(gray.repeat(random.integers(1, 6), axis=0).repeat(random.integers(1, 6), axis=1)))
        sides[2:] = sides[:2]
        photos.append(Lightness(mounted(*sides.tolist())))
    found = [find_picture(photo) for photo in photos]
    monkeypatch.setattr("colorized_pipeline.diffusion.photo._may_have_borders", lambda *_: True)
    assert found == [find_picture(photo) for photo in photos]
    bordered = sum(box != (0, 0, photo.height, photo.width) for box, photo in zip(found, photos, strict=True))
    assert 10 < bordered < 70


def test_borders_get_no_colour(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "checkpoint")
    Image.fromarray(mounted(50, 60, 70, 80, level=140)).save(tmp_path / "scan.png")

    def chroma(*options: str) -> np.ndarray:
        words = [str(tmp_path / "scan.png"), "-o", str(tmp_path / "x.png"), "--overwrite", "--device", "cpu", *options]
        result = CliRunner().invoke(app, ["colorize", *words, "--checkpoint", str(tmp_path / "checkpoint")])
        assert result.exit_code == 0, result.output
        rgb = torch.from_numpy(np.array(Image.open(tmp_path / "x.png"))).movedim(-1, 0).double() / 255
        return rgb_to_lab(rgb)[1:].norm(dim=0).numpy()

    kept = chroma()
    border = np.ones(kept.shape, bool)
    border[47:353, 57:463] = False
    assert kept[border].max() < 0.1
    assert kept[60:340, 70:450].mean() > 2
    assert chroma("--no-borders")[border].mean() > 2
