"""A report's figures as tables, and in the documents that show them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from .colors import SKIN_TOLERANCE
from .measures import MEASURES, Column

OURS = "COLORIZED"  # the row of the checkpoint that is measured
_CARD_START, _CARD_END = "<!-- figures: start -->", "<!-- figures: end -->"
_TABLES = ("distances", "colours", "faces")
# What a reader of a table has to know, if it has this column
_NOTES = {
    "fd_lite2": "*FD*, *KID*: how far the set is from the true photos, as a network trained on ImageNet sees them.",
    "fd_lite0": "Lite0 is also the model's own encoder, so its judgement isn't independent.",
    "closed_lite0": "*closed*: the part of the way from grey to true.",
    "own_lite2": "*to own truth*: squared distance of Lite2's features to those of the photo's true colours, over "
    "grey's.",
    "top1": "*top-1*: of the {classes} photos of known class the share whose class Lite2 names.",
    "stray_ratio": "*stray*: colour that changes where lightness doesn't.",
    "skin_within": "Mean colour of the central half of {faces} faces against the true one: share within "
    f"{SKIN_TOLERANCE:g} CIELAB units, and hue; of all, and of the darker, middle and lighter third.",
    "diversity": "*apart*: mean ΔE2000 between two variants.",
    "overconfidence": "*uncertainty*: as stated, ΔE*ab. *truth over stated*: how many times as far the true colours "
    "are; 1 is right.",
    "rank_photos": "*rank*: Spearman's correlation of stated uncertainty and true error, over photos, over places of "
    "all photos, and over the places of one photo.",
}
_CARD_METRICS = {
    "fd_lite2": "FD-Lite2",
    "closed_lite2": "part of FD-Lite2 closed",
    "fd_lite0": "FD-Lite0",
    "closed_lite0": "part of FD-Lite0 closed",
    "colourfulness_ratio": "colourfulness over truth",
    "delta_e": "CIEDE2000",
}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as tables, with what gave them."""
    rows = figures["rows"]
    sections = [
        f"{figures['set']}: {figures['photos']} photos, {figures['crop']}; {figures['steps']} steps of "
        f"{figures['scheduler']}, guidance {figures['guidance']:g}, seed {figures['seed']}, {figures['precision']}; "
        f"{figures['hardware']}; "
        f"weights `{figures['weights']}`.",
        *(f"{name}: weights `{digest}`." for name, digest in figures["beside"].items()),
    ]
    for table in _TABLES:
        columns = [one for one in MEASURES if one.table == table and one.key in rows[OURS]]
        if columns:
            sections += [_notes(rows, columns).format(**figures), _table(rows, columns)]
    for name in figures["beside"]:
        ratios = " and ".join(
            f"{rows[OURS][key] / rows[name][key]:.2f} times its {label}"
            for key, label in _CARD_METRICS.items()
            if key.startswith("fd_") and key in rows[OURS]
        )
        sections.append(f"{OURS} beside {name}: {ratios}.")
    for part, write in _PARTS.items():
        if part in figures:
            sections += write(figures[part], figures)
    sections += [f"Not measured: {part} ({reason})." for part, reason in figures["not_measured"].items()]
    return "\n\n".join(section for section in sections if section)


def _notes(rows: dict[str, dict[str, Any]], columns: Sequence[Column]) -> str:
    """What to know of the columns that a table of these rows has."""
    present = [column.key for column in columns if any(column.key in row for row in rows.values())]
    return " ".join(_NOTES[key] for key in present if key in _NOTES)


def _table(rows: dict[str, dict[str, Any]], columns: Sequence[Column], *, count: str = "") -> str:
    """A Markdown table of the rows and columns that hold anything; with ``count`` a column of that name first."""
    columns = [column for column in columns if any(column.key in row for row in rows.values())]
    counts = [count] if count else []
    heads = [*counts, *(column.head for column in columns)]
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for name, row in rows.items():
        cells = [column.form.format(row[column.key]) if column.key in row else "" for column in columns]
        if any(cells):
            lines.append(f"| {name} | {' | '.join([*(str(row[key]) for key in counts), *cells])} |")
    return "\n".join(lines)


def _groups(groups: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    shown = ("fd_lite2", "closed_lite2", "fd_lite0", "closed_lite0", "colourfulness_ratio", "stray_ratio", "delta_e")
    return [_table(groups, [one for one in MEASURES if one.key in shown], count="photos")]


def _fid(fid: float, figures: dict[str, Any]) -> list[str]:
    return [f"FID (Inception): {fid:.2f}."]


def _film(film: dict[str, float], figures: dict[str, Any]) -> list[str]:
    ours = figures["rows"][OURS]
    distances = [
        f"{_CARD_METRICS[key]} {film[key]:.1f}, {film[key] / ours[key]:.2f} times that of clean photos"
        for key in ("fd_lite2", "fd_lite0")
        if key in film
    ]
    return [
        "Seen through an old film (other emulsions, fading, grain, blur, scratches; fixed seed), the colours shown on "
        f"the clean lightness: {'; '.join(distances)}; colourfulness / truth {film['colourfulness_ratio']:.2f}."
    ]


def _variants(variants: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    columns = (
        Column("delta_e", "ΔE2000 of one", "{:.2f}"),
        Column("delta_e_best", "of the best", "{:.2f}"),
        Column("diversity", "apart", "{:.2f}"),
        Column("uncertainty", "uncertainty", "{:.1f}"),
        Column("overconfidence", "truth over stated", "{:.2f}"),
        Column("rank_photos", "rank, photos ↑", "{:.2f}"),
        Column("rank_places", "rank, places ↑", "{:.2f}"),
        Column("rank_within_photos", "rank, in a photo ↑", "{:.2f}"),
    )
    text = f"{variants['count']} variants of {variants['photos']} photos. {_notes(variants['rows'], columns)}"
    return [text, _table(variants["rows"], columns)]


def _edges(edges: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    rows = edges["rows"]
    sizes = list(rows["grey"])
    text = (
        f"Edges: mean error of ∇ab, CIELAB units a pixel, of {edges['photos']} squares of {edges['own_size']} pixels, "
        "as they are and enlarged (the true colours too, so nothing finer is judged there); the models read them at "
        "their working size."
    )
    columns = [Column(size, size if not size.isdigit() else f"{size} pixels", "{:.3f}") for size in sizes]
    ratios = [
        f"{OURS} beside {name}: "
        + ", ".join(f"{rows[OURS][size] / rows[name][size]:.2f} times its error at {size}" for size in sizes)
        + "."
        for name in ("grey", *figures["beside"])
    ]
    return [text, _table(rows, columns), *ratios]


def _bound(bound: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    return [
        f"Variational bound: {bound['bits_per_dimension']:.3f} ± {bound['standard_error']:.3f} bits per chroma "
        f"dimension ({bound['photos']} photos, chroma in cells of {bound['bin_width']:g} CIELAB unit; L_T "
        f"{bound['prior']:.4f}, L_0 {bound['decoder']:.3f})."
    ]


_PARTS: dict[str, Callable[[Any, dict[str, Any]], list[str]]] = {
    "fid": _fid,
    "film": _film,
    "variants": _variants,
    "edges": _edges,
    "bound": _bound,
    "groups": _groups,
}


def card_block(figures: dict[str, Any]) -> str:
    """What stands between the model card's two markers."""
    return f"{_CARD_START}\n{markdown(figures)}\n{_CARD_END}"


def write_card(card_file: Path, figures: dict[str, Any]) -> None:
    """Put the figures between a file's two marker comments; in a model card also into its model-index metadata.

    Raises:
        ValueError: if the file doesn't hold the markers; it is left as it is.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    text = card_file.read_text(encoding="utf-8")
    before, start, rest = text.partition(_CARD_START)
    _, end, after = rest.partition(_CARD_END)
    if not start or not end:
        raise ValueError(f"{card_file}: has no block from {_CARD_START} to {_CARD_END}; add the two lines")
    text = before + card_block(figures) + after
    if not text.startswith("---\n"):  # no metadata: a README, say
        card_file.write_text(text, encoding="utf-8")
        return
    card = ModelCard(text)
    data = cast(ModelCardData, card.data)
    data.model_name = OURS
    data.eval_results = [
        EvalResult(
            task_type="image-to-image",
            task_name="colorization",
            dataset_type="image",
            dataset_name=figures["set"],
            metric_type=metric,
            metric_name=metric_name,
            metric_value=round(figures["rows"][OURS][metric], 4),
        )
        for metric, metric_name in _CARD_METRICS.items()
        if metric in figures["rows"][OURS]
    ]
    card.save(card_file)
