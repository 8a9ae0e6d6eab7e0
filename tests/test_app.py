"""The web page as visitors meet it: ``colorized app`` in a process of its own, Chromium, a tiny real checkpoint."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from photos import colourful
from PIL import Image
from servers import fetch_from_npm, free_port, run_axe, running
from skimage import color as skimage_color
from test_train_script import ROOT
from typer.testing import CliRunner

from colorized_pipeline import EXAMPLES
from colorized_pipeline.archive.files import PHOTO_SUFFIXES
from colorized_pipeline.cli import app as command_line

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")

CAMERA, ROCKET = (next(file for file in EXAMPLES if file.stem == stem) for stem in ("camera", "rocket"))
DESKTOP = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def page_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    limits = ("--max-megapixels", "0.5", "--max-photos", "4")
    with running("app", tmp_path_factory.mktemp("server"), "--checkpoint", str(checkpoint), *limits) as server:
        yield server


@pytest.fixture(scope="module")
def page_url(page_server: tuple[str, int]) -> str:
    return page_server[0]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visitor:
    """One browser session on the page."""

    def __init__(
        self, browser: "playwright.Browser", url: str, *, size: dict[str, int] = DESKTOP, scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(viewport=size, accept_downloads=True, color_scheme=scheme)
        self.page = self.context.new_page()
        self.foreign: list[str] = []
        self.page.on("request", lambda request: self.note(request.url, url))
        self.page.goto(url)
        self.start = self.page.get_by_role("button", name="Colorize", exact=True)
        self.start.wait_for()

    def note(self, requested: str, url: str) -> None:
        if not requested.startswith((url, "data:", "blob:")):
            self.foreign.append(requested)

    def give(self, file: Path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(file)

    def give_and_see(self, file: Path) -> None:
        self.give(file)
        self.page.get_by_role("button", name="Remove Image").wait_for()
        self.page.locator(".image-frame img").wait_for()

    def open_settings(self) -> None:
        self.page.get_by_role("button", name="Settings").click()
        self.page.get_by_label("number input for Variants").wait_for()
        # gradio sets the fields once more in the frame after they appear; what is typed before that is lost
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def draw_one_variant(self) -> None:
        self.open_settings()
        self.page.get_by_label("number input for Variants").fill("1")
        self.page.get_by_label("number input for Variants").press("Tab")

    def colorize(self) -> None:
        self.start.click()
        self.wait_for_result()

    def wait_for_result(self, *, seconds: int = 60) -> None:
        self.page.get_by_text(re.compile(": .* ready")).wait_for(timeout=1000 * seconds)

    def download(self, label: str) -> tuple[str, bytes]:
        with self.page.expect_download() as waiting:
            self.page.get_by_role("link", name=label).or_(self.page.get_by_role("button", name=label)).first.click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def message(self) -> str:
        return self.page.get_by_test_id("toast-body").inner_text()


@pytest.fixture
def visitor(browser: "playwright.Browser", page_url: str) -> Iterator[Visitor]:
    opened = Visitor(browser, page_url)
    yield opened
    opened.context.close()


def pixels(data: bytes | Path) -> np.ndarray:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return np.asarray(image.convert("RGB"))


def from_the_command(photo: Path, *options: str, checkpoint: Path, folder: Path) -> bytes:
    """What ``colorized colorize`` makes of it, label and all."""
    target = folder / f"by-command{photo.suffix}"
    words = ["colorize", str(photo), "-o", str(target), "--checkpoint", str(checkpoint), "--overwrite", *options]
    assert CliRunner().invoke(command_line, words).exit_code == 0
    return target.read_bytes()


def test_upload_compare_choose_download(visitor: Visitor, checkpoint: Path, tmp_path: Path) -> None:
    visitor.give_and_see(ROCKET)
    visitor.colorize()
    visitor.page.get_by_role("button", name="Why these colours?").click()
    visitor.page.get_by_text("is the most typical").wait_for()
    visitor.page.wait_for_function(  # the map has the photo's shape, and a legend below
        """() => [...document.querySelectorAll('[alt^="Map"]')].some(
            i => i.naturalWidth >= 420 && i.naturalHeight > i.naturalWidth * %f + 40)"""
        % (Image.open(ROCKET).height / Image.open(ROCKET).width)
    )

    name, data = visitor.download("Download variant 1 at full size")
    assert name == "rocket-colour-0.jpg"
    where = {"checkpoint": checkpoint, "folder": tmp_path}
    assert data == from_the_command(ROCKET, "--seed", "0", **where)

    visitor.page.get_by_role("button", name="Variant 3").click()
    name, data = visitor.download("Download variant 3 at full size")
    assert name == "rocket-colour-2.jpg"
    assert data == from_the_command(ROCKET, "--seed", "2", **where)
    (tmp_path / name).write_bytes(data)
    label = CliRunner().invoke(command_line, ["inspect", str(tmp_path / name)])
    assert label.exit_code == 0 and "rocket.jpg" in label.stdout
    assert visitor.foreign == []


def test_everything_by_keyboard(visitor: Visitor) -> None:
    """From the photo to the download; whatever has the focus shows it."""
    page, visited = visitor.page, []
    page.on("filechooser", lambda chooser: chooser.set_files(CAMERA))

    def go_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            found = page.evaluate(
                """() => { const at = document.activeElement, shown = at.closest(".compare > div") ?? at;
                     const {outlineStyle, outlineWidth} = getComputedStyle(shown);
                     const outline = outlineStyle + outlineWidth;
                     return at === document.body ? null : [at.ariaLabel ?? at.innerText, outline] }"""
            )
            if found is None:
                continue
            visited.append(found)
            if name in found[0]:
                return
        raise AssertionError(f"{name}: {visited}")

    go_to("Drop a photo here")
    page.keyboard.press("Enter")
    page.locator(".photo img").wait_for()
    go_to("Colorize")
    page.keyboard.press("Enter")
    visitor.wait_for_result()
    go_to("How much is shown in grey")
    divided = page.locator(".compare img").last
    for key, inset in (("ArrowLeft", "51%"), ("PageUp", "41%"), ("End", "0%"), ("Home", "100%")):
        page.keyboard.press(key)
        assert divided.evaluate("one => getComputedStyle(one).clipPath").split()[1] == inset
    go_to("Variant 2")
    page.keyboard.press("Enter")
    page.get_by_alt_text("Variant 2, in colour").wait_for()
    assert page.get_by_label("How much is shown in grey").input_value() == "0"  # where it was
    go_to("Download variant 2")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    assert waiting.value.suggested_filename == "camera-colour-1.jpg"
    go_to("Why these colours?")
    assert {outline for _, outline in visited} == {"solid3px"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(browser: "playwright.Browser", page_url: str, scheme: str, tmp_path: Path) -> None:
    """The usual program for accessibility: at the first look, and with everything open."""
    axe, visitor = fetch_from_npm("axe-core@4", "axe.min.js", tmp_path), Visitor(browser, page_url, scheme=scheme)
    for state in ("first", "result"):
        if state == "result":
            visitor.give_and_see(CAMERA)
            visitor.colorize()
            for name in ("Why these colours?", "Settings", "Colours you know"):
                visitor.page.get_by_role("button", name=name).click()
        visitor.page.wait_for_timeout(1000)
        found = run_axe(visitor.page, axe)
        assert [fault for fault in found if fault[0] in ("critical", "serious")] == [], state
    assert visitor.page.locator("html").get_attribute("lang") == "en"
    visitor.context.close()


def test_slider_moves(visitor: Visitor) -> None:
    visitor.give_and_see(CAMERA)
    visitor.colorize()
    divided = visitor.page.locator(".compare img").last
    box = divided.bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visitor.page.mouse.move(*middle)
    visitor.page.mouse.down()
    visitor.page.mouse.move(middle[0] - box["width"] / 4, middle[1], steps=5)
    visitor.page.mouse.up()
    assert divided.evaluate("one => getComputedStyle(one).clipPath").split()[1] == "75%"


def test_settings_reach_the_pipeline(visitor: Visitor) -> None:
    visitor.give_and_see(CAMERA)
    visitor.draw_one_variant()
    visitor.page.get_by_label("Seed").first.fill("7")
    visitor.page.get_by_label("number input for Intensity").first.fill("0")
    visitor.colorize()
    assert visitor.page.get_by_text("Why these colours?").count() == 0  # one variant has none
    name, data = visitor.download("Download variant 1 at full size")
    assert name == "camera-colour-7.jpg" and np.ptp(pixels(data).astype(int), axis=-1).max() <= 2


def test_colours_are_written_where_one_cannot_paint(visitor: Visitor, checkpoint: Path, tmp_path: Path) -> None:
    visitor.give_and_see(CAMERA)
    visitor.draw_one_variant()
    visitor.page.get_by_text("Colours you know").click()
    visitor.page.get_by_label("Or write them").fill("120,80:red")
    visitor.start.click()
    visitor.page.get_by_text("'120,80:red' isn't x,y,radius:colour").wait_for()

    visitor.page.get_by_label("Or write them").fill("120,80,25.1234567:#8a3b2e\n\n10,10,60,40:navy\n")
    visitor.page.get_by_label("Who says so").fill("A. Clerk")
    visitor.colorize()
    _, data = visitor.download("Download variant 1 at full size")
    hints = ("--hint", "120,80,25.1234567:#8a3b2e", "--hint", "10,10,60,40:navy")
    assert data == from_the_command(CAMERA, "--seed", "0", *hints, checkpoint=checkpoint, folder=tmp_path)

    visitor.page.get_by_role("button", name="Save these colours").click()
    name, saved = visitor.download("Download camera.colours.json")
    entries = json.loads(saved)["colours"]
    assert [(one["place"], one["colour"], one["source"]) for one in entries] == [
        ("120,80,25.1234567", "#8a3b2e", "A. Clerk"),
        ("10,10,60,40", "navy", "A. Clerk"),
    ]
    button = visitor.page.get_by_role("button", name="Download camera.colours.json")
    for places, message in (("900,50,25:red", "lies outside the photo"), ("120,80,25:nocolour", "nocolour")):
        visitor.page.get_by_label("Or write them").fill(places)
        visitor.page.get_by_role("button", name="Save these colours").click()
        visitor.page.get_by_text(message).first.wait_for()
        button.wait_for(state="hidden")
    (tmp_path / name).write_bytes(saved)
    (photo := tmp_path / CAMERA.name).write_bytes(CAMERA.read_bytes())
    by_sidecar = from_the_command(photo, "--seed", "0", checkpoint=checkpoint, folder=tmp_path)
    assert (pixels(by_sidecar) == pixels(data)).all()


def test_a_reference_photo_gives_its_palette(visitor: Visitor, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a photo")
    Image.new("L", (1000, 600), 99).save(tmp_path / "large.png")
    Image.fromarray(colourful(1)).save(tmp_path / "today.png")
    visitor.give_and_see(CAMERA)
    visitor.draw_one_variant()
    visitor.page.get_by_text("Colours you know").click()
    field = visitor.page.locator(".reference input[type=file]")
    for file, message in (
        (tmp_path / "bad.png", "bad.png: can't be read as a photo"),
        (tmp_path / "large.png", "large.png: 1000 x 600 pixels are more than 0.5 megapixels"),
        (CAMERA, "camera.jpg: reference is grey or nearly so: give a colour photo"),
    ):
        field.set_input_files(file)
        visitor.page.get_by_text(message).wait_for()
        visitor.page.locator(".reference img").wait_for(state="detached")
    field.set_input_files(tmp_path / "today.png")
    visitor.page.locator(".reference img").wait_for()
    visitor.colorize()
    _, data = visitor.download("Download variant 1 at full size")
    options = ("--reference", str(tmp_path / "today.png"))
    assert data == from_the_command(CAMERA, *options, checkpoint=checkpoint, folder=tmp_path)
    assert data != from_the_command(CAMERA, checkpoint=checkpoint, folder=tmp_path)


def test_sixteen_bit_tiff_is_shown_and_stays_a_tiff(visitor: Visitor, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (90, 1))
    Image.fromarray(ramp).save(tmp_path / "scan.tif")
    visitor.give_and_see(tmp_path / "scan.tif")
    visitor.page.wait_for_function(
        "() => { const i = document.querySelector('.image-frame img'); return i && i.naturalWidth === 200 }"
    )
    visitor.colorize()
    name, data = visitor.download("Download variant 1 at full size")
    with Image.open(io.BytesIO(data)) as image:
        assert (name, image.format, image.size) == ("scan-colour-0.tif", "TIFF", (200, 90))
    lightness = skimage_color.rgb2lab(pixels(data))[..., 0].mean(axis=0)
    assert (np.diff(lightness[::10]) > 1).all()  # a ramp, not clipped at 8 bits


def test_the_page_takes_every_format_that_the_command_takes(
    visitor: Visitor, checkpoint: Path, tmp_path: Path
) -> None:
    """Also those that a visitor's system doesn't call pictures: gradio goes by the file's type."""
    pillow_heif = pytest.importorskip("pillow_heif")
    for ending in PHOTO_SUFFIXES:
        kind = visitor.page.evaluate("(name) => new File([], name).type", f"scan{ending.upper()}")
        assert kind.startswith("image/"), ending
    assert visitor.page.evaluate("new File([], 'notes.txt', {type: 'text/plain'}).type") == "text/plain"
    picture = Image.fromarray(colourful(7, height=90, width=120))
    for ending in (".avif", ".heic", ".jpx", ".mpo"):
        file, target = tmp_path / f"scan{ending}", tmp_path / f"{ending[1:]}.png"
        pillow_heif.from_pillow(picture).save(file) if ending == ".heic" else picture.save(file)
        visitor.page.reload()
        visitor.give_and_see(file)
        visitor.draw_one_variant()
        visitor.colorize()
        name, data = visitor.download("Download variant 1 at full size")
        words = ["colorize", str(file), "-o", str(target), "--checkpoint", str(checkpoint)]
        assert CliRunner().invoke(command_line, words).exit_code == 0
        assert name == "scan-colour-0.png" and np.array_equal(pixels(data), pixels(target))


def test_bad_files_get_the_message_of_the_command_line(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"not a photo")
    visitor.give(tmp_path / "bad.jpg")
    visitor.page.get_by_text("can't be read as a photo").wait_for()
    message = visitor.message()
    assert "bad.jpg: can't be read as a photo" in message and "/" not in message
    visitor.page.locator(".image-frame img").wait_for(state="detached")


def test_no_photo_and_no_seed_are_explained(visitor: Visitor) -> None:
    visitor.start.click()
    visitor.page.get_by_text("Give a photo first").wait_for()
    visitor.give_and_see(CAMERA)
    visitor.open_settings()
    visitor.page.get_by_label("Seed").first.fill("")
    visitor.start.click()
    visitor.page.get_by_text("Seed: give a whole number").wait_for()


def test_photos_over_the_limit_are_refused(visitor: Visitor, tmp_path: Path) -> None:
    Image.new("L", (1000, 600), 99).save(tmp_path / "large.png")
    visitor.give(tmp_path / "large.png")
    visitor.page.get_by_text("large.png: 1000 x 600 pixels are more than 0.5 megapixels").wait_for()


def test_an_example_and_a_pasted_photo(visitor: Visitor, page_url: str) -> None:
    visitor.page.get_by_text("Example photos").wait_for()
    visitor.page.locator(".gallery-item img, .gallery button img").first.click()
    visitor.page.locator(".image-frame img").wait_for()
    visitor.colorize()
    name, _ = visitor.download("Download variant 1 at full size")
    assert name == f"{EXAMPLES[0].stem}-colour-0.jpg"

    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=page_url.rstrip("/"))
    visitor.page.get_by_role("button", name="Remove Image").click()
    visitor.page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(120, 80), context = canvas.getContext("2d");
            context.fillStyle = "#777";
            context.fillRect(0, 0, 60, 80);
            const image = await canvas.convertToBlob({type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": image})]);
        }"""
    )
    visitor.page.get_by_role("button", name="Paste from clipboard").or_(
        visitor.page.get_by_label("clipboard-sources")
    ).first.click()
    visitor.page.wait_for_function(
        "() => { const i = document.querySelector('.image-frame img'); return i && i.naturalWidth === 120 }"
    )


def test_two_visitors_at_once_see_only_their_own(browser: "playwright.Browser", page_url: str) -> None:
    visitors = [Visitor(browser, page_url) for _ in range(2)]
    photos = (ROCKET, CAMERA)
    for visitor, photo in zip(visitors, photos, strict=True):
        visitor.give_and_see(photo)
    for visitor in visitors:
        visitor.start.click()
    for visitor, photo in zip(visitors, photos, strict=True):
        visitor.wait_for_result()
        name, data = visitor.download("Download variant 1 at full size")
        assert name == f"{photo.stem}-colour-0.jpg"
        gray = skimage_color.rgb2lab(pixels(photo))[..., 0]
        assert np.abs(skimage_color.rgb2lab(pixels(data))[..., 0] - gray).mean() < 1
        images = visitor.page.locator(".photo img, .compare img, .thumbnail-item img")
        shape = "async i => { await i.decode(); return i.naturalWidth / i.naturalHeight }"
        sizes = {image.evaluate(shape) for image in images.all()}
        width, height = Image.open(photo).size
        assert all(abs(size - width / height) < 0.02 for size in sizes), sizes
    third = Visitor(browser, page_url)
    assert third.page.locator(".thumbnail-item").count() == 0
    for visitor in (*visitors, third):
        visitor.context.close()


def test_many_photos_into_a_zip(visitor: Visitor, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"not a photo")
    (tmp_path / "twin").mkdir()
    shutil.copy(CAMERA, tmp_path / "twin" / "rocket.jpg")
    visitor.page.get_by_role("tab", name="Many photos").click()
    start = visitor.page.get_by_role("button", name="Colorize all")
    start.wait_for()
    files = [ROCKET, tmp_path / "bad.jpg", tmp_path / "twin" / "rocket.jpg"]
    visitor.page.locator("input[type=file]").last.set_input_files(files)
    visitor.page.get_by_text("bad.jpg").or_(visitor.page.get_by_text("bad")).first.wait_for()
    start.click()
    visitor.page.get_by_text("2 of 3 photos colorized").wait_for(timeout=60_000)
    assert visitor.page.get_by_text("Error: bad.jpg: can't be read as a photo").count() == 1
    name, data = visitor.download("Download ZIP")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert (name, archive.namelist()) == ("colorized.zip", ["rocket.jpg", "rocket-2.jpg"])
        first = archive.read("rocket.jpg")
    assert first == from_the_command(ROCKET, "--batch-size", "4", checkpoint=checkpoint, folder=tmp_path)


@pytest.mark.parametrize("width", [320, 390, 1280, 1920])
def test_nothing_lies_beside_the_screen(browser: "playwright.Browser", page_url: str, width: int) -> None:
    visitor = Visitor(browser, page_url, size={"width": width, "height": 844})
    assert visitor.start.bounding_box()["y"] < 800  # the first look: the photo and one button
    visitor.give_and_see(ROCKET)
    visitor.colorize()
    visitor.page.wait_for_timeout(500)
    figure = visitor.page.locator(".compare").bounding_box()
    assert figure is not None and figure["y"] >= 0 and figure["y"] + figure["height"] <= 845
    assert figure["width"] > 0.6 * min(width, 1200)
    for name in ("Why these colours?", "Settings", "Colours you know"):
        visitor.page.get_by_role("button", name=name).click()
    visitor.page.wait_for_timeout(500)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    for one in visitor.page.locator("button, input, .photo img, .thumbnail-item, h1, p").all():
        box = one.bounding_box()
        assert box is None or (box["x"] >= -22 and box["x"] + box["width"] <= width + 22), one.inner_html()
    assert visitor.page.get_by_text("The colours are invented.").is_visible()
    visitor.context.close()


def test_programs_use_the_page_and_get_no_other_files(page_url: str, checkpoint: Path, tmp_path: Path) -> None:
    for path in ("/etc/hostname", str(ROOT / "pyproject.toml")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{page_url}gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    with urllib.request.urlopen(f"{page_url}gradio_api/info") as answer:
        assert list(json.load(answer)["named_endpoints"]) == ["/colorize_photos"]
    client = Client(page_url, verbose=False, download_files=str(tmp_path))
    report, packed = client.predict([handle_file(ROCKET)], steps=2, seed=5, intensity=1, api_name="/colorize_photos")
    assert "1 of 1 photos colorized" in report
    with zipfile.ZipFile(packed["value"]) as archive:
        made = archive.read("rocket.jpg")
    assert made == from_the_command(ROCKET, "--batch-size", "4", "--seed", "5", checkpoint=checkpoint, folder=tmp_path)


def test_a_page_left_open_costs_next_to_nothing(visitor: Visitor, page_server: tuple[str, int]) -> None:
    """It may stay open all day, beside other work."""

    def seconds() -> float:
        user, system = Path(f"/proc/{page_server[1]}/stat").read_text().rsplit(")")[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def cost_of_waiting() -> float:
        before = seconds()
        visitor.page.wait_for_timeout(3000)
        return seconds() - before

    # One quiet wait is enough: what earlier tests began may run on. Where gradio asks for work all the time, none is
    assert any(cost_of_waiting() < 0.03 * 3 for _ in range(4))


def test_what_keeps_the_page_from_starting_is_explained(page_url: str, checkpoint: Path, tmp_path: Path) -> None:
    port = page_url.rstrip("/").rsplit(":", 1)[1]
    for program, message in (
        ("", f"port {port}: it is taken"),
        ("import sys; sys.modules['gradio'] = None; ", "this command needs: pip install 'colorized[app]'"),
    ):
        words = [sys.executable, "-c", f"{program}from colorized_pipeline.cli import main; main()", "app"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
        words += ["--port", port, "--checkpoint", str(checkpoint)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("colorized-app-*"))


@pytest.mark.slow
def test_space_entry_serves_the_page(tmp_path: Path) -> None:
    """``python app.py`` as a Space runs it: the port comes from gradio's own variable."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "GRADIO_SERVER_PORT": port}
    server = subprocess.Popen([sys.executable, ROOT / "app.py"], env={**environment, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                    assert b"COLORIZED" in answer.read()
                break
            except urllib.error.URLError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow
def test_jobs_wait_in_line_and_a_full_line_is_explained(browser: "playwright.Browser", tmp_path: Path) -> None:
    """The shipped checkpoint at many steps, so that jobs last; one runs, one waits, the third is sent away."""
    with running("app", tmp_path, "--queue", "1") as (url, _):
        visitors = [Visitor(browser, url) for _ in range(3)]
        for visitor in visitors:
            visitor.give_and_see(CAMERA)
            visitor.open_settings()
            visitor.page.get_by_label("number input for Steps").first.fill("100")
            visitor.page.get_by_label("number input for Steps").first.press("Tab")
        first, second, third = visitors
        first.start.click()
        first.page.get_by_text("variant 1 of 3").wait_for()
        second.start.click()
        second.page.get_by_text("queue: 1/1").wait_for()
        third.start.click()
        third.page.get_by_text("This application is currently busy").wait_for()
        for visitor in (first, second):
            visitor.wait_for_result(seconds=120)
            visitor.context.close()
        third.context.close()
