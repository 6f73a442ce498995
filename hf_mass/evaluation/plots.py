"""Figures of accuracies with their intervals.

Figures are drawn on `matplotlib.figure.Figure` directly, never through pyplot: no global state, no window, safe in a
server's threads. Colours are from Okabe and Ito's palette, which stays apart under the common kinds of colour
blindness, and no meaning hangs on colour alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from hf_mass.errors import ConfigError, DataError
from hf_mass.evaluation.tables import ResultTable

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ConfigError(f'Figures need matplotlib ({error}). Install it by: pip install "hf_mass[plots]"') from error

_PLAIN, _HIGHLIGHT, INK = "#8da9c4", "#D55E00", "#222222"
_FORMATS = (".png", ".svg", ".pdf")


def accuracy_plot(table: ResultTable, path: str | os.PathLike[str], *, highlight: Collection[str] = ()) -> Path:
    """Horizontal bars, one per method and a panel per split, with the intervals of the table.

    Args:
        table: The results; rows are drawn from top to bottom in their order.
        path: Where to write; the suffix gives the format (.png, .svg or .pdf).
        highlight: Methods to set off: another colour and a bold name.

    Returns:
        The path.

    Raises:
        DataError: If the table has no rows, or `highlight` names a method that it does not have.
        ConfigError: If the suffix is not one of the formats.
    """
    methods = [row.method for row in table]
    if not methods:
        raise DataError("accuracy_plot: the table has no rows. Add the results first.")
    if unknown := sorted(set(highlight) - set(methods)):
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
    figure.suptitle(table.title, fontsize=11, color=INK)
    figure.supxlabel("accuracy with 95% interval", fontsize=9, color=INK)
    return save_figure(figure, path)


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
        axis.errorbar(interval.mean, position, xerr=reach, color=INK, capsize=3, linewidth=1.1, zorder=3)
        axis.text(interval.high + gap, position, f"{interval.mean:.3f}", va="center", fontsize=8, color=INK, zorder=3)
    # Room for the figure behind the longest bar; ticks stop at 1, beyond which no accuracy lies.
    axis.set_xlim(0, right * 1.2)
    axis.set_xticks([tick for tick in MaxNLocator(nbins=5).tick_values(0, right) if 0 <= tick <= min(1.0, right * 1.2)])
    axis.set_title(split, fontsize=10, color=INK)
    tidy(axis, grid="x")
    axis.tick_params(axis="y", length=0)


def tidy(axis: Axes, grid: str) -> None:
    """No box, a light grid behind the data, small labels."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#dddddd", linewidth=0.6, zorder=0)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9, colors=INK)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure; the suffix gives the format (.png, .svg or .pdf).

    Returns:
        The path.

    Raises:
        ConfigError: If the suffix is not one of the formats.
    """
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise ConfigError(f"path {str(target)!r} ends in {target.suffix!r}. Use one of {', '.join(_FORMATS)}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    # "tight" lets the canvas grow round a name that is longer than the layout has room for, so no text is cut.
    figure.savefig(target, dpi=160, bbox_inches="tight", facecolor="white")
    return target
