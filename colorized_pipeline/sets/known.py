"""Colours that somebody knows, in files beside the photos: ``17.colours.json`` for one, ``colours.csv`` for many."""

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL.Image

from ..archive.files import Job, KnownColor
from ..archive.scans import hash_once
from ..diffusion.hints import Hint, describe_hints, read_color

SIDECAR_SUFFIX = ".colours.json"
TABLE_NAME = "colours.csv"
VERSION = 1
_PICTURE_URI = "data:image/png;base64,"
_COLUMNS = {"file": "file", "place": "place", "colour": "colour", "color": "colour", "note": "note"}
_COLUMNS |= {"source": "source", "who says so": "source", "who": "source"}
_PLACES = "give x,y,radius or left,top,right,bottom in pixels of the upright photo, or the name of a picture"


def add_known_colors(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with what sidecars and tables beside their photos say. A bad file refuses the photos it is about."""
    return [_add(job) for job in jobs]


def _add(job: Job) -> Job:
    try:
        known = (*_from_tables(job), *_from_sidecars(job))
    except (OSError, ValueError) as error:
        return replace(job, refusal=job.refusal or str(error))
    return replace(job, known=known)


def add_references(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs, each with the colour photo of its name in ``folder``, or in the folder of its name there, if any.

    Raises:
        ValueError: if there is none for any photo.
    """
    names = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.*"))}
    found = [names.get(job.name.with_suffix("").as_posix(), names.get(job.name.stem)) for job in jobs]
    if not any(found):
        raise ValueError(f"--reference {folder}: no picture there has a photo's name, such as {jobs[0].name.stem}.jpg")
    return [
        replace(job, known=(*job.known, _reference(file, "", str(file)))) if file else job
        for job, file in zip(jobs, found, strict=True)
    ]


def read_hints(known: Sequence[KnownColor], size: tuple[int, int]) -> list[Hint]:
    """Known colours as hints for a photo of ``size`` (height, width); pictures are scaled to it.

    Raises:
        ValueError: for a picture that can't be read or has another shape.
    """
    return [_hint(one, size) for one in known if not one.is_reference]


def _hint(one: KnownColor, size: tuple[int, int]) -> Hint:
    if not isinstance(one.place, str):
        return one.place, one.color
    try:
        content = base64.b64decode(one.place.removeprefix(_PICTURE_URI), validate=True)
        source = io.BytesIO(content) if one.place.startswith(_PICTURE_URI) else Path(one.place)
        with PIL.Image.open(source) as opened:
            picture = opened.copy()
    except Exception as error:  # Pillow's decoders raise errors of many types for damaged files
        raise ValueError(f"{one.entry}: place: can't be read as a picture ({error})") from error
    height, width = size
    if abs(picture.width * height - picture.height * width) > max(width, height, *picture.size):
        found = f"{picture.width} x {picture.height}"
        raise ValueError(
            f"{one.entry}: place: a picture of {found} pixels doesn't lie on a photo of {width} x {height}"
        )
    picture = picture.convert("RGBA" if picture.mode in ("RGBA", "LA", "PA", "P") else "RGB")
    picture = picture.resize((width, height), PIL.Image.Resampling.NEAREST)
    return (picture, one.color) if one.color else picture


def write_sidecar(name: str, colors: Sequence[Mapping[str, Any]]) -> str:
    """The text of a sidecar for the photo called ``name``."""
    return json.dumps({"name": name, "version": VERSION, "colours": list(colors)}, indent=1, ensure_ascii=False)


def placed_entry(region: tuple[float, ...], color: str, *, source: str) -> dict[str, str]:
    """A sidecar's entry for one place, ``x, y, radius`` or ``left, top, right, bottom``, and its colour."""
    (described,) = describe_hints([(region, color)])
    return {"place": described.partition(":")[0], "colour": color, "note": "", "source": source}


def painted_entry(picture: PIL.Image.Image, *, source: str) -> dict[str, str]:
    """A sidecar's entry for a painted picture, transparent where nothing is known."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    place = _PICTURE_URI + base64.b64encode(stream.getvalue()).decode()
    return {"place": place, "colour": "", "note": "", "source": source}


def _is_file(file: Path) -> bool:
    """Whether there is such a file; a name that is too long for a file system names none."""
    try:
        return file.is_file()
    except OSError:
        return False


def _from_sidecars(job: Job) -> Iterator[KnownColor]:
    folder, name = job.source.parent, job.source.name
    for file in dict.fromkeys(folder / f"{one}{SIDECAR_SUFFIX}" for one in (job.source.stem, name)):
        if not _is_file(file):
            continue
        content = _read_json(file)
        meant = content.get("name", name)
        if meant != name:
            if not _is_file(folder / str(meant)):
                raise ValueError(f"{file}: name: {meant!r} isn't in this folder; write {name!r}")
            continue
        if content.get("version", VERSION) != VERSION:
            raise ValueError(f"{file}: version: {content['version']!r} isn't known; write {VERSION}")
        entries = content.get("colours")
        if not isinstance(entries, list):
            raise ValueError(f"{file}: colours: give a list of {{place, colour, note, source}}")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{file}: colours[{number}]: give {{place, colour, note, source}}, got {entry!r}")
            unknown = entry.keys() - {"place", "colour", "color", "note", "source"}
            if unknown:
                raise ValueError(
                    f"{file}: colours[{number}]: {min(unknown)!r} isn't known; give {{place, colour, note, source}}"
                )
            yield _read_entry(entry, f"{file}: colours[{number}]", folder)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: isn't JSON in UTF-8 ({error}); mend it or take it away") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: isn't an object {{name, version, colours}}")
    return content


def _from_tables(job: Job) -> Iterator[KnownColor]:
    """Rows about this photo in the tables of its folder and of those above it that were given."""
    for folder in job.source.parents[: len(job.name.parts)][::-1]:
        table = folder / TABLE_NAME
        name = job.source.relative_to(folder).as_posix()
        for line, row in _read_table(table, table.stat().st_mtime_ns) if _is_file(table) else ():
            if row["file"] in (name, "*"):
                yield _read_entry(row, f"{table}: line {line}", folder)


@lru_cache(maxsize=16)
def _read_table(table: Path, _: int) -> list[tuple[int, dict[str, str]]]:
    """Its rows with their line numbers; every one is about a file that exists, or about all (``*``)."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except ValueError as error:
        raise ValueError(f"{table}: isn't text in UTF-8 ({error}); save it as CSV in UTF-8") from error
    separator = max(",;\t", key=(lines or [""])[0].count)
    reader = csv.DictReader(lines, delimiter=separator)
    columns = [_COLUMNS.get((one or "").strip().lower(), one) for one in reader.fieldnames or ()]
    missing = [one for one in ("file", "place", "colour") if one not in columns]
    if missing:
        raise ValueError(f"{table}: line 1: has no column {missing[0]}; write file,place,colour,note,source")
    unknown = [one for one in columns if one and one not in _COLUMNS.values()]
    if unknown:
        raise ValueError(
            f"{table}: line 1: column {unknown[0]!r} isn't known; take it out, or name it note or source (who says so)"
        )
    reader.fieldnames = columns
    rows = []
    for row in reader:
        row = {name: (value or "").strip() if name else value for name, value in row.items()}
        if row.pop(None, None):
            raise ValueError(f'{table}: line {reader.line_num}: more cells than columns; quote places: "120,80,25"')
        if not any(row.values()):
            continue
        if row["file"] != "*" and not _is_file(table.parent / row["file"]):
            raise ValueError(f"{table}: line {reader.line_num}: file: no {row['file']!r} here; mend its name")
        rows.append((reader.line_num, row))
    return rows


def _read_entry(entry: Mapping[str, Any], where: str, folder: Path) -> KnownColor:
    place, color = entry.get("place"), entry.get("colour") or entry.get("color") or ""
    said = ": ".join(text for text in (str(entry.get(one) or "") for one in ("source", "note")) if text)
    if place == "reference":
        file = folder / str(color)
        if not color or not _is_file(file):
            raise ValueError(f"{where}: colour: no picture {str(color)!r} here; a reference is a colour photo's name")
        return _reference(file, said, where)
    numbers = place.replace(",", " ").split() if isinstance(place, str) else place
    try:
        region = tuple(float(one) for one in numbers)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        if isinstance(place, str):
            return _read_picture(place, color, said, where, folder)
        region = ()
    if len(region) not in (3, 4):
        raise ValueError(f"{where}: place: {entry.get('place')!r} is no place; {_PLACES}")
    _check_color(color, where)
    (described,) = describe_hints([(region, color)])
    return KnownColor(region, described.partition(":")[2], f"{described}{_by(said)}", where)


def _reference(file: Path, said: str, where: str) -> KnownColor:
    return KnownColor(str(file), "", f"reference:{hash_once(file)}{_by(said)}", where, is_reference=True)


def _read_picture(place: str, color: Any, said: str, where: str, folder: Path) -> KnownColor:
    if place.startswith(_PICTURE_URI):
        digest = place.removeprefix(_PICTURE_URI)[-24:]
    else:
        file = folder / place
        if not _is_file(file):
            raise ValueError(f"{where}: place: {place!r} is no place and no picture here; {_PLACES}")
        place, digest = str(file), hash_once(file)
    if color:
        _check_color(color, where)
    return KnownColor(place, color, f"{'mask' if color else 'painted'}:{digest}:{color}{_by(said)}", where)


def _check_color(color: Any, where: str) -> None:
    try:
        read_color(color)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: colour: {error}") from error


def _by(said: str) -> str:
    return f" ({said})" if said else ""
