"""COLORIZED: Colorization Of Lost Or Ruined ImageZ Employing Diffusion.

>>> from colorized_pipeline import load_default
>>> load_default()("scan.jpg").images[0].save("colour.png")

The names below are imported when they are first used, so that the command answers at once.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .diffusion.pipeline import ColorizationPipeline, ColorizationPipelineOutput
    from .loading import load_default, load_pipeline

__all__ = [
    "DEFAULT_CHECKPOINT",
    "EXAMPLES",
    "ColorizationPipeline",
    "ColorizationPipelineOutput",
    "__version__",
    "load_default",
    "load_pipeline",
]

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoint"
EXAMPLES = tuple(sorted((Path(__file__).parent / "examples").glob("*.jpg")))  # grey photos, free to use

_MODULES = {
    "ColorizationPipeline": ".diffusion.pipeline",
    "ColorizationPipelineOutput": ".diffusion.pipeline",
    "load_default": ".loading",
    "load_pipeline": ".loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
