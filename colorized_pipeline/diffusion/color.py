"""sRGB and CIELAB (D65, 2 degree observer) in torch: conversion, gamut mapping at constant L* and hue, chroma grids.

Every function takes and returns floating-point tensors of shape ``[..., C, H, W]``. Lightness L* is in [0, 100];
chroma a*, b* are in CIELAB units (about -87..99 and -108..95 inside sRGB); sRGB is gamma-encoded in [0, 1].

Sources: IEC 61966-2-1 (sRGB transfer function), CIE 15 (CIELAB), the D65 matrix that scikit-image uses, so that its
conversions can serve as an independent oracle.
"""

import math
import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

L_MAX = 100.0

_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_RGB_FROM_XYZ = torch.linalg.inv(torch.tensor(_XYZ_FROM_RGB, dtype=torch.float64))
_WHITE_D65 = (0.95047, 1.0, 1.08883)
_CIE_EPSILON = 0.008856  # below this ratio to white, CIELAB is linear
_CIE_SLOPE = 7.787
_GAMUT_TOLERANCE = 1e-4  # far below half an 8-bit step; absorbs that the matrix's row sums are not exactly the white
_BISECTIONS = 14  # chroma found to 1/16384 of its value: below 0.01 in CIELAB units

# The same tolerance in linear light, by the slopes of the transfer function at 0 and at 1
_LINEAR_BOUNDS = (-_GAMUT_TOLERANCE / 12.92, 1 + _GAMUT_TOLERANCE * 2.4 / 1.055)

# Of the fast conversion to 8 bits
_CODES = 2**16  # steps of linear light with a code value each: the darkest code is 23 steps wide
_LINEAR_TOLERANCE = _GAMUT_TOLERANCE / 12.92
_LIMIT_ROWS, _LIMIT_HUES = 201, 1024  # L* and hue angles at which the largest chroma is known
AT_ONCE = 2**16  # pixels, few enough for the processor's cache
_BYTE_SHIFTS = (0, 8, 16) if sys.byteorder == "little" else (24, 16, 8)


def _matrix(rows: tuple[tuple[float, ...], ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).to(like)


def _mix_channels(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix, x)


def _check_channels(name: str, x: torch.Tensor) -> None:
    if x.ndim < 3 or x.shape[-3] != 3:
        raise ValueError(f"{name} must have shape [..., 3, H, W], got {tuple(x.shape)}")


def srgb_to_linear(rgb: torch.Tensor) -> torch.Tensor:
    """Gamma-encoded sRGB to linear light (IEC 61966-2-1). Any shape; 0 and 1 are fixed points."""
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: torch.Tensor) -> torch.Tensor:
    """Linear light to gamma-encoded sRGB, the inverse of :func:`srgb_to_linear`; negative values stay negative."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB ``[..., 3, H, W]`` in [0, 1] to CIELAB ``[..., 3, H, W]``, in the input's dtype."""
    _check_channels("rgb", rgb)
    white = _matrix((_WHITE_D65,), rgb).reshape(3, 1, 1)
    xyz = _mix_channels(_matrix(_XYZ_FROM_RGB, rgb), srgb_to_linear(rgb)) / white
    f = torch.where(xyz > _CIE_EPSILON, xyz.clamp(min=_CIE_EPSILON) ** (1 / 3), _CIE_SLOPE * xyz + 16 / 116)
    fx, fy, fz = f.unbind(-3)
    return torch.stack((116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)), dim=-3)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB ``[..., 3, H, W]`` to sRGB, *unclipped*: values outside [0, 1] are colours that sRGB doesn't have.

    Use :func:`fit_gamut` first to get displayable colours of the same lightness and hue.
    """
    return linear_to_srgb(lab_to_linear(lab))


def lab_to_linear(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB ``[..., 3, H, W]`` to linear sRGB, unclipped."""
    _check_channels("lab", lab)
    lightness, a, b = lab.unbind(-3)
    fy = (lightness + 16) / 116
    f = torch.stack((fy + a / 500, fy, fy - b / 200), dim=-3)
    xyz = _relative_xyz(f) * _matrix((_WHITE_D65,), lab).reshape(3, 1, 1)
    return _mix_channels(_RGB_FROM_XYZ.to(lab), xyz)


def _relative_xyz(f: torch.Tensor) -> torch.Tensor:
    """CIELAB's f of each of X, Y, Z back to its ratio to white. Any shape."""
    cube = f * f * f
    return torch.where(cube > _CIE_EPSILON, cube, (f - 16 / 116) / _CIE_SLOPE)


def lightness_to_gray(lightness: torch.Tensor) -> torch.Tensor:
    """L* in [0, 100] to the sRGB value in [0, 1] of the neutral grey that has this lightness. Any shape."""
    fy = (lightness + 16) / 116
    return linear_to_srgb(torch.where(fy**3 > _CIE_EPSILON, fy**3, (fy - 16 / 116) / _CIE_SLOPE))


def gray_to_lightness(gray: torch.Tensor) -> torch.Tensor:
    """The sRGB value in [0, 1] of a neutral grey to its L* in [0, 100]: inverse of :func:`lightness_to_gray`."""
    y = srgb_to_linear(gray)
    f = torch.where(y > _CIE_EPSILON, y.clamp(min=_CIE_EPSILON) ** (1 / 3), _CIE_SLOPE * y + 16 / 116)
    return 116 * f - 16


def rgb_to_gray(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB ``[..., 3, H, W]`` to the sRGB value ``[..., 1, H, W]`` of the neutral grey of the same L*, in [0, 1]."""
    _check_channels("rgb", rgb)
    luminance = _mix_channels(_matrix(_XYZ_FROM_RGB[1:2], rgb), srgb_to_linear(rgb))
    return linear_to_srgb(luminance).clamp(0.0, 1.0)


def fit_gamut(lab: torch.Tensor) -> torch.Tensor:
    """Bring CIELAB ``[..., 3, H, W]`` inside sRGB by reducing chroma; L* and hue angle don't change.

    For each pixel outside, the largest factor on (a*, b*) that sRGB can show is found by bisection: inside sRGB the
    set of factors is an interval that starts at the neutral grey. Pixels inside are returned untouched. L* is clamped
    to [0, 100].
    """
    lab = torch.cat((lab[..., :1, :, :].clamp(0.0, L_MAX), lab[..., 1:, :, :]), dim=-3)
    outside = ~_displayable(lab_to_rgb(lab))
    if not outside.any():
        return lab
    fitted = lab.movedim(-3, -1).clone()
    fitted[outside] = _fit_pixels(fitted[outside].T).T
    return fitted.movedim(-1, -3)


def lab_to_displayable_rgb(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB ``[3, H, W]`` to sRGB in [0, 1]: ``lab_to_rgb(fit_gamut(lab))``, each pixel converted only once."""
    _check_channels("lab", lab)
    rgb = lab_to_rgb(lab).reshape(3, -1)
    outside = (~_displayable(rgb.unsqueeze(-1)).squeeze(-1)).nonzero().squeeze(-1)
    if len(outside):
        pixels = lab.reshape(3, -1).index_select(1, outside)
        pixels = torch.cat((pixels[:1].clamp(0.0, L_MAX), pixels[1:]))
        rgb = rgb.index_copy(1, outside, lab_to_rgb(_fit_pixels(pixels).unsqueeze(-1)).squeeze(-1))
    return rgb.clamp(0.0, 1.0).reshape(lab.shape)


class Scratch(threading.local):
    """Tensors that are used again and again, each thread's its own: new memory costs more than arithmetic."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A tensor of any content. The next one of this name lies in the same memory."""
        size, tensor = math.prod(shape), self._tensors.get((name, dtype))
        if tensor is None or tensor.numel() < size:
            tensor = self._tensors[name, dtype] = torch.empty(size, dtype=dtype)
        return tensor[:size].view(shape)


_scratch = Scratch()


def lab_to_rgb8(parts: Iterable[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """CIELAB to 8-bit sRGB ``[height, width, 4]``, uint8, the fourth byte 0.

    It is ``round(255 * lab_to_displayable_rgb(lab))`` by tables, at a tenth of the cost: one code value off in about
    one of 250 values, where the exact one lies next to a rounding boundary; in one of 1000 colours that sRGB lacks by
    more, towards less chroma. Four bytes make a pixel one machine word; Pillow calls the layout RGBX.

    Args:
        parts: ``[3, rows, width]`` one below the other, float32 on the CPU, small enough for the processor's cache.
            Each may be overwritten when the next one is asked for.
    """
    words = torch.empty(height * width, dtype=torch.int32)
    done, outside, pixels = 0, [], []
    for lab in parts:
        _check_channels("lab", lab)
        flat = lab.reshape(3, -1)
        steps = _linear_steps(flat)
        indices = torch.from_numpy(np.flatnonzero(~_inside(steps)))  # faster than torch's nonzero
        outside.append(indices + done)
        pixels.append(flat.index_select(1, indices))
        _code_words(steps, out=words[done : done + flat.shape[1]])
        done += flat.shape[1]
        if done == len(words) or sum(map(len, outside)) >= AT_ONCE:
            indices, flat = torch.cat(outside), torch.cat(pixels, dim=1)
            fitted = _linear_steps(limit_chroma(flat))
            words.scatter_(0, indices, _code_words(fitted, out=torch.empty_like(indices, dtype=torch.int32)))
            outside, pixels = [], []
    return words.view(torch.uint8).reshape(height, width, 4)


def _linear_steps(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB ``[3, N]`` to linear sRGB ``[3, N]``, int32: 0 ... ``_CODES - 1`` is what can be shown.

    It is scratch, valid until the next call.
    """
    f, line = _scratch.take("f and line", 2, *lab.shape)
    (lightness, a, b), (x, y, z) = lab, f
    torch.add(lightness, 16, out=y).mul_(1 / 116)
    torch.add(y, a, alpha=1 / 500, out=x)
    torch.add(y, b, alpha=-1 / 200, out=z)
    # The cube above the toe and the line in it as one sum, as torch.where costs more than all of this. What is added
    # to each of X, Y, Z comes out in each of R, G, B, so the tolerance goes in here.
    toe = _CIE_EPSILON ** (1 / 3)
    torch.clamp(f, max=toe, out=line)
    xyz = f.clamp_(min=toe).pow_(3).add_(line, alpha=1 / _CIE_SLOPE).add_(_LINEAR_TOLERANCE - toe / _CIE_SLOPE)
    steps = torch.mm(_steps_from_xyz(), xyz, out=line)
    return f.view(torch.int32).copy_(steps)


@cache
def _steps_from_xyz() -> torch.Tensor:
    scale = _CODES / (1 + 2 * _LINEAR_TOLERANCE)
    return (_RGB_FROM_XYZ * torch.tensor(_WHITE_D65, dtype=torch.float64) * scale).float()


def _inside(steps: torch.Tensor) -> np.ndarray:
    """Which pixels sRGB can show: as unsigned numbers negative ones are large, too."""
    return steps.numpy().view(np.uint32).max(axis=0) < _CODES


def _code_words(steps: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """Linear sRGB ``[3, N]`` as from :func:`_linear_steps`, which are clamped, to pixels ``[N]``: a byte a channel."""
    codes = _scratch.take("f and line", 2, *steps.shape)[1].view(torch.int32)
    torch.index_select(_codes(), 0, steps.clamp_(0, _CODES - 1).view(-1), out=codes.view(-1))
    red, green, blue = codes
    red_place, green_place, blue_place = (2**shift for shift in _BYTE_SHIFTS)
    red = red * red_place if red_place > 1 else red
    return torch.add(red, green, alpha=green_place, out=out).add_(blue, alpha=blue_place)


@cache
def _codes() -> torch.Tensor:
    """The 8-bit sRGB code of each step of linear light, int32."""
    steps = (torch.arange(_CODES, dtype=torch.float64) + 0.5) / _CODES
    linear = steps * (1 + 2 * _LINEAR_TOLERANCE) - _LINEAR_TOLERANCE
    return (linear_to_srgb(linear).clamp(0.0, 1.0) * 255).round().int()


def limit_chroma(lab: torch.Tensor) -> torch.Tensor:
    """CIELAB ``[3, N]`` with at most the chroma that sRGB has at this L* and hue, from :func:`_chroma_limits`."""
    lightness, a, b = lab
    size = a.abs().add_(b.abs()).clamp_(min=1e-6)
    # The hue as a number from -2 to 2 that needs no arc tangent: how far along the square |a| + |b| = 1 it lies
    along = 1 - a / size
    hue = torch.where(b < 0, -along, along)
    column = hue.add_(2).mul_(_LIMIT_HUES / 4).clamp_(0, _LIMIT_HUES - 1e-3)
    row = (lightness * ((_LIMIT_ROWS - 1) / L_MAX)).clamp_(0, _LIMIT_ROWS - 1 - 1e-3)
    left, upper = column.int(), row.int()
    corner = upper * (_LIMIT_HUES + 1) + left
    corners = torch.stack((corner, corner + 1, corner + _LIMIT_HUES + 1, corner + _LIMIT_HUES + 2))
    limits = _chroma_limits().index_select(0, corners.reshape(-1)).reshape(2, 2, -1)
    upper_limit, lower_limit = torch.lerp(limits[:, 0], limits[:, 1], column.sub_(left))
    limit = torch.lerp(upper_limit, lower_limit, row.sub_(upper))
    factor = limit.div_(size).clamp_(max=1.0)
    return torch.stack((lightness, a * factor, b * factor))


@cache
def _chroma_limits() -> torch.Tensor:
    """The largest |a*| + |b*| inside sRGB, flat: a row for each L*, in it the hues of :func:`limit_chroma`."""
    lightness = torch.linspace(0, L_MAX, _LIMIT_ROWS).repeat_interleave(_LIMIT_HUES + 1)
    hue = torch.linspace(-2, 2, _LIMIT_HUES + 1).repeat(_LIMIT_ROWS)
    a = 1 - hue.abs()
    direction = torch.stack((a, torch.copysign(1 - a.abs(), hue)))
    low, width = torch.zeros_like(hue), 256.0
    for _ in range(_BISECTIONS):
        width /= 2
        steps = _linear_steps(torch.cat((lightness[None], direction * (low + width))))
        low += width * torch.from_numpy(_inside(steps))
    return low


def _fit_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """CIELAB pixels ``[3, N]``, L* in [0, 100], with as much of their chroma as sRGB can show."""
    lightness, a, b = pixels
    fy, slopes = (lightness + 16) / 116, torch.stack((a / 500, torch.zeros_like(a), -b / 200))
    white = _matrix((_WHITE_D65,), pixels).reshape(3, 1)
    matrix, (lowest, highest) = _RGB_FROM_XYZ.to(pixels), _LINEAR_BOUNDS
    share, width = torch.zeros_like(fy), 1.0
    for _ in range(_BISECTIONS):
        width /= 2
        linear = matrix @ (_relative_xyz(fy + slopes * (share + width)) * white)
        share += width * ((linear >= lowest) & (linear <= highest)).all(dim=0)
    return torch.cat((pixels[:1], pixels[1:] * share))


def _displayable(rgb: torch.Tensor) -> torch.Tensor:
    """``[..., H, W]`` bool: every channel of ``[..., 3, H, W]`` lies in [0, 1] (NaN doesn't)."""
    return ((rgb >= -_GAMUT_TOLERANCE) & (rgb <= 1 + _GAMUT_TOLERANCE)).all(dim=-3)


def chroma_to_latents(
    chroma: torch.Tensor, scale: float, detail_scales: Sequence[float] | None = None
) -> torch.Tensor:
    """Chroma grids a*, b* ``[..., 2, h, w]`` in CIELAB units to what the UNet diffuses, of about unit size.

    Args:
        scale: a*, b* (with ``detail_scales`` their means over 2 x 2 cells) are divided by it.
        detail_scales: if given, each 2 x 2 cells become one with 8 channels, by one level of the Haar transform: the
            means of a* and b*, half the differences of the two rows, of the two columns, and along the diagonals. The
            first number divides differences of rows and columns, the second those along the diagonals. So the UNet
            draws a grid twice as fine at the cost of the coarse one.

    Returns:
        ``[..., 2, h, w]``, or ``[..., 8, h / 2, w / 2]`` with ``detail_scales``.
    """
    if detail_scales is None:
        return chroma / scale
    edge, diagonal = detail_scales
    a, b, c, d = F.pixel_unshuffle(chroma, 2).unflatten(-3, (2, 4)).unbind(-3)  # a b over c d
    means, rows, columns, diagonals = a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d
    return torch.cat((means / scale, rows / edge, columns / edge, diagonals / diagonal), dim=-3) / 4


def latents_to_chroma(
    latents: torch.Tensor, scale: float, detail_scales: Sequence[float] | None = None
) -> torch.Tensor:
    """The inverse of :func:`chroma_to_latents`."""
    if detail_scales is None:
        return latents * scale
    edge, diagonal = detail_scales
    means, rows, columns, diagonals = latents.chunk(4, dim=-3)
    means, rows, columns, diagonals = means * scale, rows * edge, columns * edge, diagonals * diagonal
    above, below, across = means + rows, means - rows, (columns + diagonals, columns - diagonals)
    cells = (above + across[0], above - across[0], below + across[1], below - across[1])
    return F.pixel_shuffle(torch.stack(cells, dim=-3).flatten(-4, -3), 2)


def downsample_chroma(chroma: torch.Tensor, factor: int) -> torch.Tensor:
    """Average a*, b* ``[B, 2, H, W]`` over ``factor`` x ``factor`` cells to ``[B, 2, H / factor, W / factor]``."""
    height, width = chroma.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"chroma of {height} x {width} can't be cut into cells of factor={factor}; crop it")
    return F.avg_pool2d(chroma, factor)


def upsample_columns(chroma: torch.Tensor, width: int, cell: float, *, start: int = 0) -> torch.Tensor:
    """Bilinear upsampling, first half: ``[2, h, w]`` to ``[2, h, width]`` from column ``start`` on.

    See :func:`upsample_rows`.
    """
    last = chroma.shape[-1] - 1
    pixels = torch.arange(start, start + width, device=chroma.device, dtype=torch.float32)
    positions = ((pixels + 0.5) / cell - 0.5).clamp(0, last)
    lower = positions.floor().long()
    weight = (positions - lower).to(chroma.dtype)
    right = chroma.index_select(-1, (lower + 1).clamp(max=last))
    return torch.lerp(chroma.index_select(-1, lower), right, weight)


def upsample_rows(
    chroma: torch.Tensor, start: int, stop: int, cell: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Bilinear upsampling, second half: rows ``start`` to ``stop`` of the full-size picture from ``[2, h, W]``.

    ``cell`` is the edge of a grid cell in full-size pixels and need not be whole; ``out`` gets the rows. Working row
    by row keeps the memory of a large scan bounded; both halves together equal
    ``F.interpolate(mode="bilinear", align_corners=False)``.
    """
    last = chroma.shape[-2] - 1
    positions = ((np.arange(start, stop) + 0.5) / cell - 0.5).clip(0, last)  # NumPy is faster for so few numbers
    first, last = int(positions[0]), min(int(positions[-1]) + 1, last)
    shares = (1 - np.abs(positions[:, None] - np.arange(first, last + 1))).clip(min=0)  # [stop - start, rows]
    weights, near = torch.from_numpy(shares).to(chroma), chroma[:, first : last + 1]
    if out is None:
        return weights @ near
    for channel, target in zip(near, out, strict=True):  # faster than both in one product
        torch.mm(weights, channel, out=target)
    return out
