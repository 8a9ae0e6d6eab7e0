"""Photographs as a training run sees them: random crops of a mixture of sources, as lightness and chroma.

Every random choice is a pure function of (seed, position in the run), so that a resumed run sees exactly the photos
that an uninterrupted one would.
"""

import copy
import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler

from ..diffusion.color import L_MAX, downsample_chroma
from .film import draw_film, photograph
from .index import Fit, Skipped, open_store, trim_stores
from .options import DataOptions
from .sources import PhotoSource, decode_lab8, open_hub_source, open_source

logger = logging.getLogger(__name__)

CROP_MARGIN = 150 / 128  # the shorter side of a photo over the central crop that is measured on
_KEPT_SIDE = 2  # training photos are kept with a shorter side of at most so many times the crop's edge
_FILTERS = (  # how scanners, editors and browsers scale a photo
    dict(mode="bilinear", antialias=True),
    dict(mode="bicubic", antialias=True),
    dict(mode="bilinear", antialias=False),
    dict(mode="area"),
)
_SOFTEST = 3.0  # a soft photo has lost at most so many pixels of every so many along each axis
_GOLDEN = (5**0.5 - 1) / 2

# Streams of random numbers, kept apart by the last part of each seed.
_CROP, _FILM, _SOFT = 0, 1, 2
_SPLIT = 3


class ColorizationDataset(Dataset):
    """Lightness at ``resolution`` and chroma on a ``luma_factor`` times coarser grid, cut from the photos of a source.

    Items are asked for by ``(epoch, index)``. With ``augment`` the crop's size and place, the flip and the filter that
    scales it are drawn from a generator seeded by (seed, epoch, index), whatever process or worker reads them.
    Without it every item is the central crop.

    Args:
        source: the photos. Unreadable and nearly grey ones are left out and named in ``skipped``.
        resolution: edge of the square crop in pixels, divisible by ``luma_factor``.
        luma_factor: lightness pixels per chroma cell, along each axis.
        augment: random crops.
        smallest_crop: edge of the smallest random crop over the photo's shorter side; the largest is all of it.
        soft_probability: share of the items whose lightness is scaled down and up again before the network sees it.
        film_probability: share of the items whose lightness is seen through a random old film (film.py).
        seed: of all that is drawn.
        indices: photos of the source to use, all by default.
        cache: folder that keeps decoded photos for the next run; None: in memory.
        cache_bytes: decoded photos are kept up to this size; the others are decoded anew each time.
        progress: show a bar while photos are read.

    Items: ``{"lightness": [1, R, R] in [0, 100], "chroma": [2, R / luma_factor, R / luma_factor] in CIELAB units}``.
    """

    def __init__(
        self,
        source: PhotoSource,
        *,
        resolution: int,
        luma_factor: int,
        augment: bool,
        smallest_crop: float = 1.0,
        soft_probability: float = 0.0,
        film_probability: float = 0.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        cache: Path | None = None,
        cache_bytes: int = 4 * 2**30,
        progress: bool = False,
    ) -> None:
        if resolution % luma_factor:
            raise ValueError(f"resolution={resolution} isn't divisible by luma_factor={luma_factor}")
        self.resolution, self.luma_factor, self.augment, self.seed = resolution, luma_factor, augment, seed
        self.smallest_crop, self.soft_probability, self.film_probability = (
            smallest_crop,
            soft_probability,
            film_probability,
        )
        fit = Fit(_KEPT_SIDE * resolution, shrink_only=True) if augment else Fit(round(resolution * CROP_MARGIN))
        self.store = open_store(source, fit, indices=indices, folder=cache, cache_bytes=cache_bytes, progress=progress)
        self._numbers = np.arange(len(self.store))

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def skipped(self) -> Skipped:
        """Photos of the source that can't be used."""
        return self.store.skipped

    @property
    def kept(self) -> list[int]:
        """Which photos of the source the items are, in order."""
        return self.store.rows[self._numbers].tolist()

    @property
    def digest(self) -> str:
        """Of the photos' content and order, whatever their names."""
        facts = np.stack((self.store.rows, self.store.digests))[:, self._numbers]
        return hashlib.sha256(facts.astype("<i8").tobytes()).hexdigest()[:16]

    def name(self, index: int) -> str:
        return self.store.source.name(int(self.store.rows[self._numbers[index]]))

    def without(self, indices: Sequence[int]) -> "ColorizationDataset":
        """The same photos except some of them."""
        view = copy.copy(self)
        view._numbers = np.delete(self._numbers, list(indices))
        return view

    def through_film(self) -> "ColorizationDataset":
        """The same photos with every one seen through a film, the same film at every call: a degraded set."""
        view = copy.copy(self)
        view.film_probability = 1.0
        return view

    def lab(self, index: int, epoch: int = 0) -> torch.Tensor:
        """The crop that item ``(epoch, index)`` is made from: CIELAB ``[3, R, R]``."""
        lab8 = self.store.load(int(self._numbers[index]))
        return decode_lab8(self._central_crop(lab8)) if not self.augment else self._random_crop(lab8, epoch, index)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = item
        lab = self.lab(index, epoch)
        chroma = downsample_chroma(lab[None, 1:], self.luma_factor)[0]
        return {"lightness": self._seen(lab, epoch, index), "chroma": chroma}

    def _seen(self, lab: torch.Tensor, epoch: int, index: int) -> torch.Tensor:
        """The lightness ``[1, R, R]`` that the network is given for the true crop ``lab``."""
        if self.soft_probability:
            rng = self._rng(epoch, index, _SOFT)
            if rng.random() < self.soft_probability:
                lab = soften(lab, factor=rng.uniform(1, _SOFTEST), shrinker=_drawn(rng), enlarger=_drawn(rng))
        if self.film_probability:
            rng = self._rng(epoch, index, _FILM)
            if rng.random() < self.film_probability:
                return photograph(lab, draw_film(rng), rng)
        return lab[:1]

    def _rng(self, epoch: int, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, epoch, index, stream))

    def _central_crop(self, lab8: torch.Tensor) -> torch.Tensor:
        top, left = ((side - self.resolution) // 2 for side in lab8.shape[-2:])
        return lab8[:, top : top + self.resolution, left : left + self.resolution]

    def _random_crop(self, lab8: torch.Tensor, epoch: int, index: int) -> torch.Tensor:
        rng = self._rng(epoch, index, _CROP)
        height, width = lab8.shape[-2:]
        edge = max(1, round(min(height, width) * rng.uniform(self.smallest_crop, 1)))
        top, left = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
        crop = lab8[:, top : top + edge, left : left + edge]
        if rng.random() < 0.5:
            crop = crop.flip(-1)
        return resize(decode_lab8(crop), self.resolution, _drawn(rng))


def _drawn(rng: np.random.Generator) -> dict[str, Any]:
    return _FILTERS[rng.integers(len(_FILTERS))]


def resize(lab: torch.Tensor, edge: int, scaler: Mapping[str, Any]) -> torch.Tensor:
    """A square CIELAB crop ``[3, s, s]`` at ``edge`` pixels by a filter of ``F.interpolate``, L* within [0, 100]."""
    if lab.shape[-1] == edge:
        return lab
    scaled = F.interpolate(lab[None], (edge, edge), **scaler)[0]
    scaled[0].clamp_(0, L_MAX)
    return scaled


def soften(
    lab: torch.Tensor, *, factor: float, shrinker: Mapping[str, Any], enlarger: Mapping[str, Any]
) -> torch.Tensor:
    """``lab`` ``[3, R, R]`` scaled down by ``factor`` and up again: what a small copy or an unsharp print has lost."""
    edge = lab.shape[-1]
    return resize(resize(lab, max(1, round(edge / factor)), shrinker), edge, enlarger)


class MixedPhotos(Dataset):
    """Photos of several sources; items are asked for by ``(source, epoch, index)``."""

    def __init__(self, sources: Sequence[ColorizationDataset]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, item: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        source, epoch, index = item
        return self.sources[source][epoch, index]


class MixBatches(Sampler[list[tuple[int, int, int]]]):
    """Batches of ``(source, epoch, index)`` for one process, from any step on, each a pure function of its number.

    Position p of the endless run belongs to the source in whose interval of weights (p x golden ratio + u) mod 1 lies,
    u drawn from the seed: each source comes by its weight, evenly spread. The n-th photo of a source with N photos is
    ``permutation(seed, source, n // N)[n % N]``. Batch number m of process ``rank`` out of ``world`` holds the
    ``batch_size`` positions from ``(m * world + rank) * batch_size`` on. So resuming at a step needs no state, and
    epochs need not divide into batches.

    Args:
        counts: photos of each source.
        weights: of each source; they needn't sum to 1. By default as many as it has photos.
        start, stop: batches from ``start`` up to ``stop``.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        batch_size: int,
        start: int,
        stop: int,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.counts, self.batch_size, self.start, self.stop = counts, batch_size, start, stop
        self.seed, self.rank, self.world = seed, rank, world
        shares = np.cumsum(np.array(counts if weights is None else weights, float))
        self._bounds = shares[:-1] / shares[-1]
        self._offset = np.random.default_rng(derive_seed(seed)).random()

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        span = self.batch_size * self.world  # positions of one batch number, over all processes
        drawn = self._drawn_before(self.start * span)
        for batch in range(self.start, self.stop):
            items = []
            for source in self._sources(batch * span, (batch + 1) * span).tolist():
                items.append(self._item(source, drawn[source]))
                drawn[source] += 1
            yield items[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _sources(self, first: int, end: int) -> np.ndarray:
        """The sources of positions ``first`` to ``end``."""
        return np.searchsorted(self._bounds, (np.arange(first, end) * _GOLDEN + self._offset) % 1, side="right")

    def _drawn_before(self, position: int) -> list[int]:
        """How many photos of each source come before a position."""
        drawn = np.zeros(len(self.counts), np.int64)
        chunk = 2**20
        for first in range(0, position, chunk):
            drawn += np.bincount(self._sources(first, min(first + chunk, position)), minlength=len(drawn))
        return drawn.tolist()

    def _item(self, source: int, number: int) -> tuple[int, int, int]:
        epoch, place = divmod(number, self.counts[source])
        return source, epoch, int(_order(self.counts[source], derive_seed(self.seed, source, epoch))[place])


@functools.lru_cache(maxsize=16)
def _order(photos: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(photos)


def hold_out(photos: int, held: int, *, seed: int = 0) -> list[int]:
    """``held`` of the numbers in ``range(photos)``, drawn from the seed, ascending."""
    if not 0 < held < photos:
        raise ValueError(f"can't hold out {held} of {photos} photos")
    return sorted(np.random.default_rng(derive_seed(seed)).permutation(photos)[:held].tolist())


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several whole numbers; different numbers give unrelated seeds (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of :class:`ColorizationDataset`: lightness ``[B, 1, R, R]``, chroma ``[B, 2, r, r]``."""
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


@dataclass
class RunPhotos:
    """The photos of a run, by the names of their sources."""

    training: dict[str, ColorizationDataset]
    validation: dict[str, ColorizationDataset]
    weights: dict[str, float]  # of the sources in the photos seen, summing to 1

    def digests(self) -> dict[str, str]:
        """Of what each source holds: a resumed run must find the same photos in the same split."""
        return {name: f"{training.digest}-{self.validation[name].digest}" for name, training in self.training.items()}


def open_photos(options: DataOptions, *, resolution: int, luma_factor: int, seed: int, progress: bool) -> RunPhotos:
    """Open all sources of a run, hold validation photos out where none are given, keep what was decoded.

    Raises:
        ValueError: if a source can't be opened or has too few usable photos; the message names option and remedy.
    """
    folder, limit = Path(options.cache_dir).expanduser(), int(options.cache_gib * 2**30)
    opened: list[ColorizationDataset] = []

    def make(source: PhotoSource, indices: Sequence[int] | None = None, **training: Any) -> ColorizationDataset:
        room = limit - sum(one.store.pixel_bytes for one in opened)
        dataset = ColorizationDataset(
            source, resolution=resolution, luma_factor=luma_factor, indices=indices, cache=folder,
            cache_bytes=max(0, room), progress=progress, **{"augment": False, **training},
        )  # fmt: skip
        opened.append(dataset)
        return dataset

    photos = RunPhotos({}, {}, {})
    for number, (name, (training_source, validation_source)) in enumerate(_open_sources(options).items()):
        try:
            training = make(
                training_source, augment=True, smallest_crop=options.smallest_crop, seed=derive_seed(seed, number),
                soft_probability=options.soft_probability, film_probability=options.film_probability,
            )  # fmt: skip
            if validation_source is not None:
                validation = make(validation_source, range(min(options.validation_photos, len(validation_source))))
            else:
                if len(training) < 2:
                    raise ValueError("one usable photo alone: none can be held out; add photos, or validation photos")
                held = hold_out(
                    len(training), min(options.validation_photos, max(1, len(training) // 10)),
                    seed=derive_seed(seed, number, _SPLIT),
                )  # fmt: skip
                validation = make(training_source, training.store.rows[held].tolist())
                training = training.without(held)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        photos.training[name], photos.validation[name] = training, validation
        for kind, dataset in (("training", training), ("validation", validation)):
            logger.info("%s, %s: %d photos; %s", name, kind, len(dataset), dataset.skipped)
    trim_stores(folder, limit_bytes=limit, used=[one.store for one in opened])
    weights = options.mix or {name: len(dataset) for name, dataset in photos.training.items()}
    photos.weights = {name: weights[name] / sum(weights.values()) for name in photos.training}
    return photos


def _open_sources(options: DataOptions) -> dict[str, tuple[PhotoSource, PhotoSource | None]]:
    """Training and validation photos by name; None for the latter when they are to be held out from the former."""

    def read(flag: str, paths: Sequence[str] | None) -> PhotoSource | None:
        if paths is None:
            return None
        try:
            return open_source(paths, image_column=options.image_column)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"--{flag}: {error}") from None

    def hub(split: str | None) -> PhotoSource | None:
        if not options.dataset_name or not split:
            return None
        return open_hub_source(options.dataset_name, split=split, image_column=options.image_column)

    if options.source:
        given = options.validation_source or {}
        pairs = {
            name: (read(f"source {name}", paths), read(f"validation_source {name}", given.get(name)))
            for name, paths in options.source.items()
        }
    elif options.train_data:
        pairs = {"photos": (read("train_data", options.train_data), read("validation_data", options.validation_data))}
    else:
        pairs = {
            "photos": (hub("train"), hub(options.validation_split) or read("validation_data", options.validation_data))
        }
    return {name: (training, validation) for name, (training, validation) in pairs.items() if training is not None}
