"""The reference of the command line is the command's own, and leaves nothing out."""

import importlib.util
from typing import Any

import typer
from test_train_script import ROOT

from colorized_pipeline.cli import app

spec = importlib.util.spec_from_file_location("make_cli_reference", ROOT / "scripts" / "make_cli_reference.py")
assert spec and spec.loader
make_cli_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_cli_reference)


def test_the_reference_is_current() -> None:
    written = make_cli_reference.TARGET.read_text(encoding="utf-8")
    assert written == make_cli_reference.reference(), "run scripts/make_cli_reference.py"


def test_every_command_and_option_is_explained() -> None:
    program: Any = typer.main.get_command(app)
    page = make_cli_reference.TARGET.read_text(encoding="utf-8")
    for name, command in program.commands.items():
        assert f"## colorized {name}\n" in page and command.help and command.rich_help_panel, name
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name}"
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert option in page, f"{name}: {option}"


def test_options_stand_in_panels_by_theme() -> None:
    program: Any = typer.main.get_command(app)
    panels = {one.name: one.rich_help_panel for one in program.commands["colorize"].params}
    assert panels["steps"] == panels["borders"] == "Colours" and panels["checkpoint"] == "The network and what runs it"
    assert [name for name, panel in panels.items() if panel is None] == ["photos"]
