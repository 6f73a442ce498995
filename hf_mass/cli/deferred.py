"""Functions that are imported when they are called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from rich.console import Console

from hf_mass.errors import ConfigError, missing_extra


def deferred(module: str, name: str) -> Callable[..., Any]:
    """A function of another module, which is imported at the first call.

    What a command needs to parse its options is light; what it does may load PyTorch, which takes seconds. With
    `told=True` the call says so on stderr.
    """

    def call(*args: Any, told: bool = False, **kwargs: Any) -> Any:
        try:
            with nullcontext() if module in sys.modules or not told else _telling():
                function = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if (message := missing_extra("This command", error)) is None:
                raise
            raise ConfigError(message) from error
        return function(*args, **kwargs)

    return call


def _telling() -> AbstractContextManager[object]:
    """Within this context stderr says that libraries are loaded: while it lasts on a terminal, else in a line."""
    console, text = Console(stderr=True), "Loading the libraries"
    if console.is_terminal:
        return console.status(text)
    console.print(text)
    return nullcontext()
