"""The UNet for faster programs on processors: ONNX Runtime or OpenVINO in PyTorch's place. Needs the extra ``export``.

>>> pipe = load_default()
>>> export_unet(pipe, Path("engine"), format_name="onnx")
>>> use_engine(pipe, Path("engine"))
"""

import json
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput

from . import __version__
from .diffusion.pipeline import ColorizationPipeline

FORMATS = ("onnx", "openvino")
PRECISIONS = {"onnx": ("float32",), "openvino": ("bfloat16", "float32")}  # the first is the default
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # largest difference over PyTorch's largest output

_DESCRIPTION = "engine.json"
_PROBES = ((1, 4, 4, 999), (3, 4, 6, 500), (2, 5, 3, 0))  # photos, height and width in UNet strides, timestep

_Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ExportedUNet(torch.nn.Module):
    """A UNet written by :func:`export_unet`, run on the processor; takes a ``UNet2DModel``'s place in a pipeline.

    It can't be trained, differentiated or saved with its pipeline.

    Args:
        folder: of :func:`export_unet`.
        threads: of one call; PyTorch's number if None.
        streams: calls that may run at once.

    Raises:
        ValueError: if the folder holds no engine, or one that can't be run.
        ImportError: if the program that runs it isn't installed; the message says how to.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, folder: Path, *, threads: int | None = None, streams: int = 1) -> None:
        super().__init__()
        try:
            self.description = json.loads((folder / _DESCRIPTION).read_text())
            self.config = FrozenDict(self.description["config"])
            open_network = {"onnx": _open_onnx, "openvino": _open_openvino}[self.description["format"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} holds no engine ({error}); make one with: colorized export -o {folder}"
            ) from error
        try:
            self._run, self.name = open_network(
                folder,
                threads=threads or torch.get_num_threads(),
                streams=streams,
                precision=self.description["precision"],
            )
        except ImportError as error:
            raise ImportError(f"{error}; engines need: pip install 'colorized[export]'") from error
        except Exception as error:  # both programs raise errors of many types for damaged files
            raise ValueError(f"engine {folder} can't be loaded: {' '.join(str(error).split())}") from error

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True) -> Any:
        """As ``UNet2DModel``: ``[B, in_channels, h, w]`` float32 at one timestep to ``[B, out_channels, h, w]``.

        Raises:
            ValueError: for timesteps that differ, or where a gradient is asked for.
        """
        if torch.is_grad_enabled() and sample.requires_grad:
            raise ValueError("an exported network has no gradients; use the checkpoint's own UNet for this")
        times = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).cpu().numpy()
        if len(times) == 0 or (times != times[0]).any():
            raise ValueError(f"an exported network takes one timestep for the whole batch, got {times.tolist()}")
        values = np.ascontiguousarray(sample.detach().cpu().numpy(), dtype=np.float32)
        predicted = torch.from_numpy(self._run(values, times[:1])).to(sample.device)
        return UNet2DOutput(sample=predicted) if return_dict else (predicted,)


def export_unet(
    pipe: ColorizationPipeline, folder: Path, *, format_name: str, precision: str | None = None
) -> dict[str, Any]:
    """Write a pipeline's UNet for batches and chroma grids of any size, and check its output against PyTorch's.

    Args:
        pipe: in float32, on the CPU. Its encoder and scheduler aren't exported.
        folder: made if needed; must be empty.
        format_name: ``"onnx"`` or ``"openvino"``.
        precision: ``"float32"``, or for OpenVINO ``"bfloat16"`` (its default), which is used where the processor has
            such instructions.

    Returns:
        What ``engine.json`` in the folder says: format, precision, version, the checkpoint's digest, ``difference``
        and ``largest`` (greatest absolute difference to PyTorch, and greatest absolute output), the UNet's config.

    Raises:
        ValueError: for arguments that can't be used, or if the outputs differ; then the folder stays empty.
        ImportError: if the extra isn't installed.
    """
    if format_name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format_name!r}")
    precision = precision or PRECISIONS[format_name][0]
    if precision not in PRECISIONS[format_name]:
        allowed = " or ".join(PRECISIONS[format_name])
        raise ValueError(f"precision of {format_name} must be {allowed}, got {precision!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and isn't an empty folder; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {
        "format": format_name,
        "precision": precision,
        "version": __version__,
        "checkpoint": pipe.digest(),
        "config": {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")},
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        partial = Path(name)
        try:
            {"onnx": _write_onnx, "openvino": _write_openvino}[format_name](pipe.unet, partial)
        except ImportError as error:
            raise ImportError(f"{error}; exporting needs: pip install 'colorized[export]'") from error
        (partial / _DESCRIPTION).write_text(json.dumps(description))
        difference, largest = compare(pipe.unet, ExportedUNet(partial))
        if not difference <= TOLERANCE[precision] * largest:  # NaN is no equal output either
            raise ValueError(
                f"the exported network's output differs from PyTorch's by {difference:.2g} of {largest:.2g}: this "
                f"version of {format_name} computes something else, nothing was written"
            )
        description |= {"difference": difference, "largest": largest}
        (partial / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        for file in sorted(partial.iterdir(), key=lambda file: file.name == _DESCRIPTION):  # the description last
            file.rename(folder / file.name)
    return description


def use_engine(
    pipe: ColorizationPipeline, folder: Path, *, threads: int | None = None, streams: int = 1
) -> ExportedUNet:
    """Put an exported network in the place of the pipeline's UNet; arguments as of :class:`ExportedUNet`.

    Raises:
        ValueError: if it was exported from another checkpoint than the pipeline's.
    """
    engine = ExportedUNet(folder, threads=threads, streams=streams)
    if engine.description.get("checkpoint") != pipe.digest():
        raise ValueError(
            f"engine {folder} was exported from another checkpoint; export this one with: colorized export"
        )
    pipe.unet = engine
    return engine


@torch.no_grad()
def compare(unet: UNet2DModel, engine: ExportedUNet) -> tuple[float, float]:
    """Greatest absolute difference of the outputs over some batches, grids and times, and PyTorch's greatest one."""
    generator = torch.Generator().manual_seed(0)
    stride = 2 ** (len(unet.config.block_out_channels) - 1)
    difference = largest = 0.0
    for photos, height, width, timestep in _PROBES:
        shape = (photos, unet.config.in_channels, height * stride, width * stride)
        sample = torch.randn(shape, generator=generator)
        expected, found = unet(sample, timestep).sample, engine(sample, timestep).sample
        difference = float(np.maximum(difference, (found - expected).abs().max()))  # keeps NaN, as max() may not
        largest = max(largest, expected.abs().max().item())
    return difference, largest


class _Plain(torch.nn.Module):
    """Tensors in, tensor out: what exporters understand."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, return_dict=False)[0]


def _write_onnx(unet: UNet2DModel, folder: Path) -> None:
    import onnxscript  # noqa: F401  (torch.onnx's own message for its absence isn't for users)

    stride = 2 ** (len(unet.config.block_out_channels) - 1)
    any_batch, any_height, any_width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    shape = (2, unet.config.in_channels, 4 * stride, 4 * stride)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts that are about to change
        program = torch.onnx.export(
            _Plain(unet).eval(),
            (torch.zeros(shape), torch.zeros(1)),
            dynamo=True,
            dynamic_shapes=({0: any_batch, 2: stride * any_height, 3: stride * any_width}, None),
            input_names=["sample", "timestep"],
            output_names=["predicted"],
            verbose=False,
        )
    assert program is not None
    program.save(folder / "unet.onnx", external_data=False)


def _write_openvino(unet: UNet2DModel, folder: Path) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as name:
        _write_onnx(unet, Path(name))
        model = openvino.convert_model(Path(name) / "unet.onnx")
        openvino.save_model(model, folder / "unet.xml", compress_to_fp16=False)


def _open_onnx(folder: Path, *, threads: int, streams: int, precision: str) -> tuple[_Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # With one thread a call runs in its caller's, so that calls at once need no streams
    session = onnxruntime.InferenceSession(folder / "unet.onnx", options, providers=["CPUExecutionProvider"])
    name = f"onnxruntime {onnxruntime.__version__} {precision}"
    return lambda sample, timestep: session.run(None, {"sample": sample, "timestep": timestep})[0], name


def _open_openvino(folder: Path, *, threads: int, streams: int, precision: str) -> tuple[_Run, str]:
    import openvino

    core = openvino.Core()
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    used = precision if has_bfloat16 else "float32"
    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[used],
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
    }
    compiled = core.compile_model(folder / "unet.xml", "CPU", settings)
    requests = threading.local()  # a request serves one call at a time

    def run(sample: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return requests.own.infer([sample, timestep])[0].copy()

    return run, f"openvino {openvino.__version__.partition('-')[0]} {used}"
