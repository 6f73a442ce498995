"""Checks of arguments that the modules of this folder share."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mass.errors import ConfigError


def require_whole(name: str, value: object, least: int | None = None) -> None:
    """Raises ConfigError, which calls the value `name`, unless it is a whole number of at least `least`."""
    if type(value) is not int or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{name} must be a whole number{bound}, got {value!r}.")


def require_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Raises ConfigError, which calls the value `name`, unless it is one of those known."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; choose one of {list(known)}.")


def shown(value: object, length: int = 60) -> str:
    """A value as an error shows it: short, whatever it is."""
    try:
        return f"{value!r:.{length}}"
    except (RecursionError, ValueError):  # nested too deeply, or a number of more digits than Python prints
        return f"a {type(value).__name__} too large to show"
