"""Writing auxiliary samples: prompts, sampling, and which of them are usable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peft import PeftModel

from hf_mass.lm.encoding import TextEncoder
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.lm.generation import Sampling, complete, continuing, row_seed
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.samples import AuxiliarySample, read_sample
from hf_mass.tasks.task import Task
from hf_mass.tasks.written_pairs import answer_fault, question_fault, same

FEW_USABLE = 1 / 3
"""Share of usable samples below which people are told."""


def write_samples(
    model: PeftModel, encoder: TextEncoder, config: MassConfig, tasks: Sequence[Task], count: int, seed: int
) -> list[list[AuxiliarySample]]:
    """`count` samples for each task. Where tasks read as lists of solved examples, those with the same list share them.

    Args:
        model: The generator, in evaluation mode.
        encoder: Renders tasks.
        config: How samples are drawn.
        tasks: The tasks.
        count: m, samples of each.
        seed: For sampling.
    """
    groups: dict[int, list[AuxiliarySample]] = {}
    shared: dict[tuple[int, ...], list[AuxiliarySample]] = {}
    asked = []
    for n, task in enumerate(tasks):
        if few_shot := encoder.few_shot_for(task):
            prompt = tuple(encoder.generator_prompt_ids(task))
            if prompt not in shared:
                shared[prompt] = _pairs(model, encoder, few_shot, config, task, count, seed)
            groups[n] = [_against(sample, task) for sample in shared[prompt]]
        else:
            asked.append(n)
    if asked:
        written = _written(model, encoder, config, [tasks[n] for n in asked], count, seed)
        groups |= dict(zip(asked, written, strict=True))
    return [groups[n] for n in range(len(tasks))]


def _written(
    model: PeftModel, encoder: TextEncoder, config: MassConfig, tasks: Sequence[Task], count: int, seed: int
) -> list[list[AuxiliarySample]]:
    """Samples that the generator was asked for, question and answer in one text."""
    sampling = Sampling(config.max_sample_tokens, config.temperature, config.top_p, config.top_k)
    prompts = [prompt for task in tasks for prompt in [encoder.generator_prompt_ids(task)] * count]
    seeds = [row_seed("auxiliary", seed, task.id, task.problem, i) for task in tasks for i in range(count)]
    ids = complete(model, encoder.tokenizer, prompts, sampling, seeds, alike=len(tasks) == 1)
    texts = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
    samples = [read_sample(text, row, config.format) for text, row in zip(texts, ids, strict=True)]
    groups = [samples[start : start + count] for start in range(0, len(samples), count)]
    if encoder.few_shot is None:  # what a model was meta-trained on stays as it was
        return groups
    return [_checked(group, task, encoder) for group, task in zip(groups, tasks, strict=True)]


def _checked(group: Sequence[AuxiliarySample], task: Task, encoder: TextEncoder) -> list[AuxiliarySample]:
    checked, earlier = list[AuxiliarySample](), list[str]()
    for sample in group:
        fault = sample.reason or (None if is_ended(encoder, sample.token_ids) else "incomplete")
        fault = fault or question_fault(sample.question, task, earlier) or answer_fault(sample.answer, task)
        earlier.append(sample.question)
        checked.append(replace(sample, reason=fault))
    return checked


def _pairs(
    model: PeftModel,
    encoder: TextEncoder,
    few_shot: FewShotEncoder,
    config: MassConfig,
    task: Task,
    count: int,
    seed: int,
) -> list[AuxiliarySample]:
    """Samples that continue the list of solved examples: inputs first, then an output to each that is usable."""
    fmt, tokenizer, prompt = few_shot.format, encoder.tokenizer, encoder.generator_prompt_ids(task)
    seeds = [row_seed("auxiliary", seed, i, *prompt) for i in range(count)]
    sampling = Sampling(config.max_sample_tokens, config.temperature, config.top_p, config.top_k)
    inputs = complete(model, tokenizer, [prompt] * count, sampling, seeds, few_shot.input_stop, alike=True)
    samples = list[AuxiliarySample]()
    for ids, text in zip(inputs, few_shot.texts(inputs, few_shot.input_stop), strict=True):
        question = fmt.read_input(text) or ""
        complete_input = few_shot.is_ended(ids, few_shot.input_stop) or (fmt.chat and is_ended(encoder, ids))
        earlier = [sample.question for sample in samples]
        fault = None if question else ("no_match" if text.strip() else "empty")
        fault = fault or (None if complete_input else "incomplete")
        fault = fault or question_fault(question, replace(task, problem=task.demonstrations[0].question), earlier)
        samples.append(AuxiliarySample(text, tuple(ids), question, "", fault))
    asked = [i for i, sample in enumerate(samples) if sample.usable]
    if not asked:
        return samples
    prompts = [few_shot.prompt(replace(task, problem=samples[i].question)) for i in asked]
    sampling = replace(sampling, max_new_tokens=config.max_answer_tokens)
    stop, seeds = few_shot.stop(task), [row_seed("answer", seeds[i]) for i in asked]
    with continuing([list(samples[i].token_ids) for i in asked]):
        outputs = complete(model, tokenizer, prompts, sampling, seeds, stop, alike=True)
    for i, ids, text in zip(asked, outputs, few_shot.texts(outputs), strict=True):
        answer = fmt.read_answer(text, task) or ""
        ended = few_shot.is_whole(ids, stop)
        fault = None if ended else "incomplete"
        fault = fault or (answer_fault(answer, task) if answer else "no_answer")
        before = samples[i]
        samples[i] = AuxiliarySample(before.text + text, (*before.token_ids, *ids), before.question, answer, fault)
    return samples


def _against(sample: AuxiliarySample, task: Task) -> AuxiliarySample:
    """The sample, unusable for a task that it asks."""
    return (
        replace(sample, reason="not_new") if sample.usable and same(sample.question) == same(task.problem) else sample
    )


def sharing_samples(
    encoder: TextEncoder, tasks: Sequence[Task], samples: Sequence[Sequence[AuxiliarySample]]
) -> list[int]:
    """For each task the first one with the same list of solved examples and the same samples, so that it adapts alike.

    A task that reads as a question stands for itself.
    """
    firsts: dict[Any, int] = {}
    shown = [tuple(encoder.generator_prompt_ids(t)) if encoder.few_shot_for(t) else None for t in tasks]
    if len(samples) != len(tasks):
        return list(range(len(tasks)))  # what adapts refuses them
    keys = [n if prompt is None else (prompt, tuple(samples[n])) for n, prompt in enumerate(shown)]
    return [firsts.setdefault(key, n) for n, key in enumerate(keys)]


def is_ended(encoder: TextEncoder, ids: Sequence[int]) -> bool:
    """Whether a completion ended by itself, not by the limit."""
    return bool(ids) and ids[-1] in encoder.tokenizer.all_special_ids


def few_usable(samples: Sequence[AuxiliarySample]) -> str | None:
    """What to tell people where less than a third of the samples are usable; None where more are."""
    reasons = [str(sample.reason) for sample in samples if not sample.usable]
    usable = len(samples) - len(reasons)
    if not reasons or usable >= FEW_USABLE * len(samples):
        return None
    often = max(dict.fromkeys(reasons), key=reasons.count)
    cure = CURES.get(often, "let more of them pass")
    return f"{usable or 'no'} usable sample{'s' * (usable > 1)} of {len(samples)}, most often {often!r}: {cure}"


CURES = {
    "empty": "lower temperature",
    "no_match": "give more solved examples, or take a model that follows the form",
    "no_question": "give more solved examples, or take a model that follows the form",
    "no_answer": "give more solved examples, or take a model that follows the form",
    "incomplete": "raise max_sample_tokens and max_answer_tokens",
    "not_new": "raise temperature or samples",
    "placeholder": "give more solved examples",
    "other_form": "give more solved examples, or lower temperature",
}
"""Reason → what helps where it is frequent."""
