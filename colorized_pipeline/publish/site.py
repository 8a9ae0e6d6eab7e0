"""A static web site of colour copies beside their scans: IIIF manifests and tiles, and a page that shows them."""

import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from ..archive.files import write_file
from ..archive.labels import NOTE
from ..archive.scans import hash_file, open_scan
from .images import ImageFolder, PublishedImage
from .manifests import PhotoFacts, build_collection, build_manifest, find_rights
from .results import Result, page_count, read_map, read_picture

_VIEWER = ("openseadragon.min.js", "openseadragon-LICENSE.txt", "viewer.js", "viewer.css")
_COLLECTION = "collection.json"


def publish_site(
    results: Sequence[Result],
    output: Path,
    *,
    base_url: str,
    title: str = "Photographs with colours by a model",
    rights: str | None = None,
    on_photo: Callable[[], object] | None = None,
) -> tuple[int, list[str]]:
    """Write a site. The same folder again: pictures that haven't changed stay, those no longer published go.

    Args:
        output: folder of the site: new, empty, or of a site before.
        base_url: address that the folder will have on the web.
        rights: URI of a licence or rights statement, for photos whose metadata name none.

    Returns:
        How many canvases the manifests have, pages of all photos, and what is wrong with photos that are left out.

    Raises:
        ValueError: if ``output`` is a folder of something else, or ``base_url`` is no web address.
        OSError: if a file can't be written.
        ImportError: if pyvips is missing.
    """
    base = check_base_url(base_url)
    if output.is_dir() and any(output.iterdir()) and not (output / _COLLECTION).is_file():
        raise ValueError(f"{output}: not empty and not a site; choose another folder")
    images = ImageFolder(output / "images", f"{base}/images")
    folders: dict[str, list[PhotoFacts]] = {}
    kept = set[Path]()
    problems = []
    for result in results:
        try:
            photos = list(_photo(result, output, images, base, rights, kept))
            folders.setdefault(result.name.parent.as_posix(), []).extend(photos)
        except (OSError, ValueError, MemoryError) as error:
            problems.append(f"{result.copies[0].file}: {error}")
        if on_photo:
            on_photo()
    manifests = []
    for folder, photos in folders.items():
        path = "manifests" if folder == "." else f"manifests/{folder}"
        url = f"{base}/{quote(path)}/manifest.json"
        manifest = build_manifest(
            url,
            title if folder == "." else folder,
            photos,
            collection=f"{base}/{_COLLECTION}",
            page=f"{base}/index.html#{quote(path)}/manifest.json",
        )
        kept.add(_write_json(output / path / "manifest.json", manifest))
        manifests.append(manifest)
    _write_json(output / _COLLECTION, build_collection(f"{base}/{_COLLECTION}", title, manifests))
    _write_page(output, title=title, base=base, folders={name: len(photos) for name, photos in folders.items()})
    _prune(output, kept)
    images.prune()
    return sum(map(len, folders.values())), problems


def check_base_url(text: str) -> str:
    """A web address without its last slash. Raises ``ValueError`` if it is none."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"--base-url {text}: give the site's address, such as https://archive.example/photos")
    return text.rstrip("/")


def _photo(
    result: Result, output: Path, images: ImageFolder, base: str, rights: str | None, kept: set[Path]
) -> Iterator[PhotoFacts]:
    """Write a photo's pictures and label; gives what its manifest says of each page."""
    place, first = result.name.as_posix(), result.copies[0]
    kept.add(write_file(output / "labels" / f"{place}.xmp", first.xmp))
    pages = page_count(result)
    for page in range(pages):
        yield PhotoFacts(
            place=place,
            copy=first,
            page=page + 1,
            pages=pages,
            choices=list(_choices(result, page, images)),
            label_url=f"{base}/labels/{quote(place)}.xmp",
            rights=find_rights(first) or rights,
        )


def _choices(result: Result, page: int, images: ImageFolder) -> Iterator[tuple[str, PublishedImage]]:
    sha256 = result.copies[0].source_sha256

    def read_scan() -> np.ndarray:
        return open_scan(result.scan, max_megapixels=float("inf"), sha256=sha256).read_page(page)

    gray = images.picture(read_scan, "grey", sha256, page)
    yield "Grey: the scan", gray
    for number, copy in enumerate(result.copies, start=1):
        several = f", variant {number}" if len(result.copies) > 1 else ""
        read = partial(read_picture, copy.file, page)
        yield f"Colours by a model{several}", images.picture(read, "colour", hash_file(copy.file), page, xmp=copy.xmp)
    if result.uncertainty:
        read = partial(read_map, result.uncertainty, gray.height, gray.width)
        shown = images.picture(read, "uncertainty", hash_file(result.uncertainty), page)
        yield "Uncertainty: dark sure, yellow unsure", shown


def _write_json(file: Path, content: dict[str, Any]) -> Path:
    return write_file(file, json.dumps(content, ensure_ascii=False, indent=1).encode())


def _write_page(output: Path, *, title: str, base: str, folders: dict[str, int]) -> None:
    viewer = files(__package__) / "viewer"
    for name in _VIEWER:
        write_file(output / "viewer" / name, (viewer / name).read_bytes())
    items = []
    for folder, count in folders.items():
        path = quote("manifests" if folder == "." else f"manifests/{folder}")
        name = html.escape(title if folder == "." else folder)
        items.append(f'<li><a href="#{path}/manifest.json">{name}</a> ({count})</li>')
    words = {"title": html.escape(title), "note": html.escape(NOTE), "base": html.escape(f"{base}/", quote=True)}
    words["folders"] = "\n".join(items)
    page = re.sub(r"\{\{ (\w+) \}\}", lambda found: words[found[1]], (viewer / "index.html").read_text("utf-8"))
    write_file(output / "index.html", page.encode())


def _prune(output: Path, kept: set[Path]) -> None:
    """Remove manifests and labels of photos that are no longer published."""
    for folder, name in (("manifests", "manifest.json"), ("labels", "*.xmp")):
        for file in (output / folder).rglob(name):
            if file not in kept:
                file.unlink()
