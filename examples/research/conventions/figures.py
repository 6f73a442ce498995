"""Figures of logged metrics over training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_mass.errors import DataError
from hf_mass.evaluation.plots import INK, save_figure, tidy

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def training_plot(
    history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], panels: Mapping[str, Sequence[str]]
) -> Path:
    """Lines of logged metrics by step, in small panels.

    Args:
        history: Records with a `step`, such as `trainer.state.log_history`; a metric may be absent from a record.
        path: Where to write; the suffix gives the format (.png, .svg or .pdf).
        panels: Metrics to draw together, by the title of their panel.

    Returns:
        The path.

    Raises:
        DataError: If there is no panel, or a metric was not logged.
        ConfigError: If the suffix is not one of the formats.
    """
    logged = {name for record in history for name, value in record.items() if value is not None}
    missing = sorted({name for names in panels.values() for name in names} - logged)
    if missing or not panels:
        raise DataError(f"training_plot: no values for {missing or 'any metric'}. The history holds {sorted(logged)}.")
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 3.6 * columns, 0.5 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (heading, names) in zip(grid, panels.items(), strict=False):
        for index, name in enumerate(names):
            records = [record for record in history if record.get(name) is not None]
            steps, values = [record["step"] for record in records], [record[name] for record in records]
            colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
            marker = "o" if len(steps) == 1 else None  # a line through one point would not be seen
            axis.plot(steps, values, color=colour, linestyle=style, marker=marker, linewidth=1.6, label=name)
        if len(names) > 1:
            axis.legend(fontsize=8, frameon=False)
        axis.set_title(heading, fontsize=10, color=INK)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        tidy(axis, grid="both")
    for axis in grid[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("step", fontsize=9, color=INK)
    return save_figure(figure, path)
