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


class Colorizer:
    """The graphs in a folder of ``colorized export``. ``threads`` is ONNX Runtime's number; 0 takes all cores."""

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
        if photo.mode.startswith("I"):  # 16 bits, of which Pillow would show all but the darkest as white
            photo = Image.fromarray((np.asarray(photo) // 257).astype(np.uint8))
        if photo.mode.startswith("I"):  # 16 bits, of which Pillow would show all but the darkest as white
            photo = Image.fromarray((np.asarray(photo) // 257).astype(np.uint8))
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
    """Write a picture with its label, which each format takes in its own way."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    picture.save(file, quality=95, xmp=xmp, pnginfo=text, tiffinfo={700: xmp})


def colorize_file(source: Path, target: Path, *, seed: int) -> None:
    """Colorize a photo's first page into another file."""
    if target.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"):
        raise ValueError("the output must end with .jpg, .png, .webp or .tif")
    if target.resolve() == source.resolve():
        raise ValueError("the output is the photo itself, which is to be kept; give another name")
    with Image.open(source) as photo:
        if (pages := getattr(photo, "n_frames", 1)) > 1:
            print(f"{source}: has {pages} pages; the first alone is colorized", file=sys.stderr)
        colorizer = Colorizer(Path(__file__).parent)
        picture = colorizer.colorize(ImageOps.exif_transpose(photo), seed=seed)
    save(picture, target, colorizer.label(source.name, source.read_bytes(), seed=seed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Colorize a photo: plausible colours by a model, labelled as such.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help=".jpg, .png, .webp or .tif")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other colours")
    order = parser.parse_args()
    try:
        colorize_file(order.photo, order.output, seed=order.seed)
    except (OSError, ValueError) as error:
        sys.exit(f"{order.photo}: {error}")
