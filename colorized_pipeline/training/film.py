"""A film model: what an emulsion, a lens, a print's age and a scanner make of a scene's light.

Training photos are modern and clean; archives hold orthochromatic plates, faded prints, grain, blur and scratches. So
part of the training photos is seen through a random :class:`Film`, while the chroma to predict stays the true one.
Sizes in pixels are those of a picture of about 128 pixels, the one that the network reads, not of the scan.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..diffusion.color import gray_to_lightness, lab_to_linear, linear_to_srgb

# Sensitivity to linear sRGB red, green, blue; each sums to 1. The first is luminance itself (color.py's row of Y).
EMULSIONS = {
    "luminance": (0.212671, 0.715160, 0.072169),
    "panchromatic": (0.35, 0.35, 0.30),
    "orthochromatic": (0.04, 0.58, 0.38),  # blind to red: lips and brick turn dark
    "blue-sensitive": (0.00, 0.12, 0.88),  # the plates before 1885: a blue sky is white, foliage black
}


@dataclass(frozen=True)
class Film:
    """One film, lens, print and scan. The defaults change nothing: grey is then the photo's own lightness.

    Attributes:
        sensitivity: weights of linear red, green and blue, summing to 1.
        gamma: exponent on the grey value in [0, 1]; above 1 darkens the middle.
        contrast: slope of the tone curve through the photo's mean, which is what a photographer exposes for.
        black, white: grey values that black and white have faded to.
        vignette: light lost in the corners, 0 to 1.
        blur: standard deviation of the unsharpness, pixels.
        grain: standard deviation of the grain, grey value; grain_size: its extent, pixels (0 is one pixel).
        scratches: number of thin lines and specks of dust.
        jpeg_quality: of the scan's compression, 1 to 95; None is uncompressed.
    """

    sensitivity: tuple[float, float, float] = EMULSIONS["luminance"]
    gamma: float = 1.0
    contrast: float = 1.0
    black: float = 0.0
    white: float = 1.0
    vignette: float = 0.0
    blur: float = 0.0
    grain: float = 0.0
    grain_size: float = 0.0
    scratches: int = 0
    jpeg_quality: int | None = None


def draw_film(rng: np.random.Generator) -> Film:
    """A random film: any mixture of two emulsions, and each kind of wear with a chance of its own."""

    def maybe(chance: float, low: float, high: float, otherwise: float) -> float:
        drawn, value = rng.random(), rng.uniform(low, high)
        return value if drawn < chance else otherwise

    one, other = rng.choice(list(EMULSIONS.values()), 2)
    sensitivity = one + (other - one) * rng.random()
    return Film(
        sensitivity=tuple(sensitivity.tolist()),
        gamma=float(np.exp(maybe(0.7, -0.4, 0.4, 0.0))),
        contrast=maybe(0.5, 0.7, 1.5, 1.0),
        black=maybe(0.4, 0.0, 0.25, 0.0),
        white=maybe(0.4, 0.75, 1.0, 1.0),
        vignette=maybe(0.3, 0.1, 0.5, 0.0),
        blur=maybe(0.4, 0.3, 1.3, 0.0),
        grain=maybe(0.6, 0.005, 0.06, 0.0),
        grain_size=maybe(0.5, 0.3, 1.0, 0.0),
        scratches=int(maybe(0.2, 1, 8, 0)),
        jpeg_quality=int(quality) if (quality := maybe(0.4, 30, 90, 0)) else None,
    )


def photograph(lab: torch.Tensor, film: Film, rng: np.random.Generator) -> torch.Tensor:
    """What ``film`` makes of a scene.

    Args:
        lab: the scene, CIELAB ``[3, H, W]``.
        film: how it is taken, kept and scanned.
        rng: draws grain and scratches; what isn't drawn doesn't depend on it.

    Returns:
        L* ``[1, H, W]`` in [0, 100].
    """
    light = lab_to_linear(lab).clamp(0, 1).numpy()
    exposed = np.tensordot(np.array(film.sensitivity, np.float32), light, axes=1)  # [H, W], linear
    gray = linear_to_srgb(torch.from_numpy(exposed)).numpy()
    height, width = gray.shape

    if film.vignette:
        rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        gray = gray * (1 - film.vignette * np.float32(rows**2 + columns**2) / 2)
    if film.gamma != 1:
        gray = gray**film.gamma
    if film.contrast != 1:
        gray = gray.mean() + (gray - gray.mean()) * film.contrast
    if film.blur:
        gray = _blur(gray, film.blur)
    if film.grain:
        noise = rng.standard_normal((height, width), np.float32)
        if film.grain_size:
            noise = _blur(noise, film.grain_size)
            noise /= noise.std()
        gray = gray + film.grain * noise
    gray = film.black + (film.white - film.black) * gray.clip(0, 1)
    for _ in range(film.scratches):
        _scratch(gray, rng)
    if film.jpeg_quality is not None:
        gray = _compress(gray, film.jpeg_quality)
    return gray_to_lightness(torch.from_numpy(np.float32(gray))[None].clamp(0, 1))


def _blur(gray: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of ``[H, W]``, cut off at three standard deviations."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(torch.from_numpy(np.float32(gray))[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[0, 0].numpy()


def _scratch(gray: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one straight scratch or one speck, white or black, into ``gray``, in place."""
    height, width = gray.shape
    length = int(rng.uniform(1, max(height, width)))
    angle, tone = rng.uniform(0, np.pi), float(rng.integers(0, 2))
    along = np.arange(length)
    rows = (rng.uniform(0, height) + along * np.sin(angle)).astype(int) % height
    columns = (rng.uniform(0, width) + along * np.cos(angle)).astype(int) % width
    gray[rows, columns] += (tone - gray[rows, columns]) * rng.uniform(0.3, 1)


def _compress(gray: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray((gray * 255).round().clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as image:
        return np.asarray(image, dtype=np.float32) / 255
