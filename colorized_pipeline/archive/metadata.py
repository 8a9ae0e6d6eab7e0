"""What a photo file says about itself, to be said on by its colour copy."""

from dataclasses import dataclass, field
from pathlib import Path

import tifffile
from PIL import Image

ORIENTATION = 0x0112


@dataclass
class Metadata:
    """What a file says about itself and its colour copy should say on.

    Attributes:
        dpi: horizontal and vertical resolution of the upright picture, pixels per inch, if the file has it.
        exif: EXIF data as Pillow holds them, orientation not yet applied.
        xmp: the XMP packet.
        iptc: IPTC-IIM records, as they stand in the file.
        notes: what had to be left out, in words for users.
    """

    dpi: tuple[float, float] | None = None
    exif: Image.Exif = field(default_factory=Image.Exif)
    xmp: bytes | None = None
    iptc: bytes | None = None
    notes: list[str] = field(default_factory=list)


def read_metadata(image: Image.Image) -> Metadata:
    """What an image that Pillow has opened says about itself."""
    metadata = Metadata()
    try:
        metadata.exif = image.getexif()
        metadata.exif.get_ifd(0x8769)
        orientation = orientation_of(image)
    except Exception as error:  # damaged EXIF is no reason to refuse a whole picture
        metadata.notes.append(f"its EXIF data can't be read and are left out ({error})")
        metadata.exif, orientation = Image.Exif(), 1
    dpi = image.info.get("dpi")
    try:
        x, y = (float(value) for value in dpi) if dpi else (0.0, 0.0)
    except (TypeError, ValueError, ZeroDivisionError):
        x, y = 0.0, 0.0
    if 1 < x < 1e5 and 1 < y < 1e5:  # Pillow reports "1" where a file has an aspect ratio but no unit
        metadata.dpi = (y, x) if orientation >= 5 else (x, y)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    metadata.xmp = xmp.encode() if isinstance(xmp, str) else xmp
    photoshop = image.info.get("photoshop")
    iptc = photoshop.get(0x0404) if isinstance(photoshop, dict) else None
    metadata.iptc = iptc if isinstance(iptc, bytes) and iptc else None
    return metadata


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 ... 8; 1 if there is none or it can't be read."""
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # decoders raise errors of every type for damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def read_tags(page: tifffile.TiffPage) -> Metadata:
    """The texts of a TIFF page that Pillow can't open."""
    metadata = Metadata()
    for name in ("ImageDescription", "Artist", "Copyright", "Make", "Model", "Software", "DateTime"):
        tag = page.tags.get(name)
        if tag is not None and isinstance(tag.value, str):
            metadata.exif[tag.code] = tag.value
    return metadata


def read_packets(metadata: Metadata, file: Path, page: tifffile.TiffPage) -> None:
    """XMP and IPTC of a TIFF page, as they stand in the file."""
    for code, name in ((700, "xmp"), (33723, "iptc")):
        tag = page.tags.get(code)
        if tag is not None:
            with file.open("rb") as stream:
                stream.seek(tag.valueoffset)
                setattr(metadata, name, stream.read(tag.valuebytecount))
