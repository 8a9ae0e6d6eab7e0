"""Which photos of a source can be used, and their decoded pixels: found out once, kept for the next run.

A store is a folder of three files: ``index.npz`` (the usable photos' rows, sizes and digests), ``skipped.json`` (the
others, by name) and ``pixels.bin`` (8-bit CIELAB, memory-mapped). Its name is a digest of the source's files (path,
size, time), so that changed photos are read anew. Without a folder the store lives in memory.
"""

import hashlib
import io
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from .checkpoints import replace_folder
from .sources import PhotoSource, decode_lab8

NEARLY_GRAY = 2.0  # mean chroma sqrt(a*^2 + b*^2) under this is a grey photo: nothing to learn from
_VERSION = 1  # of a store's files and of what makes a photo usable
_INDEX, _SKIPPED, _PIXELS = "index.npz", "skipped.json", "pixels.bin"
_CHUNK = 256  # photos read ahead by the threads


@dataclass(frozen=True)
class Fit:
    """The size at which photos are kept: the shorter side ``side`` pixels, or with ``shrink_only`` at most that."""

    side: int
    shrink_only: bool = False

    def __call__(self, lab8: torch.Tensor) -> torch.Tensor:
        """uint8 CIELAB ``[3, H, W]`` at that size."""
        height, width = lab8.shape[-2:]
        scale = self.side / min(height, width)
        if scale == 1 or (self.shrink_only and scale > 1):
            return lab8
        size = [round(height * scale), round(width * scale)]
        resized = F.interpolate(lab8[None].float(), size, mode="bilinear", antialias=True)[0]
        return resized.round().clamp(0, 255).to(torch.uint8)


@dataclass
class Skipped:
    """Photos that are passed over, by name."""

    unreadable: list[str] = field(default_factory=list)
    nearly_gray: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {kind} photos skipped: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for kind, names in (("unreadable", self.unreadable), ("nearly grey", self.nearly_gray))
            if names
        ]
        return "; ".join(parts) or "no photo skipped"


class PhotoStore:
    """The usable photos of a source, by number: :meth:`load` gives one as uint8 CIELAB ``[3, H, W]``.

    Attributes:
        rows: which photos of the source they are, ascending unless ``indices`` were given otherwise.
        digests: of the content of each, 8 bytes.
        skipped: the others.
    """

    def __init__(
        self, source: PhotoSource, fit: Fit, arrays: dict[str, np.ndarray], skipped: Skipped, pixels: Path | np.ndarray
    ) -> None:
        self.source, self.fit, self.skipped = source, fit, skipped
        self.rows, self.digests = arrays["rows"], arrays["digests"]
        self._heights, self._widths, self._offsets = arrays["heights"], arrays["widths"], arrays["offsets"]
        self._pixels = pixels
        self._opened: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pixel_bytes(self) -> int:
        """Size of the decoded photos that are kept."""
        return int((3 * self._heights * self._widths)[self._offsets >= 0].sum())

    def load(self, number: int) -> torch.Tensor:
        offset = int(self._offsets[number])
        if offset < 0:  # beyond the cache's size
            return self.fit(self.source.load(int(self.rows[number])))
        height, width = int(self._heights[number]), int(self._widths[number])
        stored = self._mapped()[offset : offset + 3 * height * width]
        return torch.from_numpy(stored.reshape(3, height, width))

    def _mapped(self) -> np.ndarray:
        if self._opened is None:
            pixels = self._pixels
            # Copy on write: torch wants writable memory, and the file must stay as it is
            self._opened = np.memmap(pixels, np.uint8, "c") if isinstance(pixels, Path) else pixels
        return self._opened

    def __getstate__(self) -> dict[str, object]:
        """For worker processes: each maps the file by itself instead of getting a copy of it."""
        return {**vars(self), "_opened": None}


def open_store(
    source: PhotoSource,
    fit: Fit,
    *,
    indices: Sequence[int] | None = None,
    folder: Path | None = None,
    cache_bytes: int = 4 * 2**30,
    progress: bool = False,
) -> PhotoStore:
    """The usable photos of ``source``, from the store that an earlier run left in ``folder``, or read now.

    Args:
        source: the photos.
        fit: the size at which they are kept.
        indices: only these photos of the source.
        folder: keeps stores; None: in memory alone.
        cache_bytes: decoded photos are kept up to this size; the others are decoded anew each time.
        progress: show a bar while photos are read.

    Raises:
        ValueError: if no photo is usable.
    """
    candidates = range(len(source)) if indices is None else indices
    if folder is None:
        stream = io.BytesIO()
        arrays, skipped = _read(source, fit, candidates, stream, cache_bytes, progress)
        store = PhotoStore(source, fit, arrays, skipped, np.frombuffer(stream.getbuffer(), np.uint8))
    else:
        kept = folder / _key(source, fit, candidates)
        if not _is_whole(kept, cache_bytes):
            _write(kept, source, fit, candidates, cache_bytes, progress)
        store = _reopen(kept, source, fit)
    if not len(store):
        raise ValueError(f"no usable photo among {len(candidates)}: {store.skipped}")
    return store


def trim_stores(folder: Path, *, limit_bytes: int, used: Sequence[PhotoStore]) -> None:
    """Delete the stores in ``folder`` used longest ago, but none of ``used``, until all fit into ``limit_bytes``."""
    names = {store._pixels.parent.name for store in used if isinstance(store._pixels, Path)}
    stores = sorted((file.parent for file in folder.glob(f"*/{_INDEX}")), key=lambda one: one.stat().st_mtime)
    sizes = {store: sum(file.stat().st_size for file in store.iterdir()) for store in stores}
    excess = sum(sizes.values()) - limit_bytes
    for store in stores:
        if excess > 0 and store.name not in names:
            excess -= sizes[store]
            (store / _INDEX).unlink(missing_ok=True)  # first, so that no half of it is taken for a store
            shutil.rmtree(store, ignore_errors=True)


def _key(source: PhotoSource, fit: Fit, candidates: Sequence[int]) -> str:
    chosen = "all" if candidates == range(len(source)) else hashlib.sha256(repr(list(candidates)).encode()).hexdigest()
    text = json.dumps([_VERSION, fit.side, fit.shrink_only, chosen, source.identity()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_whole(kept: Path, cache_bytes: int) -> bool:
    """Whether a store is there and holds all photos, or as many as the cache's size allows."""
    if not (kept / _INDEX).is_file():
        return False
    with np.load(kept / _INDEX) as arrays:
        complete = bool((arrays["offsets"] >= 0).all())
        return complete or cache_bytes <= int(arrays["cache_bytes"])


def _reopen(kept: Path, source: PhotoSource, fit: Fit) -> PhotoStore:
    os.utime(kept)  # the time of its last use
    with np.load(kept / _INDEX) as arrays:
        loaded = {name: arrays[name] for name in arrays}
    skipped = Skipped(**json.loads((kept / _SKIPPED).read_text(encoding="utf-8")))
    return PhotoStore(source, fit, loaded, skipped, kept / _PIXELS)


def _write(
    kept: Path, source: PhotoSource, fit: Fit, candidates: Sequence[int], cache_bytes: int, progress: bool
) -> None:
    partial = kept.with_name(f"partial-{kept.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / _PIXELS).open("wb") as file:
        arrays, skipped = _read(source, fit, candidates, file, cache_bytes, progress)
    (partial / _SKIPPED).write_text(json.dumps(asdict(skipped)), encoding="utf-8")
    np.savez(partial / _INDEX, **arrays, cache_bytes=np.int64(cache_bytes))  # type: ignore[arg-type]
    replace_folder(partial, kept)


def _read(
    source: PhotoSource, fit: Fit, candidates: Sequence[int], pixels: BinaryIO, cache_bytes: int, progress: bool
) -> tuple[dict[str, np.ndarray], Skipped]:
    """Decode all candidates once, in order: the index's arrays, who is left out, and the pixels into a stream."""
    names = ("rows", "heights", "widths", "offsets", "digests")
    table = array("q")  # these five of each photo
    skipped, written = Skipped(), 0
    for row, photo in _decoded(source, fit, candidates, progress):
        if isinstance(photo, Exception):
            skipped.unreadable.append(f"{source.name(row)} ({photo})")
            continue
        lab8, digest = photo
        if decode_lab8(lab8)[1:].norm(dim=0).mean() < NEARLY_GRAY:
            skipped.nearly_gray.append(source.name(row))
            continue
        fits = written + lab8.numel() <= cache_bytes
        table.extend((row, *lab8.shape[-2:], written if fits else -1, digest))
        if fits:
            pixels.write(lab8.numpy().tobytes())
            written += lab8.numel()
    columns = np.array(table, np.int64).reshape(-1, len(names)).T
    return {name: column.copy() for name, column in zip(names, columns, strict=True)}, skipped


def _decoded(
    source: PhotoSource, fit: Fit, candidates: Sequence[int], progress: bool
) -> Iterator[tuple[int, tuple[torch.Tensor, int] | Exception]]:
    """Each candidate with its fitted photo and its content's digest, or with why it can't be read."""

    def read(row: int) -> tuple[torch.Tensor, int] | Exception:
        try:
            return fit(source.load(row)), source.digest(row)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return error

    bar = tqdm(total=len(candidates), desc="reading photos", unit="photo", disable=not progress)
    with bar, ThreadPoolExecutor(max_workers=_cores()) as threads:
        for start in range(0, len(candidates), _CHUNK):
            chunk = candidates[start : start + _CHUNK]
            for row, photo in zip(chunk, threads.map(read, chunk), strict=True):
                yield row, photo
                bar.update()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
