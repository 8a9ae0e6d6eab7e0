"""The folders: imports run downward, no folder is crowded, and a photo's way goes down with few ways back up."""

import ast
import io
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL.Image import Image
from PIL.ImageDraw import ImageDraw
from torch import Tensor

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
    "embed": {"diffusion", "archive"},
}
# Names of methods that say nothing about whose they are
FOREIGN = {name for kind in (str, list, dict, set, io.BytesIO, Path, Tensor, Image, ImageDraw) for name in dir(kind)}
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


def test_documents_name_the_rooms() -> None:
    """Each folder's own words, and the table of CONTRIBUTING.md, say what it may import."""
    table = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| `colorized_pipeline/(\w+)/` \|.*\| ([^|]+) \|$", table, re.MULTILINE))
    assert rows.pop("cli") == "all rooms"
    assert {folder: set(re.findall(r"`(\w+)", row)) for folder, row in rows.items()} == MAY_IMPORT
    said = {folder: (PACKAGE / folder / "__init__.py").read_text().partition("May import")[2] for folder in MAY_IMPORT}
    assert {folder: set(re.findall(r"``(\w+)``", text)) for folder, text in said.items()} == MAY_IMPORT


def test_nothing_imports_the_command() -> None:
    outside = [module.name for module in MODULES if folder_of(module) != "cli" and "cli" in imported_folders(module)]
    assert outside == ["__main__.py"]


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


class Way:
    """A photo's way through the package, read from the code: each call that gets the photo, or what is made of it.

    Calls are taken in the order of the code, each function's own calls where it is first met. A call is followed if
    its name says which function it is: one of the module or imported, a method of ``self``, or a method's name that
    only one class has.

    Attributes:
        stays: the modules that it enters, one after the other.
    """

    def __init__(self, root: Path, start: str, method: str, parameter: str) -> None:
        self.stays: list[str] = []
        self._met: set[tuple[str, str]] = set()
        self._functions: dict[tuple[str, str], ast.FunctionDef] = {}  # by module and name, a method's as Class.name
        self._imported: dict[str, dict[str, str]] = {}  # by module: from which module a name comes
        for file in root.rglob("*.py"):
            module, tree = file.relative_to(root).as_posix(), ast.parse(file.read_text())
            self._imported[module] = {
                alias.name: (file.parents[node.level - 1] / (node.module or "").replace(".", "/"))
                .with_suffix(".py")
                .relative_to(root)
                .as_posix()
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.level and node.module
                for alias in node.names
            }
            for node in tree.body:
                members = node.body if isinstance(node, ast.ClassDef) else [node]
                prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                for one in members:
                    if isinstance(one, ast.FunctionDef):
                        self._functions[module, prefix + one.name] = one
        self._enter((start, method), {parameter})

    def climbs(self) -> list[str]:
        """Steps from a folder to one that stands higher."""
        heights = [list(MAY_IMPORT).index(stay.split("/")[0]) for stay in self.stays]
        steps = zip(self.stays, heights, self.stays[1:], heights[1:], strict=False)
        return [f"{one} -> {other}" for one, height, other, higher in steps if height < higher]

    def entries(self) -> Counter[str]:
        """How often a module is entered. How the modules of a lower folder share their work is their own affair."""
        steps = zip(["", *self.stays], self.stays, strict=False)
        return Counter(
            after
            for before, after in steps
            if after.startswith("batch/") or before.split("/")[0] != after.split("/")[0]
        )

    def _enter(self, function: tuple[str, str], known: set[str]) -> None:
        """Come into a function in which the photo has these names."""
        if self.stays[-1:] != [function[0]]:
            self.stays.append(function[0])
        if function not in self._met:
            self._met.add(function)
            for statement in self._functions[function].body:
                self._read(statement, function, known)

    def _read(self, node: ast.AST, function: tuple[str, str], known: set[str]) -> None:
        """Follow a piece of code in the order in which it runs; what gets a value made of the photo is known then."""
        value = getattr(node, "iter", getattr(node, "value", getattr(node, "context_expr", None)))
        targets = [getattr(node, name, None) for name in ("target", "optional_vars")] + getattr(node, "targets", [])
        children = list(ast.iter_child_nodes(node))
        if hasattr(node, "generators"):  # of a comprehension these come first
            children = [*node.generators, *(child for child in children if child not in node.generators)]
        if isinstance(value, ast.AST) and any(targets):
            self._read(value, function, known)
            if _names(value) & known:
                known |= set().union(*(_names(target) for target in targets if target)) - {"self"}
            children = [child for child in children if child is not value]
        for child in children:
            self._read(child, function, known)
        if isinstance(node, ast.Call) and (callee := self._find(node.func, function)):
            parameters = [one.arg for one in self._functions[callee].args.args]
            receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
            values = [receiver, *node.args] if "." in callee[1] else node.args
            given = dict(zip(parameters, values, strict=False)) | {one.arg: one.value for one in node.keywords}
            if passed := {name for name, value in given.items() if name and value and _names(value) & known}:
                self._enter(callee, passed)

    def _find(self, called: ast.expr, function: tuple[str, str]) -> tuple[str, str] | None:
        module, name = function
        if isinstance(called, ast.Name):
            home = self._imported[module].get(called.id, module)
            choices = [(home, called.id), (home, f"{called.id}.__init__")]
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "self":
            choices = [(module, f"{name.split('.')[0]}.{called.attr}")]
        elif isinstance(called, ast.Attribute):
            choices = [key for key in self._functions if key[1].endswith(f".{called.attr}")]
            choices = choices if len(choices) == 1 and called.attr not in FOREIGN else []
        else:
            choices = []
        return next((key for key in choices if key in self._functions), None)


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def test_a_photo_s_way_goes_down() -> None:
    """From the batch's write to the files: few steps back up, and no module is entered again and again."""
    way = Way(PACKAGE, "batch/results.py", "Writer.write", "photo")
    assert {"archive/copies.py", "archive/files.py", "diffusion/hints.py", "batch/sheets.py"} <= set(way.stays)
    assert len(way.climbs()) <= 4, way.climbs()
    assert max(way.entries().values()) <= 3, way.entries()


def test_the_way_sees_climbs(tmp_path: Path) -> None:
    code = """
from ..diffusion.low import low
class Writer:
    def write(self, photo):
        small = low(photo)
        self.put(small)
        self.put(low(small))
        low("another")
    def put(self, small):
        pass
"""
    for name, text in (("batch/high.py", code), ("diffusion/low.py", "def low(photo): return photo")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    way = Way(tmp_path, "batch/high.py", "Writer.write", "photo")
    assert way.stays == ["batch/high.py", "diffusion/low.py"] * 2 + ["batch/high.py"]
    assert len(way.climbs()) == 2 and way.entries()["batch/high.py"] == 3
