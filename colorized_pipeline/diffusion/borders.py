"""Finding the picture inside a scan's plain borders, so that mounts and padding stay grey."""

import math

import torch
import torch.nn.functional as F

from .pipeline import Lightness

_ANALYSED_EDGE = 512  # the longer side at which borders are looked for, pixels
_PLAIN = 4.0  # L*: how far a border's rows may stray from its own level
_SAME_LEVEL = 6.0  # L*: how far the sides of a mount may differ in level
_SMALLEST = 0.02  # of the side: thinner borders aren't worth a cut
_LARGEST = 0.45  # of the side, for each of two opposite borders
_EDGE = 8.0  # L*: the picture begins where a row strays this much


def find_picture(photo: Lightness) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what isn't a plain border, in pixels; the whole photo if there is no border.

    A border is a strip along an edge in which every row (or column) has one and the same lightness. Since a plain sky
    is one too, a strip only counts if the opposite edge has one of the same lightness: a mount or padding lies on two
    sides or on four.
    """
    whole = (0, 0, photo.height, photo.width)
    if min(photo.height, photo.width) < 32:
        return whole
    factor = max(1, max(photo.height, photo.width) // _ANALYSED_EDGE)
    if not _may_have_borders(photo, factor):
        return whole
    small, scale = _shrink(photo, factor)
    top, bottom = _opposite_borders(small)
    left, right = _opposite_borders(small[top : small.shape[0] - bottom or None].T)
    if not (top or left):
        return whole
    if not top:  # padding at the sides may have hidden a border at top and bottom, within the rest
        top, bottom = _opposite_borders(small[:, left : small.shape[1] - right or None])
    rows, columns = scale
    return (
        round(top * rows),
        round(left * columns),
        photo.height - round(bottom * rows),
        photo.width - round(right * columns),
    )


def _may_have_borders(photo: Lightness, factor: int) -> bool:
    """Whether two opposite edges are plain as far in as the thinnest border reaches: most photos need no more look."""
    for height, turned in ((photo.height, False), (photo.width, True)):
        rows = math.ceil(height / factor)
        least = math.ceil(_least(rows))
        strips = [(0, least * factor), ((rows - least) * factor, height)]
        if turned:
            parts = [photo.crop(0, start, photo.height, stop) for start, stop in strips]
        else:
            parts = [photo.crop(start, 0, stop, photo.width) for start, stop in strips]
        first, last = (_shrink(part, factor)[0] for part in parts)
        ends = (first.T, last.T) if turned else (first, last)
        if min(_plain_ends(*ends)) >= least:
            return True
    return False


def _shrink(photo: Lightness, factor: int) -> tuple[torch.Tensor, tuple[float, float]]:
    """L* ``[h, w]``, means of ``factor`` x ``factor`` pixels, and how many rows and columns one stands for."""
    rows: list[torch.Tensor] = []
    for top, bottom in photo.strips(multiple_of=factor):
        groups, rest = divmod(bottom - top, factor)
        strip = photo.rows(top, bottom)[0]
        means = [strip[: groups * factor].unflatten(0, (groups, factor)).mean(dim=1)] if groups else []
        means += [strip[groups * factor :].mean(dim=0, keepdim=True)] if rest else []
        rows.append(F.avg_pool1d(torch.cat(means), factor, ceil_mode=True, count_include_pad=False))
    small = torch.cat(rows)
    return small, (photo.height / small.shape[0], photo.width / small.shape[1])


def _opposite_borders(small: torch.Tensor) -> tuple[int, int]:
    """How many rows of plain border lie at the top and at the bottom of L* ``[h, w]``: both or none."""
    height = small.shape[0]
    if height < 8 or small.shape[1] < 8:
        return 0, 0
    first, last = _plain_ends(small, small)
    least, most = _least(height), _LARGEST * height
    return (first, last) if least <= first <= most and least <= last <= most else (0, 0)


def _least(rows: int) -> float:
    """Rows of the thinnest border that counts."""
    return max(2, _SMALLEST * rows)


def _plain_ends(first: torch.Tensor, last: torch.Tensor) -> tuple[int, int]:
    """How many rows are plain, from the top of one and from the bottom of the other; 0 if the edges' levels differ."""
    level_top, level_bottom = first[0].median(), last[-1].median()
    if (level_top - level_bottom).abs() > _SAME_LEVEL:
        return 0, 0
    return _plain_rows(first, level_top), _plain_rows(last.flip(0), level_bottom)


def _plain_rows(small: torch.Tensor, level: torch.Tensor) -> int:
    """How many rows from the top are plain and of this level."""
    stray = (small - level).abs()
    plain = (stray.quantile(0.98, dim=1) <= _PLAIN) & (stray.amax(dim=1) <= _EDGE)
    return int(plain.int().cumprod(0).sum())
