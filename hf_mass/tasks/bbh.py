r"""BIG-Bench Hard (arXiv 2210.09261) as a few-shot benchmark, drawn and scored as in arXiv 2411.07279.

The rules are those of the paper's code, https://github.com/adamzweiger/Fewshot-TTT at commit ad40084. Nothing of it is
copied: the code and the instructions are this package's own.

Draw. The examples of each task's file are shuffled by Python's `random` at the seed, set anew for every task. The first
10 are the demonstrations and all others are evaluated. The runs that the authors number 1 to 5 are the seeds 42 to 46.

Prompt. An instruction, an empty line, "Q: ...\nA: ..." with an empty line after each demonstration, "Q: ...\nA:". The
answer is decoded greedily and ends at "\nQ:".

Extraction (`bbh_answer`). The generated text loses the space around it and its capitals; of a "sequence" the first
line, up to its first "-", is taken, of all others the first word. What is left ends before its first "."; for the kind
"letter", what does not begin with "(" then becomes its first character in brackets, so that "B", "b)" and "bear" all
mean "(b)", while "(b" stays as it is, and is wrong. No other punctuation is removed: "yes," is not "yes".

Score. An answer is right if it equals the target, both without space around them and in lower case; the target is not
extracted, so the few targets of "letter" tasks that are no letter ("Monsters, Inc") are never met. The benchmark's
figure is the plain mean over the accuracies of the 27 tasks, whatever their sizes, and over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.tasks.checks import as_path, require_whole
from hf_mass.tasks.rows import describe, few_shot_tasks, read_json
from hf_mass.tasks.task import INSTRUCTION, Demonstration, Task
from hf_mass.tasks.verifiers import gold_answer, register_verifier

AnswerKind = Literal["word", "letter", "sequence"]

ANSWER_KIND = "answer_kind"
"""The key of `Task.fields` that says how an answer is found in a generated text."""


@dataclass(frozen=True, slots=True)
class BBHTask:
    """What is known about one of the 27 tasks beside its examples.

    Args:
        instruction: What to do and how to answer, to stand before the demonstrations.
        kind: How an answer is found in a generated text (see this module's docstring).
        answer_tokens: Longest answer in tokens of Llama 3's tokenizer, as in the paper's code.
    """

    instruction: str
    kind: AnswerKind
    answer_tokens: int


def _letter(aim: str) -> BBHTask:
    return BBHTask(f"{aim} Reply only with the letter of your choice, such as (A).", "letter", 3)


def _word(aim: str, reply: str, kind: AnswerKind = "word", answer_tokens: int = 1) -> BBHTask:
    return BBHTask(f"{aim} Reply only with {reply}.", kind, answer_tokens)


_DEDUCTION = _letter("Work out the order of the objects from the clues.")
_SHUFFLE = _letter("Follow the swaps and say who or what ends up where.")

BBH_TASKS: dict[str, BBHTask] = {
    "boolean_expressions": _word("Compute the value of the Boolean expression.", "True or False"),
    "causal_judgement": _word("Judge the cause as most people would.", "Yes or No"),
    "date_understanding": _letter("Work out the date that is asked for."),
    "disambiguation_qa": _letter("Say whom the pronoun stands for, or that it is unclear."),
    "dyck_languages": _word(
        "Close all brackets in the right order.", "brackets with spaces between them", "sequence", 3
    ),
    "formal_fallacies": _word("Say whether the conclusion follows from the premises.", "valid or invalid"),
    "geometric_shapes": _letter("Name the shape that the SVG path draws."),
    "hyperbaton": _letter("Choose the sentence whose adjectives stand in the usual order."),
    "logical_deduction_five_objects": _DEDUCTION,
    "logical_deduction_seven_objects": _DEDUCTION,
    "logical_deduction_three_objects": _DEDUCTION,
    "movie_recommendation": _letter("Choose the film most like those listed."),
    "multistep_arithmetic_two": _word("Compute the value of the expression.", "a whole number", answer_tokens=3),
    "navigate": _word("Say whether the steps lead back to the start.", "Yes or No"),
    "object_counting": _word("Count the objects that are asked for.", "a whole number", answer_tokens=2),
    "penguins_in_a_table": _letter("Answer the question about the table of penguins."),
    "reasoning_about_colored_objects": _letter("Answer the question about the objects and their colours."),
    "ruin_names": _letter("Choose the edit that makes the name of the artist or film funny."),
    "salient_translation_error_detection": _letter("Say what kind of error the translation from German has."),
    "snarks": _letter("Choose the sarcastic one of the two statements."),
    "sports_understanding": _word("Say whether the sentence about sports is plausible.", "yes or no"),
    "temporal_sequences": _letter("Work out when the person could have been there."),
    "tracking_shuffled_objects_five_objects": _SHUFFLE,
    "tracking_shuffled_objects_seven_objects": _SHUFFLE,
    "tracking_shuffled_objects_three_objects": _SHUFFLE,
    "web_of_lies": _word("Work out whether the last person tells the truth.", "Yes or No"),
    "word_sorting": _word(
        "Put the words into alphabetical order.", "the words with spaces between them", "sequence", 50
    ),
}
"""The 27 tasks by name, in the paper's order."""


def load_bbh(
    folder: str | Path, tasks: Iterable[str] | None = None, demonstrations: int = 10, seed: int = 42
) -> dict[str, list[Task]]:
    """BIG-Bench Hard, with the demonstrations and queries that the paper's code draws at this seed.

    Args:
        folder: The folder of the files "<task>.json", as in the folder "bbh" of suzgunmirac/BIG-Bench-Hard.
        tasks: Names of the tasks to load (see `BBH_TASKS`); None loads all 27.
        demonstrations: How many examples become the demonstrations of a task's queries; 0 for none.
        seed: Seed of the draw; the paper's five runs are 42 to 46.

    Returns:
        By the task's name, in the paper's order, one `Task` for each example evaluated, in the order of the draw. `id`
        is the name and the example's number in its file; `domain` is the name; the verifier is "short_answer"; `fields`
        hold "source", "file" (the name), "instruction" and "answer_kind".

    Raises:
        ConfigError: If a task is unknown, or the number of demonstrations is negative.
        DataError: If a file is missing, is not of the expected shape, or has too few examples.
    """
    require_whole("load_bbh: demonstrations", demonstrations, 0)
    chosen = set(BBH_TASKS if tasks is None else tasks)
    if unknown := sorted(chosen - BBH_TASKS.keys()):
        raise ConfigError(f"BIG-Bench Hard has no task {unknown[0]!r}. Known: {', '.join(BBH_TASKS)}.")
    names = [name for name in BBH_TASKS if name in chosen]
    where = as_path("load_bbh: folder", folder)
    if not where.is_dir():
        raise DataError(f"There is no folder {str(where)!r}. Give the folder of the files <task>.json.")
    if missing := [name for name in names if not (where / f"{name}.json").is_file()]:
        raise DataError(
            f"The folder {str(where)!r} lacks {len(missing)} of {len(names)} files, the first '{missing[0]}.json'. "
            "Give the folder 'bbh' of BIG-Bench-Hard, or name the tasks that are there in tasks."
        )
    queries = {}
    for name in names:
        file, task = where / f"{name}.json", BBH_TASKS[name]
        fields = {"source": "bbh", "file": name, INSTRUCTION: task.instruction, ANSWER_KIND: task.kind}
        queries[name] = few_shot_tasks(file, _examples(file), demonstrations, seed, "short_answer", fields)
    return queries


def bbh_answer(text: str, kind: AnswerKind) -> str:
    """The answer in a generated text, found as the paper's code does (see this module's docstring).

    Args:
        text: What the model generated; what follows "\\nQ:" is left out. An answer that was extracted before comes
            back as it was.
        kind: The task's kind of answer.

    Raises:
        ConfigError: If the kind is unknown.
    """
    if kind not in get_args(AnswerKind):
        raise ConfigError(f"bbh_answer: kind {kind!r} is unknown. Known: {', '.join(get_args(AnswerKind))}.")
    answer = text.split("\nQ:", 1)[0].strip().lower()
    if not answer:
        return ""
    answer = answer.split("\n", 1)[0].split("-", 1)[0] if kind == "sequence" else answer.split(maxsplit=1)[0]
    if "." in answer:  # the space before a "-" stays, as in the paper's code, where it counts in a vote
        answer = answer.split(".", 1)[0].strip()
    if kind == "letter" and answer and answer[0] != "(":
        answer = f"({answer[0]})"
    return answer


@register_verifier("short_answer")
def short_answer(task: Task, text: str) -> float:
    """Returns 1 if `bbh_answer` finds the gold answer in the text, for the kind `fields["answer_kind"]`."""
    gold = gold_answer(task, "short_answer")
    kind: Any = task.fields.get(ANSWER_KIND)
    if kind not in get_args(AnswerKind):
        raise VerifierError(
            f"The verifier 'short_answer' needs Task.fields['answer_kind'] to be one of "
            f"{', '.join(get_args(AnswerKind))}, found {kind!r} (id {task.id!r}). Set it, or use 'exact_match'."
        )
    return float(bbh_answer(text, kind).strip() == gold.strip().lower())


def _examples(file: Path) -> list[Demonstration]:
    content = read_json(file)
    examples: Any = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(examples, list) or not examples:
        raise DataError(
            f"{str(file)!r} is no BIG-Bench Hard file, found {describe(content)}. Expected "
            "{'examples': [{'input', 'target'}]} with at least one example."
        )
    for number, example in enumerate(examples):
        values = [example.get(key) for key in ("input", "target")] if isinstance(example, dict) else [None]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise DataError(
                f"{str(file)!r}, example {number} (counted from 0): expected texts 'input' and 'target', found "
                f"{example!r:.80}. Correct it."
            )
    return [Demonstration(example["input"], example["target"]) for example in examples]
