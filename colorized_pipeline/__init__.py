"""COLORIZED: Colorization Of Lost Or Ruined ImageZ Employing Diffusion.

>>> from colorized_pipeline import load_default
>>> load_default()("scan.jpg").images[0].save("colour.png")
"""

from pathlib import Path
from typing import Any

from .pipeline import ColorizationPipeline, ColorizationPipelineOutput

__version__ = "0.1.0"
__all__ = [
    "DEFAULT_CHECKPOINT",
    "EXAMPLES",
    "REPOSITORY",
    "ColorizationPipeline",
    "ColorizationPipelineOutput",
    "load_default",
]

# Where the project lives. OWNER stands for whoever publishes it: replace it here, in pyproject.toml, in the README and
# in the notebook (a test holds them together).
REPOSITORY = "https://github.com/OWNER/colorized"

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoint"
EXAMPLES = tuple(sorted((Path(__file__).parent / "examples").glob("*.jpg")))  # grey photos, free to use


def load_default(**kwargs: Any) -> ColorizationPipeline:
    """The trained pipeline that ships inside this package; needs no network. Arguments are ``from_pretrained``'s."""
    return ColorizationPipeline.from_pretrained(str(DEFAULT_CHECKPOINT), **kwargs)
