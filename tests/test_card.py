"""Figures in the documents are those of the committed report, and they say which checkpoint it is of."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from colorized_pipeline import load_default
from colorized_pipeline.evaluation.tables import card_block

ROOT = Path(__file__).parents[1]
FIGURES = json.loads((ROOT / "docs" / "measurements" / "validation.json").read_text())
DOCUMENTS = ("docs/measurements/quality.md", "model_card.md")


def test_report_is_of_the_shipped_checkpoint_and_its_defaults() -> None:
    pipe = load_default()
    assert FIGURES["weights"] == pipe.digest()
    assert (FIGURES["steps"], FIGURES["guidance"]) == (pipe.config.default_steps, pipe.config.default_guidance)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_show_the_report(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert card_block(FIGURES) in text


def test_readme_shows_the_report() -> None:
    columns = {
        "distance closed ↑": "closed_lite2",
        "colourfulness / truth": "colourfulness_ratio",
        "stray / truth": "stray_ratio",
        "ΔE2000 ↓": "delta_e",
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    start = next(number for number, cells in enumerate(lines) if set(columns) <= set(cells))
    header = [columns[name] for name in lines[start] if name]
    rows = lines[start + 2 : start + 5]
    assert [row[0] for row in rows] == ["grey", "first generation", "COLORIZED"]
    for name, *values in rows:
        assert values == [f"{FIGURES['rows'][name][key]:.2f}" for key in header], name
    assert f"{FIGURES['photos']:,} photographs" in text


def test_card_metadata() -> None:
    data = ModelCard.load(ROOT / "model_card.md").data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "diffusers",
        "image-to-image",
    )
    metrics = [metric for result in data["model-index"][0]["results"] for metric in result["metrics"]]
    measured = FIGURES["rows"]["COLORIZED"]
    assert {metric["type"] for metric in metrics} >= {"fd_lite2", "closed_lite2"}
    for metric in metrics:
        assert metric["value"] == pytest.approx(measured[metric["type"]], abs=1e-4)
