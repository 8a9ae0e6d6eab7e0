"""The web page as a Hugging Face Space (or any host that runs an app.py); elsewhere use ``colorized app``.

A Space needs this header at the top of its README.md:

    ---
    title: COLORIZED
    sdk: gradio
    app_file: app.py
    ---
"""

from colorized_pipeline import load_default
from colorized_pipeline.app import Limits, build_page, serve

limits = Limits(megapixels=25, file_megabytes=40, batch_photos=10)
demo = build_page(load_default(), limits)

if __name__ == "__main__":
    serve(demo, limits)
