"""A box in one set of colours: what is known of them, in files beside photos; photos that are tied to each other."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline.archive.files import MANIFEST_NAME, Job
from colorized_pipeline.archive.labels import read_xmp
from colorized_pipeline.cli import app
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.diffusion.steering import TieSteer, match_colors
from colorized_pipeline.options import PageLimits
from colorized_pipeline.sets.groups import likeness, look_at, tie_alike, tie_folders
from colorized_pipeline.sets.known import add_known_colors, painted_entry, read_hints, write_sidecar

BRICK = {"place": [40, 30, 12], "colour": "#8a3b2e", "note": "brick of the mill", "source": "A. Clerk, 2019"}


def save(file: Path, *, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(skimage_data.camera()[::6, ::6], 20 * seed, axis=1)).save(file)
    return file


def job(file: Path) -> Job:
    return Job(file, file.with_suffix(".png"), Path(file.name))


def run(*words: str | Path, checkpoint: Path) -> Any:
    return CliRunner().invoke(app, ["colorize", *map(str, words), "--checkpoint", str(checkpoint), "--device", "cpu"])


def chroma_at(file: Path, x: int, y: int) -> torch.Tensor:
    with Image.open(file) as opened:
        rgb = torch.from_numpy(np.array(opened.convert("RGB"))).movedim(-1, 0) / 255
    return rgb_to_lab(rgb)[1:, y, x]


def labelled(file: Path) -> dict[str, str]:
    with Image.open(file) as opened:
        return read_xmp(opened.info.get("xmp") or opened.info["XML:com.adobe.xmp"].encode())


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{MANIFEST_NAME}.jsonl").read_text().splitlines()]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    for number in range(3):
        save(tmp_path / "box" / f"{17 + number}.png", seed=number)
    return tmp_path / "box"


def test_sidecar_and_table_reach_the_photo_its_label_and_the_manifest(box: Path, checkpoint: Path) -> None:
    (box / "17.colours.json").write_text(write_sidecar("17.png", [BRICK]), encoding="utf-8")
    (box / "colours.csv").write_text(
        'file,place,colour,note,who says so\n18.png,"40,30,12",lab(50 -40 30),a green gate,Ž. Nováková\n', "utf-8"
    )
    out = box.parent / "out"
    assert run(box, "-o", out, "-r", checkpoint=checkpoint).exit_code == 0
    red, green = chroma_at(out / "17.png", 40, 30), chroma_at(out / "18.png", 40, 30)
    assert red[0] > 10 and red[1] > 5 and green[0] < -10
    assert labelled(out / "17.png")["colorized:KnownColours"] == "40,30,12:#8a3b2e (A. Clerk, 2019: brick of the mill)"
    assert "Ž. Nováková: a green gate" in labelled(out / "18.png")["colorized:KnownColours"]
    assert "colorized:KnownColours" not in labelled(out / "19.png")
    known = {one["source"]: one["settings"].get("known") for one in records(out)}
    assert known["19.png"] is None and "A. Clerk" in known["17.png"][0]


def test_a_changed_sidecar_does_its_photo_again_and_no_other(box: Path, checkpoint: Path) -> None:
    sidecar, out = box / "17.colours.json", box.parent / "out"
    before = run(box, "-o", out, "-r", checkpoint=checkpoint)
    plain = (out / "17.png").read_bytes()
    sidecar.write_text(write_sidecar("17.png", [BRICK]))
    after = run(box, "-o", out, "-r", checkpoint=checkpoint)
    assert before.exit_code == after.exit_code == 0
    assert "1 of 3 photos" in after.output and "2 done before" in after.output
    assert (out / "17.png").read_bytes() != plain
    sidecar.unlink()
    assert run(box, "-o", out, "-r", checkpoint=checkpoint).exit_code == 0
    assert (out / "17.png").read_bytes() == plain
    refused = run(box, "-o", out, "-r", "--steps", "3", checkpoint=checkpoint)  # other settings are another matter
    assert refused.exit_code == 1 and "--overwrite" in refused.output


def test_what_one_photo_is_told_changes_no_other(box: Path, checkpoint: Path) -> None:
    alone, beside = box.parent / "alone", box.parent / "beside"
    assert run(box, "-o", alone, "-r", "--guidance", "1.5", checkpoint=checkpoint).exit_code == 0
    (box / "18.colours.json").write_text(write_sidecar("18.png", [BRICK]))
    assert run(box, "-o", beside, "-r", "--guidance", "1.5", checkpoint=checkpoint).exit_code == 0
    same = {
        name: (alone / name).read_bytes() == (beside / name).read_bytes() for name in ("17.png", "18.png", "19.png")
    }
    assert same == {"17.png": True, "18.png": False, "19.png": True}


SIDECARS = {
    "{": "isn't JSON in UTF-8",
    "[]": "isn't an object",
    '{"name": "18.jpg", "colours": []}': "name: '18.jpg' isn't in this folder; write '17.png'",
    '{"version": 7, "colours": []}': "version: 7 isn't known; write 1",
    '{"colours": {}}': "colours: give a list",
    '{"colours": ["red"]}': "colours[0]: give {place, colour, note, source}",
    '{"colours": [{"place": [1, 2], "colour": "red"}]}': "colours[0]: place: [1, 2] is no place; give x,y,radius",
    '{"colours": [{"place": "gone.png", "colour": "red"}]}': "place: 'gone.png' is no place and no picture here",
    '{"colours": [{"place": [1, 2, 3], "colour": "brickish"}]}': "colours[0]: colour: unknown colour 'brickish'",
    '{"colours": [{"place": [1, 2, 3], "colour": "red", "who": "me"}]}': "colours[0]: 'who' isn't known; give {place",
    '{"colours": [{"place": [1, 2, 3]}]}': "colours[0]: colour: unknown colour ''",
    '{"colours": [{"place": [1, 2, 3], "colour": "red"}, {"place": [999, 2, 3], "colour": "red"}]}': (
        "colours[1]: place: point x=999, y=2 lies outside the photo of 86 x 86 pixels"
    ),
    '{"colours": [{"place": "data:image/png;base64,AAAA"}]}': "colours[0]: place: can't be read as a picture",
    '{"colours": [{"place": "reference", "colour": "gone.jpg"}]}': "colour: no picture 'gone.jpg' here",
}


def test_bad_sidecars_name_file_entry_and_remedy_and_the_others_go_on(tmp_path: Path, checkpoint: Path) -> None:
    for number, text in enumerate(SIDECARS):
        save(tmp_path / "box" / f"{number}" / "17.png")
        (tmp_path / "box" / f"{number}" / "17.colours.json").write_text(text)
    save(tmp_path / "box" / "good.png")
    result = run(tmp_path / "box", "-o", tmp_path / "out", "-r", checkpoint=checkpoint)
    assert result.exit_code == 1 and (tmp_path / "out" / "good.png").exists()
    lines = re.findall("Error: .*", result.output)
    for number, message in enumerate(SIDECARS.values()):
        (line,) = [one for one in lines if f"/{number}/17.png: " in one]
        assert f"/{number}/17.colours.json: " in line and message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,colour\n17.png,red\n", "line 1: has no column place"),
        ('file,place,colour,author\n17.png,"1,2,3",red,me\n', "line 1: column 'author' isn't known; take it out"),
        ('file,place,colour\n17.png,"1,2,3",red\ngone.png,"1,2,3",red\n', "line 3: file: no 'gone.png' here"),
        ("file,place,colour\n17.png,1,2,3,red\n", 'line 2: more cells than columns; quote places: "120,80,25"'),
        ('file,place,colour\n17.png,"1,2,3",reddish\n', "line 2: colour: unknown colour 'reddish'"),
    ],
)
def test_bad_tables_name_file_line_and_remedy(box: Path, text: str, message: str) -> None:
    (box / "colours.csv").write_text(text)
    (found,) = add_known_colors([job(box / "17.png")])
    assert f"{box / 'colours.csv'}: {message}" in found.refusal


def test_a_table_above_speaks_of_folders_below_and_of_all(box: Path) -> None:
    inner = save(box / "album" / "1.png")
    (box / "colours.csv").write_text(
        "file;place;colour\nalbum/1.png;1 2 3;red\n*;reference;17.png\n17.png;1 2 3;red\n"
    )
    (found,) = add_known_colors([Job(inner, inner, Path("album/1.png"))])
    assert [one.is_reference for one in found.known] == [False, True]
    (apart,) = add_known_colors([Job(inner, inner, Path("1.png"))])  # its folder alone was given
    assert apart.known == ()


def test_painting_of_another_size_is_scaled(box: Path, checkpoint: Path) -> None:
    painting = Image.new("RGBA", (43, 43), (0, 0, 0, 0))
    painting.paste((138, 59, 46, 255), (10, 10, 30, 30))
    (box / "17.colours.json").write_text(write_sidecar("17.png", [painted_entry(painting, source="A. Clerk")]))
    out = box.parent / "out.png"
    assert run(box / "17.png", "-o", out, checkpoint=checkpoint).exit_code == 0
    assert chroma_at(out, 30, 50)[0] > 10 and "(A. Clerk)" in labelled(out)["colorized:KnownColours"]


def test_the_page_saves_what_was_painted(box: Path) -> None:
    app = pytest.importorskip("colorized_pipeline.app")
    worker = app.Worker(make_pipeline(), PageLimits())
    layer = Image.new("RGBA", (86, 86), (0, 0, 0, 0))
    layer.paste((138, 59, 46, 255), (20, 20, 60, 60))
    button, folder = worker.save_colors(str(box / "17.png"), None, {"layers": [layer]}, None, "Ž. Nováková")
    saved = Path(folder.name) / "17.colours.json"
    assert button.value["path"].endswith(saved.name) and not list(box.glob("*.json"))
    saved.rename(box / saved.name)
    (found,) = add_known_colors([job(box / "17.png")])
    (painting,) = read_hints(found.known, (86, 86))
    assert np.array_equal(np.array(painting), np.array(layer)) and "Ž. Nováková" in found.known[0].described
    with pytest.raises(gradio_error(), match="Nothing is painted"):
        worker.write_colors(str(box / "17.png"), None, {"layers": []}, " \n", "")


def gradio_error() -> type[Exception]:
    import gradio

    return gradio.Error


def test_a_folder_of_references_goes_by_name(box: Path, checkpoint: Path) -> None:
    Image.new("RGB", (60, 40), (150, 60, 40)).save(box.parent / "18.jpg")
    references, out = box.parent / "today", box.parent / "out"
    references.mkdir()
    empty = run(box, "-o", out, "-r", "--reference", references, checkpoint=checkpoint)
    assert empty.exit_code == 2 and "no picture there has a photo's name" in empty.output
    (box.parent / "18.jpg").rename(references / "18.jpg")
    assert run(box, "-o", out, "-r", "--reference", references, checkpoint=checkpoint).exit_code == 0
    assert labelled(out / "18.png")["colorized:KnownColours"].startswith("reference:")
    assert "colorized:KnownColours" not in labelled(out / "17.png")


def test_match_finds_the_cells_wherever_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(32, 6, 8, generator=generator)
    level, colours = torch.full((1, 6, 8), 50.0), torch.randn(2, 6, 8, generator=generator)
    turned = [one.flip(-1) for one in (features, level)]
    tie = match_colors(turned[0], turned[1], known=(features, level, colours))
    assert torch.allclose(tie.target, colours.flip(-1), atol=1e-2) and tie.weight.min() == 1
    other = match_colors(torch.randn(32, 6, 8, generator=generator), level, known=(features * 0 + 1, level, colours))
    assert other.weight.max() == 0
    clean = torch.randn(2, 2, 6, 8, generator=generator)
    steered = TieSteer([tie, other], scale=40.0, steps=1, share=1.0)(clean, clean)
    assert torch.allclose(steered[0], tie.target / 40) and torch.equal(steered[1], clean[1])


def test_photos_that_show_the_same_are_found(tmp_path: Path) -> None:
    camera, cat = skimage_data.camera(), skimage_data.cat()[..., 1]
    pictures = {"a.png": camera, "b.png": camera[40:480, 50:500], "c.png": cat, "d.png": 255 - (255 - camera) // 2}
    for name, picture in pictures.items():
        Image.fromarray(picture).resize((128, 128)).save(tmp_path / name)
    (tmp_path / "e.png").write_bytes(b"no picture")
    jobs = [job(tmp_path / name) for name in (*pictures, "e.png")]
    from colorized_pipeline import load_default

    look = look_at(load_default(), max_megapixels=100, borders=True, working_size=None)
    tied = {one.source.name: one.leader and one.leader.source.name for one in tie_alike(jobs, look)}
    assert tied == {"a.png": None, "b.png": "a.png", "c.png": None, "d.png": "a.png", "e.png": None}
    seen = [look(one) for one in jobs[:3]]
    assert likeness(seen[0], seen[0]) == pytest.approx(1, abs=1e-4)
    assert likeness(seen[0], seen[2]) < 0.4 < 0.5 < likeness(seen[0], seen[1])


def test_known_colours_lead_a_folder(box: Path) -> None:
    (box / "18.colours.json").write_text(write_sidecar("18.png", [BRICK]))
    tied = tie_folders(add_known_colors([job(box / f"{number}.png") for number in (17, 18, 19)]))
    assert [one.leader and one.leader.source.name for one in tied] == ["18.png", None, "18.png"]


@pytest.mark.parametrize("encoder", [False, True])
def test_a_tied_photo_gets_the_other_s_colours(encoder: bool) -> None:
    pipe, photo = make_pipeline(encoder=encoder), skimage_data.camera()[::4, ::4]
    first, second = pipe.prepare(photo), pipe.prepare(255 - (255 - photo) // 2)
    (chroma,) = pipe.draw(first, generators=[torch.Generator().manual_seed(0)])
    tie = pipe.tie(second, first, chroma)
    apart, tied = (
        (pipe.draw(second, generators=[torch.Generator().manual_seed(1)], ties=ties)[0] - chroma).norm(dim=0).mean()
        for ties in (None, [tie])
    )
    assert tied < 0.8 * apart  # this network knows nothing, and its last step adds to that


def test_ties_are_recorded_and_do_not_depend_on_interruptions(box: Path, checkpoint: Path) -> None:
    whole, twice = box.parent / "whole", box.parent / "twice"
    words = ("-r", "--consistent", "folder")
    assert run(box, "-o", whole, *words, checkpoint=checkpoint).exit_code == 0
    assert run(box / "17.png", "-o", twice, *words, "--batch-size", "4", checkpoint=checkpoint).exit_code == 0
    assert run(box, "-o", twice, *words, checkpoint=checkpoint).exit_code == 0
    for name in ("17.png", "18.png", "19.png"):
        assert (whole / name).read_bytes() == (twice / name).read_bytes(), name
    assert labelled(whole / "18.png")["colorized:TiedTo"].startswith("17.png; ")
    assert "colorized:TiedTo" not in labelled(whole / "17.png")
    (box / "17.colours.json").write_text(write_sidecar("17.png", [BRICK]))
    again = run(box, "-o", whole, *words, checkpoint=checkpoint)  # what leads the folder has changed
    assert again.exit_code == 0 and "3 of 3 photos" in again.output
    assert "A. Clerk" in labelled(whole / "19.png")["colorized:TiedTo"]


def test_a_folder_led_by_a_bad_file_says_so(box: Path, checkpoint: Path) -> None:
    (box / "0.png").write_bytes(b"no picture")
    result = run(box, "-o", box.parent / "out", "--consistent", "folder", checkpoint=checkpoint)
    assert result.exit_code == 1
    assert "17.png: gets the colours of a photo that can't be colorized" in result.output
    assert "take it out of the folder" in result.output
