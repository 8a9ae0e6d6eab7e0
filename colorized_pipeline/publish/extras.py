"""Sheets and layered files beside a colour copy."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..archive.files import Job
from ..archive.scans import hash_file
from ..batch.manifest import Records, describe_source
from ..batch.settings import Settings
from .layers import LAYER_FORMATS, write_layers
from .results import make_result, page_count
from .sheet import SHEET_FORMATS, write_sheet


def extra_files(target: Path, *, sheets: Sequence[str] = (), layers: Sequence[str] = (), page: int = 0) -> list[Path]:
    """What the sheets and layered files of a photo's page are called whose result is called ``target``.

    >>> [file.name for file in extra_files(Path("a.tif"), sheets=["pdf"], layers=["psd"], page=1)]
    ['a-page2-sheet.pdf', 'a-page2-layers.psd']
    """
    stem = f"{target.stem}-page{page + 1}" if page else target.stem
    names = [f"{stem}-sheet.{ending}" for ending in dict.fromkeys(sheets)]
    names += [f"{stem}-layers.{ending}" for ending in dict.fromkeys(layers)]
    return [target.with_name(name) for name in names]


def write_extras(
    job: Job, settings: Settings, extras: Callable[[int], list[Path]], *, manifest: Records | None = None
) -> None:
    """Write and record those extras of a photo that are missing, not recorded, or older than its copies.

    Args:
        job: the photo, whose colour copies are written.
        settings: of its copies.
        extras: what :func:`extra_files` calls those of a page.
        manifest: where they are recorded.

    Raises:
        OSError, ValueError, ImportError: with a message for users.
    """
    copies = settings.files(job.target)[: settings.copies]
    made = max(file.stat().st_mtime_ns for file in copies)

    def is_missing(file: Path) -> bool:
        unknown = manifest is not None and manifest.find(file) is None
        return unknown or not file.is_file() or file.stat().st_mtime_ns < made

    if not any(map(is_missing, extras(0))):
        return
    result = make_result(job.source, copies)
    source = describe_source(job.source, result.copies[0].source_sha256)
    for page in reversed(range(page_count(result))):  # when the first page's are there, all are
        for file in filter(is_missing, extras(page)):
            if file.suffix in LAYER_FORMATS:
                write_layers(result, file, page=page)
            else:
                assert file.suffix in SHEET_FORMATS
                write_sheet(result, file, page=page)
            if manifest:
                manifest.add(job, file, **source, output_sha256=hash_file(file), settings=settings.record())
