"""What trainers take for tasks, and what they refuse before any of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_mass.errors import DataError
from hf_mass.tasks.task import Task
from hf_mass.training.task_data import require_tasks


def endless() -> Iterator[dict[str, str]]:
    while True:
        yield {"problem": "p"}


ROWS = Dataset.from_list([{"problem": "p"}])


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (DatasetDict(train=ROWS, test=ROWS), r"is a DatasetDict\. Choose a split of it, one of \['train', 'test'\]"),
        (IterableDataset.from_generator(endless), r"IterableDataset, of no known length\. Take as many rows"),
        (endless(), "generator, of no known length. Give a list"),
        (5, "is a int, of no known length"),
        ([], "must be a non-empty list of hf_mass Tasks, got list of 0 items"),
        ([Task("p"), "x"], "must be a non-empty list of hf_mass Tasks, got list of 2 items"),
        ("text", "must be a non-empty list of hf_mass Tasks"),
    ],
)
def test_what_is_refused(tasks: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"^The data {told}|^The data is a {told}"):
        require_tasks(tasks, "The data")


def test_what_is_taken() -> None:
    assert require_tasks((Task("p"),), "The data") == [Task("p")]
