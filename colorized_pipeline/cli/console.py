"""What the commands say, and how they end."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


@contextmanager
def errors_in_one_line(*, when_interrupted: str) -> Iterator[None]:
    """An error that a user can act on is one line and exit status 2; Ctrl-C is one line and exit status 130."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        say(f"Error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say(when_interrupted)
        raise typer.Exit(INTERRUPTED) from None


def say(message: str) -> None:
    """One line to the user on standard error, above a progress bar if there is one."""
    line = printable(message)
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=typer.get_text_stream("stderr"))
    else:
        typer.echo(line, err=True)


def show(text: str) -> None:
    """One line of a result on standard output."""
    typer.echo(printable(text))


def printable(text: str) -> str:
    """On one line, and without what a terminal can't show or would obey: file names may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def silence_image_warnings() -> None:
    """What Pillow warns of in a damaged file is said by one line of ours."""
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
