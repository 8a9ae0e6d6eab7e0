"""The folders: imports run downward, no folder is crowded, and a photo's way goes down with few ways back up."""

import ast
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data

from colorized_pipeline.archive.files import Job
from colorized_pipeline.batch.manifest import Manifest
from colorized_pipeline.batch.overlap import Batch
from colorized_pipeline.batch.settings import build_settings

PACKAGE = Path(__file__).parents[1] / "colorized_pipeline"
# Each folder and what it may import; what lies at the top may import all
MAY_IMPORT = {
    "diffusion": set(),
    "archive": {"diffusion"},
    "sets": {"diffusion", "archive"},
    "batch": {"diffusion", "archive", "sets"},
    "publish": {"diffusion", "archive", "batch"},
    "training": {"diffusion", "loading"},
    "evaluation": {"diffusion", "archive", "batch", "training"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def folder_of(module: Path) -> str:
    """The folder of a module inside the package; empty at the top."""
    parts = module.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported_folders(module: Path) -> set[str]:
    """What a module imports of this package, anywhere in it: folders, modules at the top; empty for the package."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.parent
            for _ in range(node.level - 1):
                base = base.parent
            targets = [base.joinpath(*(node.module or "").split("."))]
            targets += [] if node.module else [base / alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("colorized_pipeline"):
            targets = [PACKAGE.parent.joinpath(*node.module.split("."))]  # type: ignore[union-attr]
        else:
            continue
        for target in targets:
            first = target.relative_to(PACKAGE).parts[:1]
            if first != ("_version",):
                found.add(first[0] if first else "")
    return found


def imported_files(module: Path) -> set[Path]:
    """The modules of this package that a module imports anywhere in it: those that stand in ``from ... import``."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {base.with_suffix(".py"), *((base / alias.name).with_suffix(".py") for alias in node.names)}
    return found & set(MODULES)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_downward(folder: str) -> None:
    assert {one for one in map(folder_of, MODULES) if one} == {*MAY_IMPORT, "cli"}
    wrong = {
        f"{module.relative_to(PACKAGE)} imports from {other or 'the package itself'}"
        for module in (PACKAGE / folder).rglob("*.py")
        for other in imported_folders(module) - {folder} - MAY_IMPORT[folder]
    }
    assert not wrong


def test_no_modules_import_each_other() -> None:
    imports = {module: imported_files(module) for module in MODULES if module.name != "__init__.py"}
    circles = {
        " <-> ".join(sorted((one.stem, other.stem)))
        for one, others in imports.items()
        for other in others
        if one in imports.get(other, ())
    }
    assert not circles


def test_functions_are_short() -> None:
    """None over 90 lines, at most three over 60: those that go through a photo's whole way, step by step."""
    root = PACKAGE.parent
    files = [*MODULES, *root.glob("*.py"), *(root / "scripts").glob("*.py"), *(root / "benchmarks").glob("*.py")]
    lengths = {
        f"{file.relative_to(root)}: {node.name}": node.end_lineno - node.lineno + 1  # type: ignore[operator]
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    long = {name: length for name, length in lengths.items() if length > 60}
    assert len(lengths) > 500 and len(long) <= 3 and max(lengths.values()) <= 90, long


def test_the_check_sees_imports() -> None:
    assert imported_folders(PACKAGE / "batch" / "overlap.py") >= {"archive", "diffusion"}


def test_no_folder_is_crowded() -> None:
    folders = {module.parent for module in MODULES}
    assert {folder.name: count for folder in folders if (count := len(list(folder.glob("*.py")))) > 9} == {}


def imported_modules(module: str) -> set[str]:
    """Modules of the package that a loaded module's names come from, and theirs in turn."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        names = vars(sys.modules[waiting.pop()]).values()
        origins = {getattr(value, "__module__", None) or getattr(value, "__name__", None) for value in names}
        new = {one for one in origins if isinstance(one, str) and one in sys.modules} - found
        new = {one for one in new if one.startswith("colorized_pipeline.")}
        found |= new
        waiting += new
    return found - {module}


def test_a_photo_s_way_goes_down(tmp_path: Path) -> None:
    """Every call from module to module while a photo is read, drawn and written with all that can come of it.

    A climb is a call of what stands higher, by way of a callback or a generator of its.
    """
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save(tmp_path / "grey.png")
    calls: set[tuple[str, str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        callee, caller = frame.f_globals.get("__name__", ""), frame.f_back
        if event != "call" or not callee.startswith("colorized_pipeline."):
            return
        while caller and not caller.f_globals.get("__name__", "").startswith("colorized_pipeline."):
            caller = caller.f_back
        if caller and (name := caller.f_globals["__name__"]) != callee:
            calls.add((name, callee, frame.f_code.co_qualname if sys.version_info >= (3, 11) else ""))

    pipe = make_pipeline(encoder=True)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with Manifest(tmp_path / "out") as manifest:
            settings = build_settings(pipe, checkpoint="-", variants=2, uncertainty=True)
            batch = Batch(pipe, settings, output=tmp_path / "out", manifest=manifest)
            jobs = [Job(tmp_path / "grey.png", tmp_path / "out" / "a.tif", Path("grey.png"))]
            assert [outcome.state for outcome in batch.run(jobs)] == ["done"]
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    climbs = sorted(call for call in calls if call[0] in imported_modules(call[1]))
    assert len(climbs) <= 4, climbs
    assert max(Counter(callee for _, callee, _ in climbs).values(), default=0) <= 3, climbs
    assert len(calls) > 20
