"""``colorized app`` and ``colorized serve`` in processes of their own, for tests that visit them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def fetch_from_npm(name: str, script: str, folder: Path) -> Path:
    """One file of a package."""
    if not shutil.which("npm"):
        pytest.skip("needs npm: apt-get install npm")
    subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, timeout=300)
    (package,) = folder.glob(f"{name.partition('@')[0]}-*.tgz")
    shutil.unpack_archive(package, folder, "gztar")
    return folder / "package" / script


def run_axe(page: Any, axe: Path, *kinds: str) -> list[tuple[str, str, str]]:
    """What axe-core finds on a page: impact, rule, and the first place; violations, if no kinds are given."""
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run({resultTypes: ['violations', 'incomplete']})")
    assert len(found["passes"]) > 15
    faults = [one for kind in kinds or ("violations",) for one in found[kind]]
    return [(one["impact"], one["id"], one["nodes"][0]["html"]) for one in faults]


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
