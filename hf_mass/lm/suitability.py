"""Whether a model is asked for what it was made for."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mass.lm.language_model import LanguageModel
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.task import Task


def beyond(lm: LanguageModel, tasks: Sequence[Task]) -> str | None:
    """Why an answer of this model to these tasks means little, as a sentence for people; None if nothing is known.

    Only the tiny models that ship, and what was adapted from them, say what they are made for.
    """
    if not lm.kinds or (reason := _reason(lm, tasks)) is None:
        return None
    about = f" ({lm.about})" if lm.about else ""
    return (
        f"{lm.name} is a toy{about}, and {reason}: its answers mean little. Name a language model, such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct."
    )


def _reason(lm: LanguageModel, tasks: Sequence[Task]) -> str | None:
    if (kind := kind_of(tasks)) not in lm.kinds:
        return f"this problem is of {kind}"
    if not all(task.demonstrations for task in tasks):
        return "this problem has no solved examples"
    texts = [text for task in tasks for pair in task.demonstrations for text in (pair.question, pair.answer)]
    texts += [task.problem for task in tasks]
    if kind == "grids":
        return None
    longest = max(len(text.split()) for text in texts)
    if lm.most_words is not None and longest > lm.most_words:
        return f"a text of this problem has {longest} words, where it knows texts of {lm.most_words} at most"
    for text in texts:
        read_back = lm.tokenizer.decode(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        if "".join(read_back.split()) != "".join(text.split()):
            return f"it has no tokens for all of {text[:40]!r}"
    return None
