"""Make the README's picture of the web page: ``colorized app`` on an example photo, in Debian's Chromium.

python scripts/screenshot_app.py          (or: make figures)
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from colorized_pipeline import EXAMPLES

PORT = 7899
URL = f"http://127.0.0.1:{PORT}/"


def screenshot(chromium: str, output: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 700})
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
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("needs Debian's chromium (apt-get install chromium)")
    words = [sys.executable, "-m", "colorized_pipeline", "app", "--port", str(PORT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
        try:
            if not (server.stdout and server.stdout.readline()):  # it says where the page is
                raise SystemExit("the page didn't come up")
            args.output.parent.mkdir(exist_ok=True)
            screenshot(chromium, args.output)
        finally:
            server.terminate()
    print(args.output)


if __name__ == "__main__":
    main()
