"""Which kind of problem tasks are: grids or texts."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.task import Task


def kind_of(tasks: Sequence[Task]) -> str:
    """ "grids" if all that the tasks show are grids in canonical form, else "texts".

    Numbers alone are not grids of one cell.
    """
    texts = [text for task in tasks for pair in task.demonstrations for text in (pair.question, pair.answer)]
    texts += [text for task in tasks for text in (task.problem, task.answer) if text is not None]
    grids = [parse_grid(text) for text in texts]
    canonical = all(g is not None and grid_text(g) == text for g, text in zip(grids, texts, strict=True))
    return "grids" if canonical and any(len(g) > 1 or len(g[0]) > 1 for g in grids if g is not None) else "texts"
