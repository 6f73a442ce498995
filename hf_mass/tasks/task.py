"""The `Task`: one thing to solve at test time, and the pieces that it is made of. Plain frozen data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hf_mass.errors import DataError
from hf_mass.tasks.checks import shown

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
        DataError: If the problem is empty, or a field is of another type or holds what is no text.
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
        given: object = self.demonstrations
        if isinstance(given, list):
            object.__setattr__(self, "demonstrations", tuple(given))
        self._require_types()
        if not self.problem.strip():
            raise DataError(f"Task.problem is empty (id {self.id!r}). Give every task a non-empty problem text.")

    def _require_types(self) -> None:
        """Checks that every field is what it is declared as: what is not would show as a text, or deep in a model."""
        for name in ("problem", "verifier", "domain", "id"):
            _require_text(f"Task.{name}", getattr(self, name))
        for name in ("solution", "answer"):
            if getattr(self, name) is not None:
                _require_text(f"Task.{name}", getattr(self, name))
        if not isinstance(self.demonstrations, tuple):
            raise DataError(f"Task.demonstrations is {shown(self.demonstrations)}. Give a list of Demonstration.")
        for number, pair in enumerate(self.demonstrations):
            if not isinstance(pair, Demonstration):
                raise DataError(
                    f"Task.demonstrations[{number}] is {shown(pair)}. Give Demonstration(question, answer)."
                )
            _require_text(f"Task.demonstrations[{number}].question", pair.question)
            _require_text(f"Task.demonstrations[{number}].answer", pair.answer)
        if not isinstance(self.fields, dict):
            raise DataError(f"Task.fields is {shown(self.fields)}. Give a dict of texts.")
        for name, value in self.fields.items():
            _require_text("A name of Task.fields", name)
            _require_text(f"Task.fields[{shown(name)}]", value)

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
        given: object = pairs
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise DataError(f"Task.from_pairs: pairs is {shown(pairs)}. Give a list of inputs with their outputs.")
        if not isinstance(instruction, str):
            raise DataError(f"Task.from_pairs: instruction is {shown(instruction)}. Give a text.")
        demonstrations = []
        for number, pair in enumerate(pairs):
            texts = pair if isinstance(pair, tuple | list) else ()
            if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
                raise DataError(
                    f"Task.from_pairs: pairs[{number}] is {shown(pair, 80)}. Give two texts, an input and its output, "
                    "such as ('cat', 'cats')."
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
        raise DataError(f"{field_name} is {shown(value, 80)}. Give a text that is not empty.")
    return value


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name} is {shown(value)}. Give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate, which no tokenizer takes
        odd = value[error.start]
        raise DataError(f"{name} holds {odd!r}, which is no character: {value!r:.60}. Remove it.") from error
