"""Kill the batch command (signal 9) at random moments and check that nothing is lost; prints what was found.

    PYTHONPATH=. python tests/kill_trials.py --trials 200

Each trial runs ``colorized colorize IN -o OUT --recursive`` on the same tree of photos, with the package's checkpoint
or ``--checkpoint``, and kills it after a random time. After each kill every result in OUT must be whole, by its hash
in the manifest, and no source may have changed. Every so often the command may finish; then all results must be, to
the byte, those of a run that was never killed, and OUT is emptied. Processes are forked from one that has loaded
everything, so that the moments fall on the work and not on the start.

With ``--ray`` a local Ray cluster of two nodes does the work, and its processes are killed instead. The command must
finish all the same.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm
from typer.testing import CliRunner

from colorized_pipeline import cli, load_pipeline
from colorized_pipeline.archive.scans import hash_file
from colorized_pipeline.batch import overlap  # noqa: F401  the command imports it when it is needed
from colorized_pipeline.batch.manifest import MANIFEST_NAME, Manifest


def make_photos(folder: Path, count: int, *, seed: int = 0) -> None:
    """Smooth random pictures in several formats, depths and shapes, in a small tree."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        height, width = rng.choice([120, 160, 240, 320], 2)
        small = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8))
        gray = np.asarray(small.resize((int(width), int(height)), Image.Resampling.BICUBIC))
        file = folder / f"box {number % 3}" / f"{number:04}.{('jpg', 'png', 'tif', 'webp')[number % 4]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".tif":
            tifffile.imwrite(file, gray.astype(np.uint16) * 257, photometric="minisblack")
        else:
            Image.fromarray(gray).save(file)


def run_forked(words: list[str], *, kill_after: float | None = None) -> int:
    """Run the command in a forked process; returns its exit status, or -9 if it was killed."""
    child = os.fork()
    if child == 0:
        # tqdm's lock is shared with forked processes, and one that is killed while it holds it would stop all others
        tqdm.set_lock(threading.RLock())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = CliRunner().invoke(cli.app, words).exit_code
        os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(folder: Path) -> dict[str, str]:
    """Hash of every file in the output folder but the manifest and unfinished ones."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(MANIFEST_NAME)]
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: hash_file(file) for name, file in names.items() if not name.startswith(".colorized-partial")}


def check_after_kill(output: Path, expected: dict[str, str]) -> list[str]:
    """What is wrong with an output folder after a kill: nothing, one hopes."""
    if not output.is_dir():
        return []
    faults = []
    with Manifest(output, part="-check") as manifest:
        for name, sha256 in results(output).items():
            record = manifest.find(output / name)
            if record is None:
                faults.append(f"{name}: not in the manifest")
            elif record.get("output_sha256") != sha256 or expected[name] != sha256:
                faults.append(f"{name}: not whole")
    (output / f"{MANIFEST_NAME}-check.jsonl").unlink()
    return faults


def run_trials(work: Path, *, trials: int, photos: int, options: list[str], seed: int = 0) -> dict[str, object]:
    """All trials in the folder ``work``; see the module's text."""
    source, output = work / "in", work / "out"
    make_photos(source, photos)
    before = results(source)
    load_pipeline(dict(zip(options[::2], options[1::2], strict=True)).get("--checkpoint"))  # once, not in every fork
    words = ["colorize", str(source), "-o", str(work / "reference"), "--recursive", *options]
    started = time.monotonic()
    if run_forked(words):
        raise RuntimeError("the undisturbed run failed")
    whole_run = time.monotonic() - started
    expected = results(work / "reference")

    rng, faults, killed, finished = random.Random(seed), list[str](), 0, 0
    words[3] = str(output)
    for trial in range(trials):
        status = run_forked(words, kill_after=rng.uniform(0, whole_run * 0.6))
        killed += status == -signal.SIGKILL
        faults += [f"trial {trial}: {fault}" for fault in check_after_kill(output, expected)]
        if len(results(output)) == len(expected) or trial == trials - 1:
            if run_forked(words) or results(output) != expected:
                faults.append(f"trial {trial}: the resumed run's results differ")
            if list(output.glob(".colorized-partial*")):
                faults.append(f"trial {trial}: unfinished files are left")
            finished += 1
            shutil.rmtree(output)
    if results(source) != before:
        faults.append("a source was changed")
    return {
        "trials": trials,
        "killed": killed,
        "whole sets finished": finished,
        "photos": photos,
        "seconds of an undisturbed run": round(whole_run, 2),
        "faults": faults,
    }


def start_cluster() -> Any:
    """A Ray cluster of two nodes of one core each on this machine; its processes find the package as this one does."""
    os.environ |= {"PYTHONPATH": str(Path(__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_worker_niceness"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
    cluster.add_node(**node)
    return cluster


def start_ray_command(cluster: Any, source: Path, output: Path, options: list[str]) -> subprocess.Popen[str]:
    """The command on a cluster, in a process of its own."""
    words = ["colorize", str(source), "-o", str(output), "--ray", cluster.address, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "colorized_pipeline", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def working_processes(cluster: Any) -> list[int]:
    """The cluster's processes that are at a task of ours, by their number."""
    found = []
    raylets = {one.process.pid for node in cluster.list_all_nodes() for one in node.all_processes["raylet"]}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and b"_colorize" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def run_ray_trials(work: Path, *, trials: int, photos: int, options: list[str], seed: int = 0) -> dict[str, object]:
    """Kill processes of a cluster until so many trials are done; see the module's text."""
    make_photos(work / "in", photos)
    before = results(work / "in")
    if run_forked(["colorize", str(work / "in"), "-o", str(work / "reference"), "--recursive", *options]):
        raise RuntimeError("the undisturbed run failed")
    expected = results(work / "reference")
    cluster, rng, faults, killed, finished = start_cluster(), random.Random(seed), list[str](), 0, 0
    while killed < trials:
        running = start_ray_command(cluster, work / "in", work / "out", options)
        done = 0
        while running.poll() is None:
            time.sleep(rng.uniform(0, 1))
            if len(results(work / "out")) == done:
                continue  # no process has come to a photo since the last was killed
            if killed < trials and (processes := working_processes(cluster)):
                done = len(results(work / "out"))
                os.kill(rng.choice(processes), signal.SIGKILL)
                killed += 1
        said = running.communicate()[0]
        faults += [said[-2000:]] if running.returncode else []
        faults += check_after_kill(work / "out", expected)
        faults += [] if results(work / "out") == expected else [f"after {killed} kills: results differ"]
        faults += ["unfinished files are left"] if list((work / "out").glob(".colorized-partial*")) else []
        shutil.rmtree(work / "out")
        finished += 1
    cluster.shutdown()
    faults += [] if results(work / "in") == before else ["a source was changed"]
    return {"killed": killed, "whole sets finished": finished, "photos": photos, "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="how often to kill")
    parser.add_argument("--photos", type=int, default=24, help="photos in the tree")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--checkpoint", help="pipeline folder; the package's if not given")
    parser.add_argument("--ray", action="store_true", help="kill processes of a Ray cluster")
    args = parser.parse_args()
    options = ["--steps", str(args.steps), "--device", "cpu"]
    options += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    with tempfile.TemporaryDirectory() as work:
        found = (run_ray_trials if args.ray else run_trials)(
            Path(work), trials=args.trials, photos=args.photos, options=options, seed=args.seed
        )
    for name, value in found.items():
        print(f"{name}: {value}")
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
