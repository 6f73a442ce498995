"""Checks of arguments that the modules of this folder share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hf_mass.errors import ConfigError, DataError


def require_whole(name: str, value: object, least: int | None = None, most: int | None = None) -> None:
    """Raises ConfigError, which calls the value `name`, unless it is a whole number from `least` to `most`."""
    if type(value) is not int or (least is not None and value < least) or (most is not None and value > most):
        bound = "" if least is None else f" of at least {least}"
        bound += "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name} must be a whole number{bound}, got {shown(value)}.")


def require_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Raises ConfigError, which calls the value `name`, unless it is one of those known."""
    if value not in known:
        raise ConfigError(f"{name} is {shown(value)}; choose one of {list(known)}.")


def require_method(name: str, value: object, kind: type) -> None:
    """Raises ConfigError, which calls the value `name`, unless it is a method of a kind, or None."""
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name} is {shown(value)}; give a {kind.__name__}(...), or leave it out.")


def as_path(name: str, value: object) -> Path:
    """A path that the caller calls `name`, with the home of "~".

    Raises:
        DataError: If it is none, or one that no file can have.
    """
    try:
        if isinstance(value, str | os.PathLike) and isinstance(text := os.fspath(value), str) and text:
            path = Path(text).expanduser()
            path.exists()
            if "\0" not in text:  # which `exists` takes for a name that is not there
                return path
    except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, the home of nobody
        pass
    raise DataError(f"{name} is {shown(value)}, which no file or folder is called. Give the path of one.")


def no_file(path: Path, name: str | None = None, what: str = "file") -> DataError:
    """The error for a path that is no file: what it is instead. `name` is what the caller called it."""
    seen = f"{name or repr(str(path)):.200}"
    try:
        is_folder, is_there = path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError):
        is_folder = is_there = False
    if is_folder:
        return DataError(f"{seen} is a folder. Give one of its files.")
    if is_there:
        return DataError(
            f"{seen} is a pipe, a device or a link to nothing. Give a file, or its content on stdin ('-')."
        )
    return DataError(f"There is no {what} {seen}. Correct the path.")


def shown(value: object, length: int = 60) -> str:
    """A value as an error shows it: short, whatever it is."""
    try:
        return f"{value!r:.{length}}"
    except (RecursionError, ValueError):  # nested too deeply, or a number of more digits than Python prints
        return f"a {type(value).__name__} too large to show"
