"""What the command costs before it works: processor time and memory, beside ``python -c pass``.

    python benchmarks/start.py

Every candidate runs once a round, in an order drawn anew, as a process of its own.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence

from rounds import Spread

COMMAND = ("-m", "colorized_pipeline")
CANDIDATES = {
    "python -c pass": ("-c", "pass"),
    "colorized --version": (*COMMAND, "--version"),
    "colorized --help": (*COMMAND, "--help"),
    "colorized colorize --help": (*COMMAND, "colorize", "--help"),
    "python -c 'import torch'": ("-c", "import torch"),
    "from colorized_pipeline import ColorizationPipeline": (
        "-c",
        "from colorized_pipeline import ColorizationPipeline",
    ),
}


# A process inherits the peak memory of the one that starts it, so a small one stands between
_STARTER = """
import os, sys
null = os.open(os.devnull, os.O_WRONLY)
process = os.posix_spawn(
    sys.executable, [sys.executable, *sys.argv[1:]], os.environ,
    file_actions=[(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)],
)
_, status, usage = os.wait4(process, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def cost(words: Sequence[str]) -> tuple[float, float]:
    """Seconds of processor time and peak MB of one run of Python with these words."""
    done = subprocess.run([sys.executable, "-c", _STARTER, *words], capture_output=True, text=True, check=True)
    status, seconds, memory = done.stdout.split()
    if status != "0":
        raise RuntimeError(f"python {' '.join(words)} ended with {status}")
    return float(seconds), float(memory)


def measure(candidates: Mapping[str, Sequence[str]], *, rounds: int, seed: int = 0) -> dict[str, list[tuple]]:
    """The costs of each candidate in each round."""
    draw, order = random.Random(seed), list(candidates)
    costs: dict[str, list[tuple]] = {name: [] for name in order}
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            costs[name].append(cost(candidates[name]))
    return costs


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photo", help="a colour copy, to inspect as well")
    args = parser.parse_args(arguments)
    candidates = dict(CANDIDATES)
    if args.photo:
        candidates["colorized inspect PHOTO"] = (*COMMAND, "inspect", args.photo)
    print("| command | processor time, s | peak memory, MB |\n| --- | --- | --- |")
    for name, costs in measure(candidates, rounds=args.rounds).items():
        seconds, memory = (Spread.of(values) for values in zip(*costs, strict=True))
        print(f"| `{name}` | {seconds.format('{:.2f}')} | {memory.median:.0f} |")


if __name__ == "__main__":
    main()
