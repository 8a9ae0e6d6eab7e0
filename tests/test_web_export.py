"""The page of ``colorized export --web`` in real Chromium: the runner's picture, labelled, without a network."""

import functools
import io
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
        noise = np.random.default_rng(3).standard_normal((2**16,), np.float32)

        class Colorizer(load_runner_of(tmp_path)):  # type: ignore[misc]
            def make_noise(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
                return noise[: np.prod(shape)].reshape(shape)

        for file in site.glob("*.onnx"):
            shutil.copy(file, tmp_path)
        shutil.copy(site / "colorized.json", tmp_path)
        runner = Colorizer(tmp_path, threads=1)
        expected = np.asarray(runner.colorize(photo)).astype(int)
        count = int(np.prod([*runner.facts["noise"], 32, 40]))
        found = page.evaluate(
            "async (noise) => { const canvas = document.getElementById('before');"
            "const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            "return Array.from((await window.colorized.colorize(pixels, 0, Float32Array.from(noise))).data) }",
            noise[:count].tolist(),
        )
        browser.close()
    assert not failed
    found = np.array(found).reshape(256, 320, 4)
    assert (found[..., 3] == 255).all() and (np.abs(found[..., :3] - expected) > 1).mean() < 1e-3
    picture = Image.open(io.BytesIO(saved))
    facts = read_xmp(picture.info["xmp"])
    assert picture.size == (320, 256) and np.ptp(np.asarray(picture).astype(int), axis=2).mean() > 1
    assert facts["Iptc4xmpExt:DigitalSourceType"] == DIGITAL_SOURCE_TYPE and facts["colorized:Seed"] == "0"
    assert (
        facts["xmpMM:DerivedFrom/stRef:filePath"] == "it%27s%20old.png" and len(facts["colorized:SourceSHA256"]) == 64
    )


def load_runner_of(folder: Path) -> type:
    shutil.copy(EMBED / "colorize.py", folder)
    return load_runner(folder).Colorizer


def test_a_folder_without_the_runtime_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "--web", "-o", str(tmp_path / "site"), "--runtime", str(tmp_path)])
    assert done.exit_code == 2 and "npm install" in done.stderr and not (tmp_path / "site").exists()
