"""A real Ray cluster of two nodes on this machine: what one process gives, also if a node is killed in the middle."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_trials import make_photos, results, start_cluster, start_ray_command
from typer.testing import CliRunner

from colorized_pipeline.archive.scans import hash_file
from colorized_pipeline.batch.manifest import MANIFEST_NAME
from colorized_pipeline.cli import app

pytest.importorskip("ray")


@pytest.fixture
def cluster() -> Iterator:
    before = dict(os.environ)
    cluster = start_cluster()
    yield cluster
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


def records(folder: Path) -> list[dict]:
    file = folder / f"{MANIFEST_NAME}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow  # a minute or two: five processes load PyTorch
def test_a_cluster_gives_what_one_process_gives_though_a_node_is_killed(
    cluster, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "in", 40)
    (tmp_path / "in" / "bad.png").write_text("not a photo")
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--steps", "12"]
    assert CliRunner().invoke(app, ["colorize", "in", "-o", "whole", "-r", *options]).exit_code == 1

    running = start_ray_command(cluster, Path("in"), Path("out"), options)
    deadline = time.monotonic() + 300
    while len(records(tmp_path / "out")) < 4 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    at_kill = len(records(tmp_path / "out"))
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    printed, _ = running.communicate(timeout=300)
    assert 4 <= at_kill < 40, printed[-3000:]
    assert running.returncode == 1 and "1 failed" in printed and "bad.png" in printed, printed[-3000:]
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    done = [record for record in records(tmp_path / "out") if "error" not in record]
    assert {record["output_sha256"] for record in done} == {
        hash_file(tmp_path / "out" / record["output"]) for record in done
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }

    running = start_ray_command(cluster, Path("in"), Path("ended"), options)
    while len(records(tmp_path / "ended")) < 1 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.terminate()
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 143 and "run the same command again to go on" in printed, printed[-3000:]

    # One process goes on where a cluster began, and a cluster where one process began
    (tmp_path / "in" / "bad.png").unlink()
    alone = CliRunner().invoke(app, ["colorize", "in", "-o", "out", "-r", *options])
    assert alone.exit_code == 0 and "40 done before" in alone.stdout
    (tmp_path / "whole" / done[0]["output"]).unlink()
    again = CliRunner().invoke(app, ["colorize", "in", "-o", "whole", "--ray", cluster.address, *options])
    assert again.exit_code == 0, again.output
    assert "1 of 40" in again.stdout and "39 done before" in again.stdout
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_no_cluster_is_said_in_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    make_photos(tmp_path / "in", 1)
    words = ["colorize", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--ray", "auto"]
    result = CliRunner().invoke(app, [*words, "--checkpoint", str(checkpoint)])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --ray auto: no Ray cluster there"), result.output
    assert len(result.stderr.splitlines()) == 1
