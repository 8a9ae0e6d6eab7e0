"""Layered files for restorers: the grey scan below, the colours above it in the mode "color", all else hidden.

Recombined by such a program the picture isn't quite ours: its grey is a sum of red, green and blue, ours is CIE L*.
"""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree import ElementTree as ET

import imagecodecs
import numpy as np
from PIL import Image

from ..archive.copies import ColorPage, write_copy
from ..archive.files import NewFile
from ..archive.scans import open_scan
from ..diffusion.reading import srgb_profile
from .results import Result, read_map, read_picture, to_bytes

LAYER_FORMATS = (".psd", ".ora")
_PSD_EDGE = 30_000  # pixels a side that the format holds
_PREVIEW = 256  # longest side of OpenRaster's thumbnail


@dataclass(frozen=True)
class PictureLayer:
    """One layer.

    Attributes:
        name: shown by the program.
        pixels: sRGB ``[h, w, 3]``, uint8 or uint16; not wider or higher than the scan.
        visible: hidden ones are for choosing.
        color: blended by hue and saturation alone (mode "color"), with the lightness of what is below.
    """

    name: str
    pixels: np.ndarray
    visible: bool = True
    color: bool = False


def write_layers(result: Result, target: Path, *, page: int = 0) -> None:
    """Write a page of a result as a layered file.

    Raises:
        ValueError: if the ending is none of ``LAYER_FORMATS``, or the format can't hold so large a picture.
        ImportError: if psd-tools is needed and missing.
        OSError: if a file can't be read or written.
    """
    kind = target.suffix.lower()
    if kind not in LAYER_FORMATS:
        raise ValueError(f"{target}: layers are written as {' or '.join(LAYER_FORMATS)}")
    layers = list(_layers(result, page))
    merged, xmp = layers[1].pixels, result.copies[0].xmp
    if kind == ".ora":
        with NewFile(target) as new:
            _write_ora(new.stream, layers, merged, xmp)
        return
    if max(merged.shape[:2]) > _PSD_EDGE:
        raise ValueError(f"{target}: PSD holds at most {_PSD_EDGE} pixels a side; write .ora")
    with NewFile(target) as new:
        _write_psd(new.stream, layers, merged, xmp)


def _layers(result: Result, page: int) -> Iterator[PictureLayer]:
    """From the bottom; the second is the colours that are shown."""
    gray = open_scan(result.scan, max_megapixels=float("inf")).read_page(page)
    shown = read_picture(result.copies[0].file, page)
    if shown.dtype == np.uint8:
        gray = to_bytes(gray)
    elif gray.dtype == np.uint8:
        gray = gray.astype(np.uint16) * 257
    gray = np.ascontiguousarray(np.broadcast_to(gray.reshape(*gray.shape[:2], -1), shown.shape))
    yield PictureLayer("scan (grey)", gray)
    for number, copy in enumerate(result.copies, start=1):
        several = f" {number}, seed {copy.label.get('colorized:BaseSeed', '?')}" if len(result.copies) > 1 else ""
        pixels = shown if number == 1 else read_picture(copy.file, page)
        yield PictureLayer(f"colours by a model{several}", pixels, visible=number == 1, color=True)
    if result.uncertainty:
        pixels = read_map(result.uncertainty, *shown.shape[:2])
        pixels = pixels.astype(np.uint16) * 257 if shown.dtype == np.uint16 else pixels
        yield PictureLayer("uncertainty: dark sure, yellow unsure", pixels, visible=False)


def _write_psd(stream: IO[bytes], layers: list[PictureLayer], merged: np.ndarray, xmp: bytes) -> None:
    try:
        from psd_tools import PSDImage
        from psd_tools.constants import BlendMode, Resource
        from psd_tools.psd.image_resources import ImageResource
    except ImportError:
        raise ImportError("PSD needs one more package: pip install 'colorized[publish]'") from None
    height, width = merged.shape[:2]
    document = PSDImage.new("RGB", (width, height), depth=16 if merged.dtype == np.uint16 else 8)
    for layer in layers:
        mode = BlendMode.COLOR if layer.color else BlendMode.NORMAL
        document.create_pixel_layer_from_array(layer.pixels, layer.name, blend_mode=mode).visible = layer.visible
    for key, data in ((Resource.ICC_PROFILE, srgb_profile()), (Resource.XMP_METADATA, xmp)):
        document.image_resources[key] = ImageResource(key=key.value, data=data)
    # Our picture, for programs that show no layers; save() would paint one of its own, with still more packages
    record = document._record
    big_endian = merged.astype(merged.dtype.newbyteorder(">"))
    record.image_data.set_data([big_endian[..., channel].tobytes() for channel in range(3)], record.header)
    record.write(stream)


def _write_ora(stream: IO[bytes], layers: list[PictureLayer], merged: np.ndarray, xmp: bytes) -> None:
    """OpenRaster 0.0.6: a ZIP archive of PNG files and a list of them, from the top."""
    height, width = merged.shape[:2]
    image = ET.Element("image", {"version": "0.0.6", "w": str(width), "h": str(height)})
    stack = ET.SubElement(image, "stack")
    preview = Image.fromarray(to_bytes(merged))
    preview.thumbnail((_PREVIEW, _PREVIEW))
    thumbnail = io.BytesIO()
    preview.save(thumbnail, "PNG")
    with zipfile.ZipFile(stream, "w") as archive:
        _store(archive, "mimetype", b"image/openraster")  # first and not compressed
        for number, layer in reversed(list(enumerate(layers))):
            file = f"data/layer{number}.png"
            _store(archive, file, bytes(imagecodecs.png_encode(layer.pixels, level=3)))
            ET.SubElement(
                stack,
                "layer",
                {
                    "name": layer.name,
                    "src": file,
                    "x": "0",
                    "y": "0",
                    "opacity": "1.0",
                    "visibility": "visible" if layer.visible else "hidden",
                    "composite-op": "svg:color" if layer.color else "svg:src-over",
                },
            )
        _store(archive, "stack.xml", ET.tostring(image, encoding="UTF-8", xml_declaration=True))
        _store(archive, "mergedimage.png", _labelled_png(merged, xmp))
        _store(archive, "Thumbnails/thumbnail.png", thumbnail.getvalue())


def _labelled_png(pixels: np.ndarray, xmp: bytes) -> bytes:
    stream = io.BytesIO()
    write_copy(stream, [ColorPage.of(pixels, xmp)], format_name="PNG", bits=pixels.dtype.itemsize * 8)
    return stream.getvalue()


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # no time of making: the same result gives the same bytes
