"""The `Task`: one thing to solve at test time, and the pieces that it is made of. Plain frozen data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hf_mass.errors import DataError

INSTRUCTION = "instruction"
"""The key of `Task.fields` that holds a task's own instruction, if it has one."""


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

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[tuple[str, str]],
        query: str,
        answer: str | None = None,
        *,
        instruction: str = "",
        id: str = "",
        verifier: str = "exact_match",
    ) -> Task:
        """A few-shot task from solved pairs, which become the demonstrations, and a query.

        Args:
            pairs: Inputs with their outputs.
            query: The input to be answered.
            answer: Its output, or None where it is not known.
            instruction: What to do, to stand before the demonstrations; becomes `fields["instruction"]`.
            id: A name for logs and files.
            verifier: Name of the verifier that judges an answer.

        Raises:
            DataError: If a pair is not two texts, or a text is empty.
        """
        demonstrations = []
        for number, pair in enumerate(pairs):
            texts = pair if isinstance(pair, tuple | list) else ()
            if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
                raise DataError(
                    f"Task.from_pairs: pairs[{number}] is {pair!r:.80}. Give two texts, an input and its output, such "
                    "as ('cat', 'cats')."
                )
            demonstrations.append(Demonstration(*texts))
        return cls(
            problem=_text("Task.from_pairs: query", query),
            demonstrations=tuple(demonstrations),
            answer=None if answer is None else _text("Task.from_pairs: answer", answer),
            verifier=verifier,
            id=id,
            fields={INSTRUCTION: instruction} if instruction else {},
        )

    def with_query(self, query: str, answer: str | None = None) -> Task:
        """The same demonstrations with another query; "#" and the query's beginning follow the id.

        Raises:
            DataError: If a text is empty.
        """
        return replace(
            self,
            problem=_text("Task.with_query: query", query),
            solution=None,
            answer=None if answer is None else _text("Task.with_query: answer", answer),
            id=f"{self.id}#{' '.join(query.split())[:40]}",
        )

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
        query, rest = self.demonstrations[index], self.demonstrations[:index] + self.demonstrations[index + 1 :]
        id = f"{self.id}#loo{index}"
        return replace(self, problem=query.question, demonstrations=rest, solution=None, answer=query.answer, id=id)


def _text(field_name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{field_name} is {value!r:.80}. Give a text that is not empty.")
    return value
