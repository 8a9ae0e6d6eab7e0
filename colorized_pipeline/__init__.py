"""COLORIZED: Colorization Of Lost Or Ruined ImageZ Employing Diffusion.

>>> from colorized_pipeline import load_default
>>> load_default()("scan.jpg").images[0].save("colour.png")
"""

from pathlib import Path
from typing import Any

from .pipeline import ColorizationPipeline, ColorizationPipelineOutput

__version__ = "0.1.0"
__all__ = ["DEFAULT_CHECKPOINT", "ColorizationPipeline", "ColorizationPipelineOutput", "load_default"]

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoint"


def load_default(**kwargs: Any) -> ColorizationPipeline:
    """The trained pipeline that ships inside this package; needs no network. Arguments are ``from_pretrained``'s."""
    return ColorizationPipeline.from_pretrained(str(DEFAULT_CHECKPOINT), **kwargs)
