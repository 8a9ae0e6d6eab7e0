#!/usr/bin/env python
"""Train a conditional diffusion model of P(chroma | lightness) and save it as a ColorizationPipeline.

    accelerate launch train_colorization.py --train_data photos/ --output_dir runs/mine

To go on after an interruption run the same command again with ``--resume_from_checkpoint latest``.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

try:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, set_seed
except ImportError as error:
    raise SystemExit(f"{error}; training needs: pip install '.[train]'") from None
import diffusers
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from colorized_pipeline.batch.sheets import in_rows, paint_sheet
from colorized_pipeline.diffusion.color import lab_to_rgb, lightness_to_gray
from colorized_pipeline.diffusion.pipeline import ColorizationPipeline
from colorized_pipeline.hub import BackgroundPush, PushError, check_repo_id, open_repo
from colorized_pipeline.training.checkpoints import (
    checkpoint_step,
    ema_weights,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
    save_pipeline,
)
from colorized_pipeline.training.data import (
    ColorizationDataset,
    MixBatches,
    MixedPhotos,
    RunPhotos,
    collate,
    derive_seed,
    open_photos,
)
from colorized_pipeline.training.losses import LastStage, Objective, draw_timesteps, drop_condition
from colorized_pipeline.training.networks import (
    build_last_stage,
    build_objective,
    build_optimizer,
    build_pipeline,
    learning_rate,
)
from colorized_pipeline.training.options import Options, OutputOptions, fixed_on_resume, parse_options

logger = logging.getLogger("train_colorization")

# Streams of random numbers, kept apart by the second part of each seed.
_NOISE, _VALIDATION, _SAMPLES, _DROPOUT, _DRAWN = 1, 2, 3, 5, 6
_SAMPLE_STEPS, _SAMPLE_PHOTOS = 25, 24
_MAX_GRAD_NORM = 1.0
_STOPPED_PUSH_SECONDS = 20.0  # a run that was told to stop waits so long for its last upload


@dataclass
class Run:
    """A training run: its parts, and how far it is."""

    options: Options
    accelerator: Accelerator
    pipe: ColorizationPipeline
    objective: Objective
    last_stage: LastStage | None
    photos: RunPhotos
    unet: Any  # the pipeline's UNet as accelerate prepared it
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    record: dict[str, Any]  # what run.json says
    state: dict[str, Any]  # what a checkpoint's training_state.json says
    push: BackgroundPush | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def step(self) -> int:
        return self.state["step"]

    @property
    def output_dir(self) -> Path:
        return Path(self.options.output.output_dir)

    @property
    def photos_a_step(self) -> int:
        chosen = self.options.optimization
        return chosen.train_batch_size * chosen.gradient_accumulation_steps * self.accelerator.num_processes


def train(run: Run) -> None:
    """The training loop: from the run's step to its last, or until it is stopped."""
    options, accelerator = run.options.optimization, run.accelerator
    stopped = catch_stop_signals()
    bar = tqdm(
        total=options.max_train_steps, initial=run.step, desc="steps", disable=not accelerator.is_local_main_process
    )
    mean_loss = 0.0
    for number, batch in training_batches(run):
        chroma, condition = prepare(run, batch)  # [B, 2, r, r], [B, C, r, r]
        noise, timesteps = draw_noise(run, chroma, _NOISE, number, accelerator.process_index)
        hidden = hide_some(run, condition, number)
        noised = slice(math.ceil(len(chroma) / 3) if run.last_stage else None)  # the last stage draws the others
        with accelerator.accumulate(run.unet):
            loss = compute_loss(
                run.objective, run.unet, chroma[noised], hidden[noised], noise[noised], timesteps[noised]
            )
            if run.last_stage:
                loss = loss + last_stage_loss(run, number, chroma, condition, noise, batch["lightness"], noised.stop)
            accelerator.backward(loss)
            mean_loss += loss.item() / options.gradient_accumulation_steps
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(run.unet.parameters(), _MAX_GRAD_NORM)
                set_learning_rate(run)
            run.optimizer.step()
            run.optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue

        run.state["step"] += 1
        run.ema.step(run.pipe.unet.parameters())
        report_step(run, bar, mean_loss)
        mean_loss = 0.0

        minutes = (time.monotonic() - run.started) / 60
        out_of_time = options.max_train_minutes is not None and minutes > options.max_train_minutes
        stopping = any_process(accelerator, bool(stopped or out_of_time))
        last = run.step == options.max_train_steps
        if run.step % run.options.output.validation_steps == 0 or last:
            validate(run)
        if run.step % run.options.output.checkpointing_steps == 0 or last or stopping:
            save(run)
        if stopping and not last:
            break
    bar.close()
    accelerator.end_training()
    finish(run, stopped)


def compute_loss(
    objective: Objective,
    unet: Any,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """One training step's loss: add noise, predict, compare."""
    noisy, at = objective.add_noise(chroma, noise, timesteps)
    predicted = unet(torch.cat((condition, noisy), dim=1), at).sample.float()
    target = objective.target(chroma, noise, at)
    return objective.loss(predicted, target, at)


def last_stage_loss(
    run: Run,
    number: int,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    lightness: torch.Tensor,
    start: int,
) -> torch.Tensor:
    """The last stage's loss on a batch's photos from ``start`` on: draw them, compare with the truth.

    The batch's number says after how many steps.
    """
    stage, process = run.last_stage, run.accelerator.process_index
    assert stage is not None
    generator = torch.Generator().manual_seed(derive_seed(run.options.optimization.seed, _DRAWN, number, process))
    steps = 1 + number % stage.steps
    drawn = stage.draw(run.unet, condition[start:], noise[start:], steps=steps, generator=generator)
    mean = partial(run.accelerator.reduce, reduction="mean")
    losses = stage.loss(drawn, chroma[start:], lightness[start:].to(chroma.device), reduce=mean)
    run.accelerator.log({f"last_stage/{name}": one.item() for name, one in losses.items()}, step=run.step)
    return losses["loss"]


def prepare(run: Run, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of photos as what is diffused ``[B, 2, r, r]`` and what the network sees of them ``[B, C, r, r]``."""
    lightness = batch["lightness"].to(run.accelerator.device)  # [B, 1, R, R], L* in [0, 100]
    chroma = run.pipe.chroma_to_latents(batch["chroma"].to(run.accelerator.device))
    with torch.no_grad(), run.accelerator.autocast():
        return chroma, run.pipe.condition(lightness).float()


def draw_noise(run: Run, chroma: torch.Tensor, *stream: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normal noise like ``chroma`` and a timestep for each photo, from the seed of this place in the run."""
    generator = torch.Generator().manual_seed(derive_seed(run.options.optimization.seed, *stream))
    noise = torch.randn(chroma.shape, generator=generator)
    length = run.pipe.scheduler.config.num_train_timesteps
    timesteps = draw_timesteps(len(chroma), length, generator=generator)
    return noise.to(chroma.device), timesteps.to(chroma.device)


def hide_some(run: Run, condition: torch.Tensor, number: int) -> torch.Tensor:
    """The condition, hidden for the share of photos that guidance needs."""
    share = run.options.objective.condition_dropout
    if not share:
        return condition
    seed = derive_seed(run.options.optimization.seed, _DROPOUT, number, run.accelerator.process_index)
    draws = torch.rand(len(condition), generator=torch.Generator().manual_seed(seed))
    return drop_condition(condition, draws.to(condition.device), share)


def training_batches(run: Run) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Batches with their numbers, from the run's step on."""
    options = run.options.optimization
    batches = MixBatches(
        [len(dataset) for dataset in run.photos.training.values()],
        weights=list(run.photos.weights.values()),
        batch_size=options.train_batch_size,
        start=run.step * options.gradient_accumulation_steps,
        stop=options.max_train_steps * options.gradient_accumulation_steps,
        seed=options.seed,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
    )
    loader = DataLoader(
        MixedPhotos(list(run.photos.training.values())), batch_sampler=batches, collate_fn=collate,
        num_workers=run.options.data.dataloader_num_workers, pin_memory=run.accelerator.device.type == "cuda",
    )  # fmt: skip
    return enumerate(loader, start=batches.start)


def set_learning_rate(run: Run) -> None:
    options = run.options.optimization
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(
            run.step,
            base=options.learning_rate,
            warmup=options.lr_warmup_steps,
            decay=options.lr_decay_steps or 0,
            total=options.max_train_steps,
        )


def report_step(run: Run, bar: tqdm, loss: float) -> None:
    if not math.isfinite(loss):
        raise RuntimeError(f"loss {loss} at step {run.step}; lower --learning_rate or use --mixed_precision no")
    bar.update()
    bar.set_postfix(loss=f"{loss:.4f}")
    run.accelerator.log({"loss": loss, "learning_rate": run.optimizer.param_groups[0]["lr"]}, step=run.step)


def validate(run: Run) -> None:
    """Validation losses of the averaged weights, by source; a contact sheet; the best pipeline so far."""
    with ema_weights(run.ema, run.pipe.unet):
        run.pipe.unet.eval()
        by_source = {name: validation_loss(run, dataset) for name, dataset in run.photos.validation.items()}
        losses = {"loss": mixed(run, by_source)}
        if run.options.data.film_probability:
            losses["film_loss"] = mixed(
                run,
                {name: validation_loss(run, one.through_film()) for name, one in run.photos.validation.items()},
            )
        if run.last_stage:
            losses["drawn_loss"] = mixed(
                run, {name: drawn_loss(run, dataset) for name, dataset in run.photos.validation.items()}
            )
        if run.accelerator.is_main_process:
            save_contact_sheet(run)
        if (best := losses.get("drawn_loss", losses["loss"])) < run.state.get("best_loss", math.inf):
            run.state["best_loss"] = best
            if run.accelerator.is_main_process:
                save_pipeline(run.pipe, run.output_dir / "best")
        run.pipe.unet.train()
    named = {f"validation_{name}": value for name, value in losses.items()}
    run.accelerator.log(named | {f"validation_loss/{name}": one for name, one in by_source.items()}, step=run.step)
    shown = ", ".join(
        f"{name} {value:.5f}" for name, value in {**losses, **(by_source if len(by_source) > 1 else {})}.items()
    )
    seen = run.step * run.photos_a_step
    logger.info("step %d, %d photos seen: validation %s", run.step, seen, shown)
    if run.accelerator.is_main_process:
        seconds = round(time.monotonic() - run.started)
        row = {"step": run.step, "photos_seen": seen, **losses, "by_source": by_source, "seconds": seconds}
        with (run.output_dir / "validation.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def mixed(run: Run, losses: dict[str, float]) -> float:
    """The mean of the sources' losses by their weights in training."""
    return sum(run.photos.weights[name] * loss for name, loss in losses.items())


@torch.no_grad()
def validation_loss(run: Run, dataset: ColorizationDataset) -> float:
    """Mean loss over the photos, on noise and timesteps that are the same at every call; never weighted."""
    accelerator, size = run.accelerator, run.options.optimization.train_batch_size
    total = 0.0
    for number, start in enumerate(range(0, len(dataset), size)):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        batch = collate([dataset[0, index] for index in range(start, min(start + size, len(dataset)))])
        chroma, condition = prepare(run, batch)
        noise, timesteps = draw_noise(run, chroma, _VALIDATION, number)
        loss = compute_loss(run.objective.unweighted(), run.pipe.unet, chroma, condition, noise, timesteps)
        total += loss.item() * len(chroma)
    return accelerator.reduce(torch.tensor(total, device=accelerator.device), "sum").item() / len(dataset)


@torch.no_grad()
def drawn_loss(run: Run, dataset: ColorizationDataset) -> float:
    """How far photos that are drawn lie from the true ones, squared, by the encoder's last features; grey has 1."""
    stage, size = run.last_stage, run.options.optimization.train_batch_size
    assert stage is not None
    sums = torch.zeros(2, device=run.accelerator.device)
    for number, start in enumerate(range(0, len(dataset), size)):
        if number % run.accelerator.num_processes != run.accelerator.process_index:
            continue
        batch = collate([dataset[0, index] for index in range(start, min(start + size, len(dataset)))])
        chroma, condition = prepare(run, batch)
        noise, _ = draw_noise(run, chroma, _VALIDATION, number)
        generator = torch.Generator().manual_seed(derive_seed(run.options.optimization.seed, _DRAWN))
        drawn = stage.draw(run.pipe.unet, condition, noise, steps=stage.steps, generator=generator)
        sums += torch.tensor(stage.distance(drawn, chroma, batch["lightness"].to(chroma.device)), device=sums.device)
    ours, gray = run.accelerator.reduce(sums, "sum").tolist()
    return ours / gray


def save_contact_sheet(run: Run) -> None:
    """Every ``--sample_steps`` steps, validation photos of all sources as triples grey, result, truth."""
    if not run.options.output.sample_steps or run.step % run.options.output.sample_steps:
        return
    sets = list(run.photos.validation.values())
    truths = [lab for dataset in sets for lab in spread_photos(dataset, math.ceil(_SAMPLE_PHOTOS / len(sets)))]
    (run.output_dir / "samples").mkdir(exist_ok=True)
    sheet = contact_sheet(run.pipe, truths, seed=run.options.optimization.seed)
    sheet.save(run.output_dir / "samples" / f"step-{run.step:07d}.png")


def spread_photos(dataset: ColorizationDataset, count: int) -> list[torch.Tensor]:
    """At most ``count`` photos, spread evenly over the set: CIELAB ``[3, R, R]``."""
    return [dataset.lab(len(dataset) * number // count) for number in range(min(count, len(dataset)))]


@torch.no_grad()
def contact_sheet(pipe: ColorizationPipeline, truths: list[torch.Tensor], *, seed: int) -> Image.Image:
    """Triples grey, result, truth, four to a row, of CIELAB photos ``[3, R, R]``."""
    grays = [lightness_to_gray(lab[:1]) for lab in truths]
    generator = torch.Generator().manual_seed(derive_seed(seed, _SAMPLES))
    steps = min(_SAMPLE_STEPS, pipe.config.default_steps)
    results = pipe(grays, num_inference_steps=steps, generator=generator, output_type="pt").images
    triples = [
        torch.cat((gray.expand(3, -1, -1), result, lab_to_rgb(lab)), dim=-1)
        for gray, result, lab in zip(grays, results, truths, strict=True)
    ]
    return paint_sheet(in_rows(triples, 4))


def save(run: Run) -> None:
    """A checkpoint, and its pipeline to the Hub if that was asked for."""
    seen = run.step * run.photos_a_step
    saved = {**run.record, **run.state, "photos_seen": seen}
    save_checkpoint(run.accelerator, run.output_dir, saved, limit=run.options.output.checkpoints_total_limit)
    if run.push:
        last = run.options.optimization.max_train_steps
        with ema_weights(run.ema, run.pipe.unet):
            run.push.push(run.pipe, f"Step {run.step} of {last}, {seen} photos seen")


def finish(run: Run, stopped: list[int]) -> None:
    """Save the pipeline with averaged weights in the run's folder, and wait for uploads."""
    if run.accelerator.is_main_process:
        with ema_weights(run.ema, run.pipe.unet):
            run.pipe.save_pretrained(run.output_dir)
        last = run.options.optimization.max_train_steps
        logger.info("step %d of %d; the pipeline is in %s", run.step, last, run.output_dir)
    if run.push:
        run.push.finish(_STOPPED_PUSH_SECONDS if stopped else None)
    if stopped:
        raise SystemExit(128 + stopped[0])


def catch_stop_signals() -> list[int]:
    """A list that SIGTERM and SIGINT are appended to from now on, so that the loop can end in good order."""
    caught: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: caught.append(signum))
    return caught


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True on every process if it is true on one, so that all leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item())


def start(options: Options) -> Run:
    """Build a run's parts, where an earlier one stopped if it is resumed. Raises ``SystemExit`` if that can't be."""
    output, accelerator = options.output, open_accelerator(options)
    refuse_overwriting(output)
    set_seed(options.optimization.seed)
    try:
        checkpoint = find_checkpoint(output.output_dir, output.resume_from_checkpoint)
        state = json.loads((checkpoint / "training_state.json").read_text()) if checkpoint else {"step": 0}
        # The model before the photos: a wrong option shows before the long reading
        pipe, options = build_pipeline(options)
        if pipe.image_encoder is not None:
            # Depthwise convolutions run 1.5 x as fast with channels last on a CPU (measured); the result is the same.
            pipe.image_encoder.to(accelerator.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        objective = build_objective(pipe, options.objective)
        last_stage = build_last_stage(pipe, options.objective)
        record = {**options.flat(), "num_processes": accelerator.num_processes}
        refuse_other_settings(record, state)
        push = open_background_push(output) if output.push_to_hub and accelerator.is_main_process else None
        with accelerator.local_main_process_first():
            photos = open_photos(
                options.data,
                resolution=options.model.resolution or 0,
                luma_factor=pipe.chroma_cell,
                seed=options.optimization.seed,
                progress=accelerator.is_local_main_process,
            )
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    record["photos"] = photos.digests()
    refuse_other_photos(record, state)

    pipe.set_progress_bar_config(disable=True)
    unet = pipe.unet.train().requires_grad_(True)
    unet, optimizer = accelerator.prepare(unet, build_optimizer(unet, options))
    pipe.unet = accelerator.unwrap_model(unet, keep_torch_compile=False)
    ema = EMAModel(pipe.unet.parameters(), decay=options.optimization.ema_decay, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, *[last_stage] if last_stage else [])
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        logger.info("resumed from %s", checkpoint)
    return Run(options, accelerator, pipe, objective, last_stage, photos, unet, optimizer, ema, record, state, push)


def open_accelerator(options: Options) -> Accelerator:
    folder, tracker = options.output.output_dir, options.output.report_to
    accelerator = Accelerator(
        gradient_accumulation_steps=options.optimization.gradient_accumulation_steps,
        mixed_precision=options.optimization.mixed_precision,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=str(Path(folder) / "logs")),
    )
    if not accelerator.is_main_process:
        logger.setLevel(logging.ERROR)
        diffusers.utils.logging.set_verbosity_error()
    return accelerator


def refuse_overwriting(output: OutputOptions) -> None:
    """Raises ``SystemExit`` if the output folder holds a run that isn't resumed."""
    existing = list_checkpoints(output.output_dir)
    if existing and not output.resume_from_checkpoint:
        raise SystemExit(
            f"--output_dir {output.output_dir} holds a run at step {checkpoint_step(existing[-1])}; go on with it by "
            "--resume_from_checkpoint latest, or choose another folder"
        )


def refuse_other_settings(record: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises ``SystemExit`` if this run isn't the one that it resumes."""
    names = [*fixed_on_resume(), "num_processes"]
    changed = [name for name in names if name in state and state[name] != record[name]]
    if changed:
        values = ", ".join(f"{name}: {state[name]} then, {record[name]} now" for name in changed)
        raise SystemExit(f"can't resume with other settings ({values}); use the same, or --init_from in a new folder")


def refuse_other_photos(record: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises ``SystemExit`` if a source's photos aren't those that the resumed run began with, in the same split."""
    began = state.get("photos", record["photos"])
    changed = [name for name, digest in record["photos"].items() if began.get(name) != digest]
    if changed or began.keys() != record["photos"].keys():
        raise SystemExit(
            f"can't resume with other photos (source {', '.join(changed) or 'missing'}) than the run began with; give "
            "the same, or --init_from in a new folder"
        )


def open_background_push(output: OutputOptions) -> BackgroundPush:
    """The repository, made or found before hours of training. Raises ``SystemExit`` if it can't be written to."""
    assert output.hub_model_id
    advice = "choose another --hub_model_id, or go on with the run that made them by --resume_from_checkpoint latest"
    try:
        check_repo_id(output.hub_model_id)
        open_repo(
            output.hub_model_id,
            private=output.hub_private_repo,
            advice_if_used=None if output.resume_from_checkpoint else advice,
        )
    except (PushError, ValueError) as error:
        raise SystemExit(f"--push_to_hub: {error}") from None
    return BackgroundPush(output.hub_model_id, Path(output.output_dir))


def write_record(run: Run) -> None:
    """The resolved options, in run.json and for the tracker."""
    if run.accelerator.is_main_process:
        run.output_dir.mkdir(parents=True, exist_ok=True)
        (run.output_dir / "run.json").write_text(json.dumps(run.record, indent=2))
        if run.options.output.report_to != "none":
            plain = {name: value for name, value in run.record.items() if isinstance(value, (int, float, str))}
            run.accelerator.init_trackers("train", config=plain)
    config = run.pipe.unet.config
    logger.info(
        "%.1f M trainable parameters, %d input channels; %d photos a step; steps %d to %d; options in %s",
        sum(p.numel() for p in run.pipe.unet.parameters()) / 1e6, config.in_channels, run.photos_a_step, run.step,
        run.options.optimization.max_train_steps, run.output_dir / "run.json",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for library in ("accelerate", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    run = start(options)
    write_record(run)
    train(run)


if __name__ == "__main__":
    main()
