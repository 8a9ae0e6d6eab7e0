"""How the commands start, what they say, and how they end."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

_COMPILER = "torch._dynamo"
# Packages that import all of their models, or search through the files of all, when one of them is imported
_CATALOGUES = (
    "transformers.models",
    "diffusers.models.unets",
    "diffusers.models.transformers",
    "diffusers.models.autoencoders",
)
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses, as shells have them
received: list[int] = []  # the signals that have asked the command to end
_shown: dict[str, str] = {}  # what messages call files that the user doesn't know


@contextmanager
def quick_start() -> Iterator[None]:
    """Imports and weights for work that one process does alone and compiles nothing for, in half of the time.

    They stay until the end, so nothing is searched for garbage meanwhile, nor are they later. Where torch is imported
    already it does nothing.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _leave_out_compiler()
        for name in _CATALOGUES:
            _leave_unopened(name)
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _leave_out_compiler() -> None:
    if spec := find_spec(_COMPILER):
        # There are builds of torch without this part; then diffusers and transformers leave out what is theirs for it
        sys.modules["torch"].distributed.is_available = lambda: False
        sys.modules[_COMPILER] = _Compiler(_COMPILER)
        sys.modules[_COMPILER].__path__ = list(spec.submodule_search_locations or [])


class _Compiler(ModuleType):
    """Stands for torch's compiler until it is used.

    When they are imported, libraries mark functions for it; later diffusers asks whether a network is a compiled one.
    Whatever else is asked of it comes from the real one.
    """

    class OptimizedModule:
        """A compiled network. There is none yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.allow_in_graph = self.assume_constant_result = self.disable = _mark
        self.eval_frame = self  # the place of OptimizedModule

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by whoever looks at modules in general
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            # Out of the way, and so is a module of the real one that asks while it is imported
            for one, module in list(sys.modules.items()):
                if module is self or (
                    one.startswith(f"{_COMPILER}.") and getattr(module.__spec__, "_initializing", False)
                ):
                    del sys.modules[one]
        real = import_module(_COMPILER)
        return getattr(real if hasattr(real, name) else real.eval_frame, name)


def _leave_unopened(name: str) -> None:
    if (spec := find_spec(name)) and name not in sys.modules:
        parent, _, child = name.rpartition(".")
        sys.modules[name] = module_from_spec(spec)
        sys.modules[name].__class__ = _Unopened
        setattr(sys.modules[parent], child, sys.modules[name])


class _Unopened(ModuleType):
    """A package from which modules can be imported before its own code runs: when something else is asked of it."""

    _opened = False

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if spec and spec.loader and not name.startswith("__"):
            if not self._opened:
                self._opened = True
                spec.loader.exec_module(self)
            if name in self.__dict__:
                return self.__dict__[name]
            if sys.modules[spec.name] is not self:  # it has put another in its place
                return getattr(sys.modules[spec.name], name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _mark


def end_by_signals() -> None:
    """SIGTERM ends the command in the order that Ctrl-C does. Both are remembered: Python may drop the exception."""

    def end(number: int, frame: Any) -> None:
        received.append(number)
        signal.default_int_handler(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)


@contextmanager
def errors_in_one_line(*, when_interrupted: str, extra: str = "") -> Iterator[None]:
    """An error that a user can act on is one line and exit status 2; Ctrl-C one and 130, SIGTERM one and 143.

    A package that is missing comes with the package's ``extra``.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # the last: whoever reads has enough (| head)
        raise
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        missing = extra and isinstance(error, ModuleNotFoundError)
        say(f"Error: {error}" + (f"; this command needs: pip install 'colorized[{extra}]'" if missing else ""))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say(when_interrupted)
        raise typer.Exit(128 + (received or [signal.SIGINT])[-1]) from None


def say(message: str) -> None:
    """One line to the user on standard error, above a progress bar if there is one."""
    line = printable(message)
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=typer.get_text_stream("stderr"))
    else:
        typer.echo(line, err=True)


def show(text: str) -> None:
    """One line of a result on standard output."""
    typer.echo(printable(text))


def printable(text: str) -> str:
    """On one line, and without what a terminal can't show or would obey: file names may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown(text))


def show_as(file: Path, name: str) -> Path:
    """Let messages call a file by another name from now on, also those about an error that ends the command."""
    _shown[str(file)] = name
    return file


def shown(text: str) -> str:
    """With the names of files as the user knows them."""
    for file, name in _shown.items():
        text = text.replace(file, name)
    return text


def silence_image_warnings() -> None:
    """What Pillow warns of in a damaged file is said by one line of ours."""
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
