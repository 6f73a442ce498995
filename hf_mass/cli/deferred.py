"""Functions that are imported when they are called."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from hf_mass.errors import ConfigError, missing_extra


def deferred(module: str, name: str) -> Callable[..., Any]:
    """A function of another module, which is imported at the first call.

    What a command needs to parse its options is light; what it does may load PyTorch, which takes seconds.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            function = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if (message := missing_extra("This command", error)) is None:
                raise
            raise ConfigError(message) from error
        return function(*args, **kwargs)

    return call
