"""Binds a LoRA adapter of a PEFT model to the core: its matrices become the tree θ, its layers the sites.

PEFT makes and names the adapter (target matching, initialisation, scaling, saving); the core evaluates it as a function
of stacked matrices. The bound adapter itself is never active in PEFT while it is applied that way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from hf_mass.core import trees
from hf_mass.core.lora import LoraFunction, LoraSite
from hf_mass.core.trees import Tree
from hf_mass.errors import ConfigError, UnsupportedModelError
from hf_mass.lm.turns import single_precision
from hf_mass.tasks.checks import shown


@contextmanager
def clear_target_errors(setting: str, config: PeftConfig | None, model: nn.Module | None = None) -> Iterator[None]:
    """Within this context PEFT's error for LoRA targets that match nothing becomes one that names the setting.

    Args:
        setting: What the user calls it.
        config: Holds the targets.
        model: For the names to choose from, where it is loaded already.

    Raises:
        ConfigError: In the place of PEFT's error.
    """
    try:
        yield
    except ValueError as error:
        if not re.search("[tT]arget(_| )modules", str(error)):
            raise
        known = f" Its linear modules are called {sorted(set(_linear_maps(model)))}." if model is not None else ""
        raise ConfigError(
            f"{setting} {getattr(config, 'target_modules', None)!r} match no module of the model.{known} Name some of "
            "its linear modules, or use 'all-linear'."
        ) from error


def add_lora(model: PeftModel, name: str, config: LoraConfig) -> None:
    """Add an adapter that PEFT does not train and that is not active.

    Raises:
        ConfigError: If its target_modules match nothing in the model.
    """
    if config.base_model_name_or_path is None:  # else an adapter saved from it would name no base
        config.base_model_name_or_path = model.get_base_model().config.name_or_path or None
    with single_precision(), clear_target_errors(f"lora_target_modules (of the {name!r} adapter)", config, model):
        model.add_adapter(name, config)
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            module.lora_A[name].requires_grad_(False)
            module.lora_B[name].requires_grad_(False)


def _linear_maps(model: nn.Module) -> Iterator[str]:
    """Last names of the base model's linear maps, whether an adapter is attached to them already or not."""
    for name, child in model.named_children():
        base = child.get_base_layer() if isinstance(child, LoraLayer) else child
        if isinstance(base, nn.Linear | Conv1D):
            yield name
        else:
            yield from _linear_maps(base)


def targeted(model: PeftModel, targets: str | Collection[str] | None) -> list[str]:
    """Names of the modules on which PEFT puts a LoRA with these targets: names, a pattern, or "all-linear"."""
    head, found = model.get_output_embeddings(), list[str]()
    for name, module in model.named_modules():
        inner = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if not isinstance(module, LoraLayer | nn.Linear | Conv1D) or ".lora_" in name or name.endswith(".base_layer"):
            continue
        own = name.removeprefix("base_model.model.")
        if targets == "all-linear":
            chosen = inner is not head and module is not head
        elif isinstance(targets, str):
            chosen = re.fullmatch(targets, own) is not None
        else:
            chosen = any(own == target or own.endswith(f".{target}") for target in targets or ())
        found += [name] if chosen else []
    return found


_SPECIAL = (
    *("alora_invocation_tokens", "layer_replication", "modules_to_save", "target_parameters"),
    *("trainable_token_indices", "lora_bias", "use_dora", "use_qalora", "velora_config", "monteclora_config"),
    *("use_bdlora", "arrow_config", "kasa_config", "lora_dropout"),
)


def require_plain_lora(setting: str, config: PeftConfig) -> None:
    """Refuse an adapter that is more than plain LoRA, before anything is trained with it.

    Args:
        setting: What the user calls it.
        config: PEFT's description.

    Raises:
        ConfigError: If it is of another kind, or has a field set that adapting, saving or loading would not keep to.
    """
    kind = getattr(config.peft_type, "value", config.peft_type)
    if not isinstance(config, LoraConfig) or kind != "LORA":
        raise ConfigError(f"{setting} is of type {kind}; only LoRA can be adapted here. Give a peft.LoraConfig.")
    for field in _SPECIAL:
        if value := getattr(config, field, None):
            raise ConfigError(
                f"{setting}.{field} is {shown(value)}; only plain LoRA can be adapted here. Leave it unset."
            )
    if config.bias != "none":
        raise ConfigError(
            f"{setting}.bias is {shown(config.bias)}; biases are not saved with the model. Set bias='none'."
        )
    if not (isinstance(config.init_lora_weights, bool) or config.init_lora_weights in ("gaussian", "orthogonal")):
        raise ConfigError(
            f"{setting}.init_lora_weights is {config.init_lora_weights!r}, which may change the base, without which "
            "the saved adapter is another. Set it to True or 'gaussian'."
        )


class BoundLora:
    """One LoRA adapter of a PEFT model, as a function of its matrices.

    It stays what it is where another adapter of the same name takes its place in the model.

    Args:
        model: The PEFT model.
        adapter: Name of the adapter.

    Raises:
        UnsupportedModelError: If the adapter is more than plain LoRA of linear maps (DoRA, dropout of its own,
            embeddings, biases, modules saved whole).
        ConfigError: If the model has no such adapter.
    """

    def __init__(self, model: PeftModel, adapter: str) -> None:
        if adapter not in model.peft_config:
            raise ConfigError(f"adapter {adapter!r} is not in the model; it has {sorted(model.peft_config)}.")
        for field in ("modules_to_save", "trainable_token_indices"):
            if value := getattr(model.peft_config[adapter], field, None):
                raise UnsupportedModelError(
                    f"adapter {adapter!r} has {field}={value!r}, weights that the inner loop would not adapt. Leave "
                    f"{field} unset."
                )
        self.model, self.adapter, self.config = model, adapter, model.peft_config[adapter]
        if self.config.bias != "none" and any(name.endswith(".bias") for name, _ in model.named_parameters()):
            raise UnsupportedModelError(
                f"adapter {adapter!r} has bias={self.config.bias!r}: trained biases would be lost where it is saved. "
                "Merge it (merge_and_unload) and save that as a base, or train one with bias='none'."
            )
        self.layers, sites = dict[str, LoraLayer](), dict[str, LoraSite]()
        self._maps = list[tuple[Any, Any]]()  # the two linear maps of each layer
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer) and adapter in layer.scaling:
                self._check(name, layer)
                self.layers[name] = layer
                self._maps.append((layer.lora_A[adapter], layer.lora_B[adapter]))
                a, b = f"{name}.lora_A.{adapter}.weight", f"{name}.lora_B.{adapter}.weight"
                sites[name] = LoraSite(layer, a, b, float(layer.scaling[adapter]))
        self.function = LoraFunction(sites, decoder_layers(model))

    def _check(self, name: str, layer: LoraLayer) -> None:
        base = type(layer.get_base_layer()).__name__
        linear = self.adapter in layer.lora_A and isinstance(layer.lora_A[self.adapter], nn.Linear)
        if not linear or isinstance(layer, MultiheadAttention | ParamWrapper):
            raise UnsupportedModelError(
                f"{name} ({base}) carries adapter {self.adapter!r} in a form other than two linear maps. Restrict "
                "target_modules to linear layers."
            )
        if self.adapter in getattr(layer, "lora_variant", {}):
            raise UnsupportedModelError(
                f"{name} uses a LoRA variant (such as DoRA) for adapter {self.adapter!r}; only plain LoRA has exact "
                "meta-gradients here. Set use_dora=False."
            )
        if layer.lora_B[self.adapter].bias is not None:
            raise UnsupportedModelError(
                f"{name} has a bias on its low-rank path for adapter {self.adapter!r}, which would be left out of the "
                "inner loop. Set lora_bias=False."
            )
        if getattr(layer.lora_dropout[self.adapter], "p", 0.0) > 0:
            raise UnsupportedModelError(
                f"{name} has LoRA dropout {layer.lora_dropout[self.adapter].p} for adapter {self.adapter!r}, whose "
                "masks could not be drawn again on the way back. Set lora_dropout=0 there and use inner_lora_dropout."
            )
        self._check_state(name, layer)

    def _check_state(self, name: str, layer: LoraLayer) -> None:
        """Refuses a layer that PEFT was told to answer otherwise than its config says."""
        rank, alpha = layer.r[self.adapter], layer.lora_alpha[self.adapter]
        scale, made = layer.scaling[self.adapter], alpha / (rank**0.5 if self.config.use_rslora else rank)
        problem = None
        if getattr(layer, "merged_adapters", None):
            problem = f"has adapters {list(layer.merged_adapters)} merged into it. Call unmerge_adapter(), or load the"
            problem += " model that merge_and_unload() gives"
        elif getattr(layer, "disable_adapters", False):
            problem = "has its adapters disabled. Call enable_adapter_layers(), or load the base itself"
        elif abs(scale - made) > 1e-6 * abs(made):
            problem = f"has scale {scale:g}, and lora_alpha and r give {made:g}, which is what is saved. Set it back"
        if problem is not None:
            raise UnsupportedModelError(f"{name}, which carries adapter {self.adapter!r}, {problem}.")

    def start(self, num_tasks: int = 1) -> Tree:
        """θ_0: the adapter's matrices in float32 (float64 where they are), the same for every task, [N, ...] views."""
        tree = {}
        for (down, up), site in zip(self._maps, self.function.sites.values(), strict=True):
            tree[site.a], tree[site.b] = down.weight.detach()[None], up.weight.detach()[None]
        wide = trees.tree_map(lambda x: x if x.dtype == torch.float64 else x.float(), tree)
        return trees.repeat_tasks(wide, num_tasks)

    def load(self, params: Tree, task: int = 0) -> None:
        """Put one task's matrices into the PEFT adapter itself, in its own dtype."""
        with torch.no_grad():
            for (down, up), site in zip(self._maps, self.function.sites.values(), strict=True):
                down.weight.copy_(params[site.a][task])
                up.weight.copy_(params[site.b][task])

    def state_dict(self, params: Tree, task: int) -> dict[str, Tensor]:
        """One task's matrices under PEFT's names, ready to be written as an adapter file."""
        return {name.replace(f".{self.adapter}.", "."): leaf[task].contiguous() for name, leaf in params.items()}

    @contextmanager
    def applied(self, params: Tree, row_task: Tensor | None = None) -> Iterator[None]:
        """Within this context row r is answered by the matrices of task `row_task[r]` (see `LoraFunction.applied`)."""
        with self.inactive(), self.function.applied(params, row_task):
            yield

    @contextmanager
    def loaded(self, params: Tree) -> Iterator[None]:
        """Within this context the PEFT adapter itself holds these matrices, leaves [1, ...] of its own rank."""
        before = trees.tree_map(torch.clone, self.start(1))
        try:
            self.load(params)
            yield
        finally:
            self.load(before)

    @contextmanager
    def inactive(self) -> Iterator[None]:
        """Within this context PEFT does not apply the bound adapter; other active adapters stay."""
        before = {name: list(layer.active_adapters) for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                layer._active_adapter = [active for active in before[name] if active != self.adapter]
            yield
        finally:
            for name, layer in self.layers.items():
                layer._active_adapter = before[name]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's decoder layers in their order: what transformers can checkpoint, outermost ones only."""
    layers: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            layers.append(module)
            inside.update(module.modules())
    return layers


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Within this context the model runs in evaluation mode (no dropout); its modes are put back afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
