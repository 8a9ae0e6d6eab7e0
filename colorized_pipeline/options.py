"""Options that several programs share, with limits and help: of a photo's colours, and what page and server take."""

from dataclasses import dataclass
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
        bool,
        typer.Option("--borders/--no-borders", help="Find plain mounts, padding and film edges, and leave them grey."),
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
            help="Also OUTPUT-uncertainty.png: how far off each place may be. Without --variants 8 are "
            "drawn and the most typical is written.",
        ),
    ] = False
    consensus: Annotated[
        Literal["mean", "medoid"] | None,
        typer.Option(help="Write one copy only: the variants' mean (cautious, pale), or the most typical (medoid)."),
    ] = None


Megapixels = Annotated[float, typer.Option(min=0.01, help="Largest photo taken; all pages of a TIFF count.")]


@dataclass(frozen=True)
class PageLimits:
    """What the page takes of a visitor."""

    max_megapixels: Megapixels = 40.0
    max_file_mb: Annotated[int, typer.Option(min=1, help="Largest file taken, megabytes.")] = 100
    max_photos: Annotated[int, typer.Option(min=1, help="Most photos in one batch.")] = 50
    queue: Annotated[int, typer.Option(min=1, help="Most jobs that wait; one runs at a time.")] = 20


@dataclass(frozen=True)
class ServerLimits:
    """What the server takes.

    Attributes:
        silence, upload: seconds without a byte, and until a request is whole.
        kept: seconds that a finished job is kept.
    """

    max_megapixels: Megapixels = 40.0
    max_mb: Annotated[int, typer.Option(min=1, help="Largest request, megabytes.")] = 256
    max_photos: Annotated[int, typer.Option(min=1, help="Most photos of a job.")] = 100
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longest work on a photo.")] = 600.0
    queue: Annotated[int, typer.Option(min=1, help="Most requests with photos at one time.")] = 64
    jobs: Annotated[int, typer.Option(min=1, help="Most jobs; a finished one is kept for an hour.")] = 20
    rate: Annotated[int, typer.Option(min=1, help="Most requests with photos a minute from one address.")] = 300
    silence: float = 30.0
    upload: float = 600.0
    kept: float = 3600.0
