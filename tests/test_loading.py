"""Checkpoints from strangers: what can run code when it is loaded is refused, by every way in."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_pipeline
from typer.testing import CliRunner

from colorized_pipeline import ColorizationPipeline, load_pipeline
from colorized_pipeline.cli import app
from colorized_pipeline.loading import load_encoder


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(params=["unet/diffusion_pytorch_model", "image_encoder/model"])
def trapped(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose weights are partly a pickle that makes ``sprung``."""
    folder = tmp_path / "checkpoint"
    make_pipeline(encoder=True).save_pretrained(folder)
    weights = folder / f"{request.param}.safetensors"
    name = "pytorch_model.bin" if "encoder" in request.param else f"{weights.stem}.bin"
    weights.with_name(name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    weights.unlink()
    return folder


def test_pickles_never_load(trapped: Path, tmp_path: Path) -> None:
    folder, out = str(trapped), str(tmp_path / "out")
    (tmp_path / "grey.png").write_bytes((Path(__file__).parents[1] / "docs/pictures/app.jpg").read_bytes())
    for words in (
        ["push", folder, "alice/trap"],
        ["colorize", str(tmp_path / "grey.png"), "-o", f"{out}.png", "--checkpoint", folder],
        ["export", folder, "-o", out],
        ["package", folder, "-o", out],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and "is a pickle" in done.stderr and "safe_serialization" in done.stderr, words
    with pytest.raises(ValueError, match="is a pickle, which can run any code"):
        load_pipeline(trapped)
    for insist in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError):
            ColorizationPipeline.from_pretrained(trapped, **insist)
    if not list((trapped / "image_encoder").glob("*.safetensors")):
        with pytest.raises(ValueError, match="is a pickle"):
            load_encoder(trapped / "image_encoder")
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_a_pipeline_is_named_with_what_lies_beside(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "best")
    with pytest.raises(ValueError, match=r"no model_index.json\); did you mean .*best\?"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"image encoder .*none can't be loaded"):
        load_encoder(tmp_path / "none")
