"""Variants and uncertainty by the command: files, seeds that give them again, resuming, the map, calibration."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import scipy.stats
import tifffile
import torch
from conftest import make_pipeline
from PIL import Image
from skimage import color as skimage_color
from skimage import data as skimage_data
from test_batch import records, results
from typer.testing import CliRunner, Result

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.archive.inspection import describe
from colorized_pipeline.archive.labels import DIGITAL_SOURCE_TYPE
from colorized_pipeline.batch.sheets import SCALE_TOP, _palette, draw_map
from colorized_pipeline.cli import app
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.diffusion.photo import Lightness, compose, measure_uncertainty, shrink_photo
from colorized_pipeline.diffusion.variants import state_uncertainty
from colorized_pipeline.evaluation.calibration import fit_uncertainty, overconfidence, rank_correlation, within_photos

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save("grey.png")

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, ["colorize", *words, "--checkpoint", str(checkpoint), "--device", "cpu"])

    return invoke


def seed_of(file: str | Path) -> str:
    return describe(Path(file))["colorized:BaseSeed"]


def lab(file: str | Path) -> np.ndarray:
    with Image.open(file) as image:
        return skimage_color.rgb2lab(np.asarray(image))


def test_variants_of_one_photo_and_each_again_by_its_seed(run) -> None:
    result = run("grey.png", "-o", "out/colour.png", "--variants", "5", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert "1 of 1 photos colorized into out/colour-1.png" in result.stdout
    copies = [f"colour-{number}.png" for number in range(1, 6)]
    assert {path.name for path in Path("out").iterdir()} == {*copies, "colour-variants.jpg"}
    seeds = [seed_of(Path("out") / name) for name in copies]
    assert sorted(seeds) == ["10", "11", "7", "8", "9"]
    for name, seed in zip(copies, seeds, strict=True):
        assert run("grey.png", "-o", "again.png", "--seed", seed, "--overwrite").exit_code == 0
        assert Path("again.png").read_bytes() == (Path("out") / name).read_bytes()
    chroma = np.stack([lab(Path("out") / name)[..., 1:] for name in copies])
    distances = np.linalg.norm(chroma[:, None] - chroma[None], axis=-1).mean((2, 3)).sum(1)
    assert distances.argmin() == 0 and distances.argmax() == 4


def test_the_sheet_shows_the_variants_and_is_labelled(run) -> None:
    assert run("grey.png", "-o", "a.png", "--variants", "3").exit_code == 0
    label = describe(Path("a-variants.jpg"))
    assert label["Iptc4xmpExt:DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert len(label["colorized:Seed"].split(", ")) == 3
    with Image.open("a-variants.jpg") as sheet:
        tiles = np.asarray(sheet).astype(int)
    grey, first = tiles[6:50, 6:66], tiles[6:50, 122:182]
    assert np.ptp(grey, axis=-1).mean() < 3 < np.ptp(first, axis=-1).mean()
    with Image.open("a-1.png") as copy:
        assert np.abs(first - np.asarray(copy)).mean() < 8  # JPEG


def test_a_tree_with_variants_is_recorded_and_goes_on(run) -> None:
    Path("in/box").mkdir(parents=True)
    for name in ("a.png", "box/b.jpg"):
        Image.open("grey.png").rotate(len(name)).save(Path("in") / name)
    words = ("in", "-o", "out", "-r", "--variants", "3", "--uncertainty")
    result = run(*words)
    assert result.exit_code == 0 and "2 of 2 photos" in result.stdout, result.output
    before = results(Path("out"))
    names = {
        f"{stem}{end}"
        for stem, suffix in (("a", "png"), ("box/b", "jpg"))
        for end in (f"-1.{suffix}", f"-2.{suffix}", f"-3.{suffix}", "-variants.jpg", "-uncertainty.png")
    }
    assert set(before) == names and {record["output"] for record in records()} == names
    for record in records():
        assert before[record["output"]] == record["output_sha256"]
        assert record["uncertainty"] > 1 and record["settings"]["variants"] == 3
        if "variant" in record:
            assert record["seeds"] == [int(describe(Path("out") / record["output"])["colorized:Seed"])]
            assert record["base_seed"] == int(seed_of(Path("out") / record["output"]))
            assert f"-{record['variant']}." in record["output"]
        else:
            assert len(record["seeds"]) == 3
    assert "2 done before" in run(*words).stdout

    for gone in ("a-2.png", "box/b-uncertainty.png"):
        (Path("out") / gone).unlink()
        result = run(*words)
        assert "1 of 2" in result.stdout and "1 done before" in result.stdout
        assert results(Path("out")) == before
    result = run("in", "-o", "out", "-r", "--variants", "2", "--uncertainty")
    assert result.exit_code == 1 and result.stderr.count("made with other settings") == 2
    assert results(Path("out")) == before


def test_uncertainty_alone_writes_the_most_typical_of_eight(run) -> None:
    assert run("grey.png", "-o", "out", "-r", "--uncertainty").exit_code == 0
    assert run("grey.png", "-o", "all", "--variants", "8", "--batch-size", "4").exit_code == 0  # as a tree's
    assert {path.name for path in Path("out").glob("*.png")} == {"grey.png", "grey-uncertainty.png"}
    assert Path("out/grey.png").read_bytes() == Path("all/grey-1.png").read_bytes()
    chroma = np.stack([lab(f"all/grey-{number}.png")[..., 1:] for number in range(1, 9)])
    spread = np.sqrt(chroma.var(axis=0, ddof=1).sum(-1))
    (record,) = (one for one in records() if one["output"] == "grey.png")
    assert record["uncertainty"] == pytest.approx(spread.mean(), rel=0.02)
    with Image.open("out/grey-uncertainty.png") as image:
        assert image.size[0] >= 60 and image.size[1] > 44
        shown = np.asarray(image)[:44, :60].astype(float)
    assert np.abs(shown / 223 * SCALE_TOP - spread.clip(0, SCALE_TOP)).mean() < 0.5


def test_consensus(run) -> None:
    options = ("--variants", "4", "--intensity", "0.3")
    assert run("grey.png", "-o", "all.png", *options).exit_code == 0
    assert run("grey.png", "-o", "mean.png", *options, "--consensus", "mean").exit_code == 0
    assert run("grey.png", "-o", "medoid.png", *options, "--consensus", "medoid").exit_code == 0
    assert Path("medoid.png").read_bytes() == Path("all-1.png").read_bytes()
    mean = np.mean([lab(f"all-{number}.png")[..., 1:] for number in range(1, 5)], axis=0)
    assert np.abs(lab("mean.png")[..., 1:] - mean).mean() < 0.5
    assert describe(Path("mean.png"))["colorized:Consensus"] == "mean of 4 variants"
    assert not list(Path().glob("me*-*"))


def test_pages_of_a_tiff_keep_one_seed_a_file(run) -> None:
    with tifffile.TiffWriter("a.tif") as writer:
        for page in (skimage_data.camera()[:90, :120], skimage_data.camera()[200:300, 50:130]):
            writer.write(page, photometric="minisblack")
    assert run("a.tif", "-o", "b.tif", "--variants", "2").exit_code == 0
    for number in (1, 2):
        seed = seed_of(f"b-{number}.tif")
        assert run("a.tif", "-o", "again.tif", "--seed", seed, "--overwrite").exit_code == 0
        assert Path("again.tif").read_bytes() == Path(f"b-{number}.tif").read_bytes()
    result = run("a.tif", "-o", "c.tif", "--uncertainty")
    assert result.exit_code == 1 and "has 2 pages" in result.stderr and "--pages first" in result.stderr
    assert run("a.tif", "-o", "c.tif", "--uncertainty", "--pages", "first").exit_code == 0


def test_no_file_is_the_result_of_two_photos_or_replaces_an_input(run) -> None:
    Path("in").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.open("grey.png").save(Path("in") / name)
    assert run("in", "-o", "out", "--uncertainty").exit_code == 0
    assert {"a.jpg", "a-uncertainty.png", "a.png.png", "a.png-uncertainty.png"} == {
        file.name for file in Path("out").iterdir()
    }
    Image.open("grey.png").save("in/a-1.png")
    kept = Path("in/a-1.png").read_bytes()
    result = run("in/a.png", "in/a-1.png", "-o", "in", "--variants", "2", "--overwrite")
    assert result.exit_code == 1 and "in/a-1.png is one of the inputs" in result.stderr
    assert Path("in/a-1.png").read_bytes() == kept and not Path("in/a-2.png").exists()
    assert Path("in/a-1-2.png").exists()
    Path("b-2.png").write_text("precious")
    result = run("grey.png", "-o", "b.png", "--variants", "2")
    assert result.exit_code == 1 and "b-2.png exists; add --overwrite" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--variants", "-1"), "--variants"),
        (("--variants", "1", "--uncertainty"), "--variants 1"),
        (("--variants", "1", "--consensus", "mean"), "--variants 1"),
        (("--consensus", "median"), "'median' is not one of"),
    ],
)
def test_wrong_options_are_explained(run, options: tuple[str, ...], words: str) -> None:
    result = run("grey.png", "-o", "x.png", *options)
    assert result.exit_code == 2 and words in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("x.png").exists()


def test_the_scale_is_viridis() -> None:
    expected = matplotlib.colormaps["viridis"](np.linspace(0, 1, 224))[:, :3] * 255
    assert np.abs(_palette()[:224].astype(float) - expected).max() < 8


def test_map_lies_on_the_photo_and_its_bar_is_the_scale() -> None:
    spread = np.zeros((5, 6), np.float32)
    spread[0, -1], spread[-1, 0] = SCALE_TOP * 2, SCALE_TOP / 2
    for size in ((5, 6), (1007, 1200)):
        image = draw_map(spread, size, variants=8)
        assert image.mode == "P" and image.width >= 420
        rgb = np.asarray(image.convert("RGB"))
        assert np.array_equal(rgb[0, size[1] - 1], _palette()[223]) and np.array_equal(rgb[0, 0], _palette()[0])
        assert np.abs(rgb[size[0] - 1, 0].astype(int) - _palette()[112]).max() <= 2
        bar = np.asarray(image)[size[0] :]
        row = bar[np.array([len(np.unique(one)) for one in bar]).argmax()]
        scale = row[row < 224]
        assert scale[0] == 0 and scale[-1] == 223 and (np.diff(scale.astype(int)) >= 0).all()


@pytest.mark.parametrize("size", [(120, 90), (1, 400), (333, 7), (40, 40)])
def test_a_shrunk_photo_is_the_photo_in_small(size: tuple[int, int]) -> None:
    pipe = make_pipeline()
    gray = np.ascontiguousarray(np.asarray(Image.fromarray(skimage_data.camera()).resize(size[::-1])))
    prepared = pipe.prepare(Lightness(gray), borders=False)
    generator = torch.Generator().manual_seed(0)
    chroma = torch.rand(3, 2, *(edge // 4 for edge in prepared.lightness.shape[-2:]), generator=generator) * 20
    small_photo = shrink_photo(prepared, longest=40)
    assert max(small_photo.photo.height, small_photo.photo.width) <= max(40, min(size))
    whole = torch.cat(list(compose(prepared, chroma[0])), dim=1)[None]
    small = torch.cat(list(compose(small_photo, chroma[0])), dim=1)
    expected = torch.nn.functional.interpolate(whole, small.shape[-2:], mode="area")[0]
    assert (small - expected).abs().mean() < 0.02
    assert measure_uncertainty(prepared, chroma, fit=None, longest=40).shape == small.shape[-2:]
    assert (
        measure_uncertainty(prepared, chroma, fit=None, longest=1500).shape == size
    )  # small photos are measured as they are


def test_calibration_by_independent_oracles() -> None:
    generator = torch.Generator().manual_seed(0)
    stated = torch.rand(400, generator=generator).round(decimals=2)  # with ties
    actual = stated + torch.rand(400, generator=generator)
    expected = scipy.stats.spearmanr(stated, actual).statistic
    assert rank_correlation(stated, actual) == pytest.approx(expected, abs=1e-6)
    pairs = stated.reshape(4, 100), actual.reshape(4, 100)
    each = [scipy.stats.spearmanr(one, other).statistic for one, other in zip(*pairs, strict=True)]
    assert within_photos(*pairs) == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_overconfidence_of_draws_whose_truth_is_known(factor: float) -> None:
    """Places of different true spread; the truth is ``factor`` times as far away as the variants say."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(100_000, 1, generator=generator) * 9 + 1
    several = torch.randn(5, 100_000, 2, generator=generator) * scale
    distance = factor * (1 + 1 / 5) ** 0.5 * torch.randn(100_000, 2, generator=generator) * scale
    stated, squared = several.var(0).sum(-1).sqrt(), distance.square().sum(-1)
    assert overconfidence(stated, squared, variants=5) == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("fit", [(200.0, 4.0), (0.0, 1.0), (150.0, 0.0)])
def test_a_fit_finds_how_far_off_the_truth_is_and_states_it(fit: tuple[float, float]) -> None:
    """The truth of each place is drawn as far away as ``fit`` says of its spread and lightness."""
    generator = torch.Generator().manual_seed(0)
    spread, lightness = (torch.rand(2, 200_000, generator=generator) * torch.tensor([[12.0], [100.0]])).unbind()
    stated = state_uncertainty(spread, lightness, fit)
    expected = fit[0] * 4 * lightness * (100 - lightness) / 1e4 + fit[1] * spread**2
    assert torch.allclose(stated[spread > 0.2] ** 2, expected[spread > 0.2], atol=1e-2)
    assert (state_uncertainty(torch.zeros(3), torch.tensor([10.0, 50.0, 90.0]), fit) == 0).all()  # a known colour
    squared = (torch.randn(2, 200_000, generator=generator) * stated).square().sum(0) / 2 * (1 + 1 / 8)
    found = fit_uncertainty(spread, lightness, squared, variants=8)
    assert found == pytest.approx(fit, rel=0.03, abs=0.5)
    assert overconfidence(state_uncertainty(spread, lightness, found), squared, variants=8) == pytest.approx(
        1, rel=0.02
    )


def test_a_checkpoint_keeps_its_fit_and_states_by_it(tmp_path: Path) -> None:
    gray, pipe = skimage_data.camera()[:64, :64], make_pipeline()
    words = dict(num_variants=3, return_uncertainty=True, output_type="pt")
    plain = pipe(gray, generator=torch.Generator().manual_seed(0), **words)
    digest = pipe.digest()
    pipe.register_to_config(uncertainty_fit=(90.0, 2.0))
    assert pipe.digest() != digest
    pipe.save_pretrained(tmp_path)
    fitted = ColorizationPipeline.from_pretrained(tmp_path)(gray, generator=torch.Generator().manual_seed(0), **words)
    lightness = torch.stack([rgb_to_lab(one)[0] for one in plain.variants[0]]).mean(0)
    expected = state_uncertainty(plain.uncertainty[0], lightness, (90.0, 2.0))
    assert torch.allclose(fitted.uncertainty[0], expected, atol=1e-3) and (expected > plain.uncertainty[0]).any()


def test_an_impossible_fit_is_refused(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path)
    for fit in ((-1.0, 2.0), (1.0,)):
        with pytest.raises(ValueError, match=r"uncertainty_fit must be two numbers of at least 0.*got"):
            ColorizationPipeline.from_pretrained(tmp_path, uncertainty_fit=fit)
