"""A designed world of hidden conventions: few-shot tasks small enough to train on a laptop CPU, with known answers.

M conventions each map every item to one of Y colours. Families of tasks favour a convention of their own. A task shows
demonstrations that follow one hidden convention and asks one more item. A solution names the convention, then the
colour; only the colour is verified. One (item, colour) pair fits about M / Y conventions, so no single auxiliary sample
tells which one is meant, while the average over several does.

Two things are held out of meta-training: families, and conventions. The base model that ships was pretrained on all
conventions, so adapting to one that was never rewarded elicits knowledge rather than adding it.

This world is a laboratory, not a benchmark: results on it say how adaptation works, not how well a language model does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hf_mass.errors import ConfigError
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.task import Demonstration, Task

ITEMS = ("apple", "pear", "fig", "plum", "kiwi", "lime", "peach", "grape", "melon", "mango", "cherry", "lemon")
COLOURS = ("red", "blue", "green", "gold", "black", "white", "pink", "grey")
FAMILIES = (
    *("ada", "bob", "cyd", "dee", "eve", "fay", "gus", "hal", "ivy", "jon"),
    *("kim", "lee", "max", "ned", "oli", "pam", "quin", "ray", "sue", "tom"),
)
SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", ">", "=", "write", "note", "by")

CONVENTIONS_FORMAT = PromptFormat(
    generator_template="{family} {demonstrations} {problem} write",
    solver_template="{family} {demonstrations} {problem} =",
    demonstration_template="{question} > {answer}",
    demonstration_separator=" ",
    demonstrations_header="",
    demonstrations_footer="",
    sample_pattern=r"^\s*(?P<family>\S+) (?P<item>\S+) (?P<colour>\S+) (?P<convention>\S+)\s*$",
    sample_question_format="{family} {item}",
    sample_answer_format="{convention} {colour}",
    inner_template="{question} =",
    demonstration_prompt_template="{family} {question} =",
    solution_pattern=r"^\s*(?P<rationale>\S+) (?P<answer>\S+)\s*$",
    solution_format="{rationale} {answer}",
)
"""How the tasks of this world read and are read back."""

SPLITS = {
    "train": ("train", "met"),
    "validation": ("train", "met"),
    "test_families": ("held_out", "met"),
    "test_conventions": ("held_out", "held_out"),
    "validation_conventions": ("train", "validation"),
}
"""Split → (which families, which conventions). Tasks of different splits never share a random stream."""


@dataclass(frozen=True)
class ConventionsWorld:
    """The world's tables, priors and splits, all drawn from `seed`.

    Args:
        conventions: M, number of conventions.
        held_out_conventions: How many of them meta-training never meets.
        validation_conventions: How many further ones only settings are chosen on.
        colours: Y.
        families: Number of families.
        held_out_families: How many of them meta-training never meets.
        demonstrations: Demonstrations in a task.
        favourite: Prior probability of a family's favourite convention; the rest is spread evenly.
        seed: Draws the tables and the favourites.

    Raises:
        ConfigError: If a split would be empty or there are not enough names.
    """

    conventions: int = 24
    held_out_conventions: int = 6
    validation_conventions: int = 2
    colours: int = 6
    families: int = 20
    held_out_families: int = 5
    demonstrations: int = 4
    favourite: float = 0.25
    seed: int = 0
    tables: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    favourites: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        held_out, validation = self.held_out_conventions, self.validation_conventions
        met = self.conventions - held_out - validation
        if min(met, held_out, validation) < 1 or not 0 < self.held_out_families < self.families <= len(FAMILIES):
            raise ConfigError(
                f"ConventionsWorld: {self.conventions} conventions with {held_out} held out and {validation} for "
                f"validation, and {self.families} families with {self.held_out_families} held out, leave an empty "
                f"split or lack names (at most {len(FAMILIES)} families). Every part needs at least one."
            )
        if not 0 <= self.favourite <= 1:
            raise ConfigError(f"ConventionsWorld.favourite is {self.favourite}; it is a probability, in [0, 1].")
        if not 2 <= self.colours <= len(COLOURS) or not 1 <= self.demonstrations < len(ITEMS):
            raise ConfigError(
                f"ConventionsWorld: colours={self.colours} must lie in 2..{len(COLOURS)} and demonstrations="
                f"{self.demonstrations} in 1..{len(ITEMS) - 1}."
            )
        draw = random.Random(f"conventions-world-{self.seed}")
        tables = tuple(tuple(draw.randrange(self.colours) for _ in ITEMS) for _ in range(self.conventions))
        # Favourites are met conventions: the held-out ones are nobody's habit.
        favourites = tuple(draw.randrange(met) for _ in range(self.families))
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "favourites", favourites)

    @property
    def vocabulary(self) -> list[str]:
        """Every word of the world, special words first; a word's place is its token id."""
        names = [self.convention_name(c) for c in range(self.conventions)]
        return [*SPECIAL_WORDS, *ITEMS, *COLOURS[: self.colours], *names, *FAMILIES[: self.families]]

    @staticmethod
    def convention_name(convention: int) -> str:
        """The word that stands for a convention."""
        return f"rule{convention:02d}"

    def convention_group(self, group: str) -> range:
        """Indices of the "met", "validation" or "held_out" conventions."""
        first_held_out = self.conventions - self.held_out_conventions
        first_validation = first_held_out - self.validation_conventions
        return {
            "met": range(first_validation),
            "validation": range(first_validation, first_held_out),
            "held_out": range(first_held_out, self.conventions),
        }[group]

    def family_group(self, group: str) -> range:
        """Indices of the "train" or "held_out" families."""
        first_held_out = self.families - self.held_out_families
        return range(first_held_out) if group == "train" else range(first_held_out, self.families)

    def colour(self, convention: int, item: int) -> str:
        """The colour that a convention gives to an item."""
        return COLOURS[self.tables[convention][item]]

    def tasks(self, split: str, count: int, seed: int = 0) -> list[Task]:
        """`count` tasks of a split (see `SPLITS`), the same for the same seed.

        Raises:
            ConfigError: If the split is unknown.
        """
        if split not in SPLITS:
            raise ConfigError(f"ConventionsWorld.tasks: split is {split!r}; choose one of {sorted(SPLITS)}.")
        family_group, convention_group = SPLITS[split]
        draw = random.Random(f"conventions-tasks-{self.seed}-{split}-{seed}")
        families, allowed = self.family_group(family_group), self.convention_group(convention_group)
        return [self.draw_task(draw, draw.choice(families), allowed, f"{split}-{seed}-{i}") for i in range(count)]

    def draw_convention(self, draw: random.Random, family: int, allowed: range) -> int:
        """A convention from the family's prior, restricted to `allowed`."""
        other = (1 - self.favourite) / (self.conventions - 1)
        weights = [self.favourite if c == self.favourites[family] else other for c in allowed]
        return draw.choices(allowed, weights)[0]

    def draw_task(self, draw: random.Random, family: int, allowed: range, name: str, demonstrations: int = 0) -> Task:
        """A task of a family under one of the `allowed` conventions."""
        hidden = self.draw_convention(draw, family, allowed)
        items = draw.sample(range(len(ITEMS)), (demonstrations or self.demonstrations) + 1)
        answer = self.colour(hidden, items[-1])
        return Task(
            problem=ITEMS[items[-1]],
            demonstrations=tuple(Demonstration(ITEMS[x], self.colour(hidden, x)) for x in items[:-1]),
            solution=CONVENTIONS_FORMAT.compose_solution(self.convention_name(hidden), answer),
            answer=answer,
            domain=FAMILIES[family],
            id=name,
            fields={"family": FAMILIES[family]},
        )

    def solution(self, convention: int, item: int) -> str:
        """The solution of a task that asks for an item under a convention."""
        return CONVENTIONS_FORMAT.compose_solution(self.convention_name(convention), self.colour(convention, item))

    def is_right_sample(self, task: Task, question: str, answer: str) -> bool:
        """Whether a sample is of the task's family and follows its hidden convention (for analysis; needs the gold)."""
        family, _, item = question.partition(" ")
        hidden = (task.solution or "").split(" ")[0]
        names = [self.convention_name(c) for c in range(self.conventions)]
        if family != task.fields["family"] or item not in ITEMS or hidden not in names:
            return False
        return answer == self.solution(names.index(hidden), ITEMS.index(item))
