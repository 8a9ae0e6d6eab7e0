"""Publication sheets: grey and colour side by side with a caption, and a mark that a thumbnail still shows."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..archive.copies import ColorPage, draw_mark, mark_mask, write_copy
from ..archive.files import NewFile
from ..archive.labels import CREATOR_TOOL, NOTE
from ..archive.scans import open_scan
from .results import ColorCopy, Result, page_count, read_picture, to_bytes

SHEET_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".pdf": "PDF"}
_PANE_WIDTH, _PANE_HEIGHT = 1000, 1400  # pixels that a photo has at most, as far as it has them
_PANE_LEAST = 300  # that a narrow photo's place has, for the mark and the caption
_PDF_INCHES = 11.0  # width of a PDF's page: A4 and Letter, landscape


def write_sheet(result: Result, target: Path, *, page: int = 0) -> None:
    """Write a result's publication sheet, of a page of the first copy.

    Raises:
        ValueError: if the ending is none of ``SHEET_FORMATS``.
        OSError: if a file can't be read or written.
    """
    kind = SHEET_FORMATS.get(target.suffix.lower())
    if kind is None:
        raise ValueError(f"{target}: a sheet is written as {', '.join(SHEET_FORMATS)}")
    copy = result.copies[0]
    gray = open_scan(result.scan, max_megapixels=float("inf")).read_page(page)
    caption = caption_of(copy, page if page_count(result) > 1 else None)
    picture = draw_publication(to_bytes(gray), to_bytes(read_picture(copy.file, page)), caption=caption)
    with NewFile(target) as new:
        if kind == "PDF":
            _write_pdf(new.stream, picture, copy)
            return
        write_copy(new.stream, [ColorPage.of(np.asarray(picture), copy.xmp)], format_name=kind, bits=8)


def caption_of(copy: ColorCopy, page: int | None = None) -> list[str]:
    """The lines below the pictures: title, description, what the colours are, source, maker."""
    label = copy.label
    number = "" if page is None else f", page {page + 1}"
    source = [f"Source: {copy.source_name}{number} (SHA-256 {copy.source_sha256[:16]}...)"]
    for name, word in (("dc:creator", ""), ("photoshop:Credit", ""), ("dc:rights", "Rights: ")):
        if label.get(name):
            source.append(word + label[name])
    made = [CREATOR_TOOL if "xmp:CreatorTool" not in label else label["xmp:CreatorTool"]]
    made += [f"{word} {label[f'colorized:{word}']}" for word in ("BaseSeed", "Steps") if f"colorized:{word}" in label]
    description = copy.description if copy.description != copy.title else ""
    return [copy.title, *filter(None, [description]), NOTE, ". ".join(source), ", ".join(made)]


def draw_publication(gray: np.ndarray, rgb: np.ndarray, *, caption: list[str]) -> Image.Image:
    """Grey and colour ``[H, W, 3]``, uint8, side by side on white, the colours marked, with a caption below."""
    height, width = gray.shape[:2]
    scale = min(1.0, _PANE_WIDTH / width, _PANE_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pane = max(size[0], _PANE_LEAST)
    gap = max(6, pane // 60)
    sheet_width = 2 * pane + 3 * gap
    mask = mark_mask(10**6, pane, shown_width=sheet_width)
    assert mask is not None, "a pane is wide enough for the mark"
    lines = _wrapped(caption, width=sheet_width - 2 * gap, size=max(14, sheet_width // 70))
    on_photo = mask.shape[0] * 3 <= size[1] and mask.shape[1] <= size[0]
    below = 0 if on_photo else len(mask)  # a narrow or low photo has its mark below
    text_top = gap + size[1] + below + gap
    sheet = Image.new("RGB", (sheet_width, text_top + sum(step for *_, step in lines) + gap), "white")
    for half, pane_left in ((gray, gap), (rgb, 2 * gap + pane)):
        left = pane_left + (pane - size[0]) // 2
        sheet.paste(Image.fromarray(half).resize(size, Image.Resampling.LANCZOS), (left, gap))
    pixels = np.array(sheet)
    right = left + size[0] if on_photo else pane_left + pane
    bottom = gap + size[1] + below
    draw_mark(pixels[bottom - len(mask) : bottom, right - mask.shape[1] : right], mask)
    sheet = Image.fromarray(pixels)
    draw = ImageDraw.Draw(sheet)
    for text, font, step in lines:
        draw.text((gap, text_top), text, fill="black", font=font)
        text_top += step
    return sheet


def _wrapped(caption: list[str], *, width: int, size: int) -> list[tuple[str, ImageFont.FreeTypeFont, int]]:
    """Lines that fit into a width, each with its font and its height; the first paragraph is a heading."""
    lines = []
    for number, paragraph in enumerate(caption):
        font = _font(round(size * 1.4) if number == 0 else size, "".join(caption))
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append((line, font, round(font.size * 1.35)))
                longer = word
            while font.getlength(longer) > width:  # a single word, such as a long file name
                fitting = max(1, int(len(longer) * width / font.getlength(longer)))
                lines.append((longer[:fitting], font, round(font.size * 1.35)))
                longer = longer[fitting:]
            line = longer
        lines.append((line, font, round(font.size * 1.35)))
    return lines


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or the system's DejaVu Sans for letters that this hasn't."""
    if max(map(ord, text), default=0) > 0x17F:  # beyond Latin Extended-A
        try:
            return ImageFont.truetype("DejaVuSans.ttf", size)
        except OSError:
            pass
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _write_pdf(stream: IO[bytes], picture: Image.Image, copy: ColorCopy) -> None:
    picture.save(
        stream,
        format="PDF",
        resolution=picture.width / _PDF_INCHES,
        quality=95,
        title=copy.title,
        subject=NOTE,
        author=copy.label.get("dc:creator", ""),
        creator=CREATOR_TOOL,
        producer=CREATOR_TOOL,
        creationDate=None,  # the same result gives the same bytes
        modDate=None,
    )
