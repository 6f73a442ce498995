"""Solving tasks by a prompt of MASS: at the weights of adaptations or at the model's own, read and verified."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mass.core.trees import concatenate_rows
from hf_mass.errors import DataError
from hf_mass.lm.binding import deterministic
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.methods.base import Adaptation, Answer
from hf_mass.methods.inner import Adapter
from hf_mass.tasks.prompt_format import PromptFormat
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import verify_batch


def solve_tasks(
    adapter: Adapter,
    tasks: Sequence[Task],
    adaptations: Sequence[Adaptation] | None,
    sampling: Sampling,
    seed: int = 0,
    always: bool = False,
) -> list[Answer]:
    """Solve N tasks in one batch.

    Args:
        adapter: The inner adapter of the model.
        tasks: The tasks.
        adaptations: Theirs; a task whose adaptation has no adapted weights is solved at the model's own, as all are
            for None.
        sampling: How solutions are drawn.
        seed: Draws them.
        always: See `judge`.

    Raises:
        DataError: If there are not as many adaptations as tasks.
    """
    trees = [None] * len(tasks) if adaptations is None else [each.adapted for each in adaptations]
    if len(trees) != len(tasks):
        raise DataError(f"solve: {len(trees)} adaptations for {len(tasks)} tasks; give one for each task.")
    ids: list[list[int]] = [[] for _ in tasks]
    encoder = adapter.encoder
    with deterministic(adapter.model), adapter.lora.inactive():
        for is_adapted in (True, False):
            index = [i for i, tree in enumerate(trees) if (tree is not None) == is_adapted]
            if not index:
                continue
            prompts = [encoder.solver_prompt_ids(tasks[i]) for i in index]
            seeds = [row_seed("solve", seed, tasks[i].id, tasks[i].problem) for i in index]
            if is_adapted:
                params = concatenate_rows([tree for tree in trees if tree is not None])
                rows = adapter.complete(params, prompts, range(len(index)), sampling, seeds)
            else:
                rows = complete(adapter.model, encoder.tokenizer, prompts, sampling, seeds)
            for i, row in zip(index, rows, strict=True):
                ids[i] = row
    texts = [encoder.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    return judge(encoder.format, tasks, texts, list(map(len, ids)), always)


def judge(
    fmt: PromptFormat,
    tasks: Sequence[Task],
    texts: Sequence[str],
    tokens: Sequence[int] | None = None,
    always: bool = False,
) -> list[Answer]:
    """Read the final answers off solutions and verify them.

    Args:
        fmt: How solutions read.
        tasks: The tasks.
        texts: A solution of each.
        tokens: Their lengths.
        always: Verify every task; else only those with a gold answer or solution, and the others' score is None.
    """
    answers = [(parts.answer if (parts := fmt.split_solution(text)) else None) for text in texts]
    known = [always or task.answer is not None or task.solution is not None for task in tasks]
    judged = [i for i, answer in enumerate(answers) if answer is not None and known[i]]
    rewards = verify_batch([tasks[i] for i in judged], [str(answers[i]) for i in judged])
    scores = dict(zip(judged, rewards, strict=True))
    return [
        Answer(
            task,
            answer,
            scores.get(i, 0.0) if known[i] else None,
            written=text,
            sampled_tokens=tokens[i] if tokens else 0,
        )
        for i, (task, text, answer) in enumerate(zip(tasks, texts, answers, strict=True))
    ]
