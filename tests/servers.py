"""``colorized app`` and ``colorized serve`` in processes of their own, for tests that visit them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running(command: str, folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, int]]:
    """``colorized COMMAND`` with these options on a free port; gives its address and its process's number.

    Its temporary files lie in ``folder``, and none may be left when it has stopped.
    """
    port = free_port()
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    words = [sys.executable, "-c", "from colorized_pipeline.cli import main; main()", command, "--port", port]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*words, *options], env=os.environ | own | environment, stdout=log, stderr=log)
    url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 180
    try:
        while f"COLORIZED is at {url}" not in (folder / "log").read_text():
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield url, server.pid
    finally:
        server.terminate()
        server.wait(20)
    assert not list(folder.glob("colorized-*")), "visitors' files are left behind"
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()
