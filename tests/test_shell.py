"""The command among other programs: pipes, lines of JSON, dry runs, a watched folder, exit statuses, colours."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner, Result

from colorized_pipeline.cli import app

PROGRAM = (sys.executable, "-m", "colorized_pipeline")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save("grey.png")
    Image.open("grey.png").save("grey.jpg")
    Path("bad.jpg").write_text("not a photo")
    return tmp_path


def run(*words: str | Path, given: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*PROGRAM, *words], input=given, capture_output=True, env=os.environ | environment)


def run_here(*words: str | Path, given: bytes = b"") -> Result:
    """In this process, which has PyTorch already."""
    return CliRunner().invoke(app, list(map(str, words)), input=given)


def test_a_photo_through_pipes(here: Path, checkpoint: Path) -> None:
    options = ("--checkpoint", checkpoint)
    done = run("colorize", "-", "-o", "-", *options, given=Path("grey.jpg").read_bytes())
    assert done.returncode == 0 and b"1 of 1 photos colorized" in done.stderr
    same = run_here("colorize", "-", "-o", "colour.jpg", *options, given=Path("grey.jpg").read_bytes())
    assert same.exit_code == 0 and done.stdout == Path("colour.jpg").read_bytes()
    tiff = run_here("colorize", "grey.png", "-o", "-", "--format", "tif", *options)
    assert tiff.exit_code == 0 and tiff.stdout_bytes.startswith((b"II*\0", b"MM\0*"))
    for status, message, words in (
        (1, "Error: -: can't be read as a photo", ("-", "-o", "-")),
        (2, "- stands for one photo", ("-", "grey.png", "-o", "out")),
        (2, "-o - holds one file", ("grey.png", "-o", "-", "--variants", "2")),
        (2, "-o - holds the result of one photo file, and . is none", (".", "-o", "-")),
        (2, "-o - holds the result of one photo file, and https://x.example/y is", ("https://x.example/y", "-o", "-")),
    ):
        refused = run_here("colorize", *words, *options, given=b"not a photo")
        assert (refused.exit_code, refused.stdout_bytes) == (status, b"") and message in refused.stderr
        assert "/colorized-" not in refused.stderr, "a temporary file, which is gone"


def test_a_photo_through_pipes_is_called_so(here: Path, checkpoint: Path) -> None:
    shutil.copy("grey.jpg", "without ending")
    through = ("-o", "-", "--json", "--checkpoint", checkpoint)
    for source, *words in (("-",), ("without ending",), ("-", "--dry-run")):
        done = run_here("colorize", source, *words, *through, given=Path("grey.jpg").read_bytes())
        found = re.search(r"\{.*\}", done.stderr)
        assert done.exit_code == 0 and found
        line = json.loads(found[0])
        assert (line["source"], line["results"]) == (source, ["-"])
        assert line["state"] == "planned" if words else "colorized into - in" in done.stderr


def test_an_interruption(here: Path, checkpoint: Path) -> None:
    """What is said to go on is true, and nothing unfinished is left."""
    Path("scans").mkdir()
    for number in range(20):
        shutil.copy("grey.png", f"scans/{number}.png")
    options = ("--steps", "20", "--json", "--checkpoint", str(checkpoint))
    for number, status, words, message in (
        (signal.SIGTERM, 143, ("-o", "out"), "Add --overwrite"),
        (signal.SIGINT, 130, ("-o", "tree", "-r"), "run the same command again to go on"),
    ):
        command = [*PROGRAM, "colorize", "scans", *words, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
            assert program.stdout and program.stderr and program.stdout.readline()
            program.send_signal(number)
            said = program.communicate(timeout=60)[1]
        assert program.returncode == status and "Interrupted" in said and message in said
        left = {file.name for file in Path(words[1]).iterdir()}
        assert 0 < len(left) < 20 and not any(name.startswith(".colorized-") for name in left - {".colorized-partial"})


def test_a_reader_that_has_enough_gets_no_error(here: Path, checkpoint: Path) -> None:
    assert run_here("colorize", "grey.png", "-o", "colour.png", "--checkpoint", checkpoint).exit_code == 0
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([*PROGRAM, "inspect", "colour.png"], stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


def test_lines_of_json(here: Path, checkpoint: Path) -> None:
    words = ("colorize", "grey.png", "bad.jpg", "-o", "out", "--variants", "2", "--sheet", "jpg", "--json")
    done = run_here(*words, "--checkpoint", checkpoint)
    assert done.exit_code == 1 and "1 of 2 photos colorized" in done.stderr
    lines = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda line: line["source"])
    assert [line["state"] for line in lines] == ["failed", "done"]
    assert lines[0]["results"] == [] and lines[0]["error"].startswith("bad.jpg: can't be read")
    assert len(lines[1]["results"]) == 4 and all(Path(file).is_file() for file in lines[1]["results"])


def test_a_dry_run_does_nothing(here: Path) -> None:
    done = run_here("colorize", "grey.png", "grey.jpg", "-o", "out", "--dry-run", "--checkpoint", "nowhere")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.split() == ["grey.png", "->", "out/grey.png", "grey.jpg", "->", "out/grey.jpg"]
    assert not Path("out").exists()


def test_a_dry_run_says_what_the_run_would_do(here: Path, checkpoint: Path) -> None:
    words = ("colorize", ".", "-r", "-o", "out", "--checkpoint", checkpoint)
    Path("grey.jpg").rename("bad.jpg")
    Path("colours.csv").write_text('file,place,colour\ngrey.png,"9,9,4",red\n')  # is part of the settings
    assert run_here(*words).exit_code == 0
    Image.open("grey.png").save("new.png")
    Path("out/grey.png").write_bytes(b"edited")
    before = sorted(Path("out").rglob("*"))
    planned = run_here(*words, "--dry-run", "--sheet", "pdf")
    assert planned.exit_code == 0 and planned.stderr == ""
    assert planned.stdout.splitlines() == [
        "bad.jpg: done before -> out/bad-sheet.pdf",
        "grey.png -> out/grey.png, out/grey-sheet.pdf",
        "new.png -> out/new.png, out/new-sheet.pdf",
    ]
    other = run_here(*words, "--dry-run", "--seed", "2")
    assert other.exit_code == 1 and "out/bad.jpg was made with other settings" in other.stderr
    assert sorted(Path("out").rglob("*")) == before
    for status, message, words in (
        (1, "inputs are never overwritten", ("grey.png", "-o", ".")),
        (1, "new.png exists; add --overwrite", ("bad.jpg", "-o", "new.png")),
        (2, "places on one photo", (".", "-o", "out", "--hint", "1,1,1:red")),
        (2, "--shard must be I/N", (".", "-o", "out", "--shard", "2/2")),
    ):
        for dry in (["--dry-run"], ["--dry-run", "--json"], ["--checkpoint", checkpoint]):
            done = run_here("colorize", *words, *dry)
            assert done.exit_code == status and message in done.stderr, (words, dry)


def test_a_dry_run_in_lines_of_json(here: Path) -> None:
    Path("out").mkdir()
    shutil.copy("bad.jpg", "out/bad-2.jpg")
    done = run_here("colorize", "grey.png", "bad.jpg", "-o", "out", "--dry-run", "--json", "--variants", "2")
    planned, failed = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1 and (planned["source"], planned["state"]) == ("grey.png", "planned")
    assert planned["results"] == [f"out/grey-{end}" for end in ("1.png", "2.png", "variants.jpg")]
    assert (failed["state"], failed["results"]) == ("failed", []) and "exists" in failed["error"]


def test_a_watched_folder(here: Path, checkpoint: Path) -> None:
    Path("scans/box").mkdir(parents=True)
    shutil.copy("grey.png", "scans/first.png")
    shutil.copy("bad.jpg", "scans/bad.jpg")
    words = ("colorize", "scans", "-o", "scans/colour", "--watch", "--json", "--checkpoint", str(checkpoint))
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout and program.stderr
            lines = map(json.loads, program.stdout)
            states = [next(lines), next(lines)]
            shutil.copy("grey.png", "scans/second.png")
            content = Path("grey.jpg").read_bytes()
            with Path("scans/box/slow.jpg").open("wb") as scanner:  # never silent, for longer than the other takes
                for byte in content:
                    scanner.write(bytes([byte]))
                    if not Path("scans/colour/second.png").exists():
                        scanner.flush()
                        time.sleep(0.1)
            states += [next(lines), next(lines)]
            shutil.copy("grey.jpg", "scans/bad.jpg")
            states.append(next(lines))
            told = {"name": "first.png", "colours": [{"place": "9,9,4", "colour": "red"}]}
            Path("scans/first.colours.json").write_text(json.dumps(told))
            states.append(next(lines))
            program.send_signal(signal.SIGINT)
            assert program.wait(30) == 130 and "Interrupted" in program.stderr.read()
            assert not list(lines), "what was done or failed before isn't named again"
        finally:
            program.kill()
    made = {file.relative_to("scans/colour").as_posix() for file in Path("scans/colour").rglob("*.[jp]*g")}
    assert made == {"first.png", "second.png", "bad.jpg", "box/slow.jpg"}
    became = [(state["source"].removeprefix("scans/"), state["state"]) for state in states]
    assert sorted(became[:2]) == [("bad.jpg", "failed"), ("first.png", "done")]
    assert became[2:] == [(name, "done") for name in ("second.png", "box/slow.jpg", "bad.jpg", "first.png")]
    done = run_here("colorize", "scans", "-o", "out", "--watch", "--shard", "0/2")
    assert done.exit_code == 2 and "--watch works in one process" in done.stderr
    done = run_here("colorize", "grey.png", "-o", "out", "--watch")
    assert done.exit_code == 2 and "--watch grey.png: no such folder" in done.stderr


def test_messages_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    colored, plain = run("--help", **terminal).stdout, run("--help", **terminal, NO_COLOR="1").stdout
    assert b"Exit status" in colored and re.search(rb"\x1b\[[\d;]*3\d", colored)
    assert b"Exit status" in plain and not re.search(rb"\x1b\[[\d;]*3\d", plain)
