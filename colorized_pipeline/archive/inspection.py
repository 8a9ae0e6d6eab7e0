"""What a colour copy says of its making, and proof that the scan's lightness is still in it."""

from pathlib import Path

import numpy as np
from PIL import Image

from .files import NewFile
from .labels import DIGITAL_SOURCE_TYPE, find_packet, read_xmp
from .provenance import read_manifest
from .scans import hash_file, open_scan, to_8_bits

_SHOWN = (
    "Iptc4xmpExt:DigitalSourceType",
    "Iptc4xmpExt:AISystemUsed",
    "Iptc4xmpExt:AISystemVersionUsed",
    "xmp:CreatorTool",
    "dc:description",
)


def read_label(file: Path) -> bytes | None:
    """The XMP packet of a photo file, wherever its format keeps it, if any. Raises ``OSError`` if it isn't a photo."""
    packet = open_scan(file, max_megapixels=float("inf"), sha256="-").metadata.xmp
    return packet or find_packet(file.read_bytes())


def read_own_label(photo: Path) -> tuple[bytes, dict[str, str]]:
    """The XMP packet of a colour copy and what it says, ``{XMP property: text}``; both empty if it isn't one of ours.

    Raises ``OSError`` if it isn't a photo.
    """
    packet = read_label(photo) or b""
    try:
        found = read_xmp(packet) if packet else {}
    except ValueError:
        found = {}
    ours = found.get("Iptc4xmpExt:DigitalSourceType") == DIGITAL_SOURCE_TYPE and "colorized:SourceSHA256" in found
    return (packet, found) if ours else (b"", {})


def describe(photo: Path) -> dict[str, str]:
    """What a photo's label says, ``{XMP property: text}``; empty if it has none of ours. Raises as ``read_label``."""
    _, found = read_own_label(photo)
    if not found:
        return {}
    names = [*_SHOWN, *(name for name in found if name.startswith(("xmpMM:DerivedFrom", "colorized:")))]
    label = {name: found[name] for name in names if name in found}
    if manifest := read_manifest(photo):
        signature = manifest.get("signature_info", {})
        signer = signature.get("common_name") or signature.get("issuer")
        label["c2pa"] = f"{manifest['validation_state']}, signed by {signer}"
    return label


def compare_with_source(photo: Path, label: dict[str, str], source: Path) -> list[str]:
    """Lines that say whether ``source`` is the labelled scan, and how far the lightness of each page differs."""
    sha256 = hash_file(source)
    same = sha256 == label.get("colorized:SourceSHA256")
    lines = [f"source: {'the scan that the label names' if same else 'NOT the scan that the label names'} ({sha256})"]
    copy, scan = open_scan(photo, max_megapixels=float("inf")), open_scan(source, max_megapixels=float("inf"))
    for page, (ours, theirs) in enumerate(zip(copy.sizes, scan.sizes, strict=False)):
        if ours != theirs:
            lines.append(f"page {page + 1}: {ours[1]} x {ours[0]} pixels against the scan's {theirs[1]} x {theirs[0]}")
            continue
        mean, largest = _difference(copy.read_page(page), scan.read_page(page))
        lines.append(f"page {page + 1}: lightness L* differs by {mean:.4f} on average, {largest:.4f} at most (of 100)")
    made, scanned = len(copy.sizes), len(scan.sizes)
    for page in range(min(made, scanned), max(made, scanned)):
        lines.append(f"page {page + 1}: missing in the {'copy' if made < scanned else 'scan'}")
    return lines


def _difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean and largest absolute difference of L* of two grey pictures ``[H, W]``, strip by strip."""
    import torch  # here, so that a label is read without it

    from ..diffusion.color import gray_to_lightness

    total, largest, rows = 0.0, 0.0, max(1, 2**18 // first.shape[1])
    for top in range(0, len(first), rows):
        values = [gray[top : top + rows] / np.float64(np.iinfo(gray.dtype).max) for gray in (first, second)]
        ours, theirs = (gray_to_lightness(torch.from_numpy(value)) for value in values)
        difference = (ours - theirs).abs()
        total, largest = total + float(difference.sum()), max(largest, float(difference.max()))
    return total / first.size, largest


def restore_gray(photo: Path, target: Path) -> None:
    """Write the lightness of a photo's first page as a grey .png or .tif, of 16 bits if the photo has them."""
    formats = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
    if target.suffix.lower() not in formats:
        raise ValueError(f"{target}: grey is written as .png or .tif")
    scan = open_scan(photo, pages="first", max_megapixels=float("inf"))
    gray = scan.read_page() if scan.bits == 16 else to_8_bits(scan.read_page())
    options = {"dpi": scan.metadata.dpi} if scan.metadata.dpi else {}
    with NewFile(target) as new:
        Image.fromarray(gray).save(new.stream, format=formats[target.suffix.lower()], **options)
