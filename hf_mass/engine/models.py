"""Loading a model to adapt: one that ships, a folder, a Hub repository, or a model that is in memory already."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.errors import CheckpointError, ConfigError, DataError
from hf_mass.lm.base_models import load_base, load_tokenizer
from hf_mass.lm.gguf import gguf_file
from hf_mass.lm.language_model import (
    ADAPTATION_FILE,
    ADAPTATION_VERSION,
    LanguageModel,
    lora_config,
    sharing_weights,
    with_starting_lora,
)
from hf_mass.lm.loading import load_lora
from hf_mass.lm.multimodal import is_multimodal, language_model_of
from hf_mass.lm.precision import cast, require_dtype
from hf_mass.lm.threads import warn_of_threads
from hf_mass.lm.turns import apart_from_host
from hf_mass.methods.mass import without_scorer
from hf_mass.methods.mass_files import CONFIG_NAME
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.saved_defaults import checked_defaults
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.store.folders import read_whole, settle
from hf_mass.store.hub_files import Token, explained, require_known_token
from hf_mass.store.shipped import ASSETS, shipped_name
from hf_mass.store.storage import ADAPTER_FILES, read_json, resolve_adapter
from hf_mass.tasks.checks import as_path, shown
from hf_mass.tasks.task import Demonstration, Task


@dataclass(frozen=True)
class Shipped:
    """A tiny model that ships with the package."""

    kinds: tuple[str, ...]  # problems that it is made for: "grids", "texts", or both
    about: str  # what it is, in a sentence
    defaults: Mapping[str, Any]  # method → its settings; see `LanguageModel.defaults`
    fields: tuple[str, ...] = ()  # what its problems have in `Task.fields`
    most_words: int | None = None  # in a question or answer


_SMALL_INNER = {"samples": 8, "inner_learning_rate": 0.3, "inner_lora_r": 16, "inner_lora_alpha": 16}
_GRIDS = {"ttt": {"grids": {"preset": "grids"}}, "mass": {"prompt_format": "compact_grid", **_SMALL_INNER}}
_STRINGS = {"ttt": {"texts": {"preset": "strings"}}, "mass": {"prompt_format": "plain", **_SMALL_INNER}}

SHIPPED: dict[str, Shipped] = {
    "grids-base": Shipped(
        ("grids",), "1.3M parameters, pretrained on made-up grid puzzles; it knows nothing else", _GRIDS
    ),
    "strings-base": Shipped(
        ("texts",),
        "1.3M parameters, pretrained on made-up rules for short texts; it knows no language",
        _STRINGS,
        most_words=5,
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


@apart_from_host()
def load(
    model: str | Path | PreTrainedModel | PeftModel | LanguageModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    token: Token = None,
    device: str | None = None,
    chat: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> LanguageModel:
    """A model to adapt. A model that is in memory stays as it is: its weights are shared, its modules are not.

    Args:
        model: Name of a model that ships, a folder or Hub id (a causal language model, also a quantised one; a
            multimodal model, whose language model is taken; a LoRA, what `Adaptation.save` or
            `MassModel.save_pretrained` wrote), a GGUF file, also owner/name/file.gguf of the Hub, or a folder with
            one, a `PreTrainedModel`, or a `PeftModel`, whose LoRA is the state that adapting starts from.
        tokenizer: Its tokenizer; None for the one beside it.
        revision: Branch, tag or commit of a Hub repository.
        token: For a private repository.
        device: Where to put it; None for a GPU if there is one, and for a model in memory for where it is.
        chat: Whether prompts go through the chat template; None for what suits the method: few-shot lists are plain,
            and other prompts go through the template where there is one. A method's own setting goes before.
        chat_template_kwargs: Arguments of the chat template, such as `enable_thinking`.
        model_kwargs: For `AutoModelForCausalLM.from_pretrained`; without `dtype` a large model in float32 is taken in
            bfloat16 where the device is faster at it.

    Raises:
        CheckpointError: If it cannot be loaded.
        UnsupportedModelError: If its adapter is more than plain LoRA of linear maps, or the language model of a
            multimodal one cannot be taken by itself.
        ConfigError: If there is no tokenizer, no such device or precision, or the chat template does not do what is
            asked of it.
    """
    if isinstance(model, LanguageModel):
        if chat is not None or chat_template_kwargs is not None:
            raise ConfigError("chat or chat_template_kwargs is given, but the model is loaded already. Load it anew.")
        return model
    _require_arguments(model, tokenizer, revision)
    require_device(device)
    require_dtype("auto" if (dtype := model_kwargs.get("dtype")) is None else dtype)
    if isinstance(model, PreTrainedModel | PeftModel):
        if given := sorted({**model_kwargs, **({} if revision is None else {"revision": revision})}):
            raise ConfigError(f"{given[0]} is given, but the model is in memory already. Leave it out.")
        lm = _in_memory(model, tokenizer)
    else:
        lm = _named(str(model), tokenizer, revision, token, device or best_device(), model_kwargs)
        device = device or best_device()
    if device is not None and lm.device != torch.device(device):
        lm.model.to(device)
    lm.model.eval()
    if isinstance(lm, MassModel):
        lm.scorer.to(lm.device)
        lm.defaults = {**lm.defaults, "mass": without_scorer(lm.config)}
    lm.starting_lora()  # an adapter that cannot be continued is refused here
    if lm.device.type == "cpu" and lm.size >= SMALL:
        warn_of_threads()
    return with_chat(lm, chat, chat_template_kwargs)


def _require_arguments(model: object, tokenizer: object, revision: object) -> None:
    if not isinstance(model, str | Path | PreTrainedModel | PeftModel):
        raise ConfigError(
            f"model is {shown(model)}; give a name, a folder, a Hub id, or a model of transformers or PEFT."
        )
    if isinstance(model, str | Path):
        as_path("model", model)
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        raise ConfigError(f"tokenizer is {shown(tokenizer)}; give a tokenizer of transformers, or None.")
    if not isinstance(revision, str | None):
        raise ConfigError(f"revision is {shown(revision)}; give the name of a branch, a tag or a commit.")


def with_chat(lm: LanguageModel, chat: bool | None, kwargs: Mapping[str, Any] | None) -> LanguageModel:
    """The model itself, or where something was chosen about its chat template a model of the same weights with that.

    Raises:
        ConfigError: If it has no such template.
    """
    if chat is None and kwargs is None:
        return lm
    other = copy(lm)
    other.chat = lm.chat if chat is None else chat
    other.chat_template_kwargs = lm.chat_template_kwargs if kwargs is None else kwargs
    other.__post_init__()
    return MassModel.on(other, other.config) if isinstance(other, MassModel) else other


def best_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str | torch.device | None) -> None:
    """Checks that there is a device of this name; None stands for any.

    Raises:
        ConfigError: If there is none.
    """
    if device is None:
        return
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"device is {shown(device)}; choose one such as cpu, cuda, cuda:1 or mps.") from error
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(kind):
        raise ConfigError(f"device is {str(device)!r}, but torch finds none here. Choose cpu.")


def _named(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    token: Token,
    device: str,
    model_kwargs: Mapping[str, Any],
) -> LanguageModel:
    is_local, is_shipped = Path(name).exists(), name in SHIPPED and not Path(name).is_dir()
    if revision is not None and (is_local or is_shipped):
        where = "ships with the package" if is_shipped else "is on this machine"
        raise ConfigError(f"revision is {revision!r:.60}, but {name} {where}, and has no revisions. Leave it out.")
    if is_shipped:
        return _shipped(name, model_kwargs)
    return _saved(name, tokenizer, revision, token, device, model_kwargs)


def _in_memory(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> LanguageModel:
    name = str(model.config.name_or_path or "")
    if tokenizer is None and name:
        tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise ConfigError("tokenizer is None, and the model does not say where it is from. Pass tokenizer=.")
    if isinstance(model, PreTrainedModel) and is_multimodal(model.config):
        model = language_model_of(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ConfigError(
            "model was made in torch.inference_mode(), and nothing can be trained through its weights. Make it outside."
        )
    if isinstance(model, PreTrainedModel) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "model has adapters inside, and is no PeftModel, which says where they are. Give the PeftModel, or what "
            "its merge_and_unload() or unload() returns."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("model is on the device meta, where there are no weights. Load them first.")
    copied = sharing_weights(model)
    copied.config.return_dict = True
    if isinstance(model, PeftModel):
        active = model.active_adapters if isinstance(model.active_adapters, list) else model.active_adapters()
        if len(active) != 1:
            raise ConfigError(f"The PeftModel has active adapters {active}; activate one by set_adapter.")
        return _any(copied, tokenizer, name, adapter_name=active[0])
    return _fresh(copied, tokenizer, name)


def _shipped(name: str, model_kwargs: Mapping[str, Any]) -> LanguageModel:
    shipped, folder = SHIPPED[name], ASSETS / name
    if (folder / CONFIG_NAME).is_file():
        lm: LanguageModel = MassModel.from_pretrained(folder, **model_kwargs)
    else:
        shape = TTTSettings.preset(next(iter(shipped.defaults["ttt"].values()))["preset"]).lora
        model = with_starting_lora(load_base(folder, **model_kwargs), lora_config(shape))
        lm = LanguageModel(model, load_tokenizer(folder), untrained=shape)
    lm.name, lm.defaults = name, shipped.defaults
    _made_for(lm, shipped)
    return lm


def _made_for(lm: LanguageModel, shipped: Shipped) -> None:
    lm.kinds, lm.about, lm.most_words = shipped.kinds, shipped.about, shipped.most_words


def _saved(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    token: Token,
    device: str,
    model_kwargs: Mapping[str, Any],
) -> LanguageModel:
    file = gguf_file(name, revision, token)
    if file is None and has_file(name, CONFIG_NAME, revision, token):
        mass = MassModel.from_pretrained(name, revision=revision, token=token, **model_kwargs)
        mass.name = name
        mass.defaults = {"ttt": suitable_presets(mass.tokenizer, mass.model)}
        return mass
    if file is None and has_file(name, ADAPTER_FILES[0], revision, token):
        folder = resolve_adapter(name, revision, token)
        read = partial(_saved_lora, folder, name, tokenizer, token, device, model_kwargs)
        return read_whole(folder, ADAPTATION_FILE, read)
    source = file or name  # one of the Hub is there now, and is not asked for again
    tokenizer = tokenizer or load_tokenizer(source, token, revision=revision)
    base = load_base(source, token, revision=revision, known_as=name, **model_kwargs)
    base, reason = cast(base, device, model_kwargs.get("dtype"), SMALL)
    return _fresh(base, tokenizer, name, precision_reason=reason)


def _saved_lora(
    folder: Path,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    token: Token,
    device: str,
    model_kwargs: Mapping[str, Any],
) -> LanguageModel:
    """A LoRA, with what its folder says of the settings that suit it."""
    reasons: list[str] = []

    def prepare(base: PreTrainedModel) -> PreTrainedModel:
        base, reason = cast(base, device, model_kwargs.get("dtype"), SMALL)
        reasons.append(reason)
        return base

    model, saved_tokenizer, base = load_lora(folder, name, token, model_kwargs, prepare)
    lm = _any(model, tokenizer or saved_tokenizer, name, precision_reason=reasons[0])
    if (known := SHIPPED.get(shipped_name(base) or "")) is not None:
        lm.defaults = known.defaults
        _made_for(lm, known)
    if not (file := folder / ADAPTATION_FILE).is_file():
        return lm
    about = read_json(file)
    if (version := about.get("format_version", ADAPTATION_VERSION)) != ADAPTATION_VERSION:
        raise CheckpointError(
            f"{file} has format_version {shown(version)}; this release reads {ADAPTATION_VERSION}. Update hf_mass."
        )
    chat, kwargs = about.get("chat"), about.get("chat_template_kwargs")
    if not isinstance(chat, bool | None) or not isinstance(kwargs, dict | None):
        raise CheckpointError(f"{file}: chat or chat_template_kwargs is of another type. Save the adaptation again.")
    lm.defaults = checked_defaults(about.get("defaults", {}), file) or lm.defaults
    return with_chat(lm, chat, kwargs)


def _fresh(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, **more: Any) -> LanguageModel:
    shape = TTTSettings.preset("text").lora
    return _any(with_starting_lora(base, lora_config(shape)), tokenizer, name, untrained=shape, **more)


def _any(model: PeftModel, tokenizer: PreTrainedTokenizerBase, name: str, **more: Any) -> LanguageModel:
    return LanguageModel(model, tokenizer, name, defaults={"ttt": suitable_presets(tokenizer, model)}, **more)


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
    settle(name)
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    with explained(f"{name!r} is neither a folder nor a Hub repository that could be read", name, revision):
        require_known_token(name, token)
        try:
            hf_hub_download(name, file, revision=revision, token=token)
        except EntryNotFoundError:  # nor is it in the cache, where there is no network
            return False
    return True
