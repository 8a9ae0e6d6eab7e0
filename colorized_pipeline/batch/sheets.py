"""Pictures about results: sheets of pictures side by side, and the map of uncertainty with its colour bar."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

SCALE_TOP = 40.0  # ΔE*ab of the brightest colour: one scale for all photos, so that maps can be compared
_TICKS = (0, 10, 20, 30, 40)
# matplotlib's viridis (CC0) at 17 places: even in lightness, also for the colour-blind
_VIRIDIS = bytes.fromhex(
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
)
_COLORS, _GRAYS = 224, 32  # of the palette's 256
_LEGEND_WIDTH = 420  # pixels that the legend needs at its smallest

T = TypeVar("T")


def draw_map(uncertainty: np.ndarray, size: tuple[int, int], *, variants: int) -> Image.Image:
    """Uncertainty as colours, with a colour bar and legend below: a palette picture.

    Args:
        uncertainty: ΔE*ab ``[h, w]``.
        size: height and width of the photo; the map's upper left part has this size and lies on it pixel by pixel.
        variants: how many colourings it was measured on.
    """
    height, width = size
    indices = (uncertainty / SCALE_TOP).clip(0, 1) * (_COLORS - 1)
    rows, columns = (math.ceil(edge / small) for edge, small in zip(size, uncertainty.shape, strict=True))
    enlarged = Image.fromarray(indices.round().astype(np.uint8)).resize(
        (uncertainty.shape[1] * columns, uncertainty.shape[0] * rows), Image.Resampling.BILINEAR
    )
    whole = np.asarray(enlarged)[:height, :width]
    legend = _draw_legend(max(width, _LEGEND_WIDTH), mean=float(uncertainty.mean()), variants=variants)
    canvas = np.full((height + len(legend), legend.shape[1]), 255, np.uint8)  # the palette ends with white
    canvas[:height, :width], canvas[height:] = whole, legend
    image = Image.fromarray(canvas)
    image.putpalette(_palette().tobytes())
    return image


def _palette() -> np.ndarray:
    """RGB ``[256, 3]``, uint8: the colours of the scale, then greys from black to white."""
    known = np.frombuffer(_VIRIDIS, np.uint8).reshape(-1, 3).astype(float)
    places, stops = np.linspace(0, 1, _COLORS), np.linspace(0, 1, len(known))
    colors = np.stack([np.interp(places, stops, channel) for channel in known.T], axis=1)
    grays = np.linspace(0, 255, _GRAYS)[:, None].repeat(3, axis=1)
    return np.concatenate((colors, grays)).round().astype(np.uint8)


def _draw_legend(width: int, *, mean: float, variants: int) -> np.ndarray:
    """Colour bar, ticks and words as palette indices ``[rows, width]``."""
    size = max(13, width // 60)
    font = ImageFont.load_default(size)
    margin, bar = size, 2 * size
    # Pillow's own font has no capital delta
    words = f"Uncertainty by {variants} variants: how far off the colour may be, Delta E*ab. Mean: {mean:.1f}"
    while font.getlength(words) > width - 2 * margin and size > 6:
        size -= 1
        font = ImageFont.load_default(size)
    text = Image.new("L", (width, margin + round(size * 1.6) + bar + round(size * 1.8)), 255)
    draw = ImageDraw.Draw(text)
    draw.text((margin, margin // 2), words, fill=0, font=font)
    top, length = margin // 2 + round(size * 1.6), width - 2 * margin
    for tick in _TICKS:
        label = f"{tick}+" if tick == SCALE_TOP else str(tick)
        place = margin + tick / SCALE_TOP * length
        shift = {0: 0.0, SCALE_TOP: font.getlength(label)}.get(tick, font.getlength(label) / 2)
        draw.text((place - shift, top + bar + size // 4), label, fill=0, font=font)
    indices = (_COLORS + np.asarray(text).astype(int) * (_GRAYS - 1) // 255).astype(np.uint8)
    indices[top : top + bar, margin : margin + length] = np.linspace(0, _COLORS - 1, length).round()
    return indices


Picture = Image.Image | torch.Tensor


def paint_sheet(rows: Sequence[Sequence[Picture]], *, captions: Sequence[Sequence[str]] | None = None) -> Image.Image:
    """Pictures in rows and columns on white, RGB; each row is as high, each column as wide as its largest picture.

    Args:
        rows: of pictures: PIL images, or float32 sRGB tensors ``[3, h, w]`` in [0, 1]. Rows may differ in length.
        captions: one below each picture, in the same rows.
    """
    cells = [[to_image(picture) for picture in row] for row in rows]
    gap, (line, narrowest) = 6, (18, 110) if captions else (0, 1)
    heights = [max(picture.height for picture in row) + line + gap for row in cells]
    columns = [[row[i].width for row in cells if i < len(row)] for i in range(max(map(len, cells)))]
    widths = [max(narrowest, *column) + gap for column in columns]
    sheet = Image.new("RGB", (sum(widths) + gap, sum(heights) + gap), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(12), gap
    for row, (pictures, height) in enumerate(zip(cells, heights, strict=True)):
        for column, picture in enumerate(pictures):
            left = gap + sum(widths[:column])
            sheet.paste(picture, (left, top))
            if captions:
                draw.text((left, top + picture.height + 2), captions[row][column], fill="black", font=font)
        top += height
    return sheet


def paint_columns(columns: Mapping[str, Sequence[torch.Tensor]], names: Sequence[str], *, edge: int) -> Image.Image:
    """A sheet with a row a photo, sRGB ``[3, H, W]`` each; two photos in a row if there are only two columns.

    Args:
        columns: kinds of pictures by what they are called; the first is captioned by ``names`` of the photos.
        edge: longer edge of each picture, pixels.
    """
    tiles, captions = [], []
    for name, *pictures in zip(names, *columns.values(), strict=True):
        height, width = (round(length * edge / max(pictures[0].shape)) for length in pictures[0].shape[-2:])
        tiles += [to_image(picture).resize((width, height)) for picture in pictures]
        captions += [name, *list(columns)[1:]]
    in_a_row = 4 if len(columns) == 2 else len(columns)
    return paint_sheet(in_rows(tiles, in_a_row), captions=in_rows(captions, in_a_row))


def in_rows(items: Sequence[T], columns: int) -> list[Sequence[T]]:
    """Items in rows of ``columns``, the last perhaps shorter."""
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def to_image(picture: Picture) -> Image.Image:
    """A picture in 8-bit RGB. Tensors are float32 sRGB ``[3, h, w]`` in [0, 1]."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy())


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A picture as float32 sRGB ``[3, h, w]`` in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0) / 255


def draw_variants(pictures: Sequence[Picture], *, captions: Sequence[str]) -> Image.Image:
    """Pictures of one photo side by side, each with a caption below, RGB: about as wide as a screen."""
    tiles = [to_image(picture) for picture in pictures]
    columns = math.ceil(math.sqrt(len(tiles) * tiles[0].height / tiles[0].width * 1.4))
    columns = min(len(tiles), max(2, columns), 8)
    return paint_sheet(in_rows(tiles, columns), captions=in_rows(captions, columns))
