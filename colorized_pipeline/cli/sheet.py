"""``colorized sheet``: photos side by side with their colours, to be looked at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

from .console import show
from .options import Checkpoint, Device, Guidance, Steps, command, named_checkpoint


@command
def sheet(
    photos: Annotated[
        list[str], typer.Argument(help="A folder of photos, or parquet files; grey or colour.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture; with several pages NAME-1, NAME-2, ...")],
    where: Annotated[
        str | None, typer.Option(help="COLUMN=VALUE: only these photos, e.g. source=utkface.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many photos.")] = None,
    edge: Annotated[int, typer.Option(min=16, help="Longer edge of each picture, pixels.")] = 400,
    per_page: Annotated[int, typer.Option(min=1, help="Photos on a page.")] = 8,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    checkpoint: Checkpoint = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="NAME=CHECKPOINT: its colours too. Repeatable.", show_default=False)
    ] = None,
    device: Device = None,
) -> None:
    r"""Show photos grey, colorized and, where they have colours, true, on pages large enough to judge faces.

    Needs `pip install 'colorized\[train]'`.
    """
    try:
        from ..training.sources import open_source
    except ImportError as error:
        raise ImportError(f"{error}; sheets need: pip install 'colorized[train]'") from error
    import torch

    from ..batch.sheets import in_rows
    from ..diffusion.color import lab_to_rgb, lightness_to_gray
    from ..loading import load_pipeline, quieten_libraries
    from ..training.index import NEARLY_GRAY
    from ..training.sources import decode_lab8

    quieten_libraries()
    source = open_source(photos)
    indices = list(range(len(source)))
    if where:
        column, _, value = where.partition("=")
        indices = [index for index in indices if source.labels(column, [index]) == [value]]
        if not indices:
            raise ValueError(f"--where {where}: no photo has {value!r} in column {column!r}")
    pipes = {name: load_pipeline(other, device=device) for name, other in map(named_checkpoint, beside or ())}
    pipes["COLORIZED"] = load_pipeline(checkpoint, device=device)
    pages = in_rows(indices[:limit], per_page)
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
        _paint(columns, names, edge=edge).save(target)
        show(str(target))


def _paint(columns: "dict[str, list[Tensor]]", names: list[str], *, edge: int) -> "Image":
    """A row a photo, sRGB ``[3, H, W]`` each; two photos in a row if there are only two columns."""
    from ..batch.sheets import in_rows, paint_sheet, to_image

    tiles, captions = [], []
    for name, *pictures in zip(names, *columns.values(), strict=True):
        height, width = (round(length * edge / max(pictures[0].shape)) for length in pictures[0].shape[-2:])
        tiles += [to_image(picture).resize((width, height)) for picture in pictures]
        captions += [name, *list(columns)[1:]]
    in_a_row = 4 if len(columns) == 2 else len(columns)
    return paint_sheet(in_rows(tiles, in_a_row), captions=in_rows(captions, in_a_row))
