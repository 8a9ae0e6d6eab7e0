# colorized serve in a container. Checked without Docker so far: docs/how-to/serve.md
#   docker build --target cpu -t colorized .          docker run --rm -p 127.0.0.1:8000:8000 colorized
#   docker build --target cuda -t colorized:cuda .    docker run --rm --gpus all -p 127.0.0.1:8000:8000 colorized:cuda

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY colorized_pipeline colorized_pipeline
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS base
RUN useradd --create-home --uid 10001 colorized
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
WORKDIR /home/colorized
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["colorized"]
CMD ["serve", "--host", "0.0.0.0"]

FROM base AS cuda
RUN pip install torch==2.13.0
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install "$(ls /wheels/*.whl)[serve]"
USER 10001

FROM base AS cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install "$(ls /wheels/*.whl)[serve]"
USER 10001
