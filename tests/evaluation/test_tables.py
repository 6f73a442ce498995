"""Tables through their formats, and figures that hold what they should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from hf_mass.errors import ConfigError, DataError
from hf_mass.evaluation import plots
from hf_mass.evaluation.plots import accuracy_plot
from hf_mass.evaluation.statistics import Interval
from hf_mass.evaluation.tables import ResultRow, ResultTable

# -- tables ------------------------------------------------------------------------------------------------------------


def make_table() -> ResultTable:
    base = {"families": Interval(0.4, 0.36, 0.44, 400, 3), "conventions": Interval(0.25, 0.21, 0.29, 450, 3)}
    ours = {"families": Interval(0.7, 0.66, 0.74, 400, 3)}
    return ResultTable(
        title="two | methods",
        splits=("families", "conventions"),
        rows=(
            ResultRow("base", base, sampled_tokens=0),
            ResultRow("MASS | scored", ours, sampled_tokens=184.6, latency_s=0.01234, extra={"auc": 0.75}),
        ),
        meta={"command": "python -m research.conventions.results --seeds 3", "versions": {"torch": "2.13.0"}},
    )


def test_markdown() -> None:
    assert make_table().to_markdown().splitlines() == [
        "| method | families | conventions | n | seeds | tokens / problem | s / problem |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| base | 0.400 [0.360, 0.440] | 0.250 [0.210, 0.290] | 400 / 450 | 3 | 0 | – |",
        "| MASS \\| scored | 0.700 [0.660, 0.740] | – | 400 | 3 | 185 | 0.0123 |",
    ]


def test_text_is_aligned() -> None:
    title, *lines = make_table().to_text().splitlines()
    assert title == "two | methods"
    assert len({len(line) for line in lines}) == 1
    assert lines[2].index("0.400") == lines[3].index("0.700")


def test_json_round_trip(tmp_path: Path) -> None:
    table = make_table()
    assert ResultTable.from_json(table.to_json()) == table
    path = table.save(tmp_path / "new" / "table.json")
    assert ResultTable.load(path) == table
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]
    assert "command" not in table.to_markdown() + table.to_text()


@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True),
    mean=st.floats(0, 1),
    cost=st.none() | st.floats(0, 1e9),
)
def test_json_round_trip_of_any_table(names: list[str], mean: float, cost: float | None) -> None:
    rows = tuple(ResultRow(name, {"split": Interval(mean, mean, mean, 5, 1)}, cost, cost) for name in names)
    table = ResultTable("t", ("split",), rows, {"date": "2025-01-01"})
    assert ResultTable.from_json(table.to_json()) == table


def test_saving_over_a_table_keeps_the_old_one_if_it_fails(tmp_path: Path) -> None:
    path = make_table().save(tmp_path / "table.json")
    before = path.read_text()
    broken = ResultTable("t", ("split",), (), {"device": object()})
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_text() == before


@pytest.mark.parametrize("field", ["format", "title", "splits", "rows", "meta"])
def test_json_without_a_field_is_refused(field: str) -> None:
    record = json.loads(make_table().to_json())
    del record[field]
    with pytest.raises(DataError, match=field):
        ResultTable.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"format": 99}'])
def test_text_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="ResultTable"):
        ResultTable.from_json(text)


def test_broken_interval_is_refused() -> None:
    record = json.loads(make_table().to_json())
    record["rows"][0]["accuracy"]["families"]["low"] = "n/a"
    with pytest.raises(DataError, match="Interval"):
        ResultTable.from_json(json.dumps(record))


def test_table_refuses_what_does_not_fit() -> None:
    row = ResultRow("base", {"x": Interval(0.5, 0.4, 0.6, 10, 1)})
    with pytest.raises(DataError, match="more than once"):
        ResultTable("t", ("x",), (row, row))
    with pytest.raises(DataError, match="more than once"):
        ResultTable("t", ("x", "x"), (row,))
    with pytest.raises(DataError, match=r"results for \['x'\]"):
        ResultTable("t", ("y",), (row,))
    with pytest.raises(DataError, match="at least one split"):
        ResultTable("t", (), ())
    with pytest.raises(DataError, match="no row 'MASS'"):
        ResultTable("t", ("x",), (row,))["MASS"]
    with pytest.raises(DataError, match="no result for split 'conventions'"):
        make_table().interval("MASS | scored", "conventions")


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, as they are handed to the writer."""
    drawn: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, target: Path) -> Path:
        drawn.append(figure)
        return save(figure, target)

    monkeypatch.setattr(plots, "save_figure", keep)
    return drawn


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_accuracy_plot_writes_the_format_of_its_name(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = accuracy_plot(make_table(), tmp_path / "figures" / f"accuracy{suffix}", highlight=["MASS | scored"])
    assert path.read_bytes().startswith(magic)


def test_accuracy_plot_shows_the_numbers(tmp_path: Path, figures: list[Figure]) -> None:
    accuracy_plot(make_table(), tmp_path / "a.png", highlight=["MASS | scored"])
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["base", "MASS | scored"]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first row belongs on top"
    assert [bar.get_width() for bar in left.patches] == [0.4, 0.7]
    assert [text.get_text() for text in left.texts] == ["0.400", "0.700"]
    assert [text.get_text() for text in right.texts] == ["0.250", "not run"]
    whiskers = [
        bars.lines[2][0].get_segments()[0][:, 0] for bars in left.containers if isinstance(bars, ErrorbarContainer)
    ]
    np.testing.assert_allclose(whiskers, [[0.36, 0.44], [0.66, 0.74]])
    assert left.get_xlim() == right.get_xlim(), "panels must be comparable"


def test_no_text_is_cut(tmp_path: Path, figures: list[Figure]) -> None:
    long = "a method with a name that is far longer than anybody would give it, and then some more"
    rows = [ResultRow(long + str(i), {"x": Interval(1.0, 0.9, 1.0, 5, 1)}) for i in range(3)]
    accuracy_plot(ResultTable("title", ("x",), tuple(rows)), tmp_path / "a.png")
    figure = figures[0]
    axis = figure.axes[0]
    drawn = figure.get_tightbbox()
    for label in [*axis.get_yticklabels(), *axis.texts]:
        box = label.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        assert drawn.x0 <= box.x0 + 1e-6
        assert box.x1 <= drawn.x1 + 1e-6


def test_figures_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    table = make_table()
    with pytest.raises(ConfigError, match=r"\.jpeg"):
        accuracy_plot(table, tmp_path / "a.jpeg")
    with pytest.raises(DataError, match=r"\['GRPO'\]"):
        accuracy_plot(table, tmp_path / "a.png", highlight=["GRPO"])
    with pytest.raises(DataError, match="no rows"):
        accuracy_plot(ResultTable("t", ("x",), ()), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
