"""The page of ``colorized export --web`` in real Chromium: the runner's picture, labelled, without a network."""

import functools
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import fetch_from_npm, run_axe
from skimage import data as skimage_data
from test_export import load_runner
from typer.testing import CliRunner

from colorized_pipeline.archive.labels import DIGITAL_SOURCE_TYPE, read_xmp
from colorized_pipeline.cli import app
from colorized_pipeline.embed.export import EMBED

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM, RUNTIME = (
    shutil.which("chromium"),
    Path(os.environ.get("ONNXRUNTIME_WEB", "node_modules/onnxruntime-web/dist")),
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not RUNTIME.is_dir(),
    reason="needs chromium, and ONNXRUNTIME_WEB: dist of npm's onnxruntime-web",
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "site"
    done = CliRunner().invoke(app, ["export", "--web", "-o", str(folder), "--runtime", str(RUNTIME)])
    assert done.exit_code == 0 and "any web server" in done.stdout, done.output
    return folder


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def make_noise(site: Path, photo: Image.Image) -> np.ndarray:
    """For a photo whose edges are multiples of its working size's stride."""
    facts = json.loads((site / "colorized.json").read_text())
    cell = facts["noise_cell"] * min(photo.size) // facts["working_size"]
    shape = (*facts["noise"], photo.height // cell, photo.width // cell)
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def paint_by_the_page(page: Any, photo: Image.Image, noise: np.ndarray) -> np.ndarray:
    """What the page's own function makes of a photo, RGBA."""
    rgba = np.asarray(photo.convert("RGBA"))
    painted = page.evaluate(
        "async ([rgba, width, noise]) => { const pixels = new ImageData(Uint8ClampedArray.from(rgba), width);"
        "return Array.from((await window.colorized.colorize(pixels, 0, Float32Array.from(noise))).data) }",
        [rgba.ravel().tolist(), photo.width, noise.ravel().tolist()],
    )
    return np.array(painted).reshape(rgba.shape)


def paint_by_the_runner(site: Path, folder: Path, photo: Image.Image, noise: np.ndarray) -> np.ndarray:
    for file in (*site.glob("*.onnx"), site / "colorized.json", EMBED / "colorize.py"):
        shutil.copy(file, folder)

    class Colorizer(load_runner(folder).Colorizer):  # type: ignore[misc]
        def make_noise(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
            return noise

    return np.asarray(Colorizer(folder, threads=1).colorize(photo)).astype(int)


def assert_equal(painted: np.ndarray, expected: np.ndarray) -> None:
    assert (painted[..., 3] == 255).all() and (np.abs(painted[..., :3] - expected) > 1).mean() < 1e-3


def test_page_paints_what_the_runner_paints_and_works_offline(site: Path, address: str, tmp_path: Path) -> None:
    photo = Image.fromarray(skimage_data.camera()[:256, :320])
    photo.save(tmp_path / "it's old.png")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context()
        page = context.new_page()
        failed: list[str] = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.wait_for_function("document.getElementById('status').textContent == 'Ready.'", timeout=120_000)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.wait_for_function("navigator.serviceWorker.controller != null", timeout=60_000)
        context.set_offline(True)
        page.reload()
        page.wait_for_function("document.getElementById('status').textContent == 'Ready.'", timeout=120_000)

        page.set_input_files("#file", tmp_path / "it's old.png")
        page.wait_for_selector("#result:not([hidden])", timeout=120_000)
        with page.expect_download() as download:
            page.click("#save")
        saved = Path(download.value.path()).read_bytes()
        painted = paint_by_the_page(page, photo, noise := make_noise(site, photo))
        browser.close()
    assert not failed
    assert_equal(painted, paint_by_the_runner(site, tmp_path, photo, noise))
    picture = Image.open(io.BytesIO(saved))
    facts = read_xmp(picture.info["xmp"])
    assert picture.size == (320, 256) and np.ptp(np.asarray(picture).astype(int), axis=2).mean() > 1
    assert facts["Iptc4xmpExt:DigitalSourceType"] == DIGITAL_SOURCE_TYPE and facts["colorized:Seed"] == "0"
    assert (
        facts["xmpMM:DerivedFrom/stRef:filePath"] == "it%27s%20old.png" and len(facts["colorized:SourceSHA256"]) == 64
    )


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844}, service_workers="block")
        opened.goto(address)
        opened.get_by_text("Ready.").wait_for(timeout=120_000)
        yield opened
        browser.close()


def test_everything_by_keyboard_on_a_phone_s_width(page: Any, tmp_path: Path) -> None:
    Image.fromarray(skimage_data.camera()[:128, :320]).save(tmp_path / "wide.png")
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "wide.png"))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("wide.png is ready").wait_for(timeout=120_000)
    page.keyboard.press("Tab")
    for key, inset in (("ArrowLeft", "51%"), ("End", "0%"), ("Home", "100%")):
        page.keyboard.press(key)
        assert page.locator("#before").evaluate("one => getComputedStyle(one).clipPath").split()[1] == inset
    outline = "getComputedStyle(document.activeElement.closest('.compare > div') ?? document.activeElement).outline"
    assert "solid 3px" in page.evaluate(outline)
    page.keyboard.press("Tab")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "wide-colorized.jpg"
    page.keyboard.press("Tab")
    first = page.locator("#after").evaluate("one => one.toDataURL()")
    page.keyboard.press("Enter")
    page.wait_for_function("first => document.getElementById('after').toDataURL() != first", arg=first)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_what_is_seen_and_saved_is_one_photo(page: Any, tmp_path: Path) -> None:
    """Also while others come, and after one that fails: a download never has another photo's name."""
    for name, width in (("first.png", 320), ("second.png", 256), ("third.png", 200)):
        Image.fromarray(skimage_data.camera()[:128, :width]).save(tmp_path / name)
    (tmp_path / "scan.tif").write_bytes(b"not a photo")
    page.set_input_files("#file", tmp_path / "first.png")
    page.get_by_text("first.png is ready").wait_for(timeout=120_000)
    for name in ("second.png", "third.png"):
        page.set_input_files("#file", tmp_path / name)
        assert page.locator("#result").is_hidden()
    page.wait_for_selector("#result:not([hidden])", timeout=120_000)
    assert page.evaluate("['before', 'after'].map((id) => document.getElementById(id).width)") == [200, 200]
    assert page.get_by_role("status").inner_text().startswith("third.png is ready")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "third-colorized.jpg"
    assert Image.open(download.value.path()).size == (200, 128)
    page.set_input_files("#file", tmp_path / "scan.tif")
    page.get_by_text("scan.tif can't be colorized: this browser doesn't read it as a photo").wait_for()
    assert page.locator("#result").is_hidden()


@pytest.mark.slow
def test_axe_finds_no_fault(page: Any, tmp_path: Path) -> None:
    axe = fetch_from_npm("axe-core@4", "axe.min.js", tmp_path)
    assert run_axe(page, axe, "violations", "incomplete") == []
    Image.fromarray(skimage_data.camera()[:128, :320]).save(tmp_path / "wide.png")
    page.set_input_files("#file", tmp_path / "wide.png")
    page.get_by_text("wide.png is ready").wait_for(timeout=120_000)
    assert run_axe(page, axe, "violations", "incomplete") == []


@pytest.mark.slow
def test_webgpu_paints_what_the_runner_paints(site: Path, address: str, tmp_path: Path) -> None:
    """By Chromium's own GPU in software, two minutes."""
    photo = Image.fromarray(skimage_data.camera()[:256, :256])
    noise = make_noise(site, photo)
    with playwright.sync_playwright() as engine:
        flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.goto(f"{address}?webgpu")
        page.get_by_text("Ready.").wait_for(timeout=120_000)
        assert page.evaluate("navigator.gpu.requestAdapter().then((one) => one.info.vendor)") == "google"
        painted = paint_by_the_page(page, photo, noise)
        browser.close()
    assert_equal(painted, paint_by_the_runner(site, tmp_path, photo, noise))


def test_a_folder_without_the_runtime_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "--web", "-o", str(tmp_path / "site"), "--runtime", str(tmp_path)])
    assert done.exit_code == 2 and "npm install" in done.stderr and not (tmp_path / "site").exists()
