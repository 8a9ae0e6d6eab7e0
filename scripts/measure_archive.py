"""Measure the archive command; prints markdown tables.

    python scripts/measure_archive.py size --photo scan.jpg           time and peak memory against megapixels
    python scripts/measure_archive.py throughput --photo scan.jpg     photos a second against the network's own rate
    python scripts/measure_archive.py flat --photo scan.jpg           peak memory of 50 and of 500 photos
    python scripts/measure_archive.py working-size --photos FOLDER    colour difference between working sizes

Each figure of memory is of a process of its own: the whole of it, Python, torch and network included.
"""

import argparse
import contextlib
import io
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

from colorized_pipeline import load_default
from colorized_pipeline.color import rgb_to_lab
from colorized_pipeline.files import PHOTO_SUFFIXES

_GRAIN = 4.0  # standard deviation, 8-bit code values


def make_photos(photo: Path, folder: Path, numbers: range, *, megapixels: float) -> None:
    """Different grey JPEGs of one photo."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        resize(photo, megapixels, number=number).save(folder / f"{number:04}.jpg", quality=80 + number % 16)


def resize(photo: Path, megapixels: float, *, number: int = 0) -> Image.Image:
    """The photo in grey at so many megapixels, with the grain of a scan, which is another for each ``number``."""
    with Image.open(photo) as opened:
        image = opened.convert("L")
    width = round(math.sqrt(megapixels * 1e6 * image.width / image.height))
    smooth = image.resize((width, round(megapixels * 1e6 / width)), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(number).standard_normal((smooth.height, smooth.width), dtype=np.float32)
    return Image.fromarray((np.asarray(smooth) + _GRAIN * grain).clip(0, 255).astype(np.uint8))


def run_command(words: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of ``colorized colorize`` in a process of its own, without the start of Python."""
    script = (
        "import sys, time, resource, json\n"
        "from colorized_pipeline import cli\n"
        "started = time.monotonic()\n"
        "try: cli.app(sys.argv[1:], standalone_mode=False)\n"
        "finally: print(json.dumps([time.monotonic() - started,"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "colorize", *words], capture_output=True, text=True)
    seconds, peak = json.loads(done.stderr.splitlines()[-1])
    return seconds, peak


def measure_size(photo: Path, megapixels: list[float], steps: int) -> None:
    print("| megapixels | format | time | peak memory |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for size in megapixels:
            image = resize(photo, size)
            image.save(work / "a.jpg", quality=92)
            tifffile.imwrite(work / "a.tif", np.asarray(image).astype(np.uint16) * 257, compression="lzw")
            for file, kind in (("a.jpg", "8-bit JPEG"), ("a.tif", "16-bit TIFF")):
                words = [str(work / file), "-o", str(work / f"out-{file}"), "--overwrite", "--steps", str(steps)]
                seconds, peak = run_command([*words, "--device", "cpu"])
                print(f"| {size:g} | {kind} | {seconds:.1f} s | {peak:.0f} MiB |", flush=True)


def measure_flat(photo: Path, megapixels: float, counts: list[int], steps: int) -> None:
    print("| photos | time | peak memory |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        made = 0
        for count in counts:
            make_photos(photo, work / "in", range(made, count), megapixels=megapixels)
            made = count
            words = [str(work / "in"), "-o", str(work / f"out{count}"), "-r", "--steps", str(steps), "--device", "cpu"]
            seconds, peak = run_command(words)
            print(f"| {count} | {seconds:.0f} s | {peak:.0f} MiB |", flush=True)


def measure_throughput(photo: Path, megapixels: float, count: int, steps: int, rounds: int) -> None:
    """Folder runs and runs of the network alone take turns, so that what else the machine does weighs on both."""
    from colorized_pipeline import batch
    from colorized_pipeline.files import find_photos, plan_jobs

    pipe = load_default()
    settings = batch.Settings(0, steps, 1.0, pipe.config.working_size, "-", "-")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_photos(photo, work / "in", range(count), megapixels=megapixels)
        jobs = plan_jobs(find_photos([work / "in"]), work / "out", inputs=[work / "in"])
        photo_at_work = batch.Batch(pipe, settings)._read(jobs[0])

        def folder() -> None:
            outcomes = list(batch.Batch(pipe, settings, overwrite=True).run(jobs))
            assert all(outcome.state == "done" for outcome in outcomes)

        def network() -> None:
            """The same batches by the same threads, without reading and writing."""
            engine = batch.Batch(pipe, settings)
            batches = [[(photo_at_work, 0)] * settings.batch_size] * math.ceil(count / settings.batch_size)
            list(engine._networks.map(lambda one: engine._sample(one, None), batches))

        rows = [(_clock(folder), _clock(network)) for _ in range(rounds + 1)][1:]
    print("| round | folder, photos/s | network alone, photos/s | ratio | the same of processor time |")
    print("| --- | --- | --- | --- | --- |")
    for number, (whole, alone) in enumerate(rows, start=1):
        ratios = f"{alone[0] / whole[0]:.2f} | {alone[1] / whole[1]:.2f}"
        print(f"| {number} | {count / whole[0]:.2f} | {count / alone[0]:.2f} | {ratios} |")
    used = [f"{np.median([one[1] for one in column]) / count:.3f} s" for column in zip(*rows, strict=True)]
    print(f"processor time a photo: {used[0]} in all, {used[1]} in the network")


def _clock(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time in all threads."""
    started, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - started, time.process_time() - used


def measure_working_size(photos: Path, sizes: list[int], count: int, steps: int, seeds: int) -> None:
    """Mean colour difference (CIE76) between working sizes, beside that between seeds; and mean chroma at each."""
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    files = sorted(file for file in photos.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)[:count]

    def draw(size: int, seed: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(1000 * seed + number) for number in range(len(files))]
        images = pipe(
            list(files), working_size=size, num_inference_steps=steps, generator=generators, output_type="pt"
        ).images
        return torch.stack([torch.nn.functional.interpolate(rgb_to_lab(rgb)[None, 1:], (64, 64))[0] for rgb in images])

    drawn = {size: torch.stack([draw(size, seed) for seed in range(seeds)]) for size in sizes}  # [S, B, 2, 64, 64]
    print("| working size | mean chroma | change of a photo's mean colour from 128 | between seeds at this size |")
    print("| --- | --- | --- | --- |")
    for size in sizes:
        means = {key: value.mean(dim=(0, 3, 4)) for key, value in drawn.items()}  # [B, 2], over seeds and pixels
        from_128 = (means[size] - means[128]).norm(dim=-1).mean()
        between = (drawn[size].mean(dim=(3, 4)) - means[size]).norm(dim=-1).mean()
        chroma = drawn[size].norm(dim=2).mean()
        print(f"| {size} | {chroma:.2f} | {from_128:.2f} | {between:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["size", "throughput", "flat", "working-size"])
    parser.add_argument("--photo", type=Path, help="a photo, scaled to each size")
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--megapixels", type=float, nargs="+", help="sizes to measure")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 500], help="photos of the runs of 'flat'")
    parser.add_argument("--count", type=int, default=24, help="photos of 'throughput' and 'working-size'")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 160, 192, 224, 256], help="working sizes")
    parser.add_argument("--seeds", type=int, default=2, help="of 'working-size'")
    parser.add_argument("--steps", type=int, help="denoising steps; the checkpoint's default if not given")
    parser.add_argument("--rounds", type=int, default=3, help="of 'throughput'")
    args = parser.parse_args()
    with contextlib.redirect_stderr(io.StringIO()):
        steps = args.steps or load_default().config.default_steps
    print(f"torch {torch.__version__}, {steps} steps\n")
    if args.what == "size":
        measure_size(args.photo, args.megapixels or [0.3, 3, 12, 100], steps)
    elif args.what == "flat":
        measure_flat(args.photo, (args.megapixels or [3.0])[0], args.counts, steps)
    elif args.what == "throughput":
        measure_throughput(args.photo, (args.megapixels or [3.0])[0], args.count, steps, args.rounds)
    else:
        measure_working_size(args.photos, args.sizes, args.count, steps, args.seeds)
    print(f"\npeak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
