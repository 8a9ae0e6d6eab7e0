"""Folders as they are on real shares: companions, trash, thumbnails, raw files, names that meet."""

from pathlib import Path

import pytest

from colorized_pipeline.archive.files import MANIFEST_NAME, find_photos, plan_jobs, result_files


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def names(folder: Path, **options) -> list[str]:
    return [name.as_posix() for _, name in find_photos([folder], **options).photos]


SYSTEM = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/x.jpg", ".thumbnails/x.jpg", ".picasaoriginals/a.jpg"]
SYSTEM += ["#recycle/b.jpg", "System Volume Information/c.jpg", "__MACOSX/a.jpg", ".Trashes/501/d.jpg"]


@pytest.mark.parametrize("recursive", [True, False])
def test_system_files_are_passed_over_with_one_note(tmp_path: Path, recursive: bool) -> None:
    found = find_photos([make(tmp_path, "a.jpg", "._a.jpg", ".hidden.png", *SYSTEM)], recursive=recursive)
    assert [name.name for _, name in found.photos] == ["a.jpg"] and len(found.notes) == 1
    assert found.notes[0].startswith(f"{10 if recursive else 2} hidden and system files and folders are passed over")
    assert "._*" in found.notes[0]
    (explicit,) = find_photos([tmp_path / ".hidden.png"]).photos  # who names it wants it
    assert explicit[0].name == ".hidden.png"


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    files = ["a.jpg", "1.NEF", "2.nef", "3.dng", "4.psd", "5.pdf", "6.jxl", "notes.txt"]
    (note,) = find_photos([make(tmp_path, *files)]).notes
    assert "1 .dng, 1 .jxl, 2 .nef, 1 .pdf, 1 .psd" in note and "txt" not in note
    with pytest.raises(ValueError, match=r"no photo in this folder.*1 \.cr2"):
        find_photos([make(tmp_path / "raw", "a.cr2")])


def test_outputs_inside_the_input_are_no_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "colour/a.jpg", "old/a.jpg", f"old/{MANIFEST_NAME}.jsonl", "box/b.jpg")
    found = find_photos([tmp_path], recursive=True, output=tmp_path / "colour")
    assert [name.as_posix() for _, name in found.photos] == ["a.jpg", "box/b.jpg"]
    assert len(found.notes) == 1 and "old: the output of another run" in found.notes[0]
    assert names(tmp_path / "old", recursive=True) == ["a.jpg"]


def planned(folder: Path, **options) -> dict[str, str]:
    jobs = plan_jobs(
        find_photos([folder], recursive=True), folder.parent / "out", inputs=[folder], recursive=True, **options
    )
    assert not any(job.refusal for job in jobs)
    targets = [file for job in jobs for file in options.get("results", lambda target: [target])(job.target)]
    assert len(set(targets)) == len(targets)
    return {job.name.as_posix(): job.target.name for job in jobs}


def test_names_that_meet_both_get_a_result(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "b.gif", "b.png", "IMG.heic", "IMG.png", "c.gif", "c.heic", "d.gif")
    assert planned(folder) == {
        "b.gif": "b.gif.png",
        "b.png": "b.png",
        "IMG.heic": "IMG.heic.png",
        "IMG.png": "IMG.png",
        "c.gif": "c.gif.png",
        "c.heic": "c.heic.png",
        "d.gif": "d.png",
    }
    folder = make(tmp_path / "other", "a.jpeg", "a.jpg", "a.tif", "b.jpg")
    assert planned(folder, suffix=".png") == {
        "a.jpeg": "a.jpeg.png",
        "a.jpg": "a.jpg.png",
        "a.tif": "a.tif.png",
        "b.jpg": "b.png",
    }


def test_extras_that_meet(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "a.jpg", "a.tif")
    found = planned(folder, results=lambda target: result_files(target, copies=2))
    assert found == {"a.jpg": "a.jpg", "a.tif": "a.tif.tif"}


def test_one_file_under_two_spellings_is_one_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg")
    monkeypatch.chdir(tmp_path)
    found = find_photos([Path("a.jpg"), Path("./a.jpg"), tmp_path / "a.jpg", Path()])
    assert len(found.photos) == 1
