"""Time and memory of one photo by its size, and how much of the time isn't the UNet's; prints a markdown table.

    python scripts/measure_cost.py --photo scan.jpg

Each size runs in a process of its own, so that one's peak of memory isn't another's. Memory is the whole process's:
Python, torch and the loaded network too; the row of 0 megapixels is that, without a photo.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from colorized_pipeline import load_default


def measure(photo: Path, megapixels: float) -> dict[str, float]:
    """Seconds in all and inside the UNet of one call after a warm-up, and the process's peak of memory in MiB."""
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    seconds = unet_seconds = 0.0
    if megapixels:
        entered = [0.0]
        spent = [0.0]
        pipe.unet.register_forward_pre_hook(lambda *_: entered.__setitem__(0, time.perf_counter()))
        pipe.unet.register_forward_hook(lambda *_: spent.__setitem__(0, spent[0] + time.perf_counter() - entered[0]))
        image = Image.open(photo).convert("L")
        width = round(math.sqrt(megapixels * 1e6 * image.width / image.height))
        image = image.resize((width, round(megapixels * 1e6 / width)))
        pipe(image.resize((128, 128)), num_inference_steps=2)
        spent[0] = 0.0
        started = time.perf_counter()
        pipe(image, generator=torch.Generator().manual_seed(0))
        seconds, unet_seconds = time.perf_counter() - started, spent[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    return {"megapixels": megapixels, "seconds": seconds, "unet_seconds": unet_seconds, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="a photo, scaled to each size")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.0, 0.3, 3.0, 12.0], help="sizes to measure")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # the child process of one size
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.photo, args.one)))
        return

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {load_default().config.default_steps} steps\n"
    )
    print("| megapixels | time | outside the UNet | peak memory |\n| --- | --- | --- | --- |")
    for megapixels in args.megapixels:
        command = [sys.executable, __file__, "--photo", str(args.photo), "--one", str(megapixels)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        share = 1 - row["unet_seconds"] / row["seconds"] if row["seconds"] else 0
        print(f"| {megapixels:g} | {row['seconds']:.2f} s | {share:.0%} | {row['peak_mib']:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
