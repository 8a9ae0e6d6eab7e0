"""Photographs for training: sources -> 8-bit CIELAB photos -> lightness and chroma tensors.

Whatever its source, a photo is kept as 8-bit CIELAB ``[3, H, W]`` (L* x 255 / 100, a* + 128, b* + 128): the layout of
the Kaggle set that the origin of this project names, and half the memory of floats. Every random choice is a pure
function of (seed, position in the run), so that a resumed run sees exactly the photos an uninterrupted one would.
"""

import copy
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

from ..diffusion.color import L_MAX, downsample_chroma, rgb_to_lab
from .film import draw_film, photograph

NEARLY_GREY = 2.0  # mean chroma sqrt(a*^2 + b*^2) under this is a grey photo: nothing to learn from
CROP_MARGIN = 150 / 128  # the shorter side of a stored photo over the crop that training takes from it
_AB_OFFSET = 128

# Streams of random numbers, kept apart by the last part of each seed.
_FILM, _EXTRA = 1, 2


class PhotoSource(Protocol):
    """Photos that can be counted, named and read one by one."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message about this photo calls it: a path where there is one."""

    def load(self, index: int) -> torch.Tensor:
        """The photo as 8-bit CIELAB, uint8 ``[3, H, W]``. Raises ``OSError`` or ``ValueError`` if it can't be read."""

    def labels(self, column: str, indices: Sequence[int]) -> list[str]:
        """What ``column`` says of these photos. Raises ``ValueError`` if there is no such column."""


class DatasetPhotos:
    """Photos of a ``datasets.Dataset`` (Hub, image folder, parquet), decoded one at a time."""

    def __init__(self, dataset: datasets.Dataset, *, image_column: str = "image") -> None:
        if image_column not in dataset.column_names:
            raise ValueError(f"image_column={image_column!r} isn't in the dataset; it has {dataset.column_names}")
        # Undecoded, so that one corrupt file is our error to handle and not the end of the epoch.
        self._dataset = dataset
        self._images = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._column = image_column

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images[index][self._column]["path"] or f"row {index}"

    def load(self, index: int) -> torch.Tensor:
        stored = self._images[index][self._column]
        return read_photo(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"])

    def labels(self, column: str, indices: Sequence[int]) -> list[str]:
        """What ``column`` says of these photos; class numbers by their names. Raises ``ValueError`` without it."""
        if column not in self._dataset.column_names:
            raise ValueError(f"column {column!r} isn't in the dataset; it has {self._dataset.column_names}")
        values, feature = self._dataset[column], self._dataset.features[column]
        names = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
        return [names(values[index]) for index in indices]


class LabArrayPhotos:
    """The Kaggle "image colorization" arrays: ``l/gray_scale.npy`` and ``ab/ab/ab1.npy``, ``ab2.npy``, ...

    Lightness is uint8 ``[N, H, W]`` (L* x 255 / 100), chroma uint8 ``[n, H, W, 2]`` (a* + 128, b* + 128), the chroma
    files following one another. The arrays are memory-mapped: a photo is read when it is asked for.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        lightness_file = self.folder / "l" / "gray_scale.npy"
        chroma_files = sorted(
            (self.folder / "ab" / "ab").glob("ab*.npy"), key=lambda file: (len(file.name), file.name)
        )
        if not lightness_file.is_file() or not chroma_files:
            raise ValueError(f"{folder} doesn't hold l/gray_scale.npy and ab/ab/ab1.npy ...: not the Kaggle arrays")
        self._lightness = np.load(lightness_file, mmap_mode="r")
        self._chroma = [np.load(file, mmap_mode="r") for file in chroma_files]
        for file, array in zip(chroma_files, self._chroma, strict=True):
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (*self._lightness.shape[1:3], 2):
                raise ValueError(
                    f"{file} is {array.dtype} {array.shape}; expected uint8 [n, H, W, 2] with the height and width of "
                    f"{lightness_file} ({self._lightness.dtype} {self._lightness.shape})"
                )
        if self._lightness.dtype != np.uint8 or self._lightness.ndim != 3:
            raise ValueError(
                f"{lightness_file} is {self._lightness.dtype} {self._lightness.shape}, not uint8 [N, H, W]"
            )
        self._ends = np.cumsum([len(array) for array in self._chroma])

    def __len__(self) -> int:
        # The published set has as many chroma as lightness images; a partial download has fewer.
        return min(len(self._lightness), int(self._ends[-1]))

    def name(self, index: int) -> str:
        return f"{self.folder}[{index}]"

    def load(self, index: int) -> torch.Tensor:
        part = int(np.searchsorted(self._ends, index, side="right"))
        chroma = self._chroma[part][index - (self._ends[part - 1] if part else 0)]
        return torch.from_numpy(np.concatenate((self._lightness[index][None], np.moveaxis(chroma, -1, 0))))

    def labels(self, column: str, indices: Sequence[int]) -> list[str]:
        raise ValueError(f"column {column!r}: the Kaggle arrays in {self.folder} have no labels")


def read_photo(file: str | Path | io.BytesIO) -> torch.Tensor:
    """Decode an image file to 8-bit CIELAB ``[3, H, W]``, upright (EXIF), any colour mode."""
    with Image.open(file) as image:
        rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    lab = rgb_to_lab(torch.from_numpy(rgb.copy()).movedim(-1, 0).float() / 255)
    return encode_lab8(lab)


def encode_lab8(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB ``[..., 3, H, W]`` to uint8 (L* x 255 / 100, a* + 128, b* + 128)."""
    lightness, chroma = lab[..., :1, :, :] * (255 / L_MAX), lab[..., 1:, :, :] + _AB_OFFSET
    return torch.cat((lightness, chroma), dim=-3).round().clamp(0, 255).to(torch.uint8)


def decode_lab8(lab8: torch.Tensor) -> torch.Tensor:
    """uint8 CIELAB ``[..., 3, H, W]`` back to floats, L* in [0, 100]."""
    lab = lab8.float()
    return torch.cat((lab[..., :1, :, :] * (L_MAX / 255), lab[..., 1:, :, :] - _AB_OFFSET), dim=-3)


def open_hub_source(name: str, *, config: str | None = None, split: str, image_column: str = "image") -> PhotoSource:
    """Photos of one split of a dataset on the Hub."""
    return DatasetPhotos(datasets.load_dataset(name, config, split=split), image_column=image_column)


def open_source(paths: Sequence[str | Path], *, image_column: str = "image") -> PhotoSource:
    """Local photos: one image folder, one folder of the Kaggle arrays, or parquet files (names or glob patterns).

    Raises:
        FileNotFoundError: if a path doesn't exist or a pattern matches nothing.
        ValueError: if the paths are of different kinds.
    """
    files: list[Path] = []
    for path in map(str, paths):
        found = sorted(Path().glob(path)) if "*" in path and not Path(path).is_absolute() else _glob_absolute(path)
        if not found:
            raise FileNotFoundError(f"{path}: no such file or folder")
        files.extend(found)
    if len(files) == 1 and files[0].is_dir():
        if (files[0] / "l" / "gray_scale.npy").is_file():
            return LabArrayPhotos(files[0])
        return DatasetPhotos(datasets.load_dataset("imagefolder", data_dir=str(files[0]), split="train"))
    if all(file.suffix == ".parquet" for file in files):
        loaded = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        return DatasetPhotos(loaded, image_column=image_column)
    raise ValueError(
        f"can't read photos from {[str(file) for file in files]}: give one folder of images, one folder with the "
        "Kaggle arrays, or parquet files"
    )


def _glob_absolute(path: str) -> list[Path]:
    if "*" not in path:
        return [Path(path)] if Path(path).exists() else []
    root = Path(path).anchor
    return sorted(Path(root).glob(str(Path(path).relative_to(root))))


@dataclass
class Skipped:
    """Photos that training passes over, by name."""

    unreadable: list[str] = field(default_factory=list)
    nearly_grey: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {kind} photos skipped: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for kind, names in (("unreadable", self.unreadable), ("nearly grey", self.nearly_grey))
            if names
        ]
        return "; ".join(parts) or "no photo skipped"


class ColorizationDataset(Dataset):
    """Lightness at ``resolution`` and chroma on a ``luma_factor`` times coarser grid, cut from the photos of a source.

    Items are asked for by ``(epoch, index)``: the crop and the flip are drawn from a generator seeded by (seed, epoch,
    index), whatever process or worker reads them. With ``augment=False`` every item is the central crop.

    Args:
        source: the photos. All are read once at the start; unreadable and nearly grey ones are left out and named in
            ``skipped``.
        resolution: edge of the square crop in pixels, divisible by ``luma_factor``.
        luma_factor: lightness pixels per chroma cell, along each axis.
        indices: photos to use, all by default.
        film_probability: share of the items whose lightness is seen through a random old film (film.py).
        cache_bytes: decoded photos are kept in memory up to this size; the others are decoded anew each time.

    Items: ``{"lightness": [1, R, R] in [0, 100], "chroma": [2, R / luma_factor, R / luma_factor] in CIELAB units}``.
    """

    def __init__(
        self,
        source: PhotoSource,
        *,
        resolution: int,
        luma_factor: int,
        augment: bool,
        film_probability: float = 0.0,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        cache_bytes: int = 4 * 2**30,
        progress: bool = False,
    ) -> None:
        if resolution % luma_factor:
            raise ValueError(f"resolution={resolution} isn't divisible by luma_factor={luma_factor}")
        self.resolution, self.luma_factor, self.augment, self.seed = resolution, luma_factor, augment, seed
        self.film_probability = film_probability
        self.skipped = Skipped()
        self._source = source
        self._kept: list[int] = []
        self._cache: dict[int, torch.Tensor] = {}
        candidates = range(len(source)) if indices is None else indices
        for index in tqdm(candidates, desc="reading photos", unit="photo", disable=not progress):
            self._admit(index, cache_bytes)
        if not self._kept:
            raise ValueError(f"no usable photo among {len(candidates)}: {self.skipped}")

    def _admit(self, index: int, cache_bytes: int) -> None:
        try:
            lab8 = self._load(index)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            self.skipped.unreadable.append(f"{self._source.name(index)} ({error})")
            return
        if decode_lab8(lab8)[1:].norm(dim=0).mean() < NEARLY_GREY:
            self.skipped.nearly_grey.append(self._source.name(index))
            return
        self._kept.append(index)
        if (len(self._cache) + 1) * lab8.numel() <= cache_bytes:
            self._cache[index] = lab8

    def _load(self, index: int) -> torch.Tensor:
        """The photo with its shorter side at the stored size: CROP_MARGIN times the resolution."""
        lab8 = self._source.load(index)
        height, width = lab8.shape[-2:]
        scale = round(self.resolution * CROP_MARGIN) / min(height, width)
        if scale == 1:
            return lab8
        size = [round(height * scale), round(width * scale)]
        resized = F.interpolate(lab8[None].float(), size, mode="bilinear", antialias=True)[0]
        return resized.round().clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> list[int]:
        """Which photos of the source the items are, in order."""
        return list(self._kept)

    def name(self, index: int) -> str:
        return self._source.name(self._kept[index])

    def lab(self, index: int, epoch: int = 0) -> torch.Tensor:
        """The crop that item ``(epoch, index)`` is made from: CIELAB ``[3, R, R]``."""
        photo = self._kept[index]
        lab8 = self._cache[photo] if photo in self._cache else self._load(photo)
        return decode_lab8(self._crop(lab8, epoch, index))

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = item
        lab = self.lab(index, epoch)
        chroma = downsample_chroma(lab[None, 1:], self.luma_factor)[0]
        return {"lightness": self._seen(lab, epoch, index), "chroma": chroma}

    def through_film(self) -> "ColorizationDataset":
        """The same photos with every one seen through a film, the same film at every call: a degraded set."""
        view = copy.copy(self)
        view.film_probability = 1.0
        return view

    def _seen(self, lab: torch.Tensor, epoch: int, index: int) -> torch.Tensor:
        """The lightness ``[1, R, R]`` that the network is given for the true crop ``lab``."""
        if not self.film_probability:
            return lab[:1]
        rng = np.random.default_rng(derive_seed(self.seed, epoch, index, _FILM))
        return photograph(lab, draw_film(rng), rng) if rng.random() < self.film_probability else lab[:1]

    def _crop(self, lab8: torch.Tensor, epoch: int, index: int) -> torch.Tensor:
        spare_rows, spare_columns = lab8.shape[-2] - self.resolution, lab8.shape[-1] - self.resolution
        if not self.augment:
            top, left, flip = spare_rows // 2, spare_columns // 2, False
        else:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, index))
            draws = torch.rand(3, generator=generator).tolist()
            top, left, flip = int(draws[0] * (spare_rows + 1)), int(draws[1] * (spare_columns + 1)), draws[2] < 0.5
        crop = lab8[:, top : top + self.resolution, left : left + self.resolution]
        return crop.flip(-1) if flip else crop


class JoinedDataset(Dataset):
    """Photos of ``main``, then those of ``extra``, under one index; items are asked for as of either."""

    def __init__(self, main: ColorizationDataset, extra: ColorizationDataset) -> None:
        self.main, self.extra = main, extra

    def __len__(self) -> int:
        return len(self.main) + len(self.extra)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = item
        return self.main[item] if index < len(self.main) else self.extra[epoch, index - len(self.main)]


class StepBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` for one process, from any step on, each a pure function of its number.

    Position p of the endless run is photo ``permutation(seed, p // N)[p % N]``; batch number m of process ``rank`` out
    of ``world`` holds the ``batch_size`` positions from ``(m * world + rank) * batch_size`` on. So resuming at a step
    needs no state and skips nothing, and epochs need not divide into batches.

    With ``extra`` photos, indexed behind the N others, an ``extra_share`` of the positions, evenly spread, go through
    their own permutations in the same way.
    """

    def __init__(
        self,
        photos: int,
        *,
        batch_size: int,
        start: int,
        stop: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        extra: int = 0,
        extra_share: float = 0.0,
    ) -> None:
        self.photos, self.batch_size, self.start, self.stop = photos, batch_size, start, stop
        self.seed, self.rank, self.world = seed, rank, world
        self.extra, self.extra_share = extra, extra_share if extra else 0.0

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.start, self.stop):
            first = (batch * self.world + self.rank) * self.batch_size
            yield [self._item(position) for position in range(first, first + self.batch_size)]

    def _item(self, position: int) -> tuple[int, int]:
        before, after = (int(p * self.extra_share) for p in (position, position + 1))  # extra photos up to here
        if after > before:
            epoch, place = divmod(before, self.extra)
            return epoch, self.photos + _order(self.extra, derive_seed(self.seed, epoch, _EXTRA))[place]
        epoch, place = divmod(position - before, self.photos)
        return epoch, _order(self.photos, derive_seed(self.seed, epoch))[place]


@functools.lru_cache(maxsize=4)
def _order(photos: int, seed: int) -> list[int]:
    return torch.randperm(photos, generator=torch.Generator().manual_seed(seed)).tolist()


def hold_out(photos: int, held: int, *, seed: int = 0) -> tuple[list[int], list[int]]:
    """Split ``range(photos)`` into (training, validation) indices, ``held`` of them for validation."""
    if not 0 < held < photos:
        raise ValueError(f"can't hold out {held} of {photos} photos")
    order = torch.randperm(photos, generator=torch.Generator().manual_seed(derive_seed(seed))).tolist()
    return sorted(order[held:]), sorted(order[:held])


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several whole numbers; different numbers give unrelated seeds (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of :class:`ColorizationDataset`: lightness ``[B, 1, R, R]``, chroma ``[B, 2, r, r]``."""
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}
