"""Which kind of problem tasks are: grids or texts."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mass.tasks.grids import canonical_grid
from hf_mass.tasks.task import Task

KINDS = ("grids", "texts")


def kind_of(tasks: Sequence[Task]) -> str:
    """ "grids" if all that the tasks show are grids in canonical form, else "texts".

    Numbers alone are not grids of one cell.
    """
    texts = [text for task in tasks for pair in task.demonstrations for text in (pair.question, pair.answer)]
    texts += [text for task in tasks for text in (task.problem, task.answer) if text is not None]
    grids = [canonical_grid(text) for text in texts]
    return "grids" if all(grids) and any(len(g) > 1 or len(g[0]) > 1 for g in grids if g is not None) else "texts"
