r"""How few-shot tasks and their training examples read, and which parts of the text the loss is on.

A text is a list of segments: the instruction if there is one, then the inputs and outputs of the demonstrations in
turn, then those of the query. Where a segment ends does not depend on the loss, so the prompt of a task and a training
example with the same demonstrations begin alike.

Applying a tokenizer's chat template is left to a callable, since no tokenizer is known here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.chat import ChatTemplate, Messages, Turns, as_messages
from hf_mass.tasks.checks import require_one_of, shown
from hf_mass.tasks.grids import GRID_FORMS, rewritten
from hf_mass.tasks.leave_one_out import TrainingExample
from hf_mass.tasks.task import INSTRUCTION, Demonstration, Task

LossOn = Literal["query", "demonstrations", "outputs", "all"]
LOSS_ON: tuple[LossOn, ...] = get_args(LossOn)
"""On the query's output only; on all outputs but the first (the query's in any case); on all outputs; on inputs too."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text, and whether the loss is on it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class FewShotFormat:
    r"""How demonstrations and queries are written.

    As plain text, a pair is input_prefix, input, output_prefix, answer_prefix, output, pair_separator. A prompt ends
    with the query's output_prefix. The loss on an output includes its answer_prefix and pair_separator: that is how a
    model learns to stop. In a chat, inputs are the user's messages and outputs the assistant's, bare.

    Args:
        instruction: Stands before everything, in a chat at the head of the first message. A task's own instruction
            (`Task.fields["instruction"]`) takes its place.
        instruction_separator: Follows the instruction, where there is one.
        input_prefix: Before each input.
        output_prefix: Between an input and its output.
        answer_prefix: The first characters of each output, such as the space that tokenizers join to the next word.
        pair_separator: Ends each output; no output may contain it.
        grid_form: How grids are written (see `hf_mass.tasks.grids.grid_text`); None for texts, which stay as they are.
        chat: Whether texts go through a chat template.

    Raises:
        ConfigError: If a text is no string or `chat` no bool, `pair_separator` is empty, or `grid_form` is unknown.
    """

    instruction: str = ""
    instruction_separator: str = "\n\n"
    input_prefix: str = "Input: "
    output_prefix: str = "\nOutput:"
    answer_prefix: str = " "
    pair_separator: str = "\n\n"
    grid_form: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("grid_form", "chat") and not isinstance(value, str):
                raise ConfigError(f"FewShotFormat.{field.name} must be a string, got {shown(value)}.")
        if not isinstance(self.chat, bool):
            raise ConfigError(f"FewShotFormat.chat must be True or False, got {shown(self.chat)}.")
        if not self.pair_separator:
            raise ConfigError("FewShotFormat.pair_separator is empty, so no output would end. Use a line break, say.")
        if self.grid_form is not None:
            require_one_of("FewShotFormat.grid_form", self.grid_form, GRID_FORMS)

    def stop(self, task: Task | None = None) -> str | None:
        """The text that ends a generated answer, as answers of the task's demonstrations end.

        None in a chat, where the end of the turn does, as the template writes it (`hf_mass.tasks.chat.Turns.stop`).
        """
        if self.chat:
            return None
        return "\n" if self.pair_separator.startswith("\n") and self._one_line(task) else self.pair_separator

    def _one_line(self, task: Task | None) -> bool:
        """Whether answers to a task are of one line, as all that it shows are."""
        shown = task.demonstrations if task is not None and self.grid_form is None else ()
        return bool(shown) and not any("\n" in pair.answer.strip() for pair in shown)

    def render(
        self,
        example: TrainingExample | Task,
        loss_on: LossOn = "demonstrations",
        template: ChatTemplate | Turns | None = None,
    ) -> list[Segment]:
        """The text of a training example, or the prompt of a task, which ends where the answer begins.

        Args:
            example: What to write. A task's answer is not read, even where it is known.
            loss_on: Where the loss is, one of `LOSS_ON`; it changes `Segment.trained` alone.
            template: The chat template, or what it writes around messages; needed if `chat` is set.

        Returns:
            The instruction (plain text only, if there is one), then inputs and outputs in turn.

        Raises:
            ConfigError: If `loss_on` is unknown, or the template is missing or of no use.
            DataError: If a text is to be written as a grid and is none, an output contains `pair_separator`, or a task
                has a conversation before it.
        """
        require_one_of("loss_on", loss_on, LOSS_ON)
        contents = self._contents(example)
        if self.chat:
            texts = self._turns(template).written([message["content"] for message in self.messages(example)])
        else:
            texts = [self._wrapped(content, place) for place, content in enumerate(contents)]
        count = len(example.demonstrations)
        segments = [Segment(text, _is_trained(place, count, loss_on)) for place, text in enumerate(texts)]
        head = "" if self.chat else self._head(example)
        return [Segment(head, False), *segments] if head else segments

    def prompt(self, example: TrainingExample | Task, template: ChatTemplate | Turns | None = None) -> str:
        """The text up to where the query's output begins; raises as `render` does."""
        if isinstance(example, TrainingExample):
            example = Task(example.query.question, example.demonstrations, fields={INSTRUCTION: example.instruction})
        return "".join(segment.text for segment in self.render(example, template=template))

    def continued(self, task: Task, template: ChatTemplate | Turns | None = None) -> list[Segment]:
        """The text of a task's demonstrations, up to where a further input begins; raises as `render` does."""
        if not self.chat:
            before = self.render(task)[:-1]
            return [*before, Segment(self.input_prefix.rstrip(" "), False)]  # tokenizers join a space to the next word
        turns, contents = self._turns(template), [message["content"] for message in self.messages(task)[:-1]]
        texts = [*turns.written([*contents, ""])[:-1], turns.next_question if contents else turns.head]
        return [Segment(text, False) for text in [*texts[:-1], texts[-1].rstrip(" ")]]

    def _turns(self, template: ChatTemplate | Turns | None) -> Turns:
        if template is None:
            raise ConfigError("FewShotFormat.chat is set, but there is no chat template. Give one, or unset chat.")
        return template if isinstance(template, Turns) else Turns.of(template)

    @property
    def input_stop(self) -> str | None:
        """The text that ends a generated input; None in a chat, where the end of the turn does."""
        return None if self.chat else self.output_prefix

    def read_input(self, text: str) -> str | None:
        """The input in a text that was generated behind `continued`; None if there is none that can be read.

        Returns:
            The input, a grid in canonical form.
        """
        content = text if self.chat else text.partition(self.output_prefix)[0]
        if not self.chat and self.pair_separator in content:
            return None  # it went on to another pair without an output
        return rewritten(content) if self.grid_form is not None else content.strip() or None

    def messages(self, example: TrainingExample | Task) -> Messages:
        """The same as a chat: inputs from the user, outputs from the assistant; raises DataError as `render` does."""
        contents = self._contents(example)
        contents[0] = self._head(example) + contents[0]
        return as_messages(contents)

    def read_answer(self, text: str, task: Task | None = None) -> str | None:
        """The answer in a generated text, up to where it stops; None if there is none that can be read.

        Args:
            text: What the model generated.
            task: What it answers, if that is known: where all answers that it shows are of one line, this one is.

        Returns:
            The answer, a grid in canonical form.
        """
        if self.grid_form is not None:
            return rewritten(text if self.chat else text.partition(self.pair_separator)[0])
        if self.chat:
            answer = text.strip()
            return (answer.partition("\n")[0].strip() if self._one_line(task) else answer) or None
        return text.partition(str(self.stop(task)))[0].strip() or None

    def _head(self, example: TrainingExample | Task) -> str:
        own = example.fields.get(INSTRUCTION) if isinstance(example, Task) else example.instruction
        instruction = own or self.instruction
        return instruction + self.instruction_separator if instruction else ""

    def _contents(self, example: TrainingExample | Task) -> list[str]:
        """Inputs and outputs in turn, grids in their form; the last output is missing for a task."""
        if isinstance(example, Task) and example.history:
            raise DataError(
                f"Task {example.id!r} has a conversation before it, which a few-shot format does not show. Empty "
                "Task.history."
            )
        pairs: list[Demonstration] = list(example.demonstrations)
        pairs.append(Demonstration(example.problem, "") if isinstance(example, Task) else example.query)
        texts = [text for pair in pairs for text in (pair.question, pair.answer)]
        return [self._content(text) for text in (texts[:-1] if isinstance(example, Task) else texts)]

    def _content(self, text: str) -> str:
        if self.grid_form is None:
            return text
        written = rewritten(text, self.grid_form)
        if written is None:
            raise DataError(
                f"FewShotFormat.grid_form is {self.grid_form!r}, but this is no grid: {text[:60]!r}. Use None (as the "
                "format 'plain' does) for tasks of text, or correct the grid."
            )
        return written

    def _wrapped(self, content: str, place: int) -> str:
        if place % 2 == 0:
            return f"{self.input_prefix}{content}{self.output_prefix}"
        if self.pair_separator in content:
            raise DataError(
                f"An output contains FewShotFormat.pair_separator {self.pair_separator!r}, so it would be cut there: "
                f"{content[:60]!r}. Choose a separator that no output contains."
            )
        return f"{self.answer_prefix}{content}{self.pair_separator}"


FEW_SHOT_FORMATS: dict[str, FewShotFormat] = {
    "compact": FewShotFormat(
        input_prefix="", output_prefix=">", answer_prefix="", pair_separator=";", grid_form="compact"
    ),
    "arc": FewShotFormat(
        instruction=(
            "One hidden rule turns each input grid into its output grid. Find the rule in the examples and apply it to "
            "the last input. Answer with the output grid alone, in the form of the examples."
        ),
        input_prefix="",
        output_prefix=" ->",
        pair_separator="#\n",
        grid_form="array",
    ),
    "plain": FewShotFormat(),
    "questions": FewShotFormat(input_prefix="Q: ", output_prefix="\nA:"),
}
"""Name → format: one token a cell; arrays, as the paper has them; lines of input and output; and, as there, Q and A."""


def resolve_format(fmt: str | FewShotFormat) -> FewShotFormat:
    """The format, or the one of this name in `FEW_SHOT_FORMATS`; ConfigError if there is none."""
    if isinstance(fmt, FewShotFormat):
        return fmt
    require_one_of("few-shot format", fmt, list(FEW_SHOT_FORMATS))
    return FEW_SHOT_FORMATS[fmt]


def _is_trained(place: int, demonstrations: int, loss_on: LossOn) -> bool:
    """Returns True if the loss is on the text at this place among inputs and outputs in turn."""
    pair, is_output = divmod(place, 2)
    if loss_on == "all" or not is_output:
        return loss_on == "all"
    return pair == demonstrations or loss_on == "outputs" or (loss_on == "demonstrations" and pair > 0)
