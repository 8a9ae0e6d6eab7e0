"""Measure the archive command; prints markdown tables.

    python scripts/measure_archive.py size --photo scan.jpg           time and peak memory against megapixels
    python scripts/measure_archive.py flat --photo scan.jpg           peak memory of 50 and of 500 photos

Each figure of memory is of a process of its own: the whole of it, Python, torch and network included.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from measuring import in_words, load, provenance
from PIL import Image

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


def measure_size(photo: Path, megapixels: list[float], options: list[str]) -> int:
    print("| megapixels | format | time | processor time | peak memory |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for size in megapixels:
            image = resize(photo, size)
            image.save(work / "a.jpg", quality=92)
            tifffile.imwrite(work / "a.tif", np.asarray(image).astype(np.uint16) * 257, compression="lzw")
            for file, kind in (("a.jpg", "8-bit JPEG"), ("a.tif", "16-bit TIFF")):
                words = [str(work / file), "-o", str(work / f"out-{file}"), "--overwrite", *options]
                seconds, used, peak = run_command(words)
                print(f"| {size:g} | {kind} | {seconds:.1f} s | {used:.1f} s | {peak:.0f} MiB |", flush=True)
    return len(megapixels)


def measure_flat(photo: Path, megapixels: float, counts: list[int], options: list[str]) -> int:
    print("| photos | time | peak memory |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        made = 0
        for count in counts:
            make_photos(photo, work / "in", range(made, count), megapixels=megapixels)
            made = count
            words = [str(work / "in"), "-o", str(work / f"out{count}"), "-r", *options]
            seconds, _, peak = run_command(words)
            print(f"| {count} | {seconds:.0f} s | {peak:.0f} MiB |", flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["size", "flat"])
    parser.add_argument("--photo", type=Path, required=True, help="a photo, scaled to each size")
    parser.add_argument("--megapixels", type=float, nargs="+", help="sizes to measure; 'flat' takes the first")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 500], help="photos of the runs of 'flat'")
    parser.add_argument("--steps", type=int, help="denoising steps; the checkpoint's default if not given")
    parser.add_argument("--guidance", type=float, help="1: one pass a step, else two; the checkpoint's if not given")
    parser.add_argument("--checkpoint", help="pipeline folder or Hub name; the package's if not given")
    args = parser.parse_args()
    given = {"--steps": args.steps, "--guidance": args.guidance, "--checkpoint": args.checkpoint, "--device": "cpu"}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    if args.what == "size":
        count = measure_size(args.photo, args.megapixels or [0.3, 3, 12, 100], options)
    else:
        count = measure_flat(args.photo, (args.megapixels or [3.0])[0], args.counts, options)
    print(f"\n{in_words(provenance(load(args.checkpoint), [str(args.photo)], count=count, seed=0))}")


if __name__ == "__main__":
    main()
