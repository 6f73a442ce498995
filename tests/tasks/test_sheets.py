"""Workbooks of Excel, and what may be wrong with one."""

from __future__ import annotations

import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hf_mass.errors import DataError, DataWarning
from hf_mass.tasks.problems import read_problem_file
from hf_mass.tasks.rows import load_few_shot_file, read_rows
from hf_mass.tasks.tables import TableForm

openpyxl = pytest.importorskip("openpyxl")


def workbook(path: Path, *sheets: list[list[Any]], formats: dict[str, str] | None = None) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
        for cell, shape in (formats or {}).items():
            sheet[cell].number_format = shape
    book.save(path)
    return path


def test_cells_are_read_as_they_are_shown(tmp_path: Path) -> None:
    values = ["007", 7, 7, 1.5, 0.1 + 0.2, 0.25, -3, datetime.date(2024, 1, 31), True, 1234567.5]
    formats = {"A4": "000", "A5": "0.00", "A7": "0%", "A11": "#,##0.00"}
    file = workbook(tmp_path / "a.xlsx", [["input", "output"], *([value, "x"] for value in values)], formats=formats)
    assert [row["input"] for row in read_rows(file)] == [
        *("007", "7", "007", "1.50", "0.3", "25%", "-3", "2024-01-31", "TRUE", "1,234,567.50")
    ]


NOON = datetime.datetime(2024, 1, 31, 13, 5, 7)


def moment(folder: Path, value: Any, shape: str) -> str:
    file = workbook(folder / "a.xlsx", [["input", "output"], [value, "x"]], formats={"A2": shape})
    return str(read_rows(file)[0]["input"])


def test_dates_and_times_have_the_parts_that_are_shown(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    as_shown = {
        "yyyy-mm-dd": "2024-01-31",
        "yyyy-mm-dd hh:mm:ss": "2024-01-31 13:05:07",
        "yyyy\\-mm\\-dd h:mm": "2024-01-31 13:05",
        "h:mm:ss": "13:05:07",
    }
    for shape, text in as_shown.items():
        assert moment(tmp_path, NOON, shape) == text
    assert moment(tmp_path, datetime.time(9, 5), "h:mm") == "9:05"
    assert not recwarn.list
    for shape, text in {"dd/mm/yyyy": "2024-01-31", "m/d/yy h:mm": "2024-01-31 13:05", "h:mm AM/PM": "13:05"}.items():
        with pytest.warns(DataWarning, match=f"shows dates or times as '{shape}'; they are read as 2024-01-31 and"):
            assert moment(tmp_path, NOON, shape) == text
    for shape in ("mmm yyyy", "yyyy", "dddd", "d-mmm-yy", "h"):
        with pytest.raises(
            DataError, match=f"cell A2: '2024-01-31 13:05:07' is shown in the format '{shape}', by name"
        ):
            moment(tmp_path, NOON, shape)


def test_numbers_are_rounded_as_excel_does(tmp_path: Path) -> None:
    for value, shape, text in ((0.125, "0%", "13%"), (2.5, "0", "3"), (1.005, "0.00", "1.01"), (-2.5, "0", "-3")):
        assert moment(tmp_path, value, shape) == text


def test_what_a_person_does_not_see_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cell A2: 'a' is shown in the format '@\" kg\"'"):
        moment(tmp_path, "a", '@" kg"')
    for what in ("rows", "columns"):
        book = openpyxl.Workbook()
        for row in (["input", "output"], ["a", "b"]):
            book.active.append(row)
        dimensions = book.active.row_dimensions[2] if what == "rows" else book.active.column_dimensions["B"]
        dimensions.hidden = True
        book.save(tmp_path / "b.xlsx")
        with pytest.warns(DataWarning, match=f"has hidden {what}, which are read as well"):
            assert read_rows(tmp_path / "b.xlsx") == [{"input": "a", "output": "b"}]


def test_rows_of_a_workbook(tmp_path: Path) -> None:
    rows = [["Wort", "Plural"], ["Hund", "Hunde"], ["Katze", "Katzen"], ["Maus", None]]
    file = workbook(tmp_path / "a.xlsx", rows, [])
    task = read_problem_file(file, form=TableForm(input_column="Wort", output_column="Plural")).tasks[0]
    assert (task.problem, task.answer, len(task.demonstrations)) == ("Maus", None, 2)
    assert len(load_few_shot_file(workbook(tmp_path / "b.xlsx", rows[:3]), "Wort", "Plural", demonstrations=1)) == 1


def test_workbooks_that_are_refused(tmp_path: Path) -> None:
    rows = [["input", "output"], ["a", 1.5]]
    with pytest.raises(DataError, match=r"several sheets with content: 'Sheet', 'Sheet1'\. Export"):
        read_rows(workbook(tmp_path / "a.xlsx", rows, rows))
    with pytest.raises(DataError, match=r"cell B2: 1\.5 is shown in the format '0\.0E\+00'.*as text"):
        read_rows(workbook(tmp_path / "b.xlsx", rows, formats={"B2": "0.0E+00"}))
    for content in (b"", b"PK\x03\x04" + b"\0" * 40, _zip({"x": b"y"}), _zip({"[Content_Types].xml": b"<a"})):
        (tmp_path / "c.xlsx").write_bytes(content)
        with pytest.raises(DataError, match=r"c\.xlsx.* could not be read as a workbook.*Export it as CSV"):
            read_rows(tmp_path / "c.xlsx")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(_zip({f"{n}": b"\0" * 50_000_000 for n in range(5)}))
    with pytest.raises(DataError, match="unpacks to 250,000,000 bytes; at most"):
        read_rows(tmp_path / "a.xlsx")


def _zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return stream.getvalue()


def test_cells_that_are_not_what_they_seem_are_refused(tmp_path: Path) -> None:
    rows = [["input", "output"], ["a", "b"], ["c", "=1+1"], ["d", "e"]]
    with pytest.raises(DataError, match=r"cell 'B3' has a formula whose value is not in the file"):
        read_rows(workbook(tmp_path / "a.xlsx", rows))
    for value, told in (("#N/A", "B2 holds the error '#N/A'"), (1e20, "more digits than"), (1e-7, "more digits than")):
        with pytest.raises(DataError, match=told):
            read_rows(workbook(tmp_path / "b.xlsx", [["input", "output"], ["a", value]]))
    book = openpyxl.load_workbook(workbook(tmp_path / "c.xlsx", [*rows[:2], ["c", None]]))
    book.worksheets[0].merge_cells("B2:B3")
    book.save(tmp_path / "c.xlsx")
    with pytest.raises(DataError, match=r"merged cells, 'B2:B3'. Unmerge"):
        read_rows(tmp_path / "c.xlsx")


def test_the_letters_of_cells(tmp_path: Path) -> None:
    file = workbook(tmp_path / "a.xlsx", [["input", "output"], [" a\n_x000D_", "\tb "], [123456789012345, 0.000125]])
    assert [tuple(row.values()) for row in read_rows(file)] == [(" a\n\r", "\tb "), ("123456789012345", "0.000125")]
