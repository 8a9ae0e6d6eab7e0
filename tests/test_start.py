"""The command answers at once: nothing heavy is imported before it is needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from start import cost, measure
from typer.testing import CliRunner

from colorized_pipeline.archive.scans import DEFAULT_MAX_MEGAPIXELS
from colorized_pipeline.cli import app
from colorized_pipeline.cli.colorize import Files

HEAVY = ("torch", "diffusers", "transformers", "huggingface_hub", "gradio", "c2pa")
PROBE = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from colorized_pipeline.cli import main
main()
"""


@pytest.fixture(scope="module")
def labelled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    Image.linear_gradient("L").resize((60, 40)).save(folder / "grey.png")
    words = [str(folder / "grey.png"), "-o", str(folder / "colour.png"), "--checkpoint", str(checkpoint)]
    assert CliRunner().invoke(app, ["colorize", *words]).exit_code == 0
    return folder / "colour.png"


DRY = ["colorize", "PHOTO", "-o", "copy.png", "--variants", "2", "--dry-run"]


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["colorize", "--help"], ["inspect", "PHOTO"], DRY, []], ids=" ".join
)
def test_nothing_heavy_is_imported(words: list[str], labelled: Path) -> None:
    given = [str(labelled) if word == "PHOTO" else word for word in words]
    done = subprocess.run([sys.executable, "-c", PROBE, *given], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].strip() == "imported:", done.stderr
    assert done.returncode == (0 if words else 2) and done.stdout


def test_the_shell_completes_without_anything_heavy() -> None:
    program = {"_COLORIZED_COMPLETE": "complete_bash", "COMP_WORDS": "colorized colorize --ref", "COMP_CWORD": "2"}
    probe = PROBE.replace("main()\n", "sys.argv[0] = 'colorized'; main()\n")
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env={**os.environ, **program})
    assert "--reference" in done.stdout and done.stderr.strip() == "imported:"


def test_the_start_costs_little(labelled: Path) -> None:
    """Limits for a busy machine; benchmarks/README.md has what a quiet one takes."""
    words = {"nothing": ["-c", "pass"], "help": ["-m", "colorized_pipeline", "--help"]}
    costs = measure({**words, "inspect": ["-m", "colorized_pipeline", "inspect", str(labelled)]}, rounds=1)
    for name, [(seconds, memory)] in costs.items():
        assert seconds < 1.5 and memory < 65, name
    with pytest.raises(RuntimeError, match="ended with 3"):
        cost(["-c", "raise SystemExit(3)"])


COMPILE = """
import sys
from colorized_pipeline.cli.console import quick_start
with quick_start():
    from colorized_pipeline import load_pipeline
    unet = load_pipeline(sys.argv[1]).unet
print(*[name for name in ("sympy", "torch._dynamo.convert_frame", "torch.distributed.tensor") if name in sys.modules])
import torch
from diffusers.utils.torch_utils import is_compiled_module
compiled = torch.compile(unet, backend="eager")
print(is_compiled_module(compiled), is_compiled_module(unet), "sympy" in sys.modules)
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist())
"""


def test_the_compiler_waits_until_it_is_used(checkpoint: Path) -> None:
    done = subprocess.run([sys.executable, "-c", COMPILE, str(checkpoint)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["", "True False True", "[2.0, 2.0]"], done.stderr


CATALOGUES = """
import sys
from colorized_pipeline.cli.console import quick_start
with quick_start():
    from colorized_pipeline import load_pipeline
    load_pipeline(sys.argv[1])
modules = ("transformer_2d", "dit_transformer_2d")
print(*[f"diffusers.models.transformers.{name}" in sys.modules for name in modules])
import diffusers, transformers
from diffusers.models.transformers import DiTTransformer2DModel, Transformer2DModel
print(Transformer2DModel is diffusers.Transformer2DModel, diffusers.models.transformers.transformer_2d.__name__)
print(transformers.models.vit.ViTConfig is transformers.ViTConfig, diffusers.AutoencoderKL.__name__)
"""


def test_catalogues_of_models_open_when_they_are_used(checkpoint: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CATALOGUES, str(checkpoint)], capture_output=True, text=True)
    expected = ["True False", "True diffusers.models.transformers.transformer_2d", "True AutoencoderKL"]
    assert done.stdout.splitlines() == expected, done.stderr


def test_the_package_names_what_it_has() -> None:
    import colorized_pipeline

    for name in colorized_pipeline.__all__:
        assert getattr(colorized_pipeline, name) is not None and name in dir(colorized_pipeline)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = colorized_pipeline.nothing


def test_the_limit_of_the_command_is_the_reader_s() -> None:
    assert Files(output=Path("x")).max_megapixels == DEFAULT_MAX_MEGAPIXELS
