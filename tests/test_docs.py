"""The documents: the site builds, links lead somewhere, the README stays a door, examples are Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
