"""What the measuring scripts share: arguments, checkpoint, photos, and the record of what gave a figure."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from colorized_pipeline import ColorizationPipeline, __version__, load_pipeline
from colorized_pipeline.evaluation.photos import read_photos
from colorized_pipeline.evaluation.report import hardware
from colorized_pipeline.training.sources import open_source


def make_parser(description: str | None, *, limit: int) -> argparse.ArgumentParser:
    """Arguments of every script: photos, checkpoint, steps, seed, device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True, help="colour photos: a folder or parquet files")
    parser.add_argument("--limit", type=int, default=limit, help="photos, spread evenly over those there are")
    parser.add_argument("--resolution", type=int, default=128, help="edge of the central crop, pixels")
    parser.add_argument("--checkpoint", help="pipeline folder or Hub name; the package's if not given")
    parser.add_argument("--steps", type=int, help="denoising steps; the checkpoint's default if not given")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    return parser


def load(checkpoint: str | Path | None, *, device: str = "cpu") -> ColorizationPipeline:
    """A checkpoint, without progress bars."""
    pipe = load_pipeline(checkpoint, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_crops(photos: Sequence[str], *, resolution: int, limit: int) -> torch.Tensor:
    """Central crops of a collection's photos, spread evenly over it: CIELAB ``[N, 3, R, R]``."""
    every = read_photos(open_source(photos), name="", resolution=resolution).truth
    return every[:: max(1, len(every) // limit)][:limit]


def provenance(pipe: ColorizationPipeline, photos: Sequence[str], *, count: int, seed: int) -> dict[str, Any]:
    """What gave a figure."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return {
        "command": shlex.join(["python", *words]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "set": ", ".join(Path(photo).name for photo in photos),
        "photos": count,
        "seed": seed,
        "scheduler": type(pipe.scheduler).__name__,
        "guidance": pipe.config.default_guidance,
        "version": __version__,
        "weights": pipe.digest(),
        "hardware": hardware(pipe.device),
    }


def in_words(record: dict[str, Any]) -> str:
    """The record as a sentence for a document."""
    return (
        f"`{record['command']}`, {record['date']}: {record['set']}, {record['photos']} photos, {record['scheduler']}, "
        f"guidance {record['guidance']:g}, seed {record['seed']}; {record['hardware']}; weights `{record['weights']}`."
    )
