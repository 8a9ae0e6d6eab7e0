"""Colorize photos with COLORIZED's exported graphs. Needs numpy, pillow and onnxruntime; nothing else.

    python colorize.py photo.jpg -o colour.jpg

To use it in a program of your own: ``picture = Colorizer(folder).colorize(photo, seed=0)``, both PIL images. Publish
its results only with the label that ``Colorizer.label`` makes: their colours are plausible, not historical.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, PngImagePlugin

STRIP_PIXELS = 2**20  # a photo is shown strip by strip, so that a large one needs little memory
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


class Colorizer:
    """The graphs in a folder of ``colorized export``.

    Args:
        folder: with ``read.onnx``, ``draw.onnx``, ``show.onnx`` and ``colorized.json``.
        threads: of ONNX Runtime; 0 takes all cores.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self.facts = json.loads((folder / "colorized.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.read, self.draw, self.show = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("read", "draw", "show")
        )

    def colorize(self, photo: Image.Image, *, seed: int = 0, intensity: float = 1.0) -> Image.Image:
        """A photo in colour, of the same size; the same seed gives the same colours."""
        rgb = np.asarray(photo.convert("RGB"))
        height, width = rgb.shape[:2]
        shorter = self.facts["working_size"]
        pixel = max(min(height, width) / shorter, max(height, width) / (16 * shorter))
        size = np.array([max(1, round(height / pixel)), max(1, round(width / pixel))])
        lightness, working = self.read.run(None, {"rgb": rgb, "size": size})

        grid = [edge // self.facts["noise_cell"] for edge in working.shape[2:]]
        noise = self.make_noise(seed, (*self.facts["noise"], *grid))
        (chroma,) = self.draw.run(None, {"lightness": working, "noise": noise})

        cell = np.array([height, width]) / size * self.facts["chroma_cell"]
        given = {"chroma": chroma * np.float32(intensity), "cell": cell.astype(np.float32)}
        strips, rows = [], max(1, STRIP_PIXELS // width)
        for top in range(0, height, rows):
            strip = {"lightness": lightness[:, top : top + rows], "top": np.array(top)}
            strips += self.show.run(None, given | strip)
        return Image.fromarray(np.concatenate(strips))

    def make_noise(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        """What the drawing starts from, and what each step but the last adds."""
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def label(self, name: str, content: bytes, *, seed: int) -> bytes:
        """XMP that says that a model made the colours, and of which file: put it into everything you save."""
        xmp = self.facts["xmp"].replace("PHOTO_NAME", quote(name)).replace("PHOTO_SEED", str(seed))
        return xmp.replace("PHOTO_SHA256", hashlib.sha256(content).hexdigest()).encode()


def save(picture: Image.Image, file: Path, xmp: bytes) -> None:
    """Write a picture with its label as PNG, TIFF, WebP or JPEG."""
    if file.suffix.lower() == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        picture.save(file, pnginfo=text)
    elif file.suffix.lower() in (".tif", ".tiff"):
        picture.save(file, tiffinfo={700: xmp})
    else:
        picture.save(file, quality=95, xmp=xmp)


def main() -> None:
    parser = argparse.ArgumentParser(description="Colorize a photo: plausible colours by a model, labelled as such.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help=".jpg, .png, .webp or .tif")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other colours")
    order = parser.parse_args()
    if order.output.suffix.lower() not in ENDINGS:
        sys.exit(f"{order.output}: the output must end with .jpg, .png, .webp or .tif")
    with Image.open(order.photo) as photo:
        colorizer = Colorizer(Path(__file__).parent)
        picture = colorizer.colorize(ImageOps.exif_transpose(photo), seed=order.seed)
    save(picture, order.output, colorizer.label(order.photo.name, order.photo.read_bytes(), seed=order.seed))


if __name__ == "__main__":
    main()
