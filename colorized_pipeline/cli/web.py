"""``colorized app`` and ``colorized serve``: the web page, and photos by HTTP."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import typer

from ..options import PageLimits, ServerLimits
from .console import quick_start
from .options import Checkpoint, Device, command

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]


@contextmanager
def _folder(name: str) -> Iterator[str]:
    """What visitors send and get lies in here, so that nothing of it is left when the server stops."""
    with tempfile.TemporaryDirectory(prefix=f"colorized-{name}-") as folder:
        tempfile.tempdir = folder
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        yield folder


def _taken(host: str, port: int) -> OSError:
    return OSError(f"can't listen on {host}, port {port}: it is taken or not allowed; try --port")


@partial(command, extra="app")
def serve_page(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    device: Device = None,
    checkpoint: Checkpoint = None,
    *,
    limits: PageLimits,
) -> None:
    """Serve a web page: drop a photo, compare before and after, pick a variant, download; or many photos into a ZIP.

    Nothing leaves this machine.
    """
    with _folder("app") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        with quick_start():
            from ..app import build_page, launch
            from ..loading import load_pipeline, quieten_libraries

            quieten_libraries()
            pipe = load_pipeline(checkpoint, device=device)
        page = build_page(pipe, limits)
        try:
            url = launch(page, limits, server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True)
        except OSError:
            raise _taken(host, port) from None
        typer.echo(f"COLORIZED is at {url} until you press Ctrl-C")
        page.block_thread()


@partial(command, extra="serve")
def serve_api(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    token: Annotated[
        str,
        typer.Option(
            envvar="COLORIZED_TOKEN",
            help="What requests must carry as Authorization: Bearer TOKEN. Better given by the environment, where "
            "other users of the machine don't see it.",
        ),
    ] = "",
    device: Device = None,
    checkpoint: Checkpoint = None,
    *,
    limits: ServerLimits,
) -> None:
    """Serve photos by HTTP: POST a photo to /colorize, get its colour copy; /jobs takes many; /docs describes all.

    Nothing leaves this machine, and nothing of a request stays on it.
    """
    with _folder("serve"):
        with quick_start():
            from ..loading import load_pipeline, quieten_libraries
            from ..serve import make_server, run_server

            quieten_libraries()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family)
        except OSError:
            raise _taken(host, port) from None
        with listener:
            server = make_server(load_pipeline(checkpoint, device=device), limits, token=token)
            shown = f"[{host}]" if ":" in host else host
            typer.echo(f"COLORIZED is at http://{shown}:{port}/ until you press Ctrl-C")
            run_server(server, listener, limits=limits)
