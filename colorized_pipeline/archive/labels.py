"""Labels: XMP that says that a picture's colours were made by a model, of which file, and how.

Properties are those of the IPTC Photo Metadata Standard 2025.1 and of XMP (ISO 16684-1); what they have no word for
(seed, steps, checkpoint) stands in a namespace of our own. A source's own XMP is carried over, but for what is no
longer true of the copy. Packets hold no time of making: the same photo and the same settings give the same bytes.
"""

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from .._version import __version__

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
CREATOR_TOOL = f"COLORIZED {__version__}"
NOTE = "Colours added by a machine-learning model (COLORIZED): plausible, not historical. The lightness is the scan's."

_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stRef": "http://ns.adobe.com/xap/1.0/sType/ResourceRef#",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "colorized": "urn:colorized:xmp:1.0:",
}
_XML = "http://www.w3.org/XML/1998/namespace"
_PREFIXES = {uri: prefix for prefix, uri in _NAMESPACES.items()}
for _prefix, _uri in _NAMESPACES.items():
    ET.register_namespace(_prefix, _uri)

# True of the scan but not of its copy: how pixels are stored, previews, camera-raw settings, identity
_NOT_CARRIED_NAMESPACES = ("tiff", "crs", "xmpMM", "colorized")
_NOT_CARRIED = {
    "xmp:CreatorTool",
    "xmp:MetadataDate",
    "xmp:ModifyDate",
    "xmp:Thumbnails",
    "photoshop:ICCProfile",
    "photoshop:ColorMode",
    "photoshop:DocumentAncestors",
    "exif:ColorSpace",
    "exif:PixelXDimension",
    "exif:PixelYDimension",
    "Iptc4xmpExt:DigitalSourceType",
    "Iptc4xmpExt:AISystemUsed",
    "Iptc4xmpExt:AISystemVersionUsed",
}
_CARRIED_ANYWAY = {
    "tiff:Make",
    "tiff:Model",
    "tiff:Artist",
    "tiff:Copyright",
    "tiff:ImageDescription",
    "tiff:Software",
}

# IPTC-IIM data sets and the XMP properties that mean the same (IPTC Photo Metadata Standard)
_IIM = {
    (2, 5): ("dc:title", "Alt"),
    (2, 25): ("dc:subject", "Bag"),
    (2, 40): ("photoshop:Instructions", ""),
    (2, 80): ("dc:creator", "Seq"),
    (2, 85): ("photoshop:AuthorsPosition", ""),
    (2, 90): ("photoshop:City", ""),
    (2, 92): ("Iptc4xmpCore:Location", ""),
    (2, 95): ("photoshop:State", ""),
    (2, 101): ("photoshop:Country", ""),
    (2, 103): ("photoshop:TransmissionReference", ""),
    (2, 105): ("photoshop:Headline", ""),
    (2, 110): ("photoshop:Credit", ""),
    (2, 115): ("photoshop:Source", ""),
    (2, 116): ("dc:rights", "Alt"),
    (2, 120): ("dc:description", "Alt"),
}


@dataclass(frozen=True)
class Label:
    """What a copy's label says of its making.

    Attributes:
        source_name: file name of the scan.
        source_sha256: SHA-256 of the scan's content, hexadecimal.
        settings: everything that decides the colours, such as ``{"Seed": 5, "Steps": 25}``; names in XMP's style.
    """

    source_name: str
    source_sha256: str
    settings: Mapping[str, object]


def build_xmp(
    label: Label, *, xmp: bytes | None = None, iptc: bytes | None = None, caption: str | None = None
) -> bytes:
    """The XMP packet of a colour copy.

    Args:
        label: what to say of its making.
        xmp: the scan's own packet, carried over.
        iptc: the scan's IPTC-IIM records; those that ``xmp`` doesn't tell are added as XMP.
        caption: the scan's description in EXIF, for one without any in ``xmp`` and ``iptc``: programs show XMP's
            description before EXIF's, and ours would hide it.

    Raises:
        ValueError: if ``xmp`` isn't XMP.
    """
    carried = dict(_properties(xmp)) if xmp else {}
    source = {
        name: _text(carried[name]) for name in ("xmpMM:DocumentID", "xmpMM:OriginalDocumentID") if name in carried
    }
    carried = {name: value for name, value in carried.items() if _is_carried(name)}
    for name, (kind, values) in read_iim(iptc or b"").items():
        carried.setdefault(name, _element(name, values, kind))

    if caption:
        carried.setdefault("dc:description", _element("dc:description", [caption], "Alt"))
    carried["dc:description"] = _with_note(carried.get("dc:description"))
    identity = "|".join((label.source_sha256, __version__, *(f"{k}={v}" for k, v in label.settings.items())))
    ours = {
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "Iptc4xmpExt:AISystemUsed": "COLORIZED",
        "Iptc4xmpExt:AISystemVersionUsed": __version__,
        "xmp:CreatorTool": CREATOR_TOOL,
        "xmpMM:DocumentID": f"uuid:{uuid.uuid5(uuid.NAMESPACE_URL, _printable(identity))}",
        "colorized:SourceSHA256": label.source_sha256,
        **{f"colorized:{name}": str(value) for name, value in label.settings.items()},
    }
    derived = {
        "stRef:instanceID": f"urn:sha256:{label.source_sha256}",
        "stRef:filePath": quote(label.source_name.encode("utf-8", "surrogateescape")),
    }
    if source:
        derived["stRef:documentID"] = source.get("xmpMM:DocumentID", "")
        derived["stRef:originalDocumentID"] = source.get("xmpMM:OriginalDocumentID", "")

    description = ET.Element(_tag("rdf:Description"), {_tag("rdf:about"): ""})
    description.extend(carried.values())
    for name, text in ours.items():
        ET.SubElement(description, _tag(name)).text = _printable(text)
    reference = ET.SubElement(description, _tag("xmpMM:DerivedFrom"), {_tag("rdf:parseType"): "Resource"})
    for name, text in derived.items():
        if text:
            ET.SubElement(reference, _tag(name)).text = _printable(text)
    meta = ET.Element(_tag("x:xmpmeta"), {_tag("x:xmptk"): CREATOR_TOOL})
    ET.SubElement(meta, _tag("rdf:RDF")).append(description)
    body = ET.tostring(meta, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{body}\n<?xpacket end="w"?>'.encode()


def read_xmp(packet: bytes) -> dict[str, str]:
    """An XMP packet as ``{"prefix:Name": text}``, structures as ``"prefix:Name/prefix:Field"``.

    Raises:
        ValueError: if it isn't XMP.
    """
    found: dict[str, str] = {}
    for name, element in _properties(packet):
        fields = [
            child for child in element.iter() if child is not element and _PREFIXES.get(_uri_of(child)) == "stRef"
        ]
        if fields:
            found.update({f"{name}/{_name(field)}": _text(field) for field in fields})
        else:
            found[name] = _text(element)
    return found


def find_packet(content: bytes) -> bytes | None:
    """The last XMP packet anywhere in a file's bytes, for formats that have no place of their own for it."""
    found = re.findall(rb"<\?xpacket begin=.*?<\?xpacket end=.[rw].\?>", content, re.DOTALL)
    return found[-1] if found else None


def read_iim(records: bytes) -> dict[str, tuple[str, list[str]]]:
    """IPTC-IIM records as ``{XMP property: (kind of list, texts)}``; stops at the first damaged record."""
    found: dict[str, tuple[str, list[str]]] = {}
    encodings, position = ("utf-8", "latin-1"), 0
    while position + 5 <= len(records) and records[position] == 0x1C:
        key = (records[position + 1], records[position + 2])
        length = int.from_bytes(records[position + 3 : position + 5], "big")
        value = records[position + 5 : position + 5 + length]
        position += 5 + length
        if length & 0x8000 or len(value) < length:
            break
        if key in _IIM:
            name, kind = _IIM[key]
            text = next(filter(None, (_decode(value, encoding) for encoding in encodings)), "")
            if text:
                found.setdefault(name, (kind, []))[1].append(text)
    return found


def _decode(value: bytes, encoding: str) -> str:
    try:
        return value.decode(encoding).strip("\0 ")
    except UnicodeDecodeError:
        return ""


def _properties(packet: bytes) -> Iterator[tuple[str, ET.Element]]:
    """Every property of a packet as an element of its own, whether it was written as one or as an attribute."""
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # XMP has none; they are a way to fill the memory
        raise ValueError("XMP with a document type")
    start, end = packet.find(b"<x:xmpmeta"), packet.rfind(b"</x:xmpmeta>")
    body = packet[start : end + len(b"</x:xmpmeta>")] if start >= 0 and end > start else packet.strip(b"\0 \r\n\t")
    try:
        root = ET.fromstring(body)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"XMP is damaged ({error})") from error
    for description in (child for rdf in root.iter(_tag("rdf:RDF")) for child in rdf):
        for tag, text in description.attrib.items():
            if tag.startswith("{") and _split(tag)[0] not in (_NAMESPACES["rdf"], _XML):
                element = ET.Element(tag)
                element.text = text
                yield _name(element), element
        for child in description:
            child.tail = None
            yield _name(child), child


def _is_carried(name: str) -> bool:
    if name in _CARRIED_ANYWAY:
        return True
    return name not in _NOT_CARRIED and name.split(":")[0] not in _NOT_CARRIED_NAMESPACES


def _with_note(description: ET.Element | None) -> ET.Element:
    """The source's description in each of its languages, followed by our note."""
    texts = {"x-default": ""}
    if description is not None:
        items = description.findall(f".//{_tag('rdf:li')}")
        texts = {li.get(f"{{{_XML}}}lang", "x-default"): _text(li) for li in items} or {
            "x-default": _text(description)
        }
    element = ET.Element(_tag("dc:description"))
    alternatives = ET.SubElement(element, _tag("rdf:Alt"))
    for language, text in texts.items():
        li = ET.SubElement(alternatives, _tag("rdf:li"), {f"{{{_XML}}}lang": language})
        li.text = with_note(text)
    return element


def with_note(text: str) -> str:
    """A description with our note at its end."""
    return f"{text.rstrip()} [{NOTE}]" if text.strip() else NOTE


def _element(name: str, values: list[str], kind: str) -> ET.Element:
    element = ET.Element(_tag(name))
    if not kind:
        element.text = _printable(values[0])
        return element
    items = ET.SubElement(element, _tag(f"rdf:{kind}"))
    for value in values if kind != "Alt" else values[:1]:
        li = ET.SubElement(items, _tag("rdf:li"), {f"{{{_XML}}}lang": "x-default"} if kind == "Alt" else {})
        li.text = _printable(value)
    return element


def _printable(text: str) -> str:
    """Without the characters that XML can't hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _text(element: ET.Element) -> str:
    return "; ".join(part.strip() for part in element.itertext() if part.strip())


def _tag(name: str) -> str:
    prefix, local = name.split(":")
    return f"{{{_NAMESPACES[prefix]}}}{local}"


def _split(tag: str) -> tuple[str, str]:
    uri, _, local = tag[1:].rpartition("}")
    return uri, local


def _uri_of(element: ET.Element) -> str:
    return _split(element.tag)[0] if isinstance(element.tag, str) else ""


def _name(element: ET.Element) -> str:
    uri, local = _split(element.tag)
    return f"{_PREFIXES.get(uri, uri)}:{local}"
