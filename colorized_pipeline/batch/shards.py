"""Sharing the photos of a run among processes: of one job by its launcher, among jobs by ``--shard``."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..archive.files import Job

_PATIENCE = timedelta(days=30)  # a process that is done early waits for the others, however long they take


@dataclass
class Part:
    """What one process does of a run.

    Attributes:
        jobs: its photos.
        total: photos of all processes of this job.
        name: of the files that this process alone writes; empty for a run in one process.
        is_first: this process speaks for all.
        device: where its network runs, if the launcher says so.
        processes: how many share the job.
    """

    jobs: Sequence[Job]
    total: int
    name: str
    is_first: bool = True
    device: str | None = None
    processes: int = 1

    def sum(self, counts: Counter[str]) -> Counter[str]:
        """The counts of all processes together. Waits for them, since a launcher kills all when one ends with 1."""
        if self.processes == 1:
            return counts
        from torch import distributed

        everyone: list[Any] = [None] * self.processes
        distributed.all_gather_object(everyone, dict(counts))
        distributed.destroy_process_group()
        total: Counter[str] = Counter()
        for one in everyone:
            total.update(one)
        return total


def take_part(jobs: Sequence[Job], *, shard: str = "0/1", device: str | None = None) -> Part:
    """This process's part of the jobs.

    Under ``torchrun`` or ``accelerate launch`` processes share the shard's photos; every process must plan the same
    jobs.

    Raises:
        ValueError: for a ``shard`` that isn't I/N with 0 <= I < N.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not numbers or not int(numbers[1]) < int(numbers[2]):
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, got {shard!r}")
    index, count = int(numbers[1]), int(numbers[2])
    mine = jobs[index::count]
    name = f"-shard-{index:05}-of-{count:05}" if count > 1 else ""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return Part(mine, len(mine), name)

    import torch

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)  # what it carries are counts
    rank, on_gpu = int(os.environ["RANK"]), device != "cpu" and torch.cuda.is_available()
    return Part(
        mine[rank::processes],
        len(mine),
        f"{name}-rank-{rank:05}-of-{processes:05}",
        is_first=rank == 0,
        device=f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu",
        processes=processes,
    )
