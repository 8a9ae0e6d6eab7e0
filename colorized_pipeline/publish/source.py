"""IIIF as a source of photos: the pictures of a manifest are fetched, and what identifies them is kept."""

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .._version import __version__
from ..archive.files import NewFile, write_file

_MANIFEST_BYTES = 2**27
_IMAGE_BYTES = 2**32
_TIMEOUT = 60.0  # seconds without an answer
_TRIES = 3
_BUSY = (429, 502, 503, 504)
_DEEPEST = 5  # collections in collections
_STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
    b"RIFF": ".webp",
    b"\0\0\0\x0cjP": ".jp2",
    b"GIF8": ".gif",
}


@dataclass
class Fetched:
    """Photos of one manifest.

    Attributes:
        folder: where they are.
        identifiers: of each file what the label says of its origin, ``{"SourceCanvas": ..., ...}``.
        problems: what couldn't be fetched, in words for users.
    """

    folder: Path
    identifiers: dict[Path, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Canvas:
    """A canvas: its identity, and addresses of its picture, the best one first."""

    identifier: str
    title: str
    rights: str
    addresses: tuple[str, ...]


def is_manifest(photo: str) -> bool:
    """Whether a photo argument names a IIIF document: a web address, or a local JSON file."""
    return photo.startswith(("http://", "https://")) or (photo.lower().endswith(".json") and Path(photo).is_file())


def fetch_photos(manifest: str, folder: Path) -> list[Fetched]:
    """Fetch the pictures of a manifest, or of all manifests of a collection; those that are there already stay.

    Args:
        manifest: web address or local file, of IIIF Presentation 2 or 3.
        folder: each manifest's pictures go into a folder in it.

    Raises:
        OSError: if a manifest can't be read.
        ValueError: if it isn't one, or has no picture.
    """
    return [_fetch_manifest(*one, folder) for one in _manifests(manifest, _read_document(manifest), depth=0)]


def _manifests(address: str, document: dict[str, Any], *, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = str(document.get("type") or document.get("@type") or "").rpartition(":")[2]
    if kind == "Manifest":
        yield address, document
        return
    if kind != "Collection" or depth > _DEEPEST:
        raise ValueError(f"{address}: not a IIIF manifest or collection (its type is {kind or 'missing'})")
    for name in ("items", "manifests", "collections", "members"):
        for item in document.get(name, []):
            url = _identity(item)
            yield from _manifests(url, _read_document(url), depth=depth + 1)


def _read_document(address: str) -> dict[str, Any]:
    if address.startswith(("http://", "https://")):
        content = b"".join(_download(address, most=_MANIFEST_BYTES))
    else:
        content = Path(address).read_bytes()
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{address}: not a IIIF manifest ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{address}: not a IIIF manifest (not a JSON object)")
    return document


def _fetch_manifest(address: str, document: dict[str, Any], folder: Path) -> Fetched:
    identifier = _identity(document) or address
    digest = hashlib.sha256(identifier.encode()).hexdigest()[:8]
    fetched = Fetched(folder / f"{_safe_name(_title(document) or 'manifest')}-{digest}")
    try:
        canvases = list(_canvases(document))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{address}: a damaged IIIF manifest ({type(error).__name__}: {error})") from error
    if not any(canvas.addresses for canvas in canvases):
        raise ValueError(f"{address}: no picture in this manifest")
    for number, canvas in enumerate(canvases, start=1):
        stem = f"{number:04}-{_safe_name(canvas.title)}".rstrip("-")
        try:
            file, image = _fetch_image(canvas, fetched.folder, stem)
        except OSError as error:
            fetched.problems.append(f"{canvas.identifier}: {error}")
            continue
        facts = {"SourceManifest": identifier, "SourceCanvas": canvas.identifier, "SourceImage": image}
        facts |= {"SourceTitle": canvas.title} if canvas.title else {}
        facts |= {"SourceRights": canvas.rights} if canvas.rights else {}
        fetched.identifiers[file] = facts
    return fetched


def _fetch_image(canvas: _Canvas, folder: Path, stem: str) -> tuple[Path, str]:
    """The picture's file and the address that it came from."""
    if not canvas.addresses:
        raise OSError("it has no picture")
    record = folder / f".{stem}.json"
    if record.is_file():
        known = json.loads(record.read_text())
        file = folder / known["file"]
        if known["addresses"] == list(canvas.addresses) and file.is_file():
            return file, known["image"]
    failures = []
    for address in canvas.addresses:
        try:
            file = _save_picture(address, folder / stem)
        except OSError as error:
            failures.append(error)
            continue
        content = {"file": file.name, "image": address, "addresses": canvas.addresses}
        write_file(record, json.dumps(content).encode())
        return file, address
    raise failures[0]


def _save_picture(address: str, stem: Path) -> Path:
    """Write a picture from the web under a name with the ending of its format."""
    blocks = _download(address, most=_IMAGE_BYTES)
    first = next(blocks, b"")
    suffix = next((ending for start, ending in _STARTS.items() if first.startswith(start)), None)
    if suffix is None:
        raise OSError(f"{address}: not a picture in a known format")
    file = stem.with_name(f"{stem.name}{suffix}")
    with NewFile(file) as new:
        new.stream.write(first)
        for block in blocks:
            new.stream.write(block)
    return file


def _canvases(document: dict[str, Any]) -> Iterator[_Canvas]:
    """Canvases of Presentation 3 and 2."""
    rights = str(document.get("rights") or document.get("license") or "")
    for canvas in document.get("items", []):
        annotations = [one for page in canvas.get("items", []) for one in page.get("items", [])]
        bodies = [one["body"] for one in annotations if "painting" in one.get("motivation", "painting")]
        yield _canvas(canvas, bodies, rights)
    for sequence in document.get("sequences", [])[:1]:
        for canvas in sequence.get("canvases", []):
            yield _canvas(canvas, [image["resource"] for image in canvas.get("images", [])], rights)


def _canvas(canvas: dict[str, Any], bodies: list[Any], rights: str) -> _Canvas:
    body = bodies[0] if bodies else {}
    body = body[0] if isinstance(body, list) else body
    if body.get("type") == "Choice":
        body = body["items"][0]
    if body.get("@type") == "oa:Choice":
        body = body["default"]
    is_image = str(body.get("type") or body.get("@type") or "Image").endswith("Image")
    addresses = dict.fromkeys(_addresses(body)) if is_image else {}
    own = canvas.get("rights") or canvas.get("license") or rights
    return _Canvas(_identity(canvas), _title(canvas), str(own), tuple(addresses))


def _addresses(body: dict[str, Any]) -> Iterator[str]:
    """The whole picture from its image service, as the service's version writes it, else the picture as it is."""
    services = body.get("service") or []
    for service in services if isinstance(services, list) else [services]:
        identity = _identity(service).rstrip("/")
        kind = f"{service.get('type') or service.get('@type') or ''} {service.get('@context', '')}"
        if not identity or not ("ImageService" in kind or "/image/" in kind):
            continue
        if "ImageService1" in kind or "image/1" in kind or "library.stanford.edu" in kind:
            yield f"{identity}/full/full/0/native.jpg"
            continue
        yield f"{identity}/full/max/0/default.jpg"
        if "ImageService3" not in kind and "image/3" not in kind:
            yield f"{identity}/full/full/0/default.jpg"
    if identity := _identity(body):
        yield identity


def _identity(thing: Any) -> str:
    return str(thing.get("id") or thing.get("@id") or "") if isinstance(thing, dict) else str(thing)


def _title(thing: dict[str, Any]) -> str:
    """A label of Presentation 3 (by language) or 2 (text, or several)."""
    label = thing.get("label") or ""
    if isinstance(label, dict) and "@value" not in label:
        label = next(iter(label.values()), "")
    if isinstance(label, list):
        label = label[0] if label else ""
    if isinstance(label, dict):
        label = label.get("@value", "")
    return " ".join(str(label).split())


def _safe_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:60].strip("-.")


def _download(address: str, *, most: int) -> Iterator[bytes]:
    """A file from the web, in blocks. A busy server is asked again, later.

    Raises:
        OSError: if it can't be had, is longer than ``most`` or came incomplete.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise OSError(f"{address}: not a web address")
    request = urllib.request.Request(address, headers={"User-Agent": f"COLORIZED/{__version__}"})
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                count, expected = 0, int(answer.headers.get("Content-Length") or -1)
                while block := answer.read(2**20):
                    count += len(block)
                    if count > most:
                        raise OSError(f"{address}: longer than {most} bytes")
                    yield block
                if 0 <= count < expected:
                    raise OSError(f"{address}: came incomplete ({count} of {expected} bytes); try again")
                return
        except urllib.error.HTTPError as error:
            if error.code not in _BUSY or attempt == _TRIES:
                raise OSError(f"{address}: {error.code} {error.reason}") from error
            wait = error.headers.get("Retry-After", "")
            time.sleep(min(60, int(wait)) if wait.isdigit() else 2**attempt)
        except http.client.HTTPException as error:
            raise OSError(f"{address}: came incomplete ({type(error).__name__}); try again") from error
        except urllib.error.URLError as error:
            raise OSError(f"{address}: can't be reached ({error.reason})") from error
