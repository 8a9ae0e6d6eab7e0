"""What a colour hint does to the rest of the picture; prints a markdown table.

python scripts/measure_hints.py --photos 'photos/*.parquet' --limit 100

Each photo gets one hint: the true colour of a disc of 2 % of its area, at a random place. "hint" is the colour error
inside the disc, "rest" outside of it (CIEDE2000, mean over photos), "seam" the share of photos whose chroma gradient
over the disc's edge is above the 95th percentile of that over equal circles elsewhere in the same true photo.
"""

import math
import time
from dataclasses import replace

import torch
from measuring import in_words, load, make_parser, provenance, read_crops
from skimage.color import deltaE_ciede2000

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion.color import lab_to_displayable_rgb, rgb_to_lab
from colorized_pipeline.diffusion.hints import HintMap
from colorized_pipeline.diffusion.photo import Lightness

AREA = 0.02
CIRCLES = 40  # of equal size, in the true photo, that an edge's gradient is compared to
BATCH = 8


@torch.no_grad()
def draw(
    pipe: ColorizationPipeline, lightness: torch.Tensor, maps: list[HintMap] | None, *, first: int, steps: int | None
) -> torch.Tensor:
    """Chroma ``[B, 2, H, W]`` at working size; the noise of photo ``first + i`` is the same with hints and without."""
    size = lightness.shape[-1]
    prepared = [pipe.prepare(Lightness(one), working_size=size, borders=False) for one in lightness]
    if maps:
        prepared = [replace(one, hints=hints) for one, hints in zip(prepared, maps, strict=True)]
    generators = [torch.Generator().manual_seed(first + i) for i in range(len(prepared))]
    drawn = pipe.draw(prepared, num_inference_steps=steps, generators=generators)
    nothing = HintMap(torch.zeros(2, size, size), torch.zeros(1, size, size))
    pairs = zip(maps or [nothing] * len(drawn), drawn, strict=True)
    return torch.stack([hints.impose(grid, size // grid.shape[-1]) for hints, grid in pairs])


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
    args = make_parser(__doc__, limit=100).parse_args()

    pipe = load(args.checkpoint, device=args.device)
    size = args.resolution
    labs = read_crops(args.photos, resolution=size, limit=args.limit)
    radius = size * math.sqrt(AREA / math.pi)
    places = torch.rand(len(labs), CIRCLES + 1, 2, generator=torch.Generator().manual_seed(args.seed))
    distances = [
        [disc(size, radius + place * (size - 2 * radius), radius) for place in of_photo] for of_photo in places
    ]
    inside = torch.stack([of_photo[0] <= 0 for of_photo in distances])  # [N, H, W]
    mean = (labs[:, 1:] * inside[:, None]).sum((2, 3), keepdim=True) / inside.sum((1, 2)).reshape(-1, 1, 1, 1)
    hinted = mean.expand_as(labs[:, 1:])
    maps = [HintMap(color, where[None].float()) for color, where in zip(hinted, inside, strict=True)]

    record = provenance(pipe, args.photos, count=len(labs), seed=args.seed)
    print(f"{in_words(record)} Hint: the true mean colour.\n", flush=True)
    print("| drawn with | hint ΔE | rest ΔE | change | rest better in | mean chroma | seam | s a photo |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    plain = None
    for name, given in (("no hint", None), ("hint", maps)):
        started = time.process_time()
        chroma = torch.cat(
            [
                draw(
                    pipe,
                    labs[i : i + BATCH, :1],
                    given[i : i + BATCH] if given else None,
                    first=args.seed + i,
                    steps=args.steps,
                )
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
