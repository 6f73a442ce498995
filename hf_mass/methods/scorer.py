"""The scorer s_η(T, p, a): a small head on the backbone's hidden state and on features of the sample, made here too.

No gradient reaches the backbone or the generator through it: its inputs are constants, and its own gradient is
Σ_i (∂L_outer/∂s_i) ∇_η s_i (arXiv 2603.03524, scorer update).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mass.core.token_loss import token_log_probs
from hf_mass.core.weights import normalise_scores, standardise
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.lm.encoding import Row, TextEncoder
from hf_mass.lm.random_state import host_random_state
from hf_mass.methods.mass_settings import ScorerConfig
from hf_mass.methods.samples import AuxiliarySample, usable_mask
from hf_mass.store.storage import read_json
from hf_mass.store.weights import read_weights
from hf_mass.tasks.checks import shown
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.task import Task

MOST_HIDDEN = 1_000_000
FEATURE_SIZES = {"log_prob": 4, "overlap": 2, "agreement": 3, "attribution": 2}
"""Numbers per sample; "hidden" has as many as the backbone's hidden size."""


class Scorer(nn.Module):
    """Scores z [N, m] of samples from their features [N, m, F], and weights s [N, m] from the scores.

    The last layer starts at zero, so an untrained scorer weighs all samples alike.

    Args:
        config: Features, width and normalisation.
        hidden_size: Width of the backbone's hidden states.
    """

    def __init__(self, config: ScorerConfig, hidden_size: int) -> None:
        super().__init__()
        self.config, self.hidden_size = config, hidden_size
        size = sum(hidden_size if name == "hidden" else FEATURE_SIZES[name] for name in config.features)
        self.norm = nn.LayerNorm(hidden_size) if "hidden" in config.features else None
        width = config.width or size
        self.hidden = nn.Linear(size, width) if config.width else None
        self.output = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, features: dict[str, Tensor], usable: Tensor) -> Tensor:
        """s [N, m] ≥ 0, exactly 0 for samples that are not usable.

        Args:
            features: Name → [N, m, size] float, one for each feature of the config.
            usable: [N, m] bool.
        """
        dtype = self.output.weight.dtype
        parts = []
        for name in self.config.features:
            part = features[name].detach().to(dtype)
            parts.append(self.norm(part) if name == "hidden" and self.norm is not None else part)
        inputs = torch.cat(parts, 2)
        inputs = torch.tanh(self.hidden(inputs)) if self.hidden is not None else inputs
        return normalise_scores(self.output(inputs)[..., 0], usable, self.config.normalization)

    def save(self, folder: Path) -> None:
        """Write scorer_config.json and scorer.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "scorer.safetensors")
        values = {**asdict(self.config), "hidden_size": self.hidden_size}
        (folder / "scorer_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    @host_random_state()
    def load(cls, folder: Path) -> Scorer:
        """The scorer that `save` wrote.

        Raises:
            CheckpointError: If a file is missing, damaged, or does not fit the other.
        """
        config, weights = folder / "scorer_config.json", folder / "scorer.safetensors"
        for file in (config, weights):
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; a saved scorer needs it. Save the model again.")
        values = read_json(config)
        try:
            hidden_size = values.pop("hidden_size")
            if not isinstance(hidden_size, int) or not 1 <= hidden_size <= MOST_HIDDEN:
                raise ConfigError(f"hidden_size is {shown(hidden_size)}; choose a whole number from 1 to {MOST_HIDDEN}")
            settings = ScorerConfig(**values)
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError(f"{config} describes no scorer: {error!r:.300}.") from error
        matrices = read_weights(weights)
        wide = max((size for matrix in matrices.values() for size in matrix.shape), default=0)
        if max(settings.width, hidden_size * ("hidden" in settings.features)) > wide:  # before any of it is made
            raise CheckpointError(f"{weights} does not fit scorer_config.json: its widest matrix has {wide} entries.")
        scorer = cls(settings, hidden_size)
        try:
            scorer.load_state_dict(matrices)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{weights} is damaged or does not fit scorer_config.json: {reason}") from error
        return scorer


# -- features: all of them are constants -------------------------------------------------------------------------------


@torch.no_grad()
def scorer_features(
    names: Sequence[str],
    model: PreTrainedModel | PeftModel,
    encoder: TextEncoder,
    tasks: Sequence[Task],
    samples: Sequence[Sequence[AuxiliarySample]],
    attributions: Tensor,
    microbatch: int = 64,
) -> dict[str, Tensor]:
    """Features of the samples, name → [N, m, size] float32.

    Args:
        names: Features wanted, of `hf_mass.methods.mass_settings.FEATURES`.
        model: The generator, in evaluation mode.
        encoder: Renders tasks.
        tasks: N tasks.
        samples: m samples of each.
        attributions: ∂L/∂s [N, m] to the tasks' own demonstrations, for "attribution".
        microbatch: Rows in one pass of the model.
    """
    device = next(model.parameters()).device
    features: dict[str, Tensor] = {}
    if "log_prob" in names or "hidden" in names:
        features.update(_model_features("hidden" in names, model, encoder, tasks, samples, microbatch))
    if "overlap" in names:
        features["overlap"] = _overlap_features(encoder, tasks, samples).to(device)
    if "agreement" in names:
        values = [agreement(group, encoder.format) for group in samples]
        features["agreement"] = 2 * torch.tensor(values, device=device)
    if "attribution" in names:
        usable = usable_mask(samples, attributions.device)
        scaled = standardise(-attributions.float(), usable)
        best = (scaled == scaled.max(1, keepdim=True).values) & usable  # the group's largest
        features["attribution"] = torch.stack([scaled, best.float()], 2)
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
    prompts = [encoder.generator_prompt_ids(task) for task in tasks]
    rows = [Row(n, prompts[n], each.token_ids) for n, group in enumerate(samples) for each in group if each.usable]
    places = usable_mask(samples, device).nonzero()
    shape = (len(tasks), len(samples[0]))
    log_prob = torch.zeros(*shape, 4, device=device)
    states = torch.zeros(*shape, model.config.get_text_config().hidden_size, device=device)
    for start in range(0, len(rows), microbatch):
        batch = encoder.batch(rows[start : start + microbatch], device)
        index = tuple(places[start : start + microbatch].T)
        values, mask = token_log_probs(model, batch)
        # The end-of-sequence token is left out: "last" is the last token that says something.
        mask = mask & (batch.labels[:, 1:] != encoder.tokenizer.eos_token_id)
        first, last = mask.int().argmax(1), mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        statistics = torch.stack(
            [
                (values * mask).sum(1) / mask.sum(1).clamp(min=1),
                values.masked_fill(~mask, 0).min(1).values,
                values.gather(1, first[:, None])[:, 0],
                values.gather(1, last[:, None])[:, 0],
            ],
            1,
        )
        log_prob[index] = statistics.float().clamp(min=-6) / 2  # the scale of the other features
        if hidden:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            output = model(**inputs, output_hidden_states=True, use_cache=False)
            ends = batch.attention_mask.sum(1) - 1  # the last real token of each row
            states[index] = output.hidden_states[-1][torch.arange(len(ends), device=device), ends].float()
    return {"log_prob": log_prob, "hidden": states}


def _overlap_features(
    encoder: TextEncoder, tasks: Sequence[Task], samples: Sequence[Sequence[AuxiliarySample]]
) -> Tensor:
    """Share of each sample's question's and of its answer's tokens that occur in the task's prompt: [N, m, 2]."""

    def share(text: str, prompt: set[int]) -> float:
        ids = encoder.answer_ids(text, end=False) if text else []
        return sum(token in prompt for token in ids) / len(ids) if ids else 0.0

    prompts = [set(encoder.generator_prompt_ids(task)) for task in tasks]
    return torch.tensor(
        [
            [[share(sample.question, prompt), share(sample.answer, prompt)] for sample in group]
            for prompt, group in zip(prompts, samples, strict=True)
        ],
        dtype=torch.float32,
    )


def agreement(group: Sequence[AuxiliarySample], fmt: PromptFormat) -> list[list[float]]:
    """For each of m samples, the share of the others with the same question, answer, and rationale: [m][3]."""

    def rationale(sample: AuxiliarySample) -> str:
        parts = fmt.split_solution(sample.answer)
        return parts.rationale if parts else sample.answer

    keys = [(sample.question, sample.answer, rationale(sample)) for sample in group]
    others = max(1, len(group) - 1)
    return [
        [
            sum(other.usable and keys[j][part] == keys[i][part] for j, other in enumerate(group) if j != i) / others
            for part in range(3)
        ]
        for i in range(len(group))
    ]
