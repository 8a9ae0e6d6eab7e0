"""Reading scans and writing copies: every format, depth, profile and turn, against independent readers."""

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps
from skimage import color as skimage_color
from skimage import data as skimage_data

from colorized_pipeline.archive.copies import FORMATS, ColorPage, write_copy
from colorized_pipeline.archive.inspection import read_label
from colorized_pipeline.archive.labels import NOTE, Label, build_xmp, read_xmp
from colorized_pipeline.archive.metadata import Metadata
from colorized_pipeline.archive.scans import open_scan
from colorized_pipeline.diffusion.reading import TooLargeError

GREY8 = np.ascontiguousarray(skimage_data.camera()[100:160, 200:280])  # 60 x 80
GREY16 = GREY8.astype(np.uint16) * 257 + np.arange(80, dtype=np.uint16)  # with bits that 8 can't hold
COLOUR8 = np.ascontiguousarray(skimage_data.astronaut()[:60, 180:260])
COLOUR16 = COLOUR8.astype(np.uint16) * 257
ADOBE_RGB = {"primaries": [0.64, 0.33, 0.21, 0.71, 0.15, 0.06], "whitepoint": [0.3127, 0.3290]}


def read(file: Path, **options) -> np.ndarray:
    return open_scan(file, **options).read_page()


def as_unit(gray: np.ndarray) -> np.ndarray:
    return gray / np.iinfo(gray.dtype).max


def srgb_of_linear(y: np.ndarray) -> np.ndarray:
    return np.where(y <= 0.0031308, y * 12.92, 1.055 * np.maximum(y, 1e-9) ** (1 / 2.4) - 0.055)


def lightness_of(rgb: np.ndarray) -> np.ndarray:
    """scikit-image's L* of sRGB or grey, any integer dtype."""
    values = as_unit(rgb)
    return skimage_color.rgb2lab(np.stack([values] * 3, axis=-1) if values.ndim == 2 else values)[..., 0]


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "pgm", "webp", "jp2", "avif"])
def test_grey_photos_of_every_format(tmp_path: Path, suffix: str) -> None:
    lossless = {"webp": {"lossless": True}, "avif": {"quality": 100}}.get(suffix, {})
    Image.fromarray(GREY8).save(tmp_path / f"a.{suffix}", **lossless)
    gray = read(tmp_path / f"a.{suffix}")
    assert gray.shape == GREY8.shape
    assert np.abs(as_unit(gray) - as_unit(GREY8)).max() < (0.02 if suffix == "avif" else 1e-4)


def test_heic(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(COLOUR8)).save(tmp_path / "a.heic", quality=-1)
    gray = read(tmp_path / "a.heic")
    assert np.abs(lightness_of(gray) - lightness_of(COLOUR8)).mean() < 1


def test_16_bit_grey_keeps_every_bit(tmp_path: Path) -> None:
    Image.fromarray(GREY16).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", GREY16)
    tifffile.imwrite(tmp_path / "lzw.tif", GREY16, compression="lzw", predictor=True)
    tifffile.imwrite(tmp_path / "big-endian.tif", GREY16, byteorder=">", bigtiff=True)
    tifffile.imwrite(tmp_path / "white-is-zero.tif", 65535 - GREY16, photometric="miniswhite")
    for file in sorted(tmp_path.iterdir()):
        assert open_scan(file).bits == 16
        assert np.array_equal(read(file), GREY16), file.name


def test_12_bit_grey_and_floats_fill_the_range(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "12.tif", GREY16 >> 4, bitspersample=12, photometric="minisblack")
    tifffile.imwrite(tmp_path / "float.tif", (GREY16 / 65535).astype(np.float32), photometric="minisblack")
    assert np.abs(as_unit(read(tmp_path / "12.tif")) - (GREY16 >> 4) / 4095).max() < 1e-5
    assert np.abs(read(tmp_path / "float.tif").astype(int) - GREY16).max() <= 1


@pytest.mark.parametrize(
    "kind", ["rgb8", "rgb16", "planar16", "png16", "png-alpha16", "palette", "bmp", "jpeg-in-tiff"]
)
def test_colour_is_reduced_to_its_lightness(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("a.png" if "png" in kind else "a.bmp" if kind == "bmp" else "a.tif")
    alpha = np.full((60, 80, 1), 65535, np.uint16)
    {
        "rgb8": lambda: tifffile.imwrite(file, COLOUR8, photometric="rgb"),
        "rgb16": lambda: tifffile.imwrite(file, COLOUR16, photometric="rgb", compression="lzw"),
        "planar16": lambda: tifffile.imwrite(
            file, np.moveaxis(COLOUR16, -1, 0), photometric="rgb", planarconfig="separate"
        ),
        "png16": lambda: file.write_bytes(imagecodecs.png_encode(COLOUR16)),
        "png-alpha16": lambda: file.write_bytes(imagecodecs.png_encode(np.concatenate((COLOUR16, alpha), axis=-1))),
        "palette": lambda: Image.fromarray(COLOUR8).convert("P").save(file),
        "bmp": lambda: Image.fromarray(COLOUR8).save(file),
        "jpeg-in-tiff": lambda: Image.fromarray(COLOUR8).save(file, compression="jpeg", quality=100),
    }[kind]()
    expected = lightness_of(np.asarray(Image.open(file).convert("RGB")) if kind == "palette" else COLOUR8)
    gray = read(file)
    assert gray.dtype == np.uint16  # a colour photo's lightness falls between the steps of 8 bits
    assert np.abs(lightness_of(gray) - expected).max() < (1.5 if kind == "jpeg-in-tiff" else 0.02)


def test_lab_cmyk_and_bilevel_tiffs(tmp_path: Path) -> None:
    lab16 = np.zeros((60, 80, 3), np.uint16)
    lab16[..., 0] = GREY16
    tifffile.imwrite(tmp_path / "lab16.tif", lab16, photometric="cielab")
    assert np.abs(lightness_of(read(tmp_path / "lab16.tif")) - GREY16 / 655.35).max() < 0.02
    lab8 = Image.merge("LAB", [Image.fromarray(channel) for channel in (GREY8, GREY8 * 0 + 128, GREY8 * 0 + 128)])
    lab8.save(tmp_path / "lab8.tif")
    assert np.abs(lightness_of(read(tmp_path / "lab8.tif")) - GREY8 / 2.55).max() < 0.02
    black = np.zeros((60, 80, 4), np.uint8)
    black[..., 3] = 255 - GREY8
    tifffile.imwrite(tmp_path / "cmyk.tif", black, photometric="separated")
    assert np.abs(read(tmp_path / "cmyk.tif") / 257 - GREY8).max() <= 1
    Image.fromarray(GREY8 > 99).save(tmp_path / "bits.tif", compression="group4")
    assert np.array_equal(read(tmp_path / "bits.tif") > 0, GREY8 > 99)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_gamma_profile_is_honoured(tmp_path: Path, suffix: str, depth: int) -> None:
    profile = imagecodecs.cms_profile("gray", gamma=1.8)
    gray = GREY8 if depth == 8 else GREY16
    Image.fromarray(gray).save(tmp_path / f"a.{suffix}", icc_profile=profile)
    expected = srgb_of_linear(as_unit(gray) ** 1.8)
    assert np.abs(as_unit(read(tmp_path / f"a.{suffix}")) - expected).max() < 2e-4


@pytest.mark.parametrize("depth", [8, 16])
def test_wide_gamut_profile_is_honoured(tmp_path: Path, depth: int) -> None:
    profile = imagecodecs.cms_profile("rgb", gamma=2.2, **ADOBE_RGB)
    pixels = COLOUR8 if depth == 8 else COLOUR16
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", iccprofile=profile)
    # The luminance of Adobe RGB (1998), annex B
    luminance = (as_unit(pixels) ** 2.2) @ [0.29734, 0.62736, 0.07529]
    assert np.abs(as_unit(read(tmp_path / "a.tif")) - srgb_of_linear(luminance)).max() < 0.006


def test_a_profile_of_another_colour_space_is_passed_over(tmp_path: Path) -> None:
    wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(COLOUR8).convert("CMYK").save(tmp_path / "a.tif", icc_profile=wrong)
    assert np.abs(lightness_of(read(tmp_path / "a.tif")) - lightness_of(COLOUR8)).mean() < 0.1


# A printing press with pale inks, linear in CIELAB (D50): what one unit of C, M, Y, K takes from white paper
INKS = np.array([[-35.0, -30, -30], [-25, 45, -5], [-6, 0, 55], [-30, 0, 0]])


def make_cmyk_profile() -> bytes:
    """An ICC 2.4 output profile of that press (ICC.1:2001-04): its A2B0 table has the 16 corners of ink space."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    lab = np.array([100.0, 0, 0]) + corners @ INKS
    encoded = np.stack((lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256), axis=-1).round()
    table = b"mft2\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    table += (
        struct.pack(">8H", *[0, 65535] * 4) + encoded.astype(">u2").tobytes() + struct.pack(">6H", *[0, 65535] * 3)
    )
    name = b"pale inks\0"
    text = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(4 + 4 + 2 + 1 + 67),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249),
        b"A2B0": table,
    }
    entries, body = b"", b""
    for tag, data in text.items():
        entries += tag + struct.pack(">II", 132 + 12 * len(text) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    content = struct.pack(">I", len(text)) + entries + body
    header = (
        struct.pack(">I4xI", 128 + len(content), 0x02400000)
        + b"prtrCMYKLab "
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    )
    return (header + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + content


@pytest.mark.parametrize("kind", ["8.tif", "16.tif", "lzw.tif", "a.jpg"])
def test_cmyk_goes_through_its_profile(tmp_path: Path, kind: str) -> None:
    profile, file = make_cmyk_profile(), tmp_path / kind
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8), "CMYK")
    inks = np.array(small.resize((80, 60), Image.Resampling.BILINEAR))
    inks[:20, :, :3] = 0  # black ink alone
    {
        "8.tif": lambda: tifffile.imwrite(file, inks, photometric="separated", iccprofile=profile),
        "16.tif": lambda: tifffile.imwrite(
            file, inks.astype(np.uint16) * 257, photometric="separated", iccprofile=profile
        ),
        "lzw.tif": lambda: Image.fromarray(inks, "CMYK").save(file, compression="tiff_lzw", icc_profile=profile),
        "a.jpg": lambda: Image.fromarray(inks, "CMYK").save(file, quality=100, subsampling=0, icc_profile=profile),
    }[kind]()
    lab = np.array([100.0, 0, 0]) + inks / 255 @ INKS
    xyz = skimage_color.lab2xyz(lab, illuminant="D50")
    luminance = xyz @ [-0.0282895, 1.0099416, 0.0210077]  # Bradford from D50 to D65: Y
    expected = 116 * np.cbrt(luminance) - 16
    found = lightness_of(read(file))
    assert np.abs(found - expected).max() < (1.0 if kind == "a.jpg" else 0.1)
    assert np.abs(found[2:18] - lab[2:18, :, 0]).max() < (0.5 if kind == "a.jpg" else 0.05)
    naive = lightness_of(np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")))
    assert np.abs(found - naive).mean() > 10  # as it would be without the profile
    assert not open_scan(file).metadata.notes


def test_damaged_profile_is_said_and_passed_over(tmp_path: Path) -> None:
    Image.fromarray(GREY8).save(tmp_path / "a.png", icc_profile=b"not a profile" * 20)
    scan = open_scan(tmp_path / "a.png")
    assert "ICC profile is damaged" in scan.metadata.notes[0]
    assert np.array_equal(scan.read_page(), GREY8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "lzw", "tif16", "palette"])
def test_every_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY8).save(tmp_path / "oracle.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "oracle.png")))
    file = tmp_path / ("a.png" if kind == "png" else "a.jpg" if kind == "jpg" else "a.tif")
    if kind == "tif16":
        tifffile.imwrite(file, GREY16, extratags=[(0x0112, 3, 1, orientation, True)])
    elif kind == "palette":
        Image.fromarray(GREY8).convert("P").save(file, exif=exif)
    else:
        options = {"jpg": {"quality": 100}, "lzw": {"compression": "tiff_lzw"}}.get(kind, {})
        Image.fromarray(GREY8).save(file, exif=exif, **options)
    gray = read(file)
    assert gray.shape == expected.shape == open_scan(file).sizes[0]
    assert np.abs(as_unit(gray) - as_unit(expected)).max() < 0.02


def test_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY8, photometric="minisblack")
        writer.write(GREY8[:8, :8], photometric="minisblack", subfiletype=1)  # a thumbnail is no page
        writer.write(GREY16[:30], photometric="minisblack")
    scan = open_scan(tmp_path / "a.tif")
    assert scan.sizes == ((60, 80), (30, 80)) and scan.bits == 16
    assert np.array_equal(scan.read_page(0), GREY8) and np.array_equal(scan.read_page(1), GREY16[:30])
    first = open_scan(tmp_path / "a.tif", pages="first")
    assert first.sizes == ((60, 80),) and "--pages all" in first.metadata.notes[0]


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path) -> None:
    Image.new("L", (2000, 1000)).save(tmp_path / "a.png")
    with pytest.raises(TooLargeError, match=r"a\.png: 2000 x 1000 pixels.*--max-megapixels"):
        open_scan(tmp_path / "a.png", max_megapixels=1.9)
    assert open_scan(tmp_path / "a.png", max_megapixels=2).sizes == ((1000, 2000),)


# Writing


def write(
    file: Path, *, bits: int = 8, metadata: Metadata | None = None, xmp: bytes = b"", mark: bool = False
) -> None:
    formats = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM"}
    strips = (torch.from_numpy(COLOUR8).movedim(-1, 0) / 255).split(7, dim=1)
    with file.open("w+b") as stream:
        write_copy(
            stream,
            [ColorPage(60, 80, strips, metadata or Metadata(), xmp or build_xmp(Label("a.tif", "0" * 64, {})))],
            format_name=formats.get(file.suffix, "JPEG2000"),
            bits=bits,
        )


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "ppm", "jp2"])
def test_copies_hold_the_colours_and_the_label(tmp_path: Path, suffix: str) -> None:
    label = build_xmp(Label("a.tif", "ab" * 32, {"Seed": 5}))
    write(tmp_path / f"a.{suffix}", xmp=label)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.mode == "RGB"
        difference = np.abs(np.asarray(image).astype(int) - COLOUR8)
        profile = image.info.get("icc_profile")
    assert difference.mean() < (3 if suffix in ("jpg", "webp") else 0.01)
    assert read_label(tmp_path / f"a.{suffix}") == label
    if suffix in ("jpg", "png", "tif", "webp"):
        assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    assert len(FORMATS) == 7


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF"])
def test_a_copy_is_the_same_from_one_strip_and_from_many(format_name: str) -> None:
    words = torch.randint(256, (64, 80, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    copies = []
    for strips in ([words], words.split(10), words[..., :3].split(10)):
        with io.BytesIO() as stream:
            write_copy(stream, [ColorPage(64, 80, strips)], format_name=format_name, bits=8)
            copies.append(stream.getvalue())
    assert copies[0] == copies[1] == copies[2]


def test_16_bits_are_written_where_the_format_holds_them(tmp_path: Path) -> None:
    write(tmp_path / "a.png", bits=16)
    write(tmp_path / "a.tif", bits=16)
    write(tmp_path / "a.jpg", bits=16)
    png = imagecodecs.png_decode((tmp_path / "a.png").read_bytes())
    for pixels in (png, tifffile.imread(tmp_path / "a.tif")):
        assert pixels.dtype == np.uint16
        assert np.abs(pixels.astype(int) - COLOUR16).max() <= 1
    assert np.asarray(Image.open(tmp_path / "a.jpg")).dtype == np.uint8


def test_the_mark_stays_in_its_corner(tmp_path: Path) -> None:
    big = np.zeros((600, 800, 3), np.float32) + 0.5
    for mark in (False, True):
        with (tmp_path / f"{mark}.png").open("w+b") as stream:
            write_copy(
                stream,
                [ColorPage(600, 800, torch.from_numpy(big).movedim(-1, 0).split(50, dim=1))],
                format_name="PNG",
                bits=8,
                mark=mark,
            )
    plain, marked = (np.asarray(Image.open(tmp_path / f"{mark}.png")).astype(int) for mark in (False, True))
    changed = np.argwhere((plain != marked).any(axis=-1))
    assert len(changed) and changed[:, 0].min() > 500 and changed[:, 1].min() > 550
    assert marked.max() > 200  # it can be read


# What a scan says about itself

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool isn't installed")


def exiftool(file: Path, *options: str) -> dict[str, object]:
    done = subprocess.run(["exiftool", "-j", "-G1", "-struct", *options, file], capture_output=True, check=True)
    return json.loads(done.stdout)[0]


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A turned JPEG with EXIF, IPTC and XMP, written by exiftool."""
    file = tmp_path / "mühle & co.jpg"
    Image.fromarray(GREY8).save(file, quality=100, dpi=(240, 300))
    tags = [
        *("-Orientation#=6", "-EXIF:Artist=Ann", "-EXIF:ImageDescription=Old mill", "-ExposureTime=1/250"),
        *("-DateTimeOriginal=1911:02:03 04:05:06", "-GPSLatitude=52.5", "-GPSLatitudeRef=N", "-Copyright=CC0"),
        *("-IPTC:City=Bern", "-IPTC:Keywords=mill", "-IPTC:Keywords=river", "-XMP-dc:Rights=public domain"),
        *("-XMP-dc:Description=An old mill", "-XMP-dc:Description-de=Eine alte Mühle", "-XMP-tiff:Orientation#=6"),
        *("-XMP-xmpMM:DocumentID=xmp.did:1234", "-XMP-iptcExt:PersonInImage=Bob", "-XMP:CreatorTool=ScanWorks 3"),
        "-XMP-iptcExt:LocationShown={City=Bern,CountryName=Switzerland}",
    ]
    subprocess.run(["exiftool", "-q", "-overwrite_original", *tags, file], check=True)
    return file


@needs_exiftool
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "jp2"])
def test_exiftool_reads_the_label_and_what_was_carried_over(described: Path, tmp_path: Path, suffix: str) -> None:
    scan = open_scan(described)
    assert scan.sizes == ((80, 60),) and scan.metadata.dpi == (300, 240)
    label = Label(described.name, scan.sha256, {"Seed": 7, "Steps": 25, "Checkpoint": "cd" * 32})
    xmp = build_xmp(label, xmp=scan.metadata.xmp, iptc=scan.metadata.iptc)
    file = tmp_path / f"copy.{suffix}"
    write(file, metadata=scan.metadata, xmp=xmp)
    tags = exiftool(file)

    source_type = exiftool(file, "-n")["XMP-iptcExt:DigitalSourceType"]
    assert source_type == "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    assert str(tags["XMP-xmp:CreatorTool"]).startswith("COLORIZED 0.")
    assert str(tags["XMP-dc:Description"]).startswith("An old mill [Colours added by a machine-learning model")
    assert str(tags["XMP-dc:Description-de"]).startswith("Eine alte Mühle [Colours added")
    assert tags["XMP-xmpMM:DerivedFrom"] == {
        "InstanceID": f"urn:sha256:{scan.sha256}",
        "DocumentID": "xmp.did:1234",
        "FilePath": "m%C3%BChle%20%26%20co.jpg",
    }
    assert tags["XMP-xmpMM:DocumentID"] != "xmp.did:1234"
    for name, value in (("SourceSHA256", scan.sha256), ("Seed", 7), ("Steps", 25), ("Checkpoint", "cd" * 32)):
        assert tags[f"XMP-colorized:{name}"] == value
    assert tags["XMP-dc:Rights"] == "public domain" and tags["XMP-iptcExt:PersonInImage"] == ["Bob"]
    assert tags["XMP-iptcExt:LocationShown"] == [{"City": "Bern", "CountryName": "Switzerland"}]
    assert tags["XMP-photoshop:City"] == "Bern" and tags["XMP-dc:Subject"] == ["mill", "river"]
    assert "XMP-tiff:Orientation" not in tags and "IFD0:Orientation" not in tags

    if suffix == "jp2":
        return
    assert tags["IFD0:Artist"] == "Ann" and tags["IFD0:Copyright"] == "CC0"
    assert str(tags["IFD0:ImageDescription"]).startswith("Old mill [Colours added")
    assert tags["ExifIFD:DateTimeOriginal"] == "1911:02:03 04:05:06" and tags["ExifIFD:ExposureTime"] == "1/250"
    assert (tags["ExifIFD:ExifImageWidth"], tags["ExifIFD:ExifImageHeight"]) == (80, 60)
    assert str(tags["GPS:GPSLatitude"]).startswith("52 deg 30")
    assert (tags["IFD0:XResolution"], tags["IFD0:YResolution"]) == (300, 240)
    assert tags["ICC_Profile:ProfileDescription"] == "sRGB built-in"
    if suffix in ("jpg", "tif"):
        assert tags["IPTC:City"] == "Bern" and tags["IPTC:Keywords"] == ["mill", "river"]


@needs_exiftool
def test_tiff_directories_are_sound(described: Path, tmp_path: Path) -> None:
    scan = open_scan(described)
    write(tmp_path / "copy.tif", bits=16, metadata=scan.metadata)
    warnings = exiftool(tmp_path / "copy.tif", "-validate", "-warning", "-a")
    assert "Error" not in str(warnings)
    with Image.open(tmp_path / "copy.tif") as image:
        assert image.getexif().get_ifd(0x8769)[0x9003] == "1911:02:03 04:05:06"


def test_a_caption_in_exif_alone_comes_before_the_note() -> None:
    """Programs show dc:description where there is one, so that our note alone would hide the scan's caption."""
    label = Label("a.jpg", "0" * 64, {})
    assert read_xmp(build_xmp(label, caption="Old mill"))["dc:description"] == f"Old mill [{NOTE}]"
    told = build_xmp(label, caption="from XMP")  # a packet with a description of its own wins
    kept = read_xmp(build_xmp(label, xmp=told, caption="Old mill"))["dc:description"]
    assert kept.startswith("from XMP [") and "Old mill" not in kept


def test_labels_are_the_same_bytes_every_time() -> None:
    label = Label("a.tif", "ab" * 32, {"Seed": 5})
    assert build_xmp(label) == build_xmp(label)
    assert build_xmp(label) != build_xmp(Label("a.tif", "ab" * 32, {"Seed": 6}))


@pytest.mark.parametrize("name", ["a\x00b", "<&>\"'", "\udcff.tif", "新しい写真.tif", "x" * 300])
def test_any_file_name_fits_a_label(name: str) -> None:
    packet = build_xmp(Label(name, "ab" * 32, {"Note": name}))
    assert read_xmp(packet)["colorized:SourceSHA256"] == "ab" * 32


def test_hostile_xmp_is_refused() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>'
    for packet in (bomb, b"<x:xmpmeta", b"\xff\xfe\x00"):
        with pytest.raises(ValueError, match="XMP"):
            build_xmp(Label("a", "b", {}), xmp=packet)
