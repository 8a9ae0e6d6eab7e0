"""Publication sheets, the visible mark and layered files, made of results as the command leaves them."""

import io
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from layers import mean_difference, measure, recombined
from PIL import Image
from pypdf import PdfReader
from results import BOX_2, colorize, make_scans
from typer.testing import CliRunner

from colorized_pipeline.archive.copies import mark_mask
from colorized_pipeline.archive.inspection import describe, read_label
from colorized_pipeline.archive.labels import NOTE, find_packet
from colorized_pipeline.archive.scans import hash_file
from colorized_pipeline.batch.manifest import Manifest
from colorized_pipeline.cli import app
from colorized_pipeline.publish.layers import write_layers
from colorized_pipeline.publish.results import Result, find_results, make_result, read_picture
from colorized_pipeline.publish.sheet import draw_publication, write_sheet

psd_tools = pytest.importorskip("psd_tools")


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("archive")
    scans, colours = make_scans(folder / "scans"), folder / "colours"
    colorize(scans, "-o", colours, "-r", checkpoint=checkpoint)
    extra = ("-o", colours / "variants", "--variants", "2", "--uncertainty")
    colorize(scans / "box 1", *extra, checkpoint=checkpoint)
    return scans, colours


def result_of(folders: tuple[Path, Path], name: str) -> Result:
    results, problems = find_results(folders[1], folders[0])
    assert problems == []
    return next(result for result in results if result.name.as_posix() == name)


def test_results_are_found_by_their_labels(folders: tuple[Path, Path]) -> None:
    results, problems = find_results(folders[1], folders[0])
    found = {result.name.as_posix(): [copy.file.name for copy in result.copies] for result in results}
    assert problems == [] and found == {
        "box 1/camera": ["camera.jpg"],
        "box 1/low & wide": ["low & wide.png"],
        f"{BOX_2}/album/pages": ["pages.tif"],
        "variants/camera": ["camera-1.jpg", "camera-2.jpg"],
        "variants/low & wide": ["low & wide-1.png", "low & wide-2.png"],
    }
    assert [result.uncertainty is not None for result in results] == [False, False, False, True, True]
    copy = result_of(folders, "box 1/camera").copies[0]
    assert (copy.title, copy.description) == ("The photographer Žofie", "With her camera, 1938")


def test_a_copy_of_another_scan_is_left_out_with_a_reason(folders: tuple[Path, Path], tmp_path: Path) -> None:
    scans = shutil.copytree(folders[0], tmp_path / "scans")
    (scans / "box 1" / "camera.jpg").write_bytes((scans / "box 1" / "low & wide.png").read_bytes())
    results, problems = find_results(folders[1] / "box 1", scans)
    assert [result.name.name for result in results] == ["low & wide"]
    assert len(problems) == 1 and "camera.jpg: its scan camera.jpg (SHA-256" in problems[0]
    with pytest.raises(ValueError, match=r"made of another version of .*--overwrite"):
        make_result(scans / "box 1" / "camera.jpg", [folders[1] / "box 1" / "camera.jpg"])
    with pytest.raises(ValueError, match="no colour copy"):
        find_results(scans, scans)


def letter_height(marked: np.ndarray, plain: np.ndarray) -> int:
    """Rows of a picture, shrunk to 250 pixels, in which letters stand out clearly from the ground of the mark."""
    size = (250, max(1, round(250 * marked.shape[0] / marked.shape[1])))
    shrunk = [
        np.asarray(Image.fromarray(a).resize(size, Image.Resampling.LANCZOS).convert("L"), int)
        for a in (marked, plain)
    ]
    inside = np.abs(shrunk[0] - shrunk[1]) > 25
    area = shrunk[0][np.ix_(inside.any(1), inside.any(0))]
    contrast = np.percentile(area, 98, axis=1) - np.percentile(area, 5, axis=1)
    return int((contrast > 90).sum())


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (1200, 1600), (2500, 1800), (600, 2400)])
@pytest.mark.parametrize("tone", [0, 128, 255])
def test_mark_is_legible_at_250_pixels(size: tuple[int, int], tone: int, tmp_path: Path) -> None:
    plain = np.full((*size, 3), tone, np.uint8)
    marked = marked_copy(plain)
    assert letter_height(marked, plain) >= 8  # the "l" and "d"; letters like "o" are two thirds of it
    assert (marked != plain).any(axis=2).mean() < 0.16


def marked_copy(pixels: np.ndarray) -> np.ndarray:
    import torch

    from colorized_pipeline.archive.copies import ColorPage, write_copy

    stream = io.BytesIO()
    page = ColorPage(*pixels.shape[:2], [torch.from_numpy(pixels).movedim(-1, 0) / 255])
    write_copy(stream, [page], format_name="PNG", bits=8, mark=True)
    return np.asarray(Image.open(stream))


def test_no_mark_where_none_fits() -> None:
    assert mark_mask(8, 400) is None and mark_mask(400, 30) is None


@pytest.mark.parametrize("size", [(300, 400), (900, 300), (60, 800), (3000, 2200), (1, 1), (40, 5)])
def test_sheet_shows_both_halves_and_a_legible_mark(size: tuple[int, int]) -> None:
    gray = np.full((*size, 3), 150, np.uint8)
    rgb = np.broadcast_to(np.array([200, 140, 100], np.uint8), (*size, 3))
    sheet = np.asarray(draw_publication(gray, np.array(rgb), caption=["Title", "words " * 60, "x" * 400]))
    assert (sheet == 150).all(axis=2).any() and (sheet == (200, 140, 100)).all(axis=2).any()
    plain = sheet.copy()
    dark = (sheet.max(axis=2) < 90) & (sheet.max(axis=2) > 30)
    rows = slice(0, np.flatnonzero(dark.any(axis=1)).max() + 1)
    plain[rows][:, sheet.shape[1] // 2 :] = 200
    assert letter_height(sheet, plain) >= 8


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_sheet_is_labelled(folders: tuple[Path, Path], tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"sheet{ending}"
    write_sheet(result_of(folders, "box 1/camera"), target)
    assert "camera.jpg" in describe(target)["xmpMM:DerivedFrom/stRef:filePath"]
    with Image.open(target) as image:
        assert image.width >= 2 * 256
    first = target.read_bytes()
    write_sheet(result_of(folders, "box 1/camera"), target)
    assert target.read_bytes() == first


def test_sheet_as_pdf(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "sheet.pdf"
    write_sheet(result_of(folders, f"{BOX_2}/album/pages"), target)
    document = PdfReader(target)
    assert len(document.pages) == 1 and document.metadata is not None
    assert (document.metadata.title, document.metadata.subject) == ("pages", NOTE)
    assert float(document.pages[0].mediabox.width) == pytest.approx(11 * 72, abs=1)
    image = document.pages[0].images[0].image
    assert image is not None and image.width >= 2 * 220
    with pytest.raises(ValueError, match=r"sheet\.gif: a sheet is written as"):
        write_sheet(result_of(folders, f"{BOX_2}/album/pages"), tmp_path / "sheet.gif")


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels / np.iinfo(pixels.dtype).max


def read_psd(file: Path) -> tuple[list[tuple[str, np.ndarray, bool, str]], np.ndarray]:
    document = psd_tools.PSDImage.open(file)
    layers = [(one.name, one.numpy("color"), one.visible, one.blend_mode.name) for one in document]
    return layers, document.numpy("color")


def read_ora(file: Path) -> tuple[list[tuple[str, np.ndarray, bool, str]], np.ndarray]:
    from xml.etree import ElementTree as ET

    import imagecodecs

    modes = {"svg:color": "COLOR", "svg:src-over": "NORMAL"}
    with zipfile.ZipFile(file) as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert archive.read("mimetype") == b"image/openraster" and archive.testzip() is None
        layers = [
            (
                one.attrib["name"],
                unit(imagecodecs.png_decode(archive.read(one.attrib["src"]))),
                one.attrib["visibility"] == "visible",
                modes[one.attrib["composite-op"]],
            )
            for one in reversed(ET.fromstring(archive.read("stack.xml")).findall("stack/layer"))
        ]
        with Image.open(io.BytesIO(archive.read("Thumbnails/thumbnail.png"))) as thumbnail:
            assert max(thumbnail.size) <= 256
        return layers, unit(imagecodecs.png_decode(archive.read("mergedimage.png")))


READERS = {".psd": read_psd, ".ora": read_ora}


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("name", ["variants/camera", f"{BOX_2}/album/pages"])
def test_layers_recombine_to_our_picture(folders: tuple[Path, Path], tmp_path: Path, ending: str, name: str) -> None:
    result, target = result_of(folders, name), tmp_path / f"layers{ending}"
    write_layers(result, target)
    layers, merged = READERS[ending](target)
    ours = unit(read_picture(result.copies[0].file))
    several = len(result.copies) > 1
    assert [visible for _, _, visible, _ in layers] == [True, True, False, False][: 4 if several else 2]
    assert [mode for *_, mode in layers] == ["NORMAL", "COLOR", "COLOR", "NORMAL"][: 4 if several else 2]
    assert layers[0][0] == "scan (grey)" and layers[1][0].startswith("colours by a model")
    tolerance = 2e-5 if "pages" in name else 2e-3  # 16 and 8 bits
    assert np.abs(merged - ours).max() < tolerance and np.abs(layers[1][1] - ours).max() < tolerance
    assert np.ptp(layers[0][1], axis=2).max() == 0
    assert mean_difference(recombined(layers[0][1], layers[1][1]), ours) <= 1.0
    first = target.read_bytes()
    write_layers(result, target)
    assert target.read_bytes() == first


def test_difference_is_measured(folders: tuple[Path, Path]) -> None:
    differences = measure(folders[1], folders[0])
    assert len(differences) == 5 and 0 < max(differences) <= 1.0


def test_layers_are_labelled(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = result_of(folders, "box 1/camera")
    write_layers(result, tmp_path / "layers.psd")
    write_layers(result, tmp_path / "layers.ora")
    assert find_packet((tmp_path / "layers.psd").read_bytes()) == result.copies[0].xmp
    with zipfile.ZipFile(tmp_path / "layers.ora") as archive:
        archive.extract("mergedimage.png", tmp_path)
    assert read_label(tmp_path / "mergedimage.png") == result.copies[0].xmp
    with pytest.raises(ValueError, match=r"layers\.xcf: layers are written as"):
        write_layers(result, tmp_path / "layers.xcf")


KRITA = ("xvfb-run", "-a", "krita", "--export", "--export-filename", "merged.png")
SCRIPT = """(let* ((image (car (gimp-file-load RUN-NONINTERACTIVE "layers.psd" "layers.psd")))
                  (layer (car (gimp-image-merge-visible-layers image CLIP-TO-IMAGE))))
             (file-png-save-defaults RUN-NONINTERACTIVE image layer "merged.png" "merged.png")
             (gimp-quit 0))"""
PROGRAMS = {
    "krita.psd": (*KRITA, "layers.psd"),
    "krita.ora": (*KRITA, "layers.ora"),
    "gimp.psd": ("gimp", "-i", "-d", "-f", "-b", SCRIPT),  # Debian's GIMP doesn't read OpenRaster
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_independent_programs_open_the_layers(folders: tuple[Path, Path], tmp_path: Path, program: str) -> None:
    """They recombine them, and come to our picture."""
    words, ending = PROGRAMS[program], program[-4:]
    if not shutil.which(words[0]) or not shutil.which(program[:-4]):
        reason = f"layers aren't opened by {program[:-4]}: apt-get install krita xvfb gimp"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    result = result_of(folders, "variants/camera")
    write_layers(result, tmp_path / f"layers{ending}")
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=240)
    assert (tmp_path / "merged.png").exists(), done.stderr.decode()
    seen = unit(np.asarray(Image.open(tmp_path / "merged.png").convert("RGB")))
    ours = unit(read_picture(result.copies[0].file))
    assert mean_difference(seen, ours) <= 1.0
    gray = np.repeat(ours.mean(axis=2, keepdims=True), 3, axis=2)
    assert mean_difference(gray, ours) > 2 * mean_difference(seen, ours)  # the colours are really there


def test_every_page_has_its_own_and_all_are_recorded(checkpoint: Path, tmp_path: Path) -> None:
    scans, colours = make_scans(tmp_path / "scans") / BOX_2, tmp_path / "colours"
    options = ("-o", colours, "-r", "--sheet", "png", "--layers", "psd")
    colorize(scans, *options, checkpoint=checkpoint)
    files = {file.name: file for file in (colours / "album").iterdir()}
    extras = {f"pages{page}-{kind}" for page in ("", "-page2") for kind in ("sheet.png", "layers.psd")}
    assert set(files) == extras | {"pages.tif"}
    for name, page in (("pages-layers.psd", 0), ("pages-page2-layers.psd", 1)):
        assert np.abs(read_psd(files[name])[1] - unit(read_picture(files["pages.tif"], page))).max() < 2e-5
    first, second = (np.asarray(Image.open(files[f"pages{page}-sheet.png"])) for page in ("", "-page2"))
    assert first.shape != second.shape or (first != second).any()
    with Manifest(colours) as manifest:
        for file in files.values():
            record = manifest.find(file)
            assert record is not None and record["output_sha256"] == hash_file(file)
            assert record["source"].endswith("pages.tif")
    times = {file: file.stat().st_mtime_ns for file in files.values()}
    colorize(scans, *options, checkpoint=checkpoint)
    assert times == {file: file.stat().st_mtime_ns for file in files.values()}
    files["pages-sheet.png"].unlink()
    colorize(scans, *options, checkpoint=checkpoint)
    assert np.array_equal(np.asarray(Image.open(files["pages-sheet.png"])), first)
    assert [result.name.name for result in find_results(colours, scans)[0]] == ["pages"]


def test_command_writes_them_beside_the_results(checkpoint: Path, tmp_path: Path) -> None:
    scans, colours = make_scans(tmp_path / "scans"), tmp_path / "colours"
    colorize(scans / "box 1", "-o", colours, "-r", "--sheet", "jpg", checkpoint=checkpoint)
    copies = {file: file.stat().st_mtime_ns for file in colours.glob("*")}
    assert {file.name for file in copies} >= {"camera-sheet.jpg", "low & wide-sheet.jpg"}
    both = ("--sheet", "jpg", "--sheet", "pdf", "--layers", "psd", "--layers", "ora")
    colorize(scans / "box 1", "-o", colours, "-r", *both, checkpoint=checkpoint)
    made = {file.name for file in colours.glob("camera*")}
    layers = {"camera-layers.psd", "camera-layers.ora"}
    assert made == {"camera.jpg", "camera-sheet.jpg", "camera-sheet.pdf", *layers}
    for file, time in copies.items():  # what was there stays
        assert file.suffix == ".jsonl" or file.stat().st_mtime_ns == time
    (colours / "low & wide-sheet.pdf").unlink()
    (colours / "low & wide-sheet.pdf").mkdir()
    words = [scans / "box 1", "-o", colours, "-r", *both, "--checkpoint", checkpoint]
    result = CliRunner().invoke(app, ["colorize", *map(str, words)])
    assert result.exit_code == 1 and result.stderr.count("Error:") == 1 and "low & wide-sheet.pdf" in result.stderr
    assert "1 done before; 1 failed" in result.stdout
