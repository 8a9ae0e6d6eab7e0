"""What a scan says about itself, in every format, block, charset and page, against exiftool."""

import json
import shutil
import struct
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from colorized_pipeline.archive.copies import FORMATS, ColorPage, write_copy
from colorized_pipeline.archive.inspection import read_label
from colorized_pipeline.archive.labels import NOTE, Label, build_xmp, join_xmp, read_iim, read_xmp, split_xmp
from colorized_pipeline.archive.scans import open_scan

CASES = Path(__file__).parent / "cases"
SUFFIXES = dict(zip(FORMATS, ("jpg", "png", "tif", "webp", "bmp", "ppm", "jp2"), strict=True))
METADATA_CASES = ("utf8-captions", "tiff-gps-lost", "jp2-metadata-lost", "page-captions", "resolution-and-text-lost")
GREY = np.arange(96 * 128, dtype=np.uint8).reshape(96, 128)

if not shutil.which("exiftool"):
    warnings.warn("no exiftool: metadata aren't tested (apt-get install libimage-exiftool-perl)", stacklevel=1)
needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="NO exiftool: METADATA ARE NOT TESTED")


def exiftool(*arguments: str | Path) -> list[dict[str, object]]:
    done = subprocess.run(["exiftool", "-j", "-a", "-G1", *arguments], capture_output=True, check=True)
    return json.loads(done.stdout)


def copy(source: Path, folder: Path, format_name: str) -> tuple[Path, str]:
    """A colour copy of every page, without a network, and all its notes."""
    scan = open_scan(source, pages="all" if FORMATS[format_name].pages else "first")
    label = Label(source.name, scan.sha256, {"Seed": 1})
    file = folder / f"{source.stem}-{source.suffix[1:]}.{SUFFIXES[format_name]}"
    pages = [
        ColorPage(height, width, [torch.full((3, height, width), 0.5)], metadata, metadata.label(label))
        for (height, width), metadata in zip(scan.sizes, scan.page_metadata, strict=True)
    ]
    with file.open("w+b") as stream:
        write_copy(stream, pages, format_name=format_name, bits=scan.bits)
    return file, "; ".join(scan.notes)


# The matrix. Its texts have letters that Latin-1 has, and for UTF-8 others too.

TEXTS = {"UTF8": "Łódź 東京 Zürich", "Latin": "Zürich Ærø"}
EXIF = ("DocumentName", "Make", "Software", "Artist", "Copyright", "XPTitle", "Rating")
PHOTO = ("DateTimeOriginal", "UserComment", "LensModel", "ImageUniqueID", "OffsetTimeOriginal")
PLACE = ("GPSLatitude", "GPSLongitude", "GPSAltitude", "GPSDateStamp")
RECORDS = {
    "ObjectName": "XMP-dc:Title",
    "Keywords": "XMP-dc:Subject",
    "By-line": "XMP-dc:Creator",
    "City": "XMP-photoshop:City",
    "Sub-location": "XMP-iptcCore:Location",
    "DateCreated": "XMP-photoshop:DateCreated",
    "Writer-Editor": "XMP-photoshop:CaptionWriter",
    "Contact": "",  # XMP has no property for it
}


def describe(file: Path, charset: str) -> None:
    """Everything that exiftool can write into this format."""
    text = TEXTS[charset]
    tags = [f"-IFD0:{name}={text}" for name in EXIF if name != "Rating"]
    tags += [f"-IFD0:ImageDescription={text}", "-IFD0:Rating=4", "-XResolution=300", "-YResolution=600"]
    tags += ["-ResolutionUnit=inches", "-DateTimeOriginal=1911:05:03 10:11:12", f"-UserComment={text}"]
    tags += [f"-LensModel={text}", "-ImageUniqueID=abc", "-OffsetTimeOriginal=+01:00", "-InteropIndex=R98"]
    tags += ["-ColorSpace=1", "-GPSLatitude=47.378177", "-GPSLatitudeRef=N", "-GPSLongitude=8.540192"]
    tags += ["-GPSLongitudeRef=E", "-GPSAltitude=408", "-GPSDateStamp=1911:05:03"]
    tags += [f"-IPTC:{name}={text}" for name in RECORDS if name != "DateCreated"]
    tags += ["-IPTC:Keywords=more", "-IPTC:DateCreated=1911:05:03"]
    tags += ["-IPTC:CodedCharacterSet=UTF8"] if charset == "UTF8" else []
    tags += ["-XMP-dc:Publisher=Łódź", "-XMP-iptcExt:PersonInImage=Łucja"]
    tags += ["-Photoshop:CopyrightFlag=True", "-Photoshop:URL=http://example.org", "-Comment=on the back"]
    subprocess.run(
        ["exiftool", "-q", "-m", "-charset", f"exif={charset}", "-overwrite_original", *tags, file], check=True
    )


@needs_exiftool
@pytest.mark.parametrize("charset", TEXTS)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "jp2", "II.tif", "MM.tif"])
def test_every_block_survives_in_every_format_or_is_named(tmp_path: Path, kind: str, charset: str) -> None:
    source = tmp_path / f"scan.{kind}"
    if "tif" in kind:
        order = ">" if kind == "MM.tif" else "<"
        tifffile.imwrite(source, GREY, byteorder=order, photometric="minisblack", metadata=None)
    else:
        Image.fromarray(GREY).save(source)
    describe(source, charset)
    copies = [copy(source, tmp_path, format_name) for format_name in FORMATS]
    before, *after = exiftool("-charset", f"exif={charset}", source, *(file for file, _ in copies))
    assert before["IFD0:Artist"] == TEXTS[charset]
    labels = [read_xmp(read_label(file) or b"") for file, _ in copies]
    for (file, notes), found, label, form in zip(copies, after, labels, FORMATS.values(), strict=True):
        where, caption = f"{kind} {charset} to {file.suffix}", f"{TEXTS[charset]} [{NOTE}]"
        told = [f"IFD0:{name}" for name in EXIF] + [f"ExifIFD:{name}" for name in PHOTO]
        told += [f"GPS:{name}" for name in PLACE] + ["InteropIFD:InteropIndex"]
        for name in told:
            assert (found.get(name) == before.get(name)) if form.exif else "EXIF and GPS data" in notes, (where, name)
        if form.exif:
            assert found["IFD0:ImageDescription"] == caption, where
            assert (found["IFD0:XResolution"], found["IFD0:YResolution"]) == (300, 600), where
        assert label["dc:description"] == caption, where
        assert label["dc:publisher"] == "Łódź" and label["Iptc4xmpExt:PersonInImage"] == "Łucja", where
        assert form.resolution or "resolution" in notes, where
        for name, property_name in RECORDS.items():
            value = before.get(f"IPTC:{name}")
            if value is None:  # exiftool doesn't write IPTC into this format
                continue
            if form.iptc:
                assert found[f"IPTC:{name}"] == value, (where, name)
            elif not property_name:
                assert "IPTC record 2:118" in notes, where
            elif form.exif:
                assert found[property_name] == value, (where, name)
        if "Photoshop:URL" in before:
            flags = ("Photoshop:URL", "Photoshop:CopyrightFlag")
            assert not form.iptc or all(found[name] == before[name] for name in flags), where
            assert label["xmpRights:WebStatement"] == "http://example.org" and label["xmpRights:Marked"] == "True"
        comment = next((str(value) for name, value in before.items() if name.endswith(":Comment")), "")
        assert not comment or f"Comment: {comment}" in label["colorized:SourceText"], where
        assert not [name for name in found if name.endswith(("Warning", "Error"))], (where, found)


@needs_exiftool
@pytest.mark.parametrize("format_name", [name for name, form in FORMATS.items() if form.exif])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_utf8_captions(tmp_path: Path, suffix: str, format_name: str) -> None:
    file, notes = copy(CASES / "utf8-captions" / f"cap.{suffix}", tmp_path, format_name)
    (found,) = exiftool("-charset", "exif=UTF8", file)
    assert found["IFD0:ImageDescription"] == found["XMP-dc:Description"] == f"Łódź, dworzec 1911 [{NOTE}]"
    assert found["IFD0:Artist"] == "Søren" and str(found["GPS:GPSLatitude"]).startswith("47 deg 22' 41.44")
    assert not notes


@needs_exiftool
@pytest.mark.parametrize("name", ["tiff-gps-lost/u8.tif", "jp2-metadata-lost/u8.jp2", "jp2-metadata-lost/iptc8.jp2"])
def test_nothing_of_a_rich_scan_is_lost_in_its_own_format(tmp_path: Path, name: str) -> None:
    source = CASES / name
    file, notes = copy(source, tmp_path, {"tif": "TIFF", "jp2": "JPEG2000"}[source.suffix[1:]])
    before, after = exiftool("-charset", "exif=UTF8", source, file)
    # What is true of the scan's pixels only
    pixels = ("Compression", "PhotometricInterpretation", "StripOffsets", "StripByteCounts", "NumberOfComponents")
    pixels += ("ColorSpace", "XMPToolkit", "YCbCrPositioning", "BitsPerSample")
    groups = ("IFD0", "ExifIFD", "GPS", "IPTC", "XMP", "Jpeg2000")
    for tag, value in before.items():
        if tag.startswith(groups) and not tag.endswith(pixels):
            note = f" [{NOTE}]" if "Description" in tag else ""
            assert after[tag] == (f"{value}{note}" if note else value), tag
    assert not notes


@needs_exiftool
@pytest.mark.parametrize("order", ["<", ">", "big"])
def test_each_page_keeps_its_own_words(tmp_path: Path, order: str) -> None:
    source = CASES / "page-captions" / "pages.tif"
    if order != "<":
        source = tmp_path / "pages.tif"
        with tifffile.TiffWriter(source, bigtiff=order == "big", byteorder="<" if order == "big" else ">") as writer:
            for number, dpi in enumerate((300, 600, 150), start=1):
                tags = [(270, 2, 0, f"Caption of page {number}", True), (315, 2, 0, f"Artist {number}", True)]
                tags += [(285, 2, 0, f"verso {number}", True), (274, 3, 1, (1, 6, 3)[number - 1], True)]
                tags += [(700, 1, 0, build_xmp(Label("x", "0" * 64, {}), caption=f"XMP {number}"), True)] * (
                    order == "big"
                )
                options = {"photometric": "minisblack", "metadata": None, "resolutionunit": "INCH"}
                writer.write(GREY[: 40 + number], resolution=(dpi, dpi), extratags=tags, **options)
    file, notes = copy(source, tmp_path, "TIFF")
    with tifffile.TiffFile(file) as tiff:
        for number, (page, dpi) in enumerate(zip(tiff.pages, (300, 600, 150), strict=True), start=1):
            tags = page.aspage().tags if isinstance(page, tifffile.TiffFrame) else page.tags
            assert tags[270].value == f"Caption of page {number} [{NOTE}]"
            assert (tags[315].value, tags[285].value) == (f"Artist {number}", f"verso {number}")
            assert tags[282].value == tags[283].value == (dpi, 1)
            said = read_xmp(bytes(tags[700].value))["dc:description"]
            assert said.startswith(f"XMP {number}" if order == "big" else f"Caption of page {number}")
    assert not notes


@needs_exiftool
@pytest.mark.parametrize("format_name", [name for name, form in FORMATS.items() if form.exif])
@pytest.mark.parametrize("name", ["or6.webp", "or6.png", "xmp-or6.tif"])
def test_resolution_stays_with_the_picture(tmp_path: Path, name: str, format_name: str) -> None:
    """300 x 600 dpi; a picture that is turned has them the other way round."""
    file, _ = copy(CASES / "resolution-and-text-lost" / name, tmp_path, format_name)
    (found,) = exiftool(file)
    expected = (300, 600) if "xmp" in name else (600, 300)
    assert (found["IFD0:XResolution"], found["IFD0:YResolution"]) == expected
    with Image.open(file) as image:
        assert image.size == ((128, 96) if "xmp" in name else (96, 128))
        assert format_name == "WEBP" or np.allclose([float(dpi) for dpi in image.info["dpi"]], expected, atol=0.02)


def test_resolution_of_photoshop_and_of_xmp(tmp_path: Path) -> None:
    resource = struct.pack(">IHHIHH", 300 << 16, 1, 1, 600 << 16, 1, 1)
    block = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHI", 0x03ED, 0, len(resource)) + resource
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    Image.fromarray(GREY).save(tmp_path / "a.jpg", extra=segment)
    assert open_scan(tmp_path / "a.jpg").metadata.dpi == (300, 600)
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    packet += b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:XResolution="300/1" '
    packet += b'tiff:YResolution="600/1" tiff:ResolutionUnit="2"/></rdf:RDF></x:xmpmeta>'
    Image.fromarray(GREY).save(tmp_path / "a.webp", xmp=packet)
    assert open_scan(tmp_path / "a.webp").metadata.dpi == (300, 600)


@needs_exiftool
@pytest.mark.parametrize("format_name", FORMATS)
def test_texts_of_a_png(tmp_path: Path, format_name: str) -> None:
    file, _ = copy(CASES / "resolution-and-text-lost" / "text.png", tmp_path, format_name)
    label = read_xmp(read_label(file) or b"")
    assert label["dc:title"] == "Bahnhof" and label["dc:creator"] == "A. Keller"
    assert label["dc:description"] == f"View from the west [{NOTE}]" and label["dc:rights"] == "Stadtarchiv"
    assert label["colorized:SourceText"] == "Comment: Łódź 1911"
    if format_name == "PNG":
        (found,) = exiftool(file)
        assert found["PNG:Title"] == "Bahnhof" and found["PNG:Comment-pl"] == "Łódź 1911"
        assert found["PNG:Description"] == f"View from the west [{NOTE}]"


@needs_exiftool
@pytest.mark.parametrize("format_name", FORMATS)
def test_iptc_of_a_png_and_flags_of_photoshop(tmp_path: Path, format_name: str) -> None:
    for name in ("iptc8.png", "unk.jpg"):
        source = CASES / "resolution-and-text-lost" / name
        file, notes = copy(source, tmp_path, format_name)
        before, after = exiftool(source, file)
        label = read_xmp(read_label(file) or b"")
        for tag, value in before.items():
            if FORMATS[format_name].iptc and tag.startswith(("IPTC:", "Photoshop:")):
                assert after[tag] == value, tag
        if name == "unk.jpg":
            assert label["xmpRights:Marked"] == "True" and label["xmpRights:WebStatement"] == "http://example.org"
        else:
            assert label["dc:subject"] == "Zürich; Łódź" and label["photoshop:DateCreated"] == "1911-05-03"
        assert not notes


@needs_exiftool
@pytest.mark.parametrize("format_name", [name for name, form in FORMATS.items() if form.exif])
def test_long_xmp_comes_whole(tmp_path: Path, format_name: str) -> None:
    source = CASES / "resolution-and-text-lost" / "bigxmp.jpg"
    file, notes = copy(source, tmp_path, format_name)
    before, after = exiftool(source, file)
    assert len(str(before["XMP-dc:Description"])) + len(str(before["XMP-xmp:Label"])) > 80_000
    assert after["XMP-dc:Description"] == f"{str(before['XMP-dc:Description']).rstrip()} [{NOTE}]"
    assert after["XMP-xmp:Label"] == before["XMP-xmp:Label"]
    assert ("XMP-xmpNote:HasExtendedXMP" in after) == (format_name == "JPEG") and not notes
    label = read_xmp(read_label(file) or b"")
    assert label["dc:description"] == after["XMP-dc:Description"] and "xmpNote:HasExtendedXMP" not in label


@pytest.mark.parametrize("most", [3000, 8000, 20_000])
def test_split_xmp_joins_to_the_same(most: int) -> None:
    whole = build_xmp(Label("a.tif", "0" * 64, {"Note": "y" * 5000}), caption="x" * 9000)
    packet, digest, more = split_xmp(whole, most)
    assert len(packet) <= most and (b"HasExtendedXMP" in packet) == bool(digest)
    assert read_xmp(join_xmp(packet, more) if more else packet) == read_xmp(whole)


@needs_exiftool
@pytest.mark.parametrize("format_name", FORMATS)
def test_geotiff_survives_or_is_named(tmp_path: Path, format_name: str) -> None:
    source = CASES / "resolution-and-text-lost" / "geo.tif"
    file, notes = copy(source, tmp_path, format_name)
    before, after = exiftool(source, file)
    for tag in ("IFD0:PixelScale", "IFD0:ModelTiePoint", "GeoTiff:GeoTiffVersion"):
        assert after.get(tag) == before[tag] if FORMATS[format_name].exif else "EXIF data" in notes
    turned = tmp_path / "turned.tif"
    tags = [(274, 3, 1, 6, True), (33550, 12, 3, (1.0, 1.0, 0.0), True)]
    tifffile.imwrite(turned, GREY, extratags=tags, photometric="minisblack", metadata=None)
    file, notes = copy(turned, tmp_path, "TIFF")
    assert "GeoTIFF tags are left out, since the picture is turned" in notes
    assert "IFD0:PixelScale" not in exiftool(file)[0]


PROGRAMS = {
    "tifffile": '{"shape": [96, 128]}',
    "OME": '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="1" SizeT="1" SizeX="128" SizeY="96" '
    'SizeZ="1" Type="uint8"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0"/></Pixels></Image></OME>',
    "ImageJ": "ImageJ=1.54f\nimages=1\n",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_descriptions_for_programs_are_left_alone(tmp_path: Path, program: str) -> None:
    """Readers of the copy would take its array for the scan's; our note behind them would break their parsers."""
    source, description = tmp_path / "a.tif", PROGRAMS[program]
    tags = [(270, 2, 0, description, True)]
    tifffile.imwrite(source, GREY, extratags=tags, photometric="minisblack", metadata=None)
    file, notes = copy(source, tmp_path, "TIFF")
    with tifffile.TiffFile(file) as tiff:
        assert 270 not in tiff.pages[0].tags and tiff.asarray().shape == (96, 128, 3)
    label = read_xmp(read_label(file) or b"")
    assert label["dc:description"] == NOTE and label["colorized:SourceImageDescription"] == description.strip()
    assert "ImageDescription" in notes


@pytest.mark.parametrize(
    ("escape", "encoding"),
    [
        (b"\x1b%G", "utf-8"),
        (b"\x1b-A", "latin-1"),
        (b"\x1b-B", "iso8859-2"),
        (b"\x1b-L", "iso8859-5"),
        (b"", "latin-1"),
    ],
)
def test_charsets_of_iptc(escape: bytes, encoding: str) -> None:
    text = {"iso8859-2": "Łódź", "iso8859-5": "Москва", "utf-8": "東京"}.get(encoding, "Zürich")
    records = b""
    for key, value in (((1, 90), escape), ((2, 120), text.encode(encoding))):
        records += bytes((0x1C, *key)) + struct.pack(">H", len(value)) + value
    assert read_iim(records)["dc:description"] == ("Alt", [text])
    long = bytes((0x1C, 2, 120)) + b"\x80\x04" + struct.pack(">I", 40_000) + b"x" * 40_000
    assert read_iim(long)["dc:description"] == ("Alt", ["x" * 40_000])


def test_a_makers_note_is_named(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0x927C: b"offsets inside", 0x9003: "1911:05:03 10:11:12"})
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    file, notes = copy(tmp_path / "a.jpg", tmp_path, "TIFF")
    assert notes == "left out of the copy: the maker's note of its EXIF data"
    with Image.open(file) as image:
        found = image.getexif().get_ifd(0x8769)
    assert found[0x9003] == "1911:05:03 10:11:12" and 0x927C not in found


def test_more_exif_than_a_jpeg_holds_is_named(tmp_path: Path) -> None:
    tags = [(315, 2, 0, "Ann", True), (65000, 2, 0, "x" * 70_000, True)]
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=tags, photometric="minisblack", metadata=None)
    file, notes = copy(tmp_path / "a.tif", tmp_path, "JPEG")
    assert "beyond the 64 kB that JPEG holds" in notes and Image.open(file).getexif()[315] == "Ann"
    file, notes = copy(tmp_path / "a.tif", tmp_path, "TIFF")
    with tifffile.TiffFile(file) as tiff:
        assert tiff.pages[0].tags[65000].value == "x" * 70_000 and not notes


@pytest.mark.parametrize("kind", ["png", "tif", "webp", "lossy.webp", "jpg", "jpeg.tif"])
def test_webp_is_lossless_for_a_lossless_scan(tmp_path: Path, kind: str) -> None:
    options = {"webp": {"lossless": True}, "jpeg.tif": {"compression": "jpeg"}}.get(kind, {})
    Image.fromarray(GREY).save(tmp_path / f"a.{kind}", **options)
    scan = open_scan(tmp_path / f"a.{kind}")
    assert scan.metadata.lossless == (kind in ("png", "tif", "webp"))
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    page = ColorPage(96, 128, [torch.from_numpy(noise).movedim(-1, 0) / 255], scan.metadata)
    with (tmp_path / "out.webp").open("w+b") as stream:
        write_copy(stream, [page], format_name="WEBP", bits=8)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.webp")), noise) == scan.metadata.lossless


@pytest.mark.parametrize("start", range(4))
def test_damaged_metadata_never_hide_a_picture(tmp_path: Path, start: int) -> None:
    """Bytes anywhere in what a file says about itself: the rest is carried, and a copy is written."""
    generator = np.random.default_rng(start)
    sources = sorted(file for file in CASES.rglob("*.*") if file.suffix in (".jpg", ".png", ".jp2", ".webp", ".tif"))
    sources = [file for file in sources if file.stat().st_size < 60_000 and file.parent.name in METADATA_CASES]
    read = 0
    for _ in range(100):
        source, damaged = sources[generator.integers(len(sources))], tmp_path / "a"
        content = bytearray(source.read_bytes())
        for place in generator.integers(8, min(len(content), 3000), generator.integers(1, 20)):
            content[place] = generator.integers(256)
        damaged.write_bytes(content)
        try:
            scan = open_scan(damaged)
        except (OSError, ValueError):  # its picture is hit
            continue
        if not all(0 < edge < 1000 for size in scan.sizes for edge in size):
            continue
        read += 1
        copy(damaged, tmp_path, list(SUFFIXES)[generator.integers(len(SUFFIXES))])
        assert len(scan.page_metadata) == len(scan.sizes)
    assert read > 20
