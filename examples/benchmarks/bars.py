"""Horizontal bars with their spreads, in panels: the plot of the benchmarks of cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import show

_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # behind text, so that no line runs through it
_PLAIN, _HIGHLIGHT, _INK = "#8da9c4", "#D55E00", "#222222"


@dataclass(frozen=True)
class Bar:
    """One bar of a plot: a value and its spread, or the reason why there is none."""

    value: float | None
    spread: tuple[float, float] | None = None
    reason: str = "not run"


def bar_plot(
    panels: Sequence[Sequence[tuple[str, Mapping[str, Bar]]]],
    path: Path,
    *,
    title: str,
    highlight: Sequence[str] = (),
    reference: float | None = 1.0,
) -> Path:
    """Horizontal bars in a grid of panels with one scale for each row of the grid.

    Args:
        panels: Rows of (panel title, bars by label); all panels show the labels of the first one.
        path: Where to write.
        title: Above everything.
        highlight: Labels to set off by colour and a bold name.
        reference: Where to draw a dashed line (the baseline); None for no line.
    """
    labels = list(panels[0][0][1])
    height, width = len(panels), max(len(row) for row in panels)
    figure = Figure(figsize=(2.8 + 2.9 * width, 0.7 + height * (0.7 + 0.3 * len(labels))), layout="constrained")
    grid = figure.subplots(height, width, sharex="row", sharey=True, squeeze=False)
    for axes, row in zip(grid, panels, strict=True):
        tops = [
            x for _, bars in row for bar in bars.values() for x in (bar.value, *(bar.spread or ())) if x is not None
        ]
        for axis, (heading, bars) in zip(axes, row, strict=True):
            _draw_bars(axis, heading, [bars[label] for label in labels], labels, highlight, max(tops, default=1.0))
            if reference is not None:
                axis.axvline(reference, color=_INK, linestyle="--", linewidth=0.8, zorder=1)
        axes[0].set_yticks(range(len(labels)), labels)
        axes[0].set_ylim(len(labels) - 0.4, -0.6)  # the first label on top
        for label in axes[0].get_yticklabels():
            if label.get_text() in highlight:
                label.set_fontweight("bold")
    figure.suptitle(title, fontsize=11, color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")
    return path


def _draw_bars(
    axis: Axes, heading: str, bars: Sequence[Bar], labels: Sequence[str], highlight: Sequence[str], right: float
) -> None:
    gap = 0.02 * right
    for position, (bar, label) in enumerate(zip(bars, labels, strict=True)):
        if bar.value is None:
            axis.text(gap, position, bar.reason, va="center", fontsize=7, color="#777777", bbox=_CLEAR)
            continue
        axis.barh(position, bar.value, height=0.7, color=_HIGHLIGHT if label in highlight else _PLAIN, zorder=2)
        if bar.spread is not None:
            reach = [[max(0.0, bar.value - bar.spread[0])], [max(0.0, bar.spread[1] - bar.value)]]
            axis.errorbar(bar.value, position, xerr=reach, color=_INK, capsize=2, linewidth=1.0, zorder=3)
        end = max(bar.value, *(bar.spread or (0.0,))) + gap
        axis.text(end, position, show(float(bar.value)), va="center", fontsize=8, color=_INK, bbox=_CLEAR)
    axis.set_xlim(0, right * 1.25)
    axis.set_title(heading, fontsize=10, color=_INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9, colors=_INK)
