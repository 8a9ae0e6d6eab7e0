"""Labels: XMP that says that a picture's colours were made by a model, of which file, and how.

Properties are those of the IPTC Photo Metadata Standard 2025.1 and of XMP (ISO 16684-1); what they have no word for
(seed, steps, checkpoint) stands in a namespace of our own. A source's own XMP is carried over, but for what is no
longer true of the copy. Packets hold no time of making: the same photo and the same settings give the same bytes.
"""

import hashlib
import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from .._version import __version__
from .ifd import decode_text

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
CREATOR_TOOL = f"COLORIZED {__version__}"
NOTE = "Colours added by a machine-learning model (COLORIZED): plausible, not historical. The lightness is the scan's."

_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "stRef": "http://ns.adobe.com/xap/1.0/sType/ResourceRef#",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "cc": "http://creativecommons.org/ns#",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "colorized": "urn:colorized:xmp:1.0:",
}
_XML = "http://www.w3.org/XML/1998/namespace"
_PREFIXES = {uri: prefix for prefix, uri in _NAMESPACES.items()}
for _prefix, _uri in _NAMESPACES.items():
    ET.register_namespace(_prefix, _uri)

# True of the scan but not of its copy: how pixels are stored, previews, camera-raw settings, identity
_NOT_CARRIED_NAMESPACES = ("tiff", "crs", "xmpMM", "xmpNote", "colorized")
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
    (2, 4): ("Iptc4xmpCore:IntellectualGenre", ""),
    (2, 5): ("dc:title", "Alt"),
    (2, 10): ("photoshop:Urgency", ""),
    (2, 12): ("Iptc4xmpCore:SubjectCode", "Bag"),
    (2, 15): ("photoshop:Category", ""),
    (2, 20): ("photoshop:SupplementalCategories", "Bag"),
    (2, 25): ("dc:subject", "Bag"),
    (2, 40): ("photoshop:Instructions", ""),
    (2, 55): ("photoshop:DateCreated", ""),
    (2, 80): ("dc:creator", "Seq"),
    (2, 85): ("photoshop:AuthorsPosition", ""),
    (2, 90): ("photoshop:City", ""),
    (2, 92): ("Iptc4xmpCore:Location", ""),
    (2, 95): ("photoshop:State", ""),
    (2, 100): ("Iptc4xmpCore:CountryCode", ""),
    (2, 101): ("photoshop:Country", ""),
    (2, 103): ("photoshop:TransmissionReference", ""),
    (2, 105): ("photoshop:Headline", ""),
    (2, 110): ("photoshop:Credit", ""),
    (2, 115): ("photoshop:Source", ""),
    (2, 116): ("dc:rights", "Alt"),
    (2, 120): ("dc:description", "Alt"),
    (2, 122): ("photoshop:CaptionWriter", ""),
}
_IIM_CHARSET, _IIM_TIME = (1, 90), (2, 60)
_IIM_VERSIONS = {(1, 0), (2, 0), _IIM_CHARSET}
# ISO 2022's last letter of "ESC - x" and "ESC . x": a part of ISO 8859
_ISO_8859 = dict(zip("ABCDFGHLMTY_bf", (1, 2, 3, 4, 7, 6, 8, 5, 9, 11, 13, 14, 15, 16), strict=True))


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
    label: Label,
    *,
    xmp: bytes | None = None,
    iptc: bytes | None = None,
    caption: str | None = None,
    more: Mapping[str, tuple[str, list[str]]] | None = None,
) -> bytes:
    """The XMP packet of a colour copy.

    Args:
        label: what to say of its making.
        xmp: the scan's own packet, carried over.
        iptc: the scan's IPTC-IIM records; those that ``xmp`` doesn't tell are added as XMP.
        caption: the scan's description in EXIF, for one without any in ``xmp`` and ``iptc``: programs show XMP's
            description before EXIF's, and ours would hide it.
        more: what else the scan says, ``{XMP property: (kind of list, texts)}``, where nothing above says it.

    Raises:
        ValueError: if ``xmp`` isn't XMP.
    """
    carried = dict(_properties(xmp)) if xmp else {}
    source = {name: _text(carried[name]) for name in carried if name.startswith("xmpMM:")}
    carried = {name: value for name, value in carried.items() if _is_carried(name)}
    captions = {"dc:description": ("Alt", [caption])} if caption else {}
    for found in (read_iim(iptc or b""), captions, more or {}):
        for name, (kind, values) in found.items():
            carried.setdefault(name, _element(name, values, kind))

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
        "stRef:documentID": source.get("xmpMM:DocumentID", ""),
        "stRef:originalDocumentID": source.get("xmpMM:OriginalDocumentID", ""),
    }
    reference = ET.Element(_tag("xmpMM:DerivedFrom"), {_tag("rdf:parseType"): "Resource"})
    reference.extend(_element(name, [text], "") for name, text in derived.items() if text)
    return _packet([*carried.values(), *(_element(name, [text], "") for name, text in ours.items()), reference])


def _packet(elements: Iterable[ET.Element]) -> bytes:
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{_body(elements)}\n<?xpacket end="w"?>'.encode()


def _body(elements: Iterable[ET.Element]) -> str:
    description = ET.Element(_tag("rdf:Description"), {_tag("rdf:about"): ""})
    description.extend(elements)
    meta = ET.Element(_tag("x:xmpmeta"), {_tag("x:xmptk"): CREATOR_TOOL})
    ET.SubElement(meta, _tag("rdf:RDF")).append(description)
    return ET.tostring(meta, encoding="unicode")


def join_xmp(packet: bytes, more: bytes) -> bytes:
    """A packet and its extended part (XMP Specification Part 3, 1.1.3.1) as one. Raises ``ValueError`` if damaged."""
    whole = {**dict(_properties(more)), **dict(_properties(packet))}
    whole.pop("xmpNote:HasExtendedXMP", None)
    return _packet(whole.values())


def split_xmp(packet: bytes, most: int) -> tuple[bytes, bytes, bytes]:
    """A packet of at most so many bytes, the MD5 that names its extended part, and that part; empty if none is needed.

    The largest properties go into the extended part.
    """
    if len(packet) <= most:
        return packet, b"", b""
    kept, moved = list(_properties(packet)), []
    while len(packet) > most and kept:
        largest = max(kept, key=lambda item: len(ET.tostring(item[1])))
        kept.remove(largest)
        moved.append(largest)
        more = _body(element for _, element in moved).encode()
        digest = hashlib.md5(more, usedforsecurity=False).hexdigest().upper()
        pointer = _element("xmpNote:HasExtendedXMP", [digest], "")
        packet = _packet([*(element for _, element in kept), pointer])
    return packet, digest.encode(), more


def read_xmp(packet: bytes) -> dict[str, str]:
    """An XMP packet as ``{"prefix:Name": text}``, structures as ``"prefix:Name/prefix:Field"``.

    Raises:
        ValueError: if it isn't XMP.
    """
    found: dict[str, str] = {}
    for name, element in _properties(packet):
        fields = [child for child in element.iter() if child is not element and _name(child).startswith("stRef:")]
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
    """IPTC-IIM records as ``{XMP property: (kind of list, texts)}``."""
    found: dict[str, tuple[str, list[str]]] = {}
    charset, time = "utf-8", ""
    for key, value in _iim_records(records):
        if key == _IIM_CHARSET:
            charset = _iim_charset(value)
        text = decode_text(value, charset).strip("\0 ")
        if key == _IIM_TIME:
            time = text
        if key in _IIM and text:
            name, kind = _IIM[key]
            found.setdefault(name, (kind, []))[1].append(text)
    if "photoshop:DateCreated" in found:
        found["photoshop:DateCreated"] = ("", [_iso_date(found["photoshop:DateCreated"][1][0], time)])
    return found


def unmapped_iim(records: bytes) -> list[str]:
    """Numbers of the IPTC-IIM data sets that XMP has no property for, such as ``"2:118"``."""
    known = {*_IIM, *_IIM_VERSIONS, _IIM_TIME}
    return [f"{key[0]}:{key[1]}" for key in dict(_iim_records(records)) if key not in known]


def _iim_records(records: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Data sets by record and number, up to the first damaged one (IPTC-IIM 4.2, 1.5)."""
    position = 0
    while position + 5 <= len(records) and records[position] == 0x1C:
        key = (records[position + 1], records[position + 2])
        length = int.from_bytes(records[position + 3 : position + 5], "big")
        position += 5
        if length & 0x8000:
            digits = length & 0x7FFF
            length = int.from_bytes(records[position : position + digits], "big")
            position += digits
        if position + length > len(records):
            return
        yield key, records[position : position + length]
        position += length


def _iim_charset(escape: bytes) -> str:
    if escape.startswith(b"\x1b%"):
        return "utf-8"
    match = re.match(rb"\x1b[-./](.)", escape)
    part = _ISO_8859.get(match[1].decode("latin-1")) if match else None
    return f"iso8859_{part}" if part else "utf-8"


def _iso_date(date: str, time: str) -> str:
    """``19110503`` and ``101112+0100`` as XMP has them; other spellings stay as they are."""
    day = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", date)
    if not day:
        return date
    text = "-".join(part for part in day.groups() if int(part))
    clock = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(?:([+-]\d\d)(\d\d))?", time)
    if clock and len(text) == 10:
        hours, minutes, seconds, zone, rest = clock.groups()
        text += f"T{hours}:{minutes}:{seconds}" + (f"{zone}:{rest}" if zone else "")
    return text


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


def _name(element: ET.Element) -> str:
    uri, local = _split(element.tag)
    return f"{_PREFIXES.get(uri, uri)}:{local}"
