"""Which way of running the UNet on a processor pays: one denoising step of each, against PyTorch in float32.

    taskset -c 1 python benchmarks/engines.py --photos 'scenes/validation-*.parquet' -o docs/measurements/speed

With --photos whole colourings are compared too: their time, and how far their colours are from float32's at the same
seed. Needs the extras train and evaluate.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rounds import Spread, choose_clock, ratios, save, time_rounds

from colorized_pipeline import DEFAULT_CHECKPOINT, ColorizationPipeline
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.evaluation.colors import delta_e
from colorized_pipeline.evaluation.report import colorize, hardware
from colorized_pipeline.training.data import ColorizationDataset
from colorized_pipeline.training.sources import open_source

PAYS = 1.3  # times as fast as PyTorch in float32, to be worth an option

REFERENCE = "PyTorch, float32"
NAMES = (
    "channels_last",
    "bfloat16 autocast",
    "bfloat16 weights",
    "bfloat16 weights, channels_last",
    "torch.compile",
)
KEPT = ("bfloat16 weights, channels_last",)  # options of the command

Network = Callable[..., Any]


class _Autocast(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.unet(sample, timestep)


def build(name: str, pipe: ColorizationPipeline, *, threads: int) -> torch.nn.Module:
    """The pipeline's UNet, run in one of the ways of ``NAMES``."""
    unet = copy.deepcopy(pipe.unet)
    if name == "torch.compile":
        unet.compile(dynamic=False)
        return unet
    if name == "bfloat16 autocast":
        return _Autocast(unet)
    if name.startswith("bfloat16 weights"):
        unet.to(torch.bfloat16)
    if name.endswith("channels_last"):
        unet.to(memory_format=torch.channels_last)
    return unet


@torch.no_grad()
def measure_steps(
    networks: dict[str, torch.nn.Module],
    *,
    batches: list[int],
    channels: int,
    edge: int,
    rounds: int,
    threads: int,
) -> list[dict[str, Any]]:
    """Seconds a photo of one step and how many times as fast as the reference, by network and batch size."""
    clock, _ = choose_clock(threads)
    rows = []
    for batch in batches:
        sample = torch.randn(batch, channels, edge, edge, generator=torch.Generator().manual_seed(batch))
        expected = networks[REFERENCE](sample, 500).sample

        def run(network: torch.nn.Module, sample: torch.Tensor = sample) -> torch.Tensor:
            dtype = getattr(network, "dtype", torch.float32)  # casting is part of the step, as in the pipeline
            return network(sample.to(dtype), torch.tensor(500)).sample.float()

        differences = {name: (run(network) - expected).abs().max().item() for name, network in networks.items()}
        calls = {name: (lambda network=network: run(network)) for name, network in networks.items()}
        taken = time_rounds(calls, rounds=rounds, clock=clock)
        for name, seconds in taken.items():
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "seconds": asdict(Spread.of([value / batch for value in seconds])),
                    "times_as_fast": asdict(ratios(taken[REFERENCE], seconds)),
                    "difference": differences[name],
                    "largest": expected.abs().max().item(),
                }
            )
    return rows


def measure_colors(
    pipe: ColorizationPipeline,
    networks: dict[str, torch.nn.Module],
    lightness: torch.Tensor,
    *,
    threads: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Whole colourings of L* ``[N, 1, H, W]``: time against the reference's, CIEDE2000 to them at the same seed."""
    clock, _ = choose_clock(threads)
    own, pictures, seconds = pipe.unet, {}, {}
    steps = pipe.config.default_steps
    for name, network in networks.items():
        pipe.unet = network
        colorize(pipe, lightness, steps=1, seed=seed)
        started = clock()
        pictures[name] = rgb_to_lab(colorize(pipe, lightness, steps=steps, seed=seed))
        seconds[name] = clock() - started
    pipe.unet = own
    other = rgb_to_lab(colorize(pipe, lightness, steps=steps, seed=seed + 1))
    errors = {name: delta_e(picture, pictures[REFERENCE]) for name, picture in pictures.items()}
    errors["another seed"] = delta_e(other, pictures[REFERENCE])
    return [
        {
            "network": name,
            "photos": len(lightness),
            "delta_e_mean": error.mean().item(),
            "delta_e_max": error.max().item(),
            **({"times_as_fast": seconds[REFERENCE] / seconds[name]} if name in seconds else {}),
        }
        for name, error in errors.items()
    ]


def markdown(figures: dict[str, Any]) -> str:
    rows = figures["steps"]
    batches = sorted({row["batch"] for row in rows})
    lines = [
        f"{figures['hardware']}; {figures['threads']} thread(s), chroma grid {figures['edge']} x {figures['edge']}, "
        f"{figures['rounds']} rounds, {figures['clock']}; median (middle half); weights `{figures['weights']}`. "
        "Times as fast as PyTorch in float32; for that itself, milliseconds a photo.",
        "",
        "| one step | " + " | ".join(f"batch {batch}" for batch in batches) + " | largest difference | pays |",
        "| --- " * (3 + len(batches)) + "|",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        difference = max(row["difference"] / row["largest"] for row in own)
        if name == REFERENCE:
            cells = [f"{row['seconds']['median'] * 1e3:.1f} ms" for row in own] + ["", ""]
        else:
            pays = all(row["times_as_fast"]["median"] >= PAYS for row in own)
            cells = [Spread(**row["times_as_fast"]).format("{:.2f}") for row in own]
            cells += [f"{difference:.1g} of the output", "yes" if pays else "no"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"| {name} | {error} |" for name, error in figures["failed"].items()]
    if figures["colours"]:
        lines += [
            "",
            f"Whole colourings of {figures['colours'][0]['photos']} photos, {figures['denoising_steps']} steps, 32 at "
            "a time, same seed:",
            "",
            "| | times as fast | CIEDE2000 to float32, mean | largest of a photo |",
            "| --- | --- | --- | --- |",
        ]
    for row in figures["colours"]:
        speed = f"{row['times_as_fast']:.2f}" if "times_as_fast" in row else ""
        lines.append(f"| {row['network']} | {speed} | {row['delta_e_mean']:.2f} | {row['delta_e_max']:.2f} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for engines.json and engines.md")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), help="the package's if not given")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help="ways to measure"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="photos of one step")
    parser.add_argument("--edge", type=int, default=32, help="of the chroma grid, cells")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each")
    parser.add_argument("--threads", type=int, default=1, help="of every network")
    parser.add_argument("--photos", nargs="+", help="colour photos, for whole colourings: a folder or parquet files")
    parser.add_argument("--limit", type=int, default=24, help="only the first so many photos")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    pipe = ColorizationPipeline.from_pretrained(args.checkpoint, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    weights = pipe.digest()
    networks: dict[str, torch.nn.Module] = {REFERENCE: pipe.unet}
    failed = {}
    probe = torch.zeros(1, pipe.unet.config.in_channels, args.edge, args.edge)
    for name in args.only:
        try:
            network = build(name, pipe, threads=args.threads)
            with torch.no_grad():
                network(probe.to(getattr(network, "dtype", torch.float32)), torch.tensor(500))
            networks[name] = network
        except Exception as error:  # a compiler that is missing, a package: a row like any other
            failed[name] = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    steps = measure_steps(
        networks,
        batches=args.batches,
        channels=pipe.unet.config.in_channels,
        edge=args.edge,
        rounds=args.rounds,
        threads=args.threads,
    )
    colors = []
    if args.photos:
        source = open_source(args.photos)
        dataset = ColorizationDataset(
            source,
            resolution=args.edge * pipe.config.luma_factor,
            luma_factor=pipe.config.luma_factor,
            augment=False,
            indices=range(min(args.limit, len(source))),
        )
        lightness = torch.stack([dataset.lab(index)[:1] for index in range(len(dataset))])
        kept = {name: network for name, network in networks.items() if name in (REFERENCE, *KEPT)}
        colors = measure_colors(pipe, kept, lightness, threads=args.threads, seed=args.seed)
    figures = {
        "hardware": hardware(torch.device("cpu")),
        "threads": args.threads,
        "clock": choose_clock(args.threads)[1],
        "rounds": args.rounds,
        "edge": args.edge,
        "weights": weights,
        "denoising_steps": pipe.config.default_steps,
        "seed": args.seed,
        "steps": steps,
        "failed": failed,
        "colours": colors,
    }
    save(args.output, "engines", figures, markdown(figures))
    print(markdown(figures))


if __name__ == "__main__":
    main()
