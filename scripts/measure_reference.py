"""How near a reference photo's palette brings the colours of a result to it; prints a table, writes a sheet.

python scripts/measure_reference.py --photos 'photos/*.parquet' --group_column scene --limit 60 --sheet sheet.jpg

Each photo gets the next photo of its class as reference. The distance of two chroma histograms is the sliced
Wasserstein distance of their a*, b* (mean over 32 directions), in CIELAB units.
"""

from pathlib import Path

import torch
from measuring import in_words, load, make_parser, provenance
from skimage.color import deltaE_ciede2000

from colorized_pipeline.batch.sheets import paint_sheet
from colorized_pipeline.diffusion.color import (
    lab_to_displayable_rgb,
    lightness_to_gray,
    rgb_to_lab,
    upsample_columns,
    upsample_rows,
)
from colorized_pipeline.diffusion.photo import Lightness
from colorized_pipeline.evaluation.photos import read_photos
from colorized_pipeline.training.sources import open_source

BATCH = 8


def histogram_distance(first: torch.Tensor, second: torch.Tensor, *, directions: int = 32) -> float:
    """Sliced Wasserstein distance of the colours of two chroma pictures ``[2, H, W]`` of equal size."""
    angles = torch.arange(directions) * (torch.pi / directions)
    lines = torch.stack((angles.cos(), angles.sin()), dim=1)
    one, other = ((lines @ picture.flatten(1)).sort(dim=1).values for picture in (first, second))
    return (one - other).abs().mean().item()


def to_rgb(lab: torch.Tensor, chroma: torch.Tensor) -> torch.Tensor:
    """A drawn grid with a photo's lightness: sRGB ``[3, H, W]``."""
    height, width = lab.shape[-2:]
    factor = height / chroma.shape[-2]
    full = upsample_rows(upsample_columns(chroma, width, factor), 0, height, factor)
    return lab_to_displayable_rgb(torch.cat((lab[:1], full)))


def pair_up(groups: list[str], pairs: int) -> list[tuple[int, int]]:
    """``(photo, reference)``: each photo with the next one of its group, spread evenly over the groups."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    found = [
        (number, (one, group[(number + 1) % len(group)]))
        for group in members.values()
        if len(group) > 1
        for number, one in enumerate(group)
    ]
    return [pair for _, pair in sorted(found)][:pairs]


def main() -> None:
    parser = make_parser(__doc__, limit=60)
    parser.add_argument("--group_column", default="scene", help="column with the class; --limit counts pairs")
    parser.add_argument("--sheet", type=Path, help="picture to write: grey, plain, with reference, reference")
    args = parser.parse_args()

    pipe = load(args.checkpoint, device=args.device)
    steps, guidance = args.steps or pipe.config.default_steps, pipe.config.default_guidance
    source = open_source(args.photos)
    photos = read_photos(source, name="", resolution=args.resolution, group_column=args.group_column)
    labs, pairs = photos.truth, pair_up(list(photos.groups or ()), args.limit)
    plain: list[torch.Tensor] = []
    steered: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            prepared = [pipe.prepare(Lightness(labs[photo][:1]), borders=False) for photo, _ in batch]
            seeds = range(args.seed + start, args.seed + start + len(batch))
            drawn = pipe.draw(
                prepared,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            )
            plain += [to_rgb(labs[photo], chroma) for (photo, _), chroma in zip(batch, drawn, strict=True)]
            for seed, (photo, reference), one in zip(seeds, batch, prepared, strict=True):
                palette = pipe.read_palette(lab_to_displayable_rgb(labs[reference]))
                (chroma,) = pipe.draw(
                    one,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generators=[torch.Generator().manual_seed(seed)],
                    palette=palette,
                )
                steered.append(to_rgb(labs[photo], chroma))

    record = provenance(pipe, args.photos, count=len(pairs), seed=args.seed)
    print(f"{in_words(record)} Pairs of one class.\n")
    print("| result | histogram distance to the reference | nearer in | ΔE to the photo's truth | mean chroma |")
    print("| --- | --- | --- | --- | --- |")
    first = None
    for name, results in (("without", plain), ("with reference", steered)):
        shown = torch.stack([rgb_to_lab(rgb) for rgb in results])
        away = torch.tensor(
            [histogram_distance(lab[1:], labs[other][1:]) for lab, (_, other) in zip(shown, pairs, strict=True)]
        )
        first = away if first is None else first
        truth = torch.stack([labs[photo] for photo, _ in pairs])
        error = deltaE_ciede2000(shown.numpy(), truth.numpy(), channel_axis=1).mean()
        print(
            f"| {name} | {away.mean():.2f} ({(away.mean() / first.mean() - 1) * 100:+.0f} %) "
            f"| {(away < first).float().mean() * 100:.0f} % | {error:.2f} | {shown[:, 1:].norm(dim=1).mean():.1f} |"
        )
    if args.sheet:
        rows = [
            (lightness_to_gray(labs[photo][:1]).expand(3, -1, -1), *colors, lab_to_displayable_rgb(labs[reference]))
            for (photo, reference), *colors in zip(pairs, plain, steered, strict=True)
        ]
        paint_sheet(rows).save(args.sheet, quality=90)


if __name__ == "__main__":
    main()
