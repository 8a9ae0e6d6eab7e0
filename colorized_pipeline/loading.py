"""Loading a checkpoint: a folder, a name on the Hub, or the one in the package. Weights as pickles are refused."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from . import DEFAULT_CHECKPOINT
from .diffusion.pipeline import ColorizationPipeline

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TROUBLES = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


def load_default(**options: Any) -> ColorizationPipeline:
    """The trained pipeline that ships inside this package; needs no network. Options: ``from_pretrained``'s."""
    return load_pipeline(DEFAULT_CHECKPOINT, **options)


def load_pipeline(
    source: str | Path | None = None, *, device: str | None = "cpu", **options: Any
) -> ColorizationPipeline:
    """A saved pipeline on its device.

    Args:
        source: its folder, or a name on the Hub; the one in the package if None.
        device: such as ``"cpu"`` or ``"cuda"``; the fastest there is if None.
        options: ``from_pretrained``'s.

    Raises:
        ValueError: if it can't be loaded, has its weights as pickles, or the device can't be used; the message is one
            line for users.
    """
    source = str(source or DEFAULT_CHECKPOINT)
    chosen = device or best_device()
    try:
        if Path(source).is_dir():
            _check_folder(Path(source))
            options["local_files_only"] = True
        pipe = ColorizationPipeline.from_pretrained(source, **options)
    except _TROUBLES as error:
        raise ValueError(f"checkpoint {source} can't be loaded: {_reason(error, source)}") from error
    if chosen == "cpu":
        return pipe
    try:
        return pipe.to(chosen)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"device {chosen!r} can't be used here ({error}); try cpu") from error


def load_with_own_code(folder: str | Path, *, device: str | None = "cpu") -> DiffusionPipeline:
    """A saved pipeline of another version on its device, by the code that lies beside its weights. Errors as above."""
    if not (Path(folder) / "pipeline.py").is_file():
        raise ValueError(f"checkpoint {folder} has no pipeline.py beside its weights, so no code of its own")
    try:
        _check_folder(Path(folder))
        code: dict[str, Any] = dict(custom_pipeline=str(folder), trust_remote_code=True)
        pipe = DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **code)
    except _TROUBLES as error:
        raise ValueError(f"checkpoint {folder} can't be loaded: {_reason(error, str(folder))}") from error
    return pipe.to(device or best_device())


def load_encoder(source: str | Path) -> "PreTrainedModel":
    """An image encoder in float32, in evaluation mode: of a folder or a name on the Hub. Errors as above."""
    from transformers import AutoModel  # knows every kind of network: only who loads an encoder alone needs that

    try:
        if Path(source).is_dir():
            _refuse_pickles(Path(source))
        return AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True).eval()
    except _TROUBLES as error:
        raise ValueError(f"image encoder {source} can't be loaded: {_reason(error, str(source))}") from error


def explain_hub(error: BaseException, repo_id: str) -> str:
    """What went wrong between us and the Hub, in one line that a user can act on."""
    if isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled)):
        return " ".join(str(error).split())
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"repository {repo_id} isn't on the Hub, or it is private and this token may not see it: check the name, "
            "and log in with `hf auth login` or HF_TOKEN"
        )
    if status == 401:
        return "the Hub doesn't accept this token (401): make a new one, then `hf auth login` or HF_TOKEN"
    if status == 403:
        return (
            f"this token may not write to {repo_id} (403): it needs the role 'write', and you need to be its owner or "
            "a member of its organization"
        )
    if status is not None:
        return f"the Hub answered {status} for {repo_id}: {' '.join(str(error).split())[:200]}"
    return f"no connection to {constants.ENDPOINT} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def best_device() -> str:
    """The fastest device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def quieten_libraries() -> None:
    """No warnings and progress bars of the libraries: what goes wrong is said by one line of ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _check_folder(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        inside = [path.parent.name for path in sorted(folder.glob("*/model_index.json"))]
        hint = f"; did you mean {folder / inside[0]}?" if inside else ""
        raise ValueError(f"{folder} holds no saved pipeline (no model_index.json){hint}")
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        _refuse_pickles(part)


def _refuse_pickles(folder: Path) -> None:
    """Loading a pickle can run any code that it holds."""
    if any(folder.glob("*.safetensors")):
        return
    for pattern in _PICKLES:
        for file in folder.glob(pattern):
            raise ValueError(
                f"{file} is a pickle, which can run any code when it is loaded; have its owner save it "
                "anew with save_pretrained(folder, safe_serialization=True)"
            )


def _reason(error: BaseException, source: str) -> str:
    """The Hub's trouble if it was that, else the error's own words, in one line."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, HFValidationError):
            return "no such folder, and no name on the Hub (user/name)"
        if isinstance(link, (HfHubHTTPError, ConnectionError, TimeoutError, socket.gaierror)):
            return explain_hub(link, source)
        link = link.__cause__ or link.__context__
    return " ".join(str(error).split())
