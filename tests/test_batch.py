"""Batches: mirrored trees, manifest, resuming, kills, order, processes, on a tiny real checkpoint."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import make_pipeline
from kill_trials import make_photos, results, run_trials
from PIL import Image
from skimage import color as skimage_color
from skimage import data as skimage_data
from typer.testing import CliRunner, Result

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.archive.files import Job, KnownColor, find_photos, plan_jobs
from colorized_pipeline.archive.scans import hash_file
from colorized_pipeline.batch.manifest import MANIFEST_NAME, Manifest, partial_folder
from colorized_pipeline.batch.overlap import Batch, explain
from colorized_pipeline.batch.settings import Settings, build_settings, derive_seed
from colorized_pipeline.batch.shards import take_part
from colorized_pipeline.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, ["colorize", *words, "--checkpoint", str(checkpoint), "--device", "cpu"])

    return invoke


def records(folder: str = "out") -> list[dict]:
    return [
        json.loads(line)
        for file in sorted(Path(folder).glob(f"{MANIFEST_NAME}*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def test_tree_is_mirrored_and_recorded(run) -> None:
    make_photos(Path("in"), 6)
    (Path("in") / "notes.txt").write_text("not a photo")
    result = run("in", "-o", "out", "--recursive")
    assert result.exit_code == 0, result.output
    assert "6 of 6 photos colorized into out" in result.stdout
    assert set(results(Path("out"))) == set(results(Path("in"))) - {"notes.txt"}
    assert len(records()) == 6
    for record in records():
        assert record["sha256"] == hash_file(Path("in") / record["source"])
        assert record["output_sha256"] == hash_file(Path("out") / record["output"])
        assert record["seeds"] == [derive_seed(0, record["sha256"])]
        assert record["seconds"] > 0 and record["finished"]
    assert {path.name for path in Path("out").iterdir()} == {"box 0", "box 1", "box 2", f"{MANIFEST_NAME}.jsonl"}


def test_the_same_command_skips_what_is_done_and_repairs_what_is_not(run) -> None:
    make_photos(Path("in"), 6)
    run("in", "-o", "out", "-r")
    before = results(Path("out"))
    times = {file: file.stat().st_mtime_ns for file in Path("out").rglob("*.*")}
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 0 and "0 of 6" in result.stdout and "6 done before" in result.stdout
    assert times == {file: file.stat().st_mtime_ns for file in Path("out").rglob("*.*")}

    missing, damaged = (Path("out") / name for name in sorted(before)[:2])
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 0 and "2 of 6" in result.stdout and "4 done before" in result.stdout
    after = results(Path("out"))
    assert {name: after[name] for name in before} == before
    (aside,) = set(after) - set(before)  # what was edited or damaged is kept
    assert ".changed-" in aside


def test_failures_are_recorded_and_retried(run) -> None:
    make_photos(Path("in"), 3)
    good = Path("in/box 0/0000.jpg").read_bytes()
    Path("in/box 0/0000.jpg").write_bytes(good[:100])
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 1 and "2 of 3" in result.stdout and "1 failed" in result.stdout
    assert next(record for record in records() if "error" in record)["source"] == "box 0/0000.jpg"
    Path("in/box 0/0000.jpg").write_bytes(good)
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 0 and "1 of 3" in result.stdout


def test_other_settings_do_not_replace_results_silently(run) -> None:
    make_photos(Path("in"), 2)
    run("in", "-o", "out", "-r")
    before = results(Path("out"))
    result = run("in", "-o", "out", "-r", "--seed", "1")
    assert result.exit_code == 1 and result.stderr.count("was made with other settings; add --overwrite") == 2
    assert results(Path("out")) == before
    assert "2 done before" in run("in", "-o", "out", "-r").stdout  # the refusal changed nothing
    assert run("in", "-o", "out", "-r", "--seed", "1", "--overwrite").exit_code == 0
    after = results(Path("out"))
    assert not set(after.values()) & set(before.values())
    result = run("in", "-o", "out", "-r", "--seed", "1", "--overwrite")
    assert "2 done before" in result.stdout  # going on with an overwriting run doesn't start it again


def test_a_changed_source_is_noticed(run) -> None:
    make_photos(Path("in"), 2)
    run("in", "-o", "out", "-r")
    Image.new("L", (90, 90), 40).save("in/box 0/0000.jpg")
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 1 and "another version of the photo; add --overwrite" in result.stderr


def test_a_photo_of_somebody_else_is_not_replaced(run) -> None:
    make_photos(Path("in"), 2)
    Path("out/box 0").mkdir(parents=True)
    Path("out/box 0/0000.jpg").write_text("precious")
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 1 and "exists; add --overwrite" in result.stderr
    assert Path("out/box 0/0000.jpg").read_text() == "precious"


def test_results_inside_the_input_are_not_taken_for_photos(run) -> None:
    make_photos(Path("in"), 3)
    for done in (3, 0):
        result = run("in", "-o", "in/colour", "-r")
        assert result.exit_code == 0 and f"{done} of 3 photos" in result.stdout
    assert len(results(Path("in"))) == 6


def test_several_folders_each_under_its_name(run) -> None:
    for folder in ("a", "b"):
        make_photos(Path(folder), 1)
    assert run("a", "b", "-o", "out", "-r").exit_code == 0
    assert set(results(Path("out"))) == {"a/box 0/0000.jpg", "b/box 0/0000.jpg"}


def test_pages_of_a_tiff(run) -> None:
    pages = [skimage_data.camera()[:90, :120], skimage_data.camera()[200:300, 50:130]]
    with tifffile.TiffWriter("a.tif") as writer:
        for page in pages:
            writer.write(page.astype(np.uint16) * 257, photometric="minisblack")
    assert run("a.tif", "-o", "all.tif").exit_code == 0
    with tifffile.TiffFile("all.tif") as tiff:
        assert [page.shape for page in tiff.pages] == [(90, 120, 3), (100, 80, 3)]
        assert all(page.dtype == np.uint16 for page in tiff.pages)
        assert all(700 in page.tags for page in tiff.pages)
        two = tiff.pages[1].asarray()
    result = run("a.tif", "-o", "first.tif", "--pages", "first")
    assert result.exit_code == 0 and "only the first is colorized" in result.stderr
    assert len(tifffile.TiffFile("first.tif").pages) == 1
    result = run("a.tif", "-o", "a.png")
    assert result.exit_code == 1 and "has 2 pages" in result.stderr and "--pages first" in result.stderr
    grey = np.stack([pages[1]] * 3, axis=-1) / 255
    assert np.abs(skimage_color.rgb2lab(two / 65535)[..., 0] - skimage_color.rgb2lab(grey)[..., 0]).max() < 0.1


def test_format_option(run) -> None:
    make_photos(Path("in"), 4)
    assert run("in", "-o", "out", "-r", "--format", "tif").exit_code == 0
    assert {name.rsplit(".", 1)[1] for name in results(Path("out"))} == {"tif"}
    depths = {name: tifffile.TiffFile(Path("out") / name).pages[0].bitspersample for name in results(Path("out"))}
    assert depths["box 2/0002.tif"] == 16 and sorted(depths.values()) == [8, 8, 8, 16]


def settings_for(pipe: ColorizationPipeline, **changes: Any) -> Settings:
    return build_settings(pipe, checkpoint="-", **changes)


def colorize_all(folder: Path, output: Path, *, order: int = 0) -> dict[str, str]:
    """The whole folder in an order of its own; hashes of the results."""
    pipe = make_pipeline()
    jobs = plan_jobs(find_photos([folder], recursive=True), output, inputs=[folder], recursive=True)
    random.Random(order).shuffle(jobs)
    outcomes = list(Batch(pipe, settings_for(pipe), output=output).run(jobs))
    assert {outcome.state for outcome in outcomes} == {"done"}
    return results(output)


def test_order_does_not_change_results(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 13)
    first, second = (colorize_all(tmp_path / "in", tmp_path / f"out{n}", order=n) for n in (1, 2))
    assert len(first) == 13 and first == second


def test_seeds_derive_from_content_alone(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 1)
    source = next((tmp_path / "in").rglob("*.jpg"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "renamed.jpg").write_bytes(source.read_bytes())
    (one,) = colorize_all(tmp_path / "in", tmp_path / "a").values()
    (two,) = colorize_all(tmp_path / "other", tmp_path / "b").values()
    assert one != two  # the labels name different files
    pictures = [np.asarray(Image.open(next(folder.rglob("*.jpg")))) for folder in (tmp_path / "a", tmp_path / "b")]
    assert np.array_equal(*pictures)
    seeds = {derive_seed(seed, sha256, page) for seed in (0, 1) for sha256 in ("a", "b") for page in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)


def test_the_library_gives_the_command_s_picture(run, checkpoint: Path) -> None:
    """A label's seed is all one needs to make a copy again."""
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save("a.png")
    assert run("a.png", "-o", "b.png", "--no-borders").exit_code == 0
    pipe = ColorizationPipeline.from_pretrained(checkpoint)
    seed = derive_seed(0, hash_file(Path("a.png")))
    again = pipe("a.png", generator=[torch.Generator().manual_seed(seed)]).images[0]
    assert np.abs(np.asarray(again).astype(int) - np.asarray(Image.open("b.png"))).max() <= 1


def test_killed_at_any_moment_nothing_is_lost(checkpoint: Path, tmp_path: Path) -> None:
    """A few of the trials of kill_trials.py, which ran 200 (docs/measurements/archive.md)."""
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--steps", "8"]
    script = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from kill_trials import run_trials
found = run_trials(Path({str(tmp_path)!r}), trials=8, photos=10, options={options!r}, seed=3)
assert not found["faults"], found
assert found["killed"] >= 3, found
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run_trials.__doc__


def test_torn_manifest_line_is_passed_over(tmp_path: Path) -> None:
    jobs = {name: Job(Path(name), tmp_path / name, Path(name)) for name in "abc"}
    with Manifest(tmp_path) as manifest:
        manifest.add(jobs["a"], tmp_path / "a")
    file = tmp_path / f"{MANIFEST_NAME}.jsonl"
    file.write_bytes(file.read_bytes() + b'{"output": "b", "fin')
    with Manifest(tmp_path) as manifest:
        assert manifest.find(tmp_path / "a") and not manifest.find(tmp_path / "b")
        manifest.add(jobs["c"], tmp_path / "c")
    with Manifest(tmp_path) as manifest:
        assert manifest.find(tmp_path / "a") and manifest.find(tmp_path / "c")


def test_two_runs_into_one_folder_are_refused(run) -> None:
    make_photos(Path("in"), 1)
    with partial_folder(Path("out")):
        result = run("in", "-o", "out", "-r")
    assert result.exit_code == 2 and "another run is writing into out" in result.stderr


def test_shards_are_disjoint_and_complete() -> None:
    jobs = list(range(10))
    parts = [take_part(jobs, shard=f"{index}/3") for index in range(3)]  # type: ignore[arg-type]
    assert sorted(job for part in parts for job in part.jobs) == jobs
    assert len({part.name for part in parts}) == 3
    for wrong in ("3/3", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(ValueError, match="--shard must be I/N"):
            take_part([], shard=wrong)


def test_shards_give_what_one_run_gives(run) -> None:
    make_photos(Path("in"), 5)
    assert run("in", "-o", "whole", "-r").exit_code == 0
    for shard in ("1/2", "0/2"):
        assert run("in", "-o", "out", "-r", "--shard", shard).exit_code == 0
    assert results(Path("out")) == results(Path("whole"))
    assert len(records("out")) == 5
    assert "5 done before" in run("in", "-o", "out", "-r").stdout  # one process goes on where two began


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# With --cpu accelerate would run one process (see docs/how-to/archive.md)
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_give_what_one_gives(run, checkpoint: Path, launcher: tuple[str, ...]) -> None:
    make_photos(Path("in"), 7)
    (Path("in") / "bad.png").write_text("not a photo")
    assert run("in", "-o", "whole", "-r").exit_code == 1
    done = subprocess.run(
        [
            *(sys.executable, "-m", *launcher),
            *("-m", "colorized_pipeline", "colorize", "in", "-o", "out", "-r", "--device", "cpu"),
            *("--checkpoint", str(checkpoint)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert "7 of 8 photos colorized into out" in done.stdout, done.stderr[-3000:]
    assert done.returncode == 1 and done.stdout.count("photos colorized") == 1
    assert results(Path("out")) == results(Path("whole"))
    manifests = sorted(Path("out").glob(f"{MANIFEST_NAME}*"))
    assert len(manifests) == 2 and all(file.stat().st_size for file in manifests)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def jobs_for(photo: Path, *names: str) -> list[Job]:
    return [Job(photo, photo.parent / "out" / name, Path(photo.name)) for name in names]


@contextmanager
def counting_rows(network: torch.nn.Module) -> Iterator[list[int]]:
    """Rows of each call of a network."""
    rows: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    hook.remove()


@pytest.mark.parametrize("variants", [1, 3])
def test_one_photo_costs_what_it_costs_by_the_pipeline(photo: Path, variants: int) -> None:
    pipe = make_pipeline(encoder=True)
    settings = settings_for(pipe, alone=True, guidance=1.5, variants=variants)
    with counting_rows(pipe.unet) as by_batch, counting_rows(pipe.image_encoder) as encoded:
        (outcome,) = Batch(pipe, settings).run(jobs_for(photo, "a.png"))
    assert outcome.state == "done"
    with counting_rows(pipe.unet) as by_pipeline:
        pipe(photo, guidance_scale=1.5, num_variants=variants)
    # Each step shows the network every variant twice: with the photo and, for guidance, without
    assert sum(by_batch) == sum(by_pipeline) == settings.steps * 2 * variants
    assert encoded == [1]


def test_a_photo_alone_is_the_one_among_others(run) -> None:
    """Drawn alone it differs in the fifth digit: at most one of 255 code values. In equal batches it is the same."""
    make_photos(Path("in"), 5)
    assert run("in", "-o", "out", "-r").exit_code == 0
    for name in results(Path("in")):
        assert run(f"in/{name}", "-o", f"alone/{name}").exit_code == 0
        assert run(f"in/{name}", "-o", f"four/{name}", "--batch-size", "4").exit_code == 0
        together, alone = (read_pixels(Path(folder) / name) for folder in ("out", "alone"))
        tolerance = {".jpg": 4, ".tif": 64}.get(Path(name).suffix, 1)  # JPEG rounds anew; of 65,535
        assert np.abs(together.astype(int) - alone).max() <= tolerance
    assert results(Path("four")) == results(Path("out"))


def test_a_photo_given_twice_is_done_twice(photo: Path) -> None:
    pipe = make_pipeline()
    jobs = jobs_for(photo, "a.png", "b.png")
    outcomes = list(Batch(pipe, settings_for(pipe)).run([*jobs, jobs_for(photo.with_name("none.png"), "c.png")[0]]))
    assert sorted(outcome.state for outcome in outcomes) == ["done", "done", "failed"]
    assert jobs[0].target.read_bytes() == jobs[1].target.read_bytes()


def test_one_photo_under_two_names_is_one(run, tmp_path: Path) -> None:
    make_photos(Path("in"), 2)
    result = run("in", str(tmp_path / "in" / "box 0" / "0000.jpg"), "in/box 0/../box 0/0000.jpg", "-o", "out", "-r")
    assert result.exit_code == 0 and "2 of 2 photos" in result.stdout, result.output


def test_threads_of_the_process_are_left_as_they_were(photo: Path) -> None:
    pipe, before = make_pipeline(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = (Batch(pipe, settings_for(pipe)).run(jobs_for(photo, name)) for name in ("a.png", "b.png"))
        assert torch.get_num_threads() == 3
        next(first)
        next(second)
        assert torch.get_num_threads() == 1
        assert not list(first)
        assert torch.get_num_threads() == 1
        assert not list(second)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


_OPENED: list[str] = []  # files, by Python's own audit of this process
sys.addaudithook(lambda event, given: _OPENED.append(str(given[0])) if event == "open" else None)


@pytest.mark.parametrize("known", [(), (KnownColor((30, 20, 5), "red", "30,20,5:red", "colours.csv: line 2"),)])
def test_a_reference_is_read_once_for_all_photos(photo: Path, tmp_path: Path, known: tuple[KnownColor, ...]) -> None:
    reference = tmp_path / "today.png"
    Image.fromarray(skimage_data.astronaut()).resize((60, 44)).save(reference)
    pipe, counts = make_pipeline(), []
    for number, names in enumerate((["a.png"], ["b.png", "c.png", "d.png"])):
        _OPENED.clear()
        output = tmp_path / f"out {number}"
        jobs = [Job(photo, output / name, Path(name), known=known) for name in names]
        with Manifest(output) as manifest:
            batch = Batch(pipe, settings_for(pipe, reference=reference), output=output, manifest=manifest)
            assert [outcome.state for outcome in batch.run(jobs)] == ["done"] * len(names)
        counts.append(_OPENED.count(str(reference)))
    assert 4 >= counts[0] >= counts[1]  # checked, recognized, decoded, hashed


@pytest.mark.parametrize("name", ["a", "two  spaces.png", "line\nbreak.png", "photo"])
def test_an_error_begins_with_the_photo_s_name_as_it_is(tmp_path: Path, name: str) -> None:
    photo = tmp_path / name
    photo.write_text("not a photo")
    pipe = make_pipeline()
    for target, reason in (("x.png", "can't be read as a photo"), ("x.doc", "can't save colour as .doc")):
        (outcome,) = Batch(pipe, settings_for(pipe)).run([Job(photo, tmp_path / target, Path(name))])
        assert outcome.state == "failed" and outcome.message.startswith(f"{photo}: ") and reason in outcome.message
        assert "\n" not in outcome.message.removeprefix(str(photo)) and outcome.message.count(str(photo)) == 1
    assert explain(RuntimeError("a  bad\nday"), Path("a")) == "a: a bad day"


def read_pixels(file: Path) -> np.ndarray:
    if file.suffix == ".tif":
        with tifffile.TiffFile(file) as tiff:
            return tiff.pages[0].asarray()
    return np.asarray(Image.open(file))


def test_time_stamps_of_the_scans(run) -> None:
    make_photos(Path("in"), 2)
    for number, file in enumerate(sorted(Path("in").rglob("*.*"))):
        os.utime(file, (1e9 + number, 1e9 + number))
    assert run("in", "-o", "out", "-r", "--keep-times").exit_code == 0
    assert run("in", "-o", "now", "-r").exit_code == 0
    for file in (file for file in Path("in").rglob("*.*") if file.is_file()):
        name = file.relative_to("in")
        assert (
            (Path("out") / name).stat().st_mtime_ns
            == file.stat().st_mtime_ns
            != (Path("now") / name).stat().st_mtime_ns
        )
    assert "0 of 2" in run("in", "-o", "out", "-r", "--keep-times").stdout  # and they are known as done


def test_a_checkpoint_s_digest_is_of_what_decides_results(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "notes.json").write_text("{}")
    digest = ColorizationPipeline.from_pretrained(checkpoint).digest()
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{8}", digest)
    load = partial(ColorizationPipeline.from_pretrained, tmp_path / "copy")
    assert load().digest() == load(default_steps=9, default_guidance=2.0, working_size=64).digest() == digest
    weights, config = digest.split("-")
    other_weights, other_config = load(chroma_scale=39.0).digest().split("-")
    assert other_weights == weights and other_config != config
    pipe = load()
    with torch.no_grad():
        next(pipe.unet.parameters()).view(-1)[0] += 1
    assert pipe.digest().split("-")[0] != weights and pipe.digest().split("-")[1] == config
