"""Workbooks of Excel as rows. A cell is read as it is shown there, or refused; formulas are not run.

Dates and times, which each computer shows in its own way, are read as 2024-01-31 and 13:05, with as many parts as are
shown; a warning says so, and another that hidden rows or columns are read.
"""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from hf_mass.errors import ConfigError, DataError, DataWarning, missing_extra
from hf_mass.tasks.tables import TableForm, table_rows

SHEET = ".xlsx"
MOST_BYTES = 200_000_000
"""Of a workbook when it is unpacked."""
MOST_CELLS = 5_000_000
_PLAIN = re.compile(r"(?P<whole>0+|#,##0)(?:\.(?P<decimals>0+))?(?P<percent>%?)")
"""Formats of numbers that are followed; every other one but the general one is refused."""
_UNSHOWN = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|[_*].|am/pm|a/p')
"""What stands in formats of dates beside the parts of dates."""
_AS_READ = re.compile(r"(?:yyyy-mm-dd)?[ t]?(?:h?h:mm(?::ss)?)?")
"""Formats that show dates and times as they are read."""
_HIDDEN = re.compile(rb'<(row|col) [^>]*hidden="(?:1|true)"')
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
            found, shapes = [sheet for sheet in book.worksheets if next(_cells(sheet, where), None)], list[str]()
            if len(found) > 1:
                names = ", ".join(repr(sheet.title) for sheet in found)
                raise DataError(f"{where} has several sheets with content: {names:.200}. Export the one that is meant.")
            rows = table_rows(_cells(found[0], where, shapes), where, form.header) if found else []
        if shapes:
            warnings.warn(
                f"{where} shows dates or times as {shapes[0]!r:.40}; they are read as 2024-01-31 and 13:05. Write them "
                "as text to have them as they are shown.",
                DataWarning,
                stacklevel=4,
            )
        return rows
    except DataWarning:  # where somebody makes errors of warnings
        raise
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
        if hidden := _HIDDEN.search(content):
            what = "rows" if hidden[1] == b"row" else "columns"
            warnings.warn(f"{where} has hidden {what}, which are read as well.", DataWarning, stacklevel=5)
        for cell in _FORMULA.finditer(content):
            if not _VALUE.search(cell[0]):
                raise DataError(
                    f"{where}, cell {cell[1].decode()!r:.20} has a formula whose value is not in the file. Open it in "
                    "Excel and save it, or export it as CSV."
                )


def _cells(sheet: Any, where: str, shapes: list[str] | None = None) -> Iterator[list[str | None]]:
    """The rows of a sheet that hold anything, without what is empty at their ends.

    `shapes` gets the formats of dates and times that are not shown as they are read.
    """
    sheet.reset_dimensions()  # which a file may get wrong
    count = 0
    for row in sheet.iter_rows():
        count += len(row) + 1
        if count > MOST_CELLS:
            raise DataError(f"{where} has more than {MOST_CELLS:,} cells. Export a part of it as CSV.")
        values = [_text(cell, where) for cell in row]
        if shapes is not None:
            dates = (str(c.number_format) for c in row if isinstance(c.value, datetime.date | datetime.time))
            shapes += (shape for shape in dates if not _AS_READ.fullmatch(shape.lower().replace("\\", "")))
        while values and values[-1] is None:
            values.pop()
        if values:
            yield values


def _text(cell: Any, where: str) -> str | None:
    """A cell's text as Excel shows it."""
    value, shape = cell.value, str(cell.number_format)
    if cell.data_type == "e":
        raise DataError(f"{where}, cell {cell.coordinate} holds the error {value!r:.20}. Correct it.")
    if value is None or (isinstance(value, str) and (shape == "@" or not ("@" in shape or shape.count(";") == 3))):
        return value and _CODE.sub(lambda found: chr(int(found[1], 16)), value)
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.date | datetime.time):
        if text := _moment(value, shape):
            return text
        raise DataError(
            f"{where}, cell {cell.coordinate}: {str(value)!r} is shown in the format {shape!r:.40}, by names or in "
            "part. Format the column as yyyy-mm-dd, or export the sheet as CSV."
        )
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


def _moment(value: datetime.date | datetime.time, shape: str) -> str | None:
    """A date or time with the parts that its format shows; None where the date is shown in part, or by names."""
    shown = _UNSHOWN.sub(" ", shape.partition(";")[0].lower())
    clock = re.search(r"h.*", shown, re.DOTALL)
    days = shown[: clock.start()] if clock else shown
    parts = []
    if any(letter in days for letter in "ymd"):
        if not isinstance(value, datetime.date) or not re.fullmatch(r"(?=.*yy)(?=.*\bm?m\b)(?=.*\bd?d\b).*", days):
            return None
        parts.append(f"{value:%Y-%m-%d}")
    if clock:
        if "mm" not in clock[0] or any(letter in clock[0] for letter in "yd"):
            return None
        time = datetime.time.min if type(value) is datetime.date else value
        hour = f"{time:%H}" if clock[0].startswith("hh") else str(time.hour)  # type: ignore[union-attr]
        parts.append(hour + time.strftime(":%M:%S" if "s" in clock[0] else ":%M"))
    return " ".join(parts) or None


def _shaped(value: float, shape: re.Match[str]) -> str:
    decimals, whole = len(shape["decimals"] or ""), shape["whole"]
    exact = Decimal(repr(value)) * (100 if shape["percent"] else 1)
    number = exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)  # as Excel rounds, and Python does not
    if whole.startswith("#"):
        return f"{number:,.{decimals}f}{shape['percent']}"
    width = len(whole) + (decimals + 1 if decimals else 0) + (number < 0)
    return f"{number:0{width}.{decimals}f}{shape['percent']}"
