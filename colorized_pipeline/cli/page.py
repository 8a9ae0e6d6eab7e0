"""``colorized app``: the web page."""

import os
import signal
import sys
import tempfile
from typing import Annotated

import typer

from .options import Checkpoint, Device, command


@command
def serve_page(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Largest photo taken.")] = 40.0,
    max_file_mb: Annotated[int, typer.Option(min=1, help="Largest file taken, megabytes.")] = 100,
    max_photos: Annotated[int, typer.Option(min=1, help="Most photos in one batch.")] = 50,
    queue: Annotated[int, typer.Option(min=1, help="Most jobs that wait; one runs at a time.")] = 20,
    device: Device = None,
    checkpoint: Checkpoint = None,
) -> None:
    r"""Serve a web page: drop a photo, compare before and after, pick a variant, download; or many photos into a ZIP.

    Needs `pip install 'colorized\[app]'`. Nothing leaves this machine.
    """
    with tempfile.TemporaryDirectory(prefix="colorized-app-") as folder:
        # What visitors send and get lies in here, so that nothing of it is left when the page stops, however it stops
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            from ..app import Limits, build_page, serve
        except ImportError as error:
            raise ImportError(f"{error}; the page needs: pip install 'colorized[app]'") from None
        from ..loading import load_pipeline, quieten_libraries

        quieten_libraries()
        limits = Limits(megapixels=max_megapixels, file_megabytes=max_file_mb, batch_photos=max_photos, queue=queue)
        pipe = load_pipeline(checkpoint, device=device)
        page = build_page(pipe, limits)
        try:
            url = serve(page, limits, server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True)
        except OSError:
            raise OSError(f"can't listen on {host}, port {port}: it is taken or not allowed; try --port") from None
        typer.echo(f"COLORIZED is at {url} until you press Ctrl-C")
        page.block_thread()
