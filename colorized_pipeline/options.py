"""What may be asked for of a photo's colours, with limits and help: the command's options, and the server's form."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

Steps = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Denoising steps; the checkpoint's default if not given.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=20.0,
        help="Guidance scale: above 1 colours are surer and stronger, at twice the time. The checkpoint's default if "
        "not given.",
    ),
]


@dataclass(frozen=True)
class Colors:
    """Colours."""

    steps: Steps = None
    guidance: Guidance = None
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Another seed gives other plausible colours. A photo's own seed comes from it and its content."
        ),
    ] = 0
    intensity: Annotated[float, typer.Option(min=0.0, max=10.0, help="Factor on chroma: 0 grey, 1 as drawn.")] = 1.0
    working_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=1024,
            help="Shorter side at which the network reads the photo, pixels; time grows with its square. The "
            "checkpoint's (128) by default; from 160 to 192 colours move little more than with another seed.",
        ),
    ] = None
    borders: Annotated[
        bool, typer.Option("--borders/--no-borders", help="Find plain mounts and padding, and leave them grey.")
    ] = True


@dataclass(frozen=True)
class Variants:
    """Variants."""

    variants: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Different colourings of each photo, seeds counted up: OUTPUT-1 is the most typical, the last the "
            "least, OUTPUT-variants.jpg shows all with their seeds.",
        ),
    ] = None
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also OUTPUT-uncertainty.png: how far the variants differ in each place. Without --variants 8 are "
            "drawn and the most typical is written.",
        ),
    ] = False
    consensus: Annotated[
        Literal["mean", "medoid"] | None,
        typer.Option(help="Write one copy only: the variants' mean (cautious, pale), or the most typical (medoid)."),
    ] = None

    def results(self) -> Callable[[Path], list[Path]]:
        """All files that come of a photo, given what its result is called."""
        from .archive.files import result_files
        from .batch.settings import choose_variants

        drawn, kept = choose_variants(**vars(self))
        return partial(result_files, copies=1 if kept else drawn, uncertainty=self.uncertainty)
