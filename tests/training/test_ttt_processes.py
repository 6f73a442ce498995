"""Two processes of `TTTTrainer` do the same work, also where only one of them finds what an earlier run finished.

Run as a script this file is what each process does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import two_processes
from ttt_fixtures import make_trainer, reinforced, strip_task

from hf_mass.training.ttt_trainer import TTTTrainer

pytestmark = pytest.mark.slow

TASKS = [strip_task("four", "444"), strip_task("five", "555"), strip_task("mixed", "454")]
OBJECTIVES: dict[str, Any] = {"sft": make_trainer, "grpo": lambda folder: reinforced(folder, max_steps=2)}


class Counting(TTTTrainer):
    """Keeps the ids of the tasks that it comes to."""

    def _chunk(self, tasks: Any, *args: Any, **kwargs: Any) -> Any:
        self.came_to = [*getattr(self, "came_to", []), *(task.id for task in tasks)]
        return super()._chunk(tasks, *args, **kwargs)


def resumed(make: Any, folder: Path) -> dict[str, Any]:
    """The results of all tasks, where rank 0 alone finds the first one finished."""
    rank = int(os.environ["RANK"])
    trainer = make(folder / f"of-rank{rank}")
    trainer.__class__ = Counting
    trainer.predict(TASKS[:1])
    if rank:
        next((folder / f"of-rank{rank}").glob("tasks/four-*/*.json"), folder / "none").unlink(missing_ok=True)
    trainer.came_to = []
    results = trainer.predict(TASKS, resume=True)
    return {
        "came_to": trainer.came_to,
        "answers": [result.answers for result in results],
        "reasons": [result.reason for result in results],
    }


def worker(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {name: resumed(make, folder / name) for name, make in OBJECTIVES.items()}
    torch.save(found, folder / f"rank{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Objective → outcome, of each process."""
    folder = tmp_path_factory.mktemp("ttt-processes")
    with two_processes(__file__, folder) as wait:
        wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_is_the_same_in_every_process(found: list[dict[str, Any]], objective: str) -> None:
    first, second = (each[objective] for each in found)
    assert first["reasons"] == second["reasons"] == [None] * 3
    assert first["answers"] == second["answers"] and all(first["answers"])
    if objective == "grpo":  # all processes train each task together
        assert first["came_to"] == second["came_to"] == ["five", "mixed"]
    else:  # each takes some
        assert sorted([*first["came_to"], *second["came_to"]]) == ["five", "mixed"]


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
