"""What a user installs: the wheel carries the checkpoint, and the checkpoint is what the README says it is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import color as skimage_color
from skimage import data as skimage_data
from typer.testing import CliRunner, Result

from colorized_pipeline import DEFAULT_CHECKPOINT, EXAMPLES, load_default, load_pipeline
from colorized_pipeline.cli import app

ROOT = Path(__file__).parents[1]
PARTS = (
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the committed files alone, as a user's ``pip install`` from a clone does."""
    clone, target = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", clone], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, clone]
    subprocess.run(pip, check=True, capture_output=True)
    return next(target.glob("colorized-*.whl"))


def test_wheel_holds_code_checkpoint_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    others = ("model_card_template.md", "examples/README.md", *(f"examples/{file.name}" for file in EXAMPLES))
    code = (
        "__init__.py",
        "cli/__init__.py",
        "cli/colorize.py",
        "diffusion/pipeline.py",
        "diffusion/color.py",
        "diffusion/hints.py",
        "diffusion/steering.py",
        "diffusion/variants.py",
        "publish/viewer/index.html",
        "publish/viewer/openseadragon.min.js",
        "publish/viewer/openseadragon-LICENSE.txt",
        "hub.py",
        "app.py",
        "app.css",
        "app.js",
    )
    for name in (*code, *others, *(f"checkpoint/{part}" for part in PARTS)):
        assert f"colorized_pipeline/{name}" in names
    assert "colorized = colorized_pipeline.cli:main" in entry_points
    assert not [n for n in names if n.startswith(("runs/", "tests/"))]


@pytest.mark.slow
def test_the_wheel_alone_colorizes_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    """Of packages it has its dependencies, of the network nothing once it is installed."""
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    for package in (*pinned, wheel):
        pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", package]
        subprocess.run(pip, check=True, capture_output=True)
    packages = {file.name for file in tmp_path.glob("venv/lib/*/site-packages/*")}
    assert "diffusers" in packages and not packages & {"accelerate", "datasets", "gradio", "onnx", "torchmetrics"}
    photo, result = EXAMPLES[0], tmp_path / "colour.jpg"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [tmp_path / "venv/bin/colorized", "colorize", photo, "-o", result],
        env={"HOME": str(tmp_path), **nowhere},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 of 1 photos colorized" in done.stdout, done.stderr
    assert np.ptp(np.asarray(Image.open(result)).astype(int), axis=-1).max() > 20
    assert Image.open(result).size == Image.open(photo).size


def test_checkpoint_is_small_and_private() -> None:
    files = [file for file in DEFAULT_CHECKPOINT.rglob("*") if file.is_file()]
    assert sorted(str(file.relative_to(DEFAULT_CHECKPOINT)) for file in files) == sorted(PARTS)
    assert sum(file.stat().st_size for file in files) < 32e6
    for file in DEFAULT_CHECKPOINT.rglob("*.json"):
        assert '"/' not in file.read_text(), f"{file} names a folder of some machine"


def test_a_trained_pipeline_goes_into_a_package(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "packaged"
    target.mkdir()
    (target / "old").touch()
    words = ["package", str(checkpoint), "-o", str(target), "--default-steps", "3", "--default-guidance", "1.5"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert {file.name for file in tmp_path.iterdir()} == {"packaged"} and not list(target.glob("*.py"))
    assert not (target / "old").exists()
    assert {value.dtype for value in load_file(target / "unet/diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }
    pipe = load_pipeline(target)
    assert (pipe.config.default_steps, pipe.config.default_guidance) == (3, 1.5) and pipe.unet.dtype == torch.float32
    failed = CliRunner().invoke(app, ["package", str(tmp_path), "-o", str(target)])
    assert failed.exit_code == 2 and "did you mean" in failed.stderr and target.is_dir()


def test_two_trainings_are_averaged(checkpoint: Path, tmp_path: Path) -> None:
    first, second = load_pipeline(checkpoint), load_pipeline(checkpoint)
    generator = torch.Generator().manual_seed(0)
    for weight in second.unet.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    first.register_to_config(uncertainty_fit=[200.0, 3.0])
    first.save_pretrained(tmp_path / "first")
    second.register_to_config(default_steps=7)  # a default of a call doesn't hinder
    second.save_pretrained(tmp_path / "second")

    def package(*average: str) -> Result:
        return CliRunner().invoke(
            app, ["package", str(tmp_path / "first"), "-o", str(tmp_path / "made"), "--average", *average]
        )

    done = package(str(tmp_path / "second"), "0.25")
    assert done.exit_code == 0, done.output
    made = load_pipeline(tmp_path / "made")
    for one, other, weight in zip(*(pipe.unet.parameters() for pipe in (first, second, made)), strict=True):
        torch.testing.assert_close(weight, (0.75 * one + 0.25 * other).half().float(), rtol=1e-3, atol=1e-6)
    assert made.config.uncertainty_fit is None  # that of the first isn't true of the average
    before = (tmp_path / "made/model_index.json").stat()

    second.register_to_config(chroma_scale=41.0)
    second.save_pretrained(tmp_path / "second")
    for average, message in (
        ((str(tmp_path / "second"), "0.25"), "can't be averaged, as they differ in chroma_scale"),
        ((str(checkpoint), "1"), "the share must lie between 0 and 1"),
        ((str(checkpoint), "nan"), "the share must lie between 0 and 1"),
        ((str(tmp_path / "none"), "0.5"), str(tmp_path / "none")),
    ):
        refused = package(*average)
        assert refused.exit_code == 2 and message in " ".join(refused.stderr.split()), refused.output
    assert (tmp_path / "made/model_index.json").stat() == before and not list(tmp_path.glob("partial-*"))


def test_shipped_checkpoint_colorizes_a_real_photograph() -> None:
    pipe = load_default()
    assert pipe.unet.dtype == pipe.image_encoder.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    gray = skimage_data.camera()
    result = np.asarray(pipe(gray, num_inference_steps=10, generator=torch.Generator().manual_seed(0)).images[0])
    lab = skimage_color.rgb2lab(result)
    expected = skimage_color.rgb2lab(np.stack([gray] * 3, axis=-1))[..., 0]
    assert result.shape == (512, 512, 3)
    assert np.abs(lab[..., 0] - expected).mean() <= 0.3
    # The sky is bluer than the meadow below it; a network that has learnt nothing knows no difference
    assert lab[:200, 300:, 2].mean() < lab[400:, :, 2].mean()
    assert np.hypot(lab[..., 1], lab[..., 2]).mean() > 2
