"""Chroma to what the UNet diffuses and back: plain, or with the details of a grid twice as fine."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from colorized_pipeline import ColorizationPipeline
from colorized_pipeline.diffusion.color import chroma_to_latents, latents_to_chroma
from colorized_pipeline.diffusion.photo import condition_channels

DETAIL_SCALES = (2.0, 0.7)


@pytest.fixture(scope="module")
def fine_pipe() -> ColorizationPipeline:
    """Untrained, of 4 x 4 lightness pixels a cell and a chroma grid of 2 x 2 pixels a cell."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=condition_channels(4) + 8, out_channels=8, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing",
        rescale_betas_zero_snr=True, clip_sample=False,
    )  # fmt: skip
    pipe = ColorizationPipeline(unet, scheduler, detail_scales=DETAIL_SCALES, working_size=32, default_steps=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("detail_scales", [None, DETAIL_SCALES])
def test_there_and_back(detail_scales: tuple[float, float] | None) -> None:
    chroma = torch.randn(3, 2, 8, 12) * 20
    latents = chroma_to_latents(chroma, 40.0, detail_scales)
    assert latents.shape == ((3, 2, 8, 12) if detail_scales is None else (3, 8, 4, 6))
    torch.testing.assert_close(latents_to_chroma(latents, 40.0, detail_scales), chroma, atol=1e-4, rtol=1e-5)


def test_the_first_two_channels_are_the_means() -> None:
    chroma = torch.randn(1, 2, 8, 8)
    means = torch.nn.functional.avg_pool2d(chroma, 2) / 40
    torch.testing.assert_close(chroma_to_latents(chroma, 40.0, DETAIL_SCALES)[:, :2], means)


def test_flat_cells_have_no_detail_and_edges_have_their_own_channel() -> None:
    chroma = torch.zeros(1, 2, 2, 2)
    chroma[0, 0, 0] = 3.0  # a* of the upper row: mean 1.5, and 1.5 above it
    assert chroma_to_latents(chroma, 10.0, (1.0, 1.0)).flatten().tolist() == pytest.approx(
        [0.15, 0, 1.5, 0, 0, 0, 0, 0]
    )
    assert chroma_to_latents(chroma.mT, 10.0, (1.0, 1.0)).flatten().tolist() == pytest.approx(
        [0.15, 0, 0, 0, 1.5, 0, 0, 0]
    )


def test_the_grid_is_twice_as_fine(fine_pipe: ColorizationPipeline) -> None:
    photo = fine_pipe.prepare(torch.rand(1, 40, 56))
    chroma = fine_pipe.draw(photo, generators=[torch.Generator().manual_seed(0)])
    assert chroma.shape[-2:] == tuple(edge // 2 for edge in photo.lightness.shape[-2:])
    assert photo.cell == pytest.approx((40 / 32 * 2, 56 / 45 * 2))


def test_hints_hold_and_a_reference_is_taken(fine_pipe: ColorizationPipeline) -> None:
    gray = torch.full((1, 64, 64), 0.5)
    hinted = fine_pipe(
        gray, generator=torch.Generator().manual_seed(0), hints=[((16, 16, 48, 48), (50.0, 30.0, 20.0))],
        output_type="pt",
    )  # fmt: skip
    plain = fine_pipe(gray, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert (hinted.images[0][:, 32, 32] - plain.images[0][:, 32, 32]).abs().max() > 0.02
    reference = torch.rand(3, 64, 64)
    fine_pipe(gray, generator=torch.Generator().manual_seed(0), reference=reference, output_type="pt")


def test_channels_that_dont_fit_are_named(fine_pipe: ColorizationPipeline) -> None:
    with pytest.raises(ValueError, match=r"out_channels=2 with detail_scales=None, got 8"):
        ColorizationPipeline(fine_pipe.unet, fine_pipe.scheduler)
