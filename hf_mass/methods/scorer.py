"""The scorer s_η(T, p, a): a small head on the backbone's hidden state and on features of the sample.

No gradient reaches the backbone or the generator through it: its inputs are constants, and its own gradient is
Σ_i (∂L_outer/∂s_i) ∇_η s_i (arXiv 2603.03524, scorer update).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_mass.core.weights import normalise_scores
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_settings import ScorerConfig

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
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()}, folder / "scorer.safetensors"
        )
        values = {**asdict(self.config), "hidden_size": self.hidden_size}
        (folder / "scorer_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Scorer:
        """The scorer that `save` wrote.

        Raises:
            CheckpointError: If a file is missing, damaged, or does not fit the other.
        """
        for name in ("scorer_config.json", "scorer.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name} is missing; a saved scorer needs it. Save the model again.")
        try:
            values = json.loads((folder / "scorer_config.json").read_text(encoding="utf-8"))
            hidden_size = values.pop("hidden_size")
            scorer = cls(ScorerConfig(**values), hidden_size)
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / 'scorer_config.json'} describes no scorer: {error!r}.") from error
        try:
            scorer.load_state_dict(load_file(folder / "scorer.safetensors"))
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / 'scorer.safetensors'} is damaged or does not fit scorer_config.json: {error}"
            ) from error
        return scorer
