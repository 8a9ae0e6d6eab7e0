"""Photo collections that tests make: the same pictures as an image folder, as parquet and as the Kaggle arrays."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.training.sources import encode_lab8


def colourful(number: int, *, height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth random colour picture, uint8 ``[height, width, 3]``."""
    small = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def make_folder(folder: Path, count: int, **size: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(colourful(number, **size)).save(folder / f"{number:03}.png")
    return folder


def make_parquet(file: Path, count: int, **size: int) -> Path:
    def png(number: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(colourful(number, **size)).save(stream, "PNG")
        return stream.getvalue()

    rows = {"image": [{"bytes": png(number), "path": None} for number in range(count)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file


def make_kaggle_arrays(folder: Path, count: int, *, edge: int = 40, files: int = 3) -> Path:
    """The layout of the Kaggle set, in small: 8-bit L in one file, a/b in several."""
    labs = np.stack(
        [
            encode_lab8(
                rgb_to_lab(torch.from_numpy(colourful(n, height=edge, width=edge)).movedim(-1, 0) / 255)
            ).numpy()
            for n in range(count)
        ]
    )
    (folder / "l").mkdir(parents=True)
    (folder / "ab" / "ab").mkdir(parents=True)
    np.save(folder / "l" / "gray_scale.npy", labs[:, 0])
    for number, part in enumerate(np.array_split(np.moveaxis(labs[:, 1:], 1, -1), files), start=1):
        np.save(folder / "ab" / "ab" / f"ab{number}.npy", part)
    return folder
