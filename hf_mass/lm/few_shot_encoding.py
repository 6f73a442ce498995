"""Few-shot tasks as tokens: training examples, prompts, and the views of a task that predictions are made under."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from hf_mass.core.token_loss import IGNORED, TokenBatch
from hf_mass.errors import DataError
from hf_mass.lm.encoding import pad_rows
from hf_mass.lm.generation import row_seed
from hf_mass.methods.ttt_settings import PredictConfig
from hf_mass.tasks.bbh import ANSWER_KIND, bbh_answer
from hf_mass.tasks.few_shot_format import FewShotFormat, Messages
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample, demonstration_orders
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.transformations import PermuteColours, Transformation, transform_task
from hf_mass.tasks.voting import Prediction


@dataclass(frozen=True)
class ExampleRows:
    """Training examples as tokens.

    Args:
        sequences: Token ids of each example.
        learned: For each of them whether the loss is on it.
    """

    sequences: list[list[int]]
    learned: list[list[bool]]

    def __len__(self) -> int:
        return len(self.sequences)


def token_batch(
    sequences: Sequence[list[int]],
    learned: Sequence[list[bool]],
    row_task: Sequence[int],
    pad: int,
    device: torch.device,
) -> TokenBatch:
    """Sequences as one right-padded batch whose labels are the learned tokens; row r is of task `row_task[r]`."""
    ids, mask = pad_rows(sequences, pad, device, side="right")
    labels = torch.full_like(ids, IGNORED)
    for row, flags in enumerate(learned):
        chosen = torch.tensor(flags, device=device).nonzero()[:, 0]
        labels[row, chosen] = ids[row, chosen]
    return TokenBatch(ids, mask, labels, torch.tensor(list(row_task), device=device))


class FewShotEncoder:
    """Turns few-shot tasks and training examples into token ids.

    Args:
        tokenizer: A missing padding token is set to the end of sequence.
        fmt: How they read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: FewShotFormat) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.format = tokenizer, fmt

    def example(self, example: TrainingExample, loss_on: str) -> tuple[list[int], list[bool]]:
        """(ids, whether each is learned). Segment by segment, so that a task's prompt begins as its examples do."""
        ids, learned = self._start()
        for segment in self.format.render(example, loss_on, self._template):  # type: ignore[arg-type]
            part = self.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            ids.extend(part)
            learned.extend([segment.trained] * len(part))
        return ids, learned

    def prompt(self, task: Task) -> list[int]:
        """Token ids of a task, up to where its answer begins."""
        ids, _ = self._start()
        for segment in self.format.render(task, template=self._template):
            ids.extend(self.tokenizer(segment.text, add_special_tokens=False)["input_ids"])
        return ids

    def answered(self, task: Task, answer: str) -> tuple[list[int], list[bool]]:
        """A task's prompt with an answer behind it, on which alone the flags are set."""
        query = Demonstration(task.problem, answer)
        return self.example(TrainingExample(task.demonstrations, query, "", task.fields.get(INSTRUCTION, "")), "query")

    def _start(self) -> tuple[list[int], list[bool]]:
        first = self.tokenizer.bos_token_id
        return ([], []) if first is None or self.format.chat else ([first], [False])

    def _template(self, messages: Messages, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


@dataclass(frozen=True)
class View:
    """One way of asking a task.

    Args:
        owner: Index of the task.
        task: The task as it is shown.
        transformation: What was done to its grids, apart from colours.
        colours: How they were recoloured afterwards; None if they were not.
        number: Number of the view among those of one transformation.
        seed: Of a sampled answer.
    """

    owner: int
    task: Task
    transformation: Transformation
    colours: PermuteColours | None
    number: int
    seed: int

    def read(self, fmt: FewShotFormat, text: str) -> Prediction:
        """The answer in a text, mapped back; None where it cannot be read or mapped back."""
        kind = self.task.fields.get(ANSWER_KIND)
        answer = fmt.read_answer(text) if kind is None else bbh_answer(text, kind) or None  # type: ignore[arg-type]
        if answer is not None and fmt.grid_form is not None:
            grid = parse_grid(answer)
            if grid is not None and self.colours is not None:
                grid = self.colours.invert(grid)
            back = None if grid is None else self.transformation.invert(grid)
            answer = None if back is None else grid_text(back)
        return Prediction(answer, self.transformation.name, self.number)

    def show(self, answer: str, fmt: FewShotFormat) -> str:
        """An answer to the task as it would read in this view: what `read` maps back."""
        if fmt.grid_form is None:
            return answer
        grid = parse_grid(answer)
        if grid is None:
            raise DataError(f"View.show: {answer[:60]!r} is no grid. Score grids only, or use a format of text.")
        shown = self.transformation.apply(grid)
        return grid_text(shown if self.colours is None else self.colours.apply(shown))


def task_views(owner: int, task: Task, config: PredictConfig, seed: int) -> Iterator[View]:
    """Every way of asking a task: under each transformation the given order of its demonstrations, then random ones.

    With `config.recolour` all but the first of a transformation are recoloured at random.
    """
    rng = random.Random(row_seed("orders", seed, task.id))
    for transformation in config.transformations:
        changed = transform_task(task, transformation)
        orders = demonstration_orders(len(task.demonstrations), config.permutations, rng)
        for number in range(config.permutations if config.recolour else len(orders)):
            order = orders[number % len(orders)]
            shown = replace(changed, demonstrations=tuple(changed.demonstrations[i] for i in order))
            colours = PermuteColours.random(rng, config.keep_background) if config.recolour and number else None
            if colours is not None:
                shown = transform_task(shown, colours)
            for sample in range(config.samples):
                row = row_seed("predict", seed, task.id, transformation.name, number, sample)
                yield View(owner, shown, transformation, colours, number, row)
