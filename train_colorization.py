#!/usr/bin/env python
"""Train a conditional diffusion model of P(chroma | lightness) and save it as a ColorizationPipeline.

    accelerate launch train_colorization.py --train_data photos/ --output_dir runs/mine

To go on after an interruption run the same command again with ``--resume_from_checkpoint latest``.
"""

import argparse
import json
import logging
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel

from colorized_pipeline.diffusion.color import lab_to_rgb, lightness_to_gray
from colorized_pipeline.diffusion.photo import condition_channels
from colorized_pipeline.diffusion.pipeline import ColorizationPipeline
from colorized_pipeline.hub import BackgroundPush, PushError, check_repo_id, open_repo
from colorized_pipeline.training.data import (
    ColorizationDataset,
    JoinedDataset,
    PhotoSource,
    StepBatches,
    collate,
    derive_seed,
    hold_out,
    open_hub_source,
    open_source,
)
from colorized_pipeline.training.losses import (
    PRESETS,
    Teacher,
    build_unet,
    checkpoint_step,
    diffusion_loss,
    distillation_loss,
    drop_condition,
    ema_weights,
    find_checkpoint,
    learning_rate,
    list_checkpoints,
    regression_loss,
    save_checkpoint,
    save_pipeline,
)

logger = logging.getLogger("train_colorization")

# Streams of random numbers, kept apart by the second part of each seed.
_NOISE, _VALIDATION, _SAMPLES, _SPLIT, _DROPOUT = 1, 2, 3, 4, 5
_SAMPLE_STEPS = 25
_STOPPED_PUSH_SECONDS = 20.0  # a run that was told to stop waits so long for its last upload
_MAX_CHROMA = 110.0  # no colour in sRGB is further from grey along a* or b*

# Flags that must not change when a run is resumed: with another value it would not be the same run.
_FIXED_ON_RESUME = (
    "train_batch_size gradient_accumulation_steps seed resolution luma_factor chroma_scale preset image_encoder "
    "encoder_scale "
    "objective student_steps teacher_steps teacher_guidance prediction_type beta_schedule num_train_timesteps "
    "zero_terminal_snr snr_gamma ema_decay "
    "film_probability extra_data extra_share condition_dropout feature_dropout num_processes"
).split()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument

    data = parser.add_argument_group("data (one of --dataset_name and --train_data)")
    data.add_argument("--dataset_name", help="dataset on the Hub, e.g. user/photos")
    data.add_argument("--dataset_config_name", help="configuration of the Hub dataset")
    data.add_argument("--train_split", default="train", help="split of the Hub dataset to train on")
    data.add_argument("--validation_split", help="split of the Hub dataset for validation")
    data.add_argument(
        "--train_data", nargs="+", help="an image folder, the Kaggle arrays' folder, or parquet files (globs allowed)"
    )
    data.add_argument("--validation_data", nargs="+", help="the same for validation; by default photos are held out")
    data.add_argument("--validation_photos", type=int, default=400, help="at most this many; held out at most 10 %%")
    data.add_argument("--extra_data", nargs="+", help="further photos (as --train_data) that are mixed in by share")
    data.add_argument("--extra_share", type=float, default=0.2, help="share of --extra_data in the photos seen")
    data.add_argument("--extra_validation_data", nargs="+", help="photos for a second loss, of --extra_data's kind")
    data.add_argument("--image_column", default="image", help="column with the photos (Hub and parquet)")
    data.add_argument("--cache_gib", type=float, default=4.0, help="memory for decoded photos, GiB a process")
    data.add_argument(
        "--film_probability", type=float, default=0.35,
        help="share of training photos seen through a random old film: other emulsions, fading, grain, scratches",
    )  # fmt: skip
    data.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that prepare photos")

    model = parser.add_argument_group("model")
    model.add_argument("--preset", choices=list(PRESETS), default="base", help="size of the UNet")
    model.add_argument("--resolution", type=int, default=128, help="edge of the training crop, pixels")
    model.add_argument("--luma_factor", type=int, default=4, help="lightness pixels per chroma cell along each axis")
    model.add_argument("--chroma_scale", type=float, default=40.0, help="a*, b* are divided by this, CIELAB units")
    model.add_argument("--image_encoder", help="folder or Hub name of a frozen transformers vision model (optional)")
    model.add_argument(
        "--encoder_scale", type=int,
        help="the image encoder sees each photo enlarged so many times; default: 1, or as --init_from has it",
    )  # fmt: skip
    model.add_argument("--encoder_layers", type=int, nargs="+", default=[11, 16], help="its hidden states to use")
    model.add_argument("--init_from", help="warm-start from this pipeline (folder or Hub name), with its model flags")

    diffusion = parser.add_argument_group("diffusion")
    diffusion.add_argument(
        "--objective", choices=["diffusion", "regression", "distillation"], default="diffusion",
        help="regression: the same network predicts mean chroma in one pass, as a baseline to compare with; "
        "distillation: a copy of --init_from learns to do its work in fewer steps",
    )  # fmt: skip
    diffusion.add_argument(
        "--student_steps", type=int, default=4, help="denoising steps after --objective distillation"
    )
    diffusion.add_argument("--teacher_steps", type=int, default=8, help="of --init_from in distillation; a multiple")
    diffusion.add_argument(
        "--teacher_guidance", type=float, help="guidance scale of --init_from in distillation; default: its own"
    )
    diffusion.add_argument("--num_train_timesteps", type=int, default=1000, help="T, length of the forward process")
    diffusion.add_argument(
        "--beta_schedule", choices=["linear", "scaled_linear", "squaredcos_cap_v2"], default="squaredcos_cap_v2",
        help="noise schedule; squaredcos_cap_v2 is the cosine one",
    )  # fmt: skip
    diffusion.add_argument(
        "--prediction_type", choices=["v_prediction", "epsilon"], default="v_prediction", help="what the UNet predicts"
    )
    diffusion.add_argument(
        "--zero_terminal_snr", action=argparse.BooleanOptionalAction, default=None,
        help="rescale the schedule so that x_T is pure noise; on for v_prediction, off for epsilon",
    )  # fmt: skip
    diffusion.add_argument("--snr_gamma", type=float, help="min-SNR weighting with this gamma (5 is usual)")

    diffusion.add_argument(
        "--condition_dropout", type=float, default=0.0,
        help="share of training photos of which the UNet is told nothing, for guidance against it",
    )  # fmt: skip
    diffusion.add_argument(
        "--feature_dropout", type=float, default=0.0,
        help="share of training photos of which the UNet is told the lightness but no features of the image encoder",
    )  # fmt: skip

    optimization = parser.add_argument_group("optimization")
    optimization.add_argument("--train_batch_size", type=int, default=32, help="photos a process and forward pass")
    optimization.add_argument("--gradient_accumulation_steps", type=int, default=1, help="forward passes a step")
    optimization.add_argument("--max_train_steps", type=int, default=10_000, help="optimizer steps in all")
    optimization.add_argument("--max_train_minutes", type=float, help="stop (resumably) after this many minutes")
    optimization.add_argument("--learning_rate", type=float, default=5e-4, help="after the warm-up")
    optimization.add_argument("--lr_warmup_steps", type=int, default=500, help="steps of linear warm-up")
    optimization.add_argument(
        "--lr_decay_steps", type=int, help="last steps, with cosine decay to 0; default: all after the warm-up"
    )
    optimization.add_argument("--weight_decay", type=float, default=1e-2, help="AdamW's")
    optimization.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    optimization.add_argument("--ema_decay", type=float, default=0.999, help="of the averaged weights, a step")
    optimization.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")
    add("--seed", type=int, default=0, help="of everything that is drawn")

    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default="runs/colorization", help="checkpoints, logs and the final pipeline")
    output.add_argument("--checkpointing_steps", type=int, default=500, help="steps between checkpoints")
    output.add_argument("--checkpoints_total_limit", type=int, default=2, help="checkpoints kept")
    output.add_argument("--resume_from_checkpoint", help="'latest' or a checkpoint folder")
    output.add_argument("--validation_steps", type=int, default=500, help="steps between validation losses")
    output.add_argument("--sample_steps", type=int, default=1000, help="steps between contact sheets; 0: none")
    output.add_argument(
        "--push_to_hub", action="store_true",
        help="upload every checkpoint's pipeline, with its card and newest contact sheet, beside the training",
    )  # fmt: skip
    output.add_argument(
        "--hub_model_id", help="repository to push to: user/name; log in by `hf auth login` or HF_TOKEN"
    )
    output.add_argument("--hub_private_repo", action="store_true", help="make that repository for its owner only")
    output.add_argument("--report_to", default="tensorboard", choices=["tensorboard", "none"], help="tracker")

    args = parser.parse_args(argv)
    if args.zero_terminal_snr is None:
        args.zero_terminal_snr = args.prediction_type == "v_prediction"
    if args.lr_decay_steps is None:
        args.lr_decay_steps = max(0, args.max_train_steps - args.lr_warmup_steps)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse what can't work, before anything is loaded. Raises ``ValueError`` with the remedy."""
    if (args.dataset_name is None) == (args.train_data is None):
        raise ValueError("give exactly one of --dataset_name and --train_data")
    if args.validation_split and not args.dataset_name:
        raise ValueError("--validation_split belongs to --dataset_name; with --train_data use --validation_data")
    if args.validation_split and args.validation_data:
        raise ValueError("give --validation_split or --validation_data, not both")
    if args.objective != "diffusion" and args.snr_gamma is not None:
        raise ValueError(
            f"--snr_gamma weights the loss of --objective diffusion, not of {args.objective}; leave it out"
        )
    if args.objective == "distillation":
        check_distillation(args)
    if min(args.condition_dropout, args.feature_dropout) < 0 or args.condition_dropout + args.feature_dropout >= 1:
        raise ValueError(
            f"--condition_dropout {args.condition_dropout} and --feature_dropout {args.feature_dropout} must be at "
            "least 0 and leave some photos whole (a sum below 1)"
        )
    if args.objective != "diffusion" and (args.condition_dropout or args.feature_dropout):
        raise ValueError(
            f"--condition_dropout and --feature_dropout serve guidance, which --objective {args.objective} has not"
        )
    if args.prediction_type == "epsilon" and args.zero_terminal_snr:
        raise ValueError(
            "--zero_terminal_snr needs --prediction_type v_prediction: at SNR 0 the input is the noise, and "
            "predicting it teaches nothing about the photo"
        )
    levels = len(PRESETS[args.preset]["block_out_channels"])
    stride = args.luma_factor * 2 ** (levels - 1)
    if args.luma_factor < 1 or args.resolution % stride:
        raise ValueError(
            f"--resolution {args.resolution} isn't divisible by {stride} (--luma_factor {args.luma_factor} times the "
            f"stride of --preset {args.preset})"
        )
    if args.init_from and args.image_encoder:
        raise ValueError("--init_from brings its own image encoder; leave --image_encoder out")
    if args.encoder_scale is not None and args.encoder_scale < 1:
        raise ValueError(f"--encoder_scale must be at least 1, got {args.encoder_scale}")
    if args.push_to_hub != bool(args.hub_model_id) or (args.hub_private_repo and not args.push_to_hub):
        raise ValueError("--push_to_hub needs --hub_model_id user/name, and the --hub_... flags need --push_to_hub")
    if args.hub_model_id:
        check_repo_id(args.hub_model_id)
    if args.lr_decay_steps + args.lr_warmup_steps > args.max_train_steps:
        raise ValueError(
            f"--lr_warmup_steps {args.lr_warmup_steps} and --lr_decay_steps {args.lr_decay_steps} don't fit into "
            f"--max_train_steps {args.max_train_steps}"
        )
    if args.extra_validation_data and not args.extra_data:
        raise ValueError("--extra_validation_data belongs to --extra_data; give both, or --validation_data alone")
    if not 0 < args.extra_share < 1:
        raise ValueError(f"--extra_share {args.extra_share} must lie between 0 and 1")
    if not 0 <= args.film_probability <= 1:
        raise ValueError(f"--film_probability {args.film_probability} must lie in [0, 1]")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"--ema_decay {args.ema_decay} must lie in [0, 1)")
    if args.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed_precision fp16 needs a GPU; on this machine use bf16 or no")
    at_least = dict(
        train_batch_size=1, gradient_accumulation_steps=1, max_train_steps=1, checkpointing_steps=1,
        validation_steps=1, checkpoints_total_limit=1, num_train_timesteps=2, validation_photos=1, sample_steps=0,
        lr_warmup_steps=0, lr_decay_steps=0, dataloader_num_workers=0, seed=0,
    )  # fmt: skip
    for name, least in at_least.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least {least}")
    for name in ("learning_rate", "max_grad_norm", "chroma_scale", "snr_gamma", "max_train_minutes"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} {value} must be above 0")


def check_distillation(args: argparse.Namespace) -> None:
    """Raises ``ValueError`` if the teacher and its student can't work together."""
    if not args.init_from:
        raise ValueError("--objective distillation needs a teacher: give its pipeline by --init_from")
    if args.prediction_type != "v_prediction":
        raise ValueError("--objective distillation needs --prediction_type v_prediction: few steps start at SNR 0")
    if not 1 <= args.student_steps < args.teacher_steps or args.teacher_steps % args.student_steps:
        raise ValueError(
            f"--teacher_steps {args.teacher_steps} must be a multiple (2 times or more) of --student_steps "
            f"{args.student_steps}"
        )
    if args.num_train_timesteps % args.teacher_steps:
        raise ValueError(
            f"--num_train_timesteps {args.num_train_timesteps} isn't divisible by --teacher_steps {args.teacher_steps}"
        )


def open_sources(args: argparse.Namespace) -> tuple[PhotoSource, PhotoSource | None]:
    """Training and validation photos; None for the latter when they are to be held out from the former."""
    if args.dataset_name:

        def load(split: str) -> PhotoSource:
            return open_hub_source(
                args.dataset_name, config=args.dataset_config_name, split=split, image_column=args.image_column
            )

        training = load(args.train_split)
        if args.validation_split:
            return training, load(args.validation_split)
    else:
        training = open_source(args.train_data, image_column=args.image_column)
    if args.validation_data:
        return training, open_source(args.validation_data, image_column=args.image_column)
    return training, None


@dataclass
class Datasets:
    """The photos of a run; ``extra`` and ``extra_validation`` are None unless asked for."""

    training: ColorizationDataset
    validation: ColorizationDataset
    extra: ColorizationDataset | None = None
    extra_validation: ColorizationDataset | None = None


def make_datasets(args: argparse.Namespace, *, luma_factor: int, progress: bool) -> Datasets:
    def make(source: PhotoSource, indices: Sequence[int] | None = None, *, train: bool) -> ColorizationDataset:
        dataset = ColorizationDataset(
            source,
            resolution=args.resolution,
            luma_factor=luma_factor,
            augment=train,
            film_probability=args.film_probability if train else 0.0,
            seed=args.seed,
            indices=indices,
            cache_bytes=int(args.cache_gib * 2**30),
            progress=progress,
        )
        logger.info("%s: %d photos; %s", "training" if train else "validation", len(dataset), dataset.skipped)
        return dataset

    def first(source: PhotoSource) -> range:
        return range(min(args.validation_photos, len(source)))

    training, validation = open_sources(args)
    if validation is None:
        held = min(args.validation_photos, max(1, len(training) // 10))
        kept, held_out = hold_out(len(training), held, seed=derive_seed(args.seed, _SPLIT))
        made = Datasets(make(training, kept, train=True), make(training, held_out, train=False))
    else:
        made = Datasets(make(training, train=True), make(validation, first(validation), train=False))
    if args.extra_data:
        made.extra = make(open_source(args.extra_data, image_column=args.image_column), train=True)
    if args.extra_validation_data:
        source = open_source(args.extra_validation_data, image_column=args.image_column)
        made.extra_validation = make(source, first(source), train=False)
    return made


def build_pipeline(args: argparse.Namespace) -> ColorizationPipeline:
    """The pipeline to train: fresh from the model flags, or the one of ``--init_from``."""
    scheduler = DDPMScheduler(
        num_train_timesteps=args.num_train_timesteps,
        beta_schedule=args.beta_schedule,
        prediction_type=args.prediction_type,
        rescale_betas_zero_snr=args.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample_range=_MAX_CHROMA / args.chroma_scale,
    )
    if args.init_from:
        pipe = ColorizationPipeline.from_pretrained(args.init_from)
        scheduler.register_to_config(clip_sample_range=_MAX_CHROMA / pipe.config.chroma_scale)
        pipe.register_modules(scheduler=scheduler)
        if args.encoder_scale is not None:
            pipe.register_to_config(encoder_scale=args.encoder_scale)
        if args.objective == "distillation":
            pipe.register_modules(scheduler=DDIMScheduler.from_config(scheduler.config))
            pipe.register_to_config(default_steps=args.student_steps, default_guidance=1.0, chroma_spread=None)
        elif args.objective == "diffusion" and pipe.config.default_guidance != 1 and not args.condition_dropout:
            logger.warning(
                "%s is drawn with guidance %g, which training without --condition_dropout slowly spoils; add "
                "--condition_dropout 0.1", args.init_from, pipe.config.default_guidance,
            )  # fmt: skip
        pipe.register_to_config(objective="regression" if args.objective == "regression" else "diffusion")
        return pipe
    encoder: PreTrainedModel | None = None
    if args.image_encoder:
        encoder = AutoModel.from_pretrained(args.image_encoder, dtype=torch.float32).eval()
    features = condition_channels(args.luma_factor, encoder, args.encoder_layers) - args.luma_factor**2
    unet = build_unet(
        args.preset,
        luma_factor=args.luma_factor,
        feature_channels=features,
        sample_size=args.resolution // args.luma_factor,
    )
    return ColorizationPipeline(
        unet=unet,
        scheduler=scheduler,
        image_encoder=encoder,
        luma_factor=args.luma_factor,
        chroma_scale=args.chroma_scale,
        working_size=args.resolution,
        encoder_layers=tuple(args.encoder_layers),
        encoder_scale=args.encoder_scale or 1,
        objective=args.objective,
    )


def make_teacher(args: argparse.Namespace, accelerator: Accelerator) -> Teacher:
    """The frozen network of ``--init_from``, with its guidance, as what the student must reach."""
    pipe = ColorizationPipeline.from_pretrained(args.init_from)
    kind = pipe.scheduler.config.prediction_type
    if pipe.config.objective != "diffusion" or kind != "v_prediction":
        raise SystemExit(
            f"--init_from {args.init_from} can't teach: its objective is {pipe.config.objective}, it predicts {kind}; "
            "--objective distillation needs a diffusion checkpoint with v_prediction"
        )
    pipe.unet.to(accelerator.device).eval().requires_grad_(False)
    scale = pipe.config.default_guidance if args.teacher_guidance is None else args.teacher_guidance

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return pipe.predict(noisy, timesteps, condition=condition, guidance_scale=scale)

    return Teacher(predict, student_steps=args.student_steps, teacher_steps=args.teacher_steps)


def draw_noise(shape: torch.Size, train_timesteps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normal noise of ``shape`` and timesteps ``[B]``, spread evenly over [0, T) from a random start.

    The even spread (Kingma et al. 2021, appendix I.1) leaves each timestep uniform and lowers the loss's variance.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    spread = (torch.rand(1, generator=generator) + torch.arange(shape[0]) / shape[0]) % 1
    return noise, (spread * train_timesteps).long()


def objective_loss(
    pipe: ColorizationPipeline,
    unet: Any,
    *,
    chroma: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None = None,
    teacher: Teacher | None = None,
) -> torch.Tensor:
    """The loss of the run's objective: :func:`diffusion_loss`, or with a teacher :func:`distillation_loss`, or the
    baseline's :func:`regression_loss`."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return unet(x, t).sample

    if pipe.config.objective == "regression":
        return regression_loss(predict, chroma=chroma, condition=condition)
    given = dict(chroma=chroma, condition=condition, noise=noise, timesteps=timesteps)
    if teacher is not None:
        return distillation_loss(predict, teacher, pipe.scheduler, **given)
    return diffusion_loss(predict, pipe.scheduler, **given, snr_gamma=snr_gamma)


@torch.no_grad()
def validation_loss(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pipe: ColorizationPipeline,
    unet: Any,
    dataset: Any,
    teacher: Teacher | None = None,
) -> float:
    """Mean loss over the validation photos on noise and timesteps that are the same at every call; never weighted."""
    batches = range(0, len(dataset), args.train_batch_size)
    total = 0.0
    for number, start in enumerate(batches):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        batch = collate([dataset[0, i] for i in range(start, min(start + args.train_batch_size, len(dataset)))])
        chroma = batch["chroma"].to(accelerator.device) / pipe.config.chroma_scale
        noise, timesteps = draw_noise(
            chroma.shape, pipe.scheduler.config.num_train_timesteps, derive_seed(args.seed, _VALIDATION, number)
        )
        with accelerator.autocast():
            condition = pipe.condition(batch["lightness"].to(accelerator.device))
        loss = objective_loss(
            pipe,
            unet,
            chroma=chroma,
            condition=condition.float(),
            noise=noise.to(chroma.device),
            timesteps=timesteps.to(chroma.device),
            teacher=teacher,
        )
        total += loss.item() * len(chroma)
    return accelerator.reduce(torch.tensor(total, device=accelerator.device), "sum").item() / len(dataset)


@torch.no_grad()
def contact_sheet(pipe: ColorizationPipeline, dataset: ColorizationDataset, *, photos: int, seed: int) -> Image.Image:
    """Validation photos as triples grey, result, truth, four triples to a row."""
    chosen = [len(dataset) * i // photos for i in range(min(photos, len(dataset)))]
    truths = [dataset.lab(index) for index in chosen]
    grays = [lightness_to_gray(lab[:1]) for lab in truths]
    generator = torch.Generator().manual_seed(derive_seed(seed, _SAMPLES))
    steps = min(_SAMPLE_STEPS, pipe.config.default_steps)
    results = pipe(grays, num_inference_steps=steps, generator=generator, output_type="pt").images
    tiles = [
        torch.cat((gray.expand(3, -1, -1), result, lab_to_rgb(lab)), dim=-1)
        for gray, result, lab in zip(grays, results, truths, strict=True)
    ]
    tiles += [torch.ones_like(tiles[0])] * (-len(tiles) % 4)
    rows = [torch.cat(tiles[i : i + 4], dim=-1) for i in range(0, len(tiles), 4)]
    sheet = torch.cat(rows, dim=-2).clamp(0, 1).movedim(0, -1)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for library in ("accelerate", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    started = time.monotonic()

    # 1. Devices, processes, precision
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    if not accelerator.is_main_process:
        logger.setLevel(logging.ERROR)
        diffusers.utils.logging.set_verbosity_error()
    run = {**vars(args), "num_processes": accelerator.num_processes}
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    state: dict[str, Any] = json.loads((checkpoint / "training_state.json").read_text()) if checkpoint else {"step": 0}
    refuse_overwriting(output_dir, run, state, resuming=args.resume_from_checkpoint is not None)
    background: BackgroundPush | None = None
    if args.push_to_hub and accelerator.is_main_process:
        background = open_background_push(args, output_dir)

    # 2. Model, then photos: a wrong flag shows before the long reading
    set_seed(args.seed)
    pipe = build_pipeline(args)
    pipe.set_progress_bar_config(disable=True)
    unet = pipe.unet.train().requires_grad_(True)
    if pipe.image_encoder is not None:
        # Depthwise convolutions run 1.5 x as fast with channels last on a CPU (measured); the result is the same.
        pipe.image_encoder.to(accelerator.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    teacher = make_teacher(args, accelerator) if args.objective == "distillation" else None
    photos = make_datasets(args, luma_factor=pipe.config.luma_factor, progress=accelerator.is_local_main_process)

    # 3. Optimizer and averaged weights
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    bare_unet = accelerator.unwrap_model(unet, keep_torch_compile=False)
    pipe.unet = bare_unet
    ema = EMAModel(bare_unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)

    # 4. Where an earlier run stopped
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        logger.info("resumed from %s", checkpoint)
    step = state["step"]
    photos_a_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "run.json").write_text(json.dumps(run, indent=2))
        if args.report_to != "none":
            plain = {name: value for name, value in run.items() if isinstance(value, (int, float, str))}
            accelerator.init_trackers("train", config=plain)
    logger.info(
        "%.1f M trainable parameters, %d input channels; %d photos a step; steps %d to %d; run settings in %s",
        sum(p.numel() for p in bare_unet.parameters()) / 1e6, bare_unet.config.in_channels, photos_a_step, step,
        args.max_train_steps, output_dir / "run.json",
    )  # fmt: skip

    batches = StepBatches(
        len(photos.training),
        batch_size=args.train_batch_size,
        start=step * args.gradient_accumulation_steps,
        stop=args.max_train_steps * args.gradient_accumulation_steps,
        seed=args.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        extra=len(photos.extra) if photos.extra else 0,
        extra_share=args.extra_share,
    )
    loader = DataLoader(
        JoinedDataset(photos.training, photos.extra) if photos.extra else photos.training, batch_sampler=batches,
        collate_fn=collate, num_workers=args.dataloader_num_workers, pin_memory=accelerator.device.type == "cuda",
    )  # fmt: skip
    stop_signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: stop_signals.append(caught))

    def save() -> None:
        saved = {**run, **state, "step": step, "photos_seen": step * photos_a_step}
        save_checkpoint(accelerator, output_dir, saved, limit=args.checkpoints_total_limit)
        if background:
            with ema_weights(ema, bare_unet):
                background.push(pipe, f"Step {step} of {args.max_train_steps}, {step * photos_a_step} photos seen")

    def validate() -> None:
        with ema_weights(ema, bare_unet):
            bare_unet.eval()
            sets = {"loss": photos.validation}
            if args.film_probability:
                sets["film_loss"] = photos.validation.through_film()
            if photos.extra_validation:
                sets["extra_loss"] = photos.extra_validation
            losses = {
                name: validation_loss(args, accelerator, pipe, bare_unet, one, teacher) for name, one in sets.items()
            }
            if accelerator.is_main_process and args.sample_steps and step % args.sample_steps == 0:
                sheet = contact_sheet(pipe, photos.validation, photos=24, seed=args.seed)
                (output_dir / "samples").mkdir(exist_ok=True)
                sheet.save(output_dir / "samples" / f"step-{step:07d}.png")
            if losses["loss"] < state.get("best_loss", math.inf):
                state["best_loss"] = losses["loss"]
                if accelerator.is_main_process:
                    save_pipeline(pipe, output_dir / "best")
            bare_unet.train()
        accelerator.log({f"validation_{name}": value for name, value in losses.items()}, step=step)
        shown = ", ".join(f"{name} {value:.5f}" for name, value in losses.items())
        logger.info("step %d, %d photos seen: validation %s", step, step * photos_a_step, shown)
        if accelerator.is_main_process:
            with (output_dir / "validation.jsonl").open("a") as file:
                seconds = round(time.monotonic() - started)
                row = {"step": step, "photos_seen": step * photos_a_step, **losses, "seconds": seconds}
                file.write(json.dumps(row) + "\n")

    # 5. The training loop
    bar = tqdm(total=args.max_train_steps, initial=step, desc="steps", disable=not accelerator.is_local_main_process)
    micro = batches.start
    mean_loss = 0.0
    for batch in loader:
        lightness = batch["lightness"].to(accelerator.device)  # [B, 1, R, R], L* in [0, 100]
        chroma = batch["chroma"].to(accelerator.device) / pipe.config.chroma_scale  # [B, 2, r, r]
        noise, timesteps = draw_noise(
            chroma.shape,
            pipe.scheduler.config.num_train_timesteps,
            derive_seed(args.seed, _NOISE, micro, accelerator.process_index),
        )
        with torch.no_grad(), accelerator.autocast():
            condition = pipe.condition(lightness).float()  # [B, C, r, r]
        if args.condition_dropout or args.feature_dropout:
            seed = derive_seed(args.seed, _DROPOUT, micro, accelerator.process_index)
            draws = torch.rand(len(condition), generator=torch.Generator().manual_seed(seed)).to(condition.device)
            condition = drop_condition(
                condition,
                draws,
                luma_channels=pipe.config.luma_factor**2,
                everything=args.condition_dropout,
                features=args.feature_dropout,
            )
        with accelerator.accumulate(unet):
            loss = objective_loss(
                pipe,
                unet,
                chroma=chroma,
                condition=condition,
                noise=noise.to(chroma.device),
                timesteps=timesteps.to(chroma.device),
                snr_gamma=args.snr_gamma,
                teacher=teacher,
            )
            accelerator.backward(loss)
            mean_loss += loss.item() / args.gradient_accumulation_steps
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        step,
                        base=args.learning_rate,
                        warmup=args.lr_warmup_steps,
                        decay=args.lr_decay_steps,
                        total=args.max_train_steps,
                    )
            optimizer.step()
            optimizer.zero_grad()
        micro += 1
        if not accelerator.sync_gradients:
            continue

        step += 1
        ema.step(bare_unet.parameters())
        if not math.isfinite(mean_loss):
            raise RuntimeError(f"loss {mean_loss} at step {step}; lower --learning_rate or use --mixed_precision no")
        bar.update()
        bar.set_postfix(loss=f"{mean_loss:.4f}")
        accelerator.log({"loss": mean_loss, "learning_rate": optimizer.param_groups[0]["lr"]}, step=step)
        mean_loss = 0.0

        out_of_time = args.max_train_minutes and time.monotonic() - started > 60 * args.max_train_minutes
        stopping = any_process(accelerator, bool(stop_signals or out_of_time))
        last = step == args.max_train_steps
        if step % args.validation_steps == 0 or last:
            validate()
        if step % args.checkpointing_steps == 0 or last or stopping:
            save()
        if stopping and not last:
            break
    bar.close()
    accelerator.end_training()

    # 6. The pipeline, with averaged weights
    if accelerator.is_main_process:
        with ema_weights(ema, bare_unet):
            pipe.save_pretrained(output_dir)
        logger.info("step %d of %d; the pipeline is in %s", step, args.max_train_steps, output_dir)
    if background:
        background.finish(_STOPPED_PUSH_SECONDS if stop_signals else None)
    return 128 + stop_signals[0] if stop_signals else 0


def open_background_push(args: argparse.Namespace, output_dir: Path) -> BackgroundPush:
    """The repository, made or found before hours of training. Raises ``SystemExit`` if it can't be written to."""
    advice = "choose another --hub_model_id, or go on with the run that made them by --resume_from_checkpoint latest"
    try:
        open_repo(
            args.hub_model_id,
            private=args.hub_private_repo,
            advice_if_used=None if args.resume_from_checkpoint else advice,
        )
    except PushError as error:
        raise SystemExit(f"--push_to_hub: {error}") from None
    return BackgroundPush(args.hub_model_id, output_dir)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True on every process if it is true on one, so that all leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item())


def refuse_overwriting(output_dir: Path, run: dict[str, Any], state: dict[str, Any], *, resuming: bool) -> None:
    """Raises ``SystemExit`` if this run would overwrite another, or isn't the one that it resumes."""
    existing = list_checkpoints(output_dir)
    if existing and not resuming:
        raise SystemExit(
            f"--output_dir {output_dir} holds a run at step {checkpoint_step(existing[-1])}; go on with it by "
            "--resume_from_checkpoint latest, or choose another folder"
        )
    changed = [name for name in _FIXED_ON_RESUME if name in state and state[name] != run[name]]
    if changed:
        values = ", ".join(f"{name}: {state[name]} then, {run[name]} now" for name in changed)
        raise SystemExit(f"can't resume with other settings ({values}); use the same, or --init_from in a new folder")


if __name__ == "__main__":
    raise SystemExit(main())
