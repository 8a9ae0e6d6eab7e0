"""CIELAB against scikit-image, gamut mapping and chroma grids by their invariants."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from skimage import color as oracle

from colorized_pipeline.diffusion.color import (
    downsample_chroma,
    fit_gamut,
    gray_to_lightness,
    lab_to_displayable_rgb,
    lab_to_rgb,
    lab_to_rgb8,
    lightness_to_gray,
    linear_to_srgb,
    rgb_to_gray,
    rgb_to_lab,
    srgb_to_linear,
    upsample_columns,
    upsample_rows,
)


def random_rgb(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rgb = torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=dtype)] * 3)  # black, white, primaries, ...
    rgb.reshape(*shape[:-2], -1)[..., :8] = corners.T
    return rgb


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_rgb_to_lab_equals_scikit_image(dtype: torch.dtype, tolerance: float) -> None:
    rgb = random_rgb(3, 40, 50)
    expected = torch.from_numpy(oracle.rgb2lab(rgb.movedim(0, -1).numpy())).movedim(-1, 0)
    assert (rgb_to_lab(rgb.to(dtype)).double() - expected).abs().max() < tolerance


def test_lab_to_rgb_equals_scikit_image_inside_srgb() -> None:
    lab = rgb_to_lab(random_rgb(3, 40, 50))
    expected = torch.from_numpy(oracle.lab2rgb(lab.movedim(0, -1).numpy())).movedim(-1, 0)
    # scikit-image's matrices for the two directions are each other's inverse to about 1e-6 only
    assert (lab_to_rgb(lab) - expected).abs().max() < 1e-5


def test_conversions_are_inverse() -> None:
    rgb = random_rgb(2, 3, 20, 30)
    assert (lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs().max() < 1e-4  # CIE's rounded constants leave a step of this size
    ramp = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (linear_to_srgb(srgb_to_linear(ramp)) - ramp).abs().max() < 1e-6
    assert (lightness_to_gray(gray_to_lightness(ramp)) - ramp).abs().max() < 1e-4


def test_gray_to_lightness_is_the_lightness_of_a_neutral() -> None:
    ramp = torch.linspace(0, 1, 256, dtype=torch.float64).reshape(1, 16, 16)
    lab = rgb_to_lab(ramp.expand(3, -1, -1))
    assert (lab[:1] - gray_to_lightness(ramp)).abs().max() < 1e-9
    assert lab[1:].abs().max() < 1e-2


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4)])
def test_wrong_channel_count_is_named(shape: tuple[int, ...]) -> None:
    for function, name in ((rgb_to_lab, "rgb"), (lab_to_rgb, "lab")):
        with pytest.raises(ValueError, match=name):
            function(torch.zeros(shape))


def wild_lab() -> torch.Tensor:
    """Colours of which most lie far outside sRGB, and the extremes of lightness."""
    generator = torch.Generator().manual_seed(3)
    lightness = torch.rand(1, 64, 64, generator=generator, dtype=torch.float64) * 100
    lightness.view(-1)[:20], lightness.view(-1)[20:40] = 0.0, 100.0
    return torch.cat((lightness, torch.randn(2, 64, 64, generator=generator, dtype=torch.float64) * 60))


def test_fit_gamut_keeps_lightness_and_hue() -> None:
    lab = wild_lab()
    fitted = fit_gamut(lab)
    assert torch.equal(fitted[0], lab[0])
    rgb = lab_to_rgb(fitted)
    assert rgb.min() > -2e-4 and rgb.max() < 1 + 2e-4
    # Same direction in the (a*, b*) plane, never more chroma
    cross = fitted[1] * lab[2] - fitted[2] * lab[1]
    assert cross.abs().max() < 1e-6
    assert (fitted[1:].norm(dim=0) <= lab[1:].norm(dim=0) + 1e-9).all()


def test_fit_gamut_takes_no_more_chroma_than_needed() -> None:
    lab = wild_lab()
    fitted = fit_gamut(lab)
    reduced = fitted[1:].norm(dim=0) < lab[1:].norm(dim=0) - 1e-3
    assert reduced.float().mean() > 0.3
    more = torch.cat((fitted[:1], fitted[1:] * 1.01 + 0.02 * lab[1:] / lab[1:].norm(dim=0)))
    rgb = lab_to_rgb(more)
    outside = ((rgb < -1e-4) | (rgb > 1 + 1e-4)).any(dim=0)
    assert outside[reduced].all()


def test_fit_gamut_leaves_displayable_colours_alone() -> None:
    lab = rgb_to_lab(random_rgb(3, 30, 30, dtype=torch.float32))
    lab[0].clamp_(0, 100)
    assert torch.equal(fit_gamut(lab), lab)


def test_displayable_rgb_is_the_fitted_colour() -> None:
    generator = torch.Generator().manual_seed(2)
    lab = torch.rand(3, 50, 60, generator=generator) * torch.tensor([120.0, 160.0, 160.0]).reshape(3, 1, 1)
    lab -= torch.tensor([10.0, 80.0, 80.0]).reshape(3, 1, 1)
    expected = lab_to_rgb(fit_gamut(lab)).clamp(0, 1)
    assert (lab_to_displayable_rgb(lab) - expected).abs().max() < 1e-6


def exact_codes(lab: torch.Tensor) -> torch.Tensor:
    return (lab_to_rgb(fit_gamut(lab.double())).clamp(0, 1) * 255).movedim(0, -1)


def codes_of(lab: torch.Tensor, rows: int = 50) -> torch.Tensor:
    return lab_to_rgb8(iter(lab.split(rows, dim=1)), *lab.shape[1:])


def test_8_bit_codes_are_the_exact_ones_but_at_rounding_boundaries() -> None:
    """Every 8-bit grey with chroma that sRGB has, as most pixels of a photo are."""
    lab = rgb_to_lab(random_rgb(3, 600, 700)).float()
    exact, found = exact_codes(lab), codes_of(lab)[..., :3]
    assert found.dtype == torch.uint8 and found.shape == (600, 700, 3)
    differs = found.int() != exact.round().int()
    assert (found.int() - exact.round().int()).abs().max() <= 1
    assert differs.float().mean() < 0.005
    assert (found.double() - exact).abs()[differs].max() < 0.56  # of half a code: it is a boundary


def test_8_bit_codes_of_colours_that_srgb_lacks() -> None:
    generator = torch.Generator().manual_seed(4)
    lightness = (torch.rand(1, 400, 400, generator=generator) * 110 - 5).clamp(0, 100)
    lab = torch.cat((lightness, torch.randn(2, 400, 400, generator=generator) * 45))
    exact, found = exact_codes(lab), codes_of(lab)[..., :3]
    # Where the largest chroma has an edge between two hues of the table a little less of it is found
    assert ((found.double() - exact).abs() > 1).double().mean() < 0.001
    kept = rgb_to_lab(found.movedim(-1, 0).double() / 255)
    assert (kept[0] - lab[0]).abs().max() < 0.5 and (kept[0] - lab[0]).abs().mean() < 0.08


def test_8_bit_codes_in_several_threads() -> None:
    """The scratch memory is each thread's own, and results aren't in it; parts of any number make the whole."""
    generator = torch.Generator().manual_seed(5)
    labs = [
        torch.rand(3, rows, 900, generator=generator) * torch.tensor([100.0, 120.0, 120.0]).reshape(3, 1, 1)
        - torch.tensor([0.0, 60.0, 60.0]).reshape(3, 1, 1)
        for rows in (7, 90, 300, 20, 150) * 3
    ]
    alone = [codes_of(lab) for lab in labs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(codes_of, labs))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    for lab, codes in zip(labs, alone, strict=True):
        for row in (0, -1):
            assert torch.equal(codes_of(lab[:, row].unsqueeze(1)), codes[row].unsqueeze(0))


def test_8_bit_greys_stay_as_they_are() -> None:
    codes = torch.arange(256)
    lightness = gray_to_lightness(codes / 255).reshape(1, 16, 16)
    found = codes_of(torch.cat((lightness, torch.zeros(2, 16, 16))))
    assert torch.equal(found[..., :3].reshape(256, 3).long(), codes[:, None].expand(-1, 3))
    with pytest.raises(ValueError, match="lab must have shape"):
        codes_of(lightness)


def test_rgb_to_gray_is_the_grey_of_the_same_lightness() -> None:
    rgb = random_rgb(3, 20, 30)
    assert torch.allclose(gray_to_lightness(rgb_to_gray(rgb)), rgb_to_lab(rgb)[:1], atol=1e-3)


def test_fit_gamut_works_on_batches() -> None:
    batch = torch.stack((wild_lab(), rgb_to_lab(random_rgb(3, 64, 64))))
    assert torch.allclose(fit_gamut(batch)[0], fit_gamut(batch[0]))


def test_downsample_chroma_is_the_mean_of_each_cell() -> None:
    chroma = torch.randn(2, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    expected = chroma.reshape(2, 2, 3, 4, 2, 4).mean(dim=(3, 5))
    assert torch.allclose(downsample_chroma(chroma, 4), expected, atol=1e-6)
    with pytest.raises(ValueError, match="factor=5"):
        downsample_chroma(chroma, 5)


@pytest.mark.parametrize("size", [(32, 48), (45, 77), (3, 5)])
def test_upsampling_equals_interpolate_in_any_strips(size: tuple[int, int]) -> None:
    chroma = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    height, width = size
    expected = F.interpolate(chroma[None], size, mode="bilinear", align_corners=False)[0]
    columns = upsample_columns(chroma, width, width / 9)
    whole = upsample_rows(columns, 0, height, height / 6)
    assert (whole - expected).abs().max() < 1e-5
    given = torch.empty(2, height, width)
    assert upsample_rows(columns, 0, height, height / 6, out=given) is given
    assert (given - whole).abs().max() < 1e-6
    strips = [upsample_rows(columns, top, min(top + 7, height), height / 6) for top in range(0, height, 7)]
    assert (torch.cat(strips, dim=1) - whole).abs().max() < 1e-5
