"""A reference photo's palette: an exact transport in closed form, and what a call does with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from photos import colourful
from PIL import Image
from typer.testing import CliRunner

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.archive.labels import read_xmp
from colorized_pipeline.cli import app
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.diffusion.steering import PaletteSteer, fit_palette


def made_up(seed: int, *, tint: float) -> tuple[torch.Tensor, torch.Tensor]:
    """L* ``[1, 1, 24, 24]`` and a*, b* ``[1, 2, 24, 24]`` that depend on it."""
    generator = torch.Generator().manual_seed(seed)
    lightness = 100 * torch.rand(1, 1, 24, 24, generator=generator)
    mixing = torch.tensor([[9.0, 4.0], [-3.0, 6.0]]) * tint
    noise = torch.einsum("ij,bjhw->bihw", mixing, torch.randn(1, 2, 24, 24, generator=generator))
    slope = torch.tensor([0.1, -0.4]).reshape(1, 2, 1, 1) * tint
    return lightness, noise + slope * (lightness - 40) + 8 * tint


def test_the_palette_becomes_the_reference_s() -> None:
    lightness, chroma = made_up(0, tint=1.0)
    lightness = 20 + 0.6 * lightness  # within what the reference shows
    palette = fit_palette(*made_up(1, tint=-1.2))
    steered = PaletteSteer(palette, lightness, scale=40.0, steps=1, share=1.0)(chroma / 40, chroma / 40) * 40
    found = fit_palette(lightness, steered)
    for name in ("offset", "slope", "covariance"):
        assert torch.allclose(getattr(found, name), getattr(palette, name), rtol=2e-2, atol=2e-2), name


def test_what_the_reference_does_not_show_keeps_its_own_colours() -> None:
    lightness, chroma = made_up(1, tint=1.0)
    palette = fit_palette(lightness * 0.3, chroma)  # a dark reference, whose colours go far with lightness
    level = torch.tensor([5.0, 20, 30, 60, 99]).reshape(1, 1, 1, 5)
    steer = PaletteSteer(palette, level, scale=1.0, steps=1, share=1.0)
    steered = steer(torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 5)).norm(dim=1).flatten()
    lightest = palette.offset + palette.slope * palette.lightest
    assert steered[0] > 3 and steered[1] > 3
    assert steered[2] <= lightest.norm() + 1e-3  # a little lighter than what is there: as the lightest there
    assert steered[3] < 0.5 and steered[4] < 1e-3  # much lighter


def test_least_squares_as_numpy_s() -> None:
    lightness, chroma = made_up(2, tint=1.0)
    palette = fit_palette(lightness, chroma)
    slope, offset = np.polyfit(lightness.flatten().numpy(), chroma.flatten(2)[0].T.numpy(), 1)
    assert np.allclose(palette.slope[0], slope, atol=1e-3) and np.allclose(palette.offset[0], offset, atol=2e-2)


def test_a_photo_s_own_palette_changes_nothing() -> None:
    lightness, chroma = made_up(3, tint=1.0)
    lightness = torch.where(lightness > 50, 70.0, 50.0)
    steer = PaletteSteer(fit_palette(lightness, chroma), lightness, scale=40.0, steps=1, share=1.0)
    assert torch.allclose(steer(chroma / 40, chroma / 40) * 40, chroma, atol=0.02)


def test_many_steps_go_as_far_as_one() -> None:
    lightness, chroma = made_up(0, tint=1.0)
    lightness = torch.where(lightness > 50, 70.0, 50.0)
    palette = fit_palette(lightness, chroma + torch.tensor([-9.0, 4.0]).reshape(1, 2, 1, 1))
    for steps in (1, 3, 20):
        steer, moved = PaletteSteer(palette, lightness, scale=40.0, steps=steps, share=0.6), chroma / 40
        for _ in range(steps):
            moved = steer(moved, moved)
        shift = (moved * 40 - chroma).mean((2, 3))
        assert torch.allclose(shift, torch.tensor([[-5.4, 2.4]]), atol=0.02), steps


def test_a_grey_guess_is_not_stretched_without_bound() -> None:
    lightness, chroma = made_up(4, tint=1.0)
    lightness = torch.where(lightness > 50, 70.0, 50.0)
    nearly_grey = (chroma - chroma.mean((2, 3), keepdim=True)) * 0.01
    steered = PaletteSteer(fit_palette(lightness, chroma), lightness, scale=1.0, steps=1, share=1.0)(
        nearly_grey, nearly_grey
    )
    left = steered - torch.einsum("bi,bjhw->bihw", fit_palette(lightness, steered).slope, lightness)
    assert left.flatten(2).std(2).max() < 1 and torch.isfinite(steered).all()  # and not about 10, as there


def cool_ramp() -> np.ndarray:
    ramp = np.linspace(40, 220, 50)
    return np.stack([ramp * 0.75, ramp, ramp * 0.95], axis=-1).astype(np.uint8)[None].repeat(40, axis=0)


def mean_chroma(pipe: ColorizationPipeline, **arguments: object) -> np.ndarray:
    """Mean a*, b* of what becomes of the ramp's lightness."""
    (result,) = pipe(cool_ramp(), generator=torch.Generator().manual_seed(0), output_type="pt", **arguments).images
    return rgb_to_lab(result)[1:].mean((1, 2)).numpy()


def test_a_call_takes_on_the_mean_colour(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    cool = cool_ramp()
    Image.fromarray(cool).save(tmp_path / "cool.png")
    wanted = rgb_to_lab(torch.from_numpy(cool).movedim(-1, 0) / 255)[1:].mean((1, 2)).numpy()
    plain = mean_chroma(plain_pipe)
    for reference in (tmp_path / "cool.png", cool, Image.fromarray(cool)):
        found = mean_chroma(plain_pipe, reference=reference)
        assert np.linalg.norm(found - wanted) < 0.6 * np.linalg.norm(plain - wanted)
    assert np.array_equal(plain, mean_chroma(plain_pipe, reference=None))
    hinted = mean_chroma(plain_pipe, reference=cool, hints=[((0, 0, 50, 40), "lab(50 -12 5)")])
    assert np.abs(hinted - (-12, 5)).max() < 0.3  # a hint is surer than a palette


def test_a_grey_reference_and_a_regression_are_refused(plain_pipe: ColorizationPipeline) -> None:
    for gray in (Image.new("L", (40, 40), 99), Image.new("RGB", (40, 40), (99, 100, 99))):
        with pytest.raises(ValueError, match="reference is grey or nearly so: give a colour photo"):
            plain_pipe(gray, reference=gray)
    pipe = make_pipeline()
    pipe.register_to_config(objective="regression")
    with pytest.raises(ValueError, match="need a diffusion checkpoint"):
        pipe(colourful(0), reference=colourful(1))


def test_command_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(colourful(0)).convert("L").save("grey.png")
    Image.fromarray(colourful(1)).save("colour.png")

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["colorize", "grey.png", *words, "--checkpoint", str(checkpoint)])
        return result.exit_code, result.output

    assert run("-o", "out.png", "--reference", "colour.png")[0] == 0
    with Image.open("out.png") as image:
        assert len(read_xmp(image.info["xmp"])["colorized:ReferenceSHA256"]) == 64
    status, output = run("-o", "x.png", "--reference", "grey.png")
    assert status == 2 and "give a colour photo" in output
    status, output = run("-o", "x.png", "--reference", "none.png")
    assert status == 2 and "'none.png' does not exist" in output
