"""The `Task`: one thing to solve at test time, and the pieces that it is made of. Plain frozen data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hf_mass.errors import DataError


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One solved example that a task brings along.

    Args:
        question: The input, as text.
        answer: The output, as text. Only the final answer, without a derivation.
    """

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """A problem T to adapt to.

    Args:
        problem: The question to be answered, as text.
        demonstrations: Solved examples that come with the problem; empty where there are none.
        solution: The gold solution with its derivation, or None where it is not known.
        answer: The gold final answer, or None where it is not known.
        verifier: Name of the verifier (see `hf_mass.tasks.verifiers`) that judges an answer to this task.
        history: Earlier messages of a conversation, as (role, content) pairs; empty for plain text.
        conversational: Whether prompts for this task go through the tokenizer's chat template.
        domain: Label for per-domain rows of a table.
        id: A name for logs and files; need not be unique.
        fields: Further values that prompt templates may refer to by name.

    Raises:
        DataError: If the problem is empty.
    """

    problem: str
    demonstrations: tuple[Demonstration, ...] = ()
    solution: str | None = None
    answer: str | None = None
    verifier: str = "exact_match"
    history: tuple[tuple[str, str], ...] = ()
    conversational: bool = False
    domain: str = ""
    id: str = ""
    fields: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.problem.strip():
            raise DataError(f"Task.problem is empty (id {self.id!r}). Give every task a non-empty problem text.")

    def leave_one_out(self, index: int) -> Task:
        """The task whose query is demonstration `index` and whose demonstrations are the others (arXiv 2411.07279, §3).

        Raises:
            DataError: If there is no such demonstration.
        """
        if not 0 <= index < len(self.demonstrations):
            raise DataError(
                f"Task.leave_one_out: index {index} is out of range for {len(self.demonstrations)} demonstrations "
                f"(id {self.id!r}). Use an index from 0 to {len(self.demonstrations) - 1}."
            )
        query = self.demonstrations[index]
        rest = self.demonstrations[:index] + self.demonstrations[index + 1 :]
        return replace(
            self,
            problem=query.question,
            demonstrations=rest,
            solution=None,
            answer=query.answer,
            id=f"{self.id}#loo{index}",
        )
