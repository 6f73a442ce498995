"""`LanguageModel`: a causal language model with its tokenizer, ready to be adapted, and never changed by it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mass import __version__
from hf_mass.core.trees import Tree
from hf_mass.errors import CheckpointError
from hf_mass.lm.binding import BoundLora, add_lora, clear_target_errors, require_plain_lora, targeted
from hf_mass.lm.chat import require_chat
from hf_mass.lm.generation import row_seed
from hf_mass.lm.precision import precision_of
from hf_mass.lm.shapes import LoraShape
from hf_mass.lm.special_tokens import tokens_without_rows
from hf_mass.lm.turns import single_precision
from hf_mass.store.adapters import write_adapter
from hf_mass.store.storage import write_atomically

ADAPTATION_FILE = "adaptation.json"
"""What an adapted folder says of itself: the method, and the settings that suit it."""
ADAPTATION_VERSION = 1
STARTING = "default"
"""Name of the adapter that every adaptation starts from."""


@dataclass(eq=False)
class LanguageModel:
    """A causal language model to adapt.

    Args:
        model: The PEFT model. Its starting adapter is the state that adapting starts from; it is never changed.
        tokenizer: Its tokenizer.
        name: What people call it.
        chat: Whether prompts go through its chat template; None for what suits the method: few-shot lists are plain,
            and other prompts go through the template where there is one.
        chat_template_kwargs: Arguments of the chat template, such as `enable_thinking`.
        kinds: Kinds of problems that it is made for ("grids", "texts"); empty for all.
        about: What it is, in a sentence.
        most_words: Words that its questions and answers have at most; None for no limit.
        precision_reason: Why it runs in its precision, in words.
        defaults: Method → that method's own settings for this model, as plain data.
        adapter_name: Name of the starting adapter, if it is another.
        untrained: The starting adapter's shape where it is untrained, so that a method may put one of another shape in
            its place; None for an adapter that is to be continued.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str = ""
    chat: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    about: str = ""
    most_words: int | None = None
    precision_reason: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adapter_name: str = STARTING
    untrained: LoraShape | None = None
    _lora: BoundLora | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None and self.tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"{self.name or 'The model'}: the tokenizer has no pad_token and no eos_token, and rows need padding. "
                "Set tokenizer.eos_token."
            )
        require_chat(self.tokenizer, self.chat, self.chat_template_kwargs)
        rows = self.model.get_input_embeddings().weight.shape[0]
        if missing := tokens_without_rows(self.tokenizer, rows):
            raise CheckpointError(
                f"{self.name or 'The model'}: the tokenizer has {len(self.tokenizer)} tokens, the model {rows} rows of "
                f"embeddings, so {missing} have none. Give the model's own tokenizer, or resize its embeddings "
                "(resize_token_embeddings)."
            )

    @property
    def converses(self) -> bool:
        """Whether prompts that are no few-shot list go through the chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None)) if self.chat is None else self.chat

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def size(self) -> int:
        """Parameters of the base."""
        inside = sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)
        return int(self.model.num_parameters()) - inside

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens that the model was made for; None where its config does not say."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return longest if isinstance(longest, int) and longest > 0 else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.measure})"

    @property
    def precision(self) -> str:
        """What the base's weights are kept in, such as "bfloat16"."""
        return precision_of(self.model)

    @property
    def measure(self) -> str:
        """Size and precision for people."""
        millions = self.size / 1e6
        size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.1f}M"
        return f"{size} parameters, {self.precision}"

    def facts(self) -> dict[str, Any]:
        """Name, parameters and precision, as JSON values: what answers."""
        return {"model": self.name, "parameters": self.size, "precision": self.precision}

    def bare(self) -> AbstractContextManager[None]:
        """Within this context a starting adapter that changes nothing yet costs nothing."""
        return self.starting_lora().inactive() if self.untrained is not None else nullcontext()

    @contextmanager
    def starting_at(self, tree: Tree) -> Iterator[None]:
        """Within this context the starting adapter has these matrices, leaves [1, ...], and is one to be continued."""
        lora, untrained = self.starting_lora(), self.untrained
        try:
            self.untrained = None
            with lora.loaded(tree):
                yield
        finally:
            self.untrained = untrained

    def starting_lora(self, shape: LoraShape | None = None, seed: int = 0) -> BoundLora:
        """The adapter that adapting starts from: the model's own, or if that is untrained one of the shape asked for.

        Args:
            shape: Its shape; None for the one that is there.
            seed: Draws its initial matrices.
        """
        if self.untrained is not None and shape is not None and shape != self.untrained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(row_seed("generator", seed))
                replace_lora(self.model, STARTING, lora_config(shape))
            self.untrained, self._lora = shape, None
        if self._lora is None:
            self._lora = BoundLora(self.model, self.adapter_name)
        return self._lora


def lora_config(shape: LoraShape) -> LoraConfig:
    """PEFT's description of an adapter of this shape."""
    targets = shape.targets if isinstance(shape.targets, str) else list(shape.targets)
    return LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=targets, task_type="CAUSAL_LM")


def has_lora(model: PeftModel, name: str, config: LoraConfig) -> bool:
    """Whether a model has an adapter of this name, rank and scale, on the modules that these targets mean."""
    present = model.peft_config.get(name)
    if present is None or (present.r, present.lora_alpha) != (config.r, config.lora_alpha):
        return False
    return set(targeted(model, config.target_modules)) == set(BoundLora(model, name).layers)


def replace_lora(model: PeftModel, name: str, config: LoraConfig) -> None:
    """Put a new adapter in the place of one of the same name; the same name is active as before."""
    active = model.active_adapter
    # PEFT cannot be without an adapter for a moment, nor have two of one name.
    placeholder = LoraConfig(r=1, target_modules=config.target_modules, task_type="CAUSAL_LM")
    add_lora(model, "placeholder", placeholder)
    model.set_adapter("placeholder")
    model.delete_adapter(name)
    add_lora(model, name, config)
    model.set_adapter(active)
    model.delete_adapter("placeholder")


def with_starting_lora(base: PreTrainedModel, config: LoraConfig, seed: int = 0) -> PeftModel:
    """A base with a new starting adapter, which changes nothing yet.

    Raises:
        ConfigError: If it is more than plain LoRA, or its targets match nothing.
    """
    require_plain_lora("LoraConfig", config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(row_seed("generator", seed))
        with single_precision(), clear_target_errors("target_modules", config, base):
            return get_peft_model(base, config)


def sharing_weights(model: nn.Module) -> Any:
    """A copy of a model's modules that shares every parameter and buffer with it.

    Adapters can be put into the copy and the model that was given stays as it was, its parameters' flags too; no weight
    is stored twice.
    """
    tensors = {id(tensor): _frozen(tensor) for tensor in (*model.parameters(), *model.buffers())}
    # What a pass left behind in a module, as RecurrentGemma's state, hangs in its graph, of which there are no copies.
    left = [x for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor) and x.grad_fn]
    return copy.deepcopy(model, {**tensors, **{id(x): x.detach() for x in left}})


def _frozen(tensor: Tensor) -> Tensor:
    """A parameter of the same storage that is not trained; one of a kind of its own, as quantised ones, as it is."""
    return nn.Parameter(tensor.detach(), requires_grad=False) if type(tensor) is nn.Parameter else tensor


def save_adapted(
    path: Path,
    config: PeftConfig,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    about: Mapping[str, Any],
) -> None:
    """Write an adapter with its tokenizer and what is known about it as one folder, whole or not at all.

    Args:
        path: The folder.
        config: PEFT's description.
        weights: Matrices under PEFT's names.
        tokenizer: The tokenizer; None to leave it out.
        about: JSON values for `adaptation.json`.

    Raises:
        CheckpointError: If it cannot be written.
    """

    def write(folder: Path) -> None:
        write_adapter(folder, weights, config.to_dict())
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        text = json.dumps({"format_version": ADAPTATION_VERSION, "hf_mass_version": __version__, **about}, indent=2)
        (folder / ADAPTATION_FILE).write_text(text + "\n", encoding="utf-8")

    write_atomically(path, write, ADAPTATION_FILE)
