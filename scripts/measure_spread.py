"""How far true chroma lies from the network's guess from pure noise, in each band of spatial frequency.

    python scripts/measure_spread.py runs/colorization/best --photos 'scenes/validation-*.parquet' --limit 400

Prints what a checkpoint's ``chroma_spread`` stands for: root mean squares over ``chroma_scale``, fine to coarse.
"""

import argparse
from pathlib import Path

import torch

from colorized_pipeline import DEFAULT_CHECKPOINT, ColorizationPipeline
from colorized_pipeline.diffusion.bands import BANDS, band_spread
from colorized_pipeline.diffusion.color import downsample_chroma
from colorized_pipeline.evaluation.bound import predicted_clean
from colorized_pipeline.evaluation.metrics import in_batches
from colorized_pipeline.training.data import ColorizationDataset
from colorized_pipeline.training.sources import open_source


@torch.no_grad()
def band_errors(pipe: ColorizationPipeline, lab: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Mean squared error of the guess in each band ``[B, BANDS]`` for L*, a*, b* ``[B, 3, R, R]``."""
    truth = downsample_chroma(lab[:, 1:], pipe.config.luma_factor) / pipe.config.chroma_scale
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    last = torch.full((len(lab),), pipe.scheduler.config.num_train_timesteps - 1)
    noisy = pipe.scheduler.add_noise(truth, noise, last)
    output = pipe.predict(noisy, last, condition=pipe.condition(lab[:, :1]))
    guess = predicted_clean(pipe.scheduler, output, noisy, last).float()
    return band_spread(truth - guess).square()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=DEFAULT_CHECKPOINT, help="pipeline folder")
    parser.add_argument("--photos", nargs="+", required=True, help="colour photos: a folder or parquet files")
    parser.add_argument("--limit", type=int, default=400, help="only the first so many photos")
    args = parser.parse_args()

    pipe = ColorizationPipeline.from_pretrained(args.checkpoint)
    source = open_source(args.photos)
    dataset = ColorizationDataset(
        source,
        resolution=pipe.config.working_size,
        luma_factor=pipe.config.luma_factor,
        augment=False,
        indices=range(min(args.limit, len(source))),
    )
    truth = torch.stack([dataset.lab(index) for index in range(len(dataset))])
    errors = in_batches(lambda lab: band_errors(pipe, lab), truth)
    print(f"{len(truth)} photos, {BANDS} bands:", *(f"{one:.4f}" for one in errors.mean(0).sqrt().tolist()))


if __name__ == "__main__":
    main()
