"""``colorized serve`` as programs meet it: a process of its own, real sockets, a tiny real checkpoint."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import make_pipeline
from photos import colourful
from PIL import Image
from servers import ROOT, running
from typer.testing import CliRunner

from colorized_pipeline import EXAMPLES
from colorized_pipeline.cli import app as command_line
from colorized_pipeline.options import ServerLimits

pytest.importorskip("fastapi_offline")
CAMERA = next(file for file in EXAMPLES if file.stem == "camera")
SMALL_LIMITS = ("--max-megapixels", "0.5", "--max-mb", "4", "--max-photos", "3", "--jobs", "2", "--rate", "10000")


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server's address and the folder of its files."""
    folder = tmp_path_factory.mktemp("server")
    with running("serve", folder, "--checkpoint", str(checkpoint), *SMALL_LIMITS) as (url, _):
        yield url, folder


@pytest.fixture
def client(server: tuple[str, Path]) -> Iterator[httpx.Client]:
    """Afterwards nothing of its requests is left on the disk."""
    url, folder = server
    with httpx.Client(base_url=url, timeout=60) as opened:
        yield opened
        for job in JOBS:
            opened.delete(f"/jobs/{job}")
        JOBS.clear()
        wait_until(lambda: opened.get("/health").json()["requests"] == 0)
    wait_until(lambda: not [file for file in folder.glob("colorized-serve-*/**/*") if file.is_file()], seconds=5)


JOBS: list[str] = []
PART = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'


def wait_until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_job(client: httpx.Client, photos: dict[str, bytes], **wishes: Any) -> str:
    files = [("photos", (name, content)) for name, content in photos.items()]
    answer = client.post("/jobs", files=files, data=wishes)
    assert answer.status_code == 202, answer.text
    JOBS.append(answer.json()["id"])
    return JOBS[-1]


def png(width: int = 60, height: int = 40) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(stream, "PNG")
    return stream.getvalue()


def blank_png(edge: int) -> bytes:
    """A small file of very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = edge.to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((edge + 1) * edge), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def from_the_command(photo: Path, *options: str, checkpoint: Path, folder: Path) -> bytes:
    target = folder / f"by-command{photo.suffix}"
    words = ["colorize", str(photo), "-o", str(target), "--checkpoint", str(checkpoint), "--overwrite", *options]
    assert CliRunner().invoke(command_line, words).exit_code == 0
    return target.read_bytes()


def test_a_photo_gives_what_the_command_gives(client: httpx.Client, checkpoint: Path, tmp_path: Path) -> None:
    deep = tmp_path / "Žofie 1.tif"
    Image.fromarray(np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (90, 1))).save(deep)
    Image.fromarray(colourful(1)).save(tmp_path / "today.png")
    reference = tmp_path / "today.png"
    for photo, wishes in ((CAMERA, {"seed": 7, "borders": False}), (deep, {"steps": 3, "mark": True})):
        answer = client.post("/colorize", files={"photo": (photo.name, photo.read_bytes())}, data=wishes)
        assert answer.status_code == 200, answer.text
        options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in wishes.items()]
        options = ["--no-borders" if option == "--borders=False" else option for option in options]
        assert answer.content == from_the_command(photo, *options, checkpoint=checkpoint, folder=tmp_path)
    assert answer.headers["content-type"] == "image/tiff"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C5%BDofie%201.tif"
    files = {"photo": CAMERA.open("rb"), "reference": reference.open("rb")}
    answer = client.post("/colorize", files=files, data={"hint": ["120,80,25:#8a3b2e", "200,200,20:red"]})
    options = ("--hint", "120,80,25:#8a3b2e", "--hint", "200,200,20:red", "--reference", str(reference))
    assert answer.content == from_the_command(CAMERA, *options, checkpoint=checkpoint, folder=tmp_path)


def test_several_files_come_as_a_zip(client: httpx.Client) -> None:
    answer = client.post("/colorize", files={"photo": ("a.png", png())}, data={"variants": 2, "uncertainty": True})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["a-1.png", "a-2.png", "a-variants.jpg", "a-uncertainty.png"]
        assert archive.testzip() is None
    assert answer.headers["content-type"] == "application/zip"


def test_a_photo_s_name_is_a_name(client: httpx.Client) -> None:
    for sent, got in (
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\scans\\a.png", "a.png"),
        ("/tmp/a\n\x00b.png", "a%250A%2500b.png"),  # httpx sends such characters as %XX
        ("..", "photo.png"),
        (".png", "png.png"),
        ("-", "-.png"),
        ("no ending", "no%20ending.png"),
        ("ž" * 300 + ".png", "%C5%BE" * 75 + ".png"),
    ):
        answer = client.post("/colorize", files={"photo": (sent, png())}, data={"steps": 1})
        assert answer.status_code == 200, (sent, answer.text)
        assert answer.headers["content-disposition"].endswith(f"''{got}"), sent
    for path in ("/jobs/..%2f..%2fetc", "/static-offline-docs/..%2f..%2f..%2fpyproject.toml", "/../etc/passwd"):
        assert client.get(path).status_code == 404
    job = start_job(client, {"a.png": png()})
    wait_until(lambda: client.get(f"/jobs/{job}").json()["state"] == "done")
    for name in ("..%2fin%2f1%2fa.png", "%2fetc%2fpasswd", "b.png"):
        assert client.get(f"/jobs/{job}/results/{name}").status_code == 404
    assert client.get(f"/jobs/{job}/results/a.png").status_code == 200


@pytest.mark.parametrize(
    ("content", "wishes", "status", "message"),
    [
        (b"not a photo", {}, 422, "a.png: can't be read as a photo"),
        (b"", {}, 422, "a.png: the file is empty"),
        (blank_png(30_000), {}, 413, "a.png: 30000 x 30000 pixels are more than 0.5 megapixels"),
        (png()[:-40], {}, 422, "a.png: can't be read as a photo"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, 422, "a.png: it is a PostScript page, not a photo"),
        (png(), {"steps": 0}, 422, "steps=0: Input should be greater than or equal to 1"),
        (png(), {"steps": "1" * 9999}, 422, f"steps={'1' * 50}: "),
        (png(), {"stepps": 3}, 422, "stepps: no such option"),
        (png(), {"steps": [2, 3]}, 422, "steps: given 2 times; give it once"),
        (
            png(),
            {"intensity": "nan", "mark": "x"},
            422,
            "intensity=nan: Input should be less than or equal to 10; mark=x",
        ),
        (png(), {"reference": "today.png"}, 422, "reference: give a file with a name"),
        (png(), {"variants": 2, "consensus": "median"}, 422, "'mean' or 'medoid'"),
        (png(), {"format": "exe"}, 422, "format"),
        (png(), {"hint": "here:red"}, 422, "here:red"),
        (png(), {"hint": "500,500,20:red"}, 422, "a.png: hints[0]"),
    ],
)
def test_what_can_not_be_done_is_explained(
    client: httpx.Client, content: bytes, wishes: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/colorize", files={"photo": ("a.png", content)}, data=wishes)
    assert answer.status_code == status and message in answer.json()["detail"], answer.text
    assert "colorized-serve" not in answer.text and "/tmp" not in answer.text


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "photo is missing: send a form"),
        ([("photo", "text")], "photo: give a file with a name, as curl -F photo=@FILE does"),
        ([("photo", ("a.png", png())), ("steps", ("2.txt", b"2"))], "steps: give text, not a file"),
        ([("photo", ("a.png", png()))] * 2, "photo: given 2 times; many photos go to /jobs"),
    ],
)
def test_fields_that_are_missing_or_of_another_kind(client: httpx.Client, parts: list[Any], message: str) -> None:
    files = [(name, value if isinstance(value, tuple) else (None, value)) for name, value in parts]
    answer = client.post("/colorize", files=files or None)
    assert answer.status_code == 422 and answer.json()["detail"].startswith(message), answer.text


def test_bombs_are_refused(client: httpx.Client, tmp_path: Path) -> None:
    page = Image.new("L", (600, 500), 99)
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page] * 40, compression="tiff_deflate")
    files = {"photo": (tmp_path / "pages.tif").open("rb")}
    answer = client.post("/colorize", files=files)
    assert answer.status_code == 413 and "its 41 pages have 12.3 megapixels" in answer.text
    files = {"photo": ("a.png", png()), "reference": ("b.png", blank_png(20_000))}
    assert client.post("/colorize", files=files).status_code == 422
    assert client.post("/colorize", files={"photo": ("a.png", bytes(5_000_000))}).status_code == 413
    parts = (bytes(100_000) for _ in range(60))  # of unknown length
    answer = client.post("/colorize", content=parts, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code in (400, 413)
    many = [("photos", (f"{number}.png", png())) for number in range(4)]
    assert client.post("/jobs", files=many).status_code == 413


def test_a_job_tells_its_progress_and_gives_its_results(client: httpx.Client) -> None:
    job = start_job(client, {"a.png": png(), "bad.jpg": b"no photo", "sub/a.png": png()}, seed=3)
    wait_until(lambda: client.get(f"/jobs/{job}").json()["state"] == "done")
    state = client.get(f"/jobs/{job}").json()
    assert (state["failed"], state["progress"], state["seconds_left"]) == (1, 1.0, 0.0)
    assert [photo["state"] for photo in state["photos"]] == ["done", "failed", "done"]
    assert state["photos"][1]["error"].startswith("bad.jpg: can't be read as a photo")
    names = [name for photo in state["photos"] for name in photo["results"]]
    with zipfile.ZipFile(io.BytesIO(client.get(f"/jobs/{job}/results").content)) as archive:
        assert archive.namelist() == names and len(set(names)) == 2
        made = [archive.read(name) for name in names]
    alone = client.post("/colorize", files={"photo": ("a.png", png())}, data={"seed": 3}).content
    assert made == [alone, alone]
    assert client.get(f"/jobs/{job}/results/{names[1]}").content == alone


def test_a_job_is_cancelled(client: httpx.Client) -> None:
    jobs = [start_job(client, {"a.png": png(), "b.png": png()}, steps=1000, variants=20) for _ in range(2)]
    wait_until(lambda: client.get(f"/jobs/{jobs[0]}").json()["progress"] > 0)
    state = client.get(f"/jobs/{jobs[0]}").json()
    assert state["state"] == "running" and 0 < state["progress"] < 0.5 and state["seconds_left"] > 0
    assert client.post("/jobs", files={"photos": ("a.png", png())}).status_code == 429  # two is the limit
    for job in jobs:
        assert client.delete(f"/jobs/{job}").status_code == 204
        assert client.get(f"/jobs/{job}").status_code == client.delete(f"/jobs/{job}").status_code == 404
    assert client.post("/colorize", files={"photo": ("a.png", png())}).status_code == 200  # the worker is free


def test_health_and_description(client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ok" and client.head("/health").status_code == 200
    page = client.get("/", follow_redirects=True).text
    assert "swagger-ui" in page and "http://" not in page and "https://" not in page  # nothing from elsewhere
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    described = client.get("/openapi.json").json()
    assert set(described["paths"]["/colorize"]["post"]["responses"]) == {"200", "4XX"}
    form = described["components"]["schemas"]["OnePhoto"]["properties"]
    assert {"photo", "steps", "guidance", "seed", "intensity", "borders", "variants", "uncertainty"} <= set(form)
    assert form["intensity"]["maximum"] == 10.0 and "Factor on chroma" in form["intensity"]["description"]


def test_cut_and_silent_connections_leave_nothing(client: httpx.Client, server: tuple[str, Path]) -> None:
    address = httpx.URL(server[0]).host, httpx.URL(server[0]).port
    head = b"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    whole = PART + png() + b"\r\n--b--\r\n"
    steps = b'--b\r\nContent-Disposition: form-data; name="steps"\r\n\r\n1000\r\n'
    for body, length in (
        (b"", 10_000),
        (PART + bytes(2_000_000), 3_000_000),  # in the middle of a photo
        (whole, len(whole)),  # before the answer
        (steps + whole, len(steps + whole)),
    ):
        with socket.create_connection(address) as cut:
            cut.sendall(head + f"Content-Length: {length}\r\n\r\n".encode() + body)
    for nonsense in (
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
        b"\x16\x03\x01" * 50,
        b"POST /colorize HTTP/9.9\r\n\r\n",
    ):
        with socket.create_connection(address) as cut:
            cut.sendall(nonsense)
    silent = [socket.create_connection(address) for _ in range(20)]
    assert client.post("/colorize", files={"photo": ("a.png", png())}).status_code == 200
    for one in silent:
        one.close()


def test_slow_clients_are_sent_away() -> None:
    """The server itself with short limits, on a socket of this process."""
    from colorized_pipeline.serve import make_server, run_server

    limits = ServerLimits(silence=0.5, upload=2.0, queue=2, rate=6, max_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        running = make_server(make_pipeline(), limits, token="s3cret")
        threading.Thread(target=run_server, args=(running, listener), kwargs={"limits": limits}, daemon=True).start()
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer s3cret"}) as client:
            wait_until(lambda: client.get("/health").status_code == 200)
            for headers in ({"Authorization": "Bearer other"}, {"Authorization": ""}):
                answer = client.post("/colorize", files={"photo": ("a.png", png())}, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"

            def drip(pause: float) -> Iterator[bytes]:
                yield PART
                for _ in range(50):
                    yield b"x"
                    time.sleep(pause)

            form = {"Content-Type": "multipart/form-data; boundary=b"}
            with ThreadPoolExecutor() as threads:  # two that drip fill the queue
                slow = [threads.submit(client.post, "/colorize", content=drip(p), headers=form) for p in (1.0, 0.1)]
                wait_until(lambda: client.get("/health").json()["requests"] == 2)
                busy = client.post("/colorize", files={"photo": ("a.png", png())})
                assert busy.status_code == 429 and "2 requests wait" in busy.text and busy.headers["retry-after"]
                assert [one.result().status_code for one in slow] == [408, 408]
            answer = client.post("/colorize", files={"photo": ("a.png", png())}, data={"steps": 1000})
            assert answer.status_code == 422 and "takes more than 0.2 s" in answer.text
            answers = [client.post("/colorize", files={"photo": ("a.png", png())}) for _ in range(6)]
            assert answers[0].status_code == 200 and answers[-1].status_code == 429
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        with socket.create_connection(listener.getsockname()) as silent:
            silent.settimeout(10)
            assert silent.recv(1) == b""  # closed by the server


def test_what_keeps_the_server_from_starting_is_explained(server: tuple[str, Path], tmp_path: Path) -> None:
    port = str(httpx.URL(server[0]).port)
    for program, message in (
        ("", f"port {port}: it is taken"),
        ("import sys; sys.modules['fastapi'] = None; ", "this command needs: pip install 'colorized[serve]'"),
    ):
        words = [sys.executable, "-c", f"{program}from colorized_pipeline.cli import main; main()", "serve"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
        done = subprocess.run([*words, "--port", port], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def peak_megabytes(process: int) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.slow
def test_two_hundred_requests_of_thirty_two_clients(tmp_path: Path) -> None:
    """The shipped checkpoint: none is lost, each gets its own photo, and memory doesn't grow with requests."""
    photos = []
    for number in range(8):
        stream = io.BytesIO()
        Image.open(CAMERA).resize((900 + number, 700)).rotate(90 * number).save(stream, "JPEG")
        photos.append(stream.getvalue())
    with running("serve", tmp_path) as (url, process), httpx.Client(base_url=url, timeout=600) as client:

        def ask(number: int) -> tuple[int, tuple[int, int], tuple[int, int]]:
            content = photos[number % 8]
            answer = client.post("/colorize", files={"photo": (f"{number}.jpg", content)}, data={"steps": 2})
            sizes = [Image.open(io.BytesIO(one)).size for one in (content, answer.content)]
            return answer.status_code, sizes[0], sizes[1]

        with ThreadPoolExecutor(32) as clients:
            first = list(clients.map(ask, range(32)))
            after_first, start = peak_megabytes(process), time.monotonic()
            rest = list(clients.map(ask, range(200)))
        seconds, after_all = time.monotonic() - start, peak_megabytes(process)
        assert all(status == 200 and sent == got for status, sent, got in first + rest)
        print(f"200 requests: {seconds:.0f} s, {after_first:.0f} MB after 32, {after_all:.0f} MB after 232")
        assert after_all < 1.1 * after_first + 50
        assert client.get("/health").json()["requests"] <= 1
