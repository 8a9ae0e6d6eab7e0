"""Photos from IIIF manifests: of the published site itself, and of servers as libraries run them."""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline.archive.inspection import describe
from colorized_pipeline.cli import app
from colorized_pipeline.publish.source import fetch_photos, is_manifest


def picture(kind: str = "JPEG", edge: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(skimage_data.camera()[:edge, : edge + 10]).save(stream, kind)
    return stream.getvalue()


class Library:
    """A web server whose answers a test chooses: ``{path: (status, headers, content)}``."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[str] = []
        library = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                library.asked.append(self.path)
                waiting = library.answers.get(self.path, [(404, {}, b"")])
                status, headers, content = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, path: str, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> str:
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        self.answers.setdefault(path, []).append((status, headers, data))
        return self.url + path


@pytest.fixture
def library() -> Iterator[Library]:
    running = Library()
    yield running
    running.server.shutdown()
    running.server.server_close()


def canvas(url: str, body: dict[str, Any], **more: Any) -> dict[str, Any]:
    annotation = {"type": "Annotation", "motivation": "painting", "target": url, "body": body}
    pages = [{"type": "AnnotationPage", "items": [annotation]}]
    return {"id": url, "type": "Canvas", "label": {"de": ["Ansicht: Markt/Platz"]}, "items": pages, **more}


def manifest(library: Library, *canvases: dict[str, Any]) -> dict[str, Any]:
    return {
        "@context": "http://iiif.io/api/presentation/3/context.json",
        "id": f"{library.url}/manifest.json",
        "type": "Manifest",
        "label": {"en": ["Box 7"]},
        "rights": "http://rightsstatements.org/vocab/NKC/1.0/",
        "items": list(canvases),
    }


def image(library: Library, path: str = "/a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": library.url + path, "type": "Image", **more}


def test_pictures_and_what_identifies_them(library: Library, tmp_path: Path) -> None:
    library.put("/a.jpg", picture())
    library.put("/b.tif", picture("TIFF"))
    service = [{"id": f"{library.url}/iiif/3", "type": "ImageService3", "profile": "level2"}]
    library.put("/iiif/3/full/max/0/default.jpg", picture(edge=100))
    choice = {"type": "Choice", "items": [image(library), image(library, "/colour.jpg")]}
    one, two, three = (
        canvas("https://x.example/c1", choice),
        canvas("https://x.example/c2", image(library, "/b.tif"), rights="http://creativecommons.org/licenses/by/4.0/"),
        canvas("https://x.example/c3", image(library, "/small.jpg", service=service)),
    )
    address = library.put("/manifest.json", manifest(library, one, two, three))
    (fetched,) = fetch_photos(address, tmp_path)
    assert fetched.problems == [] and fetched.folder.parent == tmp_path and fetched.folder.name.startswith("Box-7-")
    assert [file.name for file in fetched.identifiers] == [
        "0001-Ansicht-Markt-Platz.jpg",
        "0002-Ansicht-Markt-Platz.tif",
        "0003-Ansicht-Markt-Platz.jpg",
    ]
    first, second, third = fetched.identifiers.values()
    assert first == {
        "SourceManifest": address,
        "SourceCanvas": "https://x.example/c1",
        "SourceImage": f"{library.url}/a.jpg",
        "SourceTitle": "Ansicht: Markt/Platz",
        "SourceRights": "http://rightsstatements.org/vocab/NKC/1.0/",
    }
    assert second["SourceRights"] == "http://creativecommons.org/licenses/by/4.0/"
    assert third["SourceImage"] == f"{library.url}/iiif/3/full/max/0/default.jpg"
    assert Image.open(list(fetched.identifiers)[2]).size == (110, 100)

    asked = len(library.asked)
    assert fetch_photos(address, tmp_path)[0].identifiers == fetched.identifiers
    assert library.asked[asked:] == ["/manifest.json"]  # pictures that are there stay


def test_local_file_with_presentation_2(library: Library, tmp_path: Path) -> None:
    library.put("/iiif/2/full/full/0/default.jpg", picture())
    service = {"@context": "http://iiif.io/api/image/2/context.json", "@id": f"{library.url}/iiif/2"}
    resource = {"@id": f"{library.url}/x.jpg", "@type": "dctypes:Image", "service": service}
    images = [{"@type": "oa:Annotation", "motivation": "sc:painting", "resource": resource}]
    document = {
        "@id": "https://x.example/m",
        "@type": "sc:Manifest",
        "label": [{"@value": "Album"}],
        "license": "http://creativecommons.org/publicdomain/mark/1.0/",
        "sequences": [{"canvases": [{"@id": "https://x.example/c", "label": "p. 1", "images": images}]}],
    }
    file = tmp_path / "m.json"
    file.write_text(json.dumps(document))
    assert is_manifest(str(file)) and not is_manifest(str(tmp_path)) and is_manifest("https://x.example/m")
    (fetched,) = fetch_photos(str(file), tmp_path / "out")
    assert fetched.folder.name.startswith("Album-")
    (facts,) = fetched.identifiers.values()
    assert facts["SourceManifest"] == "https://x.example/m"
    assert facts["SourceImage"] == f"{library.url}/iiif/2/full/full/0/default.jpg"
    assert facts["SourceRights"].endswith("mark/1.0/")


def test_collections_are_followed(library: Library, tmp_path: Path) -> None:
    library.put("/a.jpg", picture())
    address = library.put("/manifest.json", manifest(library, canvas("https://x.example/c1", image(library))))
    items = [{"id": address, "type": "Manifest"}]
    inner = library.put("/inner.json", {"id": "i", "type": "Collection", "items": items})
    outer = library.put(
        "/outer.json", {"id": "o", "type": "Collection", "items": [{"id": inner, "type": "Collection"}]}
    )
    assert len(fetch_photos(outer, tmp_path)[0].identifiers) == 1


def test_busy_server_is_asked_again_and_a_missing_picture_is_named(library: Library, tmp_path: Path) -> None:
    library.put("/a.jpg", b"", 503, **{"Retry-After": "0"})
    library.put("/a.jpg", picture())
    library.put("/page.jpg", b"<html>not a picture</html>")
    library.put("/cut.jpg", picture(), **{"Content-Length": "99999999"})
    bodies = [image(library, path) for path in ("/a.jpg", "/missing.jpg", "/page.jpg", "/cut.jpg")]
    bodies += [{"id": "file:///etc/passwd", "type": "Image"}, {"id": library.url, "type": "Video"}]
    library.put("/leads.jpg", b"", 302, Location="file:///etc/passwd")
    bodies.append(image(library, "/leads.jpg"))
    canvases = [canvas(f"https://x.example/c{number}", body) for number, body in enumerate(bodies)]
    (fetched,) = fetch_photos(library.put("/manifest.json", manifest(library, *canvases)), tmp_path)
    assert len(fetched.identifiers) == 1 and library.asked.count("/a.jpg") == 2
    reasons = ["404", "not a picture", "incomplete", "not a web address", "no picture", "not allowed"]
    assert len(fetched.problems) == len(reasons)
    for number, (problem, reason) in enumerate(zip(fetched.problems, reasons, strict=True), start=1):
        assert problem.startswith(f"https://x.example/c{number}: ") and reason in problem
    assert sorted(file.suffix for file in fetched.folder.iterdir()) == [".jpg", ".json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "not a IIIF manifest"),
        (b"[1]", "not a JSON object"),
        (b'{"type": "Canvas"}', "its type is Canvas"),
        (b'{"type": "Manifest", "items": []}', "no picture in this manifest"),
        (b'{"type": "Manifest", "items": [{"items": [{"items": [{"body": 5}]}]}]}', "damaged"),
        (b'{"type": "Manifest", "items": [5]}', "damaged"),
    ],
)
def test_what_is_no_manifest_is_said(library: Library, tmp_path: Path, content: bytes, reason: str) -> None:
    address = library.put("/m.json", content)
    with pytest.raises(ValueError, match=reason):
        fetch_photos(address, tmp_path)


def test_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9/m\.json: can't be reached"):
        fetch_photos("http://127.0.0.1:9/m.json", tmp_path)


def test_fetched_pixels_are_the_servers(library: Library, tmp_path: Path) -> None:
    library.put("/a.jpg", picture("PNG"))
    (fetched,) = fetch_photos(
        library.put("/manifest.json", manifest(library, canvas("https://x.example/c", image(library)))), tmp_path
    )
    (file,) = fetched.identifiers
    assert file.suffix == ".png" and np.array_equal(np.asarray(Image.open(file)), skimage_data.camera()[:64, :74])


def test_from_manifest_to_site(checkpoint: Path, library: Library, tmp_path: Path) -> None:
    """A library's manifest is coloured, keeps its identifiers, is published, and read again from there."""
    library.put("/a.jpg", picture())
    library.put("/b.png", picture("PNG", edge=90))
    bodies = [image(library, path) for path in ("/a.jpg", "/b.png", "/missing.jpg")]
    canvases = [canvas(f"https://x.example/c{number}", body) for number, body in enumerate(bodies)]
    address, colours, site = (
        library.put("/manifest.json", manifest(library, *canvases)),
        tmp_path / "c",
        tmp_path / "s",
    )
    words = ["colorize", address, "-o", str(colours), "--checkpoint", str(checkpoint), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and "/missing.jpg: 404" in result.stderr and "2 of 2 photos" in result.stdout
    label = describe(colours / "0001-Ansicht-Markt-Platz.jpg")
    assert label["colorized:SourceManifest"] == address
    assert label["colorized:SourceCanvas"] == "https://x.example/c0"
    assert label["colorized:SourceImage"] == f"{library.url}/a.jpg"

    words = ["publish", str(colours), "--source", str(tmp_path / "c-sources"), "--base-url", f"{library.url}/site"]
    result = CliRunner().invoke(app, [*words, "-o", str(site)])
    assert result.exit_code == 0, result.output
    for file in site.rglob("*"):
        if file.is_file():
            library.put(f"/site/{file.relative_to(site).as_posix()}", file.read_bytes())
    (fetched,) = fetch_photos(f"{library.url}/site/collection.json", tmp_path / "again")
    assert fetched.problems == [] and len(fetched.identifiers) == 2
    for file, facts in fetched.identifiers.items():
        assert facts["SourceTitle"] == "Ansicht: Markt/Platz"
        assert facts["SourceRights"] == "http://rightsstatements.org/vocab/NKC/1.0/"
        with Image.open(file) as grey:  # of the choice the first: the grey photo
            assert np.ptp(np.asarray(grey.convert("RGB"), int), axis=2).max() < 3
