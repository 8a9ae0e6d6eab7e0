"""A photo on its way: from a file or values to lightness, to what the network reads of it, and to its picture."""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from .color import (
    AT_ONCE,
    L_MAX,
    Scratch,
    gray_to_lightness,
    lab_to_displayable_rgb,
    lab_to_rgb8,
    lightness_to_gray,
    rgb_to_lab,
    upsample_columns,
    upsample_rows,
)
from .hints import Hint, HintMap, map_hints
from .reading import (
    DEFAULT_MAX_MEGAPIXELS,
    PhotoError,
    Pixels,
    check_floats,
    naming,
    pixels_of_image,
    read_gray,
    read_pixels,
    to_gray,
    to_rgb,
)
from .variants import spread, state_uncertainty

_ENCODER_PIXELS = 2**19
_LONGEST_OVER_WORKING_SIZE = 16  # a strip that is longer than this is scaled down to it and padded
_STRIP_PIXELS = 2**17  # full-size conversion goes by strips of about this many pixels: fastest of 2^15 ... 2^20
_SHALLOW_PIXELS = 2**22  # of a strip of 8 bits, whose conversion goes by smaller parts itself

# Of the search for plain borders
_ANALYSED_EDGE = 512  # the longer side at which borders are looked for, pixels
_PLAIN = 4.0  # L*: how far a border's rows may stray from its own level
_SAME_LEVEL = 6.0  # L*: how far the sides of a mount may differ in level
_SMALLEST = 0.02  # of the side: thinner borders aren't worth a cut
_LARGEST = 0.45  # of the side, for each of two opposite borders
_MOST_BORDERS = 3  # one within the other
# Of the search for the black edges of film; tried on sixty scans of negatives and on 970 photos without such edges
_FILM_BLACK = 14.0  # L* up to which a pixel counts as black
_FILM_SHARE = 0.6  # of the outermost row that is black
_FILM_MEAN = 0.7  # of the whole edge
_FILM_LEAST = 0.35  # of every row of it: numbers and notches are in the others
_FILM_DROP = 0.3  # by which the black share falls where the picture begins
_FILM_SIDES = 3  # that have such an edge
_DEEPEST_FILM = 0.16  # of the side
_EDGE = 8.0  # L*: the picture begins where a row strays this much


_scratch = Scratch()


class Lightness:
    """A photo's L* at full size, float32 only strip by strip: a scan of whole numbers keeps its 1 or 2 bytes a pixel.

    Args:
        values: L* ``[1, H, W]`` in [0, 100], float32; or sRGB-encoded grey ``[H, W]`` over the full range of uint8 or
            uint16.
    """

    def __init__(self, values: torch.Tensor | np.ndarray) -> None:
        self._values = values
        self.height, self.width = int(values.shape[-2]), int(values.shape[-1])

    def rows(self, top: int, bottom: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows ``top`` to ``bottom`` as L* ``[1, rows, W]`` in [0, 100], float32, in ``out`` if that is given."""
        if isinstance(self._values, torch.Tensor):
            rows = self._values[:, top:bottom]
            return rows if out is None else out.copy_(rows)
        table = _lightness_table(np.iinfo(self._values.dtype).max)
        codes = torch.from_numpy(self._values[top:bottom].astype(np.int32))
        flat = None if out is None else out.view(-1)
        return torch.index_select(table, 0, codes.view(-1), out=flat).view(1, *codes.shape)

    def crop(self, top: int, left: int, bottom: int, right: int) -> "Lightness":
        """A part of the photo, without a copy."""
        return Lightness(self._values[..., top:bottom, left:right])

    def shrink(self, rows: int, columns: int) -> "Lightness":
        """Means of blocks of so many rows and columns; what is left over at the bottom and the right is dropped."""
        height, width = self.height // rows, self.width // columns
        cut = self._values[..., : height * rows, : width * columns]
        blocks = cut.reshape(*cut.shape[:-2], height, rows, width, columns)
        means = blocks.mean((-3, -1))
        return Lightness(means if isinstance(means, torch.Tensor) else means.round().astype(self._values.dtype))

    def block_means(self, factor: int) -> torch.Tensor:
        """Mean L* ``[h, w]`` of blocks of ``factor`` x ``factor`` pixels. Of 8-bit photos the codes are averaged."""
        if not isinstance(self._values, torch.Tensor) and self._values.dtype == np.uint8:
            codes = PIL.Image.fromarray(self._values).reduce(factor)  # twice as fast
            return Lightness(np.asarray(codes)).rows(0, codes.height)[0]
        strips = (self.rows(top, bottom) for top, bottom in self.strips(multiple_of=factor))
        return torch.cat([F.avg_pool2d(one, factor, ceil_mode=True, count_include_pad=False)[0] for one in strips])

    def strips(
        self, top: int = 0, bottom: int | None = None, *, multiple_of: int = 1, pixels: int = _STRIP_PIXELS
    ) -> Iterator[tuple[int, int]]:
        """``(top, bottom)`` of strips of rows that are small enough to work on in the processor's cache.

        All but the last have a multiple of ``multiple_of`` rows, about ``pixels`` pixels.
        """
        bottom = self.height if bottom is None else bottom
        rows = max(1, pixels // (self.width * multiple_of)) * multiple_of
        for start in range(top, bottom, rows):
            yield start, min(start + rows, bottom)


@cache
def _lightness_table(largest: int) -> torch.Tensor:
    """L* of every grey value 0 ... ``largest``, float32."""
    return gray_to_lightness(torch.arange(largest + 1, dtype=torch.float64) / largest).float()


# The path of a file; a PIL image of any mode, as it lies; an array [H, W] or [H, W, C]; a tensor [H, W] or [C, H, W].
# Values are uint8 or uint16 over their full range, or floats in [0, 1]. Or what was read of a photo before.
PhotoInput = str | Path | PIL.Image.Image | np.ndarray | torch.Tensor | Lightness


def read_photo(image: PhotoInput, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Lightness:
    """The lightness of any accepted photo. A colour photo is taken as its lightness.

    Args:
        max_megapixels: refuse larger files, which may be small files made to fill the memory.

    Raises:
        ValueError, TypeError: for what is no photo.
        OSError: for a file that can't be read; the message names it.
    """
    if isinstance(image, Lightness):
        return image
    if isinstance(image, (str, Path)):
        return Lightness(read_gray(Path(image), max_megapixels=max_megapixels))
    values = _values_of(image)
    if isinstance(values, Pixels):
        return Lightness(to_gray(values))
    return Lightness(gray_to_lightness(values) if len(values) == 1 else rgb_to_lab(values)[:1])


def read_colors(image: PhotoInput, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> torch.Tensor:
    """The colours of any accepted photo as sRGB ``[3, H, W]`` in [0, 1], float32. Raises as :func:`read_photo`."""
    if isinstance(image, Lightness):
        raise TypeError("the lightness of a photo has no colours")
    if isinstance(image, (str, Path)):
        with naming(Path(image)):
            return torch.from_numpy(to_rgb(read_pixels(Path(image), max_megapixels=max_megapixels))).movedim(-1, 0)
    values = _values_of(image)
    if isinstance(values, Pixels):
        return torch.from_numpy(to_rgb(values)).movedim(-1, 0)
    return values.expand(3, -1, -1)


def _values_of(image: PIL.Image.Image | np.ndarray | torch.Tensor) -> Pixels | torch.Tensor:
    """Whole numbers with what they mean, or floats as sRGB ``[1 or 3, H, W]`` in [0, 1]."""
    if isinstance(image, PIL.Image.Image):
        return pixels_of_image(_meant(image))
    values = _channels_last(image)
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
        check_floats(values, "divide by 255, or give 8 or 16-bit whole numbers")
        return torch.from_numpy(values).movedim(-1, 0)
    return Pixels(values, "GRAY" if values.shape[-1] == 1 else "RGB ")


def list_photos(image: PhotoInput | Sequence[PhotoInput]) -> list[PhotoInput]:
    """One photo, a list of photos or a batched tensor as a list; of one photo that is not batched itself."""
    if isinstance(image, (list, tuple)):
        if not image:
            raise ValueError("image is an empty list: give at least one photo")
        return list(image)
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    return [image]  # type: ignore[list-item]


def _channels_last(image: Any) -> np.ndarray:
    """An array or tensor as ``[H, W, 1 or 3]``, uint8, uint16 or floating point."""
    values: np.ndarray
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    elif isinstance(image, np.ndarray):
        values = image
    else:
        raise TypeError(
            f"image must be a path, PIL image, array, tensor or a list of them, got {type(image).__name__}"
        )
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or not values.size:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; expected [H, W], or 1, 3 or 4 channels: arrays as [H, W, C], "
            "tensors as [C, H, W]"
        )
    values = values[..., :3]
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind in "ui" and values.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"image is {values.dtype} with values from {values.min()} to {values.max()}; whole numbers must be uint8 "
            "(0 to 255) or uint16 (0 to 65535): convert it to the one that it means"
        )
    if values.dtype.kind not in "uif":
        raise TypeError(f"image has dtype {values.dtype}; use uint8, uint16 or a floating-point dtype")
    return values


def _meant(image: PIL.Image.Image) -> PIL.Image.Image:
    """A PIL image that isn't 8-bit grey in the mode of 16 bits."""
    if image.mode == "I" and image.getextrema()[1] <= np.iinfo(np.uint8).max:  # type: ignore[operator]
        raise PhotoError(
            f"image has mode I with values from {image.getextrema()[0]} to {image.getextrema()[1]}, and grey of that "
            "mode goes from 0 to 65535; if it is 8-bit grey, convert it to mode L"
        )
    return image


@dataclass
class PreparedPhoto:
    """A photo as the network reads it, and how its chroma grid lies on it.

    Attributes:
        photo: its lightness at full size.
        lightness: L* ``[1, h, w]`` in [0, 100] at working size, padded to the UNet's stride.
        cell: height and width of a cell of the chroma grid, in pixels of the photo.
        box: top, left, bottom and right of the part that is colorized, in pixels; what surrounds it stays grey.
        hints: the colours that are known, on the working picture; None without any.
        condition: what the UNet is given of it, ``[C, h / f, w / f]``. The first drawing fills it in, and every
            further one of this photo uses it: the image encoder's work is done once.
        lock: held meanwhile, since variants may be drawn in several threads.
    """

    photo: Lightness
    lightness: torch.Tensor
    cell: tuple[float, float]
    box: tuple[int, int, int, int]
    hints: HintMap | None = None
    condition: torch.Tensor | None = field(default=None, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)


def prepare_photo(
    photo: Lightness, *, working_size: int, stride: int, cell: int, borders: bool = True, hints: Sequence[Hint] = ()
) -> PreparedPhoto:
    """Scale a photo, without its plain borders, to the working size, pad it and place its hints.

    Args:
        photo: at full size.
        working_size: its shorter side gets so many pixels.
        stride: height and width are padded to multiples of it.
        cell: edge of a cell of the chroma grid, in working pixels.
        borders: plain borders are found and stay grey.
        hints: see :data:`Hint`.

    Raises:
        ValueError, TypeError: for a hint that can't be used.
    """
    box = find_picture(photo) if borders else (0, 0, photo.height, photo.width)
    height, width = box[2] - box[0], box[3] - box[1]
    longest = working_size * _LONGEST_OVER_WORKING_SIZE
    pixel = max(min(height, width) / working_size, max(height, width) / longest)
    rows, columns = max(1, round(height / pixel)), max(1, round(width / pixel))
    scaled = _scale(photo, box, rows=rows, columns=columns)
    down, right = -rows % stride, -columns % stride
    mode = "reflect" if down < rows and right < columns else "replicate"
    lightness = F.pad(scaled[None], (0, right, 0, down), mode=mode)[0]
    size, padded = (photo.height, photo.width), (rows + down, columns + right)
    hint_map = map_hints(hints, size=size, box=box, rows=rows, columns=columns, padded=padded) if len(hints) else None
    return PreparedPhoto(photo, lightness, (height / rows * cell, width / columns * cell), box, hint_map)


def _scale(photo: Lightness, box: tuple[int, int, int, int], *, rows: int, columns: int) -> torch.Tensor:
    """The part of a photo inside ``box`` at another size, L* ``[1, rows, columns]``, antialiased.

    Narrowed strip by strip, then shortened: the full-size float32 picture never exists.
    """
    top, left, bottom, right = box
    narrow = [
        F.interpolate(
            photo.rows(max(start, top), min(stop, bottom))[None, ..., left:right],
            (min(stop, bottom) - max(start, top), columns),
            mode="bilinear",
            antialias=True,
        )
        for start, stop in photo.strips()
        if start < bottom and stop > top
    ]
    return F.interpolate(torch.cat(narrow, dim=-2), (rows, columns), mode="bilinear", antialias=True)[0]


def compose(prepared: PreparedPhoto, chroma: torch.Tensor, *, deep: bool = True) -> Iterator[torch.Tensor]:
    """Join a photo's full-size lightness with its chroma grid ``[2, h, w]``, strip by strip from the top.

    Hinted places get their colour as it was given.

    Yields:
        sRGB ``[3, rows, W]`` in [0, 1], float32, for each of ``photo.strips()``; if not ``deep`` 8-bit sRGB
        ``[rows, W, 4]``, much faster, for larger strips: see :func:`lab_to_rgb8`.
    """
    chroma, cell = _impose_hints(prepared, chroma)
    photo, (top, left, bottom, right) = prepared.photo, prepared.box
    columns = upsample_columns(chroma.float(), right - left, cell[1])
    columns = F.pad(columns, (left, photo.width - right))  # [2, h, W]

    def lab(start: int, stop: int) -> torch.Tensor:
        """Rows of CIELAB, valid until the next ones are asked for."""
        rows = _scratch.take("lab", 3, stop - start, photo.width)
        photo.rows(start, stop, out=rows[:1])
        first, last = (min(max(row, top), bottom) for row in (start, stop))
        if (first, last) != (start, stop):
            rows[1:] = 0.0
        if first < last:
            upsample_rows(columns, first - top, last - top, cell[0], out=rows[1:, first - start : last - start])
        return rows

    for start, stop in photo.strips(pixels=_STRIP_PIXELS if deep else _SHALLOW_PIXELS):
        if deep:
            yield lab_to_displayable_rgb(lab(start, stop))
        else:
            parts = itertools.starmap(lab, photo.strips(start, stop, pixels=AT_ONCE))
            yield lab_to_rgb8(parts, stop - start, photo.width)


def _impose_hints(prepared: PreparedPhoto, chroma: torch.Tensor) -> tuple[torch.Tensor, tuple[float, float]]:
    """A chroma grid with the hints exactly as given, and the size of a cell of the finer grid that this takes."""
    if prepared.hints is None:
        return chroma, prepared.cell
    factor = prepared.hints.known.shape[-1] // chroma.shape[-1]
    return prepared.hints.impose(chroma, factor), (prepared.cell[0] / factor, prepared.cell[1] / factor)


def seen_chroma(prepared: PreparedPhoto, chroma: torch.Tensor) -> torch.Tensor:
    """A photo's chroma grid ``[..., h, w]`` without the cells that lie wholly in its padding."""
    top, left, bottom, right = prepared.box
    rows, columns = (bottom - top) / prepared.cell[0], (right - left) / prepared.cell[1]
    return chroma[..., : math.ceil(rows - 1e-6), : math.ceil(columns - 1e-6)]


def measure_uncertainty(
    prepared: PreparedPhoto,
    chroma: torch.Tensor,
    *,
    fit: Sequence[float] | None,
    longest: int | None = None,
) -> torch.Tensor:
    """How far off the true colours may be, judged by a photo's colourings ``[N, 2, h, w]``: ``[H, W]`` in ΔE*ab.

    Colours that sRGB lacks are shown with less chroma, so the deepest shadows and the lights differ little. See
    :func:`spread` and :func:`state_uncertainty`.

    Args:
        fit: the checkpoint's ``config.uncertainty_fit``.
        longest: a photo of more pixels along its longer edge is measured in small, see :func:`shrink_photo`.
    """
    shown = shrink_photo(prepared, longest=longest) if longest else prepared
    stated = []
    for strip in zip(*(compose(shown, one) for one in chroma), strict=True):
        lab = torch.stack([rgb_to_lab(rgb) for rgb in strip])  # [N, 3, rows, W]
        stated.append(state_uncertainty(spread(lab[:, 1:]), lab[:, 0].mean(dim=0), fit))
    return torch.cat(stated)


def show_small(prepared: PreparedPhoto, chroma: torch.Tensor | None, *, longest: int) -> torch.Tensor:
    """A photo with the chroma grid ``[2, h, w]``, or in grey without one: sRGB ``[3, H, W]`` in [0, 1], float32.

    It is shown at a whole fraction of its size, with at most ``longest`` pixels of its longer edge.
    """
    small = shrink_photo(prepared, longest=longest)
    if chroma is not None:
        return torch.cat(list(compose(small, chroma)), dim=1)
    lightness = small.photo.rows(0, small.photo.height)
    return lightness_to_gray(lightness).expand(3, -1, -1)


def shrink_photo(prepared: PreparedPhoto, *, longest: int) -> PreparedPhoto:
    """A photo at a whole fraction of its size, with at most ``longest`` pixels of its longer edge."""
    size = prepared.photo.height, prepared.photo.width
    factor = math.ceil(max(size) / longest)
    rows, columns = (min(factor, edge) for edge in size)  # a strip may be narrower than the factor
    small = prepared.photo.shrink(rows, columns)
    height, width = small.height, small.width
    top, left, bottom, right = prepared.box
    box = (
        *(min(top // rows, height - 1), min(left // columns, width - 1)),
        *(min(math.ceil(bottom / rows), height), min(math.ceil(right / columns), width)),
    )
    cell = prepared.cell[0] / rows, prepared.cell[1] / columns
    return replace(prepared, photo=small, cell=cell, box=box)


def encode_lightness(
    lightness: torch.Tensor,
    *,
    luma_factor: int,
    image_encoder: Any = None,
    encoder_layers: Sequence[int] = (),
    encoder_mean: float = 0.0,
    encoder_std: float = 1.0,
    encoder_scale: int = 1,
) -> torch.Tensor:
    """The condition of the UNet: the grey photo's fine detail, and, with an encoder, what it shows.

    Args:
        lightness: L* ``[B, 1, H, W]`` in [0, 100]; height and width divisible by ``luma_factor``.
        luma_factor: each cell of the chroma grid gets its luma_factor² lightness pixels as channels, in [-1, 1]
            (space-to-depth).
        image_encoder: frozen network; sees the photo as three equal sRGB channels x in [0, 1], given as
            ``(x - encoder_mean) / encoder_std``.
        encoder_scale: the encoder sees the photo bilinearly enlarged so many times. A network that learnt from larger
            pictures than the working size recognizes more then, and its features are finer by this factor.
        encoder_layers: which of its hidden states are used. Each location's feature vector is standardized over its
            channels (so no encoder needs a scale of its own) and brought to the chroma grid bilinearly.

    Returns:
        ``[B, luma_factor ** 2 + K, H / luma_factor, W / luma_factor]`` with K feature channels.
    """
    condition = F.pixel_unshuffle(lightness * (2 / L_MAX) - 1, luma_factor)
    if image_encoder is None:
        return condition
    gray = (lightness_to_gray(lightness) - encoder_mean) / encoder_std
    if encoder_scale != 1:
        gray = F.interpolate(gray, scale_factor=encoder_scale, mode="bilinear")
    pixels = gray.expand(-1, 3, -1, -1).to(image_encoder.dtype)
    # Parts whose activations stay near the processor's cache: three times as fast as 64 photos of 256 pixels at once
    at_once = max(1, _ENCODER_PIXELS // pixels[0, 0].numel()) if pixels.device.type == "cpu" else len(pixels)
    parts = []
    for part in pixels.split(at_once):
        hidden_states = image_encoder(part, output_hidden_states=True).hidden_states
        parts.append([hidden_states[layer] for layer in encoder_layers])
    maps = [condition]
    for layer in zip(*parts, strict=True):
        features = torch.cat(layer).to(condition.dtype)
        features = F.layer_norm(features.movedim(1, 3), [int(features.shape[1])]).movedim(3, 1)
        maps.append(F.interpolate(features, condition.shape[-2:], mode="bilinear"))
    return torch.cat(maps, dim=1)


def condition_channels(luma_factor: int, image_encoder: Any = None, encoder_layers: Sequence[int] = ()) -> int:
    """How many channels :func:`encode_lightness` returns for this encoder: the UNet's in_channels less 2."""
    probe = torch.full((1, 1, 64, 64), L_MAX / 2, device=image_encoder.device if image_encoder is not None else None)
    with torch.no_grad():
        return encode_lightness(
            probe, luma_factor=luma_factor, image_encoder=image_encoder, encoder_layers=encoder_layers
        ).shape[1]


def find_picture(photo: Lightness) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what isn't a border, in pixels; the whole photo if there is none.

    There are two kinds of border, and one may lie within the other:

    - *Plain*: a strip along an edge in which every row (or column) has one and the same lightness. Since a plain sky
      is one too, a strip only counts if the opposite edge has one of the same lightness: a mount or padding lies on
      two sides or on four.
    - *Film*: the black edge of a negative, with whatever numbers and notches it bears. Since a dark corner of a room
      is black too, it only counts on three sides or on four.
    """
    whole = (0, 0, photo.height, photo.width)
    if min(photo.height, photo.width) < 32:
        return whole
    factor = max(1, max(photo.height, photo.width) // _ANALYSED_EDGE)
    if not _may_have_borders(photo, factor):
        return whole
    small, (rows, columns) = _shrink(photo, factor)
    height, width = small.shape
    top, left, bottom, right = 0, 0, height, width
    for _ in range(_MOST_BORDERS):
        inner = small[top:bottom, left:right]
        cuts = [max(pair) for pair in zip(_film_borders(inner), _plain_borders(inner), strict=True)]
        top, left, bottom, right = top + cuts[0], left + cuts[1], bottom - cuts[2], right - cuts[3]
        if not any(cuts):
            break
    return (
        round(top * rows),
        round(left * columns),
        photo.height - round((height - bottom) * rows),
        photo.width - round((width - right) * columns),
    )


def _may_have_borders(photo: Lightness, factor: int) -> bool:
    """Whether the edges look like borders as far in as the thinnest one reaches: most photos need no more look."""
    black = 0
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
        black += sum(_black_share(end)[edge].item() >= _FILM_SHARE for end, edge in zip(ends, (0, -1), strict=True))
    return black >= _FILM_SIDES


def _film_borders(small: torch.Tensor) -> tuple[int, int, int, int]:
    """Rows and columns of film edge at the top, left, bottom and right of L* ``[h, w]``."""
    if _black_share(small[[0, -1]]).max() < _FILM_SHARE:  # of three sides one is the top or the bottom
        return 0, 0, 0, 0
    rows = _black_share(small)
    top, bottom = _film_rows(rows), _film_rows(rows.flip(0))
    columns = _black_share(small[top : small.shape[0] - bottom].T)
    cuts = (top, _film_rows(columns), bottom, _film_rows(columns.flip(0)))
    return cuts if sum(cut > 0 for cut in cuts) >= _FILM_SIDES else (0, 0, 0, 0)


def _film_rows(share: torch.Tensor) -> int:
    """How many rows, by their black shares, are a film's edge: mostly black, up to where far fewer pixels are."""
    if share[0] < _FILM_SHARE:
        return 0
    rows = len(share)
    after = max(3, round(_SMALLEST * rows))
    black = int((share >= _FILM_LEAST).int().cumprod(0).sum())
    for end in range(max(2, round(_SMALLEST / 2 * rows)), min(black, int(_DEEPEST_FILM * rows)) + 1):
        edge, beyond = share[:end], share[end + 1 : end + 1 + after]
        if edge.mean() >= _FILM_MEAN and beyond.max() <= edge.median() - _FILM_DROP:
            return end + 1
    return 0


def _black_share(small: torch.Tensor) -> torch.Tensor:
    """The share of each row that is as black as unexposed film."""
    return (small <= _FILM_BLACK).float().mean(dim=1)


def _plain_borders(small: torch.Tensor) -> tuple[int, int, int, int]:
    """Rows and columns of plain border at the top, left, bottom and right of L* ``[h, w]``."""
    top, bottom = _opposite_borders(small)
    left, right = _opposite_borders(small[top : small.shape[0] - bottom].T)
    if left and not top:  # padding at the sides may have hidden a border at top and bottom, within the rest
        top, bottom = _opposite_borders(small[:, left : small.shape[1] - right])
    return top, left, bottom, right


def _shrink(photo: Lightness, factor: int) -> tuple[torch.Tensor, tuple[float, float]]:
    """L* ``[h, w]``, means of ``factor`` x ``factor`` pixels, and how many rows and columns one stands for."""
    small = photo.block_means(factor)
    return small, (photo.height / small.shape[0], photo.width / small.shape[1])


def _opposite_borders(small: torch.Tensor) -> tuple[int, int]:
    """How many rows of plain border lie at the top and at the bottom of L* ``[h, w]``: both or none."""
    height = small.shape[0]
    if height < 8 or small.shape[1] < 8:
        return 0, 0
    least, most = _least(height), int(_LARGEST * height)
    first, last = _plain_ends(small[: most + 1], small[-most - 1 :])
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
    rows = int((stray.amax(dim=1) <= _EDGE).int().cumprod(0).sum())  # few pass, and a quantile takes long
    return int((stray[:rows].quantile(0.98, dim=1) <= _PLAIN).int().cumprod(0).sum()) if rows else 0
