"""Write the small example problems that ship for the demo, or look for others.

In the folder `examples`:

    python -m demo.problems                                       # writes them all
    python -m demo.problems --check                               # and shows each before and after adapting
    python -m demo.problems --try grid/outline_shape --seeds 12   # candidates of a family

Grids are ARC puzzles (.json) of families that `grids-base` never saw; texts are rows of input and output (.csv,
.jsonl), the last of them the query, nearly all of families that `strings-base` never saw, on plain English words.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import torch

from hf_mass.engine.api import solve
from hf_mass.engine.models import load
from hf_mass.lm.language_model import LanguageModel
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import read_problem
from research.grids.world import FAMILIES as GRID_FAMILIES
from research.grids.world import Sizes as GridSizes
from research.grids.world import draw_task as draw_grids
from research.strings import world  # noqa: F401  (registers families)
from research.strings.parts import FIRST_NAMES, LAST_NAMES, RULES, WORDS, Inputs, Sizes

GRIDS: dict[str, tuple[str, int]] = {
    "grid-diagonals.json": ("grid/diagonals", 0),
    "grid-keep-the-largest.json": ("grid/keep_largest", 2),
    "grid-mirrored-tiles.json": ("grid/tile_mirrored", 1),
    "grid-outline.json": ("grid/outline_shape", 2),
}
"""File → family, seed."""

TEXTS: dict[str, tuple[str, str, int]] = {
    "text-alternating-case.csv": ("case/alternating", "word", 0),
    "text-camel-case.csv": ("words/camel", "three words", 0),
    "text-each-word-reversed.jsonl": ("words/reverse_each", "two words", 0),
    "text-ends-swapped.csv": ("order/swap_ends", "word", 0),
    "text-last-name-first.csv": ("name/last_comma_first", "name", 0),
    "text-mirror.jsonl": ("order/mirror", "word", 1),
    "text-thousands.csv": ("number/grouped", "number", 0),
    "text-vowels-upper.csv": ("case/vowels_upper", "word", 1),
}
"""File → family, kind of input, seed."""


def a_word(draw: random.Random) -> str:
    return draw.choice([word for word in WORDS if 4 <= len(word) <= 7])


INPUTS: dict[str, Callable[[random.Random], str]] = {
    "word": a_word,
    "two words": lambda draw: f"{a_word(draw)} {a_word(draw)}",
    "three words": lambda draw: " ".join(a_word(draw) for _ in range(3)),
    "name": lambda draw: f"{draw.choice(FIRST_NAMES)} {draw.choice(LAST_NAMES)}",
    "number": lambda draw: str(draw.randint(1000, 9_999_999)),
}


def grid_problem(family: str, seed: int) -> str:
    """A puzzle of a family in the form of ARC."""
    sizes = GridSizes(side=(3, 6), demonstrations=(3, 4), composed=0.0)
    pairs = draw_grids(random.Random(f"demo-{family}-{seed}"), sizes, [family]).pairs
    shown = [{"input": a, "output": b} for a, b in pairs]
    return json.dumps({"train": shown[:-1], "test": shown[-1:]}) + "\n"


def text_problem(family: str, kind: str, seed: int, ending: str) -> str:
    """Eight rows by one rule on plain inputs."""
    draw = random.Random(f"demo-{family}-{kind}-{seed}")
    _, rule = RULES[family](Inputs(draw, Sizes()))
    pairs: dict[str, str] = {}
    while len(pairs) < 8:
        text = INPUTS[kind](draw)
        if answer := rule(text):
            pairs[text] = answer
    rows = [{"input": question, "output": answer} for question, answer in pairs.items()]
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["input", "output"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def told(model: LanguageModel, name: str, text: str, kind: str) -> str:
    """A problem's answers before and after test-time training, in a line."""
    solution = solve(model, read_problem(text, Path(name).stem, kind))
    before, after = solution.before[0], solution.after[0]
    # Texts are compared here, since the verifier "exact_match" does not tell upper case from lower.
    is_right = [answer.right if kind == ".json" else answer.text == answer.task.answer for answer in (before, after)]
    marks = ["right" if right else "wrong" for right in is_right]
    shown = "" if kind == ".json" else f": {before.text!r} → {after.text!r}, wanted {before.task.answer!r}"
    return f"{name}: {marks[0]} → {marks[1]}, {solution.seconds:.1f} s{shown}"


def candidates(families: list[str], kind: str, seeds: int) -> dict[str, str]:
    """Problems of families by "family-seed"."""
    found = {}
    for family in families:
        for seed in range(seeds):
            is_grid = family in GRID_FAMILIES
            text = grid_problem(family, seed) if is_grid else text_problem(family, kind, seed, ".csv")
            found[f"{family}-{seed}"] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ASSETS / "examples", help="folder to write")
    parser.add_argument("--check", action="store_true", help="show every problem before and after adapting")
    parser.add_argument("--try", nargs="+", dest="families", default=[], metavar="FAMILY", help="nothing is written")
    parser.add_argument("--inputs", choices=list(INPUTS), default="word", help="kind of input of texts that are tried")
    parser.add_argument("--seeds", type=int, default=8, help="candidates of a family")
    parser.add_argument("--strings", default="strings-base", help="model for texts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.families:
        problems = candidates(arguments.families, arguments.inputs, arguments.seeds)
    else:
        problems = {file: grid_problem(*wanted) for file, wanted in GRIDS.items()}
        problems |= {file: text_problem(*wanted, Path(file).suffix) for file, wanted in TEXTS.items()}
        arguments.output.mkdir(parents=True, exist_ok=True)
        for file, text in problems.items():
            (arguments.output / file).write_text(text, encoding="utf-8")
    if arguments.families or arguments.check:
        models: dict[str, LanguageModel] = {}
        for name, text in problems.items():
            kind = ".json" if text.startswith('{"train"') else ".jsonl" if text.startswith("{") else ".csv"
            needed = "grids-base" if kind == ".json" else arguments.strings
            if needed not in models:
                models[needed] = load(needed)
            print(told(models[needed], name, text, kind), flush=True)


if __name__ == "__main__":
    main()
