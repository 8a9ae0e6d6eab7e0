"""The ``colorized`` command."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from tqdm.auto import tqdm

from . import DEFAULT_CHECKPOINT, ColorizationPipeline, __version__
from .files import find_photos, plan_outputs, refuse_output, save_photo
from .hub import loading_reason

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Plausible colours for grey photographs.")


def main() -> None:
    """Entry point of the console script."""
    app()


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
    """Plausible colours for grey photographs, by conditional diffusion. The colours are invented: label them."""


@app.command()
def colorize(
    photos: Annotated[list[Path], typer.Argument(help="Photo files, or folders of photos.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Result file (for one photo) or folder, made if needed.", show_default=False
        ),
    ],
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps; the checkpoint's default if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other plausible colours.")] = 0,
    intensity: Annotated[float, typer.Option(min=0.0, max=10.0, help="Factor on chroma: 0 grey, 1 as drawn.")] = 1.0,
    working_size: Annotated[
        int | None,
        typer.Option(min=16, max=1024, help="Shorter side at which the network reads the photo, pixels."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest there is if not given.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Pipeline folder or Hub name; the one in the package if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist already.")] = False,
) -> None:
    """Colorize photos: same size, same lightness, same file format unless OUTPUT names another.

    A photo that can't be done is named with the reason, the others go on, and the exit status is 1.
    """
    try:
        found = find_photos(photos)
        targets = plan_outputs(found, output, inputs=photos)
        pipe = _load_pipeline(checkpoint, device)
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None

    pipe.set_progress_bar_config(disable=len(found) > 1, desc="denoising", leave=False)
    started, failed = time.monotonic(), 0
    taken: set[Path] = set()
    for photo, target in tqdm(
        list(zip(found, targets, strict=True)), desc="photos", unit="photo", disable=len(found) == 1
    ):
        try:
            refuse_output(target, photos=found, taken=taken, overwrite=overwrite)
            # Each photo has the seed to itself, so that its result doesn't depend on its neighbours.
            generator = torch.Generator().manual_seed(seed)
            result = pipe(
                photo, num_inference_steps=steps, generator=generator, intensity=intensity, working_size=working_size
            ).images[0]
            save_photo(result, target)
            taken.add(target.resolve())
        except (OSError, ValueError, MemoryError, Image.DecompressionBombError) as error:
            failed += 1
            reason = str(error) or type(error).__name__
            tqdm.write(f"Error: {reason if str(photo) in reason else f'{photo}: {reason}'}", file=_stderr())

    done, seconds = len(found) - failed, time.monotonic() - started
    where = targets[0] if len(found) == 1 else output
    summary = f"{done} of {len(found)} photos colorized into {where} in {seconds:.1f} s"
    typer.echo(summary + (f"; {failed} failed" if failed else ""))
    if failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    photos: Annotated[
        list[str],
        typer.Argument(help="Colour photos: a folder, parquet files, or a dataset on the Hub.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.json, report.md and sheet.png.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Pipeline folder or Hub name; the one in the package if not given.")
    ] = None,
    twin: Annotated[
        str | None, typer.Option(help="A checkpoint to stand beside it in the table, e.g. a regression twin.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset on the Hub.")] = "test",
    group_column: Annotated[str | None, typer.Option(help="Column of labels for a table by label.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first so many photos.")] = None,
    resolution: Annotated[int, typer.Option(min=32, help="Edge of the central crop, pixels.")] = 128,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps; the checkpoint's default if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    variants: Annotated[int, typer.Option(min=1, help="Colourings a photo, for the best of them and diversity.")] = 8,
    variant_photos: Annotated[int, typer.Option(min=0, help="Photos for the variants; 0 leaves them out.")] = 64,
    bound_photos: Annotated[int, typer.Option(min=0, help="Photos for the variational bound; 0: none.")] = 64,
    film: Annotated[bool, typer.Option(help="Also colorize every photo as seen through an old film.")] = True,
    fid: Annotated[bool, typer.Option("--fid", help="Also standard FID; needs torch-fidelity and a network.")] = False,
    write_cards: Annotated[
        list[Path] | None,
        typer.Option("--write-card", help="Model card or README whose figures are to be filled in; repeatable."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps true photos' features for next time.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest there is if not given.")] = None,
) -> None:
    """Measure a checkpoint on colour photos: distances, colour errors, doubt and bound, beside its baselines.

    Needs ``pip install 'colorized[train,evaluate]'``.
    """
    try:
        from .data import ColorizationDataset, open_hub_source, open_source
        from .report import Extent, write_card
        from .report import evaluate as measure

        local = any("*" in photo or Path(photo).exists() for photo in photos)
        source = open_source(photos) if local else open_hub_source(photos[0], split=split)
        pipe = _load_pipeline(checkpoint, device)
        others = {"twin": _load_pipeline(twin, device)} if twin else None
        dataset = ColorizationDataset(
            source,
            resolution=resolution,
            luma_factor=pipe.config.luma_factor,
            augment=False,
            indices=None if limit is None else range(min(limit, len(source))),
            progress=True,
        )
        groups = source.labels(group_column, dataset.kept) if group_column else None
        report = measure(
            pipe,
            dataset,
            name=", ".join(Path(photo).name for photo in photos),
            steps=steps,
            seed=seed,
            extent=Extent(variants=variants, variant_photos=variant_photos, bound_photos=bound_photos, film=film),
            groups=groups,
            others=others,
            fid=fid,
            cache=cache,
        )
        report.save(output)
        for card in write_cards or ():
            write_card(card, report.figures)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo((output / "report.md").read_text())


def _stderr() -> object:
    return typer.get_text_stream("stderr")


def _load_pipeline(checkpoint: str | None, device: str | None) -> ColorizationPipeline:
    """The pipeline on its device. Raises ``OSError``, ``ValueError`` or ``RuntimeError`` with a message for users."""
    _quieten_libraries()
    source = checkpoint or str(DEFAULT_CHECKPOINT)
    chosen = device or _best_device()
    try:
        pipe = ColorizationPipeline.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {source} can't be loaded: {loading_reason(error, source)}") from error
    try:
        return pipe.to(chosen)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"device {chosen!r} can't be used here ({error}); try --device cpu") from error


def _quieten_libraries() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="Pipeline folder, e.g. runs/mine/best.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: user/name.", show_default=False)],
    card: Annotated[
        Path | None,
        typer.Option(help="Model card, with {{ repo_id }} for the repository's name; made from the run if not given."),
    ] = None,
    photo: Annotated[
        list[Path] | None,
        typer.Option(
            help="Photo for the sample picture; may be repeated. Default: the run's newest contact sheet, or "
            "the package's example photos."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository for its owner only.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Add to a repository that has files; its history keeps them.")
    ] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload colorization pipeline",
) -> None:
    """Publish a checkpoint on the Hugging Face Hub: weights, code, model card and a sample picture, in one commit.

    Log in first: `hf auth login`, or set HF_TOKEN. Three ways load it then; the card shows them.
    """
    from . import EXAMPLES, hub

    _quieten_libraries()
    try:
        hub.check_repo_id(repo_id)
        photos = photo or []
        with tempfile.TemporaryDirectory(prefix="colorized-push-") as name:
            folder = Path(name)
            picture = None if photos else hub.training_picture(checkpoint)
            caption = hub.SHEET_CAPTION if picture else hub.SEEDS_CAPTION
            facts = hub.training_facts(checkpoint)
            pipe = hub.stage(checkpoint, folder, repo_id=repo_id, caption=caption, card=card, training=facts)
            advice = "add --overwrite to put this pipeline in their place, or choose another name"
            hub.open_repo(repo_id, private=private, advice_if_used=None if overwrite else advice)
            pipe.set_progress_bar_config(disable=True)
            hub.add_picture(folder, picture or hub.sample_picture(pipe, photos or EXAMPLES))
            url = hub.publish(folder, repo_id, message=message)
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"Stopped. {repo_id} is as it was before; the same command finishes the upload.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{checkpoint} is on the Hub: {url}")


@app.command("app")
def serve_page(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Largest photo taken.")] = 40.0,
    max_file_mb: Annotated[int, typer.Option(min=1, help="Largest file taken, megabytes.")] = 100,
    max_photos: Annotated[int, typer.Option(min=1, help="Most photos in one batch.")] = 50,
    queue: Annotated[int, typer.Option(min=1, help="Most jobs that wait; one runs at a time.")] = 20,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest there is if not given.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Pipeline folder or Hub name; the one in the package if not given.")
    ] = None,
) -> None:
    """Serve a web page: drop a photo, compare before and after, pick a variant, download; or many photos into a ZIP.

    Needs `pip install 'colorized[app]'`. Nothing leaves this machine.
    """
    with tempfile.TemporaryDirectory(prefix="colorized-app-") as folder:
        # What visitors send and get lies in here, so that nothing of it is left when the page stops, however it stops
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            from .app import Limits, build_page, serve
            from .batch import hash_checkpoint
        except ImportError as error:
            typer.echo(f"Error: {error}; the page needs: pip install 'colorized[app]'", err=True)
            raise typer.Exit(2) from None
        limits = Limits(megapixels=max_megapixels, file_megabytes=max_file_mb, batch_photos=max_photos, queue=queue)
        try:
            pipe = _load_pipeline(checkpoint, device)
            page = build_page(pipe, limits, checkpoint=hash_checkpoint(_checkpoint_folder(checkpoint)))
        except (OSError, ValueError, RuntimeError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from None
        try:
            url = serve(page, limits, server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True)
        except OSError:
            typer.echo(f"Error: can't listen on {host}, port {port}: it is taken or not allowed; try --port", err=True)
            raise typer.Exit(2) from None
        typer.echo(f"COLORIZED is at {url} until you press Ctrl-C")
        page.block_thread()
