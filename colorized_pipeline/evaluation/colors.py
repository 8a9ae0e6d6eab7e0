"""How good the colours of single photos are, and the baselines they stand beside. Knows photos, not models.

Photos are sRGB ``[..., 3, H, W]`` in [0, 1] or CIELAB ``[..., 3, H, W]``, as each function says.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..diffusion.color import downsample_chroma, fit_gamut, lab_to_rgb, lightness_to_gray

SKIN_TOLERANCE = 12.0  # CIELAB units of a*, b*: within it a face's mean colour counts as right
STRAY_CELL = 4  # edge in pixels of the cells between which stray colour is measured
_AT_ONCE = 64  # photos


def colourfulness(rgb: torch.Tensor) -> torch.Tensor:
    """Hasler & Süsstrunk 2003, M(3), of sRGB ``[..., 3, H, W]``: 0 grey, 15 slightly, 45 quite, 80 very colourful.

    The differences of the opponent channels are signed (an absolute value there, as some codes have it, is an error).
    """
    red, green, blue = (rgb * 255).unbind(-3)
    rg, yb = red - green, (red + green) / 2 - blue
    dims = (-2, -1)
    spread = (rg.var(dims, correction=0) + yb.var(dims, correction=0)).sqrt()
    offset = (rg.mean(dims) ** 2 + yb.mean(dims) ** 2).sqrt()
    return spread + 0.3 * offset


def delta_e(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """CIEDE2000 between CIELAB pictures ``[..., 3, H, W]``, a mean a picture: ``[...]`` (scikit-image's formula)."""
    from skimage.color import deltaE_ciede2000

    differences = deltaE_ciede2000(first.numpy(), second.numpy(), channel_axis=-3)
    return torch.from_numpy(differences).float().mean((-2, -1))


def psnr(results: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each sRGB photo ``[N, 3, H, W]`` in [0, 1]: ``[N]``, dB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(results, truth, data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(results: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each sRGB photo ``[N, 3, H, W]`` in [0, 1], of at least 11 pixels an edge: ``[N]``."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(results, truth, data_range=1.0, reduction="none")
    return values.reshape(-1)  # type: ignore[union-attr]


def lightness_error(lab: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of L* of CIELAB ``[N, 3, H, W]``: ``[N]``."""
    return (lab[:, 0] - truth[:, 0]).abs().mean((1, 2))


def diversity(samples: torch.Tensor) -> torch.Tensor:
    """Mean pairwise CIEDE2000 between the S colourings ``[S, N, 3, H, W]`` (CIELAB) of each photo: ``[N]``."""
    pairs = list(itertools.combinations(range(len(samples)), 2))
    if not pairs:
        raise ValueError("samples holds one colouring of each photo; diversity needs at least 2")
    return torch.stack([delta_e(samples[i], samples[j]) for i, j in pairs]).mean(0)


def gradients(values: torch.Tensor) -> torch.Tensor:
    """Differences to the pixel on the right and the one below: ``[N, C, H, W]`` to ``[N, 2 C, H - 1, W - 1]``."""
    right = values[..., :-1, 1:] - values[..., :-1, :-1]
    below = values[..., 1:, :-1] - values[..., :-1, :-1]
    return torch.cat((right, below), dim=1)


def stray_color(lab: torch.Tensor) -> torch.Tensor:
    """Mean |∇ab| where lightness says that nothing changes, of CIELAB ``[N, 3, H, W]``: ``[N]``.

    Gradients are taken between means of cells of STRAY_CELL pixels, in the half of the cells with the smaller |∇L|.
    More than in the true photo is dirt: clouds on plain walls, halos.
    """
    cells = F.avg_pool2d(lab, STRAY_CELL)
    lightness, chroma = (gradients(part).norm(dim=1).flatten(1) for part in (cells[:, :1], cells[:, 1:]))
    smooth = lightness.argsort(dim=1)[:, : lightness.shape[1] // 2]
    return chroma.gather(1, smooth).mean(dim=1)


def edge_error(lab: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean |∇ab - true ∇ab| of CIELAB ``[N, 3, H, W]``: ``[N]``, units a pixel. Colour that bleeds or blurs raises it.

    Grey photos have the truth's own mean |∇ab|.
    """
    return (gradients(lab[:, 1:]) - gradients(truth[:, 1:])).norm(dim=1).mean((1, 2))


def skin_colors(lab: torch.Tensor) -> torch.Tensor:
    """Mean L*, a*, b* of the central half (in each direction) of faces ``[N, 3, H, W]``: ``[N, 3]``."""
    height, width = lab.shape[-2:]
    return lab[..., height // 4 : height - height // 4, width // 4 : width - width // 4].mean((-2, -1))


def thirds(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which of ``[N]`` values belong to the darker, middle and lighter third: indices, by name."""
    return dict(zip(("darker", "middle", "lighter"), values.argsort().tensor_split(3), strict=True))


def skin_within(skin: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of faces whose mean colour ``[N, 3]`` lies within SKIN_TOLERANCE of the true one in a*, b*."""
    return ((skin - truth)[:, 1:].norm(dim=1) <= SKIN_TOLERANCE).double().mean().item()


def hue_error(skin: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean angle in degrees between the hues of mean colours ``[N, 3]``; one without colour, so without hue: 90."""
    cosine = F.cosine_similarity(skin[:, 1:].double(), truth[:, 1:].double())
    angle = cosine.clamp(-1, 1).acos().rad2deg()
    return torch.where(skin[:, 1:].norm(dim=1) < 1, 90.0, angle).mean().item()


def chroma_ratio(skin: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean chroma of mean colours ``[N, 3]`` over that of the true ones."""
    return (skin[:, 1:].norm(dim=1).mean() / truth[:, 1:].norm(dim=1).mean()).item()


def gray_baseline(truth: torch.Tensor) -> torch.Tensor:
    """The photos without their colour: sRGB ``[N, 3, H, W]`` of CIELAB ``[N, 3, H, W]``."""
    return lightness_to_gray(truth[:, :1]).clamp(0, 1).expand(-1, 3, -1, -1)


def grid_oracle(truth: torch.Tensor, cell: int) -> torch.Tensor:
    """The best a model can do that paints chroma in cells of ``cell`` pixels: the true chroma through that grid.

    sRGB ``[N, 3, H, W]`` of CIELAB ``[N, 3, H, W]``.
    """
    chroma = F.interpolate(downsample_chroma(truth[:, 1:], cell), truth.shape[-2:], mode="bilinear")
    return lab_to_rgb(fit_gamut(torch.cat((truth[:, :1], chroma), dim=1))).clamp(0, 1)


def in_batches(work: Callable[..., torch.Tensor], *photos: torch.Tensor) -> torch.Tensor:
    """``work`` of photos ``[N, ...]`` a few at a time: thousands at once need gigabytes for what lies between."""
    return torch.cat([work(*parts) for parts in zip(*(photo.split(_AT_ONCE) for photo in photos), strict=True)])
