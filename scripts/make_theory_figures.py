"""Make the figures of docs/explanation/theory.md from the shipped checkpoint and real photographs.

python scripts/make_theory_figures.py                        (or, with the README's pictures: make figures)
python scripts/make_theory_figures.py --photos 'scenes/validation-*.parquet'

Without --photos, crops of photographs that scikit-image ships are used. Only scikit-image's photographs are ever
shown; those of --photos enter the curves of chroma.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from PIL import Image
from scipy import stats
from skimage import data

from colorized_pipeline import DEFAULT_CHECKPOINT, ColorizationPipeline
from colorized_pipeline.batch.sheets import paint_sheet, to_image
from colorized_pipeline.diffusion.color import downsample_chroma, fit_gamut, lab_to_rgb, rgb_to_lab
from colorized_pipeline.evaluation.bound import predicted_clean
from colorized_pipeline.evaluation.photos import read_photos
from colorized_pipeline.training.sources import open_source

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FORWARD_PHOTO, REVERSE_PHOTO = "coffee", "rocket"
SKIMAGE_PHOTOS = ("astronaut", "coffee", "rocket", "chelsea")
CROPS_PER_PHOTO = 12
SCHEDULES = (("linear", 300), ("linear", 1000), ("squaredcos_cap_v2", 300), ("squaredcos_cap_v2", 1000))
NAMES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
EDGE, GAP = 128, 4
BATCH = 16


def schedule(kind: str, steps: int) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=steps, beta_schedule=kind)


def square(name: str, *, size: float = 1.0, top: float = 0.5, left: float = 0.5) -> torch.Tensor:
    """A square of a photograph of scikit-image, by default the middle, CIELAB ``[3, EDGE, EDGE]``.

    Args:
        size: of its edge, against the photograph's shorter side.
        top, left: of the way that it can be moved, 0 to 1.
    """
    rgb = torch.from_numpy(getattr(data, name)()).movedim(-1, 0).float() / 255
    height, width = rgb.shape[-2:]
    edge = round(min(height, width) * size)
    row, column = int(top * (height - edge)), int(left * (width - edge))
    cut = rgb[None, :, row : row + edge, column : column + edge]
    return rgb_to_lab(F.interpolate(cut, (EDGE, EDGE), mode="bilinear", antialias=True).clamp(0, 1))[0]


def skimage_crops(generator: torch.Generator) -> torch.Tensor:
    """Random squares of scikit-image's colour photographs, CIELAB ``[N, 3, EDGE, EDGE]``."""
    crops = []
    for name in SKIMAGE_PHOTOS:
        for size, top, left in torch.rand((CROPS_PER_PHOTO, 3), generator=generator).tolist():
            crops.append(square(name, size=0.5 + 0.5 * size, top=top, left=left))
    return torch.stack(crops)


def paint(lightness: torch.Tensor, chroma: torch.Tensor) -> Image.Image:
    """L* ``[1, EDGE, EDGE]`` under a*, b* ``[2, h, w]`` in CIELAB units, as a picture."""
    large = F.interpolate(chroma[None], lightness.shape[-2:], mode="bilinear")[0]
    return to_image(lab_to_rgb(fit_gamut(torch.cat((lightness, large)))))


def strip(rows: list[tuple[str, list[tuple[str, Image.Image]]]]) -> Image.Image:
    """Rows of captioned pictures; a row's name stands in its first caption."""
    captions = [[f"{name}, {row[0][0]}", *(caption for caption, _ in row[1:])] for name, row in rows]
    return paint_sheet([[picture for _, picture in row] for _, row in rows], captions=captions)


def forward_process(pipe: ColorizationPipeline, folder: Path) -> None:
    """x_t at the same t / T under four schedules, the same noise everywhere."""
    lab = square(FORWARD_PHOTO)
    clean = pipe.chroma_to_latents(downsample_chroma(lab[None, 1:], pipe.chroma_cell))[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for kind, steps in SCHEDULES:
        scheduler, pictures = schedule(kind, steps), [("x_0", paint(lab[:1], pipe.latents_to_chroma(clean)))]
        for part in (0.1, 0.25, 0.5, 0.75, 1.0):
            t = round(part * steps)
            noisy = scheduler.add_noise(clean[None], noise[None], torch.tensor([t - 1]))[0]
            weight = scheduler.alphas_cumprod[t - 1].sqrt().item()
            pictures.append((f"t = {t}: {weight:.3f} x_0", paint(lab[:1], pipe.latents_to_chroma(noisy))))
        rows.append((f"{NAMES[kind]} {steps}", pictures))
    strip(rows).save(folder / "forward.jpg", quality=88)


@torch.no_grad()
def denoise(
    pipe: ColorizationPipeline, condition: torch.Tensor, generator: torch.Generator
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """All the way back: t, x_t, and the network's estimate of x_0 from it; at last 0 and twice x_0."""
    scheduler, path = pipe.scheduler, []
    scheduler.set_timesteps(pipe.config.default_steps)
    shape = (len(condition), pipe.unet.config.out_channels, *condition.shape[-2:])
    x = torch.randn(shape, generator=generator) * pipe.config.initial_noise
    for timestep in scheduler.timesteps:
        output = pipe.unet(torch.cat((condition, x), dim=1), timestep).sample
        path.append((int(timestep) + 1, x, predicted_clean(scheduler, output, x, timestep.repeat(len(x))).float()))
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
    return [*path, (0, x, x)]


@torch.no_grad()
def reverse_process(pipe: ColorizationPipeline, folder: Path) -> None:
    """x_t and the network's estimate of x_0 on the way back: a strip, and all steps as an animation."""
    lab = square(REVERSE_PHOTO)
    path = denoise(pipe, pipe.condition(lab[None, :1]), torch.Generator().manual_seed(0))

    def picture(latents: torch.Tensor) -> Image.Image:
        return paint(lab[:1], pipe.latents_to_chroma(latents[0]))

    frames = [(t, picture(noisy), picture(guess)) for t, noisy, guess in path]
    gray, original = paint(lab[:1], torch.zeros_like(lab[1:])), paint(lab[:1], lab[1:])
    chosen = frames[:: max(1, len(frames) // 6)]
    strip(
        [
            ("x_t", [("grey", gray), *((f"t = {t}", noisy) for t, noisy, _ in chosen)]),
            ("estimate", [("truth", original), *((f"at t = {t}", guess) for t, _, guess in chosen)]),
        ]
    ).save(folder / "reverse.jpg", quality=88)

    pairs = []
    for _, noisy, estimate in frames:
        pair = Image.new("RGB", (2 * EDGE + GAP, EDGE), "white")
        pair.paste(noisy, (0, 0))
        pair.paste(estimate, (EDGE + GAP, 0))
        pairs.append(pair)
    durations = [120] * (len(pairs) - 1) + [2000]
    pairs[0].save(
        folder / "reverse.webp", save_all=True, append_images=pairs[1:], duration=durations, loop=0, quality=70
    )


def signal_to_noise(pipe: ColorizationPipeline, folder: Path) -> None:
    """SNR(t) of the schedules, and what the shipped one makes of it."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for (kind, steps), style in zip(SCHEDULES, ("C0--", "C0-", "C3--", "C1-"), strict=True):
        draw_snr(axes, schedule(kind, steps), style, f"{NAMES[kind]}, T = {steps}")
    draw_snr(axes, pipe.scheduler, "k:", "the shipped checkpoint's")
    axes.set(xlabel="t / T", ylabel="SNR(t), logarithmic", yscale="log", ylim=(1e-6, 1e5))
    axes.axhline(1, color="0.7", linewidth=0.8)
    finish(figure, axes, folder / "snr.png")


def draw_snr(axes: plt.Axes, scheduler: DDPMScheduler, style: str, label: str) -> None:
    alpha_bar = scheduler.alphas_cumprod.double()
    t = torch.arange(1, len(alpha_bar) + 1) / len(alpha_bar)
    broad = style.endswith("-") and not style.endswith("--")  # so that a curve which coincides with it stays visible
    width, alpha = (4, 0.4) if broad else (1.5, 1)
    axes.plot(t, alpha_bar / (1 - alpha_bar), style, label=label, linewidth=width, alpha=alpha)


def gaussian_reverse_step(folder: Path) -> None:
    """q(x_{t-1} | x_t) of a two-peaked density, exactly, beside the Gaussian of equation 12, for three beta."""
    x = np.linspace(-3.5, 3.5, 4001)
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for axis, beta in zip(axes, (0.7, 0.1, 0.01), strict=True):
        peaks = stats.norm.pdf(x, -1, 0.3) + stats.norm.pdf(x, 1, 0.3)
        seen = 0.1 * np.sqrt(1 - beta)
        exact = peaks * stats.norm.pdf(seen, np.sqrt(1 - beta) * x, np.sqrt(beta))
        exact /= np.trapezoid(exact, x)
        noisy_peaks = [stats.norm.pdf(seen, s * np.sqrt(1 - beta), np.sqrt(0.09 * (1 - beta) + beta)) for s in (-1, 1)]
        slopes = [(s * np.sqrt(1 - beta) - seen) / (0.09 * (1 - beta) + beta) for s in (-1, 1)]
        score = np.dot(noisy_peaks, slopes) / np.sum(noisy_peaks)
        gaussian = stats.norm.pdf(x, (seen + beta * score) / np.sqrt(1 - beta), np.sqrt(beta))
        axis.plot(x, exact, "k", label="exact")
        axis.plot(x, gaussian, "C1--", label="Gaussian")
        axis.set(title=f"β = {beta}", xlabel="$x_{t-1}$", yticks=[])
    finish(figure, axes[0], folder / "small_steps.png")


@torch.no_grad()
def chroma_histogram(pipe: ColorizationPipeline, labs: torch.Tensor, what: str, folder: Path) -> None:
    """How often which chroma occurs: in the truth, in samples, and in E[x_0 | grey], which regression would give."""
    generator = torch.Generator().manual_seed(0)
    truth, samples, means = [], [], []
    for lab in labs.split(BATCH):
        truth.append(downsample_chroma(lab[:, 1:], pipe.chroma_cell))
        path = denoise(pipe, pipe.condition(lab[:, :1]), generator)
        # Nothing of the photo is in x_T, so that the first estimate is the conditional mean
        means.append(pipe.latents_to_chroma(path[0][2]))
        samples.append(pipe.latents_to_chroma(path[-1][1]))

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for values, style, label in (
        (truth, "k", "truth"),
        (samples, "C0", "samples"),
        (means, "C1--", "conditional mean (first estimate)"),
    ):
        chroma = torch.cat(values)
        for axes, numbers, bins in (
            (left, chroma.norm(dim=1), np.linspace(0, 80, 81)),
            (right, chroma[:, 1], np.linspace(-60, 80, 141)),
        ):
            density, edges = np.histogram(numbers.flatten().numpy(), bins, density=True)
            axes.plot((edges[1:] + edges[:-1]) / 2, density, style, label=label, linewidth=1.2)
    left.set(yscale="log", ylim=(1e-5, 1), xlabel=r"chroma, $\sqrt{a^{*2} + b^{*2}}$", ylabel="density")
    right.set(yscale="log", ylim=(1e-5, 1), xlabel="b* (blue to yellow)")
    figure.suptitle(what, fontsize=9)
    finish(figure, left, folder / "histogram.png")


def finish(figure: plt.Figure, legend_on: plt.Axes, file: Path) -> None:
    legend_on.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def make_all(pipe: ColorizationPipeline, labs: torch.Tensor, what: str, folder: Path) -> None:
    """Every figure into ``folder``; ``labs`` ``[N, 3, H, W]``, called ``what``, are the photos behind the curves."""
    forward_process(pipe, folder)
    reverse_process(pipe, folder)
    signal_to_noise(pipe, folder)
    gaussian_reverse_step(folder)
    chroma_histogram(pipe, labs, what, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/explanation/theory"), help="folder for the figures")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), help="pipeline folder or Hub name")
    parser.add_argument("--photos", nargs="+", help="colour photos for the curves: a folder, or parquet files")
    parser.add_argument("--limit", type=int, default=128, help="at most so many of --photos")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    pipe = ColorizationPipeline.from_pretrained(args.checkpoint)
    if args.photos:
        labs = read_photos(open_source(args.photos), name="", resolution=EDGE, limit=args.limit).truth
        what = f"{len(labs)} photos of {'/'.join(Path(args.photos[0]).parts[-2:])}"
    else:
        labs = skimage_crops(torch.Generator().manual_seed(0))
        what = f"{len(labs)} crops of {len(SKIMAGE_PHOTOS)} photographs of scikit-image"
    make_all(pipe, labs, what, args.output)
    for file in sorted(args.output.iterdir()):
        print(file)


if __name__ == "__main__":
    main()
