"""Loading a model to adapt: one that ships, a folder, a Hub repository, or a model that is in memory already."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.errors import CheckpointError, ConfigError, DataError
from hf_mass.lm.language_model import ADAPTATION_FILE, LanguageModel, lora_config, sharing_weights, with_starting_lora
from hf_mass.lm.loading import load_base, load_lora, load_tokenizer
from hf_mass.lm.precision import prefers_bfloat16
from hf_mass.lm.threads import warn_of_threads
from hf_mass.methods.mass import without_scorer
from hf_mass.methods.mass_files import CONFIG_NAME
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.store.hub_files import Token, explained
from hf_mass.store.shipped import ASSETS, shipped_name
from hf_mass.store.storage import ADAPTER_FILES, read_json, resolve_adapter
from hf_mass.tasks.task import Demonstration, Task


@dataclass(frozen=True)
class Shipped:
    """A tiny model that ships with the package."""

    kinds: tuple[str, ...]  # problems that it is made for: "grids", "texts", or both
    about: str  # what it is, in a sentence
    defaults: Mapping[str, Any]  # method → its settings; see `LanguageModel.defaults`
    fields: tuple[str, ...] = ()  # what its problems have in `Task.fields`


_SMALL_INNER = {"samples": 8, "inner_learning_rate": 0.3, "inner_lora_r": 16, "inner_lora_alpha": 16}
_GRIDS = {"ttt": {"grids": {"preset": "grids"}}, "mass": {"prompt_format": "compact_grid", **_SMALL_INNER}}
_STRINGS = {"ttt": {"texts": {"preset": "strings"}}, "mass": {"prompt_format": "plain", **_SMALL_INNER}}

SHIPPED: dict[str, Shipped] = {
    "grids-base": Shipped(
        ("grids",), "1.3M parameters, pretrained on made-up grid puzzles; it knows nothing else", _GRIDS
    ),
    "strings-base": Shipped(
        ("texts",), "1.3M parameters, pretrained on made-up rules for short texts; it knows no language", _STRINGS
    ),
    "grids-small": Shipped(("grids",), "0.2M parameters, as grids-base", _GRIDS),
    "conventions-mass": Shipped(
        ("texts",),
        "0.1M parameters with a trained MASS adapter; it knows a designed world of 70 words",
        {"ttt": {}},
        ("family",),
    ),
}
"""Name → model; each is a folder of the package."""
SMALL = 20_000_000
"""Parameters below which one CPU thread is faster than several."""
PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    # Answers have a limit of their own, for a model that does not know how a grid ends.
    "grids": ({"preset": "arc", "predict_length_factor": 3.0}, {"preset": "grids"}),
    "texts": ({"preset": "text"},),
}
"""Kind of problem → settings of TTT for a model that does not ship: the first whose prompts it can write."""


def default_model(kind: str, fields: Collection[str] = ()) -> str:
    """The shipped model that is made for problems of a kind whose tasks have these fields.

    Raises:
        DataError: If there is none.
    """
    fitting = [name for name, each in SHIPPED.items() if kind in each.kinds and set(fields) >= set(each.fields)]
    if not fitting:
        raise DataError(f"No model that ships is made for problems of {kind!r}. Name one.")
    return max(fitting, key=lambda name: len(SHIPPED[name].fields))


def load(
    model: str | Path | PreTrainedModel | PeftModel | LanguageModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    token: Token = None,
    device: str | None = None,
    **model_kwargs: Any,
) -> LanguageModel:
    """A model to adapt. A model that is in memory stays as it is: its weights are shared, its modules are not.

    Args:
        model: Name of a model that ships, a folder or Hub id (a causal language model, a LoRA on one, what
            `Adaptation.save` or `MassModel.save_pretrained` wrote), a `PreTrainedModel`, or a `PeftModel`, whose LoRA
            is the state that adapting starts from.
        tokenizer: Its tokenizer; None for the one beside it.
        revision: Branch, tag or commit of a Hub repository.
        token: For a private repository.
        device: Where to put it; None for a GPU if there is one, and for a model in memory for where it is.
        model_kwargs: For `AutoModelForCausalLM.from_pretrained`; without `dtype` a large model in float32 is taken in
            bfloat16 where the device is faster at it.

    Raises:
        CheckpointError: If it cannot be loaded.
        UnsupportedModelError: If its adapter is more than plain LoRA of linear maps.
        ConfigError: If there is no tokenizer.
    """
    if isinstance(model, LanguageModel):
        return model
    if isinstance(model, PreTrainedModel | PeftModel):
        lm = _in_memory(model, tokenizer)
    else:
        name = str(model)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        is_shipped = name in SHIPPED and not Path(name).is_dir()
        lm = _shipped(name) if is_shipped else _saved(name, tokenizer, revision, token, device, model_kwargs)
    if device is not None:
        lm.model.to(device)
    lm.model.eval()
    if isinstance(lm, MassModel):
        lm.scorer.to(lm.device)
        lm.defaults = {**lm.defaults, "mass": without_scorer(lm.config)}
    lm.starting_lora()  # an adapter that cannot be continued is refused here
    if lm.device.type == "cpu" and lm.size >= SMALL:
        warn_of_threads()
    return lm


def _in_memory(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> LanguageModel:
    name = str(model.config.name_or_path or "")
    if tokenizer is None and name:
        tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise ConfigError("tokenizer is None, and the model does not say where it is from. Pass tokenizer=.")
    copied = sharing_weights(model)
    if isinstance(model, PeftModel):
        active = model.active_adapters if isinstance(model.active_adapters, list) else model.active_adapters()
        if len(active) != 1:
            raise ConfigError(f"The PeftModel has active adapters {active}; activate one by set_adapter.")
        return _any(copied, tokenizer, name, adapter_name=active[0])
    return _fresh(copied, tokenizer, name)


def _shipped(name: str) -> LanguageModel:
    shipped, folder = SHIPPED[name], ASSETS / name
    if (folder / CONFIG_NAME).is_file():
        lm: LanguageModel = MassModel.from_pretrained(folder)
    else:
        shape = TTTSettings.preset(next(iter(shipped.defaults["ttt"].values()))["preset"]).lora
        model = with_starting_lora(load_base(folder), lora_config(shape))
        lm = LanguageModel(model, load_tokenizer(folder), untrained=shape)
    lm.name, lm.kinds, lm.about, lm.defaults = name, shipped.kinds, shipped.about, shipped.defaults
    return lm


def _saved(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    token: Token,
    device: str,
    model_kwargs: Any,
) -> LanguageModel:
    if has_file(name, CONFIG_NAME, revision, token):
        mass = MassModel.from_pretrained(name, revision=revision, token=token, **model_kwargs)
        mass.name, mass.chat = name, mass.tokenizer.chat_template is not None
        mass.defaults = {"ttt": suitable_presets(mass.tokenizer, mass.model)}
        return mass
    if has_file(name, ADAPTER_FILES[0], revision, token):
        folder = resolve_adapter(name, revision, token)
        model, saved_tokenizer, base = load_lora(folder, name, token, model_kwargs)
        lm = _any(model, tokenizer or saved_tokenizer, name)
        if (known := SHIPPED.get(shipped_name(base) or "")) is not None:
            lm.kinds, lm.about, lm.defaults = known.kinds, known.about, known.defaults
        if (file := folder / ADAPTATION_FILE).is_file():
            defaults = read_json(file).get("defaults", {})
            if not isinstance(defaults, dict) or not isinstance(defaults.get("ttt", {}), dict):
                raise CheckpointError(f"{file}: defaults is no settings of methods by name. Save the adaptation again.")
            lm.defaults = defaults or lm.defaults
        return lm
    tokenizer = tokenizer or load_tokenizer(name, token, revision=revision)
    base = load_base(name, token, revision=revision, **model_kwargs)
    if "dtype" not in model_kwargs and base.dtype == torch.float32 and base.num_parameters() > SMALL:
        base = base.to(torch.bfloat16) if prefers_bfloat16(device) else base
    return _fresh(base, tokenizer, name)


def _fresh(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LanguageModel:
    shape = TTTSettings.preset("text").lora
    return _any(with_starting_lora(base, lora_config(shape)), tokenizer, name, untrained=shape)


def _any(model: PeftModel, tokenizer: PreTrainedTokenizerBase, name: str, **more: Any) -> LanguageModel:
    chat = getattr(tokenizer, "chat_template", None) is not None
    return LanguageModel(model, tokenizer, name, chat, defaults={"ttt": suitable_presets(tokenizer, model)}, **more)


def suitable_presets(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Kind of problem → settings of TTT for a model that does not ship."""
    fitting = {kind: [each for each in several if _can_write(tokenizer, each)] for kind, several in PRESETS.items()}
    return {kind: _with_targets(several[0], model) for kind, several in fitting.items() if several}


def _resolved(settings: dict[str, Any]) -> TTTSettings:
    changes = dict(settings)
    return TTTSettings.preset(changes.pop("preset"), **changes)


def _with_targets(settings: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The settings, with a LoRA on all linear modules where the model lacks one of those that they name."""
    targets = _resolved(settings).lora_target_modules
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    lacks = not isinstance(targets, str) and not names.issuperset(targets)
    return {**settings, "lora_target_modules": "all-linear"} if lacks else dict(settings)


def _can_write(tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> bool:
    """Whether the tokenizer has the characters of the settings' prompts: one of a small world may not."""
    fmt = _resolved(settings).format
    text = fmt.prompt(Task("2", (Demonstration("1", "2"),))) + fmt.pair_separator
    read_back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    return "".join(read_back.split()) == "".join(text.split())


def has_file(name: str, file: str, revision: str | None, token: Token) -> bool:
    """Whether a folder or Hub repository has a file.

    Raises:
        HubError: If the repository cannot be asked.
    """
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    with explained(f"{name!r} is neither a folder nor a Hub repository that could be read", name, revision):
        try:
            hf_hub_download(name, file, revision=revision, token=token)
        except EntryNotFoundError:  # nor is it in the cache, where there is no network
            return False
    return True
