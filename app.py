"""The web page as a Hugging Face Space (or any host that runs an app.py); elsewhere use ``colorized app``.

A Space needs this header at the top of its README.md:

    ---
    title: COLORIZED
    sdk: gradio
    app_file: app.py
    ---
"""

from colorized_pipeline import load_default
from colorized_pipeline.app import build_page, launch
from colorized_pipeline.options import PageLimits

limits = PageLimits(max_megapixels=25, max_file_mb=40, max_photos=10)
demo = build_page(load_default(), limits)

if __name__ == "__main__":
    launch(demo, limits)
