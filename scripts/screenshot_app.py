"""Make the README's picture of the web page: ``colorized app`` on an example photo, in Debian's Chromium.

python scripts/screenshot_app.py          (or: make figures)
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

from colorized_pipeline import EXAMPLES

PORT = 7899
URL = f"http://127.0.0.1:{PORT}/"


def wait_for_page(server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(URL).close()
            return
        except urllib.error.URLError:
            time.sleep(0.3)
    raise SystemExit(f"the page didn't come up at {URL}")


def screenshot(chromium: str, output: Path, *, width: int, height: int) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(URL)
        page.locator("input[type=file]").first.set_input_files(EXAMPLES[-1])
        page.get_by_role("button", name="Colorize", exact=True).click()
        page.get_by_text("3 variants are ready").wait_for(timeout=120_000)
        page.get_by_role("button", name="Variant 3").click()
        page.get_by_text("Download variant 3").wait_for()
        page.wait_for_timeout(1500)  # the pictures fade in
        page.screenshot(path=output, full_page=True, type="jpeg", quality=85)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/app.jpg"), help="file for the picture")
    parser.add_argument("--width", type=int, default=1100, help="of the browser's window, pixels")
    parser.add_argument("--height", type=int, default=700, help="of the browser's window, pixels")
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("needs Debian's chromium (apt-get install chromium)")
    words = [sys.executable, "-c", "from colorized_pipeline.cli import main; main()", "app", "--port", str(PORT)]
    with subprocess.Popen(words, env=os.environ) as server:
        try:
            wait_for_page(server)
            args.output.parent.mkdir(exist_ok=True)
            screenshot(chromium, args.output, width=args.width, height=args.height)
        finally:
            server.terminate()
    print(args.output)


if __name__ == "__main__":
    main()
