"""What the web page's buttons do, without a browser: each photo is read and shown to the encoder once a request."""

import sys
import zipfile
from pathlib import Path

import pytest
from conftest import make_pipeline
from PIL import Image
from skimage import data as skimage_data
from test_batch import counting_rows

gradio = pytest.importorskip("gradio")

from colorized_pipeline.app import Worker  # noqa: E402
from colorized_pipeline.options import PageLimits  # noqa: E402

_OPENED: list[str] = []  # files, by Python's own audit of this process
sys.addaudithook(lambda event, given: _OPENED.append(str(given[0])) if event == "open" else None)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(skimage_data.camera()).resize((60, 44)).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def no_progress(*_: object, **__: object) -> None:
    """In place of gradio's bar, which needs a visitor."""


def test_a_request_reads_and_encodes_its_photo_once(photo: Path) -> None:
    pipe, opened = make_pipeline(encoder=True), []
    for variants in (1, 3):
        worker, steps = Worker(pipe, PageLimits()), 2
        _OPENED.clear()
        with counting_rows(pipe.unet) as rows, counting_rows(pipe.image_encoder) as encoded:
            asked = worker.colorize(
                str(photo), None, None, "", None, None, steps, 0, 1.0, variants, progress=no_progress
            )
            shown = []
            for job, _, _, compared, *_ in asked:
                shown.append((len(job.files), sum(rows)))
                assert isinstance(compared, str) == (len(shown) == 1)  # later ones leave what a visitor has chosen
        assert shown == [(number, steps * number) for number in range(1, variants + 1)]  # each as soon as it is there
        assert encoded == [1]
        opened.append(_OPENED.count(str(photo)))
        assert [file.stem for file in job.files] == [f"grey-colour-{seed}" for seed in range(variants)]
        assert all(file.is_file() for file in job.files)
    assert opened[0] == opened[1]


def test_a_file_given_twice_is_done_twice(photo: Path) -> None:
    report, _, folder = Worker(make_pipeline(), PageLimits()).colorize_all(
        [str(photo), str(photo)], 2, 0, 1.0, progress=no_progress
    )
    assert "2 of 2 photos colorized" in report
    with zipfile.ZipFile(Path(folder.name) / "colorized.zip") as archive:
        assert archive.namelist() == ["grey.png", "grey-2.png"]
        assert archive.read("grey.png") == archive.read("grey-2.png")


def test_errors_name_the_photo_without_the_server_s_folders(photo: Path) -> None:
    bad = photo.with_name("two  spaces.png")
    bad.write_text("not a photo")
    report, *_ = Worker(make_pipeline(), PageLimits()).colorize_all([str(bad)], 2, 0, 1.0, progress=no_progress)
    assert "Error: two  spaces.png: can&#x27;t be read as a photo" in report and str(photo.parent) not in report


def test_all_pages_of_a_photo_count_for_the_limit(photo: Path) -> None:
    page = Image.open(photo)
    page.save(photo.with_name("pages.tif"), save_all=True, append_images=[page] * 4)  # 13,200 pixels, each 2,640
    worker, files = Worker(make_pipeline(), PageLimits(max_megapixels=0.012)), ["pages.tif", photo.name]
    paths = [str(photo.with_name(name)) for name in files]
    report, *_ = worker.colorize_all(paths, 2, 0, 1.0, progress=no_progress)
    assert "1 of 2 photos colorized" in report and "pages.tif: its 5 pages have 0.0132 megapixels" in report
    with pytest.raises(gradio.Error, match=r"pages\.tif: its 5 pages"):
        next(worker.colorize(paths[0], None, None, "", None, None, 2, 0, 1.0, 1, progress=no_progress))
