"""The procedural world of strips and grids, its text form, and the base that is trained on it."""

from __future__ import annotations

import itertools
import json
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_mass.errors import ConfigError, DataError
from research import pretraining
from research.grids import pretrain as pretrain_grids
from research.grids import world as grid_world
from research.grids.parts import Grid
from research.grids.rules_2d import components, fallen, turned
from research.grids.world import FAMILIES, HELD_OUT, GridTask, Sizes, curriculum, draw_task, parse_grid, render_grid

grids = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=6)
)
STAGES = [0.0, 0.29, 0.31, 0.7, 1.0]
WORLD = pretrain_grids.Grids()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return pretrain_grids.build_tokenizer()


def is_valid(grid: Grid) -> bool:
    return bool(grid) and len({len(row) for row in grid}) == 1 and all(0 <= c <= 9 for row in grid for c in row)


@pytest.mark.parametrize("progress", STAGES)
def test_every_family_can_be_drawn_at_every_stage(progress: float) -> None:
    sizes = curriculum(progress)
    for family in FAMILIES:
        for seed in range(3):
            task = draw_task(random.Random(f"{family}-{seed}"), sizes, [family])
            assert task.family.partition("+")[0] == family
            assert task.dimension == (1 if family.startswith("strip/") else 2)
            assert sizes.demonstrations[0] < len(task.pairs) <= sizes.demonstrations[1] + 1
            assert all(is_valid(grid) and grid[0] for pair in task.pairs for grid in pair), task
            assert any(a != b for a, b in task.pairs), task
            assert task.pairs[-1][0] not in [a for a, _ in task.pairs[:-1]], "the query gives its answer away"
            assert len(grid_world.render_task(task.pairs)) + 1 <= sizes.longest


@given(seed=st.integers(0, 10**9), progress=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_task_is_a_function_of_its_seed(seed: int, progress: float) -> None:
    sizes = curriculum(progress)
    assert draw_task(random.Random(seed), sizes) == draw_task(random.Random(seed), sizes)


def test_different_seeds_give_different_tasks() -> None:
    tasks = {grid_world.render_task(draw_task(random.Random(seed), Sizes()).pairs) for seed in range(200)}
    assert len(tasks) == 200


def test_training_draws_every_family_but_those_held_out() -> None:
    draw = random.Random(0)
    drawn = {draw_task(draw, curriculum(0.0)).family.partition("+")[0] for _ in range(4000)}
    assert drawn == set(FAMILIES) - set(HELD_OUT)
    assert len(HELD_OUT) == 8 and set(HELD_OUT) <= set(FAMILIES)


def test_shares_of_dimensions_and_compositions_follow_the_sizes() -> None:
    draw = random.Random(1)
    tasks = [draw_task(draw, Sizes(share_2d=0.3, composed=0.2)) for _ in range(2000)]
    assert abs(sum(task.dimension == 2 for task in tasks) / 2000 - 0.3) < 0.05
    assert 0.1 < sum("+" in task.family for task in tasks) / 2000 < 0.25
    assert not any("+" in draw_task(draw, Sizes(composed=0.0)).family for _ in range(300))


def test_the_curriculum_only_grows() -> None:
    stages = [curriculum(i / 20) for i in range(21)]
    for before, after in itertools.pairwise(stages):
        for name in ("strip", "side", "demonstrations"):
            assert getattr(before, name)[1] <= getattr(after, name)[1]
        assert before.share_2d <= after.share_2d
    assert stages[0].strip == (5, 10) and stages[-1].strip == (6, 36)
    assert stages[0].side == (2, 4) and stages[-1].side == (3, 7)


def test_a_size_that_no_scene_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match="strip/copy_pattern"):
        draw_task(random.Random(0), Sizes(strip=(2, 2)), ["strip/copy_pattern"])


@pytest.mark.parametrize(
    ("family", "law"),
    [
        ("strip/reverse", lambda a: [a[0][::-1]]),
        ("strip/compress", lambda a: [[c for c in a[0] if c]]),
        ("strip/stretch", lambda a: [[c for c in a[0] for _ in range(2)]]),
        ("grid/flip", lambda a: [row[::-1] for row in a]),
        ("grid/half_turn", lambda a: [row[::-1] for row in a[::-1]]),
    ],
)
def test_rules_do_what_their_name_says(family: str, law: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_world, "_oriented", lambda draw, dimension, pairs: pairs)
    task = draw_task(random.Random(3), Sizes(composed=0.0), [family])
    assert all(b == law(a) for a, b in task.pairs)


def test_parts_of_grid_rules_against_hand_made_cases() -> None:
    assert turned([[1, 2], [3, 4]]) == [[3, 1], [4, 2]]
    assert fallen([[0, 2, 0, 1], [0, 0, 0, 3]]) == [[2, 1, 0, 0], [3, 0, 0, 0]]
    assert components([[1, 0, 1], [1, 2, 0]]) == [[(0, 0), (1, 0)], [(0, 2)], [(1, 1)]]


@given(grid=grids)
def test_a_rendered_grid_is_read_back(grid: Grid) -> None:
    assert parse_grid(render_grid(grid)) == grid
    assert parse_grid(render_grid(grid) + ";") == grid
    assert parse_grid("\n".join(" ".join(map(str, row)) for row in grid) + ">") == grid


@pytest.mark.parametrize("text", ["", "12\n3", "1a", "12>3;", "12\n\n34", "²"])
def test_no_grid_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="rectangle"):
        parse_grid(text)


@given(pairs=st.lists(st.tuples(grids, grids), min_size=2, max_size=4), weight=st.sampled_from([0.0, 0.25]))
@settings(max_examples=30, deadline=None)
def test_one_token_a_cell_and_loss_on_later_outputs(pairs: list[tuple[Grid, Grid]], weight: float) -> None:
    tokenizer = pretrain_grids.build_tokenizer()
    text = grid_world.render_task(pairs)
    ids, weights = WORLD.encode([GridTask("strip/shift", tuple(pairs))], tokenizer, weight)
    assert tokenizer(text)["input_ids"] == ids[0].tolist()
    # A cell, and an end for every row: a row end inside a grid, ">" or ";" after its last row.
    assert ids.shape[1] == 1 + sum(len(grid) * (len(grid[0]) + 1) for pair in pairs for grid in pair)
    assert tokenizer.decode(ids[0], skip_special_tokens=False) == "<bos>" + text
    counted = "".join(c for c, w in zip(text, weights[0, 1:].tolist(), strict=True) if w == 1)
    assert counted == "".join(render_grid(b) + ";" for _, b in pairs[1:])
    first_output = len(render_grid(pairs[0][0])) + 2
    assert weights[0, first_output] == 0 and weights[0, 1] == weight


def test_the_tokenizer_keeps_colours_spaces_and_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("0123456789", add_special_tokens=False)["input_ids"] == list(range(10))
    assert tokenizer("1 2\n3 4>")["input_ids"] == tokenizer("12\n34>")["input_ids"]
    assert tokenizer.decode(tokenizer("12\n34;")["input_ids"], skip_special_tokens=True) == "12\n34"
    assert tokenizer.eos_token == ";" and len(tokenizer) == 24


def test_batches_keep_to_their_budget() -> None:
    cut = WORLD.batches(random.Random(0), 1.0, 4, 2000, 16)
    assert len(cut) >= 4
    for tasks in cut:
        lengths = [len(grid_world.render_task(task.pairs)) + 1 for task in tasks]
        assert len(tasks) <= 16 and len(tasks) * max(lengths) <= 2000


def test_solved_needs_the_whole_output(tokenizer: PreTrainedTokenizerFast) -> None:
    """A model that always says the same token is right only where the whole output is that token."""
    torch.manual_seed(0)
    model = pretraining.build_model(tokenizer, 32, 1)
    tasks = [draw_task(random.Random(i), curriculum(0.0)) for i in range(40)]
    assert not any(pretraining.solved(WORLD, model, tokenizer, tasks))

    class Oracle(torch.nn.Module):
        """Knows every text, and errs on one token of it if `wrong` says which from the end."""

        def __init__(self, wrong: int) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Namespace:
            following = torch.roll(input_ids, -1, dims=1)
            for row, ids in enumerate(input_ids):
                end = int((ids == tokenizer.eos_token_id).nonzero()[-1])
                following[row, end - 1 - self.wrong] = 20 if self.wrong >= 0 else following[row, end]
            return Namespace(logits=torch.nn.functional.one_hot(following, 24).float())

    assert all(pretraining.solved(WORLD, Oracle(-1), tokenizer, tasks))
    assert not any(pretraining.solved(WORLD, Oracle(0), tokenizer, tasks)), "the end belongs to the output"
    assert not any(pretraining.solved(WORLD, Oracle(1), tokenizer, tasks))


def test_validation_tasks_are_fixed_and_cover_every_family() -> None:
    sets = WORLD.validation_sets(1)
    assert sets == WORLD.validation_sets(1) and len(sets) == 8
    for name, tasks in sets.items():
        held_out, dimension = name.startswith("held_out"), 1 if "1d" in name else 2
        wanted = {f for f, (d, _) in FAMILIES.items() if d == dimension and (f in HELD_OUT) == held_out}
        assert {task.family for task in tasks} == wanted


def test_a_run_writes_a_base_and_resumes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [draw_task(random.Random(0), curriculum(0.0), ["strip/shift"]) for _ in range(3)]
    monkeypatch.setattr(WORLD, "validation_sets", lambda per_family: {"trained_1d_full": tasks})
    arguments = Namespace(
        output=tmp_path / "base",
        minutes=0.01,
        width=32,
        layers=1,
        batch_tokens=512,
        batch_tasks=8,
        learning_rate=2e-3,
        warm_up=5,
        input_weight=0.0,
        checkpoint_minutes=1,
        validation_per_family=1,
        threads=1,
        compile=False,
        seed=0,
    )
    pretraining.train(WORLD, arguments)
    first = json.loads((tmp_path / "base/pretraining.json").read_text())
    arguments.minutes = 0.02
    pretraining.train(WORLD, arguments)
    second = json.loads((tmp_path / "base/pretraining.json").read_text())
    assert f"from step {first['step']}" in capfd.readouterr().out
    assert second["step"] > first["step"] and len(second["log"]) == 2 and second["seconds"] > first["seconds"]
    assert second["held_out"] == list(HELD_OUT) and set(second["validation_per_family"]) == {"strip/shift"}
    assert not list((tmp_path / "base/resume").glob("*.tmp"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = tokenizer("012>210;345>", return_tensors="pt")["input_ids"]
    assert model.config._attn_implementation == "sdpa" and torch.isfinite(model(ids).logits).all()


def test_a_checkpoint_continues_as_if_never_stopped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = [draw_task(random.Random(i), curriculum(0.0)) for i in range(4)]
    ids, weights = WORLD.encode(tasks, tokenizer, 0.0)

    def fresh(seed: int) -> tuple[Any, list[torch.optim.Optimizer]]:
        torch.manual_seed(seed)
        model = pretraining.build_model(tokenizer, 32, 1)
        return model, pretraining.build_optimizers(model, 1e-2)

    model, optimizers = fresh(0)
    for _ in range(3):
        pretraining.train_step(model, optimizers, ids, weights, 1e-2)
    pretraining.save_checkpoint(tmp_path, model, optimizers, pretraining.Progress(step=3, log=[{"step": 3}]))
    other, others = fresh(1)
    progress = pretraining.load_checkpoint(tmp_path, other, others)
    assert progress == pretraining.Progress(step=3, log=[{"step": 3}])
    for _ in range(2):
        assert pretraining.train_step(model, optimizers, ids, weights, 1e-2) == pretraining.train_step(
            other, others, ids, weights, 1e-2
        )


def test_learning_rate_warms_up_stays_and_decays() -> None:
    rates = [pretraining.learning_rate_at(done, 10**6, 1.0, 10) for done in (0.0, 0.7, 0.875, 1.0)]
    assert rates == [1.0, 1.0, 0.5, 0.02]
    assert pretraining.learning_rate_at(0.0, 0, 1.0, 10) == 0.1
