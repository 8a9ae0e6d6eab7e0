"""The figures of docs/explanation/theory.md: all of them are made, and the same ones every time."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from colorized_pipeline import ColorizationPipeline

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "make_theory_figures.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_theory_figures", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wanted() -> set[str]:
    return set(re.findall(r"\(theory/(.*?)\)", (ROOT / "docs" / "explanation" / "theory.md").read_text()))


def test_all_figures_from_a_tiny_pipeline_twice_alike(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    script = load_script()
    script.CROPS_PER_PHOTO, script.EDGE = 1, 32
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        labs = script.skimage_crops(torch.Generator().manual_seed(0))
        assert labs.shape == (4, 3, 32, 32) and 0 <= labs[:, 0].min() and labs[:, 0].max() <= 100
        script.make_all(plain_pipe, labs, "a test", folder)
    made = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert set(made) == wanted()
    assert made == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    with Image.open(tmp_path / "a" / "reverse.webp") as animation:
        assert animation.n_frames >= plain_pipe.config.default_steps


def test_committed_figures_are_those_the_document_shows() -> None:
    assert {file.name for file in (ROOT / "docs" / "explanation" / "theory").iterdir()} == wanted()


@pytest.mark.slow
def test_script_runs_on_the_shipped_checkpoint(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--output", tmp_path], check=True, cwd=ROOT, timeout=900)
    assert {file.name for file in tmp_path.iterdir()} == wanted()
