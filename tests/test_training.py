"""The loss against exact targets, the schedule by its shape, EMA and checkpoints by what must never happen."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import make_scheduler
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import nn

from colorized_pipeline.diffusion.color import lightness_to_gray
from colorized_pipeline.loading import load_pipeline
from colorized_pipeline.training import checkpoints
from colorized_pipeline.training.checkpoints import (
    COMPLETE,
    ema_weights,
    find_checkpoint,
    list_checkpoints,
    replace_folder,
    save_checkpoint,
)
from colorized_pipeline.training.losses import (
    Diffusion,
    Discriminator,
    LastStage,
    Objective,
    Regression,
    draw_timesteps,
    drop_condition,
    mean_error,
)
from colorized_pipeline.training.networks import Muon, build_unet, learning_rate, preset_of, widen_unet
from train_colorization import compute_loss


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "chroma": torch.randn(6, 2, 8, 8, generator=generator) * 0.3,
        "condition": torch.randn(6, 16, 8, 8, generator=generator),
        "noise": torch.randn(6, 2, 8, 8, generator=generator),
        "timesteps": torch.tensor([1, 100, 300, 500, 800, 998]),
    }


Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loss_of(objective: Objective, predict: Network, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The training script's own step, with ``predict`` for the UNet."""
    return compute_loss(objective, lambda x, t: SimpleNamespace(sample=predict(x, t)), **given)


def answering(target: torch.Tensor) -> Network:
    return lambda x, timesteps: target


def target_of(objective: Objective, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return objective.target(given["chroma"], given["noise"], given["timesteps"])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_is_zero_for_the_right_target_only(kind: str) -> None:
    objective, given = Diffusion(make_scheduler(kind)), batch()
    other = {**given, "noise": batch(1)["noise"]}
    assert loss_of(objective, answering(target_of(objective, given)), given) == 0
    assert loss_of(objective, answering(target_of(objective, other)), given) > 0.1


def test_details_count_a_tenth() -> None:
    zeros, errors = torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)
    errors[:, 2:] = 1.0
    assert mean_error(errors, zeros).tolist() == pytest.approx([0.1])
    assert mean_error(torch.ones(1, 8, 4, 4), zeros).tolist() == pytest.approx([1.1])
    assert mean_error(torch.ones(1, 2, 4, 4), zeros[:, :2]).tolist() == pytest.approx([1.0])


def test_regression_loss_is_zero_for_the_chroma_itself() -> None:
    given, seen = batch(), []

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append((x, timesteps))
        return given["chroma"]

    assert loss_of(Regression(), predict, given) == 0
    (x, timesteps), *_ = seen
    assert torch.equal(x[:, :-2], given["condition"]) and not x[:, -2:].any() and not timesteps.any()
    assert loss_of(Regression(), answering(given["chroma"] + 2), given) == pytest.approx(4)


def test_v_leads_back_to_the_photo() -> None:
    """x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v (Salimans & Ho 2022, appendix D)."""
    scheduler, given = make_scheduler(), batch()
    v = target_of(Diffusion(scheduler), given)
    noisy = scheduler.add_noise(given["chroma"], given["noise"], given["timesteps"])
    alpha_bar = scheduler.alphas_cumprod[given["timesteps"]].reshape(-1, 1, 1, 1)
    assert torch.allclose(alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * v, given["chroma"], atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights(kind: str) -> None:
    """A constant error of 1 in the prediction makes the loss the mean weight: compare with Hang et al. 2023."""
    scheduler, given = make_scheduler(kind), batch()
    objective = Diffusion(scheduler, snr_gamma=5.0)
    off_by_one = target_of(objective, given) + 1
    alpha_bar = scheduler.alphas_cumprod[given["timesteps"]]
    snr = alpha_bar / (1 - alpha_bar)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    assert torch.allclose(loss_of(objective, answering(off_by_one), given), expected.mean(), rtol=1e-4)
    assert loss_of(objective.unweighted(), answering(off_by_one), given) == pytest.approx(1, rel=1e-4)


def test_network_sees_condition_then_noisy_chroma() -> None:
    scheduler, given, seen = make_scheduler(), batch(), []

    def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[:, -2:]

    loss_of(Diffusion(scheduler), predict, given)
    assert torch.equal(seen[0][:, :16], given["condition"])
    assert torch.equal(seen[0][:, 16:], scheduler.add_noise(given["chroma"], given["noise"], given["timesteps"]))


def test_condition_is_hidden_from_the_photos_that_were_drawn() -> None:
    condition = torch.rand(5, 6, 8, 8) + 1
    draws = torch.tensor([0.0, 0.09, 0.1, 0.29, 0.31])
    kept = drop_condition(condition, draws, 0.1)
    assert not kept[:2].any() and torch.equal(kept[2:], condition[2:])


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        Diffusion(DDPMScheduler(prediction_type="sample"))


def test_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    unet, objective, given = build_unet("tiny", luma_factor=4, sample_size=8), Diffusion(make_scheduler()), batch()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = compute_loss(objective, unet, **given)
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
    assert preset_of(unet) == "tiny" and preset_of(build_unet("base", luma_factor=4)) == "base"


def test_a_wider_unet_gives_the_same_and_no_detail() -> None:
    torch.manual_seed(0)
    unet = build_unet("tiny", luma_factor=4).eval()
    wide = widen_unet(unet, 8).eval()
    assert (wide.config.in_channels, wide.config.out_channels) == (24, 8)
    x, t = torch.randn(2, 24, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        before, after = unet(x[:, :18], t).sample, wide(x, t).sample
    assert torch.allclose(after[:, :2], before, atol=1e-6) and not after[:, 2:].any()


def test_timesteps_are_spread_over_all_and_each_is_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_timesteps(10, 1000, generator=generator) for _ in range(500)])
    assert ((drawn.sort(dim=1).values.diff(dim=1) - 100).abs() <= 1).all()
    assert drawn[:, 0].float().mean() == pytest.approx(500, abs=40) and drawn.min() < 5 and drawn.max() > 994


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


def test_folders_that_can_not_be_opened_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: a folder can't be opened, and a file can be flushed only if it is open for writing."""
    opened, really_open, really_sync = {}, os.open, os.fsync

    def windows_open(path: Path, flags: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = really_open(path, flags)
        opened[descriptor] = flags
        return descriptor

    def windows_sync(descriptor: int) -> None:
        if not opened[descriptor] & (os.O_RDWR | os.O_WRONLY):
            raise OSError(9, "Bad file descriptor")
        really_sync(descriptor)

    monkeypatch.setattr(checkpoints.os, "open", windows_open)
    monkeypatch.setattr(checkpoints.os, "fsync", windows_sync)
    (tmp_path / "new" / "inside").mkdir(parents=True)
    (tmp_path / "new" / "inside" / "file").write_text("new")
    (tmp_path / "old").mkdir()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "inside" / "file").read_text() == "new" and len(opened) == 1


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 8, 3, 3)])
def test_muon_steps_as_that_of_torch_does_for_convolutions_too(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, generator=generator))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    before, bias = theirs.detach().clone(), nn.Parameter(torch.ones(3))
    options: dict = {"lr": 0.01, "weight_decay": 0.1}
    muon = Muon([ours, bias], betas=(0.9, 0.999), **options)
    oracle = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad, bias.grad = ours.grad.flatten(1).clone(), torch.ones(3)
        muon.step()
        oracle.step()
    moved = theirs - before
    assert (ours.flatten(1) - before - moved).norm() < 0.02 * moved.norm()  # torch's is in bfloat16
    assert (bias < 1).all()


def last_stage(**weights: float) -> LastStage:
    """With the encoder that ships: a fresh one's features don't tell colours apart."""
    return LastStage(
        load_pipeline(),
        steps=2,
        **{"chroma_weight": 1.0, "perceptual_weight": 1.0, "adversarial_weight": 1.0, **weights},
    )


def colors(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of plain coloured photos, and their lightness."""
    generator = torch.Generator().manual_seed(3)
    lightness = F.interpolate(torch.rand(count, 1, 4, 4, generator=generator) * 60 + 20, (64, 64), mode="bilinear")
    chroma = torch.cat((torch.randn(count, 2, 1, 1, generator=generator), torch.zeros(count, 6, 1, 1)), dim=1)
    return 0.5 * chroma.expand(-1, -1, 16, 16).contiguous(), lightness


def test_perceptual_loss_is_zero_for_the_truth_and_one_for_gray() -> None:
    stage, (chroma, lightness) = last_stage(), colors()
    assert stage.loss(chroma, chroma, lightness)["perceptual"] == 0
    assert stage.loss(torch.zeros_like(chroma), chroma, lightness)["perceptual"].item() == pytest.approx(1, abs=0.02)
    assert stage.distance(chroma, chroma, lightness)[0] == 0
    ours, gray = stage.distance(torch.zeros_like(chroma), chroma, lightness)
    assert ours == pytest.approx(gray, rel=0.01)


def test_pale_colors_are_told_from_true_ones_and_grow() -> None:
    stage, (chroma, lightness) = last_stage(), colors()
    drawn = (0.2 * chroma).requires_grad_(True)
    optimizer, told = torch.optim.Adam([drawn], lr=0.02), []
    for _ in range(60):
        losses = stage.loss(drawn, chroma, lightness)
        told.append(losses["discriminator"].item())
        (drawn.grad,) = torch.autograd.grad(losses["loss"], drawn)
        optimizer.step()
    assert told[0] > 1.8 and min(told) < 1.5
    assert (drawn * chroma).sum() > 0.3 * chroma.square().sum()


def test_chroma_loss_is_squared_for_small_errors_and_leaves_large_ones_alone() -> None:
    stage, (chroma, lightness) = last_stage(perceptual_weight=0.0, adversarial_weight=0.0, chroma_weight=2.0), colors()
    losses = stage.loss(0.99 * chroma, chroma, lightness)
    torch.testing.assert_close(losses["chroma"], (0.01 * chroma[:, :2]).square().mean(), rtol=0.01, atol=0)
    torch.testing.assert_close(losses["loss"], 2 * losses["chroma"])
    pulls = []
    for error in (0.02, 0.2, 1.0):  # 1, 8 and 40 units of a* and b*
        drawn = (chroma + error).requires_grad_(True)
        stage.loss(drawn, chroma, lightness)["chroma"].backward()
        assert drawn.grad is not None and drawn.grad[:, :2].min() > 0
        pulls.append(drawn.grad.norm())
    assert pulls[1] > 3 * pulls[0] and pulls[1] > 10 * pulls[2]


def test_discriminator_sees_chroma_that_features_do_not_tell() -> None:
    torch.manual_seed(0)
    judge, maps = Discriminator([4]), [torch.zeros(2, 4, 8, 8)]
    strong, weak = torch.full((2, 2, 16, 16), 30.0), torch.full((2, 2, 16, 16), 10.0)
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
    for _ in range(100):
        real, drawn = (judge(maps, maps, [torch.ones(1, 4, 1, 1)], chroma)[0] for chroma in (weak, strong))
        loss = F.relu(1 - real).mean() + F.relu(1 + drawn).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert real.mean() > drawn.mean() + 0.5


def test_discriminator_of_fine_features_knows_what_the_coarse_ones_show() -> None:
    """The same strong red, on the same fine features: true of one thing, false of another."""
    torch.manual_seed(0)
    judge = Discriminator([4, 8])
    fine, coarse = torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 2, 2)
    coarse[0, :4], coarse[1, 4:] = 1.0, 1.0
    red, gray = torch.full((1, 2, 16, 16), 20.0), torch.zeros(1, 2, 16, 16)
    changes = [torch.ones(1, 4, 1, 1), torch.ones(1, 8, 1, 1)]
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
    for _ in range(100):
        real, drawn = (
            judge([fine, coarse], [fine, coarse], changes, torch.cat(pair))[0] for pair in ((red, gray), (gray, red))
        )
        loss = F.relu(1 - real).mean() + F.relu(1 + drawn).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (real.mean(dim=(1, 2, 3)) > drawn.mean(dim=(1, 2, 3)) + 0.5).all()


def test_the_last_stage_draws_as_the_pipeline_does() -> None:
    stage, (chroma, lightness) = last_stage(), colors(1)
    pipe = stage.pipe
    condition = pipe.condition(lightness)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(chroma.shape, generator=generator)
    drawn = stage.draw(pipe.unet, condition, noise, steps=2, generator=generator)
    rows = pipe.prepare(lightness_to_gray(lightness[0]), working_size=64, borders=False)
    expected = pipe.draw(
        rows, generators=[torch.Generator().manual_seed(0)], num_inference_steps=2, guidance_scale=1.0
    )
    torch.testing.assert_close(pipe.latents_to_chroma(drawn), expected, atol=1e-3, rtol=0)


def test_only_the_last_pass_has_a_gradient() -> None:
    stage, (chroma, lightness) = last_stage(), colors()
    calls: list[bool] = []

    def unet(seen: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        calls.append(torch.is_grad_enabled())
        return stage.pipe.unet(seen, timestep)

    drawn = stage.draw(unet, stage.pipe.condition(lightness), torch.randn_like(chroma), steps=2, generator=None)
    assert calls == [False, True] and drawn.requires_grad
