"""Final answers are read off solutions and verified."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mass.errors import VerifierError
from hf_mass.methods.base import Answer
from hf_mass.tasks.prompt_format import PromptFormat
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import verify_each


def judge(
    fmt: PromptFormat,
    tasks: Sequence[Task],
    texts: Sequence[str],
    tokens: Sequence[int] | None = None,
    always: bool = False,
    cut: Sequence[bool] | None = None,
) -> list[Answer]:
    """Read the final answers off solutions and verify them; where a verifier raises, that is the answer's reason.

    Args:
        fmt: How solutions read.
        tasks: The tasks.
        texts: A solution of each.
        tokens: Their lengths.
        always: Verify every task; else only those with a gold answer or solution, and the others' score is None.
        cut: Which of them the limit of tokens ended.
    """
    answers = [(parts.answer if (parts := fmt.split_solution(text)) else None) for text in texts]
    known = [always or task.answer is not None or task.solution is not None for task in tasks]
    readable = [i for i, answer in enumerate(answers) if answer is not None and known[i]]
    rewards = verify_each([tasks[i] for i in readable], [str(answers[i]) for i in readable])
    found, judged = dict(zip(readable, rewards, strict=True)), []
    for i, (task, text, answer) in enumerate(zip(tasks, texts, answers, strict=True)):
        score, reason = found.get(i, 0.0) if known[i] else None, None
        if isinstance(score, VerifierError):
            score, reason = None, str(score)
        length, limited = tokens[i] if tokens else 0, bool(cut and cut[i])
        judged.append(Answer(task, answer, score, text, sampled_tokens=length, reason=reason, cut=limited))
    return judged
