"""Write the reference of the command line out of the command itself: docs/reference/cli.md.

python scripts/make_cli_reference.py
"""

import re
from pathlib import Path
from typing import Any

import typer

from colorized_pipeline.cli import app

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"


def reference() -> str:
    """The page: every command with its arguments and options, by panels of its help."""
    program: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        "<!-- Written by scripts/make_cli_reference.py: change the help texts in the code instead. -->",
        _prose(program.help),
        _table("Options of `colorized` itself", program.params, typer.Context(program)),
    ]
    for name, command in program.commands.items():
        parts += [f"## colorized {name}", _prose(command.help)]
        context = typer.Context(command, info_name=name)
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(parameter.rich_help_panel or default, []).append(parameter)
        parts += [_table(title, parameters, context) for title, parameters in panels.items()]
    return "\n\n".join(parts) + "\n"


def _prose(text: str) -> str:
    paragraphs = (" ".join(part.split()) for part in text.replace("\\[", "[").split("\n\n"))
    return "\n\n".join(paragraphs)


def _table(title: str, parameters: list[Any], context: Any) -> str:
    rows = [f"| {title} | |", "| --- | --- |"]
    for parameter in parameters:
        names, text = parameter.get_help_record(context)
        rows.append(f"| `{_cell(names)}` | {_cell(_escaped(text))} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Without meaning for Markdown: templates' braces, brackets and angles."""
    return re.sub(r"([<>*_\[\]{}])", r"\\\1", text)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
