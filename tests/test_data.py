"""Sources agree with one another; every draw is a pure function; bad photos are skipped and named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from photos import colourful, make_folder, make_kaggle_arrays, make_parquet
from PIL import Image

from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.training.data import (
    ColorizationDataset,
    JoinedDataset,
    LabArrayPhotos,
    StepBatches,
    collate,
    decode_lab8,
    encode_lab8,
    hold_out,
    open_source,
)


def dataset(path: Path, **changes: object) -> ColorizationDataset:
    settings: dict = {"resolution": 32, "luma_factor": 4, "augment": False, **changes}
    return ColorizationDataset(open_source([path]), **settings)


def test_lab8_round_trip() -> None:
    lab = rgb_to_lab(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)))
    again = decode_lab8(encode_lab8(lab))
    assert (again[0] - lab[0]).abs().max() <= 50 / 255 + 1e-4
    assert (again[1:] - lab[1:]).abs().max() <= 0.5 + 1e-4


def test_all_sources_give_the_same_photo(tmp_path: Path) -> None:
    size = {"height": 40, "width": 40}
    folder = dataset(make_folder(tmp_path / "folder", 7, **size))
    parquet = dataset(make_parquet(tmp_path / "photos.parquet", 7, **size))
    arrays = dataset(make_kaggle_arrays(tmp_path / "kaggle", 7))
    assert len(folder) == len(parquet) == len(arrays) == 7
    for index in range(7):
        expected = folder[0, index]
        assert expected["lightness"].shape == (1, 32, 32) and expected["chroma"].shape == (2, 8, 8)
        for other in (parquet, arrays):
            assert all(torch.equal(other[0, index][key], expected[key]) for key in expected)


def test_kaggle_arrays_are_memory_mapped_and_checked(tmp_path: Path) -> None:
    photos = LabArrayPhotos(make_kaggle_arrays(tmp_path / "kaggle", 5))
    assert isinstance(photos._lightness, np.memmap) and all(isinstance(part, np.memmap) for part in photos._chroma)
    assert len(photos) == 5 and photos.name(4).endswith("kaggle[4]")
    expected = encode_lab8(rgb_to_lab(torch.from_numpy(colourful(4, height=40, width=40)).movedim(-1, 0) / 255))
    assert torch.equal(photos.load(4), expected)
    np.save(tmp_path / "kaggle" / "ab" / "ab" / "ab2.npy", np.zeros((1, 30, 40, 2), np.uint8))
    with pytest.raises(ValueError, match=r"ab2\.npy.*30, 40"):
        LabArrayPhotos(tmp_path / "kaggle")


def test_parquet_by_relative_and_absolute_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_parquet(tmp_path / "a-0.parquet", 2)
    make_parquet(tmp_path / "a-1.parquet", 3)
    assert len(open_source([tmp_path / "a-*.parquet"])) == 5
    monkeypatch.chdir(tmp_path)
    assert len(open_source(["a-*.parquet"])) == 5
    assert len(open_source(["a-0.parquet", "a-1.parquet"])) == 5


def test_bad_sources_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "folder", 1)
    make_parquet(tmp_path / "p.parquet", 1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_source([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"x-\*\.parquet"):
        open_source([tmp_path / "x-*.parquet"])
    with pytest.raises(ValueError, match="one folder of images"):
        open_source([tmp_path / "folder", tmp_path / "p.parquet"])
    with pytest.raises(ValueError, match=r"photograph.*'image'"):
        open_source([tmp_path / "p.parquet"], image_column="photograph")


def test_unreadable_and_grey_photos_are_skipped_and_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(folder / "grey.png")
    Image.fromarray(colourful(9)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:300])
    (folder / "text.jpg").write_text("not a photo")
    photos = dataset(folder)
    assert len(photos) == 4
    assert [Path(name).name for name in photos.skipped.nearly_grey] == ["grey.png"]
    unreadable = " ".join(photos.skipped.unreadable)
    assert len(photos.skipped.unreadable) == 2 and "cut.jpg" in unreadable and "text.jpg" in unreadable
    assert "2 unreadable" in str(photos.skipped) and "1 nearly grey" in str(photos.skipped)


def test_no_usable_photo_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(tmp_path / "folder" / "grey.png")
    with pytest.raises(ValueError, match=r"no usable photo.*grey\.png"):
        dataset(tmp_path / "folder")


@pytest.mark.parametrize("size", [(33, 90), (90, 33), (16, 20), (200, 150), (32, 32)])
def test_any_shape_is_cut_to_the_resolution(tmp_path: Path, size: tuple[int, int]) -> None:
    photos = dataset(make_folder(tmp_path / "folder", 1, height=size[0], width=size[1]), augment=True)
    for epoch in range(20):
        item = photos[epoch, 0]
        assert item["lightness"].shape == (1, 32, 32) and item["chroma"].shape == (2, 8, 8)
        assert 0 <= item["lightness"].min() and item["lightness"].max() <= 100


def test_augmentation_is_a_pure_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    first, second = dataset(folder, augment=True), dataset(folder, augment=True, cache_bytes=0)
    assert torch.equal(first[5, 2]["lightness"], second[5, 2]["lightness"])
    crops = {first.lab(2, epoch=epoch).numpy().tobytes() for epoch in range(12)}
    assert len(crops) > 8
    other_seed = dataset(folder, augment=True, seed=1)
    assert any(not torch.equal(first.lab(0, e), other_seed.lab(0, e)) for e in range(3))
    plain = dataset(folder)
    assert torch.equal(plain.lab(0, 0), plain.lab(0, 7))


def test_lightness_and_chroma_are_cut_alike(tmp_path: Path) -> None:
    """Oracle: a picture whose a* follows its lightness, so that any shift or flip between the two shows."""
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))
    (tmp_path / "kaggle" / "l").mkdir(parents=True)
    (tmp_path / "kaggle" / "ab" / "ab").mkdir(parents=True)
    np.save(tmp_path / "kaggle" / "l" / "gray_scale.npy", ramp[None])
    chroma = np.stack((ramp, np.full_like(ramp, 160)), axis=-1)
    np.save(tmp_path / "kaggle" / "ab" / "ab" / "ab1.npy", chroma[None])
    photos = dataset(tmp_path / "kaggle", augment=True)
    for epoch in range(8):
        item = photos[epoch, 0]
        expected = torch.nn.functional.avg_pool2d(item["lightness"][None] * 2.55 - 128, 4)[0]
        assert (item["chroma"][:1] - expected).abs().max() < 0.01


def test_film_changes_lightness_of_its_share_and_never_the_chroma(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    clean, film = dataset(folder, augment=True), dataset(folder, augment=True, film_probability=0.3)
    items = [(epoch, index) for epoch in range(50) for index in range(4)]
    changed = [not torch.equal(clean[item]["lightness"], film[item]["lightness"]) for item in items]
    assert 0.2 < np.mean(changed) < 0.4
    assert all(torch.equal(clean[item]["chroma"], film[item]["chroma"]) for item in items)
    degraded = clean.through_film()
    assert all(torch.equal(degraded[item]["lightness"], degraded[item]["lightness"]) for item in items[:8])
    assert not any(torch.equal(clean[item]["lightness"], degraded[item]["lightness"]) for item in items)
    assert clean.film_probability == 0


def test_resolution_must_fit_the_grid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resolution=30"):
        dataset(make_folder(tmp_path / "folder", 1), resolution=30)


def batches(start: int, stop: int, **changes: float) -> list[list[tuple[int, int]]]:
    return list(StepBatches(10, **{"batch_size": 4, "start": start, "stop": stop, **changes}))


def test_batches_from_a_step_equal_batches_skipped_to_it() -> None:
    assert batches(3, 12) == batches(0, 12)[3:]
    assert len(StepBatches(10, batch_size=4, start=3, stop=12)) == 9
    assert batches(0, 3) != batches(0, 3, seed=1)


def test_ranks_share_each_epoch_out() -> None:
    ranks = [batches(0, 10, world=2, rank=rank) for rank in range(2)]
    items = [item for both in zip(*ranks, strict=True) for batch in both for item in batch]
    assert items == [item for batch in batches(0, 20) for item in batch]
    for epoch in range(8):
        assert sorted(index for e, index in items if e == epoch) == list(range(10))


def test_extra_photos_come_by_their_share_in_permutations_of_their_own() -> None:
    mixed = [item for batch in batches(0, 100, extra=7, extra_share=0.3) for item in batch]
    extra = [(epoch, index - 10) for epoch, index in mixed if index >= 10]
    assert len(extra) == 120
    assert [item for item in mixed if item[1] < 10] == [item for batch in batches(0, 70) for item in batch]
    for epoch in range(120 // 7):
        assert sorted(index for e, index in extra if e == epoch) == list(range(7))
    assert batches(5, 9, extra=7, extra_share=0.3) == batches(0, 9, extra=7, extra_share=0.3)[5:]
    spread = [sum(index >= 10 for _, index in mixed[start : start + 20]) for start in range(0, 400, 20)]
    assert set(spread) == {6}


def test_joined_photos_are_those_of_either(tmp_path: Path) -> None:
    main = dataset(make_folder(tmp_path / "main", 3), augment=True)
    extra = dataset(make_folder(tmp_path / "extra", 2, height=50), augment=True)
    joined = JoinedDataset(main, extra)
    assert len(joined) == 5
    assert torch.equal(joined[4, 2]["chroma"], main[4, 2]["chroma"])
    assert torch.equal(joined[4, 3]["chroma"], extra[4, 0]["chroma"])


def test_hold_out_parts_are_disjoint() -> None:
    kept, held = hold_out(20, 5)
    assert len(held) == 5 and sorted(kept + held) == list(range(20))
    assert hold_out(20, 5, seed=1)[1] != held
    with pytest.raises(ValueError, match="hold out 20 of 20"):
        hold_out(20, 20)


def test_collate_stacks(tmp_path: Path) -> None:
    photos = dataset(make_folder(tmp_path / "folder", 2))
    batch = collate([photos[0, 0], photos[0, 1]])
    assert batch["lightness"].shape == (2, 1, 32, 32) and batch["chroma"].shape == (2, 2, 8, 8)
