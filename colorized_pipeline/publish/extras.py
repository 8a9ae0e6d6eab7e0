"""Sheets and layered files beside a colour copy."""

from collections.abc import Sequence
from pathlib import Path

from .layers import LAYER_FORMATS, write_layers
from .results import make_result
from .sheet import SHEET_FORMATS, write_sheet


def extra_files(target: Path, *, sheets: Sequence[str] = (), layers: Sequence[str] = ()) -> list[Path]:
    """What the sheets and layered files of a photo are called whose result is called ``target``.

    >>> [file.name for file in extra_files(Path("a.tif"), sheets=["pdf"], layers=["psd"])]
    ['a-sheet.pdf', 'a-layers.psd']
    """
    names = [f"{target.stem}-sheet.{ending}" for ending in dict.fromkeys(sheets)]
    names += [f"{target.stem}-layers.{ending}" for ending in dict.fromkeys(layers)]
    return [target.with_name(name) for name in names]


def write_extras(scan: Path, copies: Sequence[Path], extras: Sequence[Path]) -> None:
    """Write those extras of a photo that are missing, or older than its copies.

    Args:
        scan: the photo.
        copies: its colour copies, the first to be shown.
        extras: what :func:`extra_files` calls them.

    Raises:
        OSError, ValueError, ImportError: with a message for users.
    """
    made = max(file.stat().st_mtime_ns for file in copies)
    missing = [file for file in extras if not file.is_file() or file.stat().st_mtime_ns < made]
    if not missing:
        return
    result = make_result(scan, list(copies))
    for file in missing:
        if file.suffix in LAYER_FORMATS:
            write_layers(result, file)
        else:
            assert file.suffix in SHEET_FORMATS
            write_sheet(result, file)
