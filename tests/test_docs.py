"""The documents: the site builds, links lead somewhere, the README stays a door, examples are Python."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from colorized_pipeline.batch.settings import Settings
from colorized_pipeline.cli import app as cli
from colorized_pipeline.training.options import parse_options

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "colorized_pipeline/examples/*.md")
    for file in ROOT.glob(pattern)
)
NAMES = [str(file.relative_to(ROOT)) for file in DOCUMENTS]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(file: Path) -> set[str]:
    """Of a document's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "python" / "index.html").read_text()
    assert "num_inference_steps" in reference  # docstrings were found, not only their names


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    text = without_code(document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text):
        file, _, anchor = "".join(target).partition("#")
        if file.startswith(("https://", "http://", "mailto:")):
            continue
        linked = document.parent / file if file else document
        assert linked.is_file(), f"{document.name}: {''.join(target)} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{document.name}: {''.join(target)}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_python_examples_are_python(document: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S):
        compile(block, document.name, "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_no_placeholders(document: Path) -> None:
    assert not re.search(r"\bOWNER\b|@@|\bTODO\b", document.read_text(encoding="utf-8"))


def test_the_reference_names_what_a_label_says() -> None:
    settings = Settings("", "", steps=3, guidance=1.0, working_size=128, known=("red",), tied_to=("a.jpg",))
    label = replace(settings, hints=(((1, 2, 3), "red"),), reference=ROOT / "README.md").label()
    text = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| `colorized:*`")]
    assert len(label) >= 12 and not {name for name in label if not re.search(rf"\b{name}\b", row)}


def test_readme_is_a_door() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    assert len(text.split()) <= 1200
    first_screen = "\n".join(text.splitlines()[:20])
    assert "colorized colorize" in first_screen and "docs/pictures/results.jpg" in first_screen


def test_every_page_is_reached_from_the_readme() -> None:
    """By links from page to page, so that nothing is written that nobody finds."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        document = ahead.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        for target in re.findall(r"\]\(([^)#\s]+)", without_code(document.read_text(encoding="utf-8"))):
            if "://" not in target:
                ahead.append((document.parent / target).resolve())
    pages = {file for file in DOCUMENTS if file.is_relative_to(ROOT / "docs")} - {ROOT / "docs" / "index.md"}
    assert not {str(page.relative_to(ROOT)) for page in pages - reached}


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_how_to_is_one_step_from_the_first_page(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not [file.name for file in (ROOT / "docs/how-to").glob("*.md") if f"how-to/{file.name})" not in text]


def test_what_users_can_have_is_told(our_options: dict[str, set[str]]) -> None:
    """Each extra of the package where it is installed, and each command in the list of what is new."""
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert extras
    names = set(re.findall(r"^(\w+) = ", extras[1], re.MULTILINE)) - {"test", "figures"}  # of those who work on it
    install = " ".join(re.findall(r"'\.\[(.*?)\]'", (ROOT / "docs/how-to/install.md").read_text()))
    assert len(names) >= 11 and not names - set(re.findall(r"\w+", install))
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert not [name for name in our_options if name and f"`colorized {name}`" not in changes]


OTHERS = {  # options of programs that aren't ours
    *("--nproc_per_node", "--standalone", "--multi_gpu", "--num_processes", "--num_machines", "--machine_rank"),
    *("--main_process_ip", "--main_process_port", "--cpu", "--dynamo_backend", "--no-deps", "--array", "--gres"),
    *("--help", "--from", "--spec", "--with", "--index", "--pip-args", "--extra-index-url"),  # of uv and pipx
    *("--strip-components", "--head", "--address", "--target", "--rm", "--gpus", "--hypothesis-profile"),
}


@pytest.fixture(scope="module")
def our_options() -> dict[str, set[str]]:
    """Of each command of ``colorized``; under "" those of every command and script."""
    commands = typer.main.get_command(cli)
    found = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.commands.items()  # type: ignore[attr-defined]
    }
    with redirect_stdout(io.StringIO()) as help_text, pytest.raises(SystemExit):
        parse_options(["--help"])
    scripts = [
        file.read_text() for folder in ("scripts", "benchmarks", "tests") for file in (ROOT / folder).glob("*.py")
    ]
    found[""] = set().union(*found.values(), *(parameter.opts for parameter in commands.params))
    found[""] |= set(re.findall(r"--[a-z0-9][\w-]*", help_text.getvalue()))
    found[""] |= set(re.findall(r'"(--[a-z0-9][\w-]*)"', "\n".join(scripts)))
    return found


# What a log says of a run was true at that time
@pytest.mark.parametrize(
    "document", [file for file in DOCUMENTS if file.name not in ("training_log.md", "CHANGELOG.md")]
)
def test_options_in_documents_exist(document: Path, our_options: dict[str, set[str]]) -> None:
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("Settled by"):  # a script as it was once
            continue
        command = re.match(r"colorized (\w+) ", line)
        known = our_options[command[1]] if command else our_options[""] | OTHERS
        for option in re.findall(
            r"(?<![\w-])--[a-z0-9][\w-]*", re.sub(r"<!--|-->|#.*" if command else r"<!--|-->", "", line)
        ):
            assert option in known, f"{document.name}: {option} in {line!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_files_that_are_named_exist(document: Path) -> None:
    """Of the project's own folders; what `git show` prints was there once."""
    text = re.sub(r"git show \S+", "", document.read_text(encoding="utf-8"))
    for name in re.findall(r"\b(?:docs|scripts|tests|benchmarks|colorized_pipeline)/[\w./-]*\w\.\w+", text):
        assert (ROOT / name).exists(), f"{document.name}: {name}"
