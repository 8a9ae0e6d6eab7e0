"""Files that an archive holds and no one expects: each gets one clear line, the others go on, nothing leaves OUT."""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner, Result

from colorized_pipeline import ColorizationPipeline, load_pipeline
from colorized_pipeline.archive.files import find_photos, plan_jobs
from colorized_pipeline.archive.labels import Label, build_xmp
from colorized_pipeline.archive.scans import hash_file, open_scan
from colorized_pipeline.batch.manifest import Manifest
from colorized_pipeline.batch.overlap import Batch
from colorized_pipeline.batch.photos import open_photo
from colorized_pipeline.batch.settings import build_settings
from colorized_pipeline.cli import app
from colorized_pipeline.diffusion.reading import srgb_profile

ROOT = Path(__file__).parents[1]
GREY = np.ascontiguousarray(skimage_data.camera()[:44, :60])


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.fromarray(GREY).save("in/good.png")

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, ["colorize", *words, "--checkpoint", str(checkpoint), "--device", "cpu"])

    return invoke


def encoded(format_name: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, format_name, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def exif_of(caption: str) -> Image.Exif:
    """EXIF data with a caption, a turn, a place and a time."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = caption, 6
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 41.4)})
    exif.get_ifd(0x8769)[0x9003] = "1911:05:03 10:11:12"
    return exif


def heic(**options) -> bytes:
    import pillow_heif

    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(GREY)).save(stream, **{**options, "exif": options["exif"].tobytes()})
    return stream.getvalue()


def png_bomb() -> bytes:
    """A PNG of 50 kB that says that it is 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    pixels = zlib.compress(bytes(50_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "the file is empty"),
    "text.png": (lambda: b"Dear archive, the photo is in the other box.\n", "not a photo"),
    "zeros.tif": (lambda: bytes(4096), "not a photo"),
    "cut.jpg": (lambda: encoded("JPEG")[:-200], "copy it again"),
    "cut.png": (lambda: encoded("PNG")[:500], ""),
    "cut.tif": (lambda: encoded("TIFF")[:1000], ""),
    "cut16.tif": (lambda: tiff(GREY.astype(np.uint16) * 257)[:3000], ""),
    "header-only.tif": (lambda: b"II*\0\x08\0\0\0", ""),
    "loop.tif": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", ""),
    "bomb.png": (png_bomb, "--max-megapixels"),
    "nan.tif": (lambda: tiff(np.full((9, 9), np.nan, np.float32)), "NaN"),
    "elevation.tif": (lambda: tiff(np.full((9, 9), 812.5, np.float32)), r"must lie in [0, 1]"),
    "negative.tif": (lambda: tiff(np.full((9, 9), -4, np.int32)), "aren't"),
    "complex.tif": (lambda: tiff(np.ones((9, 9), np.complex64)), ""),
    "volume.tif": (lambda: tiff(np.ones((9, 8, 7, 2), np.uint16), photometric="minisblack", volumetric=True), ""),
}
READABLE: dict[str, Callable[[], bytes]] = {
    "is-a-png.jpg": lambda: encoded("PNG"),
    "one-pixel.png": lambda: imagecodecs.png_encode(GREY[:1, :1]),
    "tall.png": lambda: imagecodecs.png_encode(np.resize(GREY, (20_000, 1))),
    "wide.tif": lambda: tiff(np.resize(GREY, (1, 20_000))),
    "two pixels.bmp": lambda: encoded("BMP"),
    "ünïcödé 新しい写真 🎞.png": lambda: encoded("PNG"),
    "new\nline\x1b[31m.png": lambda: encoded("PNG"),
    "-o.png": lambda: encoded("PNG"),
    "%s{0}$(id).png": lambda: encoded("PNG"),
    "x" * 251 + ".png": lambda: encoded("PNG"),
    "hostile-xmp.png": lambda: encoded("PNG", pnginfo=None),
}


def test_corpus(run) -> None:
    """All at once, in a tree: one line for each bad one, results for all the others."""
    for name, (make, _) in UNREADABLE.items():
        (Path("in") / name).write_bytes(make())
    for name, make in READABLE.items():
        (Path("in") / name).write_bytes(make())
    (Path("in") / os.fsdecode(b"latin-\xff.png")).write_bytes(encoded("PNG"))
    Path("in/sub").mkdir()
    Path("in/sub/loop").symlink_to("..")
    Path("in/dangling.png").symlink_to("nowhere.png")
    Path("in/folder.png").mkdir()
    os.mkfifo("in/pipe.png")

    result = run("in", "-o", "out", "--recursive")
    assert result.exit_code == 1 and "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if "Error: " in line]
    bad = {**{name: words for name, (_, words) in UNREADABLE.items()}, "dangling.png": "no such file"}
    assert len(lines) == len(bad)
    for name, words in bad.items():
        (line,) = (line for line in lines if f"/{name}:" in line)
        assert words in line and "\x1b" not in line
    assert result.stderr.count("isn't followed") == 1
    made = {path.name for path in Path("out").iterdir()} - {"colorized-manifest.jsonl"}
    assert made == {"good.png", os.fsdecode(b"latin-\xff.png"), *READABLE}
    for name in ("one-pixel.png", "tall.png", "wide.tif"):
        assert Image.open(f"out/{name}").size == Image.open(f"in/{name}").size
    again = run("in", "-o", "out", "--recursive")
    assert again.exit_code == 1 and f"{len(READABLE) + 2} done before" in again.stdout


def test_a_pipe_is_not_waited_for(run) -> None:
    os.mkfifo("pipe.png")
    result = run("pipe.png", "in/good.png", "-o", "out")
    assert result.exit_code == 1 and "pipe.png: not a regular file" in result.stderr and "1 of 2" in result.stdout


def test_a_large_scan_is_read_when_told_to(run) -> None:
    Image.new("L", (1500, 1000), 90).save("in/large.png")
    assert run("in", "-o", "out", "--max-megapixels", "1").exit_code == 1
    assert run("in", "-o", "out", "--overwrite", "--max-megapixels", "1.5").exit_code == 0


def test_names_that_are_too_long(run) -> None:
    result = run("x" * 300 + ".png", "-o", "out.png")
    assert result.exit_code == 2 and "Traceback" not in result.output and "xxx" in result.stderr
    result = run("in/good.png", "-o", "y" * 300 + ".png")
    assert result.exit_code == 2 and "shorter" in result.stderr
    (Path("in") / ("z" * 249 + ".gif")).write_bytes(encoded("GIF"))
    assert run("in", "-o", "out").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_to_read(run) -> None:
    Path("in/secret.png").write_bytes(encoded("PNG"))
    Path("in/secret.png").chmod(0)
    result = run("in", "-o", "out")
    assert result.exit_code == 1 and "secret.png: permission denied" in result.stderr and "1 of 2" in result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_no_permission_to_read_or_write_as_another_user(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("good.png", "secret.png"):
        (tmp_path / "in" / name).write_bytes(encoded("PNG"))
    (tmp_path / "in" / "secret.png").chmod(0)
    script = f"""
import os, sys
from typer.testing import CliRunner
from colorized_pipeline.batch.overlap import Batch
from colorized_pipeline.cli import app
os.chdir({str(tmp_path)!r}); os.mkdir("out"); os.chown("out", 65534, 65534); os.chmod(".", 0o777)
words = ["--checkpoint", {str(checkpoint)!r}, "--device", "cpu"]
import diffusers.models.unets.unet_2d, torch
from colorized_pipeline import load_pipeline
pipe = load_pipeline({str(checkpoint)!r})
from colorized_pipeline.batch.settings import build_settings
from colorized_pipeline.archive.files import find_photos, plan_jobs
from pathlib import Path
settings = build_settings(pipe, checkpoint="-", steps=1)
# Once as root: what is imported on first use may lie where the other user can't read
for _ in Batch(pipe, settings).run(plan_jobs(find_photos([Path("in")]), Path("warm"), inputs=[Path("in")])): pass
os.setgid(65534); os.setuid(65534)
jobs = plan_jobs(find_photos([Path("in")]), Path("out"), inputs=[Path("in")])
for outcome in Batch(pipe, settings, output=Path("out")).run(jobs): print(outcome.state, outcome.message)
jobs = plan_jobs(find_photos([Path("in/good.png")]), Path("in"), inputs=[Path("in/good.png")], suffix=".tif")
for outcome in Batch(pipe, settings, output=Path("in")).run(jobs): print(outcome.state, outcome.message)
"""
    for folder in (tmp_path, *list(tmp_path.parents)[:-1]):
        if folder.owner() == "root" and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert [line for line in lines if "secret.png: permission denied; make the file readable" in line]
    assert [line for line in lines if line.startswith("failed") and "choose a folder that you may write to" in line]


def test_disk_full(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the same error at the same place, for any user."""
    (tmp_path / "in").mkdir()
    big = np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "in" / "big.png")
    Image.fromarray(GREY).save(tmp_path / "in" / "good.png")
    done = subprocess.run(
        [sys.executable, "-m", "colorized_pipeline", "colorize", "in", "-o", "out", "-r", "--checkpoint", checkpoint],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "1 of 2 photos" in done.stdout and "Traceback" not in done.stderr
    assert "big.png: can't be written (" in done.stderr
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"good.png", "colorized-manifest.jsonl"}  # nothing half-written, no temporary folder


def test_no_path_leaves_the_output_folder(run) -> None:
    Path("outside").mkdir()
    Path("in/sub").mkdir()
    Image.fromarray(GREY).save("in/sub/a.png")
    Path("out").mkdir()
    Path("out/sub").symlink_to("../outside")
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 1 and "would be outside of out" in result.stderr
    assert not list(Path("outside").iterdir())
    assert run("in/../in/sub/../sub/a.png", "-o", "flat").exit_code == 0
    assert [path.name for path in Path("flat").iterdir()] == ["a.png"]


def test_a_linked_result_is_replaced_not_followed(run) -> None:
    Path("precious.png").write_text("precious")
    Path("out").mkdir()
    Path("out/good.png").symlink_to("../precious.png")
    assert "exists; add --overwrite" in run("in", "-o", "out").stderr
    assert run("in", "-o", "out", "--overwrite").exit_code == 0
    assert Path("precious.png").read_text() == "precious" and not Path("out/good.png").is_symlink()


def test_output_equal_to_input(run) -> None:
    before = Path("in/good.png").read_bytes()
    for recursive in ((), ("-r",)):
        result = run("in", "-o", "in", "--overwrite", *recursive)
        assert result.exit_code == 1 and "inputs are never overwritten" in result.stderr
    assert Path("in/good.png").read_bytes() == before


def test_hostile_or_damaged_metadata_are_left_out_with_a_note(run) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&a;</x:xmpmeta>'
    Image.fromarray(GREY).save("in/xmp.jpg", xmp=bomb)
    long = build_xmp(Label("a", "b", {f"N{n}": "x" * 900 for n in range(70)})).replace(b"urn:colorized", b"urn:other")
    Image.fromarray(GREY).save("in/long.webp", xmp=long)
    Image.fromarray(GREY).save("in/exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40))
    result = run("in", "-o", "out", "-r")
    assert result.exit_code == 0, result.output
    assert "in/xmp.jpg: its XMP with a document type and is left out" in result.stderr
    result = run("in", "-o", "jpg", "-r", "--format", "jpg")
    assert result.exit_code == 0 and "long.webp" not in result.stderr
    assert b"HasExtendedXMP" in Path("jpg/long.jpg").read_bytes()  # what one segment can't hold stands in more


@pytest.mark.parametrize("damage", ["truncated", "missing", "pickle", "json", "wrong shape"])
def test_bad_checkpoints(run, checkpoint: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    elif damage == "pickle":  # would make a file if it were loaded
        weights.unlink()
        code = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
        (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(code)
    elif damage == "json":
        (folder / "model_index.json").write_text("{")
    else:
        config = folder / "unet" / "config.json"
        config.write_text(config.read_text().replace('"in_channels": 18', '"in_channels": 3'))
    words = ["colorize", "in/good.png", "-o", "x.png", "--device", "cpu", "--checkpoint", str(folder)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and f"Error: checkpoint {folder} can't be loaded" in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(errors) == 1 and not (tmp_path / "owned").exists() and not Path("x.png").exists()


TOLD = {"exif": exif_of("on the back"), "icc_profile": srgb_profile(), "xmp": build_xmp(Label("a", "b", {"Seed": 1}))}
DEEP = GREY.astype(np.uint16) * 257
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
SEEDS = {
    "bmp": encoded("BMP"),
    "gif": encoded("GIF", save_all=True, append_images=[Image.fromarray(GREY[::-1])]),
    "jpg": encoded("JPEG", comment=b"on the back", **TOLD),
    "progressive.jpg": encoded("JPEG", progressive=True, **TOLD),
    "mpo": encoded("MPO", save_all=True, append_images=[Image.fromarray(GREY[::-1])]),
    "png": encoded("PNG", **{name: TOLD[name] for name in ("exif", "icc_profile")}),
    "16.png": imagecodecs.png_encode(np.stack([DEEP] * 3, axis=-1)),
    "webp": encoded("WEBP", **TOLD),
    "lossless.webp": encoded("WEBP", lossless=True, **TOLD),
    "avif": encoded("AVIF", **TOLD),
    "jp2": encoded("JPEG2000"),
    "j2k": imagecodecs.jpeg2k_encode(DEEP, codecformat="j2k"),
    "pgm": encoded("PPM"),
    "16.pgm": b"P5 60 44 65535\n" + DEEP.astype(">u2").tobytes(),
    "pbm": b"P4 64 8\n" + bytes(range(64)),
    "tif": encoded("TIFF", compression="tiff_lzw", **TOLD),
    "jpeg.tif": encoded("TIFF", compression="jpeg", exif=TOLD["exif"]),
    "16.tif": tiff(DEEP, compression="lzw", predictor=True, description="on the back"),
    "big.tif": tiff(np.stack([DEEP] * 3), bigtiff=True, byteorder=">", compression="zlib", photometric="minisblack"),
    "planar.tif": tiff(np.moveaxis(COLOUR, -1, 0), photometric="rgb", planarconfig="separate", tile=(16, 32)),
    "float.tif": tiff((GREY / 255).astype(np.float32), photometric="minisblack", predictor=3, compression="zlib"),
    "palette.tif": tiff(GREY, photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256)),
    "lab.tif": tiff(COLOUR, photometric="cielab"),
    "cmyk.tif": tiff(np.dstack([COLOUR, GREY]), photometric="separated"),
}
if find_spec("pillow_heif"):
    SEEDS["heic"] = heic(**TOLD)


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name and the content of a photo of any format, damaged once or twice."""
    kind = draw(st.sampled_from(sorted(SEEDS)))
    content = bytearray(SEEDS[kind])
    for damage in draw(
        st.lists(st.sampled_from(["cut", "bit", "byte", "swap", "insert", "repeat", "lose"]), min_size=1, max_size=2)
    ):
        size = len(content)
        first, second = sorted(draw(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))))
        length = draw(st.integers(1, 64))
        if damage == "cut":
            del content[max(second, 1) :]
        elif damage == "bit":
            content[first] ^= 1 << length % 8
        elif damage == "byte":
            content[first] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif damage == "swap":
            one, other = content[first : first + length], content[second : second + length]
            content[second : second + length], content[first : first + length] = one, other
        elif damage == "insert":
            content[first:first] = draw(st.binary(min_size=1, max_size=64))
        elif damage == "repeat":
            content[first:first] = content[second : second + length]
        else:
            del content[first : min(first + length, size - 1)]
    return f"damaged.{kind}", bytes(content)


@pytest.fixture(scope="module")
def pipe_of_checkpoint(checkpoint: Path) -> ColorizationPipeline:
    return load_pipeline(checkpoint, device="cpu")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged=damaged_files())
def test_a_damaged_file_is_colorized_or_refused_by_name(
    pipe_of_checkpoint: ColorizationPipeline, tmp_path: Path, damaged: tuple[str, bytes]
) -> None:
    """100 files; 1,000 with ``pytest --hypothesis-profile=long``."""
    name, content = damaged
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        source, output = Path(folder, "in", name), Path(folder, "out")
        source.parent.mkdir()
        output.mkdir()
        source.write_bytes(content)
        chosen = build_settings(pipe_of_checkpoint, checkpoint="-", steps=1, batch_size=1, max_megapixels=1)
        (job,) = plan_jobs(find_photos([source.parent]), output, inputs=[source.parent], recursive=True)
        with Manifest(output) as manifest:
            (outcome,) = Batch(pipe_of_checkpoint, chosen, output=output, manifest=manifest).run([job])
        (record,) = map(json.loads, (output / "colorized-manifest.jsonl").read_text().splitlines())
        event(outcome.state)
        assert source.read_bytes() == content
        written = {file.name for file in output.iterdir()} - {"colorized-manifest.jsonl"}
        if outcome.state == "done":
            assert written == {job.target.name} and record["output_sha256"] == hash_file(job.target)
            assert open_scan(job.target).sizes == open_scan(source).sizes
            assert all("\n" not in note and str(source) in note for note in outcome.notes)
        else:
            assert not written and record["error"] == outcome.message
            assert outcome.message.startswith(f"{source}: ") and "\n" not in outcome.message
            with pytest.raises((OSError, ValueError, MemoryError)):  # said while it is read, and not by accident
                open_photo(pipe_of_checkpoint, job, chosen, overwrite=True)
