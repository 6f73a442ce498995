"""Two processes against one on the same batch: the same losses, rewards, gradients and parameters.

Three groups of four samples on two processes: each gets six rows, so one group is split between them, and they adapt to
two tasks and one. The completions are fixed by prompt and place in the group, since every process of TRL samples from a
random stream of its own.

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
from trainer_fixtures import CannedTrainer, largest_difference, make_trainer, trained_values, world

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
MODES: dict[str, dict[str, Any]] = {
    "gold": {"outer_loss": "gold", "solve_coefficient": 0.5},
    "gold_two_steps": {
        "outer_loss": "gold",
        "inner_steps": 2,
        "inner_learning_rate": 5.0,
        "solve_gradient": "full",
        "loss_type": "grpo",
        "scale_rewards": "group",
    },
    "verifier": {"outer_loss": "verifier", "num_solutions": 6, "solve_coefficient": 0.5},
}
ROWS = 12  # of all processes together


def outcomes(folder: Path, rows: int) -> dict[str, dict[str, Any]]:
    """What each mode leads to, with `rows` rows on this process."""
    found = {}
    for mode, changes in MODES.items():
        trainer = make_trainer(
            folder / mode,
            trainer=CannedTrainer,
            options={"eval_dataset": world().tasks("validation", 5)},
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=2,
            max_steps=2,
            log_completions=True,
            num_completions_to_print=0,
            **changes,
        )
        gradients: list[dict[str, torch.Tensor]] = []
        shared = trainer._share_gradients

        def keep(count: int, trainer: Any = trainer, shared: Any = shared, kept: Any = gradients) -> None:
            shared(count)
            scorer = {f"scorer{i}": g for i, g in enumerate(trainer._scorer_gradient)}
            kept.append({**scorer, **trainer._generator_gradient})

        trainer._share_gradients = keep  # type: ignore[method-assign]
        trainer.train()
        found[mode] = {
            "rows": trainer._train_batch_size,
            "values": trained_values(trainer),
            "rewards": trainer.seen_rewards,
            "gradients": gradients,
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "evaluation": trainer.evaluate(),
            "weights": list(trainer._logs["extra"]["weight"]),
        }
    return found


def worker(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = outcomes(folder / f"run{rank}", ROWS // size)
    torch.save(found, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Mode → outcomes of one process, of the first of two, of the second of two."""
    folder = tmp_path_factory.mktemp("processes")
    with two_processes(__file__, folder) as wait:
        one = outcomes(folder / "alone", ROWS)
        wait()
    two = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    return {mode: [one[mode], two[0][mode], two[1][mode]] for mode in MODES}


Found = dict[str, list[dict[str, Any]]]
every_mode = pytest.mark.parametrize("mode", list(MODES))


@every_mode
def test_a_group_was_split(found: Found, mode: str) -> None:
    alone, first, second = found[mode]
    assert (alone["rows"], first["rows"], second["rows"]) == (12, 6, 6)


@every_mode
def test_rewards_agree(found: Found, mode: str) -> None:
    alone, *both = found[mode]
    assert len(alone["rewards"]) == 2 and alone["rewards"][0].std() > 1e-3
    for process in both:
        for one, other in zip(alone["rewards"], process["rewards"], strict=True):
            torch.testing.assert_close(other, one, rtol=TOLERANCE, atol=TOLERANCE)


@every_mode
def test_gradients_of_scorer_and_solving_agree(found: Found, mode: str) -> None:
    alone, *both = found[mode]
    for process in both:
        for one, other in zip(alone["gradients"], process["gradients"], strict=True):
            assert one.keys() == other.keys() and any(g.any() for g in one.values())
            for name, gradient in one.items():
                torch.testing.assert_close(other[name], gradient, rtol=TOLERANCE, atol=TOLERANCE)


@every_mode
def test_losses_and_everything_else_that_is_logged_agree(found: Found, mode: str) -> None:
    alone, *both = found[mode]
    assert len(alone["log"]) == 2
    for process in both:
        for one, other in zip(alone["log"], process["log"], strict=True):
            assert one.keys() == other.keys()
            for name in one.keys() - {"step_time"}:
                assert other[name] == pytest.approx(one[name], rel=TOLERANCE, abs=TOLERANCE), name


@every_mode
def test_parameters_agree_after_two_steps(found: Found, mode: str) -> None:
    alone, first, second = found[mode]
    assert largest_difference(first["values"], second["values"]) == 0
    assert largest_difference(alone["values"], first["values"]) < TOLERANCE


@every_mode
def test_tables_hold_the_samples_of_all_processes(found: Found, mode: str) -> None:
    alone, first, _ = found[mode]
    assert len(first["weights"]) == ROWS
    assert first["weights"] == pytest.approx(alone["weights"], rel=TOLERANCE, abs=TOLERANCE)


@every_mode
def test_evaluations_agree(found: Found, mode: str) -> None:
    alone, *both = found[mode]
    for process in both:
        assert process["evaluation"] == pytest.approx(alone["evaluation"], rel=TOLERANCE)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
