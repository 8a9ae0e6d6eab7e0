"""Photos that belong together: those of a folder, or of them those that show the same. One gives its colours."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ..archive.files import Job
from ..archive.scans import open_scan
from ..diffusion.photo import Lightness, PreparedPhoto
from ..diffusion.pipeline import ColorizationPipeline

_CELLS = 8  # along each edge of a photo, by which photos are compared
_ALIKE = 0.5  # mean likeness of two photos' cells from which they show the same, docs/how-to/sets.md

Look = Callable[[Job], torch.Tensor | None]


def tie_folders(jobs: Sequence[Job]) -> list[Job]:
    """Each job tied to the first of its folder, or to the first whose colours are known."""
    return _tie(jobs, lambda members: [(members[0], members[1:])])


def tie_alike(jobs: Sequence[Job], look: Look) -> list[Job]:
    """Each job tied to one of its folder that shows the same, if there is one; ``look`` as of :func:`look_at`."""
    return _tie(jobs, lambda members: _lead(members, look))


def look_at(pipe: ColorizationPipeline, *, max_megapixels: float, borders: bool, working_size: int | None) -> Look:
    """:func:`summarize` of a job's first page; ``None`` for a file that can't be read."""

    def look(job: Job) -> torch.Tensor | None:
        try:
            scan = open_scan(job.source, pages="first", max_megapixels=max_megapixels)
            photo = pipe.prepare(Lightness(scan.read_page()), working_size=working_size, borders=borders)
        except (OSError, ValueError, TypeError, MemoryError):
            return None  # it is named with the reason when its turn comes
        return summarize(pipe, photo)

    return look


def summarize(pipe: ColorizationPipeline, photo: PreparedPhoto) -> torch.Tensor:
    """What tells what a photo shows, ``[K, cells]``, of length 1 in each cell."""
    seen = F.adaptive_avg_pool2d(pipe.features(photo), _CELLS).flatten(1)
    return F.normalize(seen - seen.mean(1, keepdim=True), dim=0)


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """How much of two photos is alike, about 0 to 1: of each cell its likeness to the one most like it, on average."""
    alike = one.T @ other
    return float((alike.amax(0).mean() + alike.amax(1).mean()) / 2)


def _tie(jobs: Sequence[Job], group: Callable[[list[Job]], Iterable[tuple[Job, list[Job]]]]) -> list[Job]:
    folders: dict[Path, list[Job]] = {}
    for job in jobs:
        if not job.refusal:
            folders.setdefault(job.source.parent, []).append(job)
    leaders: dict[Path, Job] = {}
    for members in folders.values():
        members.sort(key=lambda job: not job.known)
        leaders.update({one.source: leader for leader, rest in group(members) for one in rest})
    return [replace(job, leader=leaders.get(job.source)) for job in jobs]


def _lead(members: list[Job], look: Look) -> Iterable[tuple[Job, list[Job]]]:
    """Each joins the leader that is most like it, or leads a group of its own."""
    leaders: list[tuple[Job, torch.Tensor, list[Job]]] = []
    for job in members if len(members) > 1 else ():
        seen = look(job)
        if seen is None:
            continue
        nearest = max(leaders, key=lambda leader: likeness(leader[1], seen), default=None)
        if nearest and likeness(nearest[1], seen) >= _ALIKE:
            nearest[2].append(job)
        else:
            leaders.append((job, seen, []))
    return [(job, rest) for job, _, rest in leaders]
