"""The measuring scripts, each on a tiny checkpoint and a few photos, and the record that all of them print."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from conftest import make_pipeline
from photos import make_folder, make_parquet
from PIL import Image
from test_train_script import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def run(name: str, *words: str) -> tuple[ModuleType, str]:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *words])
        module.main()
        return module, capsys.readouterr().out

    return run


def test_hints(script, checkpoint: Path, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", 5)
    words = ["--photos", str(photos), "--checkpoint", str(checkpoint), "--limit", "3", "--resolution", "32"]
    _, printed = script("measure_hints", *words)
    assert "`python scripts/measure_hints.py --photos photos" in printed and "photos, 3 photos, DDPM" in printed
    assert f"weights `{make_pipeline().digest()}`" in printed and "core" in printed and "20" in printed
    without, given = (line.split("|") for line in printed.splitlines()[-2:])
    assert float(given[2]) < float(without[2])  # the error inside the disc


def test_pairs_for_references_stay_in_their_class(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("measure_reference")
    assert module.pair_up(["a", "b", "a", "c", "b", "a"], 10) == [(0, 2), (1, 4), (2, 5), (4, 1), (5, 0)]


def test_reference(script, checkpoint: Path, tmp_path: Path) -> None:
    make_parquet(tmp_path / "plain.parquet", 4)
    photos = datasets.Dataset.from_parquet(str(tmp_path / "plain.parquet"), cache_dir=str(tmp_path / "cache"))
    photos.add_column("scene", ["a", "a", "b", "b"]).to_parquet(str(tmp_path / "photos.parquet"))
    words = ["--photos", str(tmp_path / "photos.parquet"), "--checkpoint", str(checkpoint), "--limit", "3"]
    _, printed = script("measure_reference", *words, "--resolution", "32", "--sheet", str(tmp_path / "sheet.jpg"))
    assert "3 photos" in printed and printed.splitlines()[-1].startswith("| with reference | ")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (4 * 32 + 5 * 6, 3 * 32 + 4 * 6)
