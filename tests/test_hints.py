"""Hints: obeyed where they lie, followed elsewhere as probability says, and no trace of them where there are none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pipeline, make_scheduler
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image, ImageDraw
from skimage import color as skimage_color
from typer.testing import CliRunner, Result

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.archive.labels import read_xmp
from colorized_pipeline.cli import app
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.diffusion.hints import HintMap, parse_hint, read_color
from colorized_pipeline.diffusion.steering import HintSteer, steered_prediction
from colorized_pipeline.options import PageLimits

VARIANTS = ("--variants", "2", "--uncertainty")
KNOWN = (12.0, -14.0)  # a*, b* that sRGB can show at every lightness of `grey`


def grey(height: int = 60, width: int = 84) -> np.ndarray:
    """Middle greys that vary, uint8."""
    return (130 + 20 * np.sin(np.arange(height)[:, None] / 5) * np.cos(np.arange(width) / 7)).astype(np.uint8)


def chroma_of(pipe: ColorizationPipeline, image: Any = None, **arguments: Any) -> np.ndarray:
    """a*, b* ``[H, W, 2]`` of the result, unrounded."""
    generator = torch.Generator().manual_seed(3)
    image = grey() if image is None else image
    (result,) = pipe(image, generator=generator, output_type="pt", **arguments).images
    return rgb_to_lab(result)[1:].movedim(0, -1).numpy()


def disc_of(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


@pytest.mark.parametrize("size", [(60, 84), (32, 32), (33, 250), (150, 40), (300, 200)])
def test_a_disc_has_its_colour_up_to_its_edge(pipe: ColorizationPipeline, size: tuple[int, int]) -> None:
    x, y, radius = size[1] * 0.4, size[0] * 0.55, min(size) / 6
    found = chroma_of(pipe, grey(*size), hints=[((x, y, radius), KNOWN)])
    inside = disc_of(size, x, y, radius)
    assert np.abs(found[inside] - KNOWN).max() < 0.3
    assert np.abs(found - KNOWN).max() > 3  # and it isn't the colour of everything


def test_boxes_masks_and_paintings_say_the_same(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    left, top, right, bottom = box = (20, 10, 50, 31)
    mask = np.zeros((60, 84), bool)
    mask[top:bottom, left:right] = True
    by_box = chroma_of(plain_pipe, hints=[(box, "#a05030")])
    painted = Image.new("RGBA", (84, 60))
    ImageDraw.Draw(painted).rectangle((left, top, right - 1, bottom - 1), fill="#a05030")
    opaque = Image.new("RGB", (84, 60))
    opaque.paste(painted, mask=painted)
    opaque.save(tmp_path / "painted.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for hint in ((mask, "#a05030"), (tmp_path / "mask.png", "#A05030"), (mask * 9, "rgb(160,80,48)")):
        assert np.array_equal(chroma_of(plain_pipe, hints=[hint]), by_box)
    for picture in (painted, opaque, tmp_path / "painted.png"):
        assert np.abs(chroma_of(plain_pipe, hints=[picture]) - by_box).max() < 0.05  # some roundings more


def test_the_later_of_two_hints_wins_and_neighbours_do_not_mix(plain_pipe: ColorizationPipeline) -> None:
    found = chroma_of(plain_pipe, hints=[((0, 0, 40, 60), KNOWN), ((30, 0, 84, 60), (-10, 12))])
    assert np.abs(found[:, :28] - KNOWN).max() < 0.3 and np.abs(found[:, 32:] - (-10, 12)).max() < 0.3


@pytest.mark.parametrize("config", [{}, {"initial_noise": 0.0, "uncertainty_fit": (200.0, 4.0)}])
def test_every_variant_obeys_and_nobody_doubts_a_hint(config: dict[str, Any]) -> None:
    pipe = make_pipeline()
    pipe.register_to_config(**config)
    result = pipe(
        [grey(), grey(40, 40)],
        generator=torch.Generator().manual_seed(0),
        num_variants=3,
        return_uncertainty=True,
        hints=[[((10, 10, 40, 40), KNOWN)], None],
        output_type="pt",
    )
    for variant in result.variants[0]:
        assert (rgb_to_lab(variant)[1:, 10:40, 10:40] - torch.tensor(KNOWN).reshape(2, 1, 1)).abs().max() < 0.3
    uncertainty = result.uncertainty[0]
    assert uncertainty[10:40, 10:40].max() < 0.3 < uncertainty[:, 60:].mean()
    assert result.uncertainty[1].mean() > 0.3


@pytest.mark.parametrize("intensity", [0.0, 1.0, 3.0])
def test_intensity_is_for_what_was_drawn(plain_pipe: ColorizationPipeline, intensity: float) -> None:
    found = chroma_of(plain_pipe, hints=[((10, 10, 40, 40), KNOWN)], intensity=intensity)
    assert np.abs(found[10:40, 10:40] - KNOWN).max() < 0.3
    assert intensity or np.abs(found[:, 60:]).max() < 1e-2


def test_without_hints_nothing_changes_to_the_bit(pipe: ColorizationPipeline) -> None:
    def pixels(**arguments: Any) -> list[np.ndarray]:
        photos = [grey(), grey()[::-1], grey(40, 40)]
        return pipe(photos, generator=torch.Generator().manual_seed(0), output_type="np", **arguments).images

    plain = pixels()
    for hints in (None, [None, [], ()]):
        assert all(np.array_equal(a, b) for a, b in zip(plain, pixels(hints=hints), strict=True))
    one = pixels(hints=[None, [((40, 30, 9), "teal")], None], batch_size=1)
    alone = pixels(batch_size=1)
    assert np.array_equal(alone[0], one[0]) and np.array_equal(alone[2], one[2])
    assert not np.array_equal(alone[1], one[1])


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler]
)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_every_scheduler_obeys(plain_pipe: ColorizationPipeline, kind: Any, prediction_type: str) -> None:
    plain_pipe.scheduler = kind.from_config(make_scheduler(prediction_type).config)
    found = chroma_of(plain_pipe, hints=[((40, 30, 9), KNOWN)], num_inference_steps=3)
    assert np.abs(found[disc_of((60, 84), 40, 30, 9)] - KNOWN).max() < 0.3 and np.isfinite(found).all()


def gaussian(cells: int = 5) -> torch.Tensor:
    """Covariance of a Gaussian world of ``cells`` x ``cells`` chroma cells, near ones alike; variance 0.09."""
    at = torch.cartesian_prod(torch.arange(cells), torch.arange(cells)).double()
    return 0.09 * torch.exp(-torch.cdist(at, at) / 3)


@pytest.mark.parametrize("alpha_bar", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_one_hint_moves_the_rest_as_bayes_says(alpha_bar: float, prediction_type: str) -> None:
    """Oracle: where everything is Gaussian, conditioning on one more cell is a formula of linear algebra."""
    prior, a = gaussian(), torch.tensor(alpha_bar, dtype=torch.float64)
    gain = a.sqrt() * prior @ torch.linalg.inv(a * prior + (1 - a) * torch.eye(25, dtype=torch.float64))
    posterior = prior - a.sqrt() * gain @ prior
    noisy = torch.randn(1, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def guess(noisy: torch.Tensor) -> torch.Tensor:
        return (noisy.flatten(2) @ gain.T).reshape(noisy.shape)

    def network(noisy: torch.Tensor) -> torch.Tensor:
        if prediction_type == "sample":
            return guess(noisy).float()
        noise = (noisy - a.sqrt() * guess(noisy)) / (1 - a).sqrt()
        return (noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * guess(noisy)).float()

    hinted, target = 12, guess(noisy) + torch.tensor([0.3, -0.2]).double().reshape(1, 2, 1, 1)
    share = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    share.view(-1)[hinted] = 1
    predicted, moved = steered_prediction(
        network, noisy, steers=[HintSteer(target, share)], alpha_bar=a, prediction_type=prediction_type
    )
    as_x0 = {
        "sample": predicted,
        "epsilon": (moved - (1 - a).sqrt() * predicted) / a.sqrt(),
        "v_prediction": a.sqrt() * moved - (1 - a).sqrt() * predicted,
    }[prediction_type]
    error = (target - guess(noisy)).flatten(2)[..., hinted : hinted + 1]
    expected = guess(noisy).flatten(2) + error * posterior[:, hinted] / posterior[hinted, hinted]
    assert torch.allclose(as_x0.flatten(2), expected, atol=1e-4)
    assert torch.allclose(moved - a.sqrt() * as_x0, noisy - a.sqrt() * guess(noisy), atol=1e-4)  # the noise stays
    assert (expected - guess(noisy).flatten(2)).abs().max() > 0.2


def test_no_cell_moves_further_than_the_hint() -> None:
    noisy = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clean = noisy * torch.linspace(1, 9, 16).reshape(4, 4) + noisy.sum()
    share = torch.zeros(1, 1, 4, 4)
    share[..., 0, 0] = 1
    steered = HintSteer(clean.detach() + 0.1, share)(clean, noisy)
    assert (steered - clean.detach()).norm(dim=1).max() <= 0.1 * 2**0.5 + 1e-5


@pytest.mark.parametrize("text", ["firebrick", "#8a3b2e", "#abc", "rgb(10, 200, 30)"])
def test_colours_are_those_of_scikit_image(text: str) -> None:
    pixel = Image.new("RGB", (1, 1), text)
    assert np.allclose(read_color(text), skimage_color.rgb2lab(np.asarray(pixel))[0, 0, 1:], atol=1e-3)


def test_lab_in_words_and_numbers() -> None:
    for colour in ("lab(40 35 -25)", "LAB(40, 35, -25)", (40, 35, -25), (35, -25), np.array([35.0, -25.0])):
        assert read_color(colour) == (35, -25)
    assert parse_hint("120, 80,25 : lab(40 35 25)") == ((120, 80, 25), "lab(40 35 25)")
    assert parse_hint("0,0,9.5,8:red") == ((0, 0, 9.5, 8), "red")


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (((90, 10, 5), "red"), "x=90, y=10 lies outside the photo of 84 x 60 pixels"),
        (((10, 10, 0), "red"), "radius=0 must be above 0"),
        (((10, 10, 100, 20), "red"), "reaches outside the photo of 84 x 60"),
        (((30, 10, 20, 20), "red"), "left < right"),
        (((1, 2), "red"), "isn't (x, y, radius)"),
        (((10, 10, float("nan")), "red"), "isn't (x, y, radius)"),
        (((10, 10, 5), "reddish"), "unknown colour 'reddish'; give a CSS name"),
        (((10, 10, 5), (1, 2, 3, 4)), "CIELAB is (L*, a*, b*)"),
        (((10, 10, 5), (50, 300, 0)), "between -150 and 150"),
        ((np.ones((60, 80)), "red"), "mask has 80 x 60 pixels and the photo 84 x 60"),
        ((np.zeros((60, 84)), "red"), "covers no part"),
        (("missing.png", "red"), "missing.png: can't be read"),
        (Image.new("RGBA", (84, 60)), "nothing is painted"),
        (Image.new("RGB", (10, 10), "red"), "painted picture has 10 x 10 pixels"),
        (7, "expected (region, colour)"),
    ],
)
def test_hints_that_cannot_be_used_are_explained(plain_pipe: ColorizationPipeline, hint: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        plain_pipe(grey(), hints=[((5, 5, 2), "blue"), hint])
    assert message in str(caught.value) and str(caught.value).startswith("hints[1]: ")


def test_hints_of_several_photos_are_told_apart(plain_pipe: ColorizationPipeline) -> None:
    with pytest.raises(ValueError, match="for each of 2 photos"):
        plain_pipe([grey(), grey()], hints=[((5, 5, 2), "blue")])
    with pytest.raises(ValueError, match=r"photo 1: hints\[0\]: point"):
        plain_pipe([grey(), grey()], hints=[None, [((500, 5, 2), "blue")]])


def test_a_regression_cannot_follow_hints() -> None:
    pipe = make_pipeline()
    pipe.register_to_config(objective="regression")
    with pytest.raises(ValueError, match="need a diffusion checkpoint"):
        pipe(grey(), hints=[((5, 5, 2), "blue")])


def test_impose_leaves_what_is_far_from_hints() -> None:
    drawn = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    known = torch.zeros(1, 32, 32)
    known[:, 4:8, 4:8] = 1
    hinted = HintMap(torch.full((2, 32, 32), 7.0), known).impose(drawn, 4)
    plain = HintMap(torch.zeros(2, 32, 32), torch.zeros(1, 32, 32)).impose(drawn, 4)
    assert torch.allclose(hinted[:, 3:9, 3:9], torch.tensor(7.0))
    assert torch.equal(hinted[:, 16:], plain[:, 16:]) and torch.equal(hinted[..., 16:], plain[..., 16:])
    steps = (hinted[0, 5, 1:] - hinted[0, 5, :-1]).abs()
    assert steps.max() < 0.5 * (plain - 7).abs().max()  # it fades, it doesn't jump


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(grey()).save("grey.png")

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, ["colorize", *words, "--checkpoint", str(checkpoint)])

    return invoke


def test_command_line(run) -> None:
    assert run("grey.png", "-o", "plain.png").exit_code == 0
    result = run("grey.png", "-o", "colour.png", "--hint", "40,30,9:#8a3b2e", "--hint", "0,0,20,60:lab(50 12 -14)")
    assert result.exit_code == 0, result.output
    lab = skimage_color.rgb2lab(np.asarray(Image.open("colour.png")))[..., 1:]
    for place, colour in (
        (disc_of((60, 84), 40, 30, 9), read_color("#8a3b2e")),
        (np.s_[:, :20], (12, -14)),
    ):
        assert np.abs(lab[place].reshape(-1, 2).mean(0) - colour).max() < 1
    with Image.open("colour.png") as image:
        label = read_xmp(image.info["xmp"])
    assert label["colorized:Hints"] == "40,30,9:#8a3b2e; 0,0,20,60:lab(50 12 -14)"
    with Image.open("plain.png") as image:
        assert "colorized:Hints" not in read_xmp(image.info["xmp"])


def test_a_painted_picture_on_the_command_line(run) -> None:
    painted = Image.new("RGBA", (84, 60))
    ImageDraw.Draw(painted).ellipse((30, 20, 50, 40), fill="#8a3b2e")
    painted.save("hints.png")
    result = run("grey.png", "-o", "colour.png", "--hint-mask", "hints.png")
    assert result.exit_code == 0, result.output
    lab = skimage_color.rgb2lab(np.asarray(Image.open("colour.png")))[..., 1:]
    assert np.abs(lab[30, 40] - read_color("#8a3b2e")).max() < 2
    with Image.open("colour.png") as image:
        assert read_xmp(image.info["xmp"])["colorized:Hints"].startswith("painted:")


def test_variants_on_the_command_line_obey(run) -> None:
    result = run("grey.png", "-o", "colour.png", "--hint", "10,10,40,40:lab(50 12 -14)", *VARIANTS)
    assert result.exit_code == 0, result.output
    for name in ("colour-1.png", "colour-2.png"):
        lab = skimage_color.rgb2lab(np.asarray(Image.open(name)))[10:40, 10:40, 1:]
        assert np.abs(lab.reshape(-1, 2).mean(0) - (12, -14)).max() < 1


def test_the_manifest_knows_the_hints(run) -> None:
    Path("in").mkdir()
    Path("grey.png").rename("in/grey.png")
    hint = ("--hint", "40,30,9:#8a3b2e")
    assert "1 of 1" in run("in", "-o", "out", "-r", *hint).stdout
    record = json.loads(Path("out/colorized-manifest.jsonl").read_text())
    assert record["settings"]["hints"] == ["40,30,9:#8a3b2e"]
    assert "1 done before" in run("in", "-o", "out", "-r", *hint).stdout
    assert "with other settings" in run("in", "-o", "out", "-r").stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--hint", "40,30:red"), 2, "isn't x,y,radius:colour"),
        (("--hint", "40,30,5:reddish"), 2, "unknown colour 'reddish'"),
        (("--hint", "140,30,5:red"), 1, "lies outside the photo of 84 x 60"),
        (("--hint-mask", "none.png"), 2, "'none.png' does not exist"),
        (("--hint-mask", "small.png"), 1, "painted picture has 9 x 9 pixels"),
        (("grey2.png", "--hint", "40,30,5:red"), 2, "here are 2: give one"),
    ],
)
def test_wrong_hints_are_explained(run, words: tuple[str, ...], status: int, message: str) -> None:
    Image.new("RGB", (9, 9), "red").save("small.png")
    Image.open("grey.png").save("grey2.png")
    result = run("grey.png", "-o", "out", *words)
    assert result.exit_code == status and message in result.stderr, result.output
    assert "Traceback" not in result.output


def test_pages_are_not_hinted_together(run) -> None:
    pages = [Image.open("grey.png"), Image.open("grey.png")]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    result = run("pages.tif", "-o", "out.tif", "--hint", "40,30,5:red")
    assert result.exit_code == 1 and "--pages first" in result.stderr
    assert run("pages.tif", "-o", "out.tif", "--hint", "40,30,5:red", "--pages", "first").exit_code == 0


def test_what_a_visitor_paints_becomes_a_hint_at_the_photo_s_size(
    plain_pipe: ColorizationPipeline, tmp_path: Path
) -> None:
    page = pytest.importorskip("colorized_pipeline.app")
    Image.fromarray(grey(120, 168)).save(tmp_path / "photo.png")
    worker = page.Worker(plain_pipe, PageLimits())
    layer = Image.new("RGBA", (84, 60))  # the page shows photos smaller
    assert worker._read_painting({"layers": [layer]}, tmp_path / "photo.png") == ()
    assert worker._read_painting(None, tmp_path / "photo.png") == ()
    ImageDraw.Draw(layer).ellipse((30, 20, 50, 40), fill="#8a3b2e")
    hints = worker._read_painting({"layers": [layer]}, tmp_path / "photo.png")
    found = chroma_of(plain_pipe, grey(120, 168), hints=list(hints))
    assert np.abs(found[60, 80] - read_color("#8a3b2e")).max() < 0.3
