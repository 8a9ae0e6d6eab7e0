"""Exported networks against PyTorch's: equal output at any batch and grid, in a pipeline, from the command."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner, Result

from colorized_pipeline import export
from colorized_pipeline.cli import app
from colorized_pipeline.export import FORMATS, ExportedUNet, export_unet, use_engine

for package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)


@pytest.fixture(scope="module", params=FORMATS)
def engine(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of the tiny checkpoint in each format."""
    folder = tmp_path_factory.mktemp("engines") / request.param
    result = run("export", str(checkpoint), "-o", str(folder), "--format", request.param)
    assert result.exit_code == 0, result.output
    assert "equal to PyTorch's within" in result.stdout and str(folder) in result.stdout
    return folder


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@torch.no_grad()
def test_output_is_pytorchs_at_any_batch_grid_and_time(engine: Path) -> None:
    unet, exported = make_pipeline().unet, ExportedUNet(engine)
    limit = export.TOLERANCE[exported.description["precision"]]
    for shape, timestep in (((1, 18, 8, 8), 7), ((5, 18, 24, 10), 993), ((2, 18, 2, 40), 400)):
        sample = torch.randn(shape, generator=torch.Generator().manual_seed(timestep))
        expected, found = unet(sample, timestep).sample, exported(sample, torch.tensor(timestep)).sample
        assert found.shape == expected.shape and found.dtype == torch.float32
        difference = (found - expected).abs().max()
        assert difference <= limit * expected.abs().max()
        assert difference < (unet(sample, (timestep + 300) % 1000).sample - found).abs().max()  # it reads the time


def test_pipeline_draws_the_same_pictures(engine: Path) -> None:
    photos = [skimage_data.camera()[:100, :80], skimage_data.camera()[:64, :64]]
    pipe = make_pipeline()

    def draw() -> list[np.ndarray]:
        return pipe(photos, generator=torch.Generator().manual_seed(3), output_type="np").images

    expected = draw()
    use_engine(pipe, engine)
    assert isinstance(pipe.unet, ExportedUNet) and pipe.unet.config.in_channels == 18
    found = draw()
    # A random network turns bfloat16's rounding into more than a trained one does (ΔE 0.1, docs/measurements/speed.md)
    limit = 1e-3 if engine.name == "onnx" else 0.2
    assert max(np.abs(a - b).max() for a, b in zip(expected, found, strict=True)) < limit
    apart = pipe(photos, generator=torch.Generator().manual_seed(4), output_type="np").images
    assert all(np.abs(a - b).mean() < np.abs(c - b).mean() / 4 for a, b, c in zip(expected, found, apart, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(found, draw(), strict=True))


def test_calls_at_once_give_what_they_give_alone(engine: Path) -> None:
    exported = ExportedUNet(engine, threads=1, streams=2)
    samples = torch.randn(8, 2, 18, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = [exported(sample, 500).sample for sample in samples]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda sample: exported(sample, 500).sample, samples))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_command_colorizes_with_an_engine_and_says_so(engine: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        Image.fromarray(skimage_data.camera()[:60, : 60 + 20 * index]).save(tmp_path / "in" / f"{index}.png")
    common = (str(tmp_path / "in"), "-r", "--checkpoint", str(checkpoint), "--device", "cpu")
    plain = run("colorize", *common, "-o", str(tmp_path / "plain"))
    fast = run("colorize", *common, "-o", str(tmp_path / "fast"), "--engine", str(engine))
    assert plain.exit_code == fast.exit_code == 0, fast.output
    for index in range(3):
        a, b = (np.asarray(Image.open(tmp_path / name / f"{index}.png")).astype(int) for name in ("plain", "fast"))
        assert np.abs(a - b).max() <= 5
    manifest = next((tmp_path / "fast").glob("*.jsonl")).read_text()
    names = {"onnx": "onnxruntime", "openvino": "openvino"}
    assert names[engine.name] in json.loads(manifest.splitlines()[0])["settings"]["engine"]
    assert names[engine.name] in run("inspect", str(tmp_path / "fast" / "0.png")).stdout


def test_engine_of_other_weights_is_refused(engine: Path) -> None:
    pipe = make_pipeline()
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.01)
    with pytest.raises(ValueError, match="another checkpoint"):
        use_engine(pipe, engine)
    assert not isinstance(pipe.unet, ExportedUNet)


def test_what_it_cannot_do_is_said(engine: Path) -> None:
    exported = ExportedUNet(engine)
    sample = torch.zeros(2, 18, 8, 8)
    with pytest.raises(ValueError, match="one timestep"):
        exported(sample, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="no gradients"):
        exported(sample.requires_grad_(), 1)


def test_unequal_output_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds another network than the pipeline: what a faulty exporter would give."""
    write = export._write_onnx

    def write_another(unet: torch.nn.Module, folder: Path) -> None:
        with torch.no_grad():
            other = make_pipeline().unet
            next(other.parameters()).mul_(1.5)
        write(other, folder)

    monkeypatch.setattr(export, "_write_onnx", write_another)
    with pytest.raises(ValueError, match="differs from PyTorch's"):
        export_unet(make_pipeline(), tmp_path / "engine", format_name="onnx")
    assert list((tmp_path / "engine").iterdir()) == []


def test_errors_are_one_line(engine: Path, checkpoint: Path, tmp_path: Path) -> None:
    photo = tmp_path / "grey.png"
    Image.fromarray(skimage_data.camera()[:40, :40]).save(photo)
    damaged = shutil.copytree(engine, tmp_path / "damaged")
    model = next(file for file in damaged.iterdir() if file.suffix in (".onnx", ".xml"))
    model.write_bytes(model.read_bytes()[:500])
    colorize = ("colorize", str(photo), "--checkpoint", str(checkpoint), "-o", str(tmp_path / "out.png"))
    into = ("export", str(checkpoint), "-o")
    for words, expected in (
        ((*colorize, "--engine", str(tmp_path)), "holds no engine"),
        ((*colorize, "--engine", str(damaged)), "can't be loaded"),
        ((*colorize, "--engine", str(engine), "--precision", "bfloat16"), "--precision"),
        ((*into, str(engine)), "isn't an empty folder"),
        ((*into, str(tmp_path / "new"), "--format", "onnx", "--precision", "bfloat16"), "must be float32"),
    ):
        result = run(*words)
        assert result.exit_code == 2 and expected in result.stderr and "Traceback" not in result.output, words
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "new").exists()


def test_bfloat16_without_an_engine_stays_near_float32(checkpoint: Path, tmp_path: Path) -> None:
    photo = tmp_path / "grey.png"
    Image.fromarray(skimage_data.camera()[:60, :60]).save(photo)
    pictures = []
    for precision in ("float32", "bfloat16"):
        output = tmp_path / f"{precision}.png"
        words = ("colorize", str(photo), "-o", str(output), "--checkpoint", str(checkpoint), "--device", "cpu")
        result = run(*words, "--precision", precision)
        assert result.exit_code == 0, result.output
        pictures.append(np.asarray(Image.open(output)).astype(int))
        assert f"torch {precision}" in run("inspect", str(output)).stdout
    assert 0 < np.abs(pictures[0] - pictures[1]).max() <= 6
