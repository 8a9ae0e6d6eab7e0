"""The ``colorized`` command: a module for each theme. None of them imports torch before a command works with it."""

import os
import sys
from typing import Annotated

import typer

from .._version import __version__
from . import checkpoints, colorize, evaluate, inspect, publish, web
from .console import INTERRUPTED, end_by_signals

app = typer.Typer(no_args_is_help=True)


def main() -> None:
    """Entry point of the console script."""
    end_by_signals()
    try:
        app()
    except SystemExit as stop:
        if stop.code in INTERRUPTED:
            # Without Python's shutdown: a library's thread that is still at work would sometimes abort it (status -6)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"colorized {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Plausible colours for grey photographs, by conditional diffusion. The colours are invented: label them.

    Exit status: 0 all is done; 1 some photos couldn't be done, and are named; 2 nothing was begun, and why is
    said; 130 interrupted by Ctrl-C, 143 by SIGTERM. NO_COLOR turns the colours of messages off.
    """


_PHOTOS, _CHECKPOINTS = "Photographs", "Checkpoints"
app.command(rich_help_panel=_PHOTOS)(colorize.colorize)
app.command(rich_help_panel=_PHOTOS)(inspect.inspect)
app.command(rich_help_panel=_PHOTOS)(publish.publish)
app.command("app", rich_help_panel=_PHOTOS)(web.serve_page)
app.command("serve", rich_help_panel=_PHOTOS)(web.serve_api)
app.command(rich_help_panel=_CHECKPOINTS)(evaluate.evaluate)
app.command(rich_help_panel=_CHECKPOINTS)(evaluate.sheet)
app.command(rich_help_panel=_CHECKPOINTS)(checkpoints.push)
app.command(rich_help_panel=_CHECKPOINTS)(checkpoints.export)
app.command(rich_help_panel=_CHECKPOINTS)(checkpoints.package)
app.command("convert-encoder", rich_help_panel=_CHECKPOINTS)(checkpoints.convert_encoder)
