"""The web page: one photo with its variants, or a batch of photos into a ZIP. ``colorized app`` serves it.

Every visitor's files lie in folders of their own session and go with it; jobs wait in one queue, one runs at a time.
"""

import base64
import contextvars
import html
import io
import itertools
import json
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image, ImageOps

from . import EXAMPLES, ColorizationPipeline
from .archive.files import PHOTO_SUFFIXES, Job, result_suffix
from .archive.scans import check_all_pages, open_scan, to_8_bits
from .batch.overlap import Batch, explain, one_thread, without_folders
from .batch.photos import OpenPhoto, draw_rows, open_photo
from .batch.results import MEASURED_EDGE, Writer
from .batch.settings import Settings, build_settings
from .batch.sheets import draw_map, to_image
from .diffusion.hints import Hint, parse_hint, read_region
from .diffusion.photo import PreparedPhoto, measure_uncertainty, show_small
from .diffusion.reading import TooLargeError
from .diffusion.steering import Palette
from .options import PageLimits
from .sets.known import SIDECAR_SUFFIX, painted_entry, placed_entry, write_sidecar

NOTE = (
    "Plausible colours for grey photographs. **The colours are invented.** Label every result as a colorization, keep "
    "the grey original, and don't take a result as evidence of what colour anything was."
)
_WHY = (
    "The photo doesn't say which colours were there. The model gives each place colours that it has learnt from other "
    "photos, and {count} variants of yours show where that leaves a choice. The map says how far off the true colour "
    "may be: **bright** is far. Variant {typical} is the most typical."
)
_PREVIEW_EDGE = 1600  # pixels that the longer edge has at most on screen; downloads are full size
_SECONDS_KEPT = 3600
_MOST_VARIANTS = 6
_NOTHING_SAVED = gr.update(visible=False)
_TROUBLE = (OSError, ValueError, MemoryError, Image.DecompressionBombError)  # a photo's, not the server's


@dataclass
class Arrival:
    """A visitor's photo, and the grey preview that the page shows in its place."""

    folder: tempfile.TemporaryDirectory[str]
    original: str
    preview: str


@dataclass
class PageResult:
    """A visitor's results of one photo; the folder is deleted with the object."""

    folder: tempfile.TemporaryDirectory[str]
    before: Image.Image
    files: list[Path]
    previews: list[Image.Image]


def build_page(pipe: ColorizationPipeline, limits: PageLimits) -> gr.Blocks:
    """The page around a loaded pipeline, ready for :func:`launch`."""
    worker = Worker(pipe, limits)
    with gr.Blocks(
        title="COLORIZED", analytics_enabled=False, delete_cache=(_SECONDS_KEPT // 6, _SECONDS_KEPT)
    ) as page:
        gr.Markdown(f"# COLORIZED\n{NOTE}")
        with gr.Tab("One photo"):
            _build_photo_tab(worker)
        with gr.Tab("Many photos"):
            _build_batch_tab(worker, limits)
    page.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)
    # gradio looks a thousand times a second whether there is work, 7 % of a core all day; on Windows it takes these
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = 0.05, 0.1
    return page


def launch(page: gr.Blocks, limits: PageLimits, **options: Any) -> str:
    """Launch with nothing fetched from outside and nothing recorded; returns the page's address.

    ``options`` are ``launch``'s. Raises ``OSError`` if the port is taken.
    """
    _, url, _ = page.launch(
        theme=_theme(),
        css=_text("embed/web/compare.css") + _text("app.css"),
        head=f"<script>const ENDINGS = {json.dumps(sorted(PHOTO_SUFFIXES))};\n{_text('app.js')}</script>",
        max_file_size=f"{limits.max_file_mb}mb",
        run_history=False,
        footer_links=[],
        share=False,
        ssr_mode=False,
        quiet=True,
        **options,
    )
    return url


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _theme() -> gr.themes.Base:
    """Grey, so that nothing beside a photo changes how its colours look; every text dark enough to read."""
    theme = gr.themes.Default(
        primary_hue="neutral",
        secondary_hue="neutral",
        neutral_hue="neutral",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        button_primary_background_fill="*neutral_900",
        button_primary_background_fill_hover="*neutral_700",
        button_primary_background_fill_dark="*neutral_100",
        button_primary_background_fill_hover_dark="white",
        button_primary_text_color_dark="*neutral_900",
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_label_text_color="*neutral_600",
    )


def _build_photo_tab(worker: "Worker") -> None:
    arrival, guide, made = (gr.State(time_to_live=_SECONDS_KEPT) for _ in range(3))
    with gr.Row(elem_classes=["work"]):
        with gr.Column(min_width=0):
            photo = _build_upload("photo", "# Drop a photo here\nor press to choose one", height=320)
            start = gr.Button("Colorize", variant="primary", size="lg")
            status = gr.HTML(_status(""), apply_default_css=False)
        with gr.Column(min_width=0, visible=False, elem_classes=["result"]) as result:
            compared = gr.HTML(
                apply_default_css=False,
                js_on_load="const show = () => setTimeout(() => element.scrollIntoView({block: 'nearest'}), 100);"
                "watch('value', show); show();",
            )
            gallery = gr.Gallery(
                label="Variants",
                show_label=False,
                columns=3,
                height="auto",
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
            )
            download = gr.DownloadButton("Download")
            with gr.Accordion("Why these colours?", open=False, visible=False) as uncertainty:
                why = gr.Markdown()
                uncertainty_map = gr.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=["fullscreen"],
                    alt_text="Map of how far off the colours may be",
                )
        with gr.Column(min_width=0):
            gr.Examples(
                [str(file) for file in EXAMPLES],
                inputs=photo,
                outputs=[photo, arrival],
                fn=worker.receive,
                run_on_click=True,
                label="Example photos",
            )
            with gr.Accordion("Settings", open=False):
                variants = gr.Slider(
                    1, _MOST_VARIANTS, value=3, step=1, label="Variants", info="Different colourings of one photo."
                )
                settings = _build_settings(worker)
            with gr.Accordion("Colours you know", open=False):
                painting = _build_painting()
                places = gr.Textbox(
                    "",
                    label="Or write them",
                    info="A line each: x, y and radius in pixels of the photo, a colon, the colour.",
                    placeholder="120,80,25:#8a3b2e",
                    lines=2,
                )
                with gr.Row():
                    source = gr.Textbox("", label="Who says so", placeholder="A. Clerk, 2019", scale=2)
                    save = gr.Button("Save these colours", size="sm")
                sidecar, kept = gr.DownloadButton(visible=False), gr.State(time_to_live=_SECONDS_KEPT)
                gr.Markdown("Or give a colour photo of the same place: the result gets its palette.")
                reference = _build_upload(
                    "reference", "# Drop a colour photo here\nor press to choose one", height=200
                )

    quiet: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
    photo.upload(worker.receive, photo, [photo, arrival], **quiet)
    photo.change(lambda shown: (shown, _NOTHING_SAVED), photo, [painting, sidecar], queue=False, **quiet)
    reference.upload(worker.receive_reference, reference, [reference, guide], **quiet)
    save.click(worker.save_colors, [photo, arrival, painting, places, source], [sidecar, kept], **quiet)
    start.click(
        worker.colorize,
        [photo, arrival, painting, places, reference, guide, *settings, variants],
        [made, status, result, compared, gallery, download, uncertainty, why, uncertainty_map],
        concurrency_id="worker",
        concurrency_limit=1,
        api_visibility="private",
        show_progress_on=[photo],
    )
    gallery.select(worker.choose, made, [compared, download], queue=False, **quiet)


def _build_batch_tab(worker: "Worker", limits: PageLimits) -> None:
    with gr.Row():
        with gr.Column(min_width=300):
            photos = gr.File(
                file_count="multiple",
                file_types=sorted(PHOTO_SUFFIXES),
                label=f"Photos, at most {limits.max_photos}",
                height=240,
            )
            start = gr.Button("Colorize all", variant="primary", size="lg")
            with gr.Accordion("Settings", open=False):
                settings = _build_settings(worker)
        with gr.Column(min_width=300):
            report = gr.Markdown("The results come as one ZIP file, each photo in its own format and size.")
            download = gr.DownloadButton("Download ZIP", interactive=False)
    folder = gr.State(time_to_live=_SECONDS_KEPT)
    start.click(
        worker.colorize_all,
        [photos, *settings],
        [report, download, folder],
        concurrency_id="worker",
        concurrency_limit=1,
        api_name="colorize_photos",  # the page's only one for programs
        show_progress_on=[report],
    )


def _build_upload(name: str, invitation: str, *, height: int) -> gr.Image:
    """A field for a photo, which comes as the path of the file as it was uploaded."""
    field = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        show_label=False,
        placeholder=invitation,
        alt_text=f"Your {name}",
        height=height,
        buttons=[],
        elem_classes=[name],
    )
    # gradio would decode the upload itself, with its own errors and without the 16 bits of a scan
    field.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return field


def _build_painting() -> gr.ImageEditor:
    """Where a visitor paints the colours that are known onto the photo."""
    gr.Markdown("Pick a colour and paint where it belongs; a few strokes do. Colorize again, and the rest follows.")
    return gr.ImageEditor(
        type="pil",
        show_label=False,
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(
            default_size=12,
            colors=["#8a3b2e", "#b08d57", "#4f7942", "#6fa8dc", "#d9b38c", "#7a1f2b"],
            default_color="#8a3b2e",
            color_mode="defaults",
        ),
        canvas_size=(480, 360),
        buttons=[],
    )


def _build_settings(worker: "Worker") -> list[Any]:
    steps = worker.pipe.config.default_steps
    return [
        gr.Slider(1, 100, value=steps, step=1, label="Steps", info="More is slower and finer."),
        gr.Number(0, precision=0, minimum=0, maximum=2**31, label="Seed", info="Another seed gives other colours."),
        gr.Slider(0, 2, value=1, step=0.05, label="Intensity", info="Factor on colour: 0 is grey, 1 as drawn."),
    ]


class Worker:
    """What the page's buttons do. Holds nothing of any visitor: that comes in and goes out as arguments."""

    def __init__(self, pipe: ColorizationPipeline, limits: PageLimits) -> None:
        self.pipe, self.limits, self.checkpoint = pipe, limits, pipe.digest()

    def receive(self, path: str | None) -> tuple[str | None, Arrival | None]:
        """A photo as it arrives: checked, and shown in grey, as browsers can't show every format."""
        return self._arrive(path, self._preview)

    def receive_reference(self, path: str | None) -> tuple[str | None, Arrival | None]:
        """A reference photo as it arrives: checked, and shown in its colours."""
        return self._arrive(path, self._preview_reference)

    def _arrive(
        self, path: str | None, preview_of: Callable[[Path], Image.Image]
    ) -> tuple[str | None, Arrival | None]:
        if path is None:
            return None, None
        folder = tempfile.TemporaryDirectory(prefix="colorized-app-")
        preview = Path(folder.name) / f"{secrets.token_hex(8)}.webp"
        try:
            preview_of(Path(path)).save(preview, quality=90)
        except _TROUBLE as error:
            text = without_folders(explain(error, Path(path)), Path(path).parent)
            gr.Warning(html.escape(text), title="Error")  # raising would leave the field broken
            return None, None
        return str(preview), Arrival(folder, path, preview.name)

    def colorize(
        self,
        shown: str | None,
        arrival: Arrival | None,
        painting: dict[str, Any] | None,
        places: str | None,
        reference: str | None,
        guide: Arrival | None,
        steps: int,
        seed: int,
        intensity: float,
        variants: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:
        """One variant after the other, each shown as soon as it is there; seeds count up from ``seed``.

        Gives what is made, a line on how far it is, and the parts of the result. With the last of several variants
        comes the map of uncertainty.
        """
        if shown is None:
            raise _message("Give a photo first: drop it on the field, choose a file or paste it.")
        photo = _original(shown, arrival)
        guiding = self._guiding(reference, guide)
        folder = tempfile.TemporaryDirectory(prefix="colorized-app-")
        with _messages_for_visitors(photo, Path(folder.name)):
            check_all_pages(photo, self.limits.max_megapixels)
            hints = (*_read_places(places), *self._read_painting(painting, photo))
            wishes = {"variants": int(variants), "hints": hints, "reference": guiding}
            settings = self._settings(steps, seed, intensity, alone=True, **wishes)
            asked = Job(photo, Path(folder.name) / _result_name(photo), Path(photo.name))
            opened = open_photo(self.pipe, asked, settings, read_palette=self._read_palette)
            writer, page = Writer(self.pipe, settings), opened.page(0)
            made = PageResult(folder, before=_preview(page, None), files=[], previews=[])
            for number in range(settings.variants):
                rows = range(number, len(opened.seeds), settings.variants)
                steps_ahead = settings.steps * len(rows)
                bar = _step_bar(progress, steps=steps_ahead, number=number, variants=settings.variants)
                with one_thread():
                    for row in rows:
                        (opened.chroma[row],) = draw_rows(self.pipe, settings, [(opened, row)], on_step=bar)
                target = opened.job.target
                target = target.with_name(f"{target.stem}-colour-{settings.seed + number}{target.suffix}")
                copy = writer.variant(opened, number)
                writer.write_copy(opened, copy, target)
                made.files.append(target)
                made.previews.append(_preview(page, copy.chroma[0] * intensity))
                known = list(zip(made.previews, map(_title, range(number + 1)), strict=True))
                if number:  # what the visitor has chosen meanwhile stays
                    parts = (gr.skip(), gr.Gallery(known), gr.skip())
                else:
                    parts = (_compare(made, 0), gr.Gallery(known, selected_index=0), _download(made, 0))
                last = number + 1 == settings.variants
                why = _why(opened, writer) if last and number else (gr.Accordion(visible=False), "", None)
                line = f"{_title(number)} of {settings.variants} is ready."
                if last:
                    line = f"{photo.name}: {f'{number + 1} variants are' if number else 'the result is'} ready."
                yield made, _status(line), gr.Column(visible=True), *parts, *why

    def _guiding(self, reference: str | None, guide: Arrival | None) -> Path | None:
        """The reference photo, if there is one; its palette is read."""
        if reference is None:
            return None
        photo = _original(reference, guide)
        with _messages_for_visitors(photo):
            self._read_palette(photo)
        return photo

    def choose(self, made: PageResult | None, event: gr.SelectData) -> tuple[Any, Any]:
        """The variant that was clicked, into the slider and under the download button."""
        if made is None or not 0 <= event.index < len(made.files):
            return gr.skip(), gr.skip()
        return _compare(made, event.index), _download(made, event.index)

    def colorize_all(
        self,
        paths: list[str] | None,
        steps: int,
        seed: int,
        intensity: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, Any, tempfile.TemporaryDirectory[str]]:
        """All photos into one ZIP, and a report that names the ones that failed."""
        if not paths:
            raise _message("Give some photos first.")
        if len(paths) > self.limits.max_photos:
            raise _message(f"{len(paths)} photos are more than this page takes at once ({self.limits.max_photos}).")
        folder = tempfile.TemporaryDirectory(prefix="colorized-app-")
        archive, failures, names = Path(folder.name) / "colorized.zip", [], set[str]()
        photos = [Path(path) for path in paths]
        copies = [
            Job(photo, Path(folder.name) / _free_name(photo, names), Path(photo.name), self._refusal(photo))
            for photo in photos
        ]
        batch = Batch(self.pipe, self._settings(steps, seed, intensity))
        for number, outcome in enumerate(batch.run(copies), start=1):
            progress(number / len(copies), desc=f"photo {number} of {len(copies)}")
            if outcome.state == "failed":
                failures.append(without_folders(outcome.message, outcome.job.source.parent, Path(folder.name)))
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as results:
            for copy in copies:
                if copy.target.exists():
                    results.write(copy.target, copy.target.name)
                    copy.target.unlink()
        done = len(copies) - len(failures)
        lines = [f"**{done} of {len(copies)} photos colorized**, seed {int(seed)}."]
        lines += [f"- Error: {html.escape(reason)}" for reason in sorted(failures)]
        button = gr.DownloadButton("Download ZIP", value=str(archive) if done else None, interactive=bool(done))
        return "\n".join(lines), button, folder

    def _refusal(self, photo: Path) -> str:
        """Why a photo is too large for this page, if it is."""
        try:
            check_all_pages(photo, self.limits.max_megapixels)
        except TooLargeError as error:
            return str(error)
        except _TROUBLE:  # told when its turn comes
            pass
        return ""

    def _settings(self, steps: int, seed: int | None, intensity: float, **wishes: Any) -> Settings:
        """What the page's fields say; browsers may send whole numbers as floats."""
        if seed is None:
            raise _message("Seed: give a whole number.")
        return build_settings(
            self.pipe,
            checkpoint=self.checkpoint,
            steps=int(steps),
            seed=int(seed),
            intensity=intensity,
            max_megapixels=self.limits.max_megapixels,
            **wishes,
        )

    def save_colors(self, *given: Any) -> tuple[Any, tempfile.TemporaryDirectory[str] | None]:
        """What :meth:`write_colors` writes, for download. If it can't, an older file is no longer offered either."""
        try:
            return self.write_colors(*given)
        except gr.Error as error:
            gr.Warning(error.message, title="Error")
            return _NOTHING_SAVED, None

    def write_colors(
        self,
        shown: str | None,
        arrival: Arrival | None,
        painting: dict[str, Any] | None,
        places: str | None,
        source: str,
    ) -> tuple[Any, tempfile.TemporaryDirectory[str]]:
        """What was painted and written, as a file that the command finds when it lies beside the photo."""
        whole = self._painted(painting)
        if shown is None or not (whole or (places or "").strip()):
            raise _message("Nothing is painted or written: pick a colour and paint where it belongs.")
        photo, folder = _original(shown, arrival), tempfile.TemporaryDirectory(prefix="colorized-app-")
        with _messages_for_visitors(photo):
            written, size = _read_places(places), self._size(photo)
            for region, _ in written:
                read_region(region, size)
        entries = [placed_entry(region, color, source=source) for region, color in written]
        entries += [painted_entry(whole, source=source)] if whole else []
        file = Path(folder.name) / f"{photo.stem}{SIDECAR_SUFFIX}"
        file.write_text(write_sidecar(photo.name, entries), encoding="utf-8")
        return gr.DownloadButton(f"Download {file.name}", value=str(file), visible=True), folder

    def _read_painting(self, painting: dict[str, Any] | None, photo: Path) -> tuple[Hint, ...]:
        """What was painted, at the photo's own size."""
        if (whole := self._painted(painting)) is None:
            return ()
        height, width = self._size(photo)
        return (whole.resize((width, height), Image.Resampling.NEAREST),)

    def _size(self, photo: Path) -> tuple[int, int]:
        """Height and width of its first page, upright."""
        return open_scan(photo, pages="first", max_megapixels=self.limits.max_megapixels, sha256="-").sizes[0]

    def _painted(self, painting: dict[str, Any] | None) -> Image.Image | None:
        layers = [layer.convert("RGBA") for layer in (painting or {}).get("layers", ()) if layer is not None]
        painted = [layer for layer in layers if layer.getchannel("A").point([0] * 128 + [255] * 128).getbbox()]
        return reduce(Image.alpha_composite, painted) if painted else None

    def _preview(self, photo: Path) -> Image.Image:
        """The photo in grey, as the network will see it, at screen size."""
        check_all_pages(photo, self.limits.max_megapixels)
        scan = open_scan(photo, pages="first", max_megapixels=self.limits.max_megapixels, sha256="-")
        return _fit_screen(Image.fromarray(to_8_bits(scan.read_page())))

    def _preview_reference(self, photo: Path) -> Image.Image:
        self._read_palette(photo)
        with Image.open(photo) as opened:
            return _fit_screen(ImageOps.exif_transpose(opened).convert("RGB"))

    def _read_palette(self, photo: Path) -> Palette:
        check_all_pages(photo, self.limits.max_megapixels, pages="first")  # too large, or no photo at all
        return self.pipe.read_palette(photo)


def _step_bar(progress: gr.Progress, *, steps: int, number: int, variants: int) -> Callable[[], None]:
    """What is called after each step of a variant, from whatever thread: moves the page's bar through its part."""
    context, done = contextvars.copy_context(), itertools.count(1)  # gradio finds the visitor in the context

    def show(fraction: float) -> None:
        progress((number + fraction) / variants, desc=f"variant {number + 1} of {variants}")

    show(0.0)
    return lambda: context.run(show, min(1.0, next(done) / steps))


def _read_places(text: str | None) -> list[tuple[tuple[float, ...], str]]:
    """Colours that were written, a line each; empty lines are passed over."""
    return [parse_hint(line) for line in map(str.strip, (text or "").splitlines()) if line]


@contextmanager
def _messages_for_visitors(photo: Path, *folders: Path) -> Iterator[None]:
    """Errors as the command line words them, without the server's folders."""
    try:
        yield
    except _TROUBLE as error:
        raise _message(without_folders(explain(error, photo), photo.parent, *folders)) from error


def _original(shown: str, arrival: Arrival | None) -> Path:
    """The uploaded file of the preview on the page; itself, where a quick visitor didn't wait for the preview."""
    is_preview = arrival is not None and arrival.preview == Path(shown).name
    return Path(arrival.original if arrival is not None and is_preview else shown)


def _message(text: str) -> gr.Error:
    return gr.Error(html.escape(text), print_exception=False)


def _preview(page: PreparedPhoto, chroma: torch.Tensor | None) -> Image.Image:
    return to_image(show_small(page, chroma, longest=_PREVIEW_EDGE))


def _why(photo: OpenPhoto, writer: Writer) -> tuple[Any, str, Image.Image]:
    """The map of a photo's uncertainty, at screen size, and which of its variants is the most typical."""
    chroma = photo.drawn(0) * writer.settings.intensity
    fit = writer.pipe.config.uncertainty_fit
    stated = measure_uncertainty(photo.page(0), chroma, fit=fit, longest=MEASURED_EDGE).numpy()
    image = draw_map(stated, stated.shape, variants=photo.variants).convert("RGB")
    typical = writer.choose_copies(photo)[0].base_seed - writer.settings.seed + 1
    return gr.Accordion(open=False, visible=True), _WHY.format(count=photo.variants, typical=typical), image


def _compare(made: PageResult, index: int) -> str:
    """A variant beside its grey photo, divided where the slider over them says: app.js, app.css."""
    title, (width, height) = _title(index), made.before.size
    return f"""<figure class="compare" style="--shape: {width / height:.4f}">
        <div><img src="{_data_url(made.previews[index])}" alt="{title}, in colour">
        <img class="before" src="{_data_url(made.before)}" alt="The photo in grey">
        <input type="range" min="0" max="100" value="50" aria-label="How much is shown in grey"></div>
        <figcaption><span>Grey</span><button class="whole">Full screen</button><span>{title}</span></figcaption>
        </figure>"""


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _status(text: str) -> str:
    """A line that screen readers read out when it changes."""
    return f'<p role="status">{html.escape(text)}</p>'


def _title(index: int) -> str:
    return f"Variant {index + 1}"


def _download(made: PageResult, index: int) -> Any:
    return gr.DownloadButton(f"Download {_title(index).lower()} at full size", value=str(made.files[index]))


def _result_name(photo: Path) -> str:
    """The name of a photo's result: its own, but PNG for a format that can't hold full colour or be written."""
    suffix = result_suffix(photo).lower()
    return f"{photo.stem}{suffix if suffix in PHOTO_SUFFIXES else '.png'}"


def _free_name(photo: Path, taken: set[str]) -> str:
    """The name of a photo's result in the ZIP; photos of one name are numbered."""
    name = first = Path(_result_name(photo))
    number = 1
    while str(name).lower() in taken:
        number += 1
        name = first.with_stem(f"{first.stem}-{number}")
    taken.add(str(name).lower())
    return str(name)


def _fit_screen(image: Image.Image) -> Image.Image:
    image.thumbnail((_PREVIEW_EDGE, _PREVIEW_EDGE), Image.Resampling.LANCZOS)
    return image
