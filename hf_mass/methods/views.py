"""The ways of asking a task: under transformations of its grids, and with its demonstrations in other orders."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hf_mass.errors import DataError
from hf_mass.lm.generation import row_seed
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.bbh import ANSWER_KIND, bbh_answer
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.grid_transformations import PermuteColours, Transformation
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.leave_one_out import demonstration_orders
from hf_mass.tasks.task import Task
from hf_mass.tasks.transformations import transform_task
from hf_mass.tasks.voting import Prediction


@dataclass(frozen=True)
class View:
    """One way of asking a task."""

    owner: int  # index of the task
    task: Task  # the task as it is shown
    transformation: Transformation  # what was done to its grids, apart from colours
    colours: PermuteColours | None  # how they were recoloured afterwards; None if they were not
    number: int  # number of the view among those of one transformation
    seed: int  # of a sampled answer

    def read(self, fmt: FewShotFormat, text: str, cut: bool = False) -> Prediction:
        """The answer in a text, mapped back; None where it cannot be read or mapped back. `cut` is noted."""
        kind = self.task.fields.get(ANSWER_KIND)
        answer = fmt.read_answer(text, self.task) if kind is None else bbh_answer(text, kind) or None  # type: ignore[arg-type]
        if answer is not None and fmt.grid_form is not None:
            grid = parse_grid(answer)
            if grid is not None and self.colours is not None:
                grid = self.colours.invert(grid)
            back = None if grid is None else self.transformation.invert(grid)
            answer = None if back is None else grid_text(back)
        return Prediction(answer, self.transformation.name, self.number, cut=cut)

    def show(self, answer: str, fmt: FewShotFormat) -> str:
        """An answer to the task as it would read in this view: what `read` maps back."""
        if fmt.grid_form is None:
            return answer
        grid = parse_grid(answer)
        if grid is None:
            raise DataError(f"View.show: {answer[:60]!r} is no grid. Score grids only, or use a format of text.")
        view = self.transformation.apply(grid)
        return grid_text(view if self.colours is None else self.colours.apply(view))


def task_views(owner: int, task: Task, settings: TTTSettings, seed: int) -> Iterator[View]:
    """Every way of asking a task: under each transformation the given order of its demonstrations, then random ones.

    With `predict_recolour` all but the first of a transformation are recoloured at random.
    """
    rng = random.Random(row_seed("orders", seed, task.id))
    for transformation in settings.views():
        plain = transform_task(task, transformation)
        orders = demonstration_orders(len(task.demonstrations), settings.predict_permutations, rng)
        for number in range(settings.predict_permutations if settings.predict_recolour else len(orders)):
            order = orders[number % len(orders)]
            view = replace(plain, demonstrations=tuple(plain.demonstrations[i] for i in order))
            colours = None
            if settings.predict_recolour and number:
                colours = PermuteColours.random(rng, settings.keep_background)
                view = transform_task(view, colours)
            for sample in range(settings.predict_samples):
                row = row_seed("predict", seed, task.id, transformation.name, number, sample)
                yield View(owner, view, transformation, colours, number, row)
