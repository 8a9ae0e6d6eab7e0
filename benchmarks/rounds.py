"""Fair timing on a machine that does other things too: every candidate once a round, in an order drawn anew."""

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from colorized_pipeline.archive.files import NewFile

_EDGE = 1024  # of the matrix product whose speed is called the machine's peak


@dataclass(frozen=True)
class Spread:
    """Median and middle half of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)

    def format(self, pattern: str = "{:.3g}") -> str:
        return f"{pattern.format(self.median)} ({pattern.format(self.low)} to {pattern.format(self.high)})"


def choose_clock(threads: int) -> tuple[Callable[[], float], str]:
    """A clock in seconds and its name: with one thread processor time, in which other programs don't count."""
    if threads == 1:
        return time.process_time, "processor time"
    return time.perf_counter, "wall-clock time"


def time_rounds(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float], seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one call of each that doesn't count.

    Values at one index of two lists were measured near each other, so their ratio suffers least from what else the
    machine did.
    """
    draw = random.Random(seed)
    order = list(candidates)
    for name in order:
        candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            started = clock()
            candidates[name]()
            seconds[name].append(clock() - started)
    return seconds


def ratios(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """How many times as long as the reference, round by round."""
    return Spread.of([a / b for a, b in zip(seconds, reference, strict=True)])


def matrix_product() -> tuple[Callable[[], object], float]:
    """A float32 matrix product, the best that a network could run at, and its FLOP."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(_EDGE, _EDGE, generator=generator) for _ in range(2))
    return lambda: left @ right, 2.0 * _EDGE**3


def save(folder: Path, name: str, figures: Mapping[str, Any], table: str) -> None:
    """Write ``name.json`` and ``name.md`` into a folder, each whole or not at all."""
    for suffix, text in ((".json", json.dumps(figures, indent=2, allow_nan=False)), (".md", table)):
        with NewFile(folder / f"{name}{suffix}") as new:
            new.stream.write(f"{text}\n".encode())
