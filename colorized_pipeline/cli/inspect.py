"""``colorized inspect``: what a photo's label says, and whether the scan is still in it."""

from pathlib import Path
from typing import Annotated

import typer

from .console import say, show
from .options import command


@command
def inspect(
    photo: Annotated[Path, typer.Argument(help="A photo, colorized or not.")],
    gray: Annotated[
        Path | None, typer.Option(help="Write the photo's lightness as a grey PNG or TIFF: what the scan showed.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="The scan it was made from: compare its hash and its lightness.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that --gray names.")] = False,
) -> None:
    """Print what a photo's label says: made by a model or not, from which file, how. Exit status 1 without a label."""
    from ..archive.inspection import describe

    label = describe(photo)
    for name, text in label.items():
        show(f"{name}: {text}")
    if source:
        from ..archive.inspection import compare_with_source

        for line in compare_with_source(photo, label, source):
            show(line)
    if gray:
        from ..archive.inspection import restore_gray

        if gray.exists() and not overwrite:
            raise ValueError(f"{gray} exists; add --overwrite to replace it")
        restore_gray(photo, gray)
        show(f"lightness written into {gray}")
    if not label:
        say(f"{photo}: no label; this isn't a colour copy made by COLORIZED, or its label was removed")
        raise typer.Exit(1)
