"""``colorized colorize``: photos and folders of photos."""

import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..options import Colors, Variants
from .console import end_by_signals, errors_in_one_line, printable, quick_start, received, say, show, show_as, shown
from .options import Checkpoint, Device, Precision, command

if TYPE_CHECKING:
    from ..archive.files import Job
    from ..archive.provenance import Signer
    from ..batch.manifest import Outcome
    from ..batch.overlap import Batch
    from ..batch.settings import Settings
    from ..batch.shards import Part
    from ..diffusion.hints import Hint
    from ..diffusion.pipeline import ColorizationPipeline


# Options that may be repeated: typer takes lists of enumerations, not of literals
SheetFormat = Enum("SheetFormat", {"jpg": "jpg", "png": "png", "pdf": "pdf"})
LayerFormat = Enum("LayerFormat", {"psd": "psd", "ora": "ora"})
_SETTLED = 2.0  # seconds for which a photo that has come must stay as it is


@dataclass(frozen=True)
class Files:
    """Files."""

    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Result file (for one photo) or folder, made if needed; - writes it to standard output.",
        ),
    ]
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            help="Folders in folders too, mirrored in OUTPUT, with a manifest there: the same command again goes on "
            "where it stopped and retries what failed.",
        ),
    ] = False
    file_format: Annotated[
        Literal["same", "tif", "png", "jpg", "webp"],
        typer.Option("--format", help="File format of results in a folder; tif and png hold 16 bits."),
    ] = "same"
    pages: Annotated[Literal["all", "first"], typer.Option(help="Which pages of a TIFF.")] = "all"
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist already.")] = False
    keep_times: Annotated[
        bool, typer.Option("--keep-times", help="Colour copies get the time stamps of their scans.")
    ] = False
    max_megapixels: Annotated[
        float, typer.Option(min=0.0, help="Refuse larger photos: they may be small files made to fill the memory.")
    ] = 300
    shard: Annotated[
        str, typer.Option(help="I/N: only the I-th of N parts of the work (I from 0), for a cluster's array of jobs.")
    ] = "0/1"
    ray: Annotated[
        str | None,
        typer.Option(
            help="Share the work among the machines of a Ray cluster: auto, if this machine belongs to one, or "
            "HOST:PORT. Folders in folders too, as by --recursive. Needs the package's extra cluster."
        ),
    ] = None
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Stay, and colorize what comes into the folders, such as a scanner's; Ctrl-C ends it. Folders in "
            "folders too, as by --recursive. Needs the package's extra watch.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say which files each photo would go into, what is done before, what would be refused; do nothing.",
        ),
    ] = False
    json_lines: Annotated[
        bool,
        typer.Option(
            "--json", help="For scripts: a line of JSON for each photo on standard output, all else on standard error."
        ),
    ] = False

    def __post_init__(self) -> None:
        for option, wanted, package, extra in (
            ("--ray", self.ray, "ray", "cluster"),
            ("--watch", self.watch, "watchfiles", "watch"),
        ):
            if wanted and not find_spec(package):
                raise ImportError(f"{option} needs one more package: pip install 'colorized[{extra}]'")
        if self.watch and (self.ray or self.shard != "0/1" or int(os.environ.get("WORLD_SIZE", "1")) > 1):
            raise ValueError("--watch works in one process: leave out --ray, --shard, torchrun and accelerate")

    @property
    def suffix(self) -> str:
        """The ending of all results; empty where each is to have its photo's."""
        return "" if self.file_format == "same" else f".{self.file_format}"


@dataclass(frozen=True)
class Known:
    """Colours that you know."""

    hint: Annotated[
        list[str] | None,
        typer.Option(
            help="A colour you know, for a single photo: X,Y,RADIUS:COLOUR or LEFT,TOP,RIGHT,BOTTOM:COLOUR in pixels "
            'of the upright photo, COLOUR a CSS name, #hex or lab(L a b), e.g. "120,80,25:#8a3b2e". Repeatable.'
        ),
    ] = None
    hint_mask: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Colours you know, as a picture of the photo's size: painted where known, and transparent (or black, "
            "if it has no transparency) elsewhere.",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="A colour photo, e.g. of the same place, whose palette results get; or a folder of such, each for "
            "the photo of its name.",
        ),
    ] = None
    consistent: Annotated[
        Literal["alike", "folder"] | None,
        typer.Option(
            help="One set of colours for photos of a folder that show the same (alike), or for all of a folder "
            "(folder): what the first one shows gets its colours in the others."
        ),
    ] = None

    def add(self, jobs: "list[Job]", network: "Network", colors: Colors, files: Files) -> "list[Job]":
        """The jobs with what files beside the photos tell of their colours, and tied to each other if asked for."""
        if not jobs or not (self.reference or self.consistent or _colors_beside(jobs)):
            return jobs
        with quick_start():
            from ..sets.groups import look_at, tie_alike, tie_folders
            from ..sets.known import add_known_colors, add_references

        jobs = add_known_colors(jobs)
        if self.reference and self.reference.is_dir():
            jobs = add_references(jobs, self.reference)
        if self.consistent == "folder":
            return tie_folders(jobs)
        if self.consistent == "alike":
            pipe, _ = network.load(None)
            seen = look_at(
                pipe,
                max_megapixels=files.max_megapixels,
                borders=colors.borders,
                working_size=colors.working_size,
            )
            return tie_alike(jobs, seen)
        return jobs

    def read_hints(self) -> "tuple[Hint, ...]":
        """The hints, and the mask last."""
        hints: list[Hint] = [self.hint_mask] if self.hint_mask else []
        if self.hint:
            from ..diffusion.hints import parse_hint

            try:
                hints[:0] = map(parse_hint, self.hint)
            except ValueError as error:
                raise ValueError(f"--hint: {error}") from error
        return tuple(hints)


@dataclass(frozen=True)
class Labels:
    """Labels and signatures."""

    mark: Annotated[
        bool, typer.Option("--mark", help='Write "colorized" into the lower right corner, legible at 250 pixels.')
    ] = False
    c2pa_certificate: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM) to sign results with, as C2PA manifests.")
    ] = None
    c2pa_key: Annotated[Path | None, typer.Option(help="Private key (PEM) of the certificate.")] = None

    def __post_init__(self) -> None:
        if bool(self.c2pa_certificate) != bool(self.c2pa_key):
            raise ValueError("--c2pa-certificate and --c2pa-key belong together: give both")

    def make_signer(self) -> "Signer | None":
        """What signs the results, if they are to be signed."""
        from ..archive.provenance import Signer

        return Signer(self.c2pa_certificate, self.c2pa_key) if self.c2pa_certificate and self.c2pa_key else None


@dataclass(frozen=True)
class Beside:
    """Files beside each result."""

    sheet: Annotated[
        list[SheetFormat] | None,
        typer.Option(
            help="Also OUTPUT-sheet: grey and colour side by side, with caption, source and a mark. Repeatable."
        ),
    ] = None
    layers: Annotated[
        list[LayerFormat] | None,
        typer.Option(
            help="Also OUTPUT-layers for Photoshop, GIMP or Krita: the scan, the colours as a layer, variants and "
            "uncertainty as hidden layers. psd needs the package's extra publish. Repeatable."
        ),
    ] = None

    def __post_init__(self) -> None:
        if LayerFormat.psd in (self.layers or ()) and not find_spec("psd_tools"):
            raise ImportError("--layers psd needs one more package: pip install 'colorized[publish]'")

    def files(self, target: Path, page: int = 0) -> list[Path]:
        """What is written beside a result called ``target`` of one of its pages."""
        if not (self.sheet or self.layers):
            return []
        from ..publish.extras import extra_files

        sheets, layers = ([one.value for one in chosen or ()] for chosen in (self.sheet, self.layers))
        return extra_files(target, sheets=sheets, layers=layers, page=page)

    def write(self, job: "Job", batch: "Batch") -> str:
        """Write what is missing beside a photo's colour copies; returns what went wrong."""
        if not self.files(job.target):
            return ""
        from ..publish.extras import write_extras

        try:
            extras = partial(self.files, job.target)
            write_extras(job, batch.settings.of(job), extras, manifest=batch.manifest)
        except (OSError, ValueError, MemoryError) as error:
            return f"{job.source}: {error}"
        return ""


@dataclass(frozen=True, eq=False)
class Network:
    """The network and what runs it."""

    checkpoint: Checkpoint = None
    device: Device = None
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the network's arithmetic, float32 if not given; bfloat16 is faster where the processor has it, "
            "and all but the same colours."
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Photos the network sees at once; more suits a GPU. It moves colours in the fifth digit, so it is "
            "part of the label. 1 for a single photo, 4 for several if not given.",
        ),
    ] = None

    @lru_cache(maxsize=1)  # noqa: B019 (of one run, which may look at photos first, or watch a folder)
    def load(self, device: str | None) -> "tuple[ColorizationPipeline, dict[str, Any]]":
        """The pipeline, and for the label: its digest, and the program and precision that run its UNet, in words."""
        import torch

        from ..loading import load_pipeline, quieten_libraries

        quieten_libraries()
        pipe = load_pipeline(self.checkpoint, device=device or self.device)
        digest = pipe.digest()
        if self.precision == "bfloat16":
            pipe.unet.to(torch.bfloat16)
            pipe.unet.to(memory_format=torch.channels_last)  # measured together, see benchmarks/README.md
        return pipe, {"checkpoint": digest, "engine": f"torch {self.precision or 'float32'}"}


@dataclass(frozen=True)
class Order:
    """All that a command asks for but the photos: whoever has it, on this machine or another, can do its share.

    Attributes:
        alone: there is one photo in all, and no tree.
        folder: outside of which no result may lie, if there is one.
    """

    files: Files
    colors: Colors
    variants: Variants
    known: Known
    labels: Labels
    beside: Beside
    network: Network
    alone: bool = False
    folder: Path | None = None

    def of(self, jobs: "Sequence[Job]") -> "Order":
        """This one for these photos."""
        alone, in_folder = len(jobs) == 1, jobs[0].target != self.files.output
        folder = self.files.output if self.files.recursive or in_folder else None
        return replace(self, alone=alone and not self.files.recursive, folder=folder)

    def copies(self, target: Path) -> list[Path]:
        """The colour copies, their sheet and map of a photo whose result is called ``target``."""
        from ..archive.files import result_files
        from ..diffusion.variants import choose_variants

        drawn, kept = choose_variants(**vars(self.variants))
        return result_files(target, copies=1 if kept else drawn, uncertainty=self.variants.uncertainty)

    def results(self, target: Path) -> list[Path]:
        """Every file that comes of a photo whose result is called ``target``."""
        return [*self.copies(target), *self.beside.files(target)]

    def show_line(self, outcome: "Outcome") -> None:
        """A photo's outcome on standard output: as a line of JSON, or of a dry run in words."""
        made = [str(file) for file in self.results(outcome.job.target)] if outcome.state != "failed" else []
        if self.files.json_lines:
            files = {"source": shown(str(outcome.job.source)), "state": outcome.state, "results": [*map(shown, made)]}
            error = {"error": shown(outcome.message)} if outcome.message else {}
            typer.echo(json.dumps({**files, "notes": [*map(shown, outcome.notes)], **error}))
        elif outcome.state == "planned":
            show(f"{outcome.job.source} -> {', '.join(made)}")
        elif outcome.state == "skipped":
            missing = [file for file in made if not Path(file).exists()]  # sheets and layers, which are written anew
            show(f"{outcome.job.source}: done before" + (f" -> {', '.join(missing)}" if missing else ""))

    def load(self, device: str | None) -> "tuple[ColorizationPipeline, Settings]":
        """The network, and what decides results."""
        from ..batch.settings import build_settings

        pipe, loaded = self.network.load(device)
        settings = build_settings(
            pipe,
            **loaded,
            **vars(self.colors),
            **vars(self.variants),
            alone=self.alone,
            batch_size=self.network.batch_size,
            pages=self.files.pages,
            max_megapixels=self.files.max_megapixels,
            mark=self.labels.mark,
            signed=self.labels.c2pa_key is not None,
            hints=self.known.read_hints(),
            reference=self.known.reference if self.known.reference and self.known.reference.is_file() else None,
        )
        return pipe, settings

    def open(self, device: str | None) -> "Callable[..., Batch]":
        """Load the network; gives :class:`Batch` but for the manifest, the temporary folder and the cores."""
        from ..batch.overlap import Batch

        return partial(
            Batch,
            *self.load(device),
            output=self.folder,
            overwrite=self.files.overwrite,
            signer=self.labels.make_signer(),
            keep_times=self.files.keep_times,
        )

    def plan(self, jobs: "Sequence[Job]") -> "Iterator[Outcome]":
        """What :meth:`run` would say, as far as it is known before a photo is read."""
        from ..batch.manifest import DoneBefore, Outcome, PastRecords, check_targets, explain

        past = PastRecords(self.files.output) if self.files.recursive else None
        settings: Settings | None = None
        for job in jobs:
            copies = self.copies(job.target)
            if past and not settings and any(past.find(file) for file in copies if file.exists()):
                with quick_start():
                    _, settings = self.load(None)  # what is there may be of others
            try:
                check_targets(
                    job,
                    copies,
                    output=self.folder,
                    manifest=past,
                    settings=settings.of(job).record() if settings else {},
                    overwrite=self.files.overwrite,
                    dry=True,
                )
                yield Outcome(job, "planned")
            except DoneBefore:
                yield Outcome(job, "skipped")
            except (OSError, ValueError, MemoryError) as error:
                yield Outcome(job, "failed", explain(error, job.source))

    def run(
        self, batch: "Batch", jobs: "Sequence[Job]", *, on_step: Callable[[], object] | None = None
    ) -> "Iterator[Outcome]":
        """Colorize photos, and write what goes beside them."""
        for outcome in batch.run(jobs, on_step=on_step):
            if outcome.state != "failed" and (problem := self.beside.write(outcome.job, batch)):
                outcome = replace(outcome, state="failed", message=problem)
            yield outcome


@command
def colorize(
    photos: Annotated[
        list[str],
        typer.Argument(help="Photo files, folders of photos, or IIIF manifests: web addresses or .json files."),
    ],
    files: Files,
    colors: Colors,
    variants: Variants,
    known: Known,
    labels: Labels,
    beside: Beside,
    network: Network,
) -> None:
    """Colorize photos: same size, same lightness, same file format, labelled as coloured by a model.

    A photo that can't be done is named with the reason, the others go on, and the exit status is 1. Under
    "torchrun" or "accelerate launch" the processes share the work.
    """
    from ..archive.files import find_photos, plan_jobs

    labels.make_signer()  # what is wrong with it is said before the work
    files = replace(files, recursive=files.recursive or files.watch or files.ray is not None)
    failed, order = 0, Order(files, colors, variants, known, labels, beside, network)
    stopped = "Interrupted; " + (
        "run the same command again to go on"
        if files.recursive
        else "finished results stay. Add --overwrite to make all anew; runs with --recursive can go on"
    )
    with errors_in_one_line(when_interrupted=stopped), _pipes(photos, order) as (photos, order):
        files = order.files
        inputs, origins, missing = _fetch(photos, files)
        arrivals = _Arrivals(inputs) if files.watch else None
        arrivals = None if files.dry_run else arrivals
        said: set[str] = set()
        for _ in arrivals.rounds(files.output) if arrivals else [None]:
            found = find_photos(inputs, recursive=files.recursive, output=files.output, may_be_none=files.watch)
            jobs = plan_jobs(
                found,
                files.output,
                inputs=inputs,
                recursive=files.recursive,
                suffix=files.suffix,
                results=order.results,
            )
            jobs = [replace(job, origin=origins.get(job.source, {})) for job in jobs]
            jobs = known.add(arrivals.settled(jobs) if arrivals else jobs, network, colors, files)
            jobs = arrivals.take(jobs) if arrivals else jobs
            if jobs:
                failed = _run(order.of(jobs), jobs, notes=[note for note in found.notes if note not in said])
                said.update(found.notes)
    if failed or missing:
        raise typer.Exit(1)


@contextmanager
def _pipes(photos: list[str], order: Order) -> "Iterator[tuple[list[str], Order]]":
    """The arguments with files in place of ``-``: standard input, and standard output when the block is left."""
    from ..archive.files import PHOTO_SUFFIXES, result_suffix, suffix_for
    from ..publish.source import is_manifest

    files, into_pipe = order.files, order.files.output == Path("-")
    if "-" not in photos and not into_pipe:
        yield photos, order
        return
    if len(photos) > 1 or files.recursive:
        raise ValueError("- stands for one photo: give no others, and no --recursive, --watch or --ray")
    if into_pipe and len(order.results(Path("x.png"))) > 1:
        raise ValueError("-o - holds one file, and these options make several: give a folder")
    if into_pipe and (Path(photos[0]).is_dir() or is_manifest(photos[0])):
        raise ValueError(f"-o - holds the result of one photo file, and {photos[0]} is none: give a folder")
    with tempfile.TemporaryDirectory(prefix="colorized-") as folder:
        photo = Path(photos[0])
        if photos == ["-"]:
            photo = Path(folder, "stdin")
            photo.write_bytes(sys.stdin.buffer.read())
            photo = show_as(photo.rename(photo.with_suffix(suffix_for(photo))), "-")
        if not into_pipe:
            yield [str(photo)], order
            return
        name = photo if photo.suffix.lower() in PHOTO_SUFFIXES else Path(f"stdin{suffix_for(photo)}")
        result = show_as(Path(folder, f"stdout{files.suffix or result_suffix(name)}"), "-")
        with redirect_stdout(sys.stderr):  # nothing but the photo goes there
            yield [str(photo)], replace(order, files=replace(files, output=result))
        if result.exists():
            sys.stdout.buffer.write(result.read_bytes())
            sys.stdout.buffer.flush()


class _Arrivals:
    """Photos that come into watched folders. One is taken when it has been as it is for two seconds.

    What it is: its size and time, and those of the files beside it that tell of its colours.
    """

    def __init__(self, folders: "Sequence[Path]") -> None:
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"--watch {folder}: no such folder; give the one that photos come into")
        self._folders, self._first, self._waiting = folders, True, True
        self._seen: dict[Path, tuple[Hashable, float]] = {}  # what it is, and since when
        self._taken: dict[Path, tuple[Hashable, Path | None]] = {}  # what it was, and the photo it was tied to

    def rounds(self, output: Path) -> "Iterator[None]":
        """Whenever something has come or is waiting, until Ctrl-C.

        Python may drop that exception: one that comes while an object is being freed.
        """
        from watchfiles import watch

        for changes in watch(
            *self._folders,
            watch_filter=lambda _, path: not Path(path).resolve().is_relative_to(output.resolve()),
            step=1000,
            debounce=1000,
            rust_timeout=1000,
            yield_on_timeout=True,
        ):
            if changes or self._waiting:
                yield
            if received:
                raise KeyboardInterrupt

    def settled(self, jobs: "list[Job]") -> "list[Job]":
        """Those that aren't being written, if one of them is new or has changed."""
        now, before, beside = time.monotonic(), self._seen, _colors_beside(jobs)
        self._seen, ready = {}, []
        for job in jobs:
            source = job.source
            asides = [source.with_name(f"{one}.colours.json") for one in (source.stem, source.name)]
            asides += [folder / "colours.csv" for folder in source.parents[: len(job.name.parts)]]
            state = (_state(source), *(beside[file] for file in asides if file in beside))
            known, since = before.get(source, (None, now))
            if known != state:
                old = self._first and _state(source)[1] < (time.time() - _SETTLED) * 1e9
                since = now - _SETTLED if old else now
            self._seen[source] = state, since
            if now - since >= _SETTLED:
                ready.append(job)
        self._first, self._waiting = False, len(ready) < len(jobs)
        fresh = any(self._taken.get(one.source, (None,))[0] != self._seen[one.source][0] for one in ready)
        return ready if fresh else []

    def take(self, jobs: "list[Job]") -> "list[Job]":
        """Those that are new, have changed, or are tied to another photo than before."""
        now = {job.source: (self._seen[job.source][0], job.leader.source if job.leader else None) for job in jobs}
        taken, self._taken = self._taken, self._taken | now
        return [job for job in jobs if taken.get(job.source) != now[job.source]]


def _state(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _colors_beside(jobs: "Sequence[Job]") -> dict[Path, Hashable]:
    """Files beside photos that tell of their colours, each with what changes when it does."""
    folders = {folder for job in jobs for folder in job.source.parents[: len(job.name.parts)]}
    return {file: _state(file) for folder in folders for file in folder.glob("*colours.*")}


def _fetch(photos: list[str], files: Files) -> tuple[list[Path], dict[Path, dict[str, str]], int]:
    """The inputs as files and folders, what is known of the origin of fetched ones, and how many couldn't be had."""
    from ..publish.source import fetch_photos, is_manifest

    inputs: list[Path] = []
    origins: dict[Path, dict[str, str]] = {}
    missing = 0
    for photo in photos:
        if not is_manifest(photo):
            inputs.append(Path(photo))
            continue
        if files.dry_run:
            raise ValueError(f"{photo}: what a IIIF manifest names must be fetched: leave out --dry-run")
        for fetched in fetch_photos(photo, files.output.with_name(f"{files.output.name}-sources")):
            for problem in fetched.problems:
                say(f"Error: {problem}")
            missing += len(fetched.problems)
            origins |= fetched.identifiers
            inputs += [fetched.folder] if fetched.identifiers else []
    if not inputs:
        raise ValueError(f"{photos[0]}: none of its pictures could be fetched")
    return inputs, origins, missing


def _run(order: Order, jobs: "list[Job]", *, notes: "Sequence[str]") -> int:
    """Colorize this process's part of the photos, and say how it went; returns how many failed in all."""
    from ..batch.shards import take_part

    hints, files = order.known.read_hints(), order.files
    if hints and (len(jobs) != 1 or files.watch):
        found = "is a watched folder" if files.watch else f"are {len(jobs)}"
        raise ValueError(f"--hint and --hint-mask are places on one photo, and here {found}: give one")
    part = take_part(jobs, shard=files.shard, device=order.network.device)
    counts = _work(order, part, notes=notes)
    if part.is_first and not files.dry_run and (counts["done"] or counts["failed"] or not files.watch):
        where = order.results(jobs[0].target)[0] if len(jobs) == 1 and not files.recursive else files.output
        summary = _summary(counts, len(jobs) if part.total is None else part.total, where)
        typer.echo(summary, err=files.json_lines)
    return counts["failed"]


def _work(order: Order, part: "Part", *, notes: "Sequence[str]") -> Counter[str]:
    """Here or on a cluster; returns how many were done, skipped, failed in all."""
    from ..batch.manifest import Manifest, partial_folder

    with ExitStack() as stack:
        manifest = temporary = None
        files = order.files
        if files.dry_run:
            return _follow(lambda _: order.plan(part.jobs), order, part, notes=notes)
        if files.recursive:
            files.output.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(partial_folder(files.output, part=part.name))
        if files.ray and temporary:
            from ..batch.cluster import join_cluster, run_on_cluster

            stack.enter_context(join_cluster(files.ray))
            end_by_signals()  # Ray would end it by status 15
            device = order.network.device
            shared = run_on_cluster(part.jobs, order, output=files.output, temporary=temporary, device=device)
            return _follow(lambda _: shared, order, part, notes=notes)
        with quick_start():
            make_batch = order.open(part.device)
        if files.recursive:
            manifest = stack.enter_context(Manifest(files.output, part=part.name))
        batch = make_batch(manifest=manifest, temporary=temporary)
        steps = batch.settings.steps * math.ceil(batch.settings.variants / batch.settings.batch_size)
        return _follow(lambda step: order.run(batch, part.jobs, on_step=step), order, part, notes=notes, steps=steps)


def _follow(
    start: "Callable[[Callable[[], object] | None], Iterator[Outcome]]",
    order: Order,
    part: "Part",
    *,
    notes: "Sequence[str]",
    steps: int = 0,
) -> Counter[str]:
    """Progress and messages of photos that are being colorized; returns the counts.

    Args:
        start: begins the work, given what is to be called at each step of a single photo.
        steps: of a single photo, if they are to be shown.
    """
    from tqdm import tqdm

    for note in notes if part.is_first else ():
        say(f"Note: {note}")
    counts: Counter[str] = Counter()
    started = time.monotonic()
    alone = len(part.jobs) == 1 and steps > 0
    with tqdm(
        total=steps if alone else len(part.jobs),
        desc="denoising" if alone else "photos",
        unit="step" if alone else "photo",
        disable=order.files.dry_run or not part.is_first,
        leave=not alone,
    ) as bar:
        for outcome in start(bar.update if alone else None):
            counts[outcome.state] += 1
            if not alone:
                bar.update()
            for note in outcome.notes:
                say(f"Note: {note}")
            if outcome.state == "failed":
                say(f"Error: {outcome.message}")
            if order.files.json_lines or order.files.dry_run:
                order.show_line(outcome)
    counts = part.sum(counts)
    counts["milliseconds"] = round((time.monotonic() - started) * 1000)
    return counts


def _summary(counts: Counter[str], total: int, where: Path) -> str:
    seconds = counts["milliseconds"] / 1000
    text = f"{counts['done']} of {total} photos colorized into {printable(str(where))} in {seconds:.1f} s"
    for state, words in (("skipped", "done before"), ("failed", "failed")):
        text += f"; {counts[state]} {words}" if counts[state] else ""
    return text
