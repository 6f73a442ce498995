"""Rows from the library `datasets`: of a dataset on the Hub, or of a local folder in any form that it knows.

The library is imported when it is needed: files of rows and of grid puzzles are read without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.tasks.rows import ROW_KINDS


def load_dataset_rows(name_or_path: str | Path, split: str, config_name: str | None) -> Sequence[Mapping[str, Any]]:
    """The rows of a split of a folder, or of a configuration of a dataset on the Hub; DataError if there are none."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{str(name_or_path)!r} is no single file, and reading it needs the library 'datasets'. Install it "
            "(pip install datasets), or give a file of rows."
        ) from error
    name, is_folder = str(name_or_path), Path(name_or_path).expanduser().is_dir()
    is_path = name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(name).suffix in (".json", *ROW_KINDS)
    if is_path and not is_folder:
        raise DataError(
            f"There is no file or folder {name!r}. Correct the path, or give the id of a dataset on the Hub."
        )
    try:
        if is_folder:
            return load_dataset(str(Path(name_or_path).expanduser()), split=split)
        return load_dataset(name, config_name, split=split)
    except Exception as error:  # network, authorisation, many formats: all mean that it cannot be loaded
        where = (
            f"The folder {name!r} (split {split!r}) could not be read"
            if is_folder
            else f"{name!r} is no local file or folder, and could not be loaded from the Hub (configuration "
            f"{config_name!r}, split {split!r})"
        )
        raise DataError(f"{where}: {_cause(error)} Correct the name, the split or the configuration.") from error


def _cause(error: BaseException) -> str:
    """The first line of what is at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}."
