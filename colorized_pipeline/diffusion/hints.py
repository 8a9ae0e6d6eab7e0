"""Colours that the user knows, as places on a photo: parsing, and their lie on the grids that the network works on.

A hint gives a place its a*, b*; lightness stays the photo's.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from PIL import ImageChops, ImageColor

from .color import rgb_to_lab, upsample_columns, upsample_rows

# A place: (x, y, radius), (left, top, right, bottom), or a mask picture of the photo's size
Region = Sequence[float] | PIL.Image.Image | np.ndarray | str | Path
# CSS name or hex; (L*, a*, b*), whose L* isn't used; or (a*, b*)
Color = str | Sequence[float]
# A place and its colour; or a picture of the photo's size that is painted where a colour is known
Hint = tuple[Region, Color] | PIL.Image.Image | str | Path

_WIDEN = 3  # working pixels by which the colour of a hint reaches past its edge in full, before it fades
_FADE = 2  # half the width of that fading, working pixels
_NEARLY_BLACK = 8  # of 255: a lossy file's black isn't quite black
_CHROMA_LIMIT = 150.0  # no colour of sRGB has an a* or b* beyond it


@dataclass(frozen=True)
class HintMap:
    """The hints of one photo on its working picture of ``h`` x ``w`` pixels.

    Attributes:
        chroma: a*, b* ``[2, h, w]`` in CIELAB units; means something where ``known``.
        known: ``[1, h, w]``, 1 on every working pixel that a hint touches, else 0.
    """

    chroma: torch.Tensor
    known: torch.Tensor

    def on_grid(self, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean hinted a*, b* ``[2, h / factor, w / factor]`` of each cell and the share of it that is hinted."""
        share = F.avg_pool2d(self.known, factor)
        total = F.avg_pool2d(self.chroma * self.known, factor)
        return total / share.clamp(min=1e-6), share

    def impose(self, chroma: torch.Tensor, factor: int) -> torch.Tensor:
        """Drawn grids ``[..., 2, h / factor, w / factor]`` at working size, with every hint as it was given.

        Inside a hint stands its own colour, right up to its edge; outside it passes smoothly into what was drawn.
        """
        height, width = self.known.shape[-2:]
        drawn = upsample_rows(upsample_columns(chroma.float(), width, factor), 0, height, factor)
        wide = F.max_pool2d(self.known, 2 * _WIDEN + 1, stride=1, padding=_WIDEN)
        weight = F.avg_pool2d(wide, 2 * _FADE + 1, stride=1, padding=_FADE, count_include_pad=False)
        return torch.lerp(drawn, self._extended(), weight)

    def _extended(self) -> torch.Tensor:
        """The hinted colours, and around them the mean of the near ones."""
        reach = _WIDEN + 2 * _FADE
        kernel = 2 * reach + 1
        total = F.avg_pool2d(self.chroma * self.known, kernel, stride=1, padding=reach)
        around = total / F.avg_pool2d(self.known, kernel, stride=1, padding=reach).clamp(min=1e-6)
        return torch.where(self.known > 0, self.chroma, around)


def map_hints(
    hints: Sequence[Hint],
    *,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    rows: int,
    columns: int,
    padded: tuple[int, int],
) -> HintMap:
    """Place hints on a photo's working picture; where hints overlap, the later one counts.

    Args:
        hints: see :data:`Hint`; positions in pixels of the upright photo, x to the right, y down.
        size: height and width of the photo in pixels.
        box: top, left, bottom and right of the part that the working picture shows.
        rows, columns: size of the working picture without its padding.
        padded: height and width of the working picture with it.

    Raises:
        ValueError, TypeError: for a hint that can't be used; the message says which and why.
    """
    if not isinstance(hints, (list, tuple)):
        raise TypeError(f"hints must be a list of (region, colour), got {type(hints).__name__}")
    chroma, known = torch.zeros(2, *padded), torch.zeros(1, *padded)
    for number, hint in enumerate(hints):
        try:
            values, touched = _read_hint(hint, size=size, box=box, rows=rows, columns=columns)
        except (ValueError, TypeError) as error:
            raise type(error)(f"hints[{number}]: {error}") from error
        chroma[:, :rows, :columns] = torch.where(touched, values, chroma[:, :rows, :columns])
        known[:, :rows, :columns] = torch.where(touched, 1.0, known[:, :rows, :columns])
    return HintMap(chroma, known)


def read_color(color: Color) -> tuple[float, float]:
    """a*, b* of a CSS name, ``"#rrggbb"``, ``"lab(L a b)"``, ``(L*, a*, b*)`` or ``(a*, b*)``."""
    if isinstance(color, str):
        text = color.strip().lower()
        if not text.startswith("lab("):
            return _read_rgb(color)
        parts = text.removeprefix("lab(").removesuffix(")").replace(",", " ").replace("%", " ").split()
    else:
        parts = list(color)  # type: ignore[arg-type]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (2, 3) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"colour {color!r}: CIELAB is (L*, a*, b*) or (a*, b*), e.g. (50, 30, 25)")
    a, b = numbers[-2:]
    if max(abs(a), abs(b)) > _CHROMA_LIMIT:
        raise ValueError(f"colour {color!r}: a* and b* lie between -{_CHROMA_LIMIT:.0f} and {_CHROMA_LIMIT:.0f}")
    return a, b


def _read_rgb(color: str) -> tuple[float, float]:
    try:
        rgb = ImageColor.getrgb(color.strip())[:3]
    except ValueError:
        raise ValueError(
            f"unknown colour {color!r}; give a CSS name such as firebrick, hex such as #8a3b2e, or lab(40 35 25)"
        ) from None
    _, a, b = rgb_to_lab(torch.tensor(rgb, dtype=torch.float32).reshape(3, 1, 1) / 255).flatten().tolist()
    return a, b


def parse_hint(text: str) -> tuple[tuple[float, ...], str]:
    """``"x,y,radius:colour"`` or ``"left,top,right,bottom:colour"`` as a hint, its colour checked."""
    place, _, color = text.partition(":")
    try:
        numbers = tuple(float(part) for part in place.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (3, 4) or not color.strip():
        raise ValueError(f"{text!r} isn't x,y,radius:colour or left,top,right,bottom:colour")
    read_color(color)
    return numbers, color.strip()


def describe_hints(hints: Sequence[Hint]) -> list[str]:
    """Each hint in words that tell it from any other: for a label, and to know whether a result is of these hints."""
    return [_describe(hint) for hint in hints]


def _describe(hint: Any) -> str:
    if isinstance(hint, (PIL.Image.Image, str, Path)):
        return f"painted:{_digest(hint)}"
    region, color = hint
    is_mask = isinstance(region, (PIL.Image.Image, np.ndarray, str, Path))
    place = f"mask:{_digest(region)}" if is_mask else ",".join(map(_write, region))
    return f"{place}:{color if isinstance(color, str) else 'lab({})'.format(' '.join(map(_write, color)))}"


def _write(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def _digest(picture: PIL.Image.Image | np.ndarray | str | Path) -> str:
    """SHA-256 of a picture's pixels."""
    if not isinstance(picture, np.ndarray):
        opened = _open(picture)
        picture = np.asarray(opened.convert("RGBA" if opened.mode in ("RGBA", "LA", "PA", "P") else "RGB"))
    return hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def _read_hint(
    hint: Any, *, size: tuple[int, int], box: tuple[int, int, int, int], rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """a*, b* (``[2, rows, columns]`` or ``[2, 1, 1]``) of a hint and where it lies (bool ``[1, rows, columns]``)."""
    if isinstance(hint, (PIL.Image.Image, str, Path)):
        painted = _shrink(_read_painting(_open(hint), size), box, rows, columns)
        colors = painted[:3] / painted[3:].clamp(min=1e-6)
        return rgb_to_lab(colors.clamp(0, 1))[1:], _placed(painted[3:] > 0)
    if not isinstance(hint, (list, tuple)) or len(hint) != 2:
        raise TypeError(f"expected (region, colour) or a painted picture, got {hint!r}")
    region, color = hint
    values = torch.tensor(read_color(color)).reshape(2, 1, 1)
    if isinstance(region, (PIL.Image.Image, np.ndarray, str, Path)):
        return values, _placed(_shrink(_read_mask(region, size), box, rows, columns) > 0)
    return values, _placed(_touched(read_region(region, size), box, rows, columns))


def _placed(touched: torch.Tensor) -> torch.Tensor:
    if not touched.any():
        raise ValueError("covers no part of the photo that gets colours (a plain border stays grey)")
    return touched


def read_region(region: Any, size: tuple[int, int]) -> list[float]:
    """A hint's ``x, y, radius`` or ``left, top, right, bottom`` on a photo of this height and width.

    Raises:
        ValueError: if it isn't one, or doesn't lie on the photo.
    """
    height, width = size
    try:
        numbers = [float(number) for number in region]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (3, 4) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"region {region!r} isn't (x, y, radius), (left, top, right, bottom) or a mask picture")
    place = f"the photo of {width} x {height} pixels"
    if len(numbers) == 3:
        x, y, radius = numbers
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"point x={x:g}, y={y:g} lies outside {place}")
        if radius <= 0:
            raise ValueError(f"radius={radius:g} must be above 0")
        return numbers
    left, top, right, bottom = numbers
    if not (left < right and top < bottom):
        raise ValueError(f"box {left:g},{top:g},{right:g},{bottom:g}: left < right and top < bottom don't hold")
    if left < 0 or top < 0 or right > width or bottom > height:
        raise ValueError(f"box {left:g},{top:g},{right:g},{bottom:g} reaches outside {place}")
    return numbers


def _touched(numbers: list[float], box: tuple[int, int, int, int], rows: int, columns: int) -> torch.Tensor:
    """The working pixels that a disc or a box overlaps: bool ``[1, rows, columns]``."""
    top, left, bottom, right = box
    y = torch.linspace(top, bottom, rows + 1)[:, None]  # edges of the working pixels, in the photo's pixels
    x = torch.linspace(left, right, columns + 1)[None]
    if len(numbers) == 4:
        inside_x = (x[:, 1:] > numbers[0]) & (x[:, :-1] < numbers[2])
        inside_y = (y[1:] > numbers[1]) & (y[:-1] < numbers[3])
        return (inside_x & inside_y)[None]
    centre_x, centre_y, radius = numbers
    nearest_x = torch.minimum(torch.maximum(torch.tensor(centre_x), x[:, :-1]), x[:, 1:])
    nearest_y = torch.minimum(torch.maximum(torch.tensor(centre_y), y[:-1]), y[1:])
    return ((nearest_x - centre_x).square() + (nearest_y - centre_y).square() < radius**2)[None]


def _shrink(picture: PIL.Image.Image, box: tuple[int, int, int, int], rows: int, columns: int) -> torch.Tensor:
    """Means ``[C, rows, columns]`` in [0, 1] of the part of a full-size 8-bit picture inside ``box``."""
    top, left, bottom, right = box
    # To no more than 4 x 4 values a working pixel: a scan's size in floats would be gigabytes
    size = (min(right - left, 4 * columns), min(bottom - top, 4 * rows))
    small = np.array(picture.resize(size, PIL.Image.Resampling.BOX, box=(left, top, right, bottom)))
    values = torch.from_numpy(small).float() / 255
    return F.adaptive_avg_pool2d(values[None] if values.ndim == 2 else values.movedim(-1, 0), (rows, columns))


def _open(picture: PIL.Image.Image | str | Path) -> PIL.Image.Image:
    if isinstance(picture, PIL.Image.Image):
        return picture
    try:
        with PIL.Image.open(picture) as opened:
            opened.load()
            return opened
    except Exception as error:  # Pillow's decoders raise errors of many types for damaged files
        raise ValueError(f"{picture}: can't be read as a picture ({error})") from error


def _read_painting(picture: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """A painted picture as RGB times alpha, and alpha: 255 where it is painted, else 0 (mode RGBa)."""
    _check_size("painted picture", picture, size)
    pixels = picture.convert("RGBA")
    red, green, blue, alpha = pixels.split()
    if "A" in picture.getbands() or "transparency" in picture.info:
        known = alpha.point([0] * 128 + [255] * 128)
    else:
        lightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
        known = lightest.point([0] * _NEARLY_BLACK + [255] * (256 - _NEARLY_BLACK))
    if known.getbbox() is None:
        raise ValueError("nothing is painted in the picture: all of it is transparent, or black without transparency")
    pixels.putalpha(known)
    return pixels.convert("RGBa")


def _read_mask(region: PIL.Image.Image | np.ndarray | str | Path, size: tuple[int, int]) -> PIL.Image.Image:
    """A mask picture with 255 where the region is, and 0: what is at least half as light as its lightest pixel."""
    if isinstance(region, np.ndarray):
        if region.ndim != 2 or region.dtype.kind not in "buif":
            raise ValueError(f"mask array is {region.dtype} {region.shape}; expected numbers [H, W]")
        mask = PIL.Image.fromarray(((region > 0) & (region >= region.max() / 2)).astype(np.uint8) * 255)
    else:
        gray = _open(region).convert("L")
        half = max(1, math.ceil(gray.getextrema()[1] / 2))  # type: ignore[operator]
        mask = gray.point([0] * half + [255] * (256 - half))
    _check_size("mask", mask, size)
    return mask


def _check_size(name: str, picture: PIL.Image.Image, size: tuple[int, int]) -> None:
    if (picture.height, picture.width) != size:
        found = f"{picture.width} x {picture.height}"
        raise ValueError(f"{name} has {found} pixels and the photo {size[1]} x {size[0]}: they must be equal")
