"""The options of a training run: grouped dataclasses that check themselves, and the command line made from them.

A field's metadata hold its help text, its bounds and whether a resumed run must keep it (``fixed``). What describes
the model has a default of None and a value for a model that starts from nothing (``fresh``): :meth:`Options.resolved`
takes the value of ``--init_from``'s checkpoint if there is one.
"""

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# name        channels a level        layers  norm groups   parameters (4 x 4 lightness, no encoder)
PRESETS: dict[str, dict[str, Any]] = {
    "base": dict(block_out_channels=(32, 64, 128, 256), layers_per_block=1, norm_num_groups=8),  # 10.7 M
    "wide": dict(block_out_channels=(64, 128, 256, 256), layers_per_block=1, norm_num_groups=16),  # 17.2 M
    "tiny": dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),  # 0.05 M, for tests
}


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a group.

    Metadata: ``least``, ``most``, ``above``, ``below`` (bounds); ``choices``; ``fixed`` (a resumed run must keep it);
    ``fresh`` (value of a model from nothing, where the default is None); ``changeable`` (may differ from the
    checkpoint's); ``metavar``.
    """
    return field(default=default, metadata={"help": help, **metadata})


class Group:
    """Options that belong together. Raises ``ValueError`` with the remedy if one is impossible."""

    title = ""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            value, meta = getattr(self, one.name), one.metadata
            if value is None or isinstance(value, (str, bool)):
                continue
            for number in value if isinstance(value, tuple) else [value]:
                if isinstance(number, (int, float)):
                    check_bounds(one.name, number, meta)
        self.check()

    def check(self) -> None:
        """What no bound of a single option says."""


def check_bounds(name: str, value: float, meta: Mapping[str, Any]) -> None:
    if "least" in meta and not value >= meta["least"]:
        raise ValueError(f"--{name} {value} must be at least {meta['least']}")
    if "most" in meta and not value <= meta["most"]:
        raise ValueError(f"--{name} {value} must be at most {meta['most']}")
    if "above" in meta and not value > meta["above"]:
        raise ValueError(f"--{name} {value} must be above {meta['above']}")
    if "below" in meta and not value < meta["below"]:
        raise ValueError(f"--{name} {value} must be below {meta['below']}")


@dataclass(frozen=True, kw_only=True)
class DataOptions(Group):
    title = "photos: one of --train_data, --source and --dataset_name"

    train_data: tuple[str, ...] | None = option(
        None, "an image folder, parquet files (globs allowed), or the folder of the Kaggle arrays", metavar="PATH"
    )
    validation_data: tuple[str, ...] | None = option(
        None, "the same for validation; by default photos are held out", metavar="PATH"
    )
    source: dict[str, tuple[str, ...]] | None = option(
        None, "several sources by name, each as --train_data; a name may come again", metavar="NAME=PATH"
    )
    mix: dict[str, float] | None = option(
        None, "weights of the sources in the photos seen; default: by their number of photos",
        metavar="NAME=WEIGHT", fixed=True,
    )  # fmt: skip
    validation_source: dict[str, tuple[str, ...]] | None = option(
        None, "validation photos of a source; by default some of its own are held out", metavar="NAME=PATH"
    )
    dataset_name: str | None = option(None, "data set on the Hub, e.g. user/photos; its split train")
    validation_split: str | None = option(None, "split of the Hub data set for validation")
    image_column: str = option("image", "column with the photos (Hub and parquet)")
    validation_photos: int = option(
        400, "validation photos of a source, at most; held out at most 10 %%", least=1, fixed=True
    )
    smallest_crop: float = option(
        0.6, "edge of the smallest random crop over a photo's shorter side", above=0, most=1, fixed=True
    )
    soft_probability: float = option(
        0.3, "share of training photos whose lightness is scaled down and up again", least=0, most=1, fixed=True
    )
    film_probability: float = option(
        0.35, "share of training photos seen through a random old film: other emulsions, fading, grain, scratches",
        least=0, most=1, fixed=True,
    )  # fmt: skip
    cache_dir: str = option(
        str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "colorized" / "photos"),
        "folder that keeps decoded photos for this run and the next",
    )
    cache_gib: float = option(4.0, "size of --cache_dir, GiB; further photos are decoded at each use", least=0)
    dataloader_num_workers: int = option(0, "processes that prepare photos", least=0)

    def check(self) -> None:
        if [self.train_data, self.source, self.dataset_name].count(None) != 2:
            raise ValueError("give exactly one of --train_data, --source and --dataset_name")
        if self.validation_split and not self.dataset_name:
            raise ValueError("--validation_split belongs to --dataset_name; with --train_data use --validation_data")
        if self.validation_split and self.validation_data:
            raise ValueError("give --validation_split or --validation_data, not both")
        if self.validation_data and self.source:
            raise ValueError("--validation_data belongs to --train_data; with --source use --validation_source")
        for flag, named in (("mix", self.mix), ("validation_source", self.validation_source)):
            for name in named or ():
                if name not in (self.source or {}):
                    raise ValueError(
                        f"--{flag} {name}: no --source has this name ({', '.join(self.source or ['none'])})"
                    )
        if self.mix:
            for name in self.source or ():
                if name not in self.mix:
                    raise ValueError(f"--mix gives no weight for --source {name}")
            for name, weight in self.mix.items():
                check_bounds(f"mix {name}", weight, {"above": 0})


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Group):
    title = "model"

    init_from: str | None = option(None, "warm-start from this pipeline (folder or Hub name), which settles the model")
    preset: str | None = option(None, "size of the UNet", fresh="base", choices=list(PRESETS), fixed=True)
    resolution: int | None = option(
        None, "edge of the training crop, pixels", fresh=128, changeable=True, least=1, fixed=True
    )
    luma_factor: int | None = option(
        None, "lightness pixels per chroma cell along each axis", fresh=4, least=1, fixed=True
    )
    chroma_scale: float | None = option(
        None, "a*, b* are divided by this, CIELAB units", fresh=40.0, above=0, fixed=True
    )
    detail_scales: tuple[float, ...] | None = option(
        None, "draw chroma on a grid twice as fine as the UNet's: its differences over edges and along diagonals are "
        "divided by these two numbers, CIELAB units", fresh=None, changeable=True, above=0, fixed=True,
    )  # fmt: skip
    image_encoder: str | None = option(None, "folder or Hub name of a frozen transformers vision model", fixed=True)
    encoder_layers: tuple[int, ...] | None = option(None, "its hidden states to use", fresh=(11, 16), fixed=True)
    encoder_scale: int | None = option(
        None, "the image encoder sees each photo enlarged so many times", fresh=1, changeable=True, least=1, fixed=True
    )

    def check(self) -> None:
        if self.init_from and self.image_encoder:
            raise ValueError("--init_from brings its own image encoder; leave --image_encoder out")
        if self.detail_scales is not None and len(self.detail_scales) != 2:
            raise ValueError(f"--detail_scales takes two numbers, not {len(self.detail_scales)}")
        if self.preset is None or self.resolution is None or self.luma_factor is None:
            return
        if self.detail_scales is not None and self.luma_factor % 2:
            raise ValueError(f"--detail_scales needs an even --luma_factor, not {self.luma_factor}")
        stride = self.luma_factor * 2 ** (len(PRESETS[self.preset]["block_out_channels"]) - 1)
        if self.resolution % stride:
            raise ValueError(
                f"--resolution {self.resolution} isn't divisible by {stride} (--luma_factor {self.luma_factor} times "
                f"the stride of --preset {self.preset})"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(Group):
    title = "objective"

    objective: str = option(
        "diffusion", "regression: the same network predicts mean chroma in one pass, as a baseline to compare with",
        choices=["diffusion", "regression"], fixed=True,
    )  # fmt: skip
    prediction_type: str | None = option(
        None, "what the UNet predicts; for v the schedule ends in pure noise (zero terminal SNR)",
        fresh="v_prediction", choices=["v_prediction", "epsilon"], fixed=True,
    )  # fmt: skip
    beta_schedule: str | None = option(
        None, "noise schedule; squaredcos_cap_v2 is the cosine one",
        fresh="squaredcos_cap_v2", choices=["linear", "scaled_linear", "squaredcos_cap_v2"], fixed=True,
    )  # fmt: skip
    num_train_timesteps: int | None = option(None, "T, length of the forward process", fresh=1000, least=2, fixed=True)
    snr_gamma: float | None = option(None, "min-SNR weighting with this gamma (5 is usual)", above=0, fixed=True)
    condition_dropout: float = option(
        0.0, "share of training photos whose condition is hidden, for guidance", least=0, below=1, fixed=True
    )
    last_stage_steps: int | None = option(
        None, "last stage of a checkpoint: two thirds of the photos are drawn in so many steps and trained to look "
        "true to the image encoder; the pipeline then draws in these steps, without guidance", least=1, fixed=True,
    )  # fmt: skip
    chroma_weight: float | None = option(
        None, "in the last stage, of the error of the drawn chroma; default 0.25", least=0, fixed=True
    )
    perceptual_weight: float | None = option(
        None, "in the last stage, of the distance to the true photo's features; default 0.1", least=0, fixed=True
    )
    adversarial_weight: float | None = option(
        None, "in the last stage, of the discriminator's judgement; default 0.05", least=0, fixed=True
    )

    def check(self) -> None:
        if self.objective != "diffusion":
            for name in ("snr_gamma", "condition_dropout", "last_stage_steps"):
                if getattr(self, name):
                    raise ValueError(f"--{name} serves --objective diffusion, not {self.objective}; leave it out")
        for name, usual in (("chroma_weight", 0.25), ("perceptual_weight", 0.1), ("adversarial_weight", 0.05)):
            if self.last_stage_steps is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} serves the last stage; add --last_stage_steps, or leave it out")
            if self.last_stage_steps is not None and getattr(self, name) is None:
                object.__setattr__(self, name, usual)


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions(Group):
    title = "optimization"

    train_batch_size: int = option(32, "photos a process and forward pass", least=1, fixed=True)
    gradient_accumulation_steps: int = option(1, "forward passes a step", least=1, fixed=True)
    max_train_steps: int = option(10_000, "optimizer steps in all", least=1)
    max_train_minutes: float | None = option(None, "stop (resumably) after this many minutes", above=0)
    optimizer: str = option(
        "adamw", "muon learns more from the same photos; a step takes a fifth longer on a processor",
        choices=["adamw", "muon"], fixed=True,
    )  # fmt: skip
    learning_rate: float = option(5e-4, "after the warm-up", above=0)
    lr_warmup_steps: int = option(500, "steps of linear warm-up", least=0)
    lr_decay_steps: int | None = option(
        None, "last steps, with cosine decay to 0; default: all after the warm-up", least=0
    )
    ema_decay: float = option(0.999, "of the averaged weights, a step", least=0, below=1, fixed=True)
    mixed_precision: str | None = option(None, "default: accelerate's", choices=["no", "fp16", "bf16"])
    seed: int = option(0, "of everything that is drawn", least=0, fixed=True)

    def check(self) -> None:
        if self.lr_decay_steps is None:
            object.__setattr__(self, "lr_decay_steps", max(0, self.max_train_steps - self.lr_warmup_steps))
        if (self.lr_decay_steps or 0) + self.lr_warmup_steps > self.max_train_steps:
            raise ValueError(
                f"--lr_warmup_steps {self.lr_warmup_steps} and --lr_decay_steps {self.lr_decay_steps} don't fit into "
                f"--max_train_steps {self.max_train_steps}"
            )
        if self.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("--mixed_precision fp16 needs a GPU; on this machine use bf16 or no")


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Group):
    title = "output"

    output_dir: str = option("runs/colorization", "checkpoints, logs and the final pipeline")
    checkpointing_steps: int = option(500, "steps between checkpoints", least=1)
    checkpoints_total_limit: int = option(2, "checkpoints kept", least=1)
    resume_from_checkpoint: str | None = option(None, "'latest' or a checkpoint folder")
    validation_steps: int = option(500, "steps between validation losses", least=1)
    sample_steps: int = option(1000, "steps between contact sheets; 0: none", least=0)
    push_to_hub: bool = option(
        False, "upload every checkpoint's pipeline, with its card and newest contact sheet, beside the training"
    )
    hub_model_id: str | None = option(None, "repository to push to: user/name; log in by `hf auth login` or HF_TOKEN")
    hub_private_repo: bool = option(False, "make that repository for its owner only")
    report_to: str = option("tensorboard", "tracker", choices=["tensorboard", "none"])

    def check(self) -> None:
        if self.hub_model_id and self.hub_model_id.count("/") != 1:
            raise ValueError(f"--hub_model_id {self.hub_model_id} must be user/name, or organization/name")
        if self.push_to_hub != bool(self.hub_model_id) or (self.hub_private_repo and not self.push_to_hub):
            raise ValueError(
                "--push_to_hub needs --hub_model_id user/name, and the --hub_... flags need --push_to_hub"
            )


_GROUPS: dict[str, Any] = {
    "data": DataOptions,
    "model": ModelOptions,
    "objective": ObjectiveOptions,
    "optimization": OptimizationOptions,
    "output": OutputOptions,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of a run."""

    data: DataOptions
    model: ModelOptions = ModelOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    optimization: OptimizationOptions = OptimizationOptions()
    output: OutputOptions = OutputOptions()

    def __post_init__(self) -> None:
        if self.objective.last_stage_steps is not None:
            if self.model.init_from is None:
                raise ValueError("--last_stage_steps goes on from a trained checkpoint; add --init_from")
            if self.optimization.train_batch_size < 2:
                raise ValueError(
                    "--last_stage_steps draws a part of each batch; --train_batch_size must be at least 2"
                )

    def resolved(self, checkpoint: Mapping[str, Any] | None = None) -> "Options":
        """The options with nothing left open about the model.

        Args:
            checkpoint: what ``--init_from``'s checkpoint settles, by the options' names; None: a fresh model.

        Raises:
            ValueError: if an option contradicts the checkpoint.
        """

        def resolve(group: Any) -> Any:
            found = {}
            for one in dataclasses.fields(group):
                value = getattr(group, one.name)
                if "fresh" not in one.metadata:
                    continue
                if checkpoint is None:
                    found[one.name] = one.metadata["fresh"] if value is None else value
                elif value is None or one.metadata.get("changeable"):
                    found[one.name] = checkpoint[one.name] if value is None else value
                elif value != checkpoint[one.name]:
                    raise ValueError(
                        f"--{one.name} {value} contradicts --init_from {self.model.init_from}, which has "
                        f"{checkpoint[one.name]}; leave it out, or train a fresh model"
                    )
            return dataclasses.replace(group, **found)

        return dataclasses.replace(self, model=resolve(self.model), objective=resolve(self.objective))

    def flat(self) -> dict[str, Any]:
        """Every option by its name, in JSON's types."""
        values = {name: value for group in _GROUPS for name, value in vars(getattr(self, group)).items()}
        return {name: _plain(value) for name, value in values.items()}


def fixed_on_resume() -> list[str]:
    """Options that a resumed run must keep: with another value it would not be the same run."""
    return [one.name for group in _GROUPS.values() for one in dataclasses.fields(group) if one.metadata.get("fixed")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def parse_options(argv: Sequence[str] | None = None, *, description: str | None = None) -> Options:
    """The options of a command line; an impossible one ends the program with status 2 and one line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    hints: dict[str, Any] = {}
    for group in _GROUPS.values():
        section = parser.add_argument_group(group.title)
        hints |= {name: _not_none(hint) for name, hint in typing.get_type_hints(group).items()}
        for one in dataclasses.fields(group):
            section.add_argument(f"--{one.name}", **_argument(one, hints[one.name]))
    given = vars(parser.parse_args(argv))
    try:
        values = {
            name: _gathered(hints[name], value, name) if isinstance(value, list) else value
            for name, value in given.items()
        }
        parts = {
            name: group(**{one.name: values[one.name] for one in dataclasses.fields(group) if one.name in values})
            for name, group in _GROUPS.items()
        }
        return Options(**parts)
    except ValueError as error:
        parser.error(str(error))


def _not_none(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    if not isinstance(hint, types.UnionType):
        return hint
    return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)


def _argument(one: "dataclasses.Field[Any]", hint: Any) -> dict[str, Any]:
    """How argparse reads a field of this type. What isn't given stays away, so that the dataclass has its default."""
    meta = one.metadata
    words: dict[str, Any] = {"help": _help(one), "default": argparse.SUPPRESS}
    if hint is bool:
        return {**words, "action": "store_true"}
    if choices := meta.get("choices"):
        return {**words, "choices": choices}
    words["metavar"] = meta.get("metavar") or {int: "N", float: "X", str: "TEXT"}.get(hint, "N")
    if typing.get_origin(hint) is dict:
        return {**words, "nargs": "+", "action": "extend", "type": _pair}
    if typing.get_origin(hint) is tuple:
        return {**words, "nargs": "+", "type": typing.get_args(hint)[0]}
    return {**words, "type": hint}


def _help(one: "dataclasses.Field[Any]") -> str:
    if "fresh" in one.metadata:
        value = one.metadata["fresh"]
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else value
        rest = "--init_from's" if one.metadata.get("changeable") else "--init_from's, which it may not contradict"
        return f"{one.metadata['help']} (default: {shown}, or {rest})"
    if one.default is None or isinstance(one.default, bool):
        return one.metadata["help"]
    return f"{one.metadata['help']} (default: {str(one.default).replace('%', '%%')})"


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{word!r} isn't of the form NAME=VALUE")
    return name, value


def _gathered(hint: Any, words: list[Any], flag: str) -> Any:
    """What argparse collected for a field of this type: a tuple, or a dictionary of NAME=VALUE words."""
    if typing.get_origin(hint) is tuple:
        return tuple(words)
    found: dict[str, Any] = {}
    for name, value in words:
        if typing.get_origin(typing.get_args(hint)[1]) is tuple:
            found[name] = (*found.get(name, ()), value)
        elif name in found:
            raise ValueError(f"--{flag} {name} is given twice")
        else:
            found[name] = float(value)
    return found
