"""What a user waits for: a photo from shell to file, a folder, the page's answer, beside the network's own time.

    taskset -c 1 python benchmarks/ways.py -o docs/measurements/speed

Seconds are of the processor, all threads and processes together, so that other programs don't count. The photos are
the package's example enlarged, with grain. DDColor-tiny is its network alone, at random weights.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from os import times
from pathlib import Path
from time import process_time, thread_time
from typing import Any

import numpy as np
import torch
from gradio_client import Client, handle_file
from peers import DDColorTiny
from PIL import Image
from rounds import Spread, ratios, save, time_rounds

from colorized_pipeline import DEFAULT_CHECKPOINT, EXAMPLES, ColorizationPipeline, load_pipeline
from colorized_pipeline.app import build_page, launch
from colorized_pipeline.archive.files import Job
from colorized_pipeline.batch.overlap import Batch
from colorized_pipeline.batch.settings import build_settings
from colorized_pipeline.evaluation.report import hardware
from colorized_pipeline.options import PageLimits

NETWORK = "the network: encoder and all passes"
IN_PROCESS = "file to file in a running program"


def processor_time() -> float:
    """Seconds of this process and of those that it has waited for."""
    children = times()
    return process_time() + children.children_user + children.children_system


def make_photo(file: Path, megapixels: float, *, seed: int = 0) -> Path:
    """A grey 4:3 photo with grain."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    photo = Image.open(EXAMPLES[-1]).convert("L").resize((width, width * 3 // 4), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(seed).normal(0, 4, (photo.height, photo.width))
    Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return file


class Stopwatch:
    """Seconds that networks take of their thread's processor time."""

    def __init__(self, *networks: torch.nn.Module | None) -> None:
        self.seconds = 0.0
        for network in filter(None, networks):
            network.register_forward_pre_hook(lambda *_: self._add(-thread_time()))
            network.register_forward_hook(lambda *_: self._add(thread_time()))

    def _add(self, seconds: float) -> None:
        self.seconds += seconds


def command(*words: str | Path) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def in_process(pipe: ColorizationPipeline, photo: Path, shares: list[float]) -> Callable[[], object]:
    """Read, draw, show, label, write, as the command does it. ``shares`` gets what isn't the network's of the time."""
    watch = Stopwatch(pipe.unet, pipe.image_encoder)
    batch = Batch(pipe, build_settings(pipe, checkpoint=pipe.digest(), alone=True), overwrite=True)
    job = Job(photo, photo.with_name("colour.jpg"), Path(photo.name))

    def run() -> None:
        started, watch.seconds = processor_time(), 0.0
        for outcome in batch.run([replace(job)]):
            if outcome.state != "done":
                raise RuntimeError(outcome.message)
        shares.append(1 - watch.seconds / (processor_time() - started))

    return run


def collect(
    pipe: ColorizationPipeline,
    checkpoint: str,
    url: str,
    here: Path,
    many: int,
    megapixels: float,
    shares: dict[str, list[float]],
) -> dict:
    """What is timed, by name."""
    sizes = {f"{value:g} megapixels": value for value in (megapixels, 4 * megapixels)}
    photos = {name: make_photo(here / f"{index}.jpg", value) for index, (name, value) in enumerate(sizes.items())}
    (here / "folder").mkdir()
    for index in range(many):
        make_photo(here / "folder" / f"{index}.jpg", megapixels / 10, seed=index)
    (name, photo), run = next(iter(photos.items())), ("-m", "colorized_pipeline", "colorize")
    options = ("--checkpoint", checkpoint, "--overwrite", "-o")
    prepared, network = pipe.prepare(photo), DDColorTiny().eval()
    page, numbers = Client(url, verbose=False, download_files=str(here)), count()
    return {
        NETWORK: lambda: pipe.draw(prepared, generators=[torch.Generator().manual_seed(0)]),
        **{
            f"{IN_PROCESS}, {name}": in_process(pipe, photo, shares.setdefault(f"{IN_PROCESS}, {name}", []))
            for name, photo in photos.items()
        },
        f"shell to file, {name}": command(*run, photo, *options, here / "shell.jpg"),
        f"shell to folder, {many} of {megapixels / 10:g} megapixels": command(
            *run, here / "folder", *options, here / "colours"
        ),
        f"the page, {name}": lambda: page.predict(
            [handle_file(photo)], seed=next(numbers), intensity=1, api_name="/colorize_photos"
        ),
        "python -c 'import torch'": command("-c", "import torch"),
        "DDColor-tiny, 256 x 256": lambda: network(torch.zeros(1, 3, 256, 256)),
        "DDColor-tiny, 512 x 512": lambda: network(torch.zeros(1, 3, 512, 512)),
    }


def markdown(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['hardware']}, one core of it; {figures['rounds']} rounds, processor time: median (middle half). "
        f"Weights `{figures['weights']}`, {figures['steps']} steps, {figures['passes']} passes, seed 0.",
        "",
        "| what | seconds | times the network | besides the network |",
        "| --- | --- | --- | --- |",
    ]
    for row in figures["rows"]:
        seconds, times_network = (Spread(**row[key]) for key in ("seconds", "times_network"))
        besides = Spread(**row["besides"]).format("{:.0%}") if "besides" in row else ""
        lines.append(f"| {row['what']} | {seconds.format()} | {times_network.format()} | {besides} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for ways.json and ways.md")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), help="the package's if none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=100, help="photos in the folder")
    parser.add_argument("--megapixels", type=float, default=3.0, help="of the photo")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe, shares = load_pipeline(args.checkpoint), dict[str, list[float]]()
    pipe.set_progress_bar_config(disable=True)
    limits = PageLimits()
    page = build_page(pipe, limits)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        url = launch(page, limits, server_port=None, prevent_thread_lock=True)
        candidates = collect(pipe, args.checkpoint, url, Path(folder), args.many, args.megapixels, shares)
        taken = time_rounds(candidates, rounds=args.rounds, clock=processor_time)
        page.close()
    guided = pipe.config.default_guidance != 1
    figures = {
        "hardware": hardware(torch.device("cpu")),
        "rounds": args.rounds,
        "weights": pipe.digest(),
        "steps": pipe.config.default_steps,
        "passes": pipe.config.default_steps * (1 + guided),
        "rows": [
            {
                "what": name,
                "seconds": asdict(Spread.of(seconds)),
                "times_network": asdict(ratios(seconds, taken[NETWORK])),
                **({"besides": asdict(Spread.of(shares[name][1:]))} if name in shares else {}),
            }
            for name, seconds in taken.items()
        ],
    }
    save(args.output, "ways", figures, markdown(figures))
    print(markdown(figures))


if __name__ == "__main__":
    main()
