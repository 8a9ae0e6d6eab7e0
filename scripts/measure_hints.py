"""What a colour hint does to the rest of the picture, by several ways of imposing it; prints a markdown table.

python scripts/measure_hints.py --photos 'photos/*.parquet' --limit 100

Each photo gets one hint: the true colour of a disc of 2 % of its area, at a random place. "hint" is the colour error
inside the disc, "rest" outside of it (CIEDE2000, mean over photos), "seam" the share of photos whose chroma gradient
over the disc's edge is above the 95th percentile of that over equal circles elsewhere in the same true photo.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from skimage.color import deltaE_ciede2000

from colorized_pipeline import ColorizationPipeline, load_default
from colorized_pipeline.diffusion.color import lab_to_displayable_rgb, rgb_to_lab
from colorized_pipeline.diffusion.hints import HintMap
from colorized_pipeline.diffusion.photo import Lightness
from colorized_pipeline.diffusion.steering import HintSteer, Steer
from colorized_pipeline.evaluation.report import weights_digest
from colorized_pipeline.training.data import ColorizationDataset
from colorized_pipeline.training.sources import open_source

AREA = 0.02
CIRCLES = 40  # of equal size, in the true photo, that an edge's gradient is compared to
BATCH = 8


class Replacement:
    """Only the hinted cells of the predicted x_0 are replaced (as DDNM, Wang et al. 2023): nothing is propagated."""

    needs_network = False

    def __init__(self, target: torch.Tensor, share: torch.Tensor) -> None:
        self.target, self.share = target, share

    def __call__(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        return torch.lerp(clean.detach(), self.target, self.share)


class GradientSteer:
    """DPS (Chung et al. 2023) in terms of x_0: a step of given length down the gradient of the hints' error."""

    needs_network = True

    def __init__(self, target: torch.Tensor, share: torch.Tensor, *, strength: float) -> None:
        self.target, self.share, self.strength = target, share, strength

    def __call__(self, clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        error = (self.share * (self.target - clean)).square().sum((1, 2, 3)).sqrt()
        (gradient,) = torch.autograd.grad(error.sum(), noisy)
        return torch.lerp(clean.detach() - self.strength * gradient, self.target, self.share)


def repaint(
    pipe: ColorizationPipeline,
    lightness: torch.Tensor,
    *,
    steps: int,
    generators: list[torch.Generator],
    target: torch.Tensor,
    share: torch.Tensor,
    jumps: int,
) -> torch.Tensor:
    """RePaint (Lugmayr et al. 2022): at every step the hinted cells are replaced by their colour, noised alike.

    Each step is done ``jumps`` times, with noise added back between: a whole pass of the network each time.
    """

    def noise() -> torch.Tensor:
        return torch.cat([torch.randn(1, *target.shape[1:], generator=one) for one in generators])

    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    condition, chroma = pipe.condition(lightness), noise()
    times = [int(t) for t in scheduler.timesteps]
    for timestep, before in zip(times, [*times[1:], -1], strict=True):
        level = scheduler.alphas_cumprod[before] if before >= 0 else torch.tensor(1.0)
        for jump in range(jumps if before >= 0 else 1):
            if jump:
                kept = scheduler.alphas_cumprod[timestep] / level
                chroma = kept.sqrt() * chroma + (1 - kept).sqrt() * noise()
            predicted = pipe.predict(
                chroma, torch.tensor(timestep), condition=condition, guidance_scale=pipe.config.default_guidance
            )
            chroma = scheduler.step(predicted, timestep, chroma, generator=generators).prev_sample
            chroma = pipe.add_posterior_noise(chroma, torch.tensor(timestep), generators=generators)
            known = level.sqrt() * target + (1 - level).sqrt() * noise()
            chroma = torch.lerp(chroma, known, share)
    return chroma * pipe.config.chroma_scale


METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor], Steer] | int | None] = {
    "no hint": None,
    "replacement of x_0": Replacement,
    "RePaint, 1 pass a step": 1,
    "RePaint, 4 passes a step": 4,
    "gradient, strength 0.5": lambda target, share: GradientSteer(target, share, strength=0.5),
    "gradient, strength 2": lambda target, share: GradientSteer(target, share, strength=2.0),
    "gradient, strength 8": lambda target, share: GradientSteer(target, share, strength=8.0),
    "ours": HintSteer,
}


@torch.no_grad()
def draw(
    pipe: ColorizationPipeline, name: str, lightness: torch.Tensor, maps: list[HintMap], *, first: int, steps: int
) -> torch.Tensor:
    """Chroma ``[B, 2, H, W]`` at working size; the noise of photo ``first + i`` is the same for every method."""
    method, factor = METHODS[name], pipe.config.luma_factor
    generators = [torch.Generator().manual_seed(first + i) for i in range(len(maps))]
    targets, shares = zip(*(one.on_grid(factor) for one in maps), strict=True)
    target, share = torch.stack(targets) / pipe.config.chroma_scale, torch.stack(shares)
    if isinstance(method, int):
        drawn = repaint(pipe, lightness, steps=steps, generators=generators, target=target, share=share, jumps=method)
    else:
        steer = method(target, share) if method else None
        pipe._steer = lambda *_, **__: steer  # the methods that were given up are no longer the pipeline's
        prepared = [pipe.prepare(Lightness(one), borders=False) for one in lightness]
        drawn = pipe.draw(prepared, num_inference_steps=steps, generators=generators)
    if method is None:
        maps = [HintMap(one.chroma, torch.zeros_like(one.known)) for one in maps]
    return torch.stack([one.impose(grid, factor) for one, grid in zip(maps, drawn, strict=True)])


def disc(size: int, centre: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance of each pixel's centre from the edge of a disc, ``[size, size]``; negative inside."""
    at = torch.arange(size) + 0.5
    return ((at[:, None] - centre[0]).square() + (at[None] - centre[1]).square()).sqrt() - radius


def edge_gradient(chroma: torch.Tensor, distance: torch.Tensor) -> float:
    """Mean change of a*, b* a pixel along the radius, over the ring of 2 pixels each side of an edge."""
    by_row, by_column = torch.gradient(chroma, dim=(-2, -1))
    normal_row, normal_column = torch.gradient(distance, dim=(-2, -1))
    along = (by_row * normal_row + by_column * normal_column).norm(dim=0)
    return along[distance.abs() <= 2].mean().item()


def is_seam(result: torch.Tensor, truth: torch.Tensor, distance: torch.Tensor, circles: list[torch.Tensor]) -> bool:
    usual = torch.tensor([edge_gradient(truth, circle) for circle in circles])
    return edge_gradient(result, distance) > usual.quantile(0.95).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True, help="a folder of colour photos, or parquet files")
    parser.add_argument("--limit", type=int, default=100, help="at most this many photos")
    parser.add_argument("--steps", type=int, help="denoising steps; the checkpoint's default if not given")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--pixels", action="store_true", help="hint each pixel's own colour, not the disc's mean")
    args = parser.parse_args()

    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    steps, size = args.steps or pipe.config.default_steps, pipe.config.working_size
    source = open_source(args.photos)
    chosen = range(min(args.limit, len(source)))
    photos = ColorizationDataset(
        source, resolution=size, luma_factor=pipe.config.luma_factor, augment=False, indices=chosen
    )
    labs = torch.stack([photos.lab(index) for index in range(len(photos))])
    radius = size * math.sqrt(AREA / math.pi)
    places = torch.rand(len(labs), CIRCLES + 1, 2, generator=torch.Generator().manual_seed(0))
    distances = [
        [disc(size, radius + place * (size - 2 * radius), radius) for place in of_photo] for of_photo in places
    ]
    inside = torch.stack([of_photo[0] <= 0 for of_photo in distances])  # [N, H, W]
    mean = (labs[:, 1:] * inside[:, None]).sum((2, 3), keepdim=True) / inside.sum((1, 2)).reshape(-1, 1, 1, 1)
    hinted = labs[:, 1:] if args.pixels else mean.expand_as(labs[:, 1:])
    maps = [HintMap(colour, where[None].float()) for colour, where in zip(hinted, inside, strict=True)]

    what = "each pixel's true colour" if args.pixels else "the true mean colour"
    print(
        f"{len(labs)} photos, {steps} steps of {type(pipe.scheduler).__name__}, guidance "
        f"{pipe.config.default_guidance:g}, seeds 0 ..., hint: {what}; weights `{weights_digest(pipe)}`\n",
        flush=True,
    )
    print("| method | hint ΔE | rest ΔE | change | rest better in | mean chroma | seam | s a photo |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    plain = None
    for name in args.methods:
        started = time.process_time()
        chroma = torch.cat(
            [
                draw(pipe, name, labs[i : i + BATCH, :1], maps[i : i + BATCH], first=i, steps=steps)
                for i in range(0, len(labs), BATCH)
            ]
        )
        seconds = (time.process_time() - started) / len(labs)
        drawn = zip(labs, chroma, strict=True)
        shown = torch.stack([rgb_to_lab(lab_to_displayable_rgb(torch.cat((lab[:1], ab)))) for lab, ab in drawn])
        errors = torch.from_numpy(deltaE_ciede2000(shown.numpy(), labs.numpy(), channel_axis=1))  # [N, H, W]
        hint = (errors * inside).sum((1, 2)) / inside.sum((1, 2))
        rest = (errors * ~inside).sum((1, 2)) / (~inside).sum((1, 2))
        plain = rest if plain is None else plain
        seams = [is_seam(shown[i, 1:], labs[i, 1:], distances[i][0], distances[i][1:]) for i in range(len(labs))]
        print(
            f"| {name} | {hint.mean():.2f} | {rest.mean():.2f} | {(rest.mean() / plain.mean() - 1) * 100:+.1f} % "
            f"| {(rest < plain).float().mean() * 100:.0f} % | {shown[:, 1:].norm(dim=1).mean():.1f} "
            f"| {sum(seams) / len(seams) * 100:.0f} % | {seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
