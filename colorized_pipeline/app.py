"""The web page: one photo with its variants, or a batch of photos into a ZIP. ``colorized app`` serves it.

Every visitor's files lie in folders of their own session and go with it; jobs wait in one queue, one runs at a time.
"""

import html
import secrets
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from . import EXAMPLES, ColorizationPipeline
from .color import lightness_to_gray
from .files import PHOTO_SUFFIXES, save_photo
from .pipeline import _decode_file, _read_lightness

NOTE = (
    "**The colours are invented.** A grey photo fits many colourings; each variant is one. Label every result as a "
    "colorization, keep the grey original, and don't use a result as evidence of what colour anything was."
)
_PREVIEW_EDGE = 1600  # pixels of the longer edge on screen; downloads are full size
_SMOOTH = Image.Resampling.BILINEAR  # the best that 16-bit pictures can have in Pillow
_SECONDS_KEPT = 3600
_TROUBLE = (OSError, ValueError, MemoryError, Image.DecompressionBombError)  # a photo's, not the server's
_CSS = """
.gradio-container {max-width: min(1100px, 100%) !important; min-width: 0 !important; margin: auto}
.grid-wrap.fixed-height {min-height: 0 !important}
footer {display: none !important}
"""


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for at once."""

    megapixels: float = 40.0
    file_megabytes: int = 100
    batch_photos: int = 50
    variants: int = 6
    queue: int = 20


@dataclass
class Arrival:
    """A visitor's photo, and the grey preview that the page shows in its place."""

    folder: tempfile.TemporaryDirectory[str]
    original: str
    preview: str


@dataclass
class Job:
    """A visitor's results of one photo; the folder is deleted with the object."""

    folder: tempfile.TemporaryDirectory[str]
    before: Image.Image
    files: list[Path]
    previews: list[Image.Image]
    seeds: list[int]


def build_page(pipe: ColorizationPipeline, limits: Limits) -> gr.Blocks:
    """The page around a loaded pipeline, ready for :func:`serve`."""
    worker = Worker(pipe, limits)
    with gr.Blocks(
        title="COLORIZED", analytics_enabled=False, delete_cache=(_SECONDS_KEPT // 6, _SECONDS_KEPT)
    ) as page:
        gr.Markdown(f"# COLORIZED\nPlausible colours for grey photographs.\n\n{NOTE}")
        with gr.Tab("One photo"):
            _build_photo_tab(worker, limits)
        with gr.Tab("Many photos"):
            _build_batch_tab(worker, limits)
    return page.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)


def serve(page: gr.Blocks, limits: Limits, **options: Any) -> str:
    """Launch with nothing fetched from outside and nothing recorded; returns the page's address.

    ``options`` are ``launch``'s. Raises ``OSError`` if the port is taken.
    """
    _, url, _ = page.launch(
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
        max_file_size=f"{limits.file_megabytes}mb",
        run_history=False,
        footer_links=[],
        share=False,
        ssr_mode=False,
        quiet=True,
        **options,
    )
    return url


def _build_photo_tab(worker: "Worker", limits: Limits) -> None:
    arrival, job = gr.State(time_to_live=_SECONDS_KEPT), gr.State(time_to_live=_SECONDS_KEPT)
    with gr.Row():
        with gr.Column(min_width=300):
            photo = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                label="Photo: drop, choose or paste one",
                height=320,
                buttons=[],
            )
            # gradio would decode the upload itself, with its own errors and without the 16 bits of a scan
            photo.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
            settings = _build_settings(worker)
            variants = gr.Slider(1, limits.variants, value=3, step=1, label="Variants", info="One a seed, counted up.")
            start = gr.Button("Colorize", variant="primary")
        with gr.Column(min_width=300):
            slider = gr.ImageSlider(
                label="Before and after", interactive=False, max_height=480, buttons=["fullscreen"]
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
            gr.Markdown("Choose a variant to compare and download it.")
            download = gr.DownloadButton("Download at full size", interactive=False)
    gr.Examples(
        [str(file) for file in EXAMPLES],
        inputs=photo,
        outputs=[photo, arrival],
        fn=worker.receive,
        run_on_click=True,
        label="Example photos",
    )

    quiet: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
    photo.upload(worker.receive, photo, [photo, arrival], **quiet)
    start.click(
        worker.colorize,
        [photo, arrival, *settings, variants],
        [slider, gallery, download, job],
        concurrency_id="worker",
        concurrency_limit=1,
        api_visibility="private",
        show_progress_on=[slider],
    )
    gallery.select(worker.choose, job, [slider, download], queue=False, **quiet)


def _build_batch_tab(worker: "Worker", limits: Limits) -> None:
    with gr.Row():
        with gr.Column(min_width=300):
            photos = gr.File(
                file_count="multiple",
                file_types=sorted(PHOTO_SUFFIXES),
                label=f"Photos, at most {limits.batch_photos}",
                height=240,
            )
            settings = _build_settings(worker)
            start = gr.Button("Colorize all", variant="primary")
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
        api_visibility="private",
        show_progress_on=[report],
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

    def __init__(self, pipe: ColorizationPipeline, limits: Limits) -> None:
        self.pipe, self.limits = pipe, limits

    def receive(self, path: str | None) -> tuple[str | None, Arrival | None]:
        """A photo as it arrives: checked, and shown in grey, as browsers can't show every format."""
        if path is None:
            return None, None
        folder = tempfile.TemporaryDirectory(prefix="colorized-app-")
        preview = Path(folder.name) / f"{secrets.token_hex(8)}.webp"
        try:
            self._preview(Path(path)).save(preview, quality=90)
        except _TROUBLE as error:
            gr.Warning(html.escape(_reason(error, Path(path))), title="Error")  # raising would leave the field broken
            return None, None
        return str(preview), Arrival(folder, path, preview.name)

    def colorize(
        self,
        shown: str | None,
        arrival: Arrival | None,
        steps: int,
        seed: int,
        intensity: float,
        variants: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, Any, Any, Job]]:
        """One variant after the other, each shown as soon as it is there; seeds count up from ``seed``."""
        if shown is None:
            raise _message("Give a photo first: drop it on the field, choose a file or paste it.")
        # A quick visitor presses the button before the preview of a new photo has come
        is_preview = arrival is not None and arrival.preview == Path(shown).name
        photo = Path(arrival.original if arrival is not None and is_preview else shown)
        with _messages_for_visitors(str(photo)):
            folder = tempfile.TemporaryDirectory(prefix="colorized-app-")
            job = Job(folder, before=self._preview(photo), files=[], previews=[], seeds=[])
            for number in range(variants):
                chosen = int(seed) + number
                desc = f"variant {number + 1} of {variants}"
                with _StepBar(self.pipe, progress, number=number, jobs=variants, desc=desc):
                    result = self._draw(photo, steps, chosen, intensity)
                target = Path(folder.name) / f"{photo.stem}-colour-{chosen}{_suffix(photo)}"
                save_photo(result, target)
                job.files.append(target)
                job.previews.append(_fit_screen(result))
                job.seeds.append(chosen)
                captions = [f"seed {one}" for one in job.seeds]
                yield (
                    (job.before, job.previews[0]),
                    gr.Gallery(list(zip(job.previews, captions, strict=True)), selected_index=0),
                    gr.DownloadButton(_label(job, 0), value=str(job.files[0]), interactive=True),
                    job,
                )

    def choose(self, job: Job | None, event: gr.SelectData) -> tuple[Any, Any]:
        """The variant that was clicked, into the slider and under the download button."""
        if job is None or not 0 <= event.index < len(job.files):
            return gr.skip(), gr.skip()
        index = event.index
        button = gr.DownloadButton(_label(job, index), value=str(job.files[index]), interactive=True)
        return (job.before, job.previews[index]), button

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
        if len(paths) > self.limits.batch_photos:
            raise _message(f"{len(paths)} photos are more than this page takes at once ({self.limits.batch_photos}).")
        folder = tempfile.TemporaryDirectory(prefix="colorized-app-")
        archive, failures, names = Path(folder.name) / "colorized.zip", [], set[str]()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as results:
            for number, photo in enumerate(map(Path, paths)):
                try:
                    self._check_size(photo)
                    desc = f"photo {number + 1} of {len(paths)}"
                    with _StepBar(self.pipe, progress, number=number, jobs=len(paths), desc=desc):
                        result = self._draw(photo, steps, int(seed), intensity)
                    target = Path(folder.name) / _free_name(photo, names)
                    save_photo(result, target)
                    results.write(target, target.name)
                    target.unlink()
                except _TROUBLE as error:
                    failures.append(_reason(error, photo))
        done = len(paths) - len(failures)
        lines = [f"**{done} of {len(paths)} photos colorized**, seed {int(seed)}."]
        lines += [f"- Error: {html.escape(reason)}" for reason in failures]
        button = gr.DownloadButton("Download ZIP", value=str(archive) if done else None, interactive=bool(done))
        return "\n".join(lines), button, folder

    def _draw(self, photo: Path, steps: int, seed: int, intensity: float) -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        return self.pipe(photo, num_inference_steps=int(steps), generator=generator, intensity=intensity).images[0]

    def _check_size(self, photo: Path) -> None:
        """Raises ``OSError`` for no photo, ``ValueError`` for one over the limit, before its pixels are decoded."""
        try:
            with Image.open(photo) as image:
                width, height = image.size
        except Exception as error:  # Pillow's decoders raise errors of many types for damaged files
            raise OSError(f"{photo}: can't be read as a photo ({error})") from error
        if width * height > self.limits.megapixels * 1e6:
            raise ValueError(
                f"{photo}: {width} x {height} pixels are over this page's limit of {self.limits.megapixels:g} "
                "megapixels; the command `colorized colorize` has none"
            )

    def _preview(self, photo: Path) -> Image.Image:
        """The photo in grey, as the network will see it, at screen size."""
        self._check_size(photo)
        gray = lightness_to_gray(_read_lightness(_fit_screen(_decode_file(photo))))
        return Image.fromarray((gray[0] * 255).round().to(torch.uint8).numpy())


class _StepBar:
    """Inside the block the pipeline's denoising steps move the page's bar, of which one job of ``jobs`` is a part."""

    def __init__(
        self, pipe: ColorizationPipeline, progress: gr.Progress, *, number: int, jobs: int, desc: str
    ) -> None:
        self.pipe, self.progress = pipe, progress
        self.number, self.jobs, self.desc = number, jobs, desc

    def __enter__(self) -> None:
        self.progress(self.number / self.jobs, desc=self.desc)
        self.pipe.progress_bar = self._bar

    def __exit__(self, *error: object) -> None:
        del self.pipe.progress_bar  # the class's own shows again

    @contextmanager
    def _bar(self, total: int) -> Iterator["_StepBar"]:
        self.total, self.done = total, 0
        yield self

    def update(self) -> None:
        self.done += 1
        self.progress((self.number + self.done / self.total) / self.jobs, desc=self.desc)


@contextmanager
def _messages_for_visitors(path: str) -> Iterator[None]:
    """Errors as the command line words them, without the server's folders."""
    try:
        yield
    except _TROUBLE as error:
        raise _message(_reason(error, Path(path))) from error


def _message(text: str) -> gr.Error:
    return gr.Error(html.escape(text), print_exception=False)


def _reason(error: BaseException, photo: Path) -> str:
    text = (str(error) or type(error).__name__).replace(str(photo), photo.name)
    return text if photo.name in text else f"{photo.name}: {text}"


def _label(job: Job, index: int) -> str:
    return f"Download seed {job.seeds[index]} at full size"


def _suffix(photo: Path) -> str:
    """The ending of a photo's result: its own, but PNG for a GIF, which has room for 256 colours only."""
    suffix = photo.suffix.lower()
    return suffix if suffix in PHOTO_SUFFIXES - {".gif"} else ".png"


def _free_name(photo: Path, taken: set[str]) -> str:
    """The name of a photo's result in the ZIP; photos of one name are numbered."""
    name, number = f"{photo.stem}{_suffix(photo)}", 1
    while name.lower() in taken:
        number += 1
        name = f"{photo.stem}-{number}{_suffix(photo)}"
    taken.add(name.lower())
    return name


def _fit_screen(image: Image.Image) -> Image.Image:
    factor = max(image.size) / _PREVIEW_EDGE
    if factor <= 1:
        return image
    if image.mode in ("1", "P", "PA"):  # these could only be thinned out, not averaged
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image.resize((max(1, round(image.width / factor)), max(1, round(image.height / factor))), _SMOOTH)
