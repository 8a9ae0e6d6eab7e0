"""README's two commands, as a new user runs them: from a clean clone, in new virtual environments. Minutes long."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def first_command(section: str) -> str:
    """The first command after a heading of the README."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^#+ {re.escape(section)}\n.*?```bash\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section {section!r} with a command"
    return found[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("readme") / "colorized"
    subprocess.run(["git", "clone", "--quiet", ROOT, target], check=True)
    return target


def run(command: str, clone: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(["bash", "-e", "-c", command], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_set_up_and_colorize(clone: Path) -> None:
    output = run(first_command("COLORIZED"), clone)
    assert "1 of 1 photos colorized" in output
    with Image.open(clone / "camera-colour.png") as image:
        assert image.size == (512, 512)
        assert np.ptp(np.asarray(image).astype(int), axis=-1).mean() > 5


@pytest.mark.slow
def test_set_up_and_run_the_tests(clone: Path) -> None:
    output = run(first_command("Run the tests"), clone)
    assert re.search(r"\d+ passed", output)


def test_commands_are_where_this_file_expects_them() -> None:
    assert "colorized colorize" in first_command("COLORIZED")
    assert "make check" in first_command("Run the tests")
