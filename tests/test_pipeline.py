"""The pipeline by its invariants: lightness, size, reproducibility, every way in and out, and an exact sampler."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_pipeline, make_scheduler
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from skimage import color as skimage_color
from skimage import data as skimage_data

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion import pipeline
from colorized_pipeline.diffusion.color import gray_to_lightness, lightness_to_gray, rgb_to_lab
from colorized_pipeline.diffusion.photo import condition_channels, encode_lightness
from colorized_pipeline.diffusion.pipeline import CODE_FILES


def photo(height: int, width: int) -> Image.Image:
    """A real grey photograph of any size."""
    return Image.fromarray(skimage_data.camera()).resize((width, height))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(64, 64), (120, 40), (40, 120), (1, 1), (1, 2000), (37, 1), (33, 47)])
def test_output_has_the_size_and_the_lightness_of_the_input(pipe: ColorizationPipeline, size: tuple[int, int]) -> None:
    gray = photo(*size)
    result = pipe(gray, generator=seeded()).images[0]
    assert result.size == gray.size and result.mode == "RGB"
    expected = skimage_color.rgb2lab(np.asarray(gray.convert("RGB")))[..., 0]
    actual = skimage_color.rgb2lab(np.asarray(result))[..., 0]
    assert np.abs(actual - expected).mean() <= 0.3


def test_float_output_keeps_lightness_to_16_bits(plain_pipe: ColorizationPipeline) -> None:
    gray = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    result = plain_pipe(gray, generator=seeded(), output_type="pt").images[0]
    lightness = gray_to_lightness(torch.from_numpy(gray.astype(np.float64) / 65535))
    assert (rgb_to_lab(result.double())[0] - lightness).abs().max() < 0.02
    assert rgb_to_lab(result)[1:].abs().max() > 1  # and it did colour it


def test_output_types_agree(plain_pipe: ColorizationPipeline) -> None:
    gray = photo(40, 50)
    pil = plain_pipe(gray, generator=seeded()).images[0]
    array = plain_pipe(gray, generator=seeded(), output_type="np").images[0]
    (tensors,) = plain_pipe(gray, generator=seeded(), output_type="pt", return_dict=False)
    assert array.shape == (40, 50, 3) and tensors[0].shape == (3, 40, 50)
    assert np.array_equal(array, tensors[0].movedim(0, -1).numpy())
    differs = np.asarray(pil) != np.round(array * 255)
    assert differs.mean() < 0.01 and np.abs(np.asarray(pil) - array * 255).max() < 1


def grey_inputs(tmp_path: Path) -> dict[str, Any]:
    """The same 8-bit grey photo in every form the pipeline takes."""
    pil = photo(40, 56)
    array = np.asarray(pil)
    tensor = torch.from_numpy(array.copy())
    pil.save(tmp_path / "a.png")
    palette = pil.convert("P")
    return {
        "path": tmp_path / "a.png",
        "str": str(tmp_path / "a.png"),
        "LA": Image.merge("LA", (pil, Image.new("L", pil.size, 255))),
        "P": palette,
        "RGB": pil.convert("RGB"),
        "RGBA": pil.convert("RGBA"),
        "I;16": Image.fromarray(array.astype(np.uint16) * 257),
        "I": Image.fromarray(array.astype(np.int32) * 257),
        "F": Image.fromarray((array / 255).astype(np.float32)),
        "uint8": array,
        "uint16": array.astype(np.uint16) * 257,
        "float64": array / 255,
        "[H, W, 1]": array[..., None],
        "[H, W, 3]": np.stack([array] * 3, axis=-1),
        "[H, W, 4]": np.stack([array] * 4, axis=-1),
        "tensor [H, W]": tensor,
        "tensor [1, H, W]": tensor[None].float() / 255,
        "tensor [3, H, W]": tensor.expand(3, -1, -1),
        "tensor [1, 1, H, W]": tensor[None, None],
        "list": [pil],
    }


FORMS = (
    "path str LA P RGB RGBA I;16 I F uint8 uint16 float64|[H, W, 1]|[H, W, 3]|[H, W, 4]|tensor [H, W]|"
    "tensor [1, H, W]|tensor [3, H, W]|tensor [1, 1, H, W]|list"
)
ALL_FORMS = FORMS.split("|")[0].split() + FORMS.split("|")[1:]


@pytest.mark.parametrize("form", ALL_FORMS)
def test_every_form_of_a_photo_gives_the_same_picture(
    plain_pipe: ColorizationPipeline, tmp_path: Path, form: str
) -> None:
    forms = grey_inputs(tmp_path)
    assert set(forms) == set(ALL_FORMS)
    expected = plain_pipe(photo(40, 56), generator=seeded(), output_type="pt").images[0]
    result = plain_pipe(forms[form], generator=seeded(), output_type="pt").images[0]
    assert (result - expected).abs().max() < 1e-3


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_read(plain_pipe: ColorizationPipeline, mode: str) -> None:
    source = photo(40, 56)
    converted = Image.fromarray(skimage_data.astronaut()).resize((56, 40)).convert(mode) if mode != "LAB" else None
    if converted is None:
        lab = Image.merge("LAB", (source, Image.new("L", source.size, 128), Image.new("L", source.size, 128)))
        converted = lab
    result = plain_pipe(converted, generator=seeded()).images[0]
    assert result.size == converted.size


def test_a_colour_photo_is_taken_as_its_lightness(plain_pipe: ColorizationPipeline) -> None:
    rgb = np.asarray(Image.fromarray(skimage_data.astronaut()).resize((48, 48)))
    lightness = rgb_to_lab(torch.from_numpy(rgb.copy()).movedim(-1, 0).float() / 255)[:1]
    from_colour = plain_pipe(rgb, generator=seeded(), output_type="pt").images[0]
    from_grey = plain_pipe(lightness_to_gray(lightness), generator=seeded(), output_type="pt").images[0]
    assert (from_colour - from_grey).abs().max() < 1e-2


def test_exif_orientation_is_applied(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo(40, 60).save(tmp_path / "turned.jpg", exif=exif)
    assert plain_pipe(tmp_path / "turned.jpg").images[0].size == (40, 60)


def test_same_generator_same_picture(pipe: ColorizationPipeline) -> None:
    gray = photo(48, 48)
    first, again, other = (pipe(gray, generator=seeded(s), output_type="pt").images[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_batching_does_not_change_results(pipe: ColorizationPipeline) -> None:
    photos = [photo(40, 40), photo(40, 90), photo(40, 40).rotate(90), photo(64, 64), photo(90, 40)]
    together = pipe(photos, generator=seeded(), output_type="pt").images
    one_by_one = pipe(photos, generator=seeded(), batch_size=1, output_type="pt").images
    for a, b, gray in zip(together, one_by_one, photos, strict=True):
        assert a.shape[1:] == (gray.height, gray.width)
        assert (a - b).abs().max() < 1e-3
    alone = pipe(photos[3], generator=[seeded(7)], output_type="pt").images[0]
    generators = [seeded(i + 4) for i in range(5)]
    assert (pipe(photos, generator=generators, output_type="pt").images[3] - alone).abs().max() < 1e-3


def test_intensity_scales_chroma(plain_pipe: ColorizationPipeline) -> None:
    gray = np.full((40, 40), 0.5)  # mid-grey: the gamut leaves room

    def chroma(intensity: float) -> torch.Tensor:
        images = plain_pipe(gray, generator=seeded(), intensity=intensity, output_type="pt").images
        return rgb_to_lab(images[0].double())[1:]

    assert chroma(0).abs().max() < 0.05
    assert (chroma(0.2) * 2 - chroma(0.4)).abs().max() < 0.1
    grey = np.asarray(plain_pipe(gray, intensity=0).images[0])
    assert np.ptp(grey.astype(int), axis=-1).max() <= 1  # scikit-image's white isn't exactly its matrix's


def test_working_size_and_steps_matter(plain_pipe: ColorizationPipeline) -> None:
    gray = photo(64, 64)
    base = plain_pipe(gray, generator=seeded(), output_type="pt").images[0]
    for change in ({"working_size": 64}, {"num_inference_steps": 5}):
        assert (plain_pipe(gray, generator=seeded(), output_type="pt", **change).images[0] - base).abs().max() > 1e-3


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler]
)
def test_other_schedulers_drop_in(pipe: ColorizationPipeline, scheduler: Any) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    result = pipe(photo(40, 40), num_inference_steps=4, generator=seeded(), output_type="pt").images[0]
    assert result.isfinite().all()


class ExactDenoiser(torch.nn.Module):
    """Knows the true chroma and returns exactly the v that leads there; nothing learnt."""

    def __init__(self, pipe: ColorizationPipeline, truth: torch.Tensor) -> None:
        super().__init__()
        self.config, self.dtype, self.device = pipe.unet.config, torch.float32, torch.device("cpu")
        self.alpha_bar = pipe.scheduler.alphas_cumprod
        self.truth = truth

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Any:
        alpha_bar = self.alpha_bar[timestep.long()]
        noisy = x[:, -2:]
        noise = (noisy - alpha_bar.sqrt() * self.truth) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * self.truth
        return type("Output", (), {"sample": v})


@pytest.mark.parametrize("scheduler", [None, DDIMScheduler])
def test_a_perfect_network_gives_the_true_colours(plain_pipe: ColorizationPipeline, scheduler: Any) -> None:
    truth = torch.tensor([12.0, -20.0])  # CIELAB units, inside sRGB at mid-grey
    scaled = (truth / plain_pipe.config.chroma_scale).reshape(1, 2, 1, 1)
    if scheduler:
        plain_pipe.scheduler = scheduler.from_config(plain_pipe.scheduler.config)
    plain_pipe.register_modules(unet=ExactDenoiser(plain_pipe, scaled))
    gray = np.full((50, 70), 0.5)
    result = plain_pipe(gray, num_inference_steps=10, generator=seeded(), output_type="pt").images[0]
    chroma = rgb_to_lab(result.double())[1:]
    assert (chroma - truth.reshape(2, 1, 1)).abs().max() < 0.05


def test_guidance_leans_away_from_the_unconditional_prediction(pipe: ColorizationPipeline) -> None:
    noisy, timestep = torch.randn(2, 2, 16, 16, generator=seeded()), torch.tensor(500)
    condition = pipe.condition(torch.rand(2, 1, 64, 64, generator=seeded(1)) * 100)

    def predict(condition: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        with torch.no_grad():
            return pipe.predict(noisy, timestep, condition=condition, guidance_scale=scale)

    conditional, unconditional = predict(condition), predict(torch.zeros_like(condition))
    assert (conditional - unconditional).abs().max() > 0.01
    torch.testing.assert_close(predict(condition, 0.0), unconditional)
    torch.testing.assert_close(predict(condition, 2.5), unconditional + 2.5 * (conditional - unconditional))


def test_the_derivative_of_a_guided_prediction_is_that_of_the_conditional_one(pipe: ColorizationPipeline) -> None:
    condition = pipe.condition(torch.rand(2, 1, 64, 64, generator=seeded(1)) * 100).detach()
    noisy = torch.randn(2, 2, 16, 16, generator=seeded()).requires_grad_()
    direction = torch.randn(2, 2, 16, 16, generator=seeded(2))

    def predict(scale: float) -> torch.Tensor:
        return pipe.predict(noisy, torch.tensor(500), condition=condition, guidance_scale=scale)

    with torch.no_grad():
        expected = predict(2.5)
    guided = predict(2.5)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)
    derivatives = [torch.autograd.grad(one, noisy, direction)[0] for one in (guided, predict(1.0))]
    torch.testing.assert_close(*derivatives)


def test_guidance_is_the_checkpoints_unless_a_call_says_otherwise(plain_pipe: ColorizationPipeline) -> None:
    gray = photo(40, 40)

    def draw(pipe: ColorizationPipeline, **given: Any) -> np.ndarray:
        return pipe(gray, generator=seeded(), output_type="np", **given).images[0]

    plain, guided = draw(plain_pipe), draw(plain_pipe, guidance_scale=3.0)
    assert np.abs(plain - guided).max() > 0.01
    plain_pipe.register_to_config(default_guidance=3.0)
    assert np.array_equal(draw(plain_pipe), guided)
    assert np.array_equal(draw(plain_pipe, guidance_scale=1.0), plain)


@pytest.mark.parametrize("luma_factor", [1, 2, 4])
def test_lightness_becomes_channels_of_the_chroma_grid(luma_factor: int) -> None:
    lightness = torch.rand(1, 1, 16, 24, generator=seeded()) * 100
    condition = encode_lightness(lightness, luma_factor=luma_factor)
    assert condition.shape == (1, luma_factor**2, 16 // luma_factor, 24 // luma_factor)
    cell = lightness[0, 0, luma_factor : 2 * luma_factor, :luma_factor].flatten() / 50 - 1
    assert torch.allclose(condition[0, :, 1, 0], cell)
    assert condition_channels(luma_factor) == luma_factor**2


def test_luma_factor_one_is_the_plain_one_plus_two_channel_form() -> None:
    pipe = make_pipeline(luma_factor=1)
    assert pipe.unet.config.in_channels == 3
    assert pipe(photo(33, 40), working_size=16).images[0].size == (40, 33)


def test_encoder_features_are_standardized() -> None:
    pipe = make_pipeline(encoder=True)
    condition = pipe.condition(torch.rand(2, 1, 64, 64, generator=seeded()) * 100)
    assert condition.shape[1] + 2 == pipe.unet.config.in_channels
    widths = [state.shape[1] for state in pipe.image_encoder(torch.zeros(1, 3, 64, 64), output_hidden_states=True)[-1]]
    first = condition[:, 16 : 16 + widths[pipe.config.encoder_layers[0]]]
    # interpolation between standardized vectors keeps the mean at zero
    assert first.mean(dim=1).abs().max() < 1e-4


def test_encoder_sees_the_photo_enlarged() -> None:
    pipe = make_pipeline(encoder=True)
    lightness = torch.rand(2, 1, 64, 64, generator=seeded()) * 100
    plain = pipe.condition(lightness)
    pipe.register_to_config(encoder_scale=2)
    finer = pipe.condition(lightness)
    assert finer.shape == plain.shape and torch.equal(finer[:, :16], plain[:, :16])
    gray = F.interpolate(lightness_to_gray(lightness), (128, 128), mode="bilinear").expand(-1, 3, -1, -1)
    states = pipe.image_encoder((gray * 255 - 127) / 128, output_hidden_states=True).hidden_states
    maps = [states[layer] for layer in pipe.config.encoder_layers]
    maps = [(one - one.mean(1, keepdim=True)) / (one.var(1, keepdim=True, correction=0) + 1e-5).sqrt() for one in maps]
    expected = torch.cat([F.interpolate(one, (16, 16), mode="bilinear") for one in maps], dim=1)
    assert torch.allclose(finer[:, 16:], expected, atol=1e-4)
    assert pipe(photo(40, 56), generator=seeded(), num_inference_steps=2).images[0].size == (56, 40)


def test_photos_are_shown_to_the_encoder_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline(encoder=True)
    lightness = torch.rand(5, 1, 64, 64, generator=seeded()) * 100
    whole = pipe.condition(lightness)
    monkeypatch.setattr("colorized_pipeline.diffusion.photo._ENCODER_PIXELS", 2 * 64 * 64)
    assert torch.allclose(pipe.condition(lightness), whole, atol=1e-5)


def test_save_and_load_round_trip(pipe: ColorizationPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.bin"))
    loaded = [ColorizationPipeline.from_pretrained(tmp_path) for _ in range(2)]
    scalars = ("luma_factor", "chroma_scale", "working_size", "default_steps", "encoder_layers", "encoder_scale")
    for name in scalars:
        assert loaded[0].config[name] == pipe.config[name]
    assert (loaded[0].image_encoder is None) == (pipe.image_encoder is None)
    gray = photo(40, 40)
    original, first, second = (p(gray, generator=seeded(), output_type="pt").images[0] for p in (pipe, *loaded))
    assert torch.equal(first, second)
    assert (original - first).abs().max() < 1e-3
    assert ColorizationPipeline.from_pretrained(tmp_path, working_size=64).config.working_size == 64


def test_checkpoint_brings_its_own_code(tmp_path: Path) -> None:
    """With diffusers alone, in a fresh process that can't import this package or what only some files need."""
    for name, encoder in (("plain", False), ("encoder", True)):
        make_pipeline(encoder=encoder).save_pretrained(tmp_path / name)
    for name in ("a.jpg", "a.png", "a.tif"):
        photo(40, 50).save(tmp_path / name)
    script = """
import sys
sys.path = [p for p in sys.path if p]
for name in ("colorized_pipeline", "tifffile", "imagecodecs", "pillow_heif"):
    sys.modules[name] = None
import numpy as np
from diffusers import DiffusionPipeline
for name in ("./plain", "./encoder"):
    pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)
    print(type(pipe).__name__, *[pipe(one).images[0].size for one in (np.full((40, 50), 0.5), "a.jpg", "a.png")])
    try:
        pipe("a.tif")
    except ValueError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    expected = (
        "ColorizationPipeline (50, 40) (50, 40) (50, 40)\na.tif: TIFF needs one more package: pip install tifffile\n"
    )
    assert done.stdout == 2 * expected, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(pipe: ColorizationPipeline, dtype: torch.dtype) -> None:
    gray = photo(48, 48)
    full = pipe(gray, generator=seeded(), output_type="pt").images[0]
    half = pipe.to(dtype=dtype)(gray, generator=seeded(), output_type="pt").images[0]
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.02


def test_progress_bar(plain_pipe: ColorizationPipeline, capsys: pytest.CaptureFixture) -> None:
    plain_pipe(photo(40, 40))
    assert not capsys.readouterr().err
    plain_pipe.set_progress_bar_config(disable=False)
    plain_pipe([photo(40, 40), photo(80, 40)], num_inference_steps=3)
    assert "6/6" in capsys.readouterr().err


def test_whole_numbers_of_numpy_are_counts(plain_pipe: ColorizationPipeline) -> None:
    counts = {"num_inference_steps": 3, "num_variants": 2, "working_size": 32, "batch_size": 2}
    expected = plain_pipe(photo(40, 40), generator=seeded(), output_type="np", **counts).images[0]
    for kind in (np.int64, np.uint8):
        given = {name: kind(count) for name, count in counts.items()}
        found = plain_pipe(photo(40, 40), generator=seeded(), output_type="np", **given).images[0]
        assert np.array_equal(found, expected)


def test_components_make_the_same_pipeline(pipe: ColorizationPipeline) -> None:
    pipe.register_to_config(chroma_scale=60.0, default_steps=3)
    again = [
        ColorizationPipeline(**pipe.components),
        ColorizationPipeline(**pipe.components, **pipe.parameters),
        ColorizationPipeline.from_pipe(pipe),
    ]
    expected = pipe(photo(40, 40), generator=seeded(), output_type="np").images[0]
    for other in again:
        other.set_progress_bar_config(disable=True)
        names = ("luma_factor", "chroma_scale", "working_size", "default_steps", "encoder_layers")
        assert all(list(np.ravel(other.config[name])) == list(np.ravel(pipe.config[name])) for name in names)
        assert np.array_equal(other(photo(40, 40), generator=seeded(), output_type="np").images[0], expected)


def test_a_callback_sees_each_step_and_may_change_it(plain_pipe: ColorizationPipeline) -> None:
    seen: list[tuple[int, int, list[str]]] = []

    def watch(pipe: ColorizationPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        assert pipe is plain_pipe
        seen.append((step, int(timestep), sorted(tensors)))
        return {}

    def grey(_: Any, step: int, __: Any, tensors: dict) -> dict:
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    gray = np.full((40, 40), 0.5)
    given = {"num_inference_steps": 3, "output_type": "np"}
    plain = plain_pipe(gray, generator=seeded(), **given).images[0]
    inputs = ["latents", "condition"]
    watched = plain_pipe(
        gray,
        generator=seeded(),
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=inputs,
        **given,
    ).images[0]
    assert np.array_equal(plain, watched)
    timesteps = plain_pipe.scheduler.timesteps.tolist()
    assert seen == [(step, timestep, sorted(inputs)) for step, timestep in enumerate(timesteps)]
    result = plain_pipe(gray, generator=seeded(), callback_on_step_end=grey, **given).images[0]
    assert np.ptp(plain, axis=-1).max() > 0.02 > np.ptp(result, axis=-1).max()
    with pytest.raises(ValueError, match="must be of latents, condition; got noise"):
        plain_pipe(gray, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["noise"])


@pytest.mark.parametrize(
    "values",
    [
        np.arange(256).reshape(16, 16),
        np.arange(256, dtype=np.int32).reshape(16, 16),
        torch.arange(256).reshape(16, 16),
        Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)),
    ],
    ids=["int64", "int32", "torch.long", "PIL mode I"],
)
def test_whole_numbers_without_a_meaning_are_refused_with_their_range(
    plain_pipe: ColorizationPipeline, values: Any
) -> None:
    with pytest.raises(ValueError, match=r"with values from 0 to 255.*0 to 65535"):
        plain_pipe(values)


def test_a_pillow_image_is_read_with_its_profile(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    photo(40, 40).save(tmp_path / "a.png", icc_profile=imagecodecs.cms_profile("gray", gamma=1.0))
    from_file = plain_pipe(tmp_path / "a.png", generator=seeded(), output_type="np").images[0]
    opened = plain_pipe(Image.open(tmp_path / "a.png"), generator=seeded(), output_type="np").images[0]
    assert np.array_equal(from_file, opened)
    plain = plain_pipe(photo(40, 40), generator=seeded(), output_type="np").images[0]
    assert np.abs(plain - opened).mean() > 0.1


def test_the_folder_is_what_travels() -> None:
    folder = Path(pipeline.__file__).parent
    assert {*CODE_FILES, "__init__.py"} == {file.name for file in folder.glob("*.py")}
    imported = re.findall(r"^from \.(\w+) import", (folder / "pipeline.py").read_text(), re.M)
    assert {f"{name}.py" for name in imported} | {"pipeline.py"} == set(CODE_FILES)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"image": []}, ValueError, "image is an empty list"),
        ({"image": 3}, TypeError, "image must be a path"),
        ({"image": np.full((8, 8), np.nan)}, ValueError, "NaN"),
        ({"image": np.full((8, 8), 128.0)}, ValueError, "divide by 255"),
        ({"image": np.full((8, 8), -0.5)}, ValueError, r"\[0, 1\]"),
        ({"image": np.zeros((2, 8, 8), np.uint8)}, ValueError, "shape"),
        ({"image": np.zeros((0, 8), np.uint8)}, ValueError, "shape"),
        ({"image": np.zeros((8,), np.uint8)}, ValueError, "shape"),
        ({"image": np.zeros((8, 8), complex)}, TypeError, "complex"),
        ({"image": "nowhere.png"}, FileNotFoundError, r"nowhere\.png"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps.*0"),
        ({"num_inference_steps": 2.5}, ValueError, "num_inference_steps.*2.5"),
        ({"guidance_scale": -1.0}, ValueError, "guidance_scale.*-1"),
        ({"working_size": 0}, ValueError, "working_size"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"intensity": -1}, ValueError, "intensity.*-1"),
        ({"intensity": float("nan")}, ValueError, "intensity"),
        ({"output_type": "jpg"}, ValueError, "output_type.*jpg"),
        ({"generator": [seeded(), seeded()]}, ValueError, "2 entries for 1"),
    ],
)
def test_bad_arguments_are_named(
    plain_pipe: ColorizationPipeline, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plain_pipe(**{"image": np.zeros((8, 8)), **arguments})


@pytest.mark.parametrize("content", [b"", b"not a photo"])
def test_unreadable_file_is_named(plain_pipe: ColorizationPipeline, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises((OSError, ValueError), match=r"bad\.jpg"):
        plain_pipe(tmp_path / "bad.jpg")


def test_truncated_file_is_named(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    photo(200, 200).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(OSError, match=r"cut\.jpg"):
        plain_pipe(tmp_path / "cut.jpg")


def test_unet_of_another_kind_is_refused(plain_pipe: ColorizationPipeline) -> None:
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ValueError, match="out_channels=2"):
        ColorizationPipeline(unet=unet, scheduler=make_scheduler())


def test_drawing_may_start_from_the_mean_of_the_noise(pipe: ColorizationPipeline) -> None:
    def draw(seed: int, steps: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipe.draw(pipe.prepare(photo(40, 56)), generators=[generator], num_inference_steps=steps)

    digest = pipe.digest()
    assert pipe.config.initial_noise == 1 and not torch.equal(draw(0, 1), draw(1, 1))
    pipe.register_to_config(initial_noise=0.0)
    assert torch.allclose(draw(0, 1), draw(1, 1), atol=1e-4)  # the first prediction is the same
    assert not torch.equal(draw(0, 3), draw(1, 3))  # noise comes in with the steps
    assert pipe.digest() != digest
