"""Measure the archive command; prints markdown tables.

    python scripts/measure_archive.py size --photo scan.jpg           time and peak memory against megapixels
    python scripts/measure_archive.py throughput --photo scan.jpg     photos a second against the network's own rate
    python scripts/measure_archive.py processes --photo scan.jpg      one process against two that share the folder
    python scripts/measure_archive.py flat --photo scan.jpg           peak memory of 50 and of 500 photos
    python scripts/measure_archive.py working-size --photos FOLDER    colour difference between working sizes

Each figure of memory is of a process of its own: the whole of it, Python, torch and network included.
"""

import argparse
import contextlib
import io
import json
import math
import os
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
from colorized_pipeline.archive.files import PHOTO_SUFFIXES
from colorized_pipeline.archive.scans import hash_file
from colorized_pipeline.diffusion.color import rgb_to_lab

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


def run_command(words: list[str]) -> tuple[float, float, float]:
    """Seconds by the clock, of processor time, and peak MiB of ``colorized colorize``, without the start of Python."""
    script = (
        "import sys, time, re, json\n"
        "from colorized_pipeline import cli\n"
        "started, used = time.monotonic(), time.process_time()\n"
        "try: cli.app(sys.argv[1:], standalone_mode=False)\n"
        # Not ru_maxrss, which a process inherits from the one that starts it
        "finally: print(json.dumps([time.monotonic() - started, time.process_time() - used,"
        " int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "colorize", *words], capture_output=True, text=True)
    seconds, used, peak = json.loads(done.stderr.splitlines()[-1])
    return seconds, used, peak


def measure_size(photo: Path, megapixels: list[float], options: list[str]) -> None:
    print("| megapixels | format | time | processor time | peak memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for size in megapixels:
            image = resize(photo, size)
            image.save(work / "a.jpg", quality=92)
            tifffile.imwrite(work / "a.tif", np.asarray(image).astype(np.uint16) * 257, compression="lzw")
            for file, kind in (("a.jpg", "8-bit JPEG"), ("a.tif", "16-bit TIFF")):
                words = [str(work / file), "-o", str(work / f"out-{file}"), "--overwrite", *options]
                seconds, used, peak = run_command([*words, "--device", "cpu"])
                print(f"| {size:g} | {kind} | {seconds:.1f} s | {used:.1f} s | {peak:.0f} MiB |", flush=True)


def measure_flat(photo: Path, megapixels: float, counts: list[int], options: list[str]) -> None:
    print("| photos | time | peak memory |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        made = 0
        for count in counts:
            make_photos(photo, work / "in", range(made, count), megapixels=megapixels)
            made = count
            words = [str(work / "in"), "-o", str(work / f"out{count}"), "-r", *options, "--device", "cpu"]
            seconds, _, peak = run_command(words)
            print(f"| {count} | {seconds:.0f} s | {peak:.0f} MiB |", flush=True)


def measure_throughput(
    photo: Path, megapixels: float, count: int, *, steps: int, guidance: float, rounds: int
) -> None:
    """Folder runs and runs of the network alone take turns, so that what else the machine does weighs on both."""
    from colorized_pipeline.archive.files import find_photos, plan_jobs
    from colorized_pipeline.batch import overlap as batch

    pipe = load_default()
    settings = batch.Settings(0, steps, 1.0, pipe.config.working_size, "-", "-", guidance=guidance)
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


def measure_processes(photo: Path, megapixels: float, count: int, options: list[str]) -> None:
    """A folder by one process and by two that share it, one thread each; by the clock, with the start of Python."""
    launchers = {
        "one process": [sys.executable],
        "torchrun, 2": [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split()],
        "accelerate launch, 2": [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *"--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split(),
        ],
    }
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    print("| run by | time | photos/s | results |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work, known = Path(name), None
        make_photos(photo, work / "in", range(count), megapixels=megapixels)
        for number, (words, launcher) in enumerate(launchers.items()):
            output = work / f"out{number}"
            command = [*launcher, "-m", "colorized_pipeline", "colorize", str(work / "in"), "-o", str(output), "-r"]
            started = time.monotonic()
            subprocess.run([*command, *options, "--device", "cpu"], env=environment, capture_output=True, check=True)
            seconds = time.monotonic() - started
            found = {file.name: hash_file(file) for file in output.glob("*.jpg")}
            known = known or found
            same = "equal to the byte" if found == known and len(found) == count else "DIFFERENT"
            print(f"| {words} | {seconds:.1f} s | {count / seconds:.2f} | {same} |", flush=True)


def _clock(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time in all threads."""
    started, used = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - started, time.process_time() - used


def measure_working_size(
    photos: Path, sizes: list[int], count: int, *, steps: int, guidance: float, seeds: int
) -> None:
    """How far a photo's mean colour over some seeds moves with the working size, and with other seeds alone.

    Mean colours over few seeds differ anyway, so the first row compares the checkpoint's own size with itself, drawn
    with as many other seeds. What is beyond that is the size's own part; it is also estimated as the root of the mean
    squared difference, less what the scatter between seeds explains.
    """
    pipe = load_default()
    pipe.set_progress_bar_config(disable=True)
    home = pipe.config.working_size
    files = sorted(file for file in photos.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)[:count]

    def draw(size: int, seed: int) -> torch.Tensor:
        """Chroma ``[B, 2, 64, 64]`` of every photo."""
        generators = [torch.Generator().manual_seed(1000 * seed + number) for number in range(len(files))]
        images = pipe(
            list(files),
            working_size=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        ).images
        return torch.stack([torch.nn.functional.interpolate(rgb_to_lab(rgb)[None, 1:], (64, 64))[0] for rgb in images])

    print(
        f"{len(files)} photos, {seeds} seeds, guidance {guidance:g}; CIE76, mean over photos and its standard error\n"
    )
    print("| working size | mean chroma | mean colour moves by | the size's own part of it | place by place | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    known = torch.stack([draw(home, seed) for seed in range(seeds)])  # [S, B, 2, 64, 64]
    for size, first in [(home, seeds), *((size, 0) for size in sizes if size != home)]:
        started = time.process_time()
        drawn = torch.stack([draw(size, seed) for seed in range(first, first + seeds)])
        used = (time.process_time() - started) / len(files) / seeds
        moved = (drawn.mean(dim=(0, 3, 4)) - known.mean(dim=(0, 3, 4))).norm(dim=1)  # [B]
        scatter = [one.mean(dim=(3, 4)).var(dim=0).sum(dim=1) / seeds for one in (drawn, known)]  # [B] each
        own = math.sqrt(max(0.0, float((moved.square() - sum(scatter)).mean())))
        places = (drawn.mean(dim=0) - known.mean(dim=0)).norm(dim=1).mean()
        error = float(moved.std()) / math.sqrt(len(files))
        name = f"{size}, other seeds" if first else str(size)
        chroma = f"{drawn.norm(dim=2).mean():.1f}"
        print(
            f"| {name} | {chroma} | {moved.mean():.1f} ± {error:.1f} | {own:.1f} | {places:.1f} | {used:.2f} s |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["size", "throughput", "processes", "flat", "working-size"])
    parser.add_argument("--photo", type=Path, help="a photo, scaled to each size")
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--megapixels", type=float, nargs="+", help="sizes to measure")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 500], help="photos of the runs of 'flat'")
    parser.add_argument("--count", type=int, default=24, help="photos of 'throughput', 'processes', 'working-size'")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 160, 192, 224, 256], help="working sizes")
    parser.add_argument("--seeds", type=int, default=2, help="of 'working-size'")
    parser.add_argument("--steps", type=int, help="denoising steps; the checkpoint's default if not given")
    parser.add_argument("--guidance", type=float, help="1: one pass a step, else two; the checkpoint's if not given")
    parser.add_argument("--rounds", type=int, default=3, help="of 'throughput'")
    args = parser.parse_args()
    with contextlib.redirect_stderr(io.StringIO()):
        config = load_default().config
    steps = args.steps or config.default_steps
    guidance = config.default_guidance if args.guidance is None else args.guidance
    options = ["--steps", str(steps), "--guidance", str(guidance)]
    print(f"torch {torch.__version__}, {steps} steps, guidance {guidance:g}\n")
    if args.what == "size":
        measure_size(args.photo, args.megapixels or [0.3, 3, 12, 100], options)
    elif args.what == "processes":
        measure_processes(args.photo, (args.megapixels or [3.0])[0], args.count, options)
    elif args.what == "flat":
        measure_flat(args.photo, (args.megapixels or [3.0])[0], args.counts, options)
    elif args.what == "throughput":
        megapixels = (args.megapixels or [3.0])[0]
        measure_throughput(args.photo, megapixels, args.count, steps=steps, guidance=guidance, rounds=args.rounds)
    else:
        measure_working_size(args.photos, args.sizes, args.count, steps=steps, guidance=guidance, seeds=args.seeds)
    print(f"\npeak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
