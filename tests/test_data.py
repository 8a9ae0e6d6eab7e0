"""Sources agree with one another; every draw is a pure function; bad photos are skipped and named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import colourful, make_folder, make_kaggle_arrays, make_parquet
from PIL import Image

from colorized_pipeline.diffusion.color import rgb_to_lab
from colorized_pipeline.training import index as index_module
from colorized_pipeline.training.data import (
    ColorizationDataset,
    MixBatches,
    MixedPhotos,
    RunPhotos,
    collate,
    hold_out,
    open_photos,
)
from colorized_pipeline.training.options import DataOptions
from colorized_pipeline.training.sources import LabArrayPhotos, decode_lab8, encode_lab8, open_source


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
    assert [Path(name).name for name in photos.skipped.nearly_gray] == ["grey.png"]
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


VARIED = {"augment": True, "smallest_crop": 0.6, "soft_probability": 0.3, "film_probability": 0.35}


def test_augmentation_is_a_pure_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    first, second = dataset(folder, **VARIED), dataset(folder, **VARIED, cache_bytes=0)
    for epoch in range(12):
        assert torch.equal(first[epoch, 2]["lightness"], second[epoch, 2]["lightness"])
    crops = {first.lab(2, epoch=epoch).numpy().tobytes() for epoch in range(12)}
    assert len(crops) == 12
    other_seed = dataset(folder, augment=True, seed=1)
    assert any(not torch.equal(first.lab(0, e), other_seed.lab(0, e)) for e in range(3))
    plain = dataset(folder)
    assert torch.equal(plain.lab(0, 0), plain.lab(0, 7))


def make_ramp(folder: Path, *, height: int = 40, width: int = 40) -> Path:
    """A picture whose L* and a* rise from left to right, as the Kaggle arrays."""
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    (folder / "l").mkdir(parents=True)
    (folder / "ab" / "ab").mkdir(parents=True)
    np.save(folder / "l" / "gray_scale.npy", ramp[None])
    chroma = np.stack((ramp, np.full_like(ramp, 160)), axis=-1)
    np.save(folder / "ab" / "ab" / "ab1.npy", chroma[None])
    return folder


def test_lightness_and_chroma_are_cut_and_scaled_alike(tmp_path: Path) -> None:
    """Oracle: a picture whose a* follows its lightness, so that any shift, flip or scale between the two shows."""
    photos = dataset(make_ramp(tmp_path / "kaggle"), augment=True, smallest_crop=0.6)
    for epoch in range(12):
        item = photos[epoch, 0]
        expected = torch.nn.functional.avg_pool2d(item["lightness"][None] * 2.55 - 128, 4)[0]
        assert (item["chroma"][:1] - expected)[..., 1:-1].abs().max() < 0.1


def test_crops_cover_all_or_part_of_the_photo(tmp_path: Path) -> None:
    """The ramp's slope over a crop of fixed size says how much of the photo the crop covers."""
    ramp = make_ramp(tmp_path / "kaggle", height=100, width=100)
    for smallest, fewest in ((1.0, 0.95), (0.5, 0.45)):
        photos = dataset(ramp, augment=True, smallest_crop=smallest)
        spans = [np.ptp(photos.lab(0, epoch)[0].numpy()) / 100 for epoch in range(60)]
        assert fewest < min(spans) < smallest + 0.06 and max(spans) > 0.93


def test_soft_photos_lose_detail_of_their_share_and_never_the_chroma(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)[0]
    (tmp_path / "folder").mkdir()
    Image.fromarray(noise).save(tmp_path / "folder" / "noise.png")
    clean = dataset(tmp_path / "folder", augment=True)
    soft = dataset(tmp_path / "folder", augment=True, soft_probability=0.4)
    detail = np.array([[one[epoch, 0]["lightness"].std() for one in (clean, soft)] for epoch in range(200)])
    assert (detail[:, 1] <= detail[:, 0] * 1.05).all()
    assert 0.25 < np.mean(detail[:, 1] < 0.9 * detail[:, 0]) < 0.5
    assert all(torch.equal(clean[epoch, 0]["chroma"], soft[epoch, 0]["chroma"]) for epoch in range(20))


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


Item = tuple[int, int, int]


def batches(start: int, stop: int, *, counts: tuple[int, ...] = (10,), **changes: object) -> list[list[Item]]:
    return list(MixBatches(counts, **{"batch_size": 4, "start": start, "stop": stop, **changes}))  # type: ignore


MIX: dict = {"counts": (10, 7, 3), "weights": (0.6, 0.3, 0.1)}


@pytest.mark.parametrize("mix", [{}, MIX])
def test_batches_from_a_step_equal_batches_skipped_to_it(mix: dict) -> None:
    assert batches(3, 12, **mix) == batches(0, 12, **mix)[3:]
    assert len(MixBatches([10], batch_size=4, start=3, stop=12)) == 9
    assert batches(0, 3, **mix) != batches(0, 3, **mix, seed=1)


@pytest.mark.parametrize("mix", [{}, MIX])
def test_ranks_share_the_batches_out(mix: dict) -> None:
    ranks = [batches(2, 10, world=2, rank=rank, **mix) for rank in range(2)]
    assert [batch for both in zip(*ranks, strict=True) for batch in both] == batches(4, 20, **mix)


def test_sources_come_by_their_weights_each_in_permutations_of_its_own() -> None:
    items = [item for batch in batches(0, 250, **MIX) for item in batch]
    for source, (count, weight) in enumerate(zip(MIX["counts"], MIX["weights"], strict=True)):
        mine = [(epoch, index) for which, epoch, index in items if which == source]
        assert len(mine) == pytest.approx(1000 * weight, abs=3)
        for epoch in range(len(mine) // count):
            assert sorted(index for e, index in mine if e == epoch) == list(range(count))
        spread = [sum(which == source for which, *_ in items[start : start + 50]) for start in range(0, 1000, 50)]
        assert max(spread) - min(spread) <= 3  # evenly, not by luck
    orders = {tuple(index for which, e, index in items if which == 0 and e == epoch) for epoch in range(6)}
    assert len(orders) == 6
    by_count = [item for batch in batches(0, 250, counts=(30, 10)) for item in batch]
    assert sum(which == 0 for which, *_ in by_count) == pytest.approx(750, abs=3)


def test_mixed_photos_of_different_sizes_are_those_of_their_source(tmp_path: Path) -> None:
    main = dataset(make_folder(tmp_path / "main", 3), augment=True)
    small = dataset(make_folder(tmp_path / "small", 2, height=20, width=26), augment=True)
    joined = MixedPhotos([main, small])
    assert len(joined) == 5
    assert torch.equal(joined[0, 4, 2]["chroma"], main[4, 2]["chroma"])
    assert torch.equal(joined[1, 4, 1]["chroma"], small[4, 1]["chroma"])
    assert collate([joined[0, 0, 0], joined[1, 0, 0]])["lightness"].shape == (2, 1, 32, 32)


def test_hold_out_is_a_part_drawn_from_the_seed() -> None:
    held = hold_out(20, 5)
    assert len(held) == 5 and held == sorted(set(held)) and set(held) < set(range(20))
    assert hold_out(20, 5, seed=1) != held
    with pytest.raises(ValueError, match="hold out 20 of 20"):
        hold_out(20, 20)


# ---- Stores: what is kept of a source for the next run


def kept(folder: Path, cache: Path, **changes: object) -> ColorizationDataset:
    return dataset(folder, **{"augment": True, "cache": cache, **changes})


def test_a_store_gives_the_same_photos_without_decoding_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "folder", 5)
    (folder / "text.jpg").write_text("not a photo")
    first = kept(folder, tmp_path / "cache")
    monkeypatch.setattr(index_module, "_read", None)  # what can't be called can't read photos anew
    again = kept(folder, tmp_path / "cache")
    assert again.digest == first.digest and again.kept == first.kept == [0, 1, 2, 3, 4]
    assert str(again.skipped) == str(first.skipped) and "text.jpg" in str(again.skipped)
    in_memory = again.store.load(3)
    assert all(torch.equal(first[2, i]["lightness"], again[2, i]["lightness"]) for i in range(5))
    assert torch.equal(pickle.loads(pickle.dumps(again)).store.load(3), in_memory)


def test_changed_photos_are_read_anew(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    first = kept(folder, tmp_path / "cache")
    Image.fromarray(colourful(77)).save(folder / "002.png")
    second = kept(folder, tmp_path / "cache")
    assert second.digest != first.digest
    assert [torch.equal(first.store.load(i), second.store.load(i)) for i in range(4)] == [True, True, False, True]


def test_the_digest_is_of_the_content_not_of_place_or_time(tmp_path: Path) -> None:
    one = dataset(make_folder(tmp_path / "one", 4))
    assert one.digest == dataset(make_folder(tmp_path / "two", 4)).digest
    assert one.digest != dataset(make_folder(tmp_path / "three", 5)).digest
    assert one.digest != one.without([2]).digest and one.without([2]).kept == [0, 1, 3]


def test_photos_beyond_the_caches_size_are_decoded_at_use(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 5)
    size = 3 * 40 * 48
    whole = kept(folder, tmp_path / "whole")
    part = kept(folder, tmp_path / "part", cache_bytes=2 * size)
    assert whole.store.pixel_bytes == 5 * size and part.store.pixel_bytes == 2 * size
    assert all(torch.equal(whole.store.load(i), part.store.load(i)) for i in range(5))
    assert kept(folder, tmp_path / "part", cache_bytes=9 * size).store.pixel_bytes == 5 * size  # room for more


def test_a_cut_off_store_is_not_taken_and_old_ones_make_room(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = kept(make_folder(tmp_path / "one", 3), cache)
    (store,) = cache.iterdir()
    (store / "index.npz").unlink()
    assert kept(tmp_path / "one", cache).digest == first.digest and (store / "index.npz").is_file()
    second = kept(make_folder(tmp_path / "two", 3), cache)
    index_module.trim_stores(cache, limit_bytes=10**9, used=[])
    assert len(list(cache.iterdir())) == 2
    index_module.trim_stores(cache, limit_bytes=1, used=[second.store])
    (left,) = cache.iterdir()
    assert torch.equal(second.store.load(0), kept(tmp_path / "two", cache).store.load(0)) and left.is_dir()


# ---- The photos of a run


def run_photos(tmp_path: Path, seed: int = 0, **options: object) -> RunPhotos:
    chosen = DataOptions(cache_dir=str(tmp_path / "cache"), **options)  # type: ignore[arg-type]
    return open_photos(chosen, resolution=32, luma_factor=4, seed=seed, progress=False)


def test_photos_are_held_out_from_usable_ones(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 12)
    for number in range(12, 40):
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(folder / f"{number:03}.png")
    for seed in range(6):
        photos = run_photos(tmp_path, seed, train_data=(str(folder),))
        assert len(photos.training["photos"]) == 11 and len(photos.validation["photos"]) == 1
        assert sorted(photos.training["photos"].kept + photos.validation["photos"].kept) == list(range(12))


def test_sources_have_weights_and_validation_of_their_own(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 10), ("more-b", 10), ("v", 5)):
        make_parquet(tmp_path / f"{name}.parquet", count)
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("a", "b", "more-b", "v")}
    sources = {"a": (paths["a"],), "b": (paths["b"], paths["more-b"])}
    photos = run_photos(tmp_path, source=sources, validation_source={"b": (paths["v"],)}, validation_photos=3)
    assert {name: len(one) for name, one in photos.training.items()} == {"a": 18, "b": 20}
    assert {name: len(one) for name, one in photos.validation.items()} == {"a": 2, "b": 3}
    assert photos.weights == pytest.approx({"a": 18 / 38, "b": 20 / 38})
    mixed = run_photos(tmp_path, source=sources, mix={"a": 3.0, "b": 1.0})
    assert mixed.weights == {"a": 0.75, "b": 0.25} and mixed.digests() != photos.digests()


@pytest.mark.parametrize(
    ("colours", "grays", "words"),
    [(0, 0, "holds no photo"), (0, 3, "no usable photo among 3: 3 nearly grey"), (1, 0, "none can be held out")],
)
def test_folders_that_can_not_train_are_refused(tmp_path: Path, colours: int, grays: int, words: str) -> None:
    folder = make_folder(tmp_path / "folder", colours)
    for number in range(grays):
        Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(folder / f"grey-{number}.png")
    with pytest.raises(ValueError, match=words):
        run_photos(tmp_path, train_data=(str(folder),))


def test_collate_stacks(tmp_path: Path) -> None:
    photos = dataset(make_folder(tmp_path / "folder", 2))
    batch = collate([photos[0, 0], photos[0, 1]])
    assert batch["lightness"].shape == (2, 1, 32, 32) and batch["chroma"].shape == (2, 2, 8, 8)
