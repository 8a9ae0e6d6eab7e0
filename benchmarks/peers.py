"""What a photo costs: COLORIZED beside the networks of other colorizers, in one run.

    python benchmarks/peers.py -o docs/measurements/speed

The others' trained weights are not needed for parameters, operations and time: their networks are built here at random
weights, from their published configurations. **Nothing here says anything about the quality of their colours.**

Ours is timed from the photo in memory to the finished picture; of the others only the network, which favours them.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from rounds import Spread, choose_clock, matrix_product, ratios, save, time_rounds
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import ConvNextBackbone, ConvNextConfig

from colorized_pipeline import DEFAULT_CHECKPOINT, ColorizationPipeline
from colorized_pipeline.evaluation.report import hardware

PALETTE_STEPS = 1000
PALETTE_SIZE = 256

SOURCES = {
    "DDColor-tiny": "Kang et al., DDColor, ICCV 2023 (arXiv:2212.11613); configuration convnext-t of "
    "github.com/piddnad/DDColor: ConvNeXt-T, pixel decoder of 512 channels, colour decoder of 9 layers and 100 "
    "queries over 3 scales. Spectral norms, which deployment folds into the weights, are left out.",
    "Palette": "Saharia et al., Palette, SIGGRAPH 2022 (arXiv:2111.05826); the size is that of config/"
    "colorization_mirflickr25k.json in github.com/Janspiry/Palette-Image-to-Image-Diffusion-Models: 64 channels times "
    "1, 2, 4, 8, two residual blocks a level and one for each change of size, attention in the middle (its "
    "attn_res of 16 is never reached), 6 channels in and 3 out, 1000 steps. Built of diffusers' blocks.",
}


class _Shuffle(nn.Module):
    """Upsampling by pixel shuffle and blur."""

    def __init__(self, channels: int, out: int, *, scale: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out * scale**2, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(out * scale**2) if norm else nn.Identity()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_shuffle(self.norm(self.conv(x)).relu(), self.scale)
        return F.avg_pool2d(F.pad(x, (1, 0, 1, 0), mode="replicate"), 2, stride=1)


class _PixelBlock(nn.Module):
    """A level of the pixel decoder: upsample, join the encoder's map, convolve."""

    def __init__(self, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.up = _Shuffle(channels, out, scale=2, norm=True)
        self.skip_norm = nn.BatchNorm2d(skip)
        self.conv = nn.Conv2d(out + skip, out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        joined = torch.cat((self.up(x), self.skip_norm(skip)), dim=1).relu()
        return self.norm(self.conv(joined).relu())


class DDColorTiny(nn.Module):
    """DDColor with ConvNeXt-T: grey ``[B, 3, H, W]`` to a*, b* ``[B, 2, H, W]``; H and W divisible by 32."""

    def __init__(self, *, width: int = 512, queries: int = 100, layers: int = 9, embedding: int = 256) -> None:
        super().__init__()
        sizes = [96, 192, 384, 768]
        stages = ["stage1", "stage2", "stage3", "stage4"]
        self.encoder = ConvNextBackbone(ConvNextConfig(hidden_sizes=sizes, depths=[3, 3, 9, 3], out_features=stages))
        outs = (width, width, width // 2)
        ins = (sizes[3], width, width)
        skips = sizes[2::-1]
        self.blocks = nn.ModuleList(_PixelBlock(*sizes) for sizes in zip(ins, skips, outs, strict=True))
        self.last = _Shuffle(outs[-1], embedding, scale=4, norm=False)
        self.project = nn.ModuleList(nn.Conv2d(size, embedding, 1) for size in outs)
        self.scales = nn.Embedding(len(outs), embedding)
        self.queries, self.query_places = nn.Embedding(queries, embedding), nn.Embedding(queries, embedding)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(embedding, 8, dim_feedforward=2048, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(embedding)
        hidden = [layer for _ in range(2) for layer in (nn.Linear(embedding, embedding), nn.ReLU())]
        self.colors = nn.Sequential(*hidden, nn.Linear(embedding, embedding))
        self.refine = nn.Conv2d(queries + 3, 2, 1)

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        *skips, x = self.encoder(gray).feature_maps
        maps = []
        for block, skip in zip(self.blocks, skips[::-1], strict=True):
            x = block(x, skip)
            maps.append(x)
        pixels = self.last(x)  # [B, embedding, H, W]
        memories = [
            project(x).flatten(2).transpose(1, 2) + scale
            for project, x, scale in zip(self.project, maps, self.scales.weight, strict=True)
        ]
        query = self.queries.weight.expand(len(gray), -1, -1)
        for index, layer in enumerate(self.layers):
            query = layer(query + self.query_places.weight, memories[index % len(memories)])
        weights = self.colors(self.norm(query))
        return self.refine(torch.cat((torch.einsum("bqc,bchw->bqhw", weights, pixels), gray), dim=1))


def build_palette() -> UNet2DModel:
    """A UNet of the size of Palette's re-implementation for colorization."""
    return UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(64, 128, 256, 512),
        layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("ResnetUpsampleBlock2D",) * 3 + ("UpBlock2D",),
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )


@dataclass
class Candidate:
    """Something that colorizes a photo, or ``1 / repeats`` of the work."""

    name: str
    photo: int
    parameters: int
    run: Callable[[], object]
    repeats: int = 1


def count_parameters(*parts: nn.Module | None) -> int:
    return sum(value.numel() for part in parts if part is not None for value in part.parameters())


def ours(pipe: ColorizationPipeline, size: int) -> Candidate:
    """A checkpoint as a user gets it: its default steps and guidance."""
    gray = torch.rand(size, size, generator=torch.Generator().manual_seed(0))

    def run() -> object:
        return pipe(gray, generator=torch.Generator().manual_seed(0))

    passes = pipe.config.default_steps * (1 if pipe.config.default_guidance == 1 else 2)
    label = f"COLORIZED, {passes} {'passes' if passes > 1 else 'pass'}"
    return Candidate(label, size, count_parameters(pipe.unet, pipe.image_encoder), run)


def ddcolor(network: DDColorTiny, size: int) -> Candidate:
    gray = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Candidate("DDColor-tiny", size, count_parameters(network), lambda: network(gray))


def palette(size: int) -> Candidate:
    network, scheduler = build_palette().eval(), DDPMScheduler(num_train_timesteps=PALETTE_STEPS)
    generator = torch.Generator().manual_seed(0)
    gray, noisy = torch.rand(2, 1, 3, size, size, generator=generator)

    def step() -> object:
        predicted = network(torch.cat((gray, noisy), dim=1), 500).sample
        return scheduler.step(predicted, 500, noisy, generator=generator)

    name = f"Palette, {PALETTE_STEPS} steps (one step a round, times {PALETTE_STEPS})"
    return Candidate(name, size, count_parameters(network), step, repeats=PALETTE_STEPS)


def count_flops(run: Callable[[], object]) -> float:
    """Floating-point operations of convolutions and matrix products, a multiplication and an addition as two."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter doesn't know the processor's fused attention
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


@torch.no_grad()
def measure(candidates: list[Candidate], *, rounds: int, threads: int) -> dict[str, Any]:
    """Rows of all candidates and the machine's peak; the first candidate of a photo size is its reference."""
    clock, clock_name = choose_clock(threads)
    product, product_flops = matrix_product()
    labels = [f"{one.name}/{one.photo}" for one in candidates]
    flops = [count_flops(one.run) * one.repeats for one in candidates]
    runs: dict[str, Callable[[], object]] = dict(zip(labels, (one.run for one in candidates), strict=True))
    taken = time_rounds({"peak": product, **runs}, rounds=rounds, clock=clock)
    peak = product_flops / min(taken["peak"])
    rows: list[dict[str, Any]] = []
    references: dict[int, list[float]] = {}
    for one, label, operations in zip(candidates, labels, flops, strict=True):
        seconds = [value * one.repeats for value in taken[label]]
        reference = references.setdefault(one.photo, seconds)
        spread = Spread.of(seconds)
        rows.append(
            {
                "network": one.name,
                "photo": one.photo,
                "parameters": one.parameters,
                "flop": operations,
                "seconds": asdict(spread),
                "flop_per_second": operations / spread.median,
                "of_peak": operations / spread.median / peak,
                "times_ours": asdict(ratios(seconds, reference)),
            }
        )
    return {"clock": clock_name, "peak_flop_per_second": peak, "rows": rows}


def markdown(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['hardware']}; {figures['threads']} thread(s), float32, one photo at a time, {figures['rounds']} "
        f"rounds, {figures['clock']}: median (middle half). Matrix product: "
        f"{figures['peak_flop_per_second'] / 1e9:.0f} GFLOP/s. Weights of ours "
        f"`{figures['weights']}`; all others random.",
        "",
        "| network | photo | parameters | GFLOP a photo | seconds a photo | GFLOP/s | of the peak | time / ours |",
        "| --- " * 8 + "|",
    ]
    for row in figures["rows"]:
        cells = (
            row["network"],
            f"{row['photo']} x {row['photo']}",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['flop'] / 1e9:,.0f}" if row["flop"] >= 1e11 else f"{row['flop'] / 1e9:.1f}",
            Spread(**row["seconds"]).format(),
            f"{row['flop_per_second'] / 1e9:.0f}",
            f"{row['of_peak']:.0%}",
            Spread(**row["times_ours"]).format(),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{name}: {source}" for name, source in SOURCES.items())]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for peers.json and peers.md")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), help="ours; the package's if none")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="edges of the photo, pixels")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each; so many steps of Palette in all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every network")
    parser.add_argument("--quick", action="store_true", help="two rounds at 64 pixels: to see that it runs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.sizes, args.rounds = [64], 2
    if any(size % 32 for size in args.sizes):
        parser.error("--sizes must be divisible by 32: the other networks take no others")

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pipe = ColorizationPipeline.from_pretrained(args.checkpoint, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    network = DDColorTiny().eval()
    candidates = []
    for size in args.sizes:
        candidates += [ours(pipe, size), ddcolor(network, size)]
        if size <= PALETTE_SIZE:  # it takes no larger ones
            candidates.append(palette(size))
    figures = {
        "hardware": hardware(torch.device("cpu")),
        "threads": args.threads,
        "rounds": args.rounds,
        "weights": pipe.digest(),
        **measure(candidates, rounds=args.rounds, threads=args.threads),
    }
    save(args.output, "peers", figures, markdown(figures))
    print(markdown(figures))


if __name__ == "__main__":
    main()
