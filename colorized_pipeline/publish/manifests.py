"""IIIF Presentation 3 documents of published photos, as plain data. They say that the colours are a model's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..archive.labels import NOTE
from .images import PublishedImage
from .results import ColorCopy

_CONTEXT = "http://iiif.io/api/presentation/3/context.json"
_RIGHTS = re.compile(r"https?://(?:creativecommons\.org|rightsstatements\.org)/[^\s;,<>\"]+")
_SHOWN = {
    "dc:creator": "Creator",
    "photoshop:DateCreated": "Date",
    "Iptc4xmpCore:Location": "Place",
    "photoshop:City": "City",
    "photoshop:Country": "Country",
    "dc:subject": "Subjects",
    "photoshop:Credit": "Credit",
    "dc:rights": "Rights",
    "colorized:SourceManifest": "Source manifest",
    "colorized:SourceCanvas": "Source canvas",
    "colorized:SourceImage": "Source image",
}


@dataclass(frozen=True)
class PhotoFacts:
    """One page of a photo as it is published.

    Attributes:
        place: its path in the site, without an ending; unique.
        copy: the colour copy whose label describes the photo.
        page: its number from 1, of ``pages``.
        choices: pictures to choose from with their names, the grey one first.
        label_url: the copy's label.
        rights: URI of a licence or rights statement, if there is one.
    """

    place: str
    copy: ColorCopy
    page: int
    pages: int
    choices: Sequence[tuple[str, PublishedImage]]
    label_url: str
    rights: str | None


def find_rights(copy: ColorCopy) -> str | None:
    """The licence or rights statement that a copy's metadata name, as the URI that IIIF wants: http and no query."""
    for name in ("xmpRights:WebStatement", "cc:license", "dc:rights", "colorized:SourceRights"):
        if found := _RIGHTS.search(copy.label.get(name, "")):
            return rights_uri(found[0])
    return None


def rights_uri(text: str) -> str:
    """A rights URI as Creative Commons and RightsStatements.org define it.

    >>> rights_uri("https://creativecommons.org/licenses/by/4.0/deed.de")
    'http://creativecommons.org/licenses/by/4.0/'

    Raises:
        ValueError: if it is none of theirs.
    """
    if not _RIGHTS.fullmatch(text):
        raise ValueError(
            f"--rights {text}: IIIF takes URIs of creativecommons.org and rightsstatements.org, "
            "such as http://rightsstatements.org/vocab/NoC-US/1.0/"
        )
    text = re.sub(r"(deed|legalcode)[^/]*$", "", text.replace("https://", "http://", 1))
    text = text.replace("rightsstatements.org/page/", "rightsstatements.org/vocab/").split("?")[0].rstrip(".)")
    return text if text.endswith("/") else text + "/"


def build_manifest(
    url: str, title: str, photos: Sequence[PhotoFacts], *, collection: str, page: str
) -> dict[str, Any]:
    """The manifest of a folder: each page of each photo is a canvas.

    ``url`` is its own, ``collection`` that of what it is part of, ``page`` that of the web page that shows it.
    """
    rights = {photo.rights for photo in photos}
    return {
        "@context": _CONTEXT,
        "id": url,
        "type": "Manifest",
        "label": _text(title),
        **_statement(),
        **({"rights": rights.pop()} if len(rights) == 1 and None not in rights else {}),
        "thumbnail": [_thumbnail(photos[0])],
        "homepage": [{"id": page, "type": "Text", "format": "text/html", "label": _words("Web page")}],
        "partOf": [{"id": collection, "type": "Collection"}],
        "items": [_canvas(url.rpartition("/")[0], photo) for photo in photos],
    }


def build_collection(url: str, title: str, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The collection of a site's manifests."""
    return {
        "@context": _CONTEXT,
        "id": url,
        "type": "Collection",
        "label": _text(title),
        **_statement(),
        "items": [{name: one[name] for name in ("id", "type", "label", "thumbnail")} for one in manifests],
    }


def _canvas(folder: str, photo: PhotoFacts) -> dict[str, Any]:
    gray = photo.choices[0][1]
    url = f"{folder}/canvas/{quote(photo.place)}/{photo.page}"
    title = photo.copy.title + (f", page {photo.page}" if photo.pages > 1 else "")
    label = photo.copy.label
    facts = [(word, label[name]) for name, word in _SHOWN.items() if label.get(name)]
    facts += [("Source file", photo.copy.source_name), ("SHA-256 of the source", photo.copy.source_sha256)]
    description = [photo.copy.description] if photo.copy.description else []
    pictures = [_picture(one, one.whole, (one.width, one.height), label=_words(words)) for words, one in photo.choices]
    annotation = {
        "id": f"{url}/annotation",
        "type": "Annotation",
        "motivation": "painting",
        "body": {"type": "Choice", "items": pictures},
        "target": url,
    }
    return {
        "id": url,
        "type": "Canvas",
        "label": _text(title),
        "summary": {"none": description, "en": [NOTE]} if description else _words(NOTE),
        "requiredStatement": _statement()["requiredStatement"],
        **({"rights": photo.rights} if photo.rights else {}),
        "metadata": [{"label": _words(word), "value": _text(value)} for word, value in facts],
        "height": gray.height,
        "width": gray.width,
        "thumbnail": [_thumbnail(photo)],
        "seeAlso": [
            {
                "id": photo.label_url,
                "type": "Dataset",
                "format": "application/rdf+xml",
                "label": _words("Label of the colour copy (XMP)"),
            }
        ],
        "items": [{"id": f"{url}/page", "type": "AnnotationPage", "items": [annotation]}],
    }


def _picture(image: PublishedImage, url: str, size: tuple[int, int], **more: Any) -> dict[str, Any]:
    width, height = size
    facts = {"id": url, "type": "Image", "format": "image/jpeg", "width": width, "height": height}
    return {**facts, "service": [image.service], **more}


def _thumbnail(photo: PhotoFacts) -> dict[str, Any]:
    image = photo.choices[0][1]
    return _picture(image, image.small, image.thumbnail)


def _statement() -> dict[str, Any]:
    return {
        "summary": _words(NOTE),
        "requiredStatement": {"label": _words("About the colours"), "value": _words(NOTE)},
    }


def _words(text: str) -> dict[str, list[str]]:
    """Words of ours."""
    return {"en": [text]}


def _text(text: str) -> dict[str, list[str]]:
    """Words of the archive's, in a language that we don't know."""
    return {"none": [text]}
