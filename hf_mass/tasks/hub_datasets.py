"""Rows from the library `datasets`: of a dataset on the Hub, or of a local folder in any form that it knows.

The library is imported when it is needed: files of rows and of grid puzzles are read without it. It makes numbers and
dates of texts that look like some, so of files of rows it only says which ones belong to a split: they are read here.
"""

from __future__ import annotations

import math
import struct
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.tasks.rows import PLAIN, ROW_KINDS, read_rows
from hf_mass.tasks.tables import TableForm


def load_dataset_rows(
    name_or_path: str | Path, split: str, config_name: str | None, form: TableForm = PLAIN
) -> Sequence[Mapping[str, Any]]:
    """The rows of a split of a folder, or of a configuration of a dataset on the Hub; DataError if there are none."""
    try:
        from datasets import load_dataset, load_dataset_builder
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
        where = str(Path(name_or_path).expanduser()) if is_folder else name
        builder = load_dataset_builder(where, None if is_folder else config_name)
        if (files := _row_files(builder, split)) is not None:
            return _read_all(files, getattr(builder, "token", None), form)
        return plain_rows(load_dataset(where, None if is_folder else config_name, split=split))
    except DataError:
        raise
    except Exception as error:  # network, authorisation, many formats: all mean that it cannot be loaded
        where = (
            f"The folder {name!r} (split {split!r}) could not be read"
            if is_folder
            else f"{name!r} is no local file or folder, and could not be loaded from the Hub (configuration "
            f"{config_name!r}, split {split!r})"
        )
        raise DataError(f"{where}: {_cause(error)} Correct the name, the split or the configuration.") from error


def plain_rows(dataset: Any) -> list[dict[str, Any]]:
    """The rows of a dataset as its files have them, whatever it is formatted as: labels by their names, and numbers of
    single precision with the digits that they have."""
    rows = []
    for row in dataset.with_format(None):
        rows.append({name: _plain(value, dataset.features[name]) for name, value in row.items()})
    return rows


def _plain(value: Any, feature: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_plain(each, inner) for each in value]
    if isinstance(value, dict) and isinstance(feature, dict):
        return {name: _plain(each, feature.get(name)) for name, each in value.items()}
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None  # -1: not known
    shape = {"float16": "e", "float32": "f"}.get(getattr(feature, "dtype", ""))
    if shape is None or not math.isfinite(value):
        return value
    near = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next(each for each in near if struct.unpack(shape, struct.pack(shape, each))[0] == value)


def _row_files(builder: Any, split: str) -> list[str] | None:
    """The files of a split, where all of the dataset's are files of rows with nothing else to them; else None."""
    files: Any = builder.config.data_files
    if not isinstance(files, dict) or split not in files:
        return None
    if getattr(builder.config, "field", None) is not None or getattr(builder.config, "column_names", None) is not None:
        return None  # somebody said how these files are to be read
    names = [str(file) for file in files[split]]
    is_rows = all(name.endswith((".json", *ROW_KINDS)) for name in names)
    return names if names and is_rows else None


def _read_all(files: Sequence[str], token: Any, form: TableForm) -> list[Mapping[str, Any]]:
    from datasets import DownloadConfig, DownloadManager

    here: Sequence[str] = files
    if not all(Path(file).is_file() for file in files):
        here = DownloadManager(download_config=DownloadConfig(token=token)).download(list(files))
    rows = list[dict[str, Any]]()
    for file, name in zip(here, files, strict=True):
        rows += read_rows(Path(file), form, Path(name).suffix)
    nulls = dict.fromkeys(column for row in rows for column in row)
    return [ChainMap(row, nulls) for row in rows]  # what a row leaves out is null


def _cause(error: BaseException) -> str:
    """The first line of what is at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}."
