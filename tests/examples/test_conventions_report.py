"""Goals and figures of the conventions experiment, and how well scores rank."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from hf_mass.errors import DataError
from hf_mass.evaluation.statistics import Interval
from hf_mass.evaluation.tables import ResultRow, ResultTable
from research.conventions import figures
from research.conventions.figures import training_plot
from research.conventions.report import above
from research.ranking import auc


@pytest.mark.parametrize(
    ("mean", "half", "factor", "met"),
    [
        (0.70, 0.04, 1.5, True),
        (0.59, 0.04, 1.5, False),  # below 1.5 times .40
        (0.47, 0.04, 1.0, False),  # .43 touches .44
        (0.47, 0.02, 1.0, True),
        (0.40, 0.00, 1.0, False),  # equal is not above
    ],
)
def test_goals(mean: float, half: float, factor: float, met: bool) -> None:
    rows = (
        ResultRow("base", {"x": Interval(0.4, 0.36, 0.44, 400, 3)}),
        ResultRow("MASS", {"x": Interval(mean, mean - half, mean + half, 400, 3)}),
    )
    goal = above(ResultTable("t", ("x",), rows), "MASS", "base", "x", factor)
    assert goal.met is met
    assert str(goal).startswith("met: MASS" if met else "MISSED: MASS")
    assert f"{mean:.3f}" in str(goal)


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, as they are handed to the writer."""
    seen: list[Figure] = []
    save = figures.save_figure

    def keep(figure: Figure, path: Path) -> Path:
        seen.append(figure)
        return save(figure, path)

    monkeypatch.setattr(figures, "save_figure", keep)
    return seen


def test_training_plot_draws_what_was_logged(tmp_path: Path, drawn: list[Figure]) -> None:
    history = [{"step": step, "loss": 1.0 / step, "epoch": step / 4} for step in range(1, 6)]
    history.append({"step": 5, "eval_accuracy": 0.5, "note": "text"})
    path = training_plot(history, tmp_path / "t.png", {"loss": ["loss"], "accuracy": ["eval_accuracy"]})
    assert path.stat().st_size > 1000
    axes = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["loss", "accuracy"]
    np.testing.assert_allclose(axes[0].lines[0].get_xydata(), [[s, 1.0 / s] for s in range(1, 6)])
    assert axes[1].lines[0].get_marker() == "o", "a single value must be visible"


def test_training_plot_groups_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    history = [{"step": s, "before": 0.1, "after": 0.2 * s, "other": 1.0} for s in range(3)]
    training_plot(history, tmp_path / "t.svg", {"reward": ["before", "after"]})
    (axis,) = drawn[0].axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["before", "after"]


def test_training_plot_refuses_what_was_not_logged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no values for \['reward'\]"):
        training_plot([{"step": 1, "loss": 1.0}], tmp_path / "t.png", {"reward": ["reward"]})
    with pytest.raises(DataError, match="any metric"):
        training_plot([], tmp_path / "t.png", {})
    assert list(tmp_path.iterdir()) == []


# -- AUC ---------------------------------------------------------------------------------------------------------------


@given(
    items=st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 3.0, math.inf]), st.booleans()), min_size=2, max_size=40)
)
def test_auc_counts_pairs(items: list[tuple[float, bool]]) -> None:
    scores, labels = [score for score, _ in items], [label for _, label in items]
    positives = [score for score, label in items if label]
    negatives = [score for score, label in items if not label]
    if not positives or not negatives:
        with pytest.raises(DataError, match="Both classes"):
            auc(scores, labels)
        return
    wins = sum((p > q) + 0.5 * (p == q) for p in positives for q in negatives)
    assert auc(scores, labels) == pytest.approx(wins / (len(positives) * len(negatives)), abs=1e-12)
    assert auc(scores, [not label for label in labels]) == pytest.approx(1 - auc(scores, labels), abs=1e-12)


def test_auc_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(DataError, match="3 scores and 2 labels"):
        auc([1, 2, 3], [0, 1])
    with pytest.raises(DataError, match="NaN"):
        auc([1, math.nan], [0, 1])
    with pytest.raises(DataError, match="0 and 1"):
        auc([1, 2], [1, 2])
