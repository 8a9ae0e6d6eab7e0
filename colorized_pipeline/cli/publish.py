"""``colorized publish``: a web site of colour copies beside their scans."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .console import errors_in_one_line, say, show
from .options import command


@partial(command, extra="publish")
def publish(
    colors: Annotated[Path, typer.Argument(help='Output folder of "colorized colorize".', file_okay=False)],
    source: Annotated[Path, typer.Option(help="Folder of the scans that the colours were made from.")],
    base_url: Annotated[
        str, typer.Option(help="Address that the site will have, such as https://archive.example/photos.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the site: new, or of a site before.")],
    title: Annotated[str, typer.Option(help="Title of the site.")] = "Photographs with colours by a model",
    rights: Annotated[
        str | None,
        typer.Option(
            help="URI of a licence or rights statement, for photos whose metadata name none: of creativecommons.org "
            "or rightsstatements.org."
        ),
    ] = None,
) -> None:
    """Write a web site: grey and colours to choose from, by IIIF, with the note that the colours are a model's.

    It needs no program on the server and no network. Photos whose scan isn't found are named, the others go on, and
    the exit status is 1.
    """
    from tqdm import tqdm

    from ..publish.manifests import rights_uri
    from ..publish.results import find_results
    from ..publish.site import check_base_url, publish_site

    check_base_url(base_url)
    rights = rights_uri(rights) if rights else None
    for folder in (colors, source):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    if output.resolve().is_relative_to(colors.resolve()):
        raise ValueError(f"{output}: inside {colors}, whose photos are published; choose another folder")
    results, problems = find_results(colors, source)
    if not results:
        raise ValueError(f"{problems[0]}; give the folder of the scans with --source")
    stopped = errors_in_one_line(when_interrupted="Interrupted; run the same command again to go on")
    with stopped, tqdm(total=len(results), desc="photos", unit="photo") as bar:
        canvases, faults = publish_site(
            results, output, base_url=base_url, title=title, rights=rights, on_photo=lambda: bar.update()
        )
    problems += faults
    for problem in problems:
        say(f"Error: {problem}")
    show(f"{len(results) - len(faults)} photos ({canvases} pages) published in {output}")
    show(f"To look at them: python -m http.server -d {output}")
    if problems:
        raise typer.Exit(1)
