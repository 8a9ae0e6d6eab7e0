"""Put a trained pipeline into the package: half precision, small enough, and checked to paint the same.

    python scripts/package_checkpoint.py runs/colorization/best

Only the weights are halved; they load as float32. The package has the code, so the copy beside the weights is
left out.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from colorized_pipeline import DEFAULT_CHECKPOINT, FAST_CHECKPOINT, ColorizationPipeline
from colorized_pipeline.diffusion.bands import BANDS

LIMIT_BYTES = 32 * 10**6


def halve_weights(folder: Path) -> None:
    """Rewrite every safetensors file below ``folder`` with float16 for float32."""
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        halved = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
        unbounded = [name for name, t in halved.items() if not t.isfinite().all()]
        if unbounded:
            raise ValueError(f"{file}: {unbounded} don't fit into float16")
        save_file(halved, file, metadata={"format": "pt"})
        file.chmod(0o644)


def largest_difference(first: ColorizationPipeline, second: ColorizationPipeline) -> float:
    """Mean absolute difference, in 8-bit steps, of the two pipelines' pictures of one random photo."""
    gray = np.random.default_rng(0).random((16, 16)).repeat(8, axis=0).repeat(8, axis=1)
    pictures = []
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipe(gray, num_inference_steps=10, generator=generator, output_type="np").images[0])
    return float(np.abs(pictures[0] - pictures[1]).mean() * 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="folder of a trained pipeline")
    parser.add_argument("--output", type=Path, help="where to put it, if not in the package")
    parser.add_argument("--default_steps", type=int, help="denoising steps when a call doesn't say")
    parser.add_argument("--default_guidance", type=float, help="guidance scale when a call doesn't say")
    parser.add_argument("--chroma_spread", type=float, nargs=BANDS, metavar="STD", help="see measure_spread.py")
    parser.add_argument("--fast", action="store_true", help="as the distilled one, which shares the other's encoder")
    args = parser.parse_args()

    names = ("default_steps", "default_guidance", "chroma_spread")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    trained = ColorizationPipeline.from_pretrained(args.pipeline, **changes)
    output = args.output or (FAST_CHECKPOINT if args.fast else DEFAULT_CHECKPOINT)
    partial = output.with_name(f"partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    trained.save_pretrained(partial)
    for code in partial.glob("*.py"):
        code.unlink()
    shared = {"image_encoder": trained.image_encoder} if args.fast else {}
    if args.fast:
        shutil.rmtree(partial / "image_encoder")
    halve_weights(partial)
    size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    if size > LIMIT_BYTES:
        raise SystemExit(f"{size / 1e6:.1f} MB is over the limit of {LIMIT_BYTES / 1e6:.0f} MB; nothing was replaced")
    difference = largest_difference(trained, ColorizationPipeline.from_pretrained(partial, **shared))
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    print(f"{output}: {size / 1e6:.1f} MB; mean difference to full precision {difference:.2f} of 255")


if __name__ == "__main__":
    main()
