"""The notebook, executed from top to bottom without a network, on the shipped checkpoint."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image
from test_train_script import ROOT

NOTEBOOK = ROOT / "notebooks" / "colorize_your_photo.ipynb"


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(
    committed: nbformat.NotebookNode, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nbformat.NotebookNode, Path]:
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}.items():
            patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        notebook = nbformat.from_dict(committed)
        client = nbclient.NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(folder)}})
        return client.execute(), folder


def pictures(notebook: nbformat.NotebookNode, cell_id: str) -> int:
    cell = next(cell for cell in notebook.cells if cell["id"] == cell_id)
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_runs_offline_from_top_to_bottom(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    notebook, folder = executed
    assert [pictures(notebook, name) for name in ("colorize", "variants", "intensity", "forward", "reverse")] == [
        *(1, 1, 1, 1, 2),
    ]
    with Image.open(folder / "camera-colour.png") as image:
        assert image.size == (512, 512) and image.mode == "RGB"
        assert "invented by COLORIZED" in image.info["Description"]


def test_no_package_is_installed_where_it_is_there(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    notebook, _ = executed
    assert next(cell for cell in notebook.cells if cell["id"] == "install")["outputs"] == []


def test_committed_without_outputs(committed: nbformat.NotebookNode) -> None:
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
