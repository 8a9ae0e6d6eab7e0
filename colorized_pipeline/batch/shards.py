"""Sharing the photos of a run among processes: accelerate's engine within a job, ``--shard`` among jobs."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

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
    """

    jobs: Sequence[Job]
    total: int
    name: str
    is_first: bool
    device: str | None
    state: PartialState | None

    def sum(self, counts: Counter[str]) -> Counter[str]:
        """The counts of all processes together. Waits for them, since a launcher kills all when one ends with 1."""
        if self.state is None:
            return counts
        total: Counter[str] = Counter()
        for one in gather_object([dict(counts)]):
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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Part(mine, len(mine), name, True, None, None)

    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    total = len(mine)
    with state.split_between_processes(list(range(len(mine)))) as indices:
        mine = [mine[i] for i in indices]
    name += f"-rank-{state.process_index:05}-of-{state.num_processes:05}"
    return Part(mine, total, name, state.is_main_process, str(state.device), state)
