r"""How a `Task` becomes text and how generated text is read back.

A `PromptFormat` is plain data, saved with a model as JSON. Templates use `str.format` placeholders (`{problem}`; a
literal brace is doubled) but are filled once, literally: braces in a problem, as in LaTeX, are no placeholders.

Applying a tokenizer's chat template is left to the models layer; `PromptFormat.messages` gives it the messages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from string import Formatter
from typing import Any, Literal

import regex

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.checks import require_one_of, shown
from hf_mass.tasks.grids import GRID_FORMS, rewritten
from hf_mass.tasks.task import Task

ParseFailure = Literal["empty", "no_match", "no_question", "no_answer"]

PATIENCE = 0.5
"""Seconds that a pattern, which may come with anybody's model, is tried on one text: some would take years."""
LONGEST = 10_000
"""Characters of a pattern, which takes its time to be compiled."""
_QUESTION_TEMPLATES = ("inner_template", "demonstration_prompt_template")  # their own placeholder is {question}


@dataclass(frozen=True, slots=True)
class ParsedSample:
    """What was read from one generated text.

    Args:
        question: The auxiliary question p_i; empty if nothing was read.
        answer: The auxiliary answer a_i; empty if nothing was read.
        reason: None if both were read, else why the text is no usable sample: the text is blank ("empty"), the pattern
            does not match (within `PATIENCE`), or what should be a grid is none ("no_match"), or it matches with a
            blank question or answer ("no_question", "no_answer").
    """

    question: str
    answer: str
    reason: ParseFailure | None = None


@dataclass(frozen=True, slots=True)
class ParsedSolution:
    """A solution text, split into its derivation (empty where it has none) and its final answer."""

    rationale: str
    answer: str


def _placeholders(name: str, template: str) -> list[str]:
    """The placeholders of a template, in order; `name` is the field to blame for a malformed one."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"PromptFormat.{name}: {error} in {template!r:.200}. Write a literal brace twice, as {{{{ or }}}}."
        ) from error
    for _, placeholder, spec, conversion in parts:
        if placeholder is not None and (not placeholder.isidentifier() or spec or conversion):
            raise ConfigError(
                f"PromptFormat.{name} has a placeholder {placeholder!r} that is no plain name in {template!r:.200}. "
                "Use a name such as {problem}; write a literal brace twice, as {{ or }}."
            )
    return [placeholder for _, placeholder, _, _ in parts if placeholder is not None]


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fills a validated template once. The inserted values are never scanned, so their braces survive."""
    parts = Formatter().parse(template)
    return "".join(literal + (values[name] if name is not None else "") for literal, name, _, _ in parts)


DEFAULT_GENERATOR = """\
{demonstrations}Here is a problem.

Problem: {problem}

Write one new practice question in the style of this problem, together with its worked answer. Work the answer out \
step by step and end it with #### and the final answer. Use exactly this form:

Question: the new question
Answer: the worked answer #### the final answer

Question:"""

DEFAULT_SOLVER = """\
{demonstrations}Solve the problem step by step. End with #### and the final answer.

Problem: {problem}
Answer:
"""

# "Question:" or "Answer:" at the start of a line, perhaps dressed up as Markdown or numbered.
_QUESTION_LABEL = r"^[^\w\n]*question\b[^\S\n]*\d*[^\w\n]*:\**"
_ANSWER_LABEL = r"^[^\w\n]*answer\b[^\S\n]*\d*[^\w\n]*:\**"

# There may be a preamble ("Sure, here is one:") up to "Question:", provided no "Answer:" comes before it: otherwise a
# text that continues the prompt's own "Question:" and runs on to a second pair would be misread. The lookahead lets a
# text without any "Answer:" fail in linear time.
_DEFAULT_SAMPLE = (
    rf"(?ims)\A(?=.*?{_ANSWER_LABEL})(?:(?:(?!{_ANSWER_LABEL}).)*?{_QUESTION_LABEL})?"
    rf"(?P<question>(?:(?!{_ANSWER_LABEL}).)*){_ANSWER_LABEL}(?P<answer>(?:(?!{_QUESTION_LABEL}).)*)"
)

# The final answer is the line after the first ####: a base model may run on to another problem. A text without ####
# is an answer on its own, of any number of lines.
DEFAULT_SOLUTION = r"(?s)\A\s*(?:(?P<rationale>.*?)####\s*)?(?P<answer>(?(rationale)[^\n]+|(?!.*####).+))"


@dataclass(frozen=True)
class PromptFormat:
    """Templates for prompts and patterns for reading generated text.

    Args:
        generator_template: Asks for one new question with its answer, in a form that `sample_pattern` reads. May use
            {problem}, {demonstrations} and any key of `Task.fields`.
        solver_template: Asks for the solution of the problem; the same placeholders, and it must use {problem}.
        demonstration_template: One demonstration; uses {question} and {answer}.
        demonstration_separator: Text between demonstrations.
        demonstrations_header: Text before the demonstrations, left out for a task that has none.
        demonstrations_footer: Text after the demonstrations, left out for a task that has none.
        sample_pattern: Regular expression with named groups, searched in the (stripped) text that the generator wrote.
        sample_question_format: Composes the auxiliary question from the named groups.
        sample_answer_format: Composes the auxiliary answer from the named groups.
        inner_template: Prompt on which the inner loop trains an auxiliary answer; uses {question}, and may use whatever
            `generator_template` may. None: the solver prompt of the auxiliary question, without demonstrations.
        demonstration_prompt_template: Prompt on which a demonstration's own answer is asked for at adapted weights (the
            outer loss of test-time attribution); uses {question}. None: as for auxiliary questions.
        solution_pattern: Regular expression with a group `answer` and, optionally, `rationale`, searched in a
            (stripped) solution.
        solution_format: Composes {rationale} and {answer} into a solution; must use {answer}.
        grid_form: How grids are written (see `hf_mass.tasks.grids.grid_text`). What is read back is then a grid in its
            canonical form, as a `Task` holds it, or nothing. None: texts are written and read as they are.

    Raises:
        ConfigError: If a template has a malformed or unknown placeholder, a pattern is malformed or lacks a group, or
            `grid_form` is unknown.
    """

    generator_template: str = DEFAULT_GENERATOR
    solver_template: str = DEFAULT_SOLVER
    demonstration_template: str = "Problem: {question}\nAnswer: {answer}"
    demonstration_separator: str = "\n\n"
    demonstrations_header: str = "Here are solved examples.\n\n"
    demonstrations_footer: str = "\n\n"
    sample_pattern: str = _DEFAULT_SAMPLE
    sample_question_format: str = "{question}"
    sample_answer_format: str = "{answer}"
    inner_template: str | None = None
    demonstration_prompt_template: str | None = None
    solution_pattern: str = DEFAULT_SOLUTION
    solution_format: str = "{rationale}\n#### {answer}"
    grid_form: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not (field.default is None and value is None):
                raise ConfigError(f"PromptFormat.{field.name} must be a string, got {shown(value)}.")
        if self.grid_form is not None:
            require_one_of("PromptFormat.grid_form", self.grid_form, GRID_FORMS)
        _placeholders("generator_template", self.generator_template)
        self._require("solver_template", {"problem"})
        self._require("demonstration_template", {"question", "answer"}, ())
        self._require("solution_format", {"answer"}, {"rationale"})
        for name in _QUESTION_TEMPLATES:
            if getattr(self, name) is not None:
                self._require(name, {"question"})
        groups = self._groups("sample_pattern")
        for name in ("sample_question_format", "sample_answer_format"):
            self._require(name, set(), groups)
            if not _placeholders(name, getattr(self, name)):
                raise ConfigError(
                    f"PromptFormat.{name} uses no named group of sample_pattern: {getattr(self, name)!r:.200}. "
                    f"Known: {sorted(groups)}."
                )
        if "answer" not in self._groups("solution_pattern"):
            raise ConfigError(
                f"PromptFormat.solution_pattern lacks a group (?P<answer>...): {self.solution_pattern!r:.200}. Add it."
            )

    def _require(self, name: str, required: set[str], optional: Collection[str] | None = None) -> None:
        """Refuses a template without the placeholders required, or with any but the optional ones (None: any)."""
        template = getattr(self, name)
        names = set(_placeholders(name, template))
        if missing := required - names:
            raise ConfigError(
                f"PromptFormat.{name} lacks the placeholder {{{min(missing)}}}: {template!r:.200}. Add it."
            )
        if optional is not None and (unknown := names - required - set(optional)):
            raise ConfigError(
                f"PromptFormat.{name} has the unknown placeholder {{{min(unknown)}}}: {template!r:.200}. "
                f"Known: {sorted({*required, *optional})}. Write a literal brace twice."
            )

    def _groups(self, name: str) -> set[str]:
        pattern = getattr(self, name)
        if len(pattern) > LONGEST:
            raise ConfigError(
                f"PromptFormat.{name} has {len(pattern):,} characters; at most {LONGEST:,} are compiled. Shorten it."
            )
        try:
            return set(regex.compile(pattern).groupindex)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ConfigError(f"PromptFormat.{name} is no regular expression: {error} in {pattern!r:.200}.") from error

    @property
    def task_fields(self) -> tuple[str, ...]:
        """Names that the prompt templates look up in `Task.fields`, sorted."""
        names = set[str]()
        for field in ("generator_template", "solver_template", *_QUESTION_TEMPLATES):
            placeholders = set(_placeholders(field, getattr(self, field) or ""))
            names |= placeholders - {"question"} if field in _QUESTION_TEMPLATES else placeholders
        return tuple(sorted(names - {"problem", "demonstrations"}))

    def to_dict(self) -> dict[str, Any]:
        """The format as JSON-serialisable values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptFormat:
        """The format that `to_dict` wrote; names left out take their defaults. Raises ConfigError as the class does."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"PromptFormat has no field {unknown[0]!r}. Known fields: {sorted(known)}.")
        return cls(**values)

    def generator_prompt(self, task: Task) -> str:
        """Text on which the generator writes one auxiliary sample; DataError if `task.fields` lacks a name it uses."""
        return self._render("generator_template", task, problem=task.problem)

    def solver_prompt(self, task: Task) -> str:
        """Text on which the model solves the task; DataError if `task.fields` lacks a name it uses."""
        return self._render("solver_template", task, problem=task.problem)

    def inner_prompt(self, question: str, task: Task) -> str:
        """Text on which the inner loop trains the answer to an auxiliary question, written for `task`."""
        if self.inner_template is None:
            return self._render("solver_template", task, problem=question, demonstrations="")
        return self._render("inner_template", task, question=question, problem=task.problem)

    def demonstration_prompt(self, question: str, task: Task) -> str:
        """Text on which the answer of a task's own demonstration is asked for; `task` is the one without it."""
        if self.demonstration_prompt_template is None:
            return self.inner_prompt(question, task)
        return self._render("demonstration_prompt_template", task, question=question, problem=task.problem)

    def messages(self, task: Task, text: str) -> list[dict[str, str]]:
        """The task's conversation so far, followed by `text` (a rendered prompt) as the user's message."""
        history = [{"role": role, "content": content} for role, content in task.history]
        return [*history, {"role": "user", "content": text}]

    def demonstrations_text(self, task: Task) -> str:
        """What {demonstrations} stands for: header, demonstrations and footer, or nothing if the task has none."""
        if not task.demonstrations:
            return ""
        texts = [
            _fill(self.demonstration_template, {key: self.written(text) for key, text in asdict(each).items()})
            for each in task.demonstrations
        ]
        return self.demonstrations_header + self.demonstration_separator.join(texts) + self.demonstrations_footer

    def written(self, text: str) -> str:
        """A question or an answer as it stands in a prompt: a grid in `grid_form`, anything else as it is."""
        return text if self.grid_form is None else rewritten(text, self.grid_form) or text

    def _read(self, text: str) -> str:
        """What `written` wrote, in canonical form; empty where it should be a grid and is none."""
        return text if self.grid_form is None else rewritten(text) or ""

    def _render(self, name: str, task: Task, **values: str) -> str:
        template = getattr(self, name)
        texts = {key: value if key == "demonstrations" else self.written(value) for key, value in values.items()}
        known = {**task.fields, "demonstrations": self.demonstrations_text(task), **texts}
        for placeholder in _placeholders(name, template):
            if placeholder not in known:
                raise DataError(
                    f"PromptFormat.{name} refers to {{{placeholder}}}, which the task (id {task.id!r}) does not have. "
                    f"Known: {sorted(known)}. Add it to Task.fields or correct the template."
                )
        return _fill(template, known)

    def parse_sample(self, text: str) -> ParsedSample:
        """Reads a question and an answer from a generator's completion; where it holds none, `reason` says why."""
        text = text.strip()
        if not text:
            return ParsedSample("", "", "empty")
        match = _search(self.sample_pattern, text)
        if match is None:
            return ParsedSample("", "", "no_match")
        groups = _stripped_groups(match)

        def compose(name: str) -> str:
            template = getattr(self, name)
            # Constant text around blank groups is no question and no answer.
            filled = any(groups[each] for each in _placeholders(name, template))
            return _fill(template, groups).strip() if filled else ""

        question, answer = compose("sample_question_format"), compose("sample_answer_format")
        if not question:
            return ParsedSample("", answer, "no_question")
        if not answer:
            return ParsedSample(question, "", "no_answer")
        question, answer = self._read(question), self._read(answer)
        return ParsedSample(question, answer) if question and answer else ParsedSample("", "", "no_match")

    def split_solution(self, text: str) -> ParsedSolution | None:
        """Splits a solution into its derivation and its final answer; None if no final answer is found."""
        match = _search(self.solution_pattern, text.strip())
        if match is None:
            return None
        groups = _stripped_groups(match)
        answer = self._read(groups["answer"])
        return ParsedSolution(groups.get("rationale", ""), answer) if answer else None

    def compose_solution(self, rationale: str, answer: str) -> str:
        """A solution text of a derivation (which may be empty) and a final answer."""
        values = {"rationale": rationale.strip(), "answer": self.written(answer.strip())}
        return _fill(self.solution_format, values).strip()


def _search(pattern: str, text: str) -> Any:
    """The match of a pattern, by Python's own syntax; None where there is none, or none is found in `PATIENCE`."""
    try:
        return regex.search(pattern, text, timeout=PATIENCE)
    except TimeoutError:
        return None


def _stripped_groups(match: Any) -> dict[str, str]:
    return {name: (value or "").strip() for name, value in match.groupdict().items()}
