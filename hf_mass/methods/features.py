"""Numbers that the scorer reads off a task's samples. All of them are constants: no gradient leaves this module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_mass.core.token_loss import token_log_probs
from hf_mass.core.weights import standardise
from hf_mass.lm.encoding import Row, TextEncoder
from hf_mass.methods.samples import AuxiliarySample, agreement, overlap
from hf_mass.tasks.task import Task


@torch.no_grad()
def scorer_features(
    names: Sequence[str],
    model: PreTrainedModel | PeftModel,
    encoder: TextEncoder,
    tasks: Sequence[Task],
    samples: Sequence[Sequence[AuxiliarySample]],
    attributions: Tensor | None = None,
    microbatch: int = 64,
) -> dict[str, Tensor]:
    """Features of the samples, name → [N, m, size] float32.

    Args:
        names: Features wanted, of `hf_mass.methods.mass_settings.FEATURES`.
        model: The generator, in evaluation mode.
        encoder: Renders tasks.
        tasks: N tasks.
        samples: m samples of each.
        attributions: ∂L/∂s [N, m] to the tasks' own demonstrations; needed for "attribution".
        microbatch: Rows in one pass of the model.
    """
    device = next(model.parameters()).device
    shape = (len(tasks), len(samples[0]))
    features: dict[str, Tensor] = {}
    if "log_prob" in names or "hidden" in names:
        features.update(_model_features("hidden" in names, model, encoder, tasks, samples, microbatch))
    if "overlap" in names:
        features["overlap"] = _overlap_features(encoder, tasks, samples).to(device)
    if "agreement" in names:
        values = [agreement(group, encoder.format) for group in samples]
        features["agreement"] = 2 * torch.tensor(values, device=device).view(*shape, 3)
    if "attribution" in names:
        if attributions is None:
            raise ValueError('The feature "attribution" needs attributions; pass them.')
        features["attribution"] = _attribution_features(attributions, samples)
    # Tasks whose inner loop diverged are skipped by the caller; their NaN must not reach the others through the scorer.
    return {name: torch.nan_to_num(features[name], posinf=0.0, neginf=0.0) for name in names}


def _model_features(
    hidden: bool,
    model: PreTrainedModel | PeftModel,
    encoder: TextEncoder,
    tasks: Sequence[Task],
    samples: Sequence[Sequence[AuxiliarySample]],
    microbatch: int,
) -> dict[str, Tensor]:
    """Log-probabilities of each sample's tokens (mean, least, first, last), and the hidden state behind the sample."""
    device = next(model.parameters()).device
    rows, places = [], []
    for n, (task, group) in enumerate(zip(tasks, samples, strict=True)):
        prompt = encoder.generator_prompt_ids(task)
        for i, sample in enumerate(group):
            if sample.usable:
                rows.append(Row(n, prompt, sample.token_ids))
                places.append((n, i))
    shape = (len(tasks), len(samples[0]))
    log_prob = torch.zeros(*shape, 4, device=device)
    states = torch.zeros(*shape, model.config.get_text_config().hidden_size, device=device)
    for start in range(0, len(rows), microbatch):
        batch = encoder.batch(rows[start : start + microbatch], device)
        index = tuple(torch.tensor(places[start : start + microbatch], device=device).T)
        values, mask = token_log_probs(model, batch)
        # The end-of-sequence token is left out: "last" is the last token that says something.
        mask = mask & (batch.labels[:, 1:] != encoder.tokenizer.eos_token_id)
        first, last = mask.int().argmax(1), mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        picked = torch.stack(
            [
                (values * mask).sum(1) / mask.sum(1).clamp(min=1),
                values.masked_fill(~mask, 0).min(1).values,
                values.gather(1, first[:, None])[:, 0],
                values.gather(1, last[:, None])[:, 0],
            ],
            1,
        )
        log_prob[index] = picked.float().clamp(min=-6) / 2  # the scale of the other features
        if hidden:
            states[index] = _last_hidden(model, batch.input_ids, batch.attention_mask).float()
    return {"log_prob": log_prob, "hidden": states}


def _last_hidden(model: PreTrainedModel | PeftModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last decoder layer's state at the last real token of each row, [rows, hidden]."""
    output = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False)
    last = attention_mask.sum(1) - 1
    return output.hidden_states[-1][torch.arange(len(last), device=last.device), last]


def _overlap_features(
    encoder: TextEncoder, tasks: Sequence[Task], samples: Sequence[Sequence[AuxiliarySample]]
) -> Tensor:
    def ids(text: str) -> list[int]:
        return encoder.answer_ids(text, end=False) if text else []

    values = []
    for task, group in zip(tasks, samples, strict=True):
        shown = set(encoder.generator_prompt_ids(task))
        values.append([overlap(sample, ids(sample.question), ids(sample.answer), shown) for sample in group])
    return torch.tensor(values, dtype=torch.float32)


def _attribution_features(attributions: Tensor, samples: Sequence[Sequence[AuxiliarySample]]) -> Tensor:
    """Standardised −∂L/∂s, and whether it is the group's largest: [N, m, 2]."""
    usable = torch.tensor([[s.usable for s in group] for group in samples], device=attributions.device)
    scaled = standardise(-attributions.float(), usable)
    best = (scaled == scaled.max(1, keepdim=True).values) & usable
    return torch.stack([scaled, best.float()], 2)
