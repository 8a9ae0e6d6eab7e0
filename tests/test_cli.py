"""The command as a user meets it, on a tiny real checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import color as skimage_color
from skimage import data as skimage_data
from typer.testing import CliRunner, Result

from colorized_pipeline import __version__
from colorized_pipeline.archive.files import output_format
from colorized_pipeline.cli import app


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save("grey.png")

    def invoke(*words: str, command: str = "colorize") -> Result:
        return CliRunner().invoke(app, [command, *words, "--checkpoint", str(checkpoint)])

    return invoke


def lightness(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return skimage_color.rgb2lab(np.asarray(image.convert("RGB")))[..., 0]


def test_one_photo_into_one_file(run) -> None:
    result = run("grey.png", "-o", "new/colour.png")
    assert result.exit_code == 0, result.output
    assert "1 of 1 photos colorized into new/colour.png" in result.stdout
    with Image.open("new/colour.png") as image:
        assert image.size == (60, 44) and image.mode == "RGB"
    assert np.abs(lightness("new/colour.png") - lightness("grey.png")).mean() < 0.3
    assert [path.name for path in Path("new").iterdir()] == ["colour.png"]


def test_folder_into_folder_keeps_names_and_formats(run) -> None:
    Path("in").mkdir()
    for name in ("a.jpg", "b.png", "c.tif", "d.webp", "e.bmp", "f.gif", "G.JPEG"):
        Image.open("grey.png").save(Path("in") / name)
    Path("in/notes.txt").write_text("not a photo")
    result = run("in", "-o", "out")
    assert result.exit_code == 0, result.output
    assert "7 of 7" in result.stdout
    made = {path.name for path in Path("out").iterdir()}
    assert made == {"a.jpg", "b.png", "c.tif", "d.webp", "e.bmp", "f.png", "G.JPEG"}
    formats = {name: Image.open(Path("out") / name).format for name in made}
    assert formats == {
        **{"a.jpg": "JPEG", "b.png": "PNG", "c.tif": "TIFF", "d.webp": "WEBP"},
        **{"e.bmp": "BMP", "f.png": "PNG", "G.JPEG": "JPEG"},
    }


def test_seed_steps_and_intensity(run) -> None:
    def pixels(*options: str) -> np.ndarray:
        assert run("grey.png", "-o", "x.png", "--overwrite", *options).exit_code == 0
        return np.asarray(Image.open("x.png")).astype(int)

    first = pixels("--seed", "3")
    assert np.array_equal(first, pixels("--seed", "3"))
    assert not np.array_equal(first, pixels("--seed", "4"))
    assert not np.array_equal(first, pixels("--seed", "3", "--steps", "5"))
    assert not np.array_equal(first, pixels("--seed", "3", "--working-size", "64"))
    assert np.ptp(pixels("--intensity", "0"), axis=-1).max() <= 1


def test_a_photo_does_not_depend_on_its_neighbours(run) -> None:
    Image.open("grey.png").rotate(180).save("other.png")
    assert run("other.png", "grey.png", "-o", "both").exit_code == 0
    # At an equal batch size: a single photo's is 1 unless asked for, and the results then differ in the last digits
    assert run("grey.png", "-o", "alone", "--batch-size", "4").exit_code == 0
    assert Path("both/grey.png").read_bytes() == Path("alone/grey.png").read_bytes()


def test_bad_photos_are_named_and_the_others_go_on(run) -> None:
    Path("bad.jpg").write_text("not a photo")
    Path("empty.png").touch()
    result = run("bad.jpg", "grey.png", "empty.png", "-o", "out")
    assert result.exit_code == 1
    assert "1 of 3 photos" in result.stdout and "2 failed" in result.stdout
    errors = [line for line in result.stderr.splitlines() if "Error: " in line]
    assert len(errors) == 2 and "bad.jpg" in errors[0] and "empty.png" in errors[1]
    assert "Traceback" not in result.output
    assert [path.name for path in Path("out").iterdir()] == ["grey.png"]


def test_inputs_are_never_overwritten(run) -> None:
    before = Path("grey.png").read_bytes()
    Path("link.png").symlink_to("grey.png")
    os.link("grey.png", "hard.png")
    for target in ("grey.png", ".", "link.png", "hard.png"):
        result = run("grey.png", "-o", target, "--overwrite")
        assert result.exit_code == 1 and "inputs are never overwritten" in result.stderr
    assert Path("grey.png").read_bytes() == before


def test_results_are_replaced_only_when_told_to(run) -> None:
    Path("colour.png").write_text("precious")
    result = run("grey.png", "-o", "colour.png")
    assert result.exit_code == 1 and "--overwrite" in result.stderr
    assert Path("colour.png").read_text() == "precious"
    assert run("grey.png", "-o", "colour.png", "--overwrite").exit_code == 0
    assert Image.open("colour.png").size == (60, 44)


def test_two_photos_of_one_name_do_not_replace_each_other(run) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Image.open("grey.png").save(Path(folder) / "same.png")
    result = run("a/same.png", "b/same.png", "-o", "out")
    assert result.exit_code == 0 and sorted(file.name for file in Path("out").iterdir()) == ["b-same.png", "same.png"]


def test_a_failed_write_leaves_nothing_behind(run) -> None:
    Path("taken").write_text("a file where the folder should be")
    result = run("grey.png", "-o", "taken/colour.png")
    assert result.exit_code == 1 and "taken" in result.stderr
    result = run("grey.png", "-o", "out/colour.jp2", "--steps", "1")
    made = list(Path("out").iterdir())
    assert (result.exit_code, len(made)) in ((0, 1), (1, 0))  # Pillow may lack the JPEG 2000 codec


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.png", "-o", "x.png"), "nowhere.png: no such file"),
        (("empty", "-o", "x"), "no photo in this folder"),
        (("grey.png", "grey2.png", "-o", "x.png"), "names one file"),
    ],
)
def test_wrong_calls_are_explained(run, words: tuple[str, ...], message: str) -> None:
    Path("empty").mkdir()
    Image.open("grey.png").save("grey2.png")
    result = run(*words)
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize("options", [("--steps", "0"), ("--intensity", "-1"), ("--seed", "-1")])
def test_values_out_of_range_are_refused(run, options: tuple[str, str]) -> None:
    assert run("grey.png", "-o", "x.png", *options).exit_code == 2


def test_unknown_ending_is_refused(run) -> None:
    Path("grey.xyz").write_bytes(Path("grey.png").read_bytes())
    result = run("grey.xyz", "-o", "out")
    assert result.exit_code == 1 and "grey.xyz" in result.stderr and "use .png" in result.stderr


def test_endings_for_grey_alone_are_not_used_for_colours(run) -> None:
    Image.open("grey.png").save("scan.pgm")
    assert run("scan.pgm", "-o", "out").exit_code == 0
    assert [path.name for path in Path("out").iterdir()] == ["scan.ppm"]
    assert Path("out/scan.ppm").read_bytes().startswith(b"P6")
    result = run("grey.png", "-o", "out/colour.pgm")
    assert result.exit_code == 1 and "colour.pgm: .pgm holds no colours; use .ppm" in result.stderr
    for name in ("colour.pbm", "colour.pfm", "colour.xyz"):
        with pytest.raises(ValueError, match=rf"{name}.*use \."):
            output_format(Path(name))


def test_inspect_names_pages_that_are_missing(run) -> None:
    pages = [Image.open("grey.png"), Image.open("grey.png").rotate(180)]
    pages[0].save("scan.tif", save_all=True, append_images=pages[1:])
    assert run("scan.tif", "-o", "colour.tif", "--pages", "first").exit_code == 0
    lines = CliRunner().invoke(app, ["inspect", "colour.tif", "--source", "scan.tif"]).stdout.splitlines()
    assert lines[-1] == "page 2: missing in the copy" and "page 1: lightness" in lines[-2]


def test_bad_checkpoint_and_device_are_explained(tmp_path: Path, checkpoint: Path) -> None:
    Image.new("L", (40, 40), 99).save(tmp_path / "grey.png")
    words = ["colorize", str(tmp_path / "grey.png"), "-o", str(tmp_path / "x.png")]
    result = CliRunner().invoke(app, [*words, "--checkpoint", str(tmp_path)])
    assert result.exit_code == 2 and f"checkpoint {tmp_path} can't be loaded" in result.stderr
    result = CliRunner().invoke(app, [*words, "--checkpoint", str(checkpoint), "--device", "toaster"])
    assert result.exit_code == 2 and "'toaster'" in result.stderr


def test_installed_command() -> None:
    executable = Path(sys.executable).with_name("colorized")
    done = subprocess.run([executable, "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"colorized {__version__}"


@pytest.mark.parametrize(("command", "extra"), [("evaluate", "train,evaluate"), ("export", "export"), ("app", "app")])
def test_help_names_the_packages_that_a_command_needs(command: str, extra: str) -> None:
    assert f"pip install 'colorized[{extra}]'" in CliRunner().invoke(app, [command, "--help"]).output
