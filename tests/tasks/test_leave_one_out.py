"""Training data made of a task's own demonstrations: what is left out, changed, reordered and dropped."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grid_transformations import Enlarge, Identity, PermuteColours, Rotate, Stretch
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.leave_one_out import DataConfig, TrainingExample, demonstration_orders, training_examples
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.transformations import GEOMETRIC, TRAINING, resolve_transformations, transform_task

ALL = 10**6
ONE_SIDED = ((Enlarge(2), "input"), (Stretch("rows", 3), "input"), (Rotate(1), "output"), (Enlarge(2), "both"))


def text_task(size: int, **fields: str) -> Task:
    demonstrations = tuple(Demonstration(f"question {n}", f"answer {n}") for n in range(size))
    return Task("the query?", demonstrations, answer="secret", id="words", fields=fields)


def grid_task(size: int, height: int = 2, width: int = 3) -> Task:
    draw = random.Random(size)

    def drawn() -> str:
        return grid_text(tuple(tuple(draw.choices(range(10), k=width)) for _ in range(height)))

    demonstrations = tuple(Demonstration(drawn(), drawn()) for _ in range(size))
    return Task(drawn(), demonstrations, answer=drawn(), id="cells")


def shape_of(pair: Demonstration) -> tuple[tuple[int, ...], ...]:
    """Which cells of a demonstration have the same colour, as the place where each is first seen."""
    return tuple(tuple(text.index(cell) for cell in text) for text in (pair.question, pair.answer))


def shape(examples: list[TrainingExample]) -> Counter[tuple[str, tuple[str, ...]]]:
    """(query, demonstrations) of each example, named by the last character of their questions."""
    return Counter((one.query.question[-1], tuple(d.question[-1] for d in one.demonstrations)) for one in examples)


# What is left out


def test_each_demonstration_is_left_out_once() -> None:
    examples = training_examples(text_task(3), DataConfig(leave_two_out=False))
    assert shape(examples) == {("0", ("1", "2")): 1, ("1", ("0", "2")): 1, ("2", ("0", "1")): 1}
    assert all(one.query.answer == one.query.question.replace("question", "answer") for one in examples)


def test_leave_two_out_only_fills_up() -> None:
    # 4 examples lack one demonstration and 12 (one query, one further demonstration) lack two.
    everything = shape(training_examples(text_task(4), DataConfig()))
    assert Counter(len(shown) for _, shown in everything.elements()) == {3: 4, 2: 12}
    assert set(everything.values()) == {1}
    assert all(query not in shown for query, shown in everything)
    for limit, kinds in {2: {3: 2}, 4: {3: 4}, 9: {3: 4, 2: 5}, 16: {3: 4, 2: 12}}.items():
        some = training_examples(text_task(4), DataConfig(limit=limit))
        assert Counter(len(one.demonstrations) for one in some) == kinds


def test_two_demonstrations_leave_none_to_leave_out_twice() -> None:
    assert shape(training_examples(text_task(2), DataConfig())) == {("0", ("1",)): 1, ("1", ("0",)): 1}


def test_direct_training_has_no_demonstrations() -> None:
    config = DataConfig(direct=True, permutations=5, transformations=(Rotate(1),))
    assert shape(training_examples(text_task(3), replace(config, transformations=()))) == {
        (str(n), ()): 1 for n in range(3)
    }
    examples = training_examples(grid_task(3), config)
    assert len(examples) == 6
    assert not any(one.demonstrations for one in examples)


def test_one_demonstration_is_trained_on_directly_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        examples = training_examples(text_task(1), DataConfig())
    assert shape(examples) == {("0", ()): 1}
    assert "Task 'words' has one demonstration only" in caplog.text
    caplog.clear()
    training_examples(
        text_task(1), DataConfig(direct=True, single="refuse")
    )  # was asked for, so there is nothing to say
    assert not caplog.text
    with pytest.raises(DataError, match=r"'words' has one demonstration only.*single to 'direct'"):
        training_examples(text_task(1), DataConfig(single="refuse"))


def test_no_demonstrations_are_refused() -> None:
    for config in (DataConfig(), DataConfig(direct=True)):
        with pytest.raises(DataError, match="'words' has no demonstrations"):
            training_examples(text_task(0), config)


def test_the_query_of_the_task_stays_out() -> None:
    task = grid_task(3)
    config = DataConfig(transformations=TRAINING, colour_permutations=1, permutations=2, limit=ALL)
    other = replace(task, problem="no grid at all", answer="neither")
    assert training_examples(other, config) == training_examples(task, config)


def test_the_instruction_goes_along() -> None:
    assert {one.instruction for one in training_examples(text_task(3), DataConfig())} == {""}
    examples = training_examples(text_task(3, instruction="Sort."), DataConfig())
    assert {one.instruction for one in examples} == {"Sort."}


# Orders


@given(st.integers(0, 5), st.integers(1, 200), st.integers(0, 3))
def test_orders_differ_and_begin_with_the_given_one(size: int, count: int, seed: int) -> None:
    orders = demonstration_orders(size, count, random.Random(seed))
    possible = [1, 1, 2, 6, 24, 120][size]
    assert orders[0] == tuple(range(size))
    assert len(orders) == len(set(orders)) == min(count, possible)
    assert all(sorted(order) == list(range(size)) for order in orders)


def test_permutations_are_orders_of_the_same_demonstrations() -> None:
    examples = training_examples(text_task(5), DataConfig(leave_two_out=False, permutations=8))
    found = shape(examples)
    assert len(found) == 40 == len(examples)
    assert Counter(query for query, _ in found) == {str(n): 8 for n in range(5)}
    assert all(sorted([query, *shown]) == list("01234") for query, shown in found)
    # As many as there are, where more are asked for.
    assert len(training_examples(text_task(3), DataConfig(leave_two_out=False, permutations=8))) == 6


# Transformations and colours


def test_transformations_change_all_grids_of_an_example_alike() -> None:
    task = grid_task(3)
    examples = training_examples(task, DataConfig(leave_two_out=False, transformations=GEOMETRIC, limit=ALL))
    assert len(examples) == 3 * 8
    expected = {
        (changed.demonstrations, Demonstration(changed.problem, changed.answer or ""))
        for number in range(3)
        for changed in (transform_task(task.leave_one_out(number), one) for one in GEOMETRIC)
    }
    assert {(one.demonstrations, one.query) for one in examples} == expected


def test_a_transformation_may_change_one_side_only() -> None:
    task = grid_task(2)
    examples = training_examples(task, DataConfig(transformations=((Enlarge(2), "input"), (Rotate(2), "output"))))
    assert len(examples) == 6
    for one in examples:
        for pair in (*one.demonstrations, one.query):
            grids = [parse_grid(pair.question), parse_grid(pair.answer)]
            heights = [len(grid) for grid in grids if grid is not None]
            assert heights == ([4, 2] if "enlarge" in one.origin else [2, 2])
    assert Counter(one.origin.split(", ")[1] for one in examples) == {
        "identity": 2,
        "enlarge 2 (input)": 2,
        "rotate 180 (output)": 2,
    }


def test_untransformed_examples_are_always_there_once() -> None:
    task = grid_task(2)
    plain = set(training_examples(task, DataConfig()))
    for transformations in ((Rotate(1),), (Identity(), Rotate(1)), (Rotate(1), (Identity(), "input"))):
        examples = training_examples(task, DataConfig(transformations=transformations))
        assert len(examples) == 4
        assert plain <= set(examples)


def test_what_a_transformation_leaves_as_it_is_is_no_second_example() -> None:
    task = Task("1", tuple(Demonstration(str(n), str(n)) for n in range(3)))
    assert len(training_examples(task, DataConfig(leave_two_out=False, transformations=GEOMETRIC))) == 3
    twins = Task("q", (Demonstration("a", "b"), Demonstration("a", "b")))
    assert len(training_examples(twins, DataConfig())) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_recoloured_copies_have_one_permutation_throughout(keep: bool) -> None:
    task = grid_task(4, 3, 6)
    config = DataConfig(leave_two_out=False, colour_permutations=5, keep_background=keep)
    examples = training_examples(task, config)
    assert len(examples) == 4 * 6
    mappings = set()
    for one in examples:
        number = int(one.origin.split(", ")[0].removeprefix("query "))
        original = task.leave_one_out(number)
        before = [*original.demonstrations, Demonstration(original.problem, original.answer or "")]
        pairs = zip(before, [*one.demonstrations, one.query], strict=True)
        texts = [(a.question + a.answer, b.question + b.answer) for a, b in pairs]
        mapping = {a: b for old, new in texts for a, b in zip(old, new, strict=True)}
        assert all("".join(mapping[cell] for cell in old) == new for old, new in texts)
        assert not keep or mapping["0"] == "0"
        mappings.add(tuple(sorted(mapping.items())))
    assert len(mappings) == 4 * 5 + 1  # each copy has its own
    assert keep == all(dict(mapping)["0"] == "0" for mapping in mappings)


def test_recoloured_copies_have_colours_that_the_example_has_not() -> None:
    pairs = tuple(Demonstration(f"0 1\n{n} 0", f"{n} 1") for n in (2, 3, 4, 5))
    config = DataConfig(colour_permutations=3, recolour_to_unused=True)
    for one in training_examples(Task("0", pairs), config):
        missing = {number for number in range(4) if f"without {number}" in one.origin}
        used = {"1", "2", "3", "4", "5"} - {str(number + 2) for number in missing}
        shown = {cell for d in (*one.demonstrations, one.query) for cell in (d.question + d.answer).replace("\n", " ")}
        shown -= {" ", "0"}
        assert len(shown) == len(used)
        # Of nine colours four are unused where the example has five, and five where it has four.
        assert len(shown - used) == (4 if "colours" in one.origin else 0)


def test_recoloured_copies_may_have_their_demonstrations_in_random_orders() -> None:
    config = DataConfig(leave_two_out=False, colour_permutations=20, reorder_recoloured=True)
    orders: dict[bool, Counter[tuple[int, ...]]] = {True: Counter(), False: Counter()}
    for one in training_examples(grid_task(4), config):
        order = json.loads(one.origin.partition("order ")[2])
        query = int(one.origin.split(", ")[0].removeprefix("query "))
        shown = [grid_task(4).demonstrations[number] for number in order]
        assert "colours" in one.origin or one.demonstrations == tuple(shown)
        assert [shape_of(d) for d in one.demonstrations] == [shape_of(d) for d in shown] and query not in order
        orders["colours" in one.origin][tuple(sorted(order).index(number) for number in order)] += 1
    assert orders[False] == {(0, 1, 2): 4}
    assert len(orders[True]) == 6 and orders[True].total() == 80


def test_a_shift_is_drawn_for_each_task() -> None:
    task, shifts = grid_task(3, 5, 5), set()
    for seed in range(40):
        examples = training_examples(task, DataConfig(leave_two_out=False, random_shift=3), seed)
        moved = [one for one in examples if one.query not in task.demonstrations]
        if not moved:  # by nothing
            assert len(examples) == 3
            continue
        (shift,) = {one.origin.split(", ")[1] for one in moved}
        (move,) = resolve_transformations(shift)
        assert {one.query for one in moved} == set(transform_task(task, move).demonstrations) and len(examples) == 6
        shifts.add(shift)
    assert shifts <= {f"translate {rows} {columns}" for rows in range(4) for columns in range(4)}
    assert len(shifts) > 8


def test_tasks_of_text_cannot_be_transformed() -> None:
    with pytest.raises(DataError, match=r"'words' is no grid.*'question 0'.*'none'"):
        training_examples(text_task(3), DataConfig(transformations=GEOMETRIC))
    with pytest.raises(DataError, match=r"'words'.*no grid.*'question 0'.*colour_permutations to 0"):
        training_examples(text_task(3), DataConfig(colour_permutations=1, limit=1))
    assert training_examples(text_task(3), DataConfig(transformations=(Identity(),)))


# Limits


def test_large_grids_are_dropped() -> None:
    task = grid_task(3, 2, 10)
    wide = Demonstration(grid_text(((1,) * 16,)), "1")
    task = replace(task, demonstrations=(*task.demonstrations, wide))
    config = DataConfig(transformations=(Enlarge(2),), max_side=20, limit=ALL)
    examples = training_examples(task, config)
    # Enlarged, the fourth one has 32 columns; those that lack it are there.
    assert Counter("enlarge" in one.origin for one in examples) == {False: 4 + 12, True: 3}
    assert all("without 3" in one.origin for one in examples if "enlarge" in one.origin)
    with pytest.raises(DataError, match=r"4 demonstrations of task 'cells': 32 have a grid over .*max_side = 9"):
        training_examples(task, replace(config, max_side=9))


def test_the_side_of_a_text_is_no_matter() -> None:
    # Digits read as a grid of one row; beside other texts they are no grids.
    task = Task("1?", (Demonstration("1" * 40, "yes"), Demonstration("2" * 40, "no")))
    assert len(training_examples(task, DataConfig())) == 2
    with pytest.raises(DataError, match="max_side"):
        training_examples(Task("1", (Demonstration("1" * 40, "3"), Demonstration("2" * 40, "4"))), DataConfig())


def count(example: TrainingExample) -> int:
    return len(example.demonstrations) + 1


def test_long_examples_are_dropped_and_shorter_ones_take_their_place() -> None:
    task = text_task(4)
    examples = training_examples(task, DataConfig(max_tokens=3), count_tokens=count)
    assert Counter(map(count, examples)) == {3: 12}
    assert len(training_examples(task, DataConfig(max_tokens=4), count_tokens=count)) == 16
    with pytest.raises(DataError, match=r"'words': 16 are longer than DataConfig.max_tokens = 2\. Raise the limit"):
        training_examples(task, DataConfig(max_tokens=2), count_tokens=count)
    with pytest.raises(ConfigError, match="max_tokens is set, but there is no count_tokens"):
        training_examples(task, DataConfig(max_tokens=2))


def test_no_more_examples_are_made_than_are_needed() -> None:
    counted = []

    def spy(example: TrainingExample) -> int:
        counted.append(example)
        return 1

    config = DataConfig(transformations=TRAINING, permutations=4, limit=10, max_tokens=5)
    assert len(training_examples(grid_task(6), config, count_tokens=spy)) == 10
    assert len(counted) < 30
    counted.clear()
    training_examples(text_task(3), DataConfig(), count_tokens=spy)
    assert not counted  # there is no limit


@settings(max_examples=20)
@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([1, 7, 50, ALL]),
    st.sampled_from([(), GEOMETRIC, TRAINING, ONE_SIDED]),
    st.integers(0, 5),
)
def test_data_are_reproducible_different_and_within_the_limit(
    size: int, permutations: int, colours: int, limit: int, transformations: Any, seed: int
) -> None:
    task = grid_task(size)
    config = DataConfig(
        permutations=permutations, colour_permutations=colours, limit=limit, transformations=transformations
    )
    examples = training_examples(task, config, seed)
    assert examples == training_examples(task, config, seed)
    assert len({(one.demonstrations, one.query) for one in examples}) == len(examples) <= limit
    assert {len(one.demonstrations) for one in examples} <= {size - 1, size - 2} - {0}


def test_another_seed_gives_another_order_and_other_examples() -> None:
    config = DataConfig(transformations=TRAINING, limit=20)
    first, second = (training_examples(grid_task(4), config, seed) for seed in (0, 1))
    assert set(first) != set(second)
    first, second = (training_examples(text_task(4), DataConfig(), seed) for seed in (0, 1))
    assert first != second
    assert set(first) == set(second)
    # Shuffled: examples that lack two demonstrations do not all come last.
    assert [count(one) for one in first] != sorted(map(count, first), reverse=True)


def test_the_papers_amount() -> None:
    config = DataConfig(transformations=TRAINING, permutations=2, colour_permutations=1)
    examples = training_examples(grid_task(4), config)
    assert len(examples) == 250
    assert {len(one.demonstrations) for one in examples} == {3}  # one left out gives 4 × 23 × 4, so none lacks two


# Bad settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"permutations": 0}, "DataConfig.permutations must be a whole number of at least 1, got 0"),
        ({"colour_permutations": -1}, "colour_permutations must be a whole number of at least 0"),
        ({"random_shift": -1}, "random_shift must be a whole number of at least 0"),
        ({"limit": 0}, "limit must be"),
        ({"limit": True}, "limit must be"),
        ({"max_side": 0}, "max_side must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"max_tokens": 1.5}, "max_tokens must be"),
        ({"single": "drop"}, r"single is 'drop'; choose one of \['direct', 'refuse'\]"),
        ({"transformations": "paper"}, "must be a tuple, got 'paper'.*resolve_transformations"),
        ({"transformations": ("rotate 90",)}, "holds .*'rotate 90'"),
        ({"transformations": ((Rotate(1), "left"),)}, "'left'.*'both', 'input', 'output'"),
        ({"transformations": ((Rotate(1), Rotate(2), Rotate(3)),)}, "holds"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**setting)


def test_recolouring_is_that_of_the_origin() -> None:
    task = grid_task(2)
    for one in training_examples(task, DataConfig(colour_permutations=1)):
        if "colours" not in one.origin:
            continue
        mapping = one.origin.partition("colours ")[2][:10]
        number = int(one.origin.removeprefix("query ")[0])
        expected = transform_task(task.leave_one_out(number), PermuteColours(tuple(map(int, mapping))))
        assert one.demonstrations == expected.demonstrations
        assert one.query == Demonstration(expected.problem, expected.answer or "")
