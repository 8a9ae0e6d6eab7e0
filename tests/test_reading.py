"""Files that others read, read as they are meant: profiles, gamma, palettes, thumbnails, small damage, limits."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from colorized_pipeline.archive.scans import open_scan
from colorized_pipeline.diffusion.reading import TooLargeError

CASES = Path(__file__).parent / "cases"
GREY = (np.add.outer(np.arange(96), np.arange(128)) % 256).astype(np.uint8)
COLOUR = np.stack([GREY, GREY.T.reshape(96, 128), 255 - GREY], axis=-1)
SRGB = {"primaries": [0.64, 0.33, 0.3, 0.6, 0.15, 0.06], "whitepoint": [0.3127, 0.3290]}


def read(file: Path) -> np.ndarray:
    """A file's grey in [0, 1]."""
    gray = open_scan(file).read_page()
    return gray / np.iinfo(gray.dtype).max


def srgb_of_linear(y: np.ndarray) -> np.ndarray:
    return np.where(y <= 0.0031308, y * 12.92, 1.055 * np.maximum(y, 1e-9) ** (1 / 2.4) - 0.055)


def renamed(profile: bytes, name: str) -> bytes:
    """A profile under another name of the same length."""
    old = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    found = profile.replace(old.encode("utf-16-be"), name.ljust(len(old))[: len(old)].encode("utf-16-be"))
    assert found != profile
    return found


@pytest.mark.parametrize("name", ["sRGB", "Linear"])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
def test_a_profile_is_judged_by_its_curves(tmp_path: Path, name: str, gamma: float) -> None:
    profile = renamed(imagecodecs.cms_profile("rgb", gamma=gamma, **SRGB), name)
    pixels = np.repeat(GREY[..., None], 3, axis=-1).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", iccprofile=profile)
    assert np.abs(read(tmp_path / "a.tif") - srgb_of_linear((GREY / 255.0) ** gamma)).max() < 1e-3


def test_srgb_under_any_name_is_srgb(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, icc in enumerate((None, profile, renamed(profile, "Scanner 7"))):
        tifffile.imwrite(tmp_path / f"{number}.tif", COLOUR, photometric="rgb", iccprofile=icc)
    plain, named, other = (open_scan(tmp_path / f"{number}.tif").read_page() for number in range(3))
    assert np.array_equal(plain, named) and np.array_equal(plain, other)


def chunk(kind: bytes, data: bytes, *, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def with_chunks(file: Path, pixels: np.ndarray, *chunks: bytes) -> Path:
    png = bytes(imagecodecs.png_encode(pixels))
    file.write_bytes(png[:33] + b"".join(chunks) + png[33:])
    return file


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gamma", [1.0, 0.55, 1 / 2.2])
def test_gamma_of_a_png(tmp_path: Path, gamma: float, channels: int, dtype: type) -> None:
    pixels = GREY.astype(dtype) * (257 if dtype is np.uint16 else 1)
    pixels = np.ascontiguousarray(np.repeat(pixels[..., None], channels, axis=-1).squeeze())
    gama = chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    found = read(with_chunks(tmp_path / "a.png", pixels, gama))
    plain = gamma == 1 / 2.2  # what every program writes beside sRGB
    expected = GREY / 255.0 if plain else srgb_of_linear((GREY / 255.0) ** (1 / gamma))
    assert np.abs(found - expected).max() < 2e-3
    told = with_chunks(tmp_path / "b.png", pixels, chunk(b"sRGB", b"\0"), gama)  # sRGB comes before gAMA
    assert np.abs(read(told) - GREY / 255.0).max() < 1e-3


def test_primaries_of_a_png(tmp_path: Path) -> None:
    wide = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    told = [
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"cHRM", struct.pack(">8I", *(round(v * 1e5) for v in wide))),
    ]
    luminance = ((COLOUR / 255.0) ** 2.2) @ [0.29734, 0.62736, 0.07529]  # of Adobe RGB (1998)
    assert np.abs(read(with_chunks(tmp_path / "a.png", COLOUR, *told)) - srgb_of_linear(luminance)).max() < 0.006


def test_gamma_in_the_case(tmp_path: Path) -> None:
    del tmp_path
    assert (
        np.abs(
            read(CASES / "readable-by-others" / "gama.png") - read(CASES / "readable-by-others" / "noeoi.jpg")
        ).mean()
        < 0.01
    )


def write_palette(file: Path, bits: int, scale: int, **options) -> np.ndarray:
    """A palette TIFF whose colour map goes up to 255 x ``scale``; returns the colours that are meant."""
    colors = np.random.default_rng(0).integers(0, 256, (2**bits, 3))
    index = (np.add.outer(np.arange(96), np.arange(128)) % 2**bits).astype(np.uint8)
    options |= {"photometric": "palette", "colormap": (colors.T * scale).astype(np.uint16)}
    if bits == 8:
        tifffile.imwrite(file, index, **options)
    else:
        image = Image.fromarray(index, "P")
        image.putpalette(colors.astype(np.uint8).tobytes())
        image.save(file, bits=bits)
        with tifffile.TiffFile(file, mode="r+b") as tiff:
            tiff.pages[0].tags["ColorMap"].overwrite(options["colormap"].flatten().tolist())
    return colors[index].astype(np.uint8)


@pytest.mark.parametrize("scale", [1, 257])
@pytest.mark.parametrize("bits", [4, 8])
def test_colour_maps_of_8_bits(tmp_path: Path, bits: int, scale: int) -> None:
    colors = write_palette(tmp_path / "a.tif", bits, scale)
    tifffile.imwrite(tmp_path / "rgb.tif", colors, photometric="rgb")
    assert np.abs(read(tmp_path / "a.tif") - read(tmp_path / "rgb.tif")).max() < 1e-4


def test_colour_map_in_the_case() -> None:
    first, second = (read(CASES / "colormap-8bit" / name) for name in ("pal8.tif", "pal8-8bitcmap.tif"))
    assert np.abs(first - second).max() < 0.01 and first.mean() > 0.4


@pytest.mark.parametrize("flag", [1, 0])
@pytest.mark.parametrize("kind", ["grey", "bits", "big"])
def test_the_full_picture_and_not_its_thumbnail(tmp_path: Path, kind: str, flag: int) -> None:
    full = GREY > 99 if kind == "bits" else GREY
    tag = [(274, 3, 1, 6, True)]
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=kind == "big") as writer:
        writer.write(GREY[::4, ::4].copy(), subfiletype=flag, subifds=1, extratags=tag, photometric="minisblack")
        writer.write(full, photometric="minisblack")
        writer.write(GREY[:40], photometric="minisblack")
    scan = open_scan(tmp_path / "a.tif")
    assert scan.sizes == ((128, 96), (40, 128))  # turned as its page says
    expected = np.rot90(full, -1) * (255 if kind == "bits" else 1)
    assert np.array_equal(scan.read_page(0), expected) and np.array_equal(scan.read_page(1), GREY[:40])


def test_smaller_levels_of_a_pyramid_are_no_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY, subifds=1, photometric="minisblack")
        writer.write(GREY[::2, ::2].copy(), subfiletype=1, photometric="minisblack")
    scan = open_scan(tmp_path / "a.tif")
    assert scan.sizes == ((96, 128),) and np.array_equal(scan.read_page(), GREY)
    assert open_scan(CASES / "thumbnail-ifd0" / "subifd-full.tif").sizes == ((96, 128),)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_without_its_end_is_read_and_a_cut_one_is_not(tmp_path: Path, mode: str, progressive: bool) -> None:
    stream = io.BytesIO()
    Image.fromarray(COLOUR).convert(mode).save(stream, "JPEG", quality=90, progressive=progressive)
    (tmp_path / "whole.jpg").write_bytes(stream.getvalue())
    (tmp_path / "a.jpg").write_bytes(stream.getvalue()[:-2])
    scan = open_scan(tmp_path / "a.jpg")
    assert np.array_equal(scan.read_page(), open_scan(tmp_path / "whole.jpg").read_page())
    assert scan.notes == ["the marker of its end is missing; all its pixels are there"]
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[:-300])
    with pytest.raises(OSError, match=r"cut\.jpg: can't be read as a photo"):
        open_scan(tmp_path / "cut.jpg").read_page()
    assert read(CASES / "readable-by-others" / "noeoi.jpg").shape == (96, 128)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "eXIf"])
def test_damaged_texts_of_a_png_do_not_hide_its_picture(tmp_path: Path, kind: str) -> None:
    data = {
        "zTXt": b"Comment\0\0" + zlib.compress(b"x" * 9),
        "iTXt": b"Comment\0\0\0\0\0x",
        "eXIf": b"II*\0\x08\0\0\0\0\0",
    }
    damaged = chunk(kind.encode(), data.get(kind, b"Comment\0x"), wrong=True)
    scan = open_scan(with_chunks(tmp_path / "a.png", GREY, damaged))
    assert np.array_equal(scan.read_page(), GREY) and f"chunk {kind} is wrong" in scan.notes[0]
    png = bytearray((tmp_path / "a.png").read_bytes())
    png[png.index(b"IDAT") + 9] ^= 0xFF
    (tmp_path / "b.png").write_bytes(png)
    with pytest.raises(OSError, match=r"b\.png: can't be read"):
        open_scan(tmp_path / "b.png").read_page()


@pytest.mark.parametrize("name", ["g8-badcrc-text.png", "g8-bigtext.png"])
def test_texts_in_the_cases(name: str) -> None:
    scan = open_scan(CASES / "readable-by-others" / name)
    assert scan.read_page().mean() > 100 and len(scan.notes) == 1


def test_much_text_is_left_out_and_named(tmp_path: Path) -> None:
    packed = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000))
    scan = open_scan(with_chunks(tmp_path / "a.png", GREY, packed))
    assert np.array_equal(scan.read_page(), GREY) and "Comment (3000000 letters)" in scan.notes[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_12_bit_jpeg(tmp_path: Path, channels: int) -> None:
    pixels = np.repeat(np.linspace(0, 4095, 96 * 128).astype(np.uint16).reshape(96, 128, 1), channels, axis=-1)
    options = {"level": 98, "bitspersample": 12} | (
        {"colorspace": "rgb", "outcolorspace": "rgb"} if channels == 3 else {}
    )
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(pixels.squeeze(), **options))
    scan = open_scan(tmp_path / "a.jpg")
    assert (scan.format, scan.bits, scan.sizes) == ("JPEG", 16, ((96, 128),))
    assert np.abs(scan.read_page() / 65535 - pixels[..., 0] / 4095).max() < 0.02
    assert open_scan(CASES / "readable-by-others" / "j12.jpg").read_page().dtype == np.uint16


def test_icc_lab_of_8_bits(tmp_path: Path) -> None:
    lab = np.full((96, 128, 3), 128, np.uint8)
    lab[..., 0] = GREY
    tifffile.imwrite(tmp_path / "a.tif", lab, photometric="icclab")
    linear = np.where(GREY / 2.55 > 8, ((GREY / 2.55 + 16) / 116) ** 3, GREY / 2.55 / 903.3)
    assert np.abs(read(tmp_path / "a.tif") - srgb_of_linear(linear)).max() < 1e-3
    assert read(CASES / "readable-by-others" / "icclab8.tif").mean() > 0.4


def test_the_limit_of_pixels_is_ours_alone() -> None:
    file = CASES / "tiff-over-179-megapixels" / "blank-182mp.tif"
    assert open_scan(file).read_page().shape == (13000, 14000)
    with pytest.raises(TooLargeError, match="--max-megapixels"):
        open_scan(file, max_megapixels=180)
    assert Image.MAX_IMAGE_PIXELS  # for everybody else it stands
