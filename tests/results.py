"""Output folders that tests publish: scans of several kinds, colorized by the command with a tiny real checkpoint."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline.cli import app

BOX_2 = "Box #2; 50%"  # what has a meaning in web addresses
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/"'
    ' xmpRights:WebStatement="http://rightsstatements.org/vocab/NoC-US/1.0/">'
    "<dc:title><rdf:Alt><rdf:li xml:lang='x-default'>The photographer Žofie</rdf:li></rdf:Alt></dc:title>"
    "<dc:description><rdf:Alt><rdf:li xml:lang='x-default'>With her camera, 1938</rdf:li></rdf:Alt></dc:description>"
    "<dc:creator><rdf:Seq><rdf:li>A. Clerk</rdf:li></rdf:Seq></dc:creator>"
    "<dc:rights><rdf:Alt><rdf:li xml:lang='x-default'>No known restrictions</rdf:li></rdf:Alt></dc:rights>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
).encode()


def make_scans(folder: Path) -> Path:
    """A described JPEG, a low PNG in a folder of its own, and a TIFF of 16 bits and two pages in another."""
    camera = skimage_data.camera()
    (folder / "box 1").mkdir(parents=True)
    (folder / BOX_2 / "album").mkdir(parents=True)
    Image.fromarray(camera[::2, ::2]).save(folder / "box 1" / "camera.jpg", xmp=XMP, quality=95)
    Image.fromarray(camera[100:190, :400]).save(folder / "box 1" / "low & wide.png")
    pages = (camera[:300, :220].astype(np.uint16) * 257, camera[200:, 60:400].astype(np.uint16) * 250)
    with tifffile.TiffWriter(folder / BOX_2 / "album" / "pages.tif") as writer:
        for page in pages:
            writer.write(page, photometric="minisblack")
    return folder


def colorize(*words: str | Path, checkpoint: Path) -> None:
    """``colorized colorize`` with these words."""
    result = CliRunner().invoke(
        app, ["colorize", *map(str, words), "--checkpoint", str(checkpoint), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
