"""The ``colorized`` command."""

import math
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError
from tqdm.auto import tqdm

from . import DEFAULT_CHECKPOINT, FAST_CHECKPOINT, ColorizationPipeline, __version__, load_default
from .archive.files import find_photos, plan_jobs, result_files
from .archive.inspection import compare_with_source, describe, restore_grey
from .archive.provenance import Signer
from .archive.scans import DEFAULT_MAX_MEGAPIXELS
from .batch.overlap import Batch, Manifest, Settings, hash_checkpoint, partial_folder
from .batch.shards import Part, take_part
from .diffusion.hints import Hint, parse_hint
from .diffusion.variants import check_answers, count_variants
from .hub import loading_reason

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Plausible colours for grey photographs.")


class FileFormat(str, Enum):
    """``--format``"""

    same = "same"
    tif = "tif"
    png = "png"
    jpg = "jpg"
    webp = "webp"


class Precision(str, Enum):
    """``--precision``"""

    float32 = "float32"
    bfloat16 = "bfloat16"


class EngineFormat(str, Enum):
    """``--format`` of an exported network"""

    onnx = "onnx"
    openvino = "openvino"


class Consensus(str, Enum):
    """``--consensus``"""

    mean = "mean"
    medoid = "medoid"


class Pages(str, Enum):
    """``--pages``"""

    all = "all"
    first = "first"


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
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            help="Folders in folders too, mirrored in OUTPUT, with a manifest there: the same command again goes on "
            "where it stopped and retries what failed.",
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps; the checkpoint's default if not given.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=20.0, help="Above 1: surer, stronger colours, at twice the time. The checkpoint's by default."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Another seed gives other plausible colours. A photo's own seed comes from it and its content."
        ),
    ] = 0,
    variants: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Different colourings of each photo, seeds counted up: OUTPUT-1 is the most typical, the last the "
            "least, OUTPUT-variants.jpg shows all with their seeds.",
        ),
    ] = None,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also OUTPUT-doubt.png: how far the variants differ in each place. Without --variants 8 are drawn "
            "and the most typical is written.",
        ),
    ] = False,
    consensus: Annotated[
        Consensus | None,
        typer.Option(help="Write one copy only: the variants' mean (cautious, pale), or the most typical (medoid)."),
    ] = None,
    intensity: Annotated[float, typer.Option(min=0.0, max=10.0, help="Factor on chroma: 0 grey, 1 as drawn.")] = 1.0,
    working_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=1024,
            help="Shorter side at which the network reads the photo, pixels; time grows with its square. The "
            "checkpoint's (128) by default; from 160 to 192 colours move little more than with another seed.",
        ),
    ] = None,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="File format of results in a folder; tif and png hold 16 bits.")
    ] = FileFormat.same,
    pages: Annotated[Pages, typer.Option(help="Which pages of a TIFF.")] = Pages.all,
    hint: Annotated[
        list[str] | None,
        typer.Option(
            help="A colour you know, for a single photo: X,Y,RADIUS:COLOUR or LEFT,TOP,RIGHT,BOTTOM:COLOUR in pixels "
            'of the upright photo, COLOUR a CSS name, #hex or lab(L a b), e.g. "120,80,25:#8a3b2e". Repeatable.',
            show_default=False,
        ),
    ] = None,
    hint_mask: Annotated[
        Path | None,
        typer.Option(
            help="Colours you know, as a picture of the photo's size: painted where known, and transparent (or black, "
            "if it has no transparency) elsewhere.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="A colour photo, e.g. of the same place, whose palette results get.", show_default=False),
    ] = None,
    mark: Annotated[bool, typer.Option("--mark", help='Write "colorized" small into the lower right corner.')] = False,
    borders: Annotated[
        bool, typer.Option("--grey-borders/--colour-borders", help="Leave plain mounts and padding grey.")
    ] = True,
    c2pa_certificate: Annotated[
        Path | None,
        typer.Option(help="Certificate chain (PEM) to sign results with, as C2PA manifests.", show_default=False),
    ] = None,
    c2pa_key: Annotated[
        Path | None, typer.Option(help="Private key (PEM) of the certificate.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(min=1, max=256, help="Photos the network sees at once; more suits a GPU. Part of the result."),
    ] = 4,
    max_megapixels: Annotated[
        float, typer.Option(min=0.0, help="Refuse larger photos: they may be small files made to fill the memory.")
    ] = DEFAULT_MAX_MEGAPIXELS,
    shard: Annotated[
        str, typer.Option(help="I/N: only the I-th of N parts of the work (I from 0), for a cluster's array of jobs.")
    ] = "0/1",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest there is if not given.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Pipeline folder or Hub name; the one in the package if not given.")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the network's sums, float32 if not given; bfloat16 is faster where the processor has it, and all "
            "but the same colours.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(
            help='Folder of "colorized export": that program runs the network, on the processor.', show_default=False
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Draw in two passes of the network, by a distilled checkpoint: quicker, less lifelike colours.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist already.")] = False,
) -> None:
    """Colorize photos: same size, same lightness, same file format, labelled as coloured by a model.

    A photo that can't be done is named with the reason, the others go on, and the exit status is 1. Under
    "torchrun" or "accelerate launch" the processes share the work.
    """
    _silence_libraries()
    try:
        if fast and (checkpoint or engine):
            raise ValueError("--fast has a checkpoint of its own: leave out --checkpoint and --engine")
        if engine and (precision or device not in (None, "cpu")):
            raise ValueError("--engine has its own precision and runs on the cpu: leave out --precision and --device")
        if engine and (hint or hint_mask):
            raise ValueError("hints need derivatives of the network, which --engine hasn't: leave it out")
        signer = _make_signer(c2pa_certificate, c2pa_key)
        hints = _read_hints(hint or [], hint_mask)
        if reference and not reference.is_file():
            raise FileNotFoundError(f"--reference: {reference}: no such file")
        found = find_photos(photos, recursive=recursive, output=output)
        suffix = "" if file_format is FileFormat.same else f".{file_format.value}"
        kept = consensus.value if consensus else "medoid" if uncertainty and variants is None else ""
        drawn = count_variants(variants, consensus=kept or None, uncertainty=uncertainty)
        files = partial(result_files, copies=1 if kept else drawn, doubt=uncertainty)
        jobs = plan_jobs(found, output, inputs=photos, recursive=recursive, suffix=suffix, results=files)
        if hints and len(jobs) != 1:
            raise ValueError(f"--hint and --hint-mask are places on one photo, and here are {len(jobs)}: give one")
        part = take_part(jobs, shard=shard, device=device)
        pipe = _load_pipeline(checkpoint, "cpu" if engine else part.device or device, fast=fast)
        network = _choose_network(pipe, engine=engine, precision=precision)
        check_answers(pipe.config.objective, drawn)
        settings = Settings(
            seed=seed,
            steps=steps or pipe.config.default_steps,
            guidance=pipe.config.default_guidance if guidance is None else guidance,
            intensity=intensity,
            working_size=working_size or pipe.config.working_size,
            checkpoint=hash_checkpoint(_checkpoint_folder(checkpoint, fast=fast)),
            scheduler=type(pipe.scheduler).__name__,
            batch_size=batch_size,
            pages=pages.value,
            mark=mark,
            borders=borders,
            signed=signer is not None,
            max_megapixels=max_megapixels,
            engine=network,
            hints=hints,
            reference=reference,
            variants=drawn,
            consensus=kept,
            uncertainty=uncertainty,
        )
        with ExitStack() as stack:
            manifest = temporary = None
            if recursive:
                output.mkdir(parents=True, exist_ok=True)
                temporary = stack.enter_context(partial_folder(output, part=part.name))
                manifest = stack.enter_context(Manifest(output, part=part.name))
            folder = output if recursive or jobs[0].target != output else None
            batch = Batch(
                pipe,
                settings,
                output=folder,
                manifest=manifest,
                temporary=temporary,
                overwrite=overwrite,
                signer=signer,
            )
            for link in found.links if part.is_first else ():
                _say(f"Note: {link}: a link to a folder isn't followed; name the folder itself to include it")
            counts = _run_batch(batch, part)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        _say(f"Error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _say("Interrupted; run the same command again to go on")
        raise typer.Exit(130) from None

    where = files(jobs[0].target)[0] if len(jobs) == 1 and not recursive else output
    if part.is_first:
        typer.echo(_summary(counts, len(jobs) if part.total is None else part.total, where))
    if counts["failed"]:
        raise typer.Exit(1)


def _read_hints(hints: list[str], painting: Path | None) -> tuple[Hint, ...]:
    try:
        parsed: list[Hint] = [parse_hint(text) for text in hints]
    except ValueError as error:
        raise ValueError(f"--hint: {error}") from error
    if painting and not painting.is_file():
        raise FileNotFoundError(f"--hint-mask: {painting}: no such file")
    return (*parsed, painting) if painting else tuple(parsed)


def _choose_network(pipe: ColorizationPipeline, *, engine: Path | None, precision: Precision | None) -> str:
    """Have the UNet run as the options say; returns what to record of it."""
    if engine:
        from .export import use_engine

        # As many calls at once as a batch of photos makes, each on a thread of its own
        return use_engine(pipe, engine, threads=1, streams=os.cpu_count() or 1).name
    if precision is Precision.bfloat16:
        pipe.unet.to(torch.bfloat16)
        pipe.unet.to(memory_format=torch.channels_last)  # measured together, see benchmarks/README.md
    return f"torch {(precision or Precision.float32).value}"


def _make_signer(certificate: Path | None, key: Path | None) -> Signer | None:
    if certificate and key:
        return Signer(certificate, key)
    if certificate or key:
        raise ValueError("--c2pa-certificate and --c2pa-key belong together: give both")
    return None


def _run_batch(batch: Batch, part: Part) -> Counter[str]:
    """Colorize this process's part with progress and messages; returns how many were done, skipped, failed in all."""
    counts: Counter[str] = Counter()
    started = time.monotonic()
    alone = len(part.jobs) == 1
    with tqdm(
        total=batch.settings.steps * math.ceil(batch.settings.variants / batch.settings.batch_size)
        if alone
        else len(part.jobs),
        desc="denoising" if alone else "photos",
        unit="step" if alone else "photo",
        disable=not part.is_first,
        leave=not alone,
    ) as bar:
        for outcome in batch.run(part.jobs, on_step=bar.update if alone else None):
            counts[outcome.state] += 1
            if not alone:
                bar.update()
            for note in outcome.notes:
                _say(f"Note: {note}")
            if outcome.state == "failed":
                _say(f"Error: {outcome.message}")
    counts = part.sum(counts)
    counts["milliseconds"] = round((time.monotonic() - started) * 1000)
    return counts


def _summary(counts: Counter[str], total: int, where: Path) -> str:
    seconds = counts["milliseconds"] / 1000
    text = f"{counts['done']} of {total} photos colorized into {_printable(str(where))} in {seconds:.1f} s"
    if counts["skipped"]:
        text += f"; {counts['skipped']} were done before"
    if counts["failed"]:
        text += f"; {counts['failed']} failed"
    return text


@app.command()
def inspect(
    photo: Annotated[Path, typer.Argument(help="A photo, colorized or not.", show_default=False)],
    grey: Annotated[
        Path | None,
        typer.Option(
            help="Write the photo's lightness as a grey PNG or TIFF: what the scan showed.", show_default=False
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="The scan it was made from: compare its hash and its lightness.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that --grey names.")] = False,
) -> None:
    """Print what a photo's label says: made by a model or not, from which file, how. Exit status 1 without a label."""
    _silence_libraries()
    try:
        label = describe(photo)
        for name, text in label.items():
            typer.echo(_printable(f"{name}: {text}"))
        if source:
            for line in compare_with_source(photo, label, source):
                typer.echo(_printable(line))
        if grey:
            if grey.exists() and not overwrite:
                raise ValueError(f"{grey} exists; add --overwrite to replace it")
            restore_grey(photo, grey)
            typer.echo(_printable(f"lightness written into {grey}"))
    except (OSError, ValueError, MemoryError) as error:
        _say(f"Error: {error}")
        raise typer.Exit(2) from None
    if not label:
        _say(f"{photo}: no label; this isn't a colour copy made by COLORIZED, or its label was removed")
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
    fast: Annotated[bool, typer.Option("--fast", help="Also a row of the package's distilled checkpoint.")] = False,
    split: Annotated[str, typer.Option(help="Split of a dataset on the Hub.")] = "test",
    group_column: Annotated[str | None, typer.Option(help="Column of labels for a table by label.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first so many photos.")] = None,
    resolution: Annotated[int, typer.Option(min=32, help="Edge of the central crop, pixels.")] = 128,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps; the checkpoint's default if not given.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, max=20.0, help="Guidance scale; the checkpoint's default if not given.")
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
    r"""Measure a checkpoint on colour photos: distances, colour errors, doubt and bound, beside its baselines.

    Needs `pip install 'colorized\[train,evaluate]'`.
    """
    try:
        try:
            from .evaluation.report import Extent, write_card
            from .evaluation.report import evaluate as measure
            from .training.data import ColorizationDataset, open_hub_source, open_source
        except ImportError as error:
            raise ImportError(f"{error}; evaluating needs: pip install 'colorized[train,evaluate]'") from error

        local = any("*" in photo or Path(photo).exists() for photo in photos)
        source = open_source(photos) if local else open_hub_source(photos[0], split=split)
        pipe = _load_pipeline(checkpoint, device)
        others = {}
        if twin:
            other = _load_pipeline(twin, device)
            others[f"{other.config.objective} twin"] = other
        if fast:
            others["COLORIZED, fast"] = _load_pipeline(None, device, fast=True)
        for shown in (pipe, *others.values()):
            shown.set_progress_bar_config(desc="denoising", leave=False)
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
            guidance=guidance,
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


def _say(message: str) -> None:
    """One line to the user, around the progress bar."""
    tqdm.write(_printable(message), file=typer.get_text_stream("stderr"))


def _printable(text: str) -> str:
    """On one line, and without what a terminal can't show or would obey: file names may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _silence_libraries() -> None:
    """What they warn of in a damaged file is said by one line of ours."""
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


def _checkpoint_folder(checkpoint: str | None, *, fast: bool = False) -> Path:
    """Where the files of a checkpoint are, after it was loaded."""
    folder = Path(checkpoint) if checkpoint else FAST_CHECKPOINT if fast else DEFAULT_CHECKPOINT
    return folder if folder.is_dir() else Path(ColorizationPipeline.download(checkpoint))


def _load_pipeline(checkpoint: str | None, device: str | None, *, fast: bool = False) -> ColorizationPipeline:
    """The pipeline on its device. Raises ``OSError``, ``ValueError`` or ``RuntimeError`` with a message for users."""
    _quieten_libraries()
    source = checkpoint or str(FAST_CHECKPOINT if fast else DEFAULT_CHECKPOINT)
    chosen = device or _best_device()
    try:
        # Weights as pickles could run any code; they are never loaded
        if fast:
            pipe = load_default(fast=True, use_safetensors=True)
        else:
            pipe = ColorizationPipeline.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = " ".join(loading_reason(error, source).split())
        raise ValueError(f"checkpoint {source} can't be loaded: {reason}") from error
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


@app.command()
def export(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Pipeline folder or Hub name; the one in the package if not given.", show_default=False),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the network, made if needed; must be empty.")
    ] = Path("engine"),
    engine_format: Annotated[
        EngineFormat,
        typer.Option("--format", help="For ONNX Runtime (any processor) or OpenVINO (Intel's and AMD's)."),
    ] = EngineFormat.onnx,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="onnx: float32. openvino: bfloat16 (used where the processor has it) or float32.", show_default=False
        ),
    ] = None,
) -> None:
    r"""Write the network for a faster program on processors, and check that its output equals PyTorch's.

    Needs `pip install 'colorized\[export]'`. Use it by `colorized colorize --engine FOLDER`.
    """
    try:
        from .export import export_unet

        pipe = _load_pipeline(checkpoint, "cpu")
        made = export_unet(
            pipe, output, format_name=engine_format.value, precision=precision.value if precision else None
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        _say(f"Error: {error}")
        raise typer.Exit(2) from None
    typer.echo(
        _printable(
            f"{output} holds the network for {made['format']}, {made['precision']}: equal to PyTorch's within "
            f"{made['difference']:.2g} (outputs up to {made['largest']:.2g})"
        )
    )


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
    r"""Serve a web page: drop a photo, compare before and after, pick a variant, download; or many photos into a ZIP.

    Needs `pip install 'colorized\[app]'`. Nothing leaves this machine.
    """
    with tempfile.TemporaryDirectory(prefix="colorized-app-") as folder:
        # What visitors send and get lies in here, so that nothing of it is left when the page stops, however it stops
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            from .app import Limits, build_page, serve
            from .batch.overlap import hash_checkpoint
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
