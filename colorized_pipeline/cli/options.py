"""Options that several commands share, and groups of options: a dataclass is a panel of the help."""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from .console import errors_in_one_line, silence_image_warnings

Checkpoint = Annotated[
    str | None, typer.Option(help="Pipeline folder or Hub name; the one in the package if not given.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest there is if not given.")]
PipelineArgument = Annotated[Path, typer.Argument(help="Pipeline folder, e.g. runs/mine/best.")]
Precision = Literal["float32", "bfloat16"]


def named_checkpoint(text: str) -> tuple[str, str]:
    """``NAME=CHECKPOINT`` as a pair."""
    name, equals, checkpoint = text.partition("=")
    if not (name and equals and checkpoint):
        raise ValueError(f"--beside {text}: give NAME=CHECKPOINT, e.g. twin=runs/twin/best")
    return name, checkpoint


def command(function: Callable[..., None], *, extra: str = "") -> Callable[..., None]:
    """A function as a command: errors are one line, and each parameter that is a dataclass stands for its fields.

    The fields become options in a panel of the help; the panel's title is the first line of the dataclass's docstring.
    ``extra`` is that of the package which the command needs.
    """
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation) and isinstance(parameter.annotation, type):
            groups[parameter.name] = parameter.annotation
            parameters += _panel(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def run(**values: Any) -> None:
        silence_image_warnings()
        with errors_in_one_line(when_interrupted="Interrupted", extra=extra):
            for name, group in groups.items():
                values[name] = group(**{one.name: values.pop(one.name) for one in fields(group) if one.name in values})
            function(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = (
        f"{function.__doc__}\n\n    Needs `pip install 'colorized\\[{extra}]'`." if extra else function.__doc__
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _panel(group: type) -> list[inspect.Parameter]:
    title = inspect.cleandoc(group.__doc__ or "").splitlines()[0].rstrip(".")
    parameters = []
    for parameter in inspect.signature(group, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is not Annotated:  # a field that is no option
            continue
        kind, option = get_args(parameter.annotation)
        option = copy(option)
        option.rich_help_panel = title
        parameters.append(parameter.replace(annotation=Annotated[kind, option], kind=inspect.Parameter.KEYWORD_ONLY))
    return parameters
