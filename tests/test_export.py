"""Exported graphs against the pipeline: the same picture from the same noise, by the runner alone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline import EXAMPLES, ColorizationPipeline, load_default
from colorized_pipeline.archive.labels import DIGITAL_SOURCE_TYPE
from colorized_pipeline.cli import app
from colorized_pipeline.embed.export import EMBED, PRECISIONS, export_pipeline

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)


def load_runner(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_runner", folder / "colorize.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both(
    pipe: ColorizationPipeline, folder: Path, photo: Image.Image, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The pipeline's picture and the runner's, from the noise of the same generator."""

    class Colorizer(load_runner(folder).Colorizer):  # type: ignore[misc]
        def make_noise(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
            generator = torch.Generator().manual_seed(seed)
            return torch.cat([torch.randn((1, *shape[1:]), generator=generator) for _ in range(shape[0])]).numpy()

    generator = torch.Generator().manual_seed(7)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(photo, generator=[generator], borders=False, **options).images[0]
    found = Colorizer(folder, threads=1).colorize(photo, seed=7, **options)
    return np.asarray(expected).astype(int), np.asarray(found).astype(int)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's own checkpoint, as the command exports it."""
    folder = tmp_path_factory.mktemp("export") / "embed"
    done = CliRunner().invoke(app, ["export", "-o", str(folder)])
    assert done.exit_code == 0 and f"python {folder}/colorize.py" in done.stdout, done.output
    return folder


@pytest.mark.parametrize("encoder", [False, True])
def test_graphs_of_any_pipeline_at_any_shape(encoder: bool, tmp_path: Path) -> None:
    pipe = make_pipeline(encoder=encoder)
    export_pipeline(pipe, tmp_path / "embed", precision="float32")
    camera = skimage_data.camera()
    for photo in (camera[:100, :80], camera[:37, :300], camera[:32, :32], skimage_data.astronaut()[:200, :64]):
        expected, found = both(pipe, tmp_path / "embed", Image.fromarray(photo), intensity=0.7)
        assert found.shape == expected.shape and (np.abs(found - expected) > 1).mean() < 1e-3


def test_runner_paints_what_the_pipeline_paints(exported: Path) -> None:
    pipe = load_default()
    for file in EXAMPLES[:3]:
        expected, found = both(pipe, exported, Image.open(file))
        assert (np.abs(found - expected) > 1).mean() < 1e-3, file.name
    other = np.asarray(load_runner(exported).Colorizer(exported).colorize(Image.open(file), seed=1)).astype(int)
    assert (np.abs(other - expected) > 1).mean() > 0.3  # another seed is another picture


def test_runner_alone_writes_a_labelled_photo(exported: Path, tmp_path: Path) -> None:
    photo = tmp_path / "scan & co.png"
    Image.fromarray(skimage_data.camera()[:90, :120]).save(photo)
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__');"
        "assert not {'torch', 'diffusers', 'transformers', 'colorized_pipeline'} & set(sys.modules)"
    )
    for ending in ("jpg", "png", "tif", "webp"):
        target = tmp_path / f"colour.{ending}"
        words = [sys.executable, "-c", code, exported / "colorize.py", photo, "-o", target, "--seed", "5"]
        subprocess.run(words, check=True, cwd=tmp_path)
        with Image.open(target) as picture:
            assert picture.size == (120, 90) and picture.mode == "RGB"
        shown = CliRunner().invoke(app, ["inspect", str(target)]).stdout
        assert (
            "Seed" in shown
            and "5" in shown
            and json.loads((exported / "colorized.json").read_text())["checkpoint"] in shown
        )
        assert DIGITAL_SOURCE_TYPE.encode() in target.read_bytes() and b"scan%20%26%20co.png" in target.read_bytes()


def test_runner_is_short_and_says_what_is_wrong(exported: Path, tmp_path: Path) -> None:
    assert len((EMBED / "colorize.py").read_text().splitlines()) <= 100
    (photo := tmp_path / "a.png").write_bytes(EXAMPLES[0].read_bytes())
    (tmp_path / "b.png").write_bytes(b"no photo")
    for source, target, message in (
        (photo, "colour.gif", "must end with .jpg"),
        (photo, "a.png", "the output is the photo itself"),
        (tmp_path / "b.png", "colour.png", "cannot identify"),
        (tmp_path / "c.png", "colour.png", "No such file"),
    ):
        words = [sys.executable, exported / "colorize.py", source, "-o", tmp_path / target]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert photo.read_bytes() == EXAMPLES[0].read_bytes() and not list(tmp_path.glob("colour*"))


def test_runner_sees_16_bits_and_says_that_it_leaves_out_pages(exported: Path, tmp_path: Path) -> None:
    gray = skimage_data.camera()[:90, :120]
    colorizer = load_runner(exported).Colorizer(exported)
    expected = np.asarray(colorizer.colorize(Image.fromarray(gray)))
    for ending in ("tif", "png"):
        Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / f"deep.{ending}")
        with Image.open(tmp_path / f"deep.{ending}") as deep:
            assert (np.asarray(colorizer.colorize(deep)) == expected).all()
    Image.fromarray(gray).save(tmp_path / "two.tif", save_all=True, append_images=[Image.fromarray(gray)])
    words = [sys.executable, exported / "colorize.py", tmp_path / "two.tif", "-o", tmp_path / "colour.png"]
    assert "has 2 pages" in subprocess.run(words, capture_output=True, text=True, check=True).stderr


def test_weights_in_8_bits_are_half_as_large_and_paint_alike(exported: Path, tmp_path: Path) -> None:
    pipe = load_default()
    export_pipeline(pipe, tmp_path / "int8", precision="int8")
    assert (tmp_path / "int8" / "draw.onnx").stat().st_size < 0.6 * (exported / "draw.onnx").stat().st_size
    expected, found = both(pipe, tmp_path / "int8", Image.open(EXAMPLES[0]))
    assert np.abs(found - expected).mean() < 4


def test_errors_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "full")])
    assert done.exit_code == 2 and "isn't an empty folder" in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(ValueError, match=f"precision must be one of {PRECISIONS[0]}"):
        export_pipeline(make_pipeline(), tmp_path / "new", precision="bfloat16")
    regression = ColorizationPipeline(**make_pipeline().components | {"objective": "regression"})
    with pytest.raises(ValueError, match="only diffusion checkpoints"):
        export_pipeline(regression, tmp_path / "new")
    assert not (tmp_path / "new").exists()
