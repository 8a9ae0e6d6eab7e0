"""``colorized evaluate`` and ``colorized sheet``: how good a checkpoint is, in numbers and to look at."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..evaluation.photos import PhotoSet
    from ..evaluation.report import Extent
    from ..training.sources import PhotoSource

from ..options import Guidance, Steps
from .console import show
from .options import Checkpoint, Device, Precision, command, named_checkpoint


@dataclass(frozen=True)
class Photos:
    """Photos."""

    split: Annotated[str, typer.Option(help="Split of a dataset on the Hub.")] = "test"
    group_column: Annotated[str | None, typer.Option(help="Column of labels for a table by label.")] = None
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first so many photos.")] = None
    resolution: Annotated[int, typer.Option(min=32, help="Edge of the central crop, pixels.")] = 128
    sharp: Annotated[
        bool,
        typer.Option(
            "--sharp", help="Scale the shorter side to the crop's edge, and leave out photos under twice that size."
        ),
    ] = False

    def read(self, photos: list[str]) -> "PhotoSet":
        """The photos, from disk or from the Hub."""
        from ..evaluation.photos import read_photos
        from ..training.sources import open_hub_source, open_source

        if any("*" in photo or Path(photo).exists() for photo in photos):
            source = open_source(photos)
        elif len(photos) == 1 and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", photos[0]):
            source = open_hub_source(photos[0], split=self.split)
        else:
            names = ", ".join(photos)
            raise ValueError(f"{names}: no such file or folder; or give the name of one dataset on the Hub")
        return read_photos(
            source,
            name=", ".join("/".join(Path(photo).parts[-2:]) for photo in photos),
            resolution=self.resolution,
            sharp=self.sharp,
            group_column=self.group_column,
            limit=self.limit,
            progress=True,
        )


@dataclass(frozen=True)
class Drawing:
    """Colours."""

    steps: Steps = None
    guidance: Guidance = None
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0
    precision: Annotated[
        Precision, typer.Option(help="Of the networks' arithmetic; bfloat16 is faster, and all but the same colours.")
    ] = "float32"


@dataclass(frozen=True)
class Measures:
    """What is measured."""

    beside: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CHECKPOINT: another checkpoint in the tables, e.g. twin=runs/twin/best. Repeatable."),
    ] = None
    own_code: Annotated[
        bool,
        typer.Option(
            "--own-code",
            help="Run the pipeline code in the folders of --beside, for checkpoints of another version. It is a "
            "program: only from folders you trust.",
        ),
    ] = False
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the checkpoints' rows, by Lite2 alone: to choose between them.")
    ] = False
    variants: Annotated[int, typer.Option(min=1, help="Colourings a photo, for the best of them and diversity.")] = 8
    variant_photos: Annotated[int, typer.Option(min=0, help="Photos for the variants; 0 leaves them out.")] = 64
    edge_photos: Annotated[int, typer.Option(min=0, help="Large photos whose edges are looked at; 0: none.")] = 32
    bound_photos: Annotated[int, typer.Option(min=0, help="Photos for the variational bound; 0: none.")] = 64
    film: Annotated[
        bool, typer.Option("--film/--no-film", help="Also colorize every photo as seen through an old film.")
    ] = True
    fid: Annotated[bool, typer.Option("--fid", help="Also standard FID; needs torch-fidelity and a network.")] = False

    def extent(self) -> "Extent":
        """The same as the evaluation takes it."""
        from ..evaluation.report import QUICK, Extent

        taken = Extent.__dataclass_fields__.keys() & vars(self).keys()
        return QUICK if self.quick else Extent(**{name: getattr(self, name) for name in taken})


@partial(command, extra="train,evaluate")
def evaluate(
    photos: Annotated[
        list[str], typer.Argument(help="Colour photos: a folder, parquet files, or a dataset on the Hub.")
    ],
    chosen: Photos,
    drawing: Drawing,
    measures: Measures,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.json, report.md and sheet.png.")],
    checkpoint: Checkpoint = None,
    write_cards: Annotated[
        list[Path] | None,
        typer.Option("--write-card", help="Model card or README whose figures are to be filled in; repeatable."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps photos' features for next time.")] = None,
    device: Device = None,
) -> None:
    """Measure a checkpoint on colour photos: distances, colours, faces, edges, uncertainty, beside its baselines."""
    from ..evaluation.report import evaluate as measure
    from ..evaluation.tables import write_card
    from ..loading import load_pipeline, load_with_own_code, quieten_libraries

    quieten_libraries()
    known = chosen.read(photos)
    pipe = load_pipeline(checkpoint, device=device)
    load = load_with_own_code if measures.own_code else load_pipeline
    named = dict(named_checkpoint(text) for text in measures.beside or ())
    beside = {name: load(other, device=device) for name, other in named.items()}
    for shown in (pipe, *beside.values()):
        shown.set_progress_bar_config(desc="denoising", leave=False)
    report = measure(
        pipe,
        known,
        steps=drawing.steps,
        guidance=drawing.guidance,
        seed=drawing.seed,
        precision=drawing.precision,
        extent=measures.extent(),
        beside=beside,
        cache=cache,
        on_part=lambda report: report.save(output),
    )
    for card in write_cards or ():
        write_card(card, report.figures)
    typer.echo((output / "report.md").read_text())


@partial(command, extra="train")
def sheet(
    photos: Annotated[list[str], typer.Argument(help="A folder of photos, or parquet files; grey or colour.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture; with several pages NAME-1, NAME-2, ...")],
    where: Annotated[str | None, typer.Option(help="COLUMN=VALUE: only these photos, e.g. source=utkface.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many photos.")] = None,
    edge: Annotated[int, typer.Option(min=16, help="Longer edge of each picture, pixels.")] = 400,
    per_page: Annotated[int, typer.Option(min=1, help="Photos on a page.")] = 8,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    checkpoint: Checkpoint = None,
    beside: Annotated[list[str] | None, typer.Option(help="NAME=CHECKPOINT: its colours too. Repeatable.")] = None,
    device: Device = None,
) -> None:
    """Show photos grey, colorized and, where they have colours, true, on pages large enough to judge faces."""
    import torch

    from ..batch.sheets import in_rows, paint_columns
    from ..diffusion.color import lab_to_rgb, lightness_to_gray
    from ..loading import load_pipeline, quieten_libraries
    from ..training.index import NEARLY_GRAY
    from ..training.sources import decode_lab8, open_source

    quieten_libraries()
    source = open_source(photos)
    pipes = {name: load_pipeline(other, device=device) for name, other in map(named_checkpoint, beside or ())}
    pipes["COLORIZED"] = load_pipeline(checkpoint, device=device)
    pages = in_rows(_choose(source, where)[:limit], per_page)
    for number, page in enumerate(pages, 1):
        labs = [decode_lab8(source.load(index)) for index in page]
        grays = [lightness_to_gray(lab[:1]).clamp(0, 1) for lab in labs]
        columns = {"grey": [gray.expand(3, -1, -1) for gray in grays]}
        for name, pipe in pipes.items():
            pipe.set_progress_bar_config(desc=f"page {number} of {len(pages)}", leave=False)
            generators = [torch.Generator().manual_seed(seed + index) for index in page]
            drawn = pipe(grays, steps, generators, guidance_scale=guidance, output_type="pt")
            columns[name] = drawn.images
        if max(lab[1:].norm(dim=0).mean() for lab in labs) >= NEARLY_GRAY:
            columns["true"] = [lab_to_rgb(lab).clamp(0, 1) for lab in labs]
        names = [f"{index} {Path(source.name(index)).name}" for index in page]
        target = output if len(pages) == 1 else output.with_stem(f"{output.stem}-{number}")
        target.parent.mkdir(parents=True, exist_ok=True)
        paint_columns(columns, names, edge=edge).save(target)
        show(str(target))


def _choose(source: "PhotoSource", where: str | None) -> list[int]:
    """Which photos ``--where`` asks for."""
    every = list(range(len(source)))
    if where is None:
        return every
    column, _, value = where.partition("=")
    chosen = [index for index in every if source.labels(column, [index]) == [value]]
    if not chosen:
        raise ValueError(f"--where {where}: no photo has {value!r} in column {column!r}")
    return chosen
