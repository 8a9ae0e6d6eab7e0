"""Reading a photo: files, PIL images, arrays and tensors, all to one lightness."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from PIL import ImageOps

from .color import gray_to_lightness, rgb_to_lab
from .photo import Lightness

PhotoInput = str | Path | PIL.Image.Image | np.ndarray | torch.Tensor


def read_photo(image: PhotoInput) -> Lightness:
    """The lightness of any accepted photo. A colour photo is taken as its lightness.

    Raises:
        ValueError, TypeError: for what is no photo.
        OSError: for a file that can't be read; the message names it.
    """
    pixels = read_pixels(image)
    return Lightness(gray_to_lightness(pixels) if pixels.shape[0] == 1 else rgb_to_lab(pixels[:3])[:1])


def list_photos(image: PhotoInput | Sequence[PhotoInput]) -> list[PhotoInput]:
    if isinstance(image, (list, tuple)):
        if not image:
            raise ValueError("image is an empty list: give at least one photo")
        return list(image)
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    return [image]  # type: ignore[list-item]


def read_pixels(image: PhotoInput) -> torch.Tensor:
    """Any accepted photo to gamma-encoded values ``[1, 3 or 4, H, W]`` in [0, 1], float32 on the CPU."""
    if isinstance(image, (str, Path)):
        decoded = _decode_file(image)
        try:
            return read_pixels(decoded)
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
    if isinstance(image, PIL.Image.Image):
        pixels = _pixels_of_pil(image)
    elif isinstance(image, np.ndarray):
        channels_first = image if image.ndim == 2 else np.moveaxis(image, -1, 0)
        pixels = torch.from_numpy(np.ascontiguousarray(_to_unit_range(channels_first)))
    elif isinstance(image, torch.Tensor):
        values = image.detach().cpu()
        values = values.float() if image.is_floating_point() else values  # NumPy has no bfloat16
        pixels = torch.from_numpy(_to_unit_range(values.numpy()))
    else:
        raise TypeError(
            f"image must be a path, PIL image, array, tensor or a list of them, got {type(image).__name__}"
        )

    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or not pixels.numel():
        raise ValueError(
            f"image has shape {tuple(pixels.shape)} (channels first); expected [H, W], or 1, 3 or 4 channels: "
            "arrays as [H, W, C], tensors as [C, H, W]"
        )
    return pixels


def _decode_file(file: str | Path) -> PIL.Image.Image:
    """The photo in a file, decoded whole and upright. Raises ``OSError`` that names the file."""
    try:
        with PIL.Image.open(file) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types for damaged files
        raise OSError(f"{file}: can't be read as a photo ({error})") from error


def _pixels_of_pil(image: PIL.Image.Image) -> torch.Tensor:
    """sRGB or grey in [0, 1], ``[H, W]`` or ``[3, H, W]``; 16-bit grey keeps its 16 bits, transparency is dropped."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"image has mode {image.mode} with values {values.min()} to {values.max()}: not 16-bit grey"
            )
        return torch.from_numpy(values / 65535)
    if image.mode == "F":
        return torch.from_numpy(_to_unit_range(np.asarray(image)).copy())
    image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels if pixels.ndim == 2 else pixels.movedim(-1, 0)


def _to_unit_range(array: np.ndarray) -> np.ndarray:
    """Integers over their dtype's range, booleans, or floats in [0, 1], to float32 in [0, 1]."""
    if array.dtype == bool:
        return array.astype(np.float32)
    if array.dtype.kind in "ui":
        return (array.astype(np.float64) / np.iinfo(array.dtype).max).astype(np.float32)
    if array.dtype.kind != "f":
        raise TypeError(f"image has dtype {array.dtype}; use an integer or a floating-point dtype")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("image holds NaN or infinite values")
    if values.size and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"image is {array.dtype} with values from {values.min():g} to {values.max():g}; floats must lie in [0, 1] "
            "(divide by 255, or pass an integer dtype)"
        )
    return values
