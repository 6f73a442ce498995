"""Figures: accuracies with their intervals, and logged metrics over training.

Figures are drawn on `matplotlib.figure.Figure` directly, never through pyplot: no global state, no window, safe in a
server's threads. Colours are from Okabe and Ito's palette, which stays apart under the common kinds of colour
blindness, and no meaning hangs on colour alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mass.errors import ConfigError, DataError
from hf_mass.evaluation.tables import ResultTable

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ConfigError(f'Figures need matplotlib ({error}). Install it by: pip install "hf_mass[plots]"') from error

_PLAIN, _HIGHLIGHT, _INK = "#8da9c4", "#D55E00", "#222222"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_FORMATS = (".png", ".svg", ".pdf")
# What the Trainer logs about itself; not metrics to look at.
_BOOKKEEPING = ("epoch", "total_flos", "num_tokens")
_MAX_COLUMNS = 3


def accuracy_plot(
    table: ResultTable,
    path: str | os.PathLike[str],
    *,
    highlight: Collection[str] = (),
    xlabel: str = "accuracy with 95% interval",
) -> Path:
    """Horizontal bars, one per method and a panel per split, with the intervals of the table.

    Args:
        table: The results; rows are drawn from top to bottom in their order.
        path: Where to write; the suffix gives the format (.png, .svg or .pdf).
        highlight: Methods to set off: another colour and a bold name.
        xlabel: Label below the panels; change it where the intervals have another confidence.

    Returns:
        The path.

    Raises:
        DataError: If the table has no rows, or `highlight` names a method that it does not have.
        ConfigError: If the suffix is not one of the formats.
    """
    target = _target(path)
    methods = [row.method for row in table]
    if not methods:
        raise DataError("accuracy_plot: the table has no rows. Add the results first.")
    unknown = sorted(set(highlight) - set(methods))
    if unknown:
        raise DataError(f"accuracy_plot: highlight names {unknown}; the methods are {methods}.")
    count = len(table.splits)
    figure = Figure(figsize=(3.2 + 3.6 * count, 1.3 + 0.36 * len(methods)), layout="constrained")
    # One scale for all panels: the drop from one split to another is part of the result.
    axes = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    right = max((interval.high for row in table for interval in row.accuracy.values()), default=1.0) or 1.0
    for axis, split in zip(axes, table.splits, strict=True):
        _draw_split(axis, table, split, highlight, right)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)  # the first row on top
    for label in axes[0].get_yticklabels():
        if label.get_text() in highlight:
            label.set_fontweight("bold")
    figure.suptitle(table.title, fontsize=11, color=_INK)
    figure.supxlabel(xlabel, fontsize=9, color=_INK)
    return _save(figure, target)


def training_plot(
    history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    panels: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> Path:
    """Lines of logged metrics by step, in small panels.

    Args:
        history: Records with a `step`, such as `trainer.state.log_history`; a metric may be absent from a record.
        path: Where to write; the suffix gives the format (.png, .svg or .pdf).
        panels: Metrics to draw together, by the title of their panel. None gives every logged number its own panel.
        title: Title of the figure.

    Returns:
        The path.

    Raises:
        DataError: If no metric was logged, or one that `panels` names was not.
        ConfigError: If the suffix is not one of the formats.
    """
    target = _target(path)
    series = _series(history)
    if panels is None:
        panels = {name: [name] for name in series}
    missing = sorted({name for names in panels.values() for name in names} - set(series))
    if missing or not panels:
        raise DataError(f"training_plot: no values for {missing or 'any metric'}. The history holds {sorted(series)}.")
    columns = 2 if len(panels) == 4 else min(_MAX_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 3.6 * columns, 0.5 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (heading, names) in zip(grid, panels.items(), strict=False):
        for index, name in enumerate(names):
            steps, values = series[name]
            colour, style = _LINES[index % len(_LINES)], _STYLES[index % len(_STYLES)]
            marker = "o" if len(steps) == 1 else None  # a line through one point would not be seen
            axis.plot(steps, values, color=colour, linestyle=style, marker=marker, linewidth=1.6, label=name)
        if len(names) > 1:
            axis.legend(fontsize=8, frameon=False)
        axis.set_title(heading, fontsize=10, color=_INK)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        _tidy(axis, grid="both")
    for axis in grid[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, color=_INK)
    figure.supxlabel("step", fontsize=9, color=_INK)
    return _save(figure, target)


def _draw_split(axis: Axes, table: ResultTable, split: str, highlight: Collection[str], right: float) -> None:
    gap = 0.02 * right
    for position, row in enumerate(table):
        interval = row.accuracy.get(split)
        if interval is None:
            axis.text(gap, position, "not run", va="center", fontsize=8, color="#777777")
            continue
        colour = _HIGHLIGHT if row.method in highlight else _PLAIN
        axis.barh(position, interval.mean, height=0.7, color=colour, zorder=2)
        reach = [[max(0.0, interval.mean - interval.low)], [max(0.0, interval.high - interval.mean)]]
        axis.errorbar(interval.mean, position, xerr=reach, color=_INK, capsize=3, linewidth=1.1, zorder=3)
        axis.text(interval.high + gap, position, f"{interval.mean:.3f}", va="center", fontsize=8, color=_INK, zorder=3)
    # Room for the figure behind the longest bar; ticks stop at 1, beyond which no accuracy lies.
    axis.set_xlim(0, right * 1.2)
    axis.set_xticks([tick for tick in MaxNLocator(nbins=5).tick_values(0, right) if 0 <= tick <= min(1.0, right * 1.2)])
    axis.set_title(split, fontsize=10, color=_INK)
    _tidy(axis, grid="x")
    axis.tick_params(axis="y", length=0)


def _tidy(axis: Axes, grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#dddddd", linewidth=0.6, zorder=0)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9, colors=_INK)


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values per metric, in the order of first appearance."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for index, record in enumerate(history):
        if "step" not in record:
            raise DataError(f"training_plot: record {index} has no 'step'; it holds {sorted(record)}.")
        for name, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name == "step" or name in _BOOKKEEPING or not number:
                continue
            steps, values = series.setdefault(name, ([], []))
            steps.append(float(record["step"]))
            values.append(float(value))
    return series


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise ConfigError(f"path {str(target)!r} ends in {target.suffix!r}. Use one of {', '.join(_FORMATS)}.")
    return target


def _save(figure: Figure, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    # "tight" lets the canvas grow round a name that is longer than the layout has room for, so no text is cut.
    figure.savefig(target, dpi=160, bbox_inches="tight", facecolor="white")
    return target
