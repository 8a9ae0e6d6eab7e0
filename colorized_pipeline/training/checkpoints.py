"""Whole-or-nothing checkpoints of a run, and the averaged weights that it saves."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.training_utils import EMAModel

COMPLETE = "COMPLETE"
_CHECKPOINT_PREFIX = "checkpoint-"


@contextmanager
def ema_weights(ema: EMAModel, unet: UNet2DModel) -> Iterator[None]:
    """Inside the block the UNet has its averaged weights; after it, whatever happens, its own again."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    try:
        yield
    finally:
        ema.restore(unet.parameters())


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.removeprefix(_CHECKPOINT_PREFIX))


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first. A folder without its marker was cut off while it was written: not listed."""
    found = [
        folder
        for folder in Path(output_dir).glob(f"{_CHECKPOINT_PREFIX}*")
        if folder.name.removeprefix(_CHECKPOINT_PREFIX).isdecimal() and (folder / COMPLETE).is_file()
    ]
    return sorted(found, key=checkpoint_step)


def save_checkpoint(accelerator: Any, output_dir: str | Path, state: dict[str, Any], *, limit: int | None) -> Path:
    """Save everything a resumed run needs as ``checkpoint-STEP``, all or nothing; call it on every process.

    ``state`` holds at least ``step`` and goes to ``training_state.json``. Written to a temporary folder, flushed to
    disk and renamed by the main process, so that no kill leaves a half-written checkpoint under a valid name. Then the
    oldest complete checkpoints beyond ``limit`` are deleted.
    """
    final = Path(output_dir) / f"{_CHECKPOINT_PREFIX}{state['step']}"
    temporary = final.with_name(f"partial-{final.name}")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / "training_state.json").write_text(json.dumps(state, indent=2))
        (temporary / COMPLETE).touch()
        replace_folder(temporary, final)
        if limit is not None:
            for old in list_checkpoints(output_dir)[:-limit]:
                # Unmarked first: a kill while deleting must not leave a marked folder with files missing.
                (old / COMPLETE).unlink()
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def save_pipeline(pipe: DiffusionPipeline, folder: str | Path) -> None:
    """Save a pipeline so that ``folder`` holds the old one or the new one, never half of each."""
    folder = Path(folder)
    temporary = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe.save_pretrained(temporary)
    replace_folder(temporary, folder)


def replace_folder(temporary: Path, final: Path) -> None:
    """Flush ``temporary`` to disk, then put it in the place of ``final``: a crash leaves no half of it there."""
    for path in [*temporary.rglob("*"), temporary]:
        _flush_to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)


def _flush_to_disk(path: Path) -> None:
    try:
        # Windows flushes only what is open for writing, and opens no folder at all
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_checkpoint(output_dir: str | Path, wanted: str | None) -> Path | None:
    """The folder that ``--resume_from_checkpoint`` names: ``latest`` (None if there is none yet), or a path.

    Raises:
        FileNotFoundError: if a named checkpoint doesn't exist or is incomplete.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    for folder in (Path(wanted), Path(output_dir) / wanted):
        if (folder / COMPLETE).is_file():
            return folder
    raise FileNotFoundError(f"resume_from_checkpoint={wanted!r}: no complete checkpoint (one with a {COMPLETE} file)")
