"""The first generation's weights can be had from the history, and drawn with by their own code."""

import subprocess
from pathlib import Path

import pytest
import torch
from photos import colourful

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.evaluation.report import Model
from colorized_pipeline.loading import load_with_own_code

ROOT = Path(__file__).parents[1]
COMMIT = "5c6235c"


def test_documented_command(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "measurements" / "quality.md").read_text(encoding="utf-8")
    commands = text.partition("## The first generation")[2].partition("```bash\n")[2].partition("```")[0]
    assert COMMIT in commands
    if subprocess.run(["git", "cat-file", "-e", COMMIT], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("a copy without its history")
    target = tmp_path / "first_generation"
    subprocess.run(["bash", "-ec", commands.replace("runs/first_generation", str(target))], cwd=ROOT, check=True)
    pipe = load_with_own_code(target)
    pipe.set_progress_bar_config(disable=True)
    assert ColorizationPipeline.digest(pipe).startswith("ab625c8ce41a1b56-")
    assert type(pipe).__module__ != "colorized_pipeline.diffusion.pipeline"
    lightness = torch.from_numpy(colourful(0, height=64, width=64)).float().mean(-1)[None, None] / 2.55
    (picture,) = Model(pipe).colorize(lightness, seed=0)
    assert picture.shape == (3, 64, 64) and picture.std(0).mean() > 0.005


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pipeline\.py"):
        load_with_own_code(tmp_path)
