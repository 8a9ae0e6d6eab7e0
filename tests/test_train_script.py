"""The training script, really run: ``accelerate launch`` and ``torchrun`` in subprocesses on a tiny model."""

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_encoder
from photos import make_folder, make_parquet
from PIL import Image
from safetensors.torch import load_file

import train_colorization
from colorized_pipeline import DEFAULT_CHECKPOINT, ColorizationPipeline
from colorized_pipeline.diffusion.pipeline import CODE_FILES
from colorized_pipeline.training.options import fixed_on_resume, parse_options

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "train_colorization.py")
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
LAUNCH += ["--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no", SCRIPT]
PLAIN = [sys.executable, SCRIPT]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"), 14)


def command(photos: Path, output: Path, *, launcher: list[str] = PLAIN, steps: int = 6, **flags: object) -> list[str]:
    settings: dict[str, object] = {
        "train_data": photos,
        "output_dir": output,
        "cache_dir": photos.parent / "cache",
        "preset": "tiny",
        "resolution": 16,
        "train_batch_size": 4,
        "max_train_steps": steps,
        "lr_warmup_steps": 2,
        "checkpointing_steps": 3,
        "checkpoints_total_limit": 9,
        "validation_steps": 3,
        "sample_steps": 3,
        "validation_photos": 2,
        **flags,
    }
    words = list(launcher)
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return words


def run(words: list[str], *, expect: int = 0, **environment: str) -> str:
    env = {**ENVIRONMENT, **environment}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stderr


def run_here(words: list[str], *, expect: int = 0) -> str:
    """The script's main in this process, which is faster: what it logs, and says when it ends with status 1."""
    assert words[: len(PLAIN)] == PLAIN
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    before, handlers = root.level, {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    AcceleratorState._reset_state(reset_partial_state=True)
    said: object = None
    try:
        train_colorization.main(words[len(PLAIN) :])
    except SystemExit as stopped:
        said = stopped.code
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        for number, previous in handlers.items():
            signal.signal(number, previous)
    assert isinstance(said, str) == bool(expect), said
    return stream.getvalue() + (said if isinstance(said, str) else "")


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of the saved pipeline, and the trained ones of the last checkpoint."""
    last = max(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    return {
        **{f"ema.{k}": v for k, v in load_file(output / "unet" / "diffusion_pytorch_model.safetensors").items()},
        **load_file(last / "model.safetensors"),
    }


def assert_equal_to_the_bit(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, never interrupted."""
    output = tmp_path_factory.mktemp("finished") / "run"
    run(command(photos, output, launcher=LAUNCH))
    return output


def test_files_of_a_run(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("checkpoint-3", "checkpoint-6", "best", "logs", "samples", "run.json", "validation.jsonl"),
        *("model_index.json", "unet", "scheduler", *CODE_FILES),
    }
    rows = [json.loads(line) for line in (finished / "validation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["photos_seen"]) for row in rows] == [(3, 12), (6, 24)]
    assert all(0 < row["loss"] < 5 and 0 < row["film_loss"] < 5 and row["loss"] != row["film_loss"] for row in rows)
    assert list(finished.glob("logs/train/events.out.tfevents.*"))
    assert json.loads((finished / "run.json").read_text())["seed"] == 0
    sheet = np.asarray(Image.open(finished / "samples" / "step-0000006.png"))
    assert sheet.shape == (16 + 2 * 6, 3 * 16 + 2 * 6, 3)  # one photo in a white margin
    grey, truth = sheet[6:22, 6:22].astype(int), sheet[6:22, 38:54].astype(int)
    assert np.ptp(grey, axis=-1).max() <= 1 and np.ptp(truth, axis=-1).max() > 20


def test_result_loads_and_colorizes(finished: Path) -> None:
    for folder in (finished, finished / "best"):
        pipe = ColorizationPipeline.from_pretrained(folder)
        assert pipe(np.full((20, 30), 0.5), num_inference_steps=2).images[0].size == (30, 20)
        assert pipe.scheduler.config.rescale_betas_zero_snr and pipe.config.working_size == 16
    for file in (finished / "best").rglob("*.json"):
        assert str(finished) not in file.read_text()


def kill_when(words: list[str], ready: Callable[[], bool]) -> None:
    process = subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_runs_resume_to_the_bit(photos: Path, tmp_path: Path) -> None:
    """kill -9 while saving, then in mid-step; the run that resumes twice equals the one that never stopped."""
    flags: dict[str, object] = {"steps": 40, "checkpointing_steps": 5, "sample_steps": 0, "validation_steps": 40}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(photos, whole, **flags))
    words = command(photos, killed, resume_from_checkpoint="latest", **flags)
    kill_when(words, (killed / "partial-checkpoint-15").exists)
    assert not (killed / "checkpoint-20").exists()
    kill_when(words, lambda: (killed / "checkpoint-25" / "COMPLETE").exists())
    assert not (killed / "model_index.json").exists()
    run(words)
    assert_equal_to_the_bit(whole, killed)


def resumed_from(source: Path, step: int, target: Path) -> Path:
    """A run folder as it was when ``source`` had done ``step`` steps."""
    target.mkdir()
    shutil.copytree(source / f"checkpoint-{step}", target / f"checkpoint-{step}")
    return target


def test_accumulation_and_workers_resume_to_the_bit(photos: Path, tmp_path: Path) -> None:
    flags = {"gradient_accumulation_steps": 2, "train_batch_size": 2, "dataloader_num_workers": 1, "sample_steps": 0}
    flags["condition_dropout"] = 0.3
    run(command(photos, tmp_path / "whole", **flags))
    resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed")
    run(command(photos, resumed, resume_from_checkpoint="latest", **flags))
    assert_equal_to_the_bit(tmp_path / "whole", resumed)


def test_two_processes_train_and_resume_to_the_bit(photos: Path, finished: Path, tmp_path: Path) -> None:
    flags: dict = {"launcher": TORCHRUN, "mixed_precision": "no", "train_batch_size": 2}
    log = run(command(photos, tmp_path / "whole", **flags), ACCELERATE_USE_CPU="true")
    assert "4 photos a step" in log
    rows = [json.loads(line) for line in (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()]
    assert [row["photos_seen"] for row in rows] == [12, 24]
    resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed")
    run(command(photos, resumed, resume_from_checkpoint="latest", **flags), ACCELERATE_USE_CPU="true")
    assert_equal_to_the_bit(tmp_path / "whole", resumed)
    # The same photos as one process sees, but each rank draws its own noise: equal weights would mean they did not.
    one, two = weights(finished), weights(tmp_path / "whole")
    assert not torch.equal(one["conv_in.weight"], two["conv_in.weight"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit(photos: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = command(photos, tmp_path / "run", steps=100_000, checkpointing_steps=5)
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoint-5").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + number, log[-2000:]
    saved = max(int(folder.name.split("-")[1]) for folder in (tmp_path / "run").glob("checkpoint-*"))
    assert f"step {saved} of 100000" in log
    assert (tmp_path / "run" / "model_index.json").is_file()


def test_stops_after_the_given_time_resumably(photos: Path, tmp_path: Path) -> None:
    run_here(command(photos, tmp_path / "run", max_train_minutes=0.0001, report_to="none"))
    assert (tmp_path / "run" / "checkpoint-1" / "COMPLETE").is_file()
    assert not (tmp_path / "run" / "logs").exists()
    log = run_here(command(photos, tmp_path / "run", resume_from_checkpoint="latest", report_to="none"))
    assert "step 6 of 6" in log
    # and once more, when there is nothing left to do
    before = weights(tmp_path / "run")
    run_here(command(photos, tmp_path / "run", resume_from_checkpoint="latest", report_to="none"))
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path / "run").items())


def test_warm_start_begins_from_the_given_weights(photos: Path, finished: Path, tmp_path: Path) -> None:
    run_here(command(photos, tmp_path / "run", init_from=finished, steps=1, learning_rate=1e-12, lr_warmup_steps=0))
    before, after = weights(finished), weights(tmp_path / "run")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before if name.startswith("ema."))


@pytest.mark.parametrize(("dropout", "warned"), [(0.0, True), (0.1, False)])
def test_guided_weights_want_condition_dropout(
    photos: Path, finished: Path, tmp_path: Path, dropout: float, warned: bool
) -> None:
    pipe = ColorizationPipeline.from_pretrained(finished)
    pipe.register_to_config(default_guidance=1.5)
    pipe.save_pretrained(tmp_path / "guided")
    flags = {"init_from": tmp_path / "guided", "condition_dropout": dropout}
    said = run_here(command(photos, tmp_path / "run", steps=1, lr_warmup_steps=0, **flags))
    assert ("guidance 1.5, which training without --condition_dropout" in said) == warned


def test_with_an_image_encoder_and_parquet(photos: Path, tmp_path: Path) -> None:
    make_encoder().save_pretrained(tmp_path / "encoder")
    words = command(
        make_parquet(tmp_path / "p.parquet", 12), tmp_path / "run", image_encoder=tmp_path / "encoder",
        validation_data=photos, resolution=32, steps=3, snr_gamma=5, encoder_scale=2,
    )  # fmt: skip
    log = run_here([*words, "--encoder_layers", "1", "2"])
    pipe = ColorizationPipeline.from_pretrained(tmp_path / "run")
    assert pipe.image_encoder is not None and pipe.config.encoder_layers == (1, 2)
    assert pipe.config.encoder_scale == 2
    assert f"{pipe.unet.config.in_channels} input channels" in log and pipe.unet.config.in_channels > 18
    pipe(np.full((40, 40), 0.5), num_inference_steps=2)


@pytest.mark.parametrize("launcher", [PLAIN, TORCHRUN], ids=["one", "two"])
def test_the_last_stage_draws_without_guidance_and_resumes_to_the_bit(
    photos: Path, tmp_path: Path, launcher: list[str]
) -> None:
    flags: dict = {
        "launcher": launcher, "mixed_precision": "no", "init_from": DEFAULT_CHECKPOINT, "preset": None,
        "resolution": 32, "last_stage_steps": 3, "sample_steps": 0, "ema_decay": 0.5,
    }  # fmt: skip
    run(command(photos, tmp_path / "whole", **flags), ACCELERATE_USE_CPU="true")
    pipe = ColorizationPipeline.from_pretrained(tmp_path / "whole")
    assert (pipe.config.default_steps, pipe.config.default_guidance, pipe.config.initial_noise) == (3, 1.0, 0.0)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()]
    assert all(0 < row["drawn_loss"] < 10 and row["drawn_loss"] != row["loss"] for row in rows)
    resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed")
    run(command(photos, resumed, resume_from_checkpoint="latest", **flags), ACCELERATE_USE_CPU="true")
    assert_equal_to_the_bit(tmp_path / "whole", resumed)


def test_the_last_stage_needs_an_encoder(photos: Path, finished: Path, tmp_path: Path) -> None:
    flags: dict = {"init_from": finished, "last_stage_steps": 3, "preset": None, "resolution": None}
    assert "image encoder" in run_here(command(photos, tmp_path / "run", **flags), expect=1)


def test_a_mixture_of_sources_is_measured_by_source_and_resumes_to_the_bit(photos: Path, tmp_path: Path) -> None:
    small = make_parquet(tmp_path / "small.parquet", 6, height=12, width=20)
    flags = {
        "train_data": None,
        "source": [f"town={photos}", f"slides={small}"],
        "mix": ["town=0.6", "slides=0.4"],
        "optimizer": "muon",
        "validation_source": f"slides={small}",
        "sample_steps": 0,
    }
    run(command(photos, tmp_path / "whole", **flags))
    rows = [json.loads(line) for line in (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()]
    for row in rows:
        town, slides = row["by_source"]["town"], row["by_source"]["slides"]
        assert row["loss"] == pytest.approx(0.6 * town + 0.4 * slides) and town != slides != row["film_loss"]
    resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed")
    run(command(photos, resumed, resume_from_checkpoint="latest", **flags))
    assert_equal_to_the_bit(tmp_path / "whole", resumed)
    other = {**flags, "mix": ["town=0.8", "slides=0.2"]}
    log = run(command(photos, resumed, resume_from_checkpoint="latest", **other), expect=1)
    assert "mix: {'town': 0.6, 'slides': 0.4} then, {'town': 0.8, 'slides': 0.2} now" in log


def test_resuming_with_other_photos_or_fewer_held_out_is_refused(photos: Path, finished: Path, tmp_path: Path) -> None:
    fewer = command(photos, finished, resume_from_checkpoint="latest", validation_photos=1)
    assert "validation_photos: 2 then, 1 now" in run_here(fewer, expect=1)
    other = make_folder(tmp_path / "photos", 13)
    log = run_here(command(other, finished, resume_from_checkpoint="latest"), expect=1)
    assert "can't resume with other photos (source photos)" in log
    moved = shutil.copytree(photos, tmp_path / "moved")  # the same photos elsewhere are the same photos
    resumed = resumed_from(finished, 3, tmp_path / "resumed")
    run(command(moved, resumed, resume_from_checkpoint="latest"))
    assert_equal_to_the_bit(finished, resumed)


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_that_can_not_train_gets_one_line(tmp_path: Path, count: int) -> None:
    log = run_here(command(make_folder(tmp_path / "photos", count), tmp_path / "run"), expect=1)
    assert log.strip().splitlines()[-1].startswith(("photos: ", "--train_data: "))
    assert not (tmp_path / "run").exists()


def test_regression_twin(photos: Path, tmp_path: Path) -> None:
    run_here(command(photos, tmp_path / "run", objective="regression", sample_steps=0))
    pipe = ColorizationPipeline.from_pretrained(tmp_path / "run")
    assert pipe.config.objective == "regression"
    gray = np.linspace(0, 1, 400).reshape(20, 20)
    first, second = (np.asarray(pipe(gray, generator=torch.Generator().manual_seed(n)).images[0]) for n in (0, 1))
    assert np.array_equal(first, second)  # nothing is drawn


def test_a_data_set_by_its_name(tmp_path: Path) -> None:
    """``datasets.load_dataset`` takes the name of a folder as it takes one on the Hub, splits included."""
    for split, count in (("train", 9), ("validation", 3)):
        make_folder(tmp_path / "set" / split, count)
    flags = {"train_data": None, "dataset_name": tmp_path / "set", "validation_split": "validation"}
    log = run_here(command(tmp_path, tmp_path / "run", steps=3, sample_steps=0, **flags))
    assert "training: 9 photos" in log and "validation: 2 photos" in log  # 2 is --validation_photos


def test_a_finer_grid_of_chroma_begins_from_a_coarse_one(photos: Path, finished: Path, tmp_path: Path) -> None:
    run_here(command(photos, tmp_path / "run", init_from=finished, detail_scales=[12, 5], steps=3))
    pipe = ColorizationPipeline.from_pretrained(tmp_path / "run")
    assert list(pipe.config.detail_scales) == [12, 5] and pipe.chroma_cell == 2 and pipe.unet.config.out_channels == 8
    assert json.loads((tmp_path / "run" / "run.json").read_text())["detail_scales"] == [12, 5]
    pipe(np.full((20, 30), 0.5), num_inference_steps=2)
    other = command(photos, tmp_path / "other", init_from=tmp_path / "run", detail_scales=[10, 5])
    assert "--detail_scales (10.0, 5.0) contradicts" in run_here(other, expect=1)


@pytest.fixture(scope="module")
def origin(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear schedule, T = 300, epsilon, one lightness channel a chroma pixel."""
    flags = {"prediction_type": "epsilon", "beta_schedule": "linear", "num_train_timesteps": 300, "luma_factor": 1}
    output = tmp_path_factory.mktemp("origin") / "run"
    run_here(command(photos, output, steps=3, **flags))
    return output


def test_the_settings_of_the_origin(origin: Path) -> None:
    config = ColorizationPipeline.from_pretrained(origin).scheduler.config
    assert (config.prediction_type, config.beta_schedule, config.num_train_timesteps) == ("epsilon", "linear", 300)
    assert not config.rescale_betas_zero_snr


def test_a_warm_start_keeps_the_checkpoints_model_and_records_it(photos: Path, origin: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_here(command(photos, output, init_from=origin, steps=3, preset=None, resolution=None))
    before, after = (ColorizationPipeline.from_pretrained(folder).scheduler.config for folder in (origin, output))
    assert dict(before) == dict(after)
    record = json.loads((output / "run.json").read_text())
    settled = ("prediction_type", "beta_schedule", "num_train_timesteps", "luma_factor", "preset", "resolution")
    assert [record[name] for name in settled] == ["epsilon", "linear", 300, 1, "tiny", 16]
    refused = command(photos, tmp_path / "other", init_from=origin, num_train_timesteps=1000)
    assert "--num_train_timesteps 1000 contradicts --init_from" in run_here(refused, expect=1)


def test_pickles_are_no_warm_start(photos: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))
    state = load_file(finished / "unet" / "diffusion_pytorch_model.safetensors")
    torch.save(state, folder / "unet" / "diffusion_pytorch_model.bin")
    log = run_here(command(photos, tmp_path / "run", init_from=folder), expect=1)
    assert "is a pickle" in log


IMPOSSIBLE = [
    ("--seed 1", "exactly one of"),
    ("--train_data a --dataset_name b", "exactly one of"),
    ("--train_data a --validation_split b", "--validation_data"),
    ("--dataset_name a --validation_split b --validation_data c", "not both"),
    ("--train_data a --source b=c", "exactly one of"),
    ("--source b", "NAME=VALUE"),
    ("--source a=b --mix a=much", "much"),
    ("--source a=b --mix c=1", "no --source has this name"),
    ("--source a=b c=d --mix a=1", "no weight for --source c"),
    ("--source a=b --mix a=0", "--mix a 0"),
    ("--source a=b --mix a=1 a=2", "given twice"),
    ("--source a=b --validation_source c=d", "--validation_source c"),
    ("--source a=b --validation_data c", "--validation_source"),
    ("--train_data a --luma_factor 0", "--luma_factor 0"),
    ("--train_data a --init_from b --image_encoder c", "--image_encoder"),
    ("--train_data a --image_encoder b --encoder_scale 0", "--encoder_scale"),
    ("--train_data a --last_stage_steps 3", "--init_from"),
    ("--train_data a --init_from b --last_stage_steps 3 --train_batch_size 1", "--train_batch_size"),
    ("--train_data a --init_from b --perceptual_weight 1", "--last_stage_steps"),
    ("--train_data a --init_from b --objective regression --last_stage_steps 3", "--last_stage_steps"),
    ("--train_data a --max_train_steps 10", "--lr_warmup_steps 500"),
    ("--train_data a --ema_decay 1", "--ema_decay 1"),
    ("--train_data a --objective regression --snr_gamma 5", "--snr_gamma"),
    ("--train_data a --objective regression --condition_dropout 0.1", "--condition_dropout"),
    ("--train_data a --condition_dropout 1", "--condition_dropout 1"),
    ("--train_data a --film_probability 1.5", "--film_probability 1.5"),
    ("--train_data a --soft_probability -1", "--soft_probability -1"),
    ("--train_data a --smallest_crop 0", "--smallest_crop 0"),
    ("--train_data a --objective huge", "regression"),
    ("--train_data a --detail_scales 3", "two numbers"),
    ("--train_data a --detail_scales 3 4 --luma_factor 3 --preset tiny --resolution 96", "even --luma_factor"),
    ("--train_data a --preset huge", "tiny"),
    ("--train_data a --mixed_precision fp16", "bf16"),
    ("--train_data a --train_batch_size 0", "--train_batch_size 0"),
    ("--train_data a --learning_rate 0", "--learning_rate 0"),
    ("--train_data a --snr_gamma -1", "--snr_gamma -1"),
    ("--train_data a --max_train_minutes 0", "--max_train_minutes 0"),
    ("--train_data a --checkpoints_total_limit 0", "--checkpoints_total_limit 0"),
]


@pytest.mark.parametrize(("flags", "words"), IMPOSSIBLE)
def test_impossible_flags_are_refused_first(flags: str, words: str, capsys: pytest.CaptureFixture) -> None:
    if "fp16" in flags and torch.cuda.is_available():
        pytest.skip("possible here")
    with pytest.raises(SystemExit) as stopped:
        parse_options(flags.split())
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_what_a_fresh_model_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match="--resolution 100 isn't divisible by 32"):
        parse_options(["--train_data", "a", "--resolution", "100"]).resolved()


def test_every_option_is_read_explained_and_in_some_test_or_document(capsys: pytest.CaptureFixture) -> None:
    flags = set(parse_options(["--train_data", "a"]).flat())
    modules = [Path(SCRIPT), *(ROOT / "colorized_pipeline" / "training").glob("*.py")]
    source = "".join(module.read_text() for module in modules)
    assert {flag for flag in flags if f".{flag}" not in source} == set()
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    documents = [*ROOT.glob("tests/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    used = "".join(file.read_text() for file in documents)
    assert {flag for flag in flags if f"--{flag} " not in shown or not re.search(rf"\b{flag}\b", used)} == set()
    assert "photos a process and forward pass (default: 32)" in shown
    assert "(default: 40.0, or --init_from's" in shown


def test_what_a_resumed_run_must_keep() -> None:
    fixed = set(fixed_on_resume())
    assert {"seed", "mix", "train_batch_size", "validation_photos", "prediction_type", "film_probability"} < fixed
    assert not fixed & {"output_dir", "max_train_steps", "learning_rate", "train_data", "cache_dir", "init_from"}


def test_another_run_is_never_overwritten(photos: Path, finished: Path) -> None:
    log = run_here(command(photos, finished), expect=1)
    assert "resume_from_checkpoint latest" in log


def test_resuming_with_other_settings_is_refused(photos: Path, finished: Path) -> None:
    log = run_here(command(photos, finished, resume_from_checkpoint="latest", train_batch_size=2), expect=1)
    assert "train_batch_size: 4 then, 2 now" in log


def test_what_training_needs_more_is_named() -> None:
    program = f"import runpy, sys; sys.modules['accelerate'] = None; runpy.run_path({SCRIPT!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "training needs: pip install '.[train]'" in done.stderr
    assert "Traceback" not in done.stderr
