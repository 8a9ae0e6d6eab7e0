"""The whole pipeline as ONNX graphs, for programs without PyTorch and for browsers. Needs the extra ``export``.

The graphs are traced from the pipeline's own code: *read* (pixels to lightness), *draw* (lightness and noise to
chroma: image encoder, all steps, guidance if it is the default) and *show* (lightness and chroma to sRGB: upsampling,
gamut). Beside them lie a runner of one file, and what it must know of the checkpoint.

>>> export_pipeline(load_default(), Path("embed"))
"""

import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch.overrides import TorchFunctionMode

from .._version import __version__
from ..archive.labels import Label, build_xmp
from ..diffusion.color import gray_to_lightness, lab_to_rgb, limit_chroma, rgb_to_gray, upsample_columns
from ..diffusion.photo import Lightness, PreparedPhoto
from ..diffusion.pipeline import ColorizationPipeline

PRECISIONS = ("float16", "float32", "int8")  # how weights are stored; arithmetic is float32. The first is the default
DESCRIPTION = "colorized.json"
RUNTIME = (  # of onnxruntime-web, for processors and for WebGPU
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
)
EMBED = Path(__file__).parent

_OPSET = 18  # the first that resizes with antialiasing
_LARGE = {"float16": 2**10, "int8": 2**15}  # numbers of a constant that is stored in a smaller type


class Read(torch.nn.Module):
    """sRGB ``[H, W, 3]``, uint8, to L* ``[1, H, W]``, and to L* ``[1, 1, h, w]`` at the working size, padded."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, rgb: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lightness = gray_to_lightness(rgb_to_gray(rgb.permute(2, 0, 1) / 255))
        edges: Any = size  # numbers of the graph, which torch takes in a number's place
        rows, columns = edges[0], edges[1]
        small = F.interpolate(lightness[None], (rows, columns), mode="bilinear", antialias=True)
        down, right = -rows % self.stride, -columns % self.stride
        return lightness, F.pad(small, (0, right, 0, down), mode="reflect")


class GivenNoise(TorchFunctionMode):
    """Inside a ``with`` block ``torch.randn`` gives these tensors, one after the other, so that a graph takes them."""

    def __init__(self, noise: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.noise = iter(noise)

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self.noise) if function is torch.randn else function(*args, **(kwargs or {}))


class Draw(torch.nn.Module):
    """L* ``[1, 1, H, W]`` and noise ``[steps, C, h, w]`` to chroma a*, b* ``[2, h', w']``: ``pipe.draw``.

    The first noise is what the first step starts from; each further one is added after a step.
    """

    def __init__(self, pipe: ColorizationPipeline) -> None:
        super().__init__()
        self.pipe, self.unet, self.image_encoder = pipe, pipe.unet, pipe.image_encoder

    def forward(self, lightness: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        photo = PreparedPhoto(Lightness(lightness[0]), lightness[0], (1.0, 1.0), (0, 0, 1, 1))
        last = torch.zeros_like(noise[:1])  # DDPM scales what follows the last step by 1e-10
        with GivenNoise([*noise.split(1), last]):
            return self.pipe.draw(photo, generators=[torch.Generator()])[0]


class Show(torch.nn.Module):
    """Rows of L* ``[1, R, W]`` that begin at row ``top``, chroma ``[2, h, w]``, ``cell`` to sRGB ``[R, W, 3]``, uint8.

    ``cell`` is the height and width of a cell of the chroma grid, in pixels.
    """

    def forward(self, lightness: torch.Tensor, chroma: torch.Tensor, cell: torch.Tensor, top: Any) -> torch.Tensor:
        rows, columns = lightness.shape[-2:]
        edges: Any = cell
        wide = upsample_columns(chroma, columns, edges[1])
        full = upsample_columns(wide.transpose(1, 2), rows, edges[0], start=top).transpose(1, 2)
        lab = limit_chroma(torch.cat((lightness, full)).flatten(1)).reshape(3, rows, columns)
        return (lab_to_rgb(lab).clamp(0.0, 1.0) * 255).round().to(torch.uint8).permute(1, 2, 0)


def export_pipeline(
    pipe: ColorizationPipeline, folder: Path, *, precision: str = PRECISIONS[0], runtime: Path | None = None
) -> dict[str, Any]:
    """Write the graphs, the runner and ``colorized.json`` into a folder; steps and guidance are the checkpoint's.

    Args:
        pipe: in float32, on the CPU.
        folder: made if needed; must be empty.
        precision: of the stored weights, see :data:`PRECISIONS`.
        runtime: ``dist`` of npm's onnxruntime-web; with it a web page is written in place of the runner.

    Returns:
        What ``colorized.json`` says.

    Raises:
        ValueError: for arguments that can't be used.
        ImportError: if the extra isn't installed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(pipe.scheduler, DDPMScheduler) or pipe.config.objective != "diffusion":
        raise ValueError("only diffusion checkpoints with a DDPMScheduler can be exported; this one isn't")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and isn't an empty folder; choose another")
    if runtime and (missing := [name for name in RUNTIME if not (runtime / name).is_file()]):
        raise ValueError(
            f"{runtime} isn't the folder dist of onnxruntime-web, it has no {missing[0]}; get it by: npm install "
            "onnxruntime-web, then --runtime node_modules/onnxruntime-web/dist"
        )
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"{error}; exporting needs: pip install 'colorized[export]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        partial = Path(name)
        _trace_all(pipe, partial)
        for file in sorted(partial.glob("*.onnx")):
            model = onnx.load(file)
            _store_weights(model.graph, precision)
            onnx.save(model, file)
        description = describe(pipe) | {"precision": precision}
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        sources = sorted((EMBED / "web").iterdir()) if runtime else [EMBED / "colorize.py"]
        for source in [*sources, *([runtime / name for name in RUNTIME] if runtime else [])]:
            shutil.copyfile(source, partial / source.name)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == DESCRIPTION):  # the description last
            file.rename(folder / file.name)
    return description


def describe(pipe: ColorizationPipeline) -> dict[str, Any]:
    """What a program must know to use the graphs; the label holds ``PHOTO_NAME``, ``PHOTO_SHA256``, ``PHOTO_SEED``."""
    checkpoint = pipe.digest()
    settings = {
        "Seed": "PHOTO_SEED",
        "Steps": pipe.config.default_steps,
        "Guidance": f"{pipe.config.default_guidance:g}",
        "WorkingSize": pipe.config.working_size,
        "Engine": "ONNX Runtime",
        "Checkpoint": checkpoint,
    }
    xmp = build_xmp(Label("PHOTO_NAME", "PHOTO_SHA256", settings)).decode()
    return {
        "version": __version__,
        "checkpoint": checkpoint,
        "working_size": pipe.config.working_size,
        "noise": [pipe.config.default_steps, pipe.unet.config.out_channels],
        "noise_cell": pipe.config.luma_factor,
        "chroma_cell": pipe.chroma_cell,
        "xmp": re.sub(r"<xmpMM:DocumentID>.*?</xmpMM:DocumentID>", "", xmp),  # it would be the same of all photos
    }


@torch.no_grad()
def _trace_all(pipe: ColorizationPipeline, folder: Path) -> None:
    torch.onnx.register_custom_op_symbolic("aten::_upsample_bilinear2d_aa", _shrink_node, _OPSET)
    noise = (pipe.config.default_steps, pipe.unet.config.out_channels)
    factor, stride = pipe.config.luma_factor, pipe.stride
    rows, columns = 2 * stride, 3 * stride
    photo = torch.zeros(rows + 5, columns + 7, 3, dtype=torch.uint8)
    working, drawn = torch.full((1, 1, rows, columns), 50.0), torch.zeros(*noise, rows // factor, columns // factor)
    chroma = torch.zeros(2, rows // pipe.chroma_cell, columns // pipe.chroma_cell)
    _trace(
        Read(stride),
        {"rgb": photo, "size": torch.tensor([rows - 3, columns - 5])},
        {"lightness": (1, 2), "working": (2, 3)},
        folder / "read.onnx",
        dynamic={"rgb": (0, 1)},
    )
    _trace(
        Draw(pipe).eval(),
        {"lightness": working, "noise": drawn},
        {"chroma": (1, 2)},
        folder / "draw.onnx",
        dynamic={"lightness": (2, 3), "noise": (2, 3)},
    )
    _trace(
        Show(),
        {
            "lightness": torch.full((1, 20, 30), 50.0),
            "chroma": chroma,
            "cell": torch.tensor([1.5, 1.6]),
            "top": torch.tensor(3),
        },
        {"rgb": (0, 1)},
        folder / "show.onnx",
        dynamic={"lightness": (1, 2), "chroma": (1, 2)},
    )


def _trace(
    module: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, Sequence[int]],
    file: Path,
    *,
    dynamic: dict[str, Sequence[int]],
) -> None:
    """Write what a module does with these inputs; ``outputs`` and ``dynamic`` say which axes may have any length."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    axes = {name: {axis: f"{name}_{axis}" for axis in which} for name, which in (dynamic | outputs).items()}
    module(*inputs.values())  # makes the tables, which are constants of the graph then
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes taken for constants: tests run the graphs at other shapes
        # The exporter that traces: torch.export can't follow the scheduler's arithmetic with timesteps
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )


def _shrink_node(graph: Any, values: Any, size: Any, *_: Any) -> Any:
    """ONNX's node for torch's antialiased bilinear scaling, which the exporter doesn't know."""
    from torch.onnx import symbolic_helper

    edges = [symbolic_helper._unsqueeze_helper(graph, edge, [0]) for edge in symbolic_helper._unpack_list(size)]
    whole = graph.op("Concat", graph.op("Constant", value_t=torch.tensor([1, 1])), *edges, axis_i=0)
    none = graph.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return graph.op("Resize", values, none, none, whole, mode_s="linear", antialias_i=1)


def _store_weights(graph: Any, precision: str) -> None:
    """Large constants in a smaller type, each with nodes that bring it back: a runtime folds them when it loads."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for constant in list(graph.initializer) if precision != "float32" else ():
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.ndim == 1 or values.size < _LARGE[precision]:
            continue
        name, stored, steps = constant.name, f"{constant.name}.stored", f"{constant.name}.steps"
        if precision == "float16":
            small = values.astype(np.float16)
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
        else:  # steps of a scale for each output channel
            scale = np.maximum(np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True), 1e-12) / 127
            small = np.round(values / scale).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
            nodes.append(helper.make_node("Cast", [stored], [steps], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [steps, f"{name}.scale"], [name]))
        graph.initializer.remove(constant)
        graph.initializer.append(numpy_helper.from_array(small, stored))
    for node in reversed(nodes):
        graph.node.insert(0, node)
