"""Figures in README and model card are those of the committed report, and the report is of the shipped checkpoint."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from colorized_pipeline import load_default
from colorized_pipeline.report import card_block, weights_digest

ROOT = Path(__file__).parents[1]
FIGURES = json.loads((ROOT / "docs" / "evaluation" / "validation.json").read_text())


def test_report_is_of_the_shipped_checkpoint() -> None:
    pipe = load_default()
    assert FIGURES["weights"] == weights_digest(pipe)
    assert FIGURES["steps"] == pipe.config.default_steps


@pytest.mark.parametrize("name", ["README.md", "model_card.md"])
def test_documents_show_the_report(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert card_block(FIGURES) in text
    assert "@@" not in text


def test_card_metadata() -> None:
    data = ModelCard.load(ROOT / "model_card.md").data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "diffusers",
        "image-to-image",
    )
    results = {result["metrics"][0]["type"]: result for result in data["model-index"][0]["results"]}
    measured = FIGURES["rows"]["COLORIZED"]
    assert results.keys() >= {"fd_lite0", "closed"}
    for metric, result in results.items():
        assert result["metrics"][0]["value"] == pytest.approx(measured[metric], abs=1e-4)
