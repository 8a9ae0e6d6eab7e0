"""COLORIZED: Colorization Of Lost Or Ruined ImageZ Employing Diffusion.

>>> from colorized_pipeline import load_default
>>> load_default()("scan.jpg").images[0].save("colour.png")
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ._version import __version__
from .diffusion.pipeline import ColorizationPipeline, ColorizationPipelineOutput

__all__ = [
    "DEFAULT_CHECKPOINT",
    "EXAMPLES",
    "FAST_CHECKPOINT",
    "REPOSITORY",
    "ColorizationPipeline",
    "ColorizationPipelineOutput",
    "__version__",
    "load_default",
]

# Where the project lives. OWNER stands for whoever publishes it: replace it here, in pyproject.toml, in the README and
# in the notebook (a test holds them together).
REPOSITORY = "https://github.com/OWNER/colorized"

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoint"
FAST_CHECKPOINT = Path(__file__).parent / "checkpoint_fast"  # distilled to few steps; its encoder is the default's
EXAMPLES = tuple(sorted((Path(__file__).parent / "examples").glob("*.jpg")))  # grey photos, free to use


def load_default(*, fast: bool = False, **kwargs: Any) -> ColorizationPipeline:
    """The trained pipeline that ships inside this package; needs no network.

    Args:
        fast: the one that was distilled to two steps: two passes of the network for twelve, less lifelike colours.
        kwargs: ``from_pretrained``'s.
    """
    if not fast:
        return ColorizationPipeline.from_pretrained(str(DEFAULT_CHECKPOINT), **kwargs)
    folder = DEFAULT_CHECKPOINT / "image_encoder"
    kwargs.setdefault("image_encoder", AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True))
    return ColorizationPipeline.from_pretrained(str(FAST_CHECKPOINT), **kwargs)
