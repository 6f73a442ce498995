"""What the rows of `mass.py` are made of: tasks, trained adapters, samples, and answers with their story.

Everything that several rows need (a task's trained adapter, the generator's samples) is made once and kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_mass import Task, load_grid_tasks
from hf_mass.core.losses import row_values
from hf_mass.core.trees import concatenate_rows, tree_map
from hf_mass.engine.session import Session
from hf_mass.lm.binding import deterministic
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.methods.base import Adaptation
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import AttributionConfig, InnerConfig, MassConfig
from hf_mass.methods.samples import AuxiliarySample, read_sample
from hf_mass.methods.scorer import Scorer
from hf_mass.methods.sequence import at_starting_weights
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import STRIPS, TTTSettings
from hf_mass.tasks.formats import FORMATS
from hf_mass.tasks.grid_transformations import PermuteColours
from hf_mass.tasks.grids import grid_text, parse_grid
from research.conventions.protocol import adapt_directly
from research.grids.rule_check import explaining, follows
from research.grids.world import HELD_OUT, Sizes, few_shot_tasks, of_each_type

FORMAT = FORMATS["compact_grid"]

# Tasks


def world_tasks(
    per_family: int, name: str, families: Sequence[str] = HELD_OUT, sizes: Sizes | None = None
) -> list[Task]:
    """Tasks of the generator, as many of each family; `name` is the seed of the draw."""
    sizes = sizes or Sizes(strip=(6, 24), side=(3, 6), composed=0.0)
    return few_shot_tasks(families, per_family, f"mass-{name}", sizes)


def load_tasks(name: str, data: Path, per_type: int, limit: int | None) -> list[Task]:
    """The tasks of a set: "world", or a folder of `data`, `per_type` of each of its types, evenly over its files."""
    if name == "world":
        return world_tasks(per_type, "test")[:limit]
    tasks = load_grid_tasks(data / name)
    if len({task.domain for task in tasks}) == 1:
        return tasks[:limit]
    return of_each_type(tasks, per_type)[:limit]


def is_strip(task: Task) -> bool:
    """Whether all grids that are known have one row."""
    texts = [text for shown in task.demonstrations for text in (shown.question, shown.answer)]
    return not any("\n" in text for text in [*texts, task.problem])


def ttt_settings(strips: bool, **changes: Any) -> TTTSettings:
    """How adapters are trained: the preset for grids, with the symmetries of strips where they are strips."""
    return TTTSettings.preset("grids", **{**(STRIPS if strips else {}), **changes})


# Rows


@dataclass(frozen=True)
class Row:
    """A way to answer.

    Args:
        name: Its name.
        weigh_by: How samples are weighed; "direct" takes a step on the outer loss itself, without samples, and None
            answers without an inner loop.
        count: m, samples of one task.
        trained: Whether generator and solver are the task's test-time trained adapter.
        scorer: Name of the scorer, for `weigh_by="scorer"`.
        scale: What inner rates are multiplied by. A demonstration's loss is a sum over tokens, a sample's their mean.
    """

    name: str
    weigh_by: str | None = None
    count: int = 0
    trained: bool = False
    scorer: str | None = None
    scale: float = 1.0


ROWS = (
    Row("base"),
    Row("one step on the demonstrations", "direct", scale=0.03),
    Row("MASS uniform, m = 8", "uniform", 8),
    Row("MASS attribution, m = 8", "demonstrations", 8),
    Row("MASS attribution, m = 24", "demonstrations", 24),
    Row("MASS scorer, m = 8", "scorer", 8, scorer="plain"),
    Row("MASS scorer with attribution, m = 8", "scorer", 8, scorer="attribution"),
    Row("TTT", trained=True),
    Row("TTT, MASS uniform, m = 8", "uniform", 8, trained=True),
    Row("TTT, MASS attribution, m = 8", "demonstrations", 8, trained=True),
    Row("TTT, MASS attribution, m = 24", "demonstrations", 24, trained=True),
)

SCORERS: dict[str, tuple[str, ...]] = {
    "plain": ("hidden", "log_prob", "overlap", "agreement"),
    "attribution": ("log_prob", "overlap", "agreement", "attribution"),
}
"""Name of a scorer → what it sees."""


@dataclass(frozen=True)
class Setting:
    """What is chosen on validation tasks: the inner rate α and the generator's temperature."""

    rate: float
    temperature: float


@dataclass
class Study:
    """A base with what its rows share.

    Args:
        base: Folder of the base.
        seed: Of adapters and samples.
        optimizer: Inner optimizer.
        steps: K, inner steps.
        sharpness: τ of the weights by attribution.
        rounds: Rounds of the weights by attribution.
        recoloured: Samples' questions are demonstrations' inputs in other colours, instead of the generator's own.
        ttt: Settings of `TTTSettings` that differ from its preset for grids.
        scorers: Trained scorers by name.
    """

    base: Path
    seed: int = 0
    optimizer: str = "sgd"
    steps: int = 1
    sharpness: float = 3.0
    rounds: int = 2
    recoloured: bool = False
    ttt: dict[str, Any] = field(default_factory=dict)
    scorers: dict[str, Scorer] = field(default_factory=dict)
    _trained: dict[str, Adaptation] = field(default_factory=dict)
    _samples: dict[tuple[str, float, bool], list[AuxiliarySample]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mass = MassModel.from_base(str(self.base), self.config([]), seed=self.seed)
        self.mass.model.eval()

    def config(self, tasks: Sequence[Task], setting: Setting | None = None, row: Row | None = None) -> MassConfig:
        """Settings for these tasks: room for samples half as long again as the longest demonstration."""
        question, answer = room(tasks)
        setting = setting or Setting(1.0, 1.0)
        config = MassConfig(
            samples=row.count if row and row.count else 8,
            temperature=setting.temperature,
            max_sample_tokens=round(1.5 * (question + answer)) + 8,
            max_answer_tokens=round(1.5 * answer) + 8,
            max_length=2000,
            format=FORMAT,
            inner=InnerConfig(
                steps=self.steps,
                learning_rate=setting.rate,
                optimizer=self.optimizer,
                lora_rank=16,
                lora_alpha=16,
            ),
            attribution=AttributionConfig(self.sharpness, self.rounds),
        )
        return replace(config, scorer=self.scorers[row.scorer].config) if row and row.scorer else config

    def model(self, tasks: Sequence[Task], setting: Setting, row: Row) -> MassModel:
        """The base with these settings and the row's scorer; the weights are shared by all such models."""
        scorer = self.scorers[row.scorer] if row.scorer else None
        return MassModel(self.mass.model, self.mass.tokenizer, self.config(tasks, setting, row), scorer, self.seed)

    # -- test-time training -------------------------------------------------------------------------------------------

    def train(self, tasks: Sequence[Task]) -> None:
        """Trains the adapters of tasks that have none yet, eight at a time."""
        for strips in (True, False):
            session = Session(self.mass, TTT(ttt_settings(strips, **self.ttt)), self.seed)
            missing = [task for task in tasks if is_strip(task) == strips and task.id not in self._trained]
            for start in range(0, len(missing), 8):
                part = missing[start : start + 8]
                self._trained.update(zip((task.id for task in part), session.adapt(part), strict=True))

    @contextmanager
    def at_adapter(self, task: Task) -> Iterator[None]:
        """Within this context the generator's adapter is the task's trained one."""
        self.train([task])
        with at_starting_weights(self.mass, self._trained[task.id]):
            yield

    # -- answers ------------------------------------------------------------------------------------------------------

    def samples(self, mass: MassModel, tasks: Sequence[Task], row: Row) -> list[list[AuxiliarySample]]:
        """The row's samples of each task, drawn once for all rows that take them; fewer are the first of more."""
        temperature = mass.config.temperature
        keys = {task.id: (task.id, temperature, row.trained) for task in tasks}
        missing = [task for task in tasks if len(self._samples.get(keys[task.id], ())) < row.count]
        if missing:
            if self.recoloured:
                drawn = [recoloured_samples(mass, task, row.count, self.seed) for task in missing]
            else:
                drawn = mass.generate_auxiliary(missing, row.count, self.seed)
            self._samples.update({keys[t.id]: group for t, group in zip(missing, drawn, strict=True)})
        return [self._samples[keys[task.id]][: row.count] for task in tasks]

    def answer(self, row: Row, setting: Setting, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """What became of each task: whether it was solved, the loss on its answer, and its samples."""
        found: list[dict[str, Any]] = []
        size = 1 if row.trained else 8
        for start in range(0, len(tasks), size):
            part = list(tasks[start : start + size])
            if row.trained:
                self.train(tasks[start : start + 8])
                with self.at_adapter(part[0]):
                    found += self._answer(row, setting, part)
            else:
                found += self._answer(row, setting, part)
        return found

    def _answer(self, row: Row, setting: Setting, tasks: list[Task]) -> list[dict[str, Any]]:
        mass = self.model(tasks, setting, row)
        records: list[Adaptation] | None = None
        if row.weigh_by == "direct":
            records = adapt_directly([""])(mass, tasks, self.seed).adaptations
        elif row.weigh_by is not None:
            records = mass.adapt(tasks, row.weigh_by, self.samples(mass, tasks, row), self.seed)
        answers = mass.solve(tasks, records)
        losses = answer_losses(mass, tasks, records)
        return [
            {
                "id": task.id,
                "domain": task.domain,
                "right": int(answer.reward()),
                "loss": round(loss, 4),
                **({} if records is None else story(records[n])),
            }
            for n, (task, answer, loss) in enumerate(zip(tasks, answers, losses, strict=True))
        ]


def room(tasks: Sequence[Task]) -> tuple[int, int]:
    """Tokens of the longest input and of the longest output that the tasks' demonstrations show."""
    shown = [pair for task in tasks for pair in task.demonstrations]
    sides = [pair.question for pair in shown], [pair.answer for pair in shown]
    question, answer = (max((len(FORMAT.written(text)) for text in texts), default=8) for texts in sides)
    return question, answer


def recoloured_samples(mass: MassModel, task: Task, count: int, seed: int) -> list[AuxiliarySample]:
    """Samples whose questions are the demonstrations' inputs in other colours; the model writes the answers."""
    draw = random.Random(row_seed("recoloured", seed, task.id))
    questions = []
    for _ in range(count):
        grid = parse_grid(draw.choice(task.demonstrations).question)
        assert grid is not None
        questions.append(grid_text(PermuteColours.random(draw, keep_background=True).apply(grid)))
    prompts = [mass.encoder.prompt_ids(task, FORMAT.inner_prompt(question, task)) for question in questions]
    sampling = Sampling(mass.config.max_answer_tokens, mass.config.temperature)
    seeds = [row_seed("answers", seed, task.id, i) for i in range(count)]
    with deterministic(mass.model), mass.adapter.lora.inactive():
        ids = complete(mass.model, mass.tokenizer, prompts, sampling, seeds)
    texts = mass.tokenizer.batch_decode(ids, skip_special_tokens=True)
    written = [f"{FORMAT.written(question)}>{text}" for question, text in zip(questions, texts, strict=True)]
    # As if the generator had written them, question included: what a scorer reads off a sample's tokens.
    return [read_sample(text, mass.encoder.answer_ids(text), FORMAT) for text in written]


def answer_losses(mass: MassModel, tasks: list[Task], records: Sequence[Adaptation] | None) -> list[float]:
    """The loss on each task's answer at the weights that it was solved at, in nats a token."""
    own = tree_map(lambda x: x[:1], mass.adapter.lora.start(1))
    adapted = [None] * len(tasks) if records is None else [record.adapted for record in records]
    params = concatenate_rows([own if tree is None else tree for tree in adapted])
    with deterministic(mass.model), mass.adapter.lora.inactive():
        return row_values(mass.adapter.gold_loss(tasks).loss, params).tolist()


def story(record: Adaptation) -> dict[str, Any]:
    """A task's samples: what each weighs, whether it could be read, whether it follows the rule where that is known.

    The rule is looked for with the query's answer: a diagnostic, of which nothing is used.
    """
    task = record.task
    pairs = [as_lists(pair.question, pair.answer) for pair in task.demonstrations]
    if task.answer is not None:
        pairs.append(as_lists(task.problem, task.answer))
    rules = explaining(task.domain, pairs)
    known = {(pair.question, pair.answer) for pair in task.demonstrations}
    rows: list[dict[str, Any]] = []
    for i, sample in enumerate(record.samples):
        row: dict[str, Any] = {"weight": round(float(record.weights[i]), 4), "read": sample.usable}
        if sample.usable:
            row["copied"] = (sample.question, sample.answer) in known
        if rules and sample.usable:
            row["follows"] = follows(rules, as_lists(sample.question, sample.answer))
        rows.append(row)
    return {"samples": rows, "reason": record.reason}


def as_lists(question: str, answer: str) -> tuple[list[list[int]], list[list[int]]]:
    """A pair of canonical texts as the world's grids."""
    first, second = ([[int(c) for c in row.split()] for row in text.split("\n")] for text in (question, answer))
    return first, second
