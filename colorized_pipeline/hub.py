"""Publishing on the Hugging Face Hub: a pipeline's weights, code, model card and sample pictures, in one commit.

``stage`` lays the upload out in a folder, ``publish`` sends it, ``BackgroundPush`` does both beside a training run.
"""

import json
import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from PIL import Image

from .batch.sheets import paint_sheet, to_tensor
from .diffusion import pipeline as pipeline_module
from .diffusion.color import lightness_to_gray, rgb_to_lab
from .diffusion.pipeline import CODE_FILES, ColorizationPipeline
from .loading import explain_hub, load_pipeline
from .training.checkpoints import list_checkpoints

logger = logging.getLogger(__name__)

CARD, PICTURE = "README.md", "samples.jpg"
SEEDS_CAPTION = "Grey, then three seeds; nothing picked."
SHEET_CAPTION = "Validation photographs in threes: grey, result, original; nothing picked."
_TEMPLATE = Path(__file__).parent / "model_card_template.md"
_TRAINING_FACTS = {
    "dataset_name": "data set",
    "step": "optimizer steps",
    "photos_seen": "photos seen",
    "photos_a_step": "photos a step",
    "optimizer": "optimizer",
    "learning_rate": "learning rate (warm-up, cosine decay)",
    "ema_decay": "decay of the averaged weights",
    "preset": "size of the UNet",
    "resolution": "training crop, pixels",
    "prediction_type": "the UNet predicts",
    "beta_schedule": "noise schedule",
    "num_train_timesteps": "timesteps T",
    "seed": "seed",
    "validation_loss": "last validation loss, averaged weights",
}
_PICTURE_HEIGHT = 256


class PushError(RuntimeError):
    """Nothing of the upload is visible on the Hub; the message says why and what to do."""


def check_repo_id(repo_id: str) -> None:
    """Raises ``ValueError`` unless ``repo_id`` is ``user/name`` in the Hub's spelling."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r}: {error}") from None
    if repo_id.count("/") != 1:
        raise ValueError(f"repository {repo_id!r} must be user/name, or organization/name")


def open_repo(repo_id: str, *, private: bool = False, advice_if_used: str | None = None) -> None:
    """Make sure that ``repo_id`` is there and ready for an upload.

    Args:
        repo_id: ``user/name``; made if there is none.
        private: a repository that is made is for its owner only.
        advice_if_used: what the user may do if the repository has files already; it is refused then. None: it is
            added to, and its history keeps what was there.

    Raises:
        PushError: without a token, with one that may not write there, for a repository in use, or without network.
    """
    check_repo_id(repo_id)
    if get_token() is None:
        raise PushError("no Hugging Face token found: run `hf auth login`, or set HF_TOKEN to a token that may write")
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        found = api.model_info(url.repo_id)
    except Exception as error:
        raise PushError(explain_hub(error, repo_id)) from error
    used = [file.rfilename for file in found.siblings or [] if file.rfilename != ".gitattributes"]
    if used and advice_if_used:
        raise PushError(f"repository {repo_id} has {len(used)} files already; {advice_if_used}")
    if private and not found.private:
        raise PushError(f"repository {repo_id} exists and is public; make it private on its settings page first")


def stage(
    source: ColorizationPipeline | Path,
    folder: Path,
    *,
    repo_id: str,
    caption: str | None,
    card: Path | None = None,
    training: dict[str, Any] | None = None,
) -> ColorizationPipeline:
    """Lay out in ``folder`` what the repository will hold: weights, code and model card. Returns the pipeline.

    Args:
        source: a pipeline in memory, or the folder of a saved one, whose weight files are copied as they are.
        folder: made if needed.
        repo_id: ``user/name``, written into the card's examples.
        caption: of the card's picture, which :func:`add_picture` puts there; None: the card shows none.
        card: model card to use, with the pictures that it shows; ``{{ repo_id }}`` is filled in; else the source
            folder's README.md; else one made from the pipeline's own figures.
        training: what :func:`training_facts` found, for the card.

    Raises:
        ValueError: if the source isn't a pipeline or the card still has a placeholder to fill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Path):
        pipe = load_pipeline(source)
        _copy_pipeline(source, folder)
        if card is None and (source / CARD).is_file():
            card = source / CARD
    else:
        pipe = source
        pipe.save_pretrained(folder)
    text = _fill_card(card, repo_id) if card else _make_card(pipe, repo_id, training, caption)
    (folder / CARD).write_text(text, encoding="utf-8")
    if card:
        _copy_pictures(text, card.parent, folder)
    return pipe


def _copy_pictures(text: str, beside: Path, folder: Path) -> None:
    """Take along the pictures that a card shows by a path from its own folder; none from outside of it."""
    for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
        picture = beside / name
        if picture.is_file() and picture.resolve().is_relative_to(beside.resolve()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, folder / name)


def add_picture(folder: Path, picture: Image.Image | Path) -> None:
    """Put the sample picture where a staged folder's card shows it."""
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    image.convert("RGB").save(folder / PICTURE, quality=90)


def publish(folder: Path, repo_id: str, *, message: str) -> str:
    """Send a staged folder to the open repository ``repo_id`` in one commit, all or nothing. Returns the commit's URL.

    Files of an earlier pipeline that this one doesn't have are removed in the same commit.

    Raises:
        PushError: if the upload didn't finish; what had arrived isn't sent again by the next try.
    """
    try:
        info = HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            delete_patterns=["*.safetensors", "*.json", "*.py", "*.bin"],
        )
    except Exception as error:
        raise PushError(
            f"{explain_hub(error, repo_id)}. The repository is as it was before; run the same command again to finish "
            "(files that have arrived are not sent again)"
        ) from error
    return info.commit_url


def training_facts(folder: Path) -> dict[str, Any] | None:
    """How the pipeline in ``folder`` (a run's, or its ``best/``) was trained, from the run's own files, if it has any.

    Local paths and the like are left out: they are nobody's business on the Hub.
    """
    run_folder = _run_folder(folder)
    if run_folder is None:
        return None
    run = json.loads((run_folder / "run.json").read_text())
    facts = {name: run[name] for name in _TRAINING_FACTS if run.get(name) is not None}
    facts["photos_a_step"] = run["train_batch_size"] * run["gradient_accumulation_steps"] * run["num_processes"]
    rows = [json.loads(line) for line in _lines(run_folder / "validation.jsonl")]
    if rows:
        row = min(rows, key=lambda row: row["loss"]) if folder.name == "best" else rows[-1]
        facts |= {"step": row["step"], "photos_seen": row["photos_seen"], "validation_loss": f"{row['loss']:.4f}"}
    newest = next(reversed(list_checkpoints(run_folder)), None)
    if newest is not None and folder.name != "best":
        state = json.loads((newest / "training_state.json").read_text())
        facts |= {"step": state["step"], "photos_seen": state["photos_seen"]}
    return facts


def training_picture(folder: Path) -> Path | None:
    """The newest contact sheet of the run in ``folder`` or beside it (grey, result, truth), if it made any."""
    run_folder = _run_folder(folder)
    return max(run_folder.glob("samples/step-*.png"), default=None) if run_folder else None


def sample_picture(pipe: ColorizationPipeline, photos: Sequence[Path]) -> Image.Image:
    """One row a photo: grey, then a colorization for each of three seeds, nothing picked."""
    rows = []
    for photo in photos:
        results = [pipe(photo, generator=torch.Generator().manual_seed(seed)).images[0] for seed in range(3)]
        for result in results:
            result.thumbnail((4 * _PICTURE_HEIGHT, _PICTURE_HEIGHT))
        rows.append([lightness_to_gray(rgb_to_lab(to_tensor(results[0]))[:1]).expand(3, -1, -1), *results])
    return paint_sheet(rows)


class BackgroundPush:
    """Pushes a training run's pipelines from a thread of its own. Trouble is logged; the training goes on.

    While one upload is under way the newest pipeline waits for it, and an older one that still waits is dropped.

    Args:
        repo_id: ``user/name``.
        output_dir: the run's folder, for the card's figures and the sample picture.
    """

    def __init__(self, repo_id: str, output_dir: Path) -> None:
        self.repo_id, self.output_dir = repo_id, output_dir
        self._waiting: tuple[Path, str] | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        disable_progress_bars()  # they would tear the training's own

    def push(self, pipe: ColorizationPipeline, message: str) -> None:
        """Lay ``pipe`` out as it is now and send it when the line is free; returns without waiting for the Hub."""
        folder = Path(tempfile.mkdtemp(prefix="colorized-push-"))
        try:
            facts, picture = training_facts(self.output_dir), training_picture(self.output_dir)
            caption = SHEET_CAPTION if picture is not None else None
            stage(pipe, folder, repo_id=self.repo_id, caption=caption, training=facts)
            if picture is not None:
                add_picture(folder, picture)
        except Exception as error:  # a full disk, say: the run is worth more than its copy
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning("not pushed (%s): %s", message, error)
            return
        with self._lock:
            if self._waiting is not None:
                shutil.rmtree(self._waiting[0], ignore_errors=True)
            self._waiting = (folder, message)
            if self._thread is None or not self._thread.is_alive():
                # A daemon: an upload that hangs must not keep a finished run alive
                self._thread = threading.Thread(target=self._send_waiting, daemon=True)
                self._thread.start()

    def finish(self, timeout: float | None = None) -> None:
        """Wait until everything is sent or has failed, at most ``timeout`` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                logger.warning("stopped waiting for the upload to %s; `colorized push` sends it later", self.repo_id)

    def _send_waiting(self) -> None:
        while True:
            with self._lock:
                if self._waiting is None:
                    self._thread = None
                    return
                folder, message = self._waiting
                self._waiting = None
            try:
                logger.info("pushed %s: %s", message, publish(folder, self.repo_id, message=message))
            except PushError as error:
                logger.warning("not pushed (%s), the training goes on: %s", message, error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _run_folder(folder: Path) -> Path | None:
    return next((one for one in (folder, folder.parent) if (one / "run.json").is_file()), None)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _copy_pipeline(source: Path, folder: Path) -> None:
    """A saved pipeline's own files, as they are, with this package's code; nothing else that lies in its folder."""
    index = json.loads((source / "model_index.json").read_text())
    shutil.copyfile(source / "model_index.json", folder / "model_index.json")
    for name, value in index.items():
        if isinstance(value, list) and (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    for name in CODE_FILES:
        shutil.copyfile(Path(pipeline_module.__file__).parent / name, folder / name)


def _fill_card(card: Path, repo_id: str) -> str:
    text = re.sub(r"\{\{ *repo_id *\}\}", repo_id, card.read_text(encoding="utf-8"))
    unfilled = sorted(set(re.findall(r"@@\w+@@", text)))
    if unfilled:
        raise ValueError(f"model card {card} isn't filled yet: {', '.join(unfilled)}")
    return text


def _make_card(pipe: ColorizationPipeline, repo_id: str, training: dict[str, Any] | None, caption: str | None) -> str:
    """A card of what the pipeline and its run know of themselves; what nobody recorded is said to be unknown."""
    encoder = pipe.image_encoder
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["colorization", "image-colorization", "diffusion", "archives"],
        datasets=[training["dataset_name"]] if training and "dataset_name" in training else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        repo_id=repo_id,
        picture=PICTURE,
        caption=caption,
        parameters=f"{sum(p.numel() for p in pipe.unet.parameters()):,}",
        encoder=type(encoder).__name__ if encoder is not None else None,
        schedule=pipe.scheduler.config.beta_schedule,
        prediction=pipe.scheduler.config.prediction_type,
        config=pipe.config,
        cell=pipe.chroma_cell,
        facts=[(_TRAINING_FACTS[name], training[name]) for name in _TRAINING_FACTS if name in training]
        if training
        else None,
    )
    return str(card)
