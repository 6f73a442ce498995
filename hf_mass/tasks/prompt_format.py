r"""How a `Task` becomes text and how generated text is read back.

A `PromptFormat` is plain data, saved with a model as JSON. Templates use `str.format` placeholders (`{problem}`; a
literal brace is doubled) but are filled once, literally: braces in a problem, as in LaTeX, are no placeholders.

Applying a tokenizer's chat template is left to the models layer; `PromptFormat.messages` gives it the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from string import Formatter
from typing import Any, Literal

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grids import GRID_FORMS, grid_text, parse_grid
from hf_mass.tasks.task import Task

ParseFailure = Literal["empty", "no_match", "no_question", "no_answer"]

# Placeholders that a task itself supplies; any other name in a prompt template is looked up in `Task.fields`.
_TASK_PLACEHOLDERS = frozenset({"problem", "demonstrations"})


@dataclass(frozen=True, slots=True)
class ParsedSample:
    """What was read from one generated text.

    Args:
        question: The auxiliary question p_i; empty if nothing was read.
        answer: The auxiliary answer a_i; empty if nothing was read.
        reason: None if both were read, else why the text is no usable sample: the text is blank ("empty"), the pattern
            does not match, or what should be a grid is none ("no_match"), or it matches with a blank question or answer
            ("no_question", "no_answer").
    """

    question: str
    answer: str
    reason: ParseFailure | None = None


@dataclass(frozen=True, slots=True)
class SolutionParts:
    """A solution text, split into its derivation (empty where it has none) and its final answer."""

    rationale: str
    answer: str


def _template_names(template: str, name: str) -> list[str]:
    """Placeholder names of a template, in order; `name` is the field to blame for a malformed one."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"PromptFormat.{name}: {error} in {template!r}. Write a literal brace twice, as {{{{ or }}}}."
        ) from error
    names = []
    for _, placeholder, spec, conversion in parts:
        if placeholder is None:
            continue
        if not placeholder.isidentifier() or spec or conversion:
            field = placeholder + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ConfigError(
                f"PromptFormat.{name}: {{{field}}} is no plain named placeholder in {template!r}. Use a name such as "
                "{problem}; write a literal brace twice, as {{ or }}."
            )
        names.append(placeholder)
    return names


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fills a validated template once. The inserted values are never scanned, so their braces survive."""
    pieces: list[str] = []
    for literal, placeholder, _, _ in Formatter().parse(template):
        pieces.append(literal)
        if placeholder is not None:
            pieces.append(values[placeholder])
    return "".join(pieces)


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
        self.validate()

    def validate(self) -> None:
        """Checks every template and pattern.

        Raises:
            ConfigError: Naming the field that is wrong, and the cure.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            optional = field.name in ("inner_template", "demonstration_prompt_template", "grid_form")
            if not isinstance(value, str) and not (optional and value is None):
                raise ConfigError(f"PromptFormat.{field.name} must be a string, got {value!r}.")
        if self.grid_form is not None and self.grid_form not in GRID_FORMS:
            raise ConfigError(
                f"PromptFormat.grid_form is {self.grid_form!r}; choose one of {list(GRID_FORMS)}, or None for texts."
            )
        _template_names(self.generator_template, "generator_template")
        self._require("solver_template", self.solver_template, {"problem"})
        self._require("demonstration_template", self.demonstration_template, {"question", "answer"}, only=True)
        self._require("solution_format", self.solution_format, {"answer"}, only=True, optional={"rationale"})
        for name in ("inner_template", "demonstration_prompt_template"):
            if getattr(self, name) is not None:
                self._require(name, getattr(self, name), {"question"})
        groups = self._groups("sample_pattern", self.sample_pattern)
        for name in ("sample_question_format", "sample_answer_format"):
            template: str = getattr(self, name)
            self._require(name, template, set(), only=True, optional=groups)
            if not _template_names(template, name):
                raise ConfigError(
                    f"PromptFormat.{name} uses no named group of sample_pattern: {template!r}. Known: {sorted(groups)}."
                )
        if "answer" not in self._groups("solution_pattern", self.solution_pattern):
            raise ConfigError(
                f"PromptFormat.solution_pattern lacks a group (?P<answer>...): {self.solution_pattern!r}. Add it."
            )

    @staticmethod
    def _require(
        name: str, template: str, required: set[str], *, only: bool = False, optional: Iterable[str] = ()
    ) -> None:
        names = set(_template_names(template, name))
        if missing := required - names:
            raise ConfigError(f"PromptFormat.{name} lacks the placeholder {{{min(missing)}}}: {template!r}. Add it.")
        known = required | set(optional)
        if only and (unknown := names - known):
            raise ConfigError(
                f"PromptFormat.{name} has the unknown placeholder {{{min(unknown)}}}: {template!r}. "
                f"Known: {sorted(known)}. Write a literal brace twice."
            )

    @staticmethod
    def _groups(name: str, pattern: str) -> set[str]:
        try:
            return set(re.compile(pattern).groupindex)
        except re.error as error:
            raise ConfigError(f"PromptFormat.{name} is no regular expression: {error} in {pattern!r}.") from error

    @property
    def task_fields(self) -> tuple[str, ...]:
        """Names that the prompt templates look up in `Task.fields`, sorted."""
        names = set(_template_names(self.generator_template, "generator_template"))
        names |= set(_template_names(self.solver_template, "solver_template"))
        for name in ("inner_template", "demonstration_prompt_template"):
            if getattr(self, name) is not None:
                names |= set(_template_names(getattr(self, name), name)) - {"question"}
        return tuple(sorted(names - _TASK_PLACEHOLDERS))

    def to_dict(self) -> dict[str, Any]:
        """The format as JSON-serialisable values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptFormat:
        """The format that `to_dict` wrote; names left out take their defaults.

        Raises:
            ConfigError: If a name is unknown or a value is refused by `validate`.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"PromptFormat has no field {unknown[0]!r}. Known fields: {sorted(known)}.")
        return cls(**values)

    def generator_prompt(self, task: Task) -> str:
        """Text on which the generator writes one auxiliary sample; DataError if `task.fields` lacks a name it uses."""
        return self._render("generator_template", self.generator_template, task, problem=task.problem)

    def solver_prompt(self, task: Task) -> str:
        """Text on which the model solves the task; DataError if `task.fields` lacks a name it uses."""
        return self._render("solver_template", self.solver_template, task, problem=task.problem)

    def inner_prompt(self, question: str, task: Task) -> str:
        """Text on which the inner loop trains the answer to the auxiliary `question`.

        Args:
            question: The auxiliary question p_i.
            task: The task that it was written for.

        Raises:
            DataError: If the template names a key that `task.fields` lacks.
        """
        if self.inner_template is None:
            values = {"problem": question, "demonstrations": ""}
            return self._render("solver_template", self.solver_template, task, **values)
        values = {"question": question, "problem": task.problem}
        return self._render("inner_template", self.inner_template, task, **values)

    def demonstration_prompt(self, question: str, task: Task) -> str:
        """Text on which the answer of a task's own demonstration is asked for.

        Args:
            question: The demonstration's question.
            task: The task without it, since {demonstrations} shows all that `task` has.

        Raises:
            DataError: If the template names a key that `task.fields` lacks.
        """
        if self.demonstration_prompt_template is None:
            return self.inner_prompt(question, task)
        values = {"question": question, "problem": task.problem}
        return self._render("demonstration_prompt_template", self.demonstration_prompt_template, task, **values)

    def messages(self, task: Task, text: str) -> list[dict[str, str]]:
        """The task's conversation so far, followed by `text` (a rendered prompt) as the user's message."""
        history = [{"role": role, "content": content} for role, content in task.history]
        return [*history, {"role": "user", "content": text}]

    def demonstrations_text(self, task: Task) -> str:
        """What {demonstrations} stands for: header, demonstrations and footer, or nothing if the task has none."""
        if not task.demonstrations:
            return ""
        demonstrations = (
            _fill(
                self.demonstration_template,
                {"question": self.written(demo.question), "answer": self.written(demo.answer)},
            )
            for demo in task.demonstrations
        )
        body = self.demonstration_separator.join(demonstrations)
        return f"{self.demonstrations_header}{body}{self.demonstrations_footer}"

    def written(self, text: str) -> str:
        """A question or an answer as it stands in a prompt: a grid in `grid_form`, anything else as it is."""
        grid = None if self.grid_form is None else parse_grid(text)
        return text if grid is None else grid_text(grid, str(self.grid_form))

    def _read(self, text: str) -> str:
        """What `written` wrote, in canonical form; empty where it should be a grid and is none."""
        if self.grid_form is None:
            return text
        grid = parse_grid(text)
        return "" if grid is None else grid_text(grid)

    def _render(self, name: str, template: str, task: Task, **values: str) -> str:
        texts = {key: value if key == "demonstrations" else self.written(value) for key, value in values.items()}
        known = {**task.fields, "demonstrations": self.demonstrations_text(task), **texts}
        for placeholder in _template_names(template, name):
            if placeholder not in known:
                raise DataError(
                    f"PromptFormat.{name} refers to {{{placeholder}}}, which the task (id {task.id!r}) does not have. "
                    f"Known: {sorted(known)}. Add it to Task.fields or correct the template."
                )
        return _fill(template, known)

    def parse_sample(self, text: str) -> ParsedSample:
        """Reads an auxiliary question and answer from text that the generator wrote.

        Args:
            text: The completion, without the prompt.

        Returns:
            The sample; where the text holds none, `reason` says why.
        """
        text = text.strip()
        if not text:
            return ParsedSample("", "", "empty")
        match = re.search(self.sample_pattern, text)
        if match is None:
            return ParsedSample("", "", "no_match")
        groups = {name: (value or "").strip() for name, value in match.groupdict().items()}

        def compose(name: str, template: str) -> str:
            # Constant text around blank groups is no question and no answer.
            used = _template_names(template, name)
            return _fill(template, groups).strip() if any(groups[group] for group in used) else ""

        question = compose("sample_question_format", self.sample_question_format)
        answer = compose("sample_answer_format", self.sample_answer_format)
        if not question:
            return ParsedSample("", answer, "no_question")
        if not answer:
            return ParsedSample(question, "", "no_answer")
        question, answer = self._read(question), self._read(answer)
        return ParsedSample(question, answer) if question and answer else ParsedSample("", "", "no_match")

    def split_solution(self, text: str) -> SolutionParts | None:
        """Splits a solution into its derivation and its final answer; None if no final answer is found."""
        match = re.search(self.solution_pattern, text.strip())
        if match is None:
            return None
        groups = {name: (value or "").strip() for name, value in match.groupdict().items()}
        answer = self._read(groups["answer"])
        return SolutionParts(groups.get("rationale", ""), answer) if answer else None

    def compose_solution(self, rationale: str, answer: str) -> str:
        """A solution text of a derivation (which may be empty) and a final answer."""
        answer = self.written(answer.strip())
        return _fill(self.solution_format, {"rationale": rationale.strip(), "answer": answer}).strip()
