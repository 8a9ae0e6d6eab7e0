"""The loss against exact targets, the schedule by its shape, EMA and checkpoints by what must never happen."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import make_scheduler
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel

from colorized_pipeline.training.losses import (
    COMPLETE,
    Teacher,
    build_unet,
    diffusion_loss,
    distillation_loss,
    drop_condition,
    ema_weights,
    find_checkpoint,
    learning_rate,
    list_checkpoints,
    loss_target,
    regression_loss,
    save_checkpoint,
)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "chroma": torch.randn(6, 2, 8, 8, generator=generator) * 0.3,
        "condition": torch.randn(6, 16, 8, 8, generator=generator),
        "noise": torch.randn(6, 2, 8, 8, generator=generator),
        "timesteps": torch.tensor([1, 100, 300, 500, 800, 998]),
    }


def answering(target: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda x, timesteps: target


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_is_zero_for_the_right_target_only(kind: str) -> None:
    scheduler, given = make_scheduler(kind), batch()
    right = loss_target(scheduler, given["chroma"], given["noise"], given["timesteps"])
    other = loss_target(scheduler, given["chroma"], batch(1)["noise"], given["timesteps"])
    assert diffusion_loss(answering(right), scheduler, **given) == 0
    assert diffusion_loss(answering(other), scheduler, **given) > 0.1


def test_regression_loss_is_zero_for_the_chroma_itself() -> None:
    given = batch()
    chroma, condition, seen = given["chroma"], given["condition"], []

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append((x, timesteps))
        return chroma

    assert regression_loss(predict, chroma=chroma, condition=condition) == 0
    (x, timesteps), *_ = seen
    assert torch.equal(x[:, :-2], condition) and not x[:, -2:].any() and not timesteps.any()
    assert regression_loss(answering(chroma + 2), chroma=chroma, condition=condition) == pytest.approx(4)


def test_a_student_that_jumps_to_where_its_teacher_ends_has_no_loss() -> None:
    """Oracle: diffusers' DDIM sampler takes the teacher's steps, then the student's single one."""
    length, student = 1000, 4
    scheduler = DDIMScheduler(
        num_train_timesteps=length, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    given = batch()
    given["timesteps"] = torch.tensor([0, 240, 300, 500, 800, 999])  # each stands for 249, 249, 499, 749, 999, 999

    def teach(noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.tanh(noisy * 2 + condition[:, :2]) * (1 + timesteps[:, None, None, None] / length)

    teacher = Teacher(teach, student, student * 2)
    teachers, students = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
    teachers.set_timesteps(student * 2)
    students.set_timesteps(student)
    starts = {int(t): number for number, t in enumerate(students.timesteps)}

    def jump(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The v of one student's step, found from where the library's sampler takes each photo."""
        answers = []
        for one, t in zip(x, timesteps, strict=True):
            noisy, condition = one[None, -2:], one[None, :-2]
            reached = noisy
            for at in teachers.timesteps[starts[int(t)] * 2 :][:2]:
                reached = teachers.step(teach(reached, at[None], condition), at, reached).prev_sample
            base = students.step(torch.zeros_like(noisy), t, noisy).prev_sample
            slope = students.step(torch.ones_like(noisy), t, noisy).prev_sample - base  # a DDIM step is affine in v
            answers.append((reached - base) / slope)
        return torch.cat(answers)

    assert distillation_loss(jump, teacher, scheduler, **given) < 1e-6
    assert distillation_loss(lambda x, t: jump(x, t) + 0.1, teacher, scheduler, **given) > 0.009


def test_v_leads_back_to_the_photo() -> None:
    """x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v (Salimans & Ho 2022, appendix D)."""
    scheduler, given = make_scheduler(), batch()
    v = loss_target(scheduler, given["chroma"], given["noise"], given["timesteps"])
    noisy = scheduler.add_noise(given["chroma"], given["noise"], given["timesteps"])
    alpha_bar = scheduler.alphas_cumprod[given["timesteps"]].reshape(-1, 1, 1, 1)
    assert torch.allclose(alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * v, given["chroma"], atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights(kind: str) -> None:
    """A constant error of 1 in the prediction makes the loss the mean weight: compare with Hang et al. 2023."""
    scheduler, given = make_scheduler(kind), batch()
    off_by_one = loss_target(scheduler, given["chroma"], given["noise"], given["timesteps"]) + 1
    alpha_bar = scheduler.alphas_cumprod[given["timesteps"]]
    snr = alpha_bar / (1 - alpha_bar)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    loss = diffusion_loss(answering(off_by_one), scheduler, snr_gamma=5.0, **given)
    assert torch.allclose(loss, expected.mean(), rtol=1e-4)


def test_network_sees_condition_then_noisy_chroma() -> None:
    scheduler, given, seen = make_scheduler(), batch(), []

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[:, -2:]

    diffusion_loss(predict, scheduler, **given)
    assert torch.equal(seen[0][:, :16], given["condition"])
    assert torch.equal(seen[0][:, 16:], scheduler.add_noise(given["chroma"], given["noise"], given["timesteps"]))


def test_condition_is_hidden_from_the_photos_that_were_drawn() -> None:
    condition = torch.rand(5, 6, 8, 8) + 1
    draws = torch.tensor([0.0, 0.09, 0.1, 0.29, 0.31])
    told = drop_condition(condition, draws, luma_channels=4, everything=0.1, features=0.2)
    assert not told[:2].any()
    assert torch.equal(told[2:, :4], condition[2:, :4])
    assert not told[2:4, 4:].any()
    assert torch.equal(told[4], condition[4])


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        diffusion_loss(answering(torch.zeros(1)), DDPMScheduler(prediction_type="sample"), **batch())


def test_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    unet, scheduler, given = build_unet("tiny", luma_factor=4, sample_size=8), make_scheduler(), batch()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = diffusion_loss(lambda x, t: unet(x, t).sample, scheduler, **given)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_unet_channels_and_first_layer() -> None:
    torch.manual_seed(0)
    unet = build_unet("tiny", luma_factor=4, feature_channels=432)
    assert unet.config.in_channels == 450 and unet.config.out_channels == 2
    weight = unet.conv_in.weight
    power = weight.var(dim=(0, 2, 3))  # per input channel
    direct, features = power[[*range(16), 448, 449]].sum(), power[16:448].sum()
    assert 0.7 < direct / features < 1.4  # both groups are heard alike
    plain = build_unet("tiny", luma_factor=4).conv_in.weight
    assert 0.7 < power.sum() / plain.var(dim=(0, 2, 3)).sum() < 1.4  # and together as loud as without features
    with pytest.raises(ValueError, match="preset='huge'"):
        build_unet("huge", luma_factor=4)


def test_learning_rate_shape() -> None:
    rates = [learning_rate(step, base=2.0, warmup=10, decay=40, total=100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert all(rate == 2.0 for rate in rates[10:60])
    assert rates[80] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[60:]))
    assert learning_rate(5, base=1.0, warmup=0, decay=0, total=10) == 1.0


def test_ema_weights_come_and_go_even_after_an_error() -> None:
    unet = build_unet("tiny", luma_factor=4)
    ema = EMAModel(unet.parameters(), decay=0.5)
    averaged = unet.conv_in.weight.detach().clone()
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    own = unet.conv_in.weight.detach().clone()
    with pytest.raises(KeyError), ema_weights(ema, unet):
        assert torch.equal(unet.conv_in.weight, averaged)
        raise KeyError
    assert torch.equal(unet.conv_in.weight, own)


@pytest.fixture
def accelerator() -> Accelerator:
    accelerator = Accelerator(cpu=True)
    unet = build_unet("tiny", luma_factor=4)
    accelerator.prepare(unet)
    return accelerator


def test_checkpoints_are_whole_limited_and_found(accelerator: Accelerator, tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save_checkpoint(accelerator, tmp_path, {"step": step}, limit=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert not list(tmp_path.glob("partial-*")) and not (tmp_path / "checkpoint-2").exists()
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, "checkpoint-9") == find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9"))
    with pytest.raises(FileNotFoundError, match="checkpoint-77"):
        find_checkpoint(tmp_path, "checkpoint-77")


def test_half_written_checkpoints_are_never_taken(accelerator: Accelerator, tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "latest") is None
    save_checkpoint(accelerator, tmp_path, {"step": 5}, limit=None)
    (tmp_path / "checkpoint-7").mkdir()  # without its marker
    (tmp_path / "partial-checkpoint-8").mkdir()
    (tmp_path / "partial-checkpoint-8" / COMPLETE).touch()
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-5"
    save_checkpoint(accelerator, tmp_path, {"step": 8}, limit=None)  # over the remains of the earlier try
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-8"
