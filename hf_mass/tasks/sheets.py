"""Workbooks of Excel as rows. A cell is read as it is shown there, or refused; formulas are not run.

Dates, which each computer shows in its own way, are read as 2024-01-31.
"""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from hf_mass.errors import ConfigError, DataError, missing_extra
from hf_mass.tasks.tables import TableForm, table_rows

SHEET = ".xlsx"
MOST_BYTES = 200_000_000
"""Of a workbook when it is unpacked."""
MOST_CELLS = 5_000_000
_PLAIN = re.compile(r"(?P<whole>0+|#,##0)(?:\.(?P<decimals>0+))?(?P<percent>%?)")
"""Formats of numbers that are followed; every other one but the general one is refused."""
_MERGED = re.compile(rb'<mergeCell ref="([^"]*)"')
_FORMULA = re.compile(rb'<c r="([A-Z]+[0-9]+)"[^>]*>\s*<f[ />](?:(?!</c>).)*</c>', re.DOTALL)
_CODE = re.compile("_x([0-9A-Fa-f]{4})_")
"""How workbooks write a character that XML cannot hold as it is."""
_VALUE = re.compile(rb"<v>[^<]|<is>")


def sheet_rows(content: bytes, where: str, form: TableForm) -> list[dict[str, Any]]:
    """The rows of a workbook, by column; `where` names it in errors.

    Raises:
        ConfigError: If openpyxl is missing.
        DataError: If it cannot be read, or has several sheets with content.
    """
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise ConfigError(missing_extra("Reading .xlsx", error) or str(error)) from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            size = sum(part.file_size for part in packed.infolist())
            if size > MOST_BYTES:
                raise DataError(
                    f"{where} unpacks to {size:,} bytes; at most {MOST_BYTES:,} are read. Export it as CSV."
                )
            _require_values(packed, where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and validation, which are not read
            book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
            found = [sheet for sheet in book.worksheets if next(_cells(sheet, where), None)]
            if len(found) > 1:
                names = ", ".join(repr(sheet.title) for sheet in found)
                raise DataError(f"{where} has several sheets with content: {names:.200}. Export the one that is meant.")
            return table_rows(_cells(found[0], where), where, form.header) if found else []
    except DataError:
        raise
    except Exception as error:  # a parser of a format with many parts: all that it raises means that it cannot be read
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{where} could not be read as a workbook: {what:.200}. Export it as CSV.") from error


def _require_values(packed: zipfile.ZipFile, where: str) -> None:
    """Refuses what a reader of values would take for empty cells."""
    for name in packed.namelist():
        content = packed.read(name) if name.startswith("xl/worksheets/") and name.endswith(".xml") else b""
        if merged := _MERGED.search(content):
            raise DataError(f"{where} has merged cells, {merged[1].decode()!r:.40}. Unmerge them, and fill each.")
        for cell in _FORMULA.finditer(content):
            if not _VALUE.search(cell[0]):
                raise DataError(
                    f"{where}, cell {cell[1].decode()!r:.20} has a formula whose value is not in the file. Open it in "
                    "Excel and save it, or export it as CSV."
                )


def _cells(sheet: Any, where: str) -> Iterator[list[str | None]]:
    """The rows of a sheet that hold anything, without what is empty at their ends."""
    sheet.reset_dimensions()  # which a file may get wrong
    count = 0
    for row in sheet.iter_rows():
        count += len(row) + 1
        if count > MOST_CELLS:
            raise DataError(f"{where} has more than {MOST_CELLS:,} cells. Export a part of it as CSV.")
        values = [_text(cell, where) for cell in row]
        while values and values[-1] is None:
            values.pop()
        if values:
            yield values


def _text(cell: Any, where: str) -> str | None:
    """A cell's text as Excel shows it."""
    value = cell.value
    if cell.data_type == "e":
        raise DataError(f"{where}, cell {cell.coordinate} holds the error {value!r:.20}. Correct it.")
    if value is None or isinstance(value, str):
        return value and _CODE.sub(lambda found: chr(int(found[1], 16)), value)
    if isinstance(value, bool):
        return str(value).upper()
    if type(value) is datetime.datetime and value.time() == datetime.time.min:
        value = value.date()  # what has no time of day is a date
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    shape = str(cell.number_format)
    if isinstance(value, int | float) and shape in ("General", "@"):
        text = f"{value:.15g}" if isinstance(value, float) else str(value)
        if len(text.lstrip("-0.").replace(".", "")) <= 15 and "e" not in text:
            return text
        raise DataError(
            f"{where}, cell {cell.coordinate}: {value!r:.40} is a number of more digits than the 15 that Excel keeps. "
            "Format the column as text, and write it again."
        )
    if isinstance(value, int | float) and (plain := _PLAIN.fullmatch(shape)):
        return _shaped(value, plain)
    raise DataError(
        f"{where}, cell {cell.coordinate}: {value!r:.40} is shown in the format {shape!r:.40}, which is not known "
        "here. Format the column as text, or export the sheet as CSV."
    )


def _shaped(value: float, shape: re.Match[str]) -> str:
    number = Decimal(repr(value)) * (100 if shape["percent"] else 1)
    decimals, whole = len(shape["decimals"] or ""), shape["whole"]
    if whole.startswith("#"):
        return f"{number:,.{decimals}f}{shape['percent']}"
    width = len(whole) + (decimals + 1 if decimals else 0) + (number < 0)
    return f"{number:0{width}.{decimals}f}{shape['percent']}"
