"""One road for a photo: the command and Python give the same picture of every kind of file.

The network's results differ in the seventh digit with the number of rows that it sees at once. So a value may fall to
the other side of a rounding boundary: one code value of 8 bits, or of 16, in a few of many.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data as skimage_data
from typer.testing import CliRunner

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.archive.inspection import read_label
from colorized_pipeline.archive.labels import read_xmp
from colorized_pipeline.cli import app

CASES = Path(__file__).parent / "cases" / "python-path-reads-differently"
GREY8 = np.ascontiguousarray(skimage_data.camera()[100:160, 200:280])
GREY16 = GREY8.astype(np.uint16) * 257 + np.arange(80, dtype=np.uint16)
COLOUR8 = np.ascontiguousarray(skimage_data.astronaut()[:60, 180:260])
COLOUR16 = COLOUR8.astype(np.uint16) * 257
LAB16 = np.dstack((GREY16, GREY16 * 0, GREY16 * 0))
MOUNT = np.pad(GREY8, 20, constant_values=240)
INKS = np.dstack((COLOUR8, GREY8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
GAMMA = imagecodecs.cms_profile("gray", gamma=1.8)
WIDE = imagecodecs.cms_profile(
    "rgb", gamma=2.2, primaries=[0.64, 0.33, 0.21, 0.71, 0.15, 0.06], whitepoint=[0.3127, 0.3290]
)


def pillow(pixels: np.ndarray, mode: str | None = None, **options: object) -> Callable[[Path], object]:
    image = Image.fromarray(pixels)
    return lambda file: (image.convert(mode) if mode else image).save(file, **options)


def tiff(pixels: np.ndarray, **options: object) -> Callable[[Path], object]:
    return lambda file: tifffile.imwrite(file, pixels, **options)


def pages(file: Path) -> None:
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY8[:8, :8], photometric="minisblack", subfiletype=1)  # a thumbnail comes first
        writer.write(GREY16, photometric="minisblack")
        writer.write(GREY8[:30], photometric="minisblack")


CORPUS: dict[str, Callable[[Path], object]] = {
    **{f"grey.{suffix}": pillow(GREY8) for suffix in "png bmp gif tif pgm webp jp2 jpg avif".split()},
    **{f"colour.{suffix}": pillow(COLOUR8) for suffix in ("png", "jpg", "ppm", "webp")},
    "grey16.png": pillow(GREY16),
    "grey16.tif": tiff(GREY16),
    "big-endian.tif": tiff(GREY16, byteorder=">", bigtiff=True),
    "white-is-zero.tif": tiff(65535 - GREY16, photometric="miniswhite"),
    "12-bit.tif": tiff(GREY16 >> 4, bitspersample=12, photometric="minisblack"),
    "float.tif": tiff((GREY16 / 65535).astype(np.float32), photometric="minisblack"),
    "rgb16.tif": tiff(COLOUR16, photometric="rgb", compression="lzw"),
    "planar16.tif": tiff(np.moveaxis(COLOUR16, -1, 0), photometric="rgb", planarconfig="separate"),
    "rgb16.png": lambda file: file.write_bytes(imagecodecs.png_encode(COLOUR16)),
    "palette.png": pillow(COLOUR8, "P"),
    "alpha.png": pillow(COLOUR8, "RGBA"),
    "jpeg-in.tif": pillow(COLOUR8, compression="jpeg"),
    "lab8.tif": lambda file: Image.merge(
        "LAB", [Image.fromarray(one) for one in (GREY8, GREY8 * 0 + 128, GREY8 * 0 + 128)]
    ).save(file),
    "lab16.tif": tiff(LAB16, photometric="cielab"),
    "cmyk.tif": tiff(INKS, photometric="separated"),
    "cmyk.jpg": pillow(COLOUR8, "CMYK"),
    "bits.tif": pillow(GREY8 > 99, compression="group4"),
    "gamma.png": pillow(GREY8, icc_profile=GAMMA),
    "gamma16.tif": pillow(GREY16, icc_profile=GAMMA),
    "wide.jpg": pillow(COLOUR8, icc_profile=WIDE),
    "wide16.tif": tiff(COLOUR16, photometric="rgb", iccprofile=WIDE),
    "turned.jpg": pillow(GREY8, exif=TURNED),
    "turned.tif": pillow(GREY8, exif=TURNED, compression="tiff_lzw"),
    "mount.png": pillow(MOUNT),
    "pages.tif": pages,
    **{f"case-{name}": lambda file, name=name: shutil.copyfile(CASES / name, file) for name in (
        "a.heic", "border.png", "g12.tif", "gamma18.png", "lab16.tif", "white0-16.tif",
    )},
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> ColorizationPipeline:
    pipe = ColorizationPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", CORPUS)
def test_command_and_python_agree(loaded: ColorizationPipeline, checkpoint: Path, tmp_path: Path, name: str) -> None:
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif")
    file, copy = tmp_path / name, tmp_path / "copy.png"
    CORPUS[name](file)
    words = [str(file), "-o", str(copy), "--pages", "first", "--checkpoint", str(checkpoint), "--device", "cpu"]
    result = CliRunner().invoke(app, ["colorize", *words])
    assert result.exit_code == 0, result.output
    written = imagecodecs.png_decode(copy.read_bytes())
    label = read_label(copy)
    assert label
    seed = int(read_xmp(label)["colorized:Seed"])

    def colorize(**options: object) -> np.ndarray:
        generator = [torch.Generator().manual_seed(seed)]
        return np.asarray(loaded(file, generator=generator, **options).images[0])

    drawn = colorize(output_type="pil") if written.dtype == np.uint8 else colorize(output_type="np") * 65535
    assert written.shape == drawn.shape
    difference = np.abs(written.astype(float) - np.round(drawn))
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert name == "bits.tif" or np.ptp(written, axis=-1).max() > 2  # black and white hold no colour
