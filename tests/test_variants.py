"""Variants, uncertainty and consensus by their invariants: each variant alone, order, spread against NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from PIL import Image
from skimage import color as skimage_color
from skimage import data as skimage_data

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.batch.settings import build_settings
from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.diffusion.photo import Lightness, seen_chroma
from colorized_pipeline.diffusion.variants import order_by_typicality, spread


def photo(height: int = 40, width: int = 48) -> Image.Image:
    return Image.fromarray(skimage_data.camera()).resize((width, height))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chroma_of(rgb: torch.Tensor) -> torch.Tensor:
    return rgb_to_lab(rgb.double())[1:]


def test_each_variant_is_reproducible_alone(pipe: ColorizationPipeline) -> None:
    photos = [photo(), photo(90, 40), photo().rotate(180)]
    result = pipe(photos, generator=seeded(), num_variants=3, output_type="pt")
    assert [len(one) for one in result.variants] == [len(one) for one in result.seeds] == [3, 3, 3]
    seeds = {seed for one in result.seeds for seed in one}
    assert len(seeds) == 9 and all(isinstance(seed, int) for seed in seeds)
    for gray, variants, own in zip(photos, result.variants, result.seeds, strict=True):
        for variant, seed in zip(variants, own, strict=True):
            alone = pipe(gray, generator=[seeded(seed)], output_type="pt").images[0]
            assert (alone - variant).abs().max() < 1e-3
        assert (variants[0] - variants[1]).abs().max() > 0.01


def test_the_same_generator_gives_the_same_variants_however_batched(plain_pipe: ColorizationPipeline) -> None:
    photos = [photo(), photo().rotate(180), photo(90, 40)]
    first, second = (
        plain_pipe(photos, generator=seeded(5), num_variants=3, batch_size=size, output_type="pt") for size in (1, 20)
    )
    assert first.seeds == second.seeds
    for one, two in zip(first.variants, second.variants, strict=True):
        assert (torch.stack(one) - torch.stack(two)).abs().max() < 1e-3
    more = plain_pipe(photos, generator=seeded(5), num_variants=5, output_type="pt")
    assert all(set(few) < set(many) for few, many in zip(first.seeds, more.seeds, strict=True))


def test_the_photo_and_its_meaning_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipeline(encoder=True)
    batches: dict[str, list[int]] = {"image_encoder": [], "unet": []}
    for name, lengths in batches.items():
        getattr(pipe, name).register_forward_pre_hook(
            lambda _, inputs, lengths=lengths: lengths.append(len(inputs[0]))
        )
    prepared = []
    prepare = pipe.prepare
    monkeypatch.setattr(pipe, "prepare", lambda *words, **more: prepared.append(1) or prepare(*words, **more))
    pipe([photo(), photo().rotate(180)], num_variants=4, num_inference_steps=2)
    assert batches == {"image_encoder": [1, 1], "unet": [8, 8]} and len(prepared) == 2


def test_the_most_typical_comes_first_and_is_the_image(plain_pipe: ColorizationPipeline) -> None:
    gray = np.full((64, 64), 0.5)  # mid-grey: the gamut leaves room
    result = plain_pipe(gray, generator=seeded(), num_variants=6, output_type="pt", intensity=0.2)
    assert result.images[0] is result.variants[0][0]
    chroma = torch.stack([chroma_of(one) for one in result.variants[0]])
    distances = (chroma[:, None] - chroma[None]).norm(dim=2).mean((2, 3)).sum(1)
    assert (distances.diff() > -0.02 * distances[0]).all() and distances[0] < 0.95 * distances[-1]


def test_order_of_known_points() -> None:
    """On a line, the medoid of 0, 1, 2, 10, 3 is 2: a cluster first, the outlier last."""
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 3.0]).reshape(5, 1, 1, 1).expand(5, 2, 3, 3)
    assert order_by_typicality(line) == [2, 1, 4, 0, 3]
    assert order_by_typicality(line[:2]) == [0, 1]  # two are equally typical


def test_padding_has_no_say_in_what_is_typical(plain_pipe: ColorizationPipeline) -> None:
    prepared = plain_pipe.prepare(Lightness(torch.rand(1, 97, 37, generator=seeded()) * 100))
    grid = torch.zeros(2, *(edge // plain_pipe.config.luma_factor for edge in prepared.lightness.shape[-2:]))
    seen = seen_chroma(prepared, grid)
    assert (seen.shape, grid.shape) == ((2, 21, 8), (2, 22, 8))  # 84 of 88 rows of the working photo are the photo's


def test_spread_is_the_standard_deviation_of_chroma() -> None:
    chroma = torch.randn(6, 2, 5, 7, generator=seeded(), dtype=torch.float64) * 9
    expected = np.sqrt(np.var(chroma.numpy(), axis=0, ddof=1).sum(0))
    assert np.allclose(spread(chroma).numpy(), expected)
    draws = torch.randn(40_000, 2, generator=seeded()) * 3  # draws of which one may be the truth, as in the docstring
    truth, several = draws[:10_000], draws[10_000:].reshape(10_000, 3, 2)
    stated = torch.stack([spread(one) for one in several]).square().mean().sqrt().item()
    assert stated == pytest.approx(3 * 2**0.5, rel=0.02)
    for answer, factor in ((several.mean(1), (1 + 1 / 3) ** 0.5), (several[:, 0], 2**0.5)):
        assert (answer - truth).square().sum(1).mean().sqrt().item() == pytest.approx(stated * factor, rel=0.02)
    with pytest.raises(ValueError, match="at least 2"):
        spread(chroma[:1])


def test_the_map_is_of_what_is_shown(plain_pipe: ColorizationPipeline) -> None:
    gray = np.tile(np.linspace(0, 1, 60), (45, 1))
    result = plain_pipe(gray, generator=seeded(), num_variants=4, return_uncertainty=True, output_type="np")
    (uncertainty,) = result.uncertainty
    assert uncertainty.shape == (45, 60) and uncertainty.dtype == np.float32
    chroma = np.stack([skimage_color.rgb2lab(one)[..., 1:] for one in result.variants[0]])
    assert np.abs(uncertainty - np.sqrt(np.var(chroma, axis=0, ddof=1).sum(-1))).max() < 0.05
    assert (
        uncertainty[:, 25:35].mean() > 2 and uncertainty[:, [0, -1]].max() < 1
    )  # black and white have no colours to differ in
    none = plain_pipe(gray, generator=seeded(), intensity=0, return_uncertainty=True, output_type="pt")
    assert none.uncertainty[0].max() < 0.05 and torch.is_tensor(none.uncertainty[0])


def test_consensus(plain_pipe: ColorizationPipeline) -> None:
    gray, options = np.full((40, 48), 0.5), dict(num_variants=4, output_type="pt", intensity=0.2)
    mean, medoid = (plain_pipe(gray, generator=seeded(), consensus=kind, **options) for kind in ("mean", "medoid"))
    chroma = torch.stack([chroma_of(one) for one in mean.variants[0]])
    assert (chroma_of(mean.images[0]) - chroma.mean(0)).abs().max() < 0.05
    assert torch.equal(medoid.images[0], medoid.variants[0][0]) and medoid.seeds == mean.seeds
    assert len(plain_pipe(gray, consensus="mean").variants[0]) == 8


def test_plain_tuples(plain_pipe: ColorizationPipeline) -> None:
    options: dict[str, Any] = dict(return_dict=False, num_inference_steps=1)
    assert len(plain_pipe(photo(), **options)) == 1
    one = plain_pipe(photo(), num_inference_steps=1)
    assert one.variants is None and one.seeds is None and one.uncertainty is None
    images, variants, seeds = plain_pipe(photo(), num_variants=2, **options)
    assert images[0] is variants[0][0] and len(seeds[0]) == 2 and images[0].size == (48, 40)
    *_, uncertainty = plain_pipe(photo(), return_uncertainty=True, **options)
    assert uncertainty[0].shape == (40, 48)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_variants": 0}, "num_variants.*0"),
        ({"num_variants": 1.5}, "num_variants.*1.5"),
        ({"num_variants": 1, "return_uncertainty": True}, "num_variants=1.*at least 2"),
        ({"num_variants": 1, "consensus": "mean"}, "num_variants=1.*at least 2"),
        ({"consensus": "median"}, "consensus must be 'mean' or 'medoid', got 'median'"),
    ],
)
def test_bad_arguments_are_named(plain_pipe: ColorizationPipeline, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plain_pipe(photo(), **arguments)


def test_a_regression_has_no_variants(plain_pipe: ColorizationPipeline, tmp_path: Path) -> None:
    plain_pipe.save_pretrained(tmp_path)
    twin = ColorizationPipeline.from_pretrained(tmp_path, objective="regression")
    with pytest.raises(ValueError, match=r"regression.*2 variants"):
        twin(photo(), num_variants=2)


def test_one_step_from_the_mean_of_the_noise_has_no_variants(plain_pipe: ColorizationPipeline) -> None:
    plain_pipe.register_to_config(initial_noise=0.0)
    one, other = (plain_pipe(photo(), generator=seeded(seed), num_inference_steps=1).images[0] for seed in (0, 1))
    assert one.tobytes() == other.tobytes()
    with pytest.raises(ValueError, match=r"3 variants in 1 step would be equal.*--steps"):
        plain_pipe(photo(), num_variants=3, num_inference_steps=1)
    with pytest.raises(ValueError, match="8 variants in 1 step"):
        build_settings(plain_pipe, checkpoint="", steps=1, uncertainty=True)
    first, second = plain_pipe(photo(), num_variants=2, num_inference_steps=2).variants[0]
    assert first.tobytes() != second.tobytes()
