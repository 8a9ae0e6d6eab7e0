"""Photographs for training, wherever they lie: image folders, parquet files, the Hub, the Kaggle arrays.

Whatever its source, a photo is kept as 8-bit CIELAB ``[3, H, W]`` (L* x 255 / 100, a* + 128, b* + 128): the layout of
the Kaggle set that the origin of this project names, and half the memory of floats.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..diffusion.color import L_MAX, rgb_to_lab

_AB_OFFSET = 128


class PhotoSource(Protocol):
    """Photos that can be counted, named and read one by one."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message about this photo calls it: a path where there is one."""

    def load(self, index: int) -> torch.Tensor:
        """The photo as 8-bit CIELAB, uint8 ``[3, H, W]``. Raises ``OSError`` or ``ValueError`` if it can't be read."""

    def digest(self, index: int) -> int:
        """64 bits of a hash of the photo's content, whatever its name, signed."""

    def identity(self) -> str:
        """A digest that changes when the photos may have changed: of each file's path, size and time."""

    def labels(self, column: str, indices: Sequence[int]) -> list[str]:
        """What ``column`` says of these photos. Raises ``ValueError`` if there is no such column."""


class DatasetPhotos:
    """Photos of a ``datasets.Dataset`` (Hub, image folder, parquet), decoded one at a time.

    ``files`` are those that the photos lie in, if the dataset isn't from the Hub.
    """

    def __init__(
        self, dataset: datasets.Dataset, *, image_column: str = "image", files: Sequence[Path] | None = None
    ) -> None:
        if image_column not in dataset.column_names:
            raise ValueError(f"image_column={image_column!r} isn't in the dataset; it has {dataset.column_names}")
        # Undecoded, so that one corrupt file is our error to handle and not the end of the epoch.
        self._dataset = dataset
        self._images = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._column, self._files = image_column, files

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images[index][self._column]["path"] or f"row {index}"

    def load(self, index: int) -> torch.Tensor:
        return read_photo(io.BytesIO(self._content(index)))

    def digest(self, index: int) -> int:
        return _digest(self._content(index))

    def identity(self) -> str:
        if self._files is None:
            return f"{self._images._fingerprint} {self._column}"
        return f"{_identity(self._files)} {self._column}"

    def _content(self, index: int) -> bytes:
        stored = self._images[index][self._column]
        if stored is None:
            raise ValueError("no photo in this row")
        return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()

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
        self._files = [lightness_file, *chroma_files]

    def __len__(self) -> int:
        # The published set has as many chroma as lightness images; a partial download has fewer.
        return min(len(self._lightness), int(self._ends[-1]))

    def name(self, index: int) -> str:
        return f"{self.folder}[{index}]"

    def load(self, index: int) -> torch.Tensor:
        part = int(np.searchsorted(self._ends, index, side="right"))
        chroma = self._chroma[part][index - (self._ends[part - 1] if part else 0)]
        return torch.from_numpy(np.concatenate((self._lightness[index][None], np.moveaxis(chroma, -1, 0))))

    def digest(self, index: int) -> int:
        return _digest(self.load(index).numpy().tobytes())

    def identity(self) -> str:
        return _identity(self._files)

    def labels(self, column: str, indices: Sequence[int]) -> list[str]:
        raise ValueError(f"column {column!r}: the Kaggle arrays in {self.folder} have no labels")


def read_photo(file: str | Path | io.BytesIO) -> torch.Tensor:
    """Decode an image file to 8-bit CIELAB ``[3, H, W]``, upright (EXIF), any colour mode."""
    try:
        opened = Image.open(file)
    except UnidentifiedImageError:
        raise ValueError("not an image that can be read") from None
    with opened as image:
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


def open_hub_source(name: str, *, split: str, image_column: str = "image") -> PhotoSource:
    """Photos of one split of a dataset on the Hub."""
    return DatasetPhotos(datasets.load_dataset(name, split=split), image_column=image_column)


def open_source(paths: Sequence[str | Path], *, image_column: str = "image") -> PhotoSource:
    """Local photos: one image folder, one folder of the Kaggle arrays, or parquet files (names or glob patterns).

    Raises:
        FileNotFoundError: if a path doesn't exist or a pattern matches nothing.
        ValueError: if the paths are of different kinds, or a folder holds no photo.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        root = Path(path.anchor)
        found = sorted(root.glob(str(path.relative_to(root)))) if "*" in str(path) else [path]
        if not found or not found[0].exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        files.extend(found)
    if len(files) == 1 and files[0].is_dir():
        if (files[0] / "l" / "gray_scale.npy").is_file():
            return LabArrayPhotos(files[0])
        return _open_folder(files[0])
    if all(file.suffix == ".parquet" for file in files):
        loaded = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        return DatasetPhotos(loaded, image_column=image_column, files=files)
    raise ValueError(
        f"can't read photos from {[str(file) for file in files]}: give one folder of images, one folder with the "
        "Kaggle arrays, or parquet files"
    )


def _open_folder(folder: Path) -> PhotoSource:
    try:
        dataset = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    except (datasets.exceptions.DatasetsError, FileNotFoundError) as error:
        raise ValueError(f"{folder} holds no photo that can be trained on") from error
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return DatasetPhotos(dataset, files=files)


def _identity(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.absolute()} {facts.st_size} {facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
