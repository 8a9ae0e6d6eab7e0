"""Sharing the photos of a run among the machines of a Ray cluster. Needs the extra ``cluster``.

Some photos are one task. Ray chooses the machine, and a task's photos come back one by one. If a process or its
machine dies, the photos that it had not finished are given out again. One process keeps the manifest for all, so
that no two write into one file, and so that what a dead process had finished is known.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .._version import __version__
from ..archive.files import Job
from .manifest import Manifest
from .overlap import Batch, Outcome

_MOST_CORES = 8  # of a process without a GPU; more processes suit a machine of many cores better
_MOST_PHOTOS = 256  # of a task
_MOST_TRIES = 4  # of a photo whose process died; from the second on it has a task of its own


class Order(Protocol):
    """What is to be done with photos. It travels to every process, and must be picklable."""

    def open(self, device: str | None) -> Callable[..., Batch]:
        """Load the network; returns what makes a :class:`Batch` with a manifest, a temporary folder and cores."""

    def run(self, batch: Batch, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Do it."""


class KeptManifest:
    """The run's manifest as a process of the cluster sees it: another process keeps it."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def find(self, output: Path) -> dict[str, Any] | None:
        return ray.get(self._keeper.find.remote(output.absolute()))

    def add(self, job: Job, output: Path, **facts: Any) -> None:
        ray.get(self._keeper.add.remote(job, output.absolute(), **facts))


@dataclass(frozen=True)
class _Run:
    """What each process of a run is told."""

    number: str
    order: Order = field(compare=False)
    keeper: Any = field(compare=False)
    temporary: Path = field(compare=False)
    device: str | None = field(compare=False)
    cores: int = field(compare=False)
    folder: Path = field(default_factory=Path.cwd, compare=False)
    version: str = field(default=__version__, compare=False)


@dataclass
class _Task:
    """Photos that are given out together, and how often they have been."""

    jobs: list[Job]
    tries: int = 1


@contextmanager
def join_cluster(address: str) -> Iterator[None]:
    """Belong to a Ray cluster inside the block; leaving it ends what the cluster still does for this process.

    Args:
        address: ``"auto"`` for the cluster that this machine belongs to, or HOST:PORT.

    Raises:
        ValueError: if there is no such cluster, or it has other versions; the message says why.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--ray {address}: no Ray cluster there; start it by ray start --head ({reason})") from None
    try:
        yield
    finally:
        ray.shutdown()


def run_on_cluster(
    jobs: Sequence[Job], order: Order, *, output: Path, temporary: Path, device: str | None = None
) -> Iterator[Outcome]:
    """Each photo's outcome as soon as it is known, from whichever machine of the cluster that was joined.

    Args:
        order: what is done with them.
        output, temporary: the folders for results and for unfinished files, which every machine must see.
        device: where the networks run. If there are GPUs and it isn't ``"cpu"``, each process gets one.

    Raises:
        OSError, ValueError, RuntimeError, ImportError: if a machine can't take part; the message says why.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keep = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Manifest)
    keeper = keep.remote(output.absolute())
    size = _worker_size(device)
    where = "cuda" if size["num_gpus"] and device is None else device
    run = ray.put(_Run(uuid4().hex, order, keeper, temporary, where, cores=max(1, int(size["num_cpus"]))))
    yield from _share(jobs, run, KeptManifest(keeper), size)


def _worker_size(device: str | None) -> dict[str, float]:
    """What one process claims of its machine: so that it fits into the smallest, and leaves none idle."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with_gpu = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if with_gpu and (device is None or device.startswith("cuda")):
        return {"num_gpus": 1, "num_cpus": min(machine["CPU"] // machine["GPU"] for machine in with_gpu)}
    return {"num_gpus": 0, "num_cpus": min([machine["CPU"] for machine in machines] + [_MOST_CORES])}


def _processes(size: dict[str, float]) -> int:
    """How many of them the cluster holds now; it may grow."""
    total = ray.cluster_resources()
    fits = [
        total.get(kind, 0) / size[claim] for claim, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")) if size[claim]
    ]
    return max(1, int(min(fits)))


def _share(jobs: Sequence[Job], run: Any, manifest: KeptManifest, size: dict[str, float]) -> Iterator[Outcome]:
    photos = min(_MOST_PHOTOS, max(8, len(jobs) // (8 * _processes(size))))
    ahead = deque(_Task(list(jobs[start : start + photos])) for start in range(0, len(jobs), photos))
    colorize = ray.remote(max_retries=0, **size)(_colorize)
    given: dict[Any, _Task] = {}
    while ahead or given:
        while ahead and len(given) < 2 * _processes(size):  # one that waits for each one that works
            task = ahead.popleft()
            given[colorize.remote(run, task.jobs)] = task
        (stream,), _ = ray.wait(list(given), num_returns=1)
        task = given[stream]
        try:
            outcome: Outcome = ray.get(next(stream))
        except StopIteration:
            del given[stream]
        except RayTaskError as error:  # of the machine or the settings: a photo's own are outcomes
            raise error.cause from None
        except RayError as error:  # the process or its machine died
            del given[stream]
            if task.tries < _MOST_TRIES:
                ahead.extend(_Task([job], task.tries + 1) for job in task.jobs)  # last: it may have been them
            else:
                yield from _give_up(task.jobs, type(error).__name__, manifest)
        else:
            task.jobs.remove(outcome.job)
            yield outcome


def _give_up(jobs: Sequence[Job], reason: str, manifest: KeptManifest) -> Iterator[Outcome]:
    for job in jobs:
        message = f"{job.source}: the process that worked on it died {_MOST_TRIES} times ({reason})"
        manifest.add(job, job.target, error=message)
        yield Outcome(job, "failed", message)


def _colorize(run: _Run, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The task, in a process of the cluster."""
    make_batch = _open(run)
    batch = make_batch(manifest=KeptManifest(run.keeper), temporary=run.temporary, cores=run.cores)
    yield from run.order.run(batch, jobs)


@lru_cache(maxsize=1)  # a process does many tasks of a run
def _open(run: _Run) -> Callable[..., Batch]:
    host = socket.gethostname()
    if run.version != __version__:
        raise ValueError(f"{host} has colorized {__version__}, and this run is of {run.version}: install the same")
    with suppress(OSError):  # relative names are of the folder in which the command was given
        os.chdir(run.folder)
    if not run.temporary.is_dir():
        raise ValueError(
            f"{host} doesn't see the folder {run.temporary.parent}: photos and results must lie on a file system that "
            "every machine of the cluster has under the same name"
        )
    return run.order.open(run.device)
