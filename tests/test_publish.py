"""The IIIF site that ``colorized publish`` writes: valid, whole, honest, and shown by real viewers in Chromium."""

import functools
import http.server
import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from PIL import Image
from results import BOX_2, colorize, make_scans
from servers import fetch_from_npm, run_axe
from typer.testing import CliRunner, Result

from colorized_pipeline.archive.inspection import describe
from colorized_pipeline.archive.labels import NOTE, read_xmp
from colorized_pipeline.archive.scans import open_scan
from colorized_pipeline.cli import app
from colorized_pipeline.publish.manifests import rights_uri

pytest.importorskip("pyvips")
BASE = "https://archive.example/photos"


@pytest.fixture(scope="module")
def archive(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``scans``, ``colours`` and the ``site`` of both."""
    folder = tmp_path_factory.mktemp("archive")
    scans = make_scans(folder / "scans")
    colorize(scans, "-o", folder / "colours", "-r", checkpoint=checkpoint)
    (folder / "colours" / "box 1" / "camera.jpg").unlink()
    words = ("-o", folder / "colours" / "box 1", "--variants", "2", "--uncertainty", "--overwrite")
    colorize(scans / "box 1" / "camera.jpg", *words, checkpoint=checkpoint)
    assert run(folder).exit_code == 0
    return folder


def run(folder: Path, *options: str, base: str = BASE, output: str = "site") -> Result:
    words = ["publish", folder / "colours", "--source", folder / "scans", "--base-url", base, "-o", folder / output]
    return CliRunner().invoke(app, [*map(str, words), *options])


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def file_of(url: str, site: Path) -> Path:
    assert url.startswith(f"{BASE}/")
    return site / unquote(url.removeprefix(f"{BASE}/"))


def canvases(site: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted((site / "manifests").rglob("manifest.json")):
        for canvas in read(file)["items"]:
            found[canvas["label"]["none"][0]] = canvas
    return found


def choices(canvas: dict[str, Any]) -> list[dict[str, Any]]:
    (page,) = canvas["items"]
    (annotation,) = page["items"]
    assert annotation["target"] == canvas["id"] and annotation["body"]["type"] == "Choice"
    return annotation["body"]["items"]


def test_documents_are_valid(archive: Path) -> None:
    try:
        import iiif_prezi3
    except ImportError:
        reason = "IIIF documents aren't validated: pip install --no-deps iiif-prezi3 (it asks for an old Pillow)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    files = sorted((archive / "site" / "manifests").rglob("manifest.json"))
    assert [file.parent.name for file in files] == ["album", "box 1"]
    for file in files:
        iiif_prezi3.Manifest(**read(file))
    iiif_prezi3.Collection(**read(archive / "site" / "collection.json"))
    damaged = read(files[0])
    damaged["items"][0]["items"][0]["items"][0]["target"] = 5
    with pytest.raises(ValueError):
        iiif_prezi3.Manifest(**damaged)


def test_every_address_is_a_file_of_the_site(archive: Path) -> None:
    site, seen = archive / "site", set()

    def walk(thing: Any) -> None:
        for child in thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list) else ():
            walk(child)
        if isinstance(thing, dict) and thing.get("type") in ("Image", "Dataset", "Manifest", "Collection"):
            seen.add(thing["type"])
            assert file_of(thing["id"], site).is_file(), thing["id"]
        if isinstance(thing, dict) and thing.get("type") == "ImageService3":
            seen.add(thing["type"])
            info = read(file_of(thing["id"], site) / "info.json")
            assert (info["id"], info["profile"]) == (thing["id"], "level0")

    walk(read(site / "collection.json"))
    for manifest in (site / "manifests").rglob("manifest.json"):
        walk(read(manifest))
    assert seen == {"Image", "Dataset", "Manifest", "Collection", "ImageService3"}


def test_canvases_say_what_they_show(archive: Path) -> None:
    found = canvases(archive / "site")
    assert set(found) == {"The photographer Žofie", "low & wide", "pages, page 1", "pages, page 2"}
    described = found["The photographer Žofie"]
    words = [choice["label"]["en"][0] for choice in choices(described)]
    assert words[0] == "Grey: the scan" and words[1:3] == [f"Colours by a model, variant {n}" for n in (1, 2)]
    assert words[3].startswith("Uncertainty")
    assert described["summary"]["none"] == ["With her camera, 1938"]
    assert described["rights"] == "http://rightsstatements.org/vocab/NoC-US/1.0/"
    facts = {fact["label"]["en"][0]: fact["value"]["none"][0] for fact in described["metadata"]}
    assert facts["Creator"] == "A. Clerk" and facts["Rights"] == "No known restrictions"
    for canvas in found.values():
        assert canvas["requiredStatement"]["value"]["en"] == [NOTE] and canvas["summary"]["en"] == [NOTE]
        label = read_xmp(file_of(canvas["seeAlso"][0]["id"], archive / "site").read_bytes())
        assert label["colorized:SourceSHA256"] == facts_of(canvas)["SHA-256 of the source"]
    for file in (archive / "site").rglob("*.json"):
        if "images" not in file.parts:
            assert read(file)["requiredStatement"]["value"]["en"] == [NOTE]


def facts_of(canvas: dict[str, Any]) -> dict[str, str]:
    return {fact["label"]["en"][0]: fact["value"]["none"][0] for fact in canvas["metadata"]}


def assembled(service: Path, factor: int) -> np.ndarray:
    """The picture of one scale factor, put together from its tiles as the Image API says."""
    info = read(service / "info.json")
    width, height, edge = info["width"], info["height"], info["tiles"][0]["width"]
    small = np.zeros((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, height, edge * factor):
        for left in range(0, width, edge * factor):
            w, h = min(edge * factor, width - left), min(edge * factor, height - top)
            region = "full" if (w, h) == (width, height) else f"{left},{top},{w},{h}"
            size = f"{-(-w // factor)},{-(-h // factor)}"
            name = "max" if region == "full" and factor == 1 else size
            tile = np.asarray(Image.open(service / region / name / "0" / "default.jpg"))
            y, x = top // factor, left // factor
            small[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return small


def test_pictures_are_the_scan_and_its_copies(archive: Path) -> None:
    site, found = archive / "site", canvases(archive / "site")
    gray, colour, *_ = choices(found["The photographer Žofie"])
    scan = open_scan(archive / "scans" / "box 1" / "camera.jpg").read_page()
    copy = np.asarray(Image.open(archive / "colours" / "box 1" / "camera-1.jpg").convert("RGB"), float)
    for choice, truth in ((gray, scan[..., None].astype(float)), (colour, copy)):
        service = file_of(choice["service"][0]["id"], site)
        for picture in (np.asarray(Image.open(file_of(choice["id"], site))), assembled(service, 1)):
            assert np.abs(picture - truth).mean() < 2.5
    page = open_scan(archive / "scans" / BOX_2 / "album" / "pages.tif").read_page(1) / 257
    second = file_of(choices(found["pages, page 2"])[0]["id"], site)
    assert np.abs(np.asarray(Image.open(second)) - page[..., None]).mean() < 2.5
    assert (
        describe(file_of(colour["id"], site))["colorized:SourceSHA256"]
        == facts_of(found["The photographer Žofie"])["SHA-256 of the source"]
    )


def test_tiles_of_a_larger_picture_fit_together(tmp_path: Path) -> None:
    from colorized_pipeline.publish.images import ImageFolder

    y, x = np.mgrid[:1100, :1700]
    pixels = np.stack([x / 1700 * 255, y / 1100 * 255, (x + y) % 256 / 4], axis=2).astype(np.uint8)
    image = ImageFolder(tmp_path, BASE).picture(lambda: pixels, "a")
    service = tmp_path / image.url.rpartition("/")[2]
    for factor in read(service / "info.json")["tiles"][0]["scaleFactors"]:
        small = assembled(service, factor)
        truth = np.asarray(Image.fromarray(pixels).reduce(factor), float)
        assert np.abs(small[: len(truth), : truth.shape[1]] - truth).mean() < 3, factor
    assert ImageFolder(tmp_path, BASE).picture(pytest.fail, "a") == image  # known already


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_published_again(archive: Path, tmp_path: Path) -> None:
    """The same bytes; unchanged pictures aren't written anew; a withdrawn photo leaves nothing behind."""
    for name in ("scans", "colours", "site"):
        shutil.copytree(archive / name, tmp_path / name)
    before = snapshot(tmp_path / "site")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "site" / "images").rglob("*.jpg")}
    assert run(tmp_path).exit_code == 0 and snapshot(tmp_path / "site") == before
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "site" / "images").rglob("*.jpg")}
    shutil.rmtree(tmp_path / "colours" / "box 1")
    assert run(tmp_path).exit_code == 0
    after = snapshot(tmp_path / "site")
    assert set(after) < set(before) and not any("box 1" in name for name in after)
    assert b"camera" not in b"".join(data for name, data in after.items() if not name.startswith("viewer/"))
    assert len(list((tmp_path / "site" / "images").iterdir())) == 4  # two pages, grey and colour


def test_what_cannot_be_published_is_said(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "colours").mkdir()
    (tmp_path / "scans").mkdir()
    result = run(tmp_path)
    assert result.exit_code == 2 and "no colour copy in this folder" in result.stderr
    shutil.copy(archive / "colours" / "box 1" / "low & wide.png", tmp_path / "colours")
    result = run(tmp_path)
    assert result.exit_code == 2 and "isn't in" in result.stderr and "--source" in result.stderr
    shutil.copy(archive / "scans" / "box 1" / "low & wide.png", tmp_path / "scans")
    shutil.copy(archive / "colours" / "box 1" / "camera-1.jpg", tmp_path / "colours")
    result = run(tmp_path, "--rights", "https://creativecommons.org/publicdomain/mark/1.0/deed.de")
    assert result.exit_code == 1 and result.stderr.count("Error:") == 1 and "1 photos (1 pages)" in result.stdout
    (canvas,) = canvases(tmp_path / "site").values()
    assert canvas["rights"] == "http://creativecommons.org/publicdomain/mark/1.0/"
    (tmp_path / "colours" / "low & wide.png").write_bytes(  # its label is whole, its picture isn't
        (tmp_path / "colours" / "low & wide.png").read_bytes()[:-3000]
    )
    shutil.copy(archive / "scans" / "box 1" / "camera.jpg", tmp_path / "scans")
    result = run(tmp_path)
    assert result.exit_code == 1 and "low & wide.png" in result.stderr and "1 photos (1 pages)" in result.stdout
    assert "inside" in run(tmp_path, output="colours/site").stderr
    assert "not empty and not a site" in run(tmp_path, output="scans").stderr
    for base in ("archive.example", "file:///tmp", "https://archive.example/?a"):
        assert f"--base-url {base}" in run(tmp_path, base=base).stderr
    with pytest.raises(ValueError, match="IIIF takes URIs"):
        rights_uri("all rights reserved")


def test_photos_of_one_name_stay_apart(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number, ending in enumerate(("jpg", "png")):
        Image.fromarray(np.full((40, 50 + number), 99, np.uint8)).save(tmp_path / "scans" / f"17.{ending}")
    colorize(tmp_path / "scans", "-o", tmp_path / "colours", "-r", checkpoint=checkpoint)
    assert "2 photos (2 pages)" in run(tmp_path).stdout
    manifest = read(tmp_path / "site" / "manifests" / "manifest.json")
    assert len({canvas["id"] for canvas in manifest["items"]}) == 2
    assert sorted(file.name for file in (tmp_path / "site" / "labels").iterdir()) == ["17.jpg.xmp", "17.png.xmp"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield running
        running.close()


def colourfulness(page: Any) -> float:
    """Mean difference of a viewer's red, green and blue on the screen."""
    import io

    shot = page.locator("#picture").screenshot()
    return float(np.ptp(np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), int), axis=2).mean())


def test_viewer_switches_from_grey_to_colour(archive: Path, browser: Any, serve: Any) -> None:
    """From another address than the site was made for, without a network, by keyboard alone."""
    url = serve(archive / "site")
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    requested, faults = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda answer: faults.append(answer.url) if answer.status >= 400 else None)
    page.goto(url)
    assert page.locator("#statement").inner_text() == NOTE
    page.get_by_role("link", name="box 1").press("Enter")
    page.get_by_role("link", name="The photographer").press("Enter")
    page.locator('#picture[data-shown="0"]').wait_for()
    page.wait_for_timeout(1000)
    assert NOTE in page.locator("#photo-statement").inner_text()
    assert page.get_by_role("radio").count() == 4
    assert page.get_by_text("With her camera, 1938").is_visible()
    gray = colourfulness(page)
    page.get_by_role("radio").first.press("ArrowRight")
    page.locator('#picture[data-shown="1"]').wait_for()
    page.wait_for_timeout(1000)
    assert gray < 1 and colourfulness(page) > gray + 2
    assert page.locator("#picture").get_attribute("aria-label").endswith("Colours by a model, variant 1")
    page.get_by_role("button", name="Zoom in").press("Enter")
    page.get_by_role("link", name="Next photo").press("Enter")
    page.get_by_role("heading", name="low & wide").wait_for()
    page.get_by_role("link", name="All photos").press("Enter")
    page.locator("#thumbnails img").first.wait_for()
    assert all(image.get_attribute("alt") for image in page.locator("img").all())
    page.get_by_role("link", name="All folders").press("Enter")
    page.get_by_role("link", name=f"{BOX_2}/album").press("Enter")
    page.get_by_role("link", name="pages, page 2").press("Enter")
    page.locator('#picture[data-shown="0"]').wait_for()
    assert faults == [] and all(address.startswith((url, "data:", "blob:")) for address in requested)
    page.goto(f"{url}/#manifests/nowhere/manifest.json")
    page.reload()
    page.get_by_text("This folder can't be shown").wait_for()
    context.close()


def test_page_says_that_it_needs_a_server(archive: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto((archive / "site" / "index.html").as_uri())
    page.get_by_text("python -m http.server").wait_for()
    page.close()


@pytest.mark.slow
def test_axe_finds_no_fault(archive: Path, browser: Any, serve: Any, tmp_path: Path) -> None:
    """The usual program for accessibility, at the folders, the photos of one, a photo, and an error."""
    axe = fetch_from_npm("axe-core@4", "axe.min.js", tmp_path)
    url = serve(archive / "site")
    page = browser.new_page()
    photos = f"#manifests/{quote('box 1')}/manifest.json"
    for place, title in (("", "Folders"), (photos, "box 1"), (f"{photos};1", "The photographer"), ("#no", "Folders")):
        page.goto("about:blank")
        page.goto(f"{url}/{place}")
        page.get_by_role("heading", name=title).wait_for()
        page.wait_for_timeout(500)
        assert run_axe(page, axe, "violations", "incomplete") == []
    page.close()


@pytest.mark.slow
def test_mirador_opens_the_manifest(archive: Path, browser: Any, serve: Any, tmp_path: Path) -> None:
    """An independent viewer, from npm: shows the choice and the statement."""
    shutil.copy(fetch_from_npm("mirador@4", "dist/mirador.min.js", tmp_path), tmp_path / "mirador.js")
    url = serve(tmp_path)
    site_url = serve(tmp_path / "site")
    for name in ("scans", "colours"):
        (tmp_path / name).symlink_to(archive / name)
    assert run(tmp_path, base=site_url).exit_code == 0
    manifest = f"{site_url}/manifests/{quote('box 1')}/manifest.json"
    window = {"manifestId": manifest, "defaultSideBarPanel": "info", "sideBarOpen": True}
    settings = json.dumps({"id": "viewer", "windows": [window]})
    (tmp_path / "index.html").write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><div id="viewer"></div><script src="mirador.js"></script>'
        f"<script>Mirador.viewer({settings});</script>"
    )
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(url)
    page.get_by_text("The photographer Žofie").first.wait_for(timeout=60_000)
    page.get_by_text(NOTE).first.wait_for()
    page.wait_for_timeout(2000)
    page.screenshot(path=os.environ.get("MIRADOR_SCREENSHOT", str(tmp_path / "mirador.png")))
    page.close()
