"""Models that adapt live: those that ship with the package, a saved `MassModel`, or any causal language model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from hf_mass.engine.events import LiveConfig
from hf_mass.errors import DataError
from hf_mass.lm.loading import load_base, load_tokenizer
from hf_mass.methods.mass_files import CONFIG_NAME
from hf_mass.methods.mass_model import GENERATOR, MassModel
from hf_mass.methods.mass_settings import InnerConfig, MassConfig, ScorerConfig
from hf_mass.methods.ttt import FewShotAdapter
from hf_mass.methods.ttt_settings import PredictConfig
from hf_mass.store.hub_files import explained
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.formats import FORMATS
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.training.ttt_config import TTTConfig

SMALL = 20_000_000
"""Parameters below which one CPU thread is faster than several."""
LONGEST = 256
"""Longest sample or answer in tokens where the model's own settings do not say."""


@dataclass(frozen=True)
class Shipped:
    """A tiny model that ships with the package.

    Args:
        kinds: Problems that it is made for: "grids", "texts", or both.
        about: What it is, in a sentence.
        preset: Settings of TTT; None where it cannot be trained that way.
        format: Prompts of MASS, one of `FORMATS`; None for those of a saved `MassModel`.
        inner_learning_rate: Inner rate of MASS, where it is no saved `MassModel`.
        fields: What its problems have in `Task.fields`.
    """

    kinds: tuple[str, ...]
    about: str
    preset: str | None = None
    format: str | None = None
    inner_learning_rate: float = 0.3
    fields: tuple[str, ...] = ()


SHIPPED: dict[str, Shipped] = {
    "grids-base": Shipped(
        ("grids",),
        "1.3M parameters, pretrained on made-up grid puzzles; it knows nothing else",
        "grids",
        "compact_grid",
    ),
    "strings-base": Shipped(
        ("texts",),
        "1.3M parameters, pretrained on made-up rules for short texts; it knows no language",
        "strings",
        "plain",
    ),
    "grids-small": Shipped(("grids",), "0.2M parameters, as grids-base", "grids", "compact_grid"),
    "conventions-mass": Shipped(
        ("texts",),
        "0.1M parameters with a trained MASS adapter; it knows a designed world of 70 words",
        fields=("family",),
    ),
}
"""Name → model; each is a folder of the package."""
PRESETS = {"grids": ("arc", "grids"), "texts": ("text",)}
"""Kind of problem → settings of TTT for a model that does not ship: the first whose prompts it can write."""


@dataclass
class LiveModel:
    """A model that adapts live; nothing of an adaptation stays in it.

    Args:
        name: Its name.
        mass: The model.
        presets: Kind of problem → settings of TTT for it (see `TTT_PRESETS`).
        kinds: Problems that it is made for; empty for all.
        own_room: Whether lengths of samples and answers are those of its config; else they follow the demonstrations.
        chat: Whether prompts go through its chat template.
    """

    name: str
    mass: MassModel
    presets: dict[str, str]
    kinds: tuple[str, ...] = ()
    own_room: bool = True
    chat: bool = False

    def require(self, kind: str, tasks: Sequence[Task], config: LiveConfig) -> None:
        """Checks that the model can do what is asked.

        Raises:
            DataError: If the problem is none for it.
        """
        if self.kinds and kind not in self.kinds:
            raise DataError(f"{self.name} is made for {' and '.join(self.kinds)}, and this problem is of {kind}.")
        if config.trains and not all(task.demonstrations for task in tasks):
            raise DataError("The problem has no solved examples to train on. Add some, or choose method 'mass'.")
        if (
            config.synthesises
            and config.weigh_by == "demonstrations"
            and not all(task.demonstrations for task in tasks)
        ):
            raise DataError("The problem has no solved examples to weigh samples by. Choose weigh_by 'uniform'.")
        if config.trains and kind not in self.presets:
            raise DataError(f"{self.name} cannot be trained on demonstrations. Choose method 'mass'.")
        needed = set(self.mass.config.format.task_fields)
        if (config.synthesises or kind not in self.presets) and (missing := needed - set(tasks[0].fields)):
            name = min(missing)
            raise DataError(
                f"{self.name} is made for problems with a field {name!r}, which this one lacks. Give the problem as "
                f'JSON with "problem", "demonstrations" and "fields": {{"{name}": ...}}, or take another model.'
            )

    def as_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks as this model reads them."""
        return [replace(task, conversational=self.chat) for task in tasks]

    def few_shot(self, kind: str, tasks: Sequence[Task], config: LiveConfig) -> tuple[FewShotAdapter, TTTConfig]:
        """What trains on demonstrations and answers, with its settings."""
        names = ("max_examples", "num_train_epochs", "learning_rate")
        changes: dict[str, Any] = {n: v for n in names if (v := getattr(config, n)) is not None}
        if kind == "grids" and not any("\n" in text for text in _texts(tasks)):
            changes |= {"transformations": ["strip"], "predict_transformations": ["strip"]}
        preset = self.presets[kind]
        settings = TTTConfig.preset(
            preset, output_dir="unused", use_cpu=True, report_to="none", seed=config.seed, chat=self.chat, **changes
        )
        predict = settings.predict_config()
        if not config.vote:
            predict = PredictConfig(max_new_tokens=predict.max_new_tokens, length_factor=predict.length_factor)
        few = FewShotAdapter(self.mass.model, self.mass.tokenizer, settings.fit_config(), predict, GENERATOR)
        return few, settings

    def defaults(self, kind: str) -> LiveConfig:
        """The model's own settings for problems of a kind; None where it has none."""
        inner, changes = self.mass.config.inner, dict[str, Any]()
        if kind in self.presets:
            own = TTTConfig.preset(self.presets[kind], output_dir="unused", use_cpu=True, report_to="none")
            changes = {
                "max_examples": own.max_examples,
                "num_train_epochs": int(own.num_train_epochs),
                "learning_rate": own.learning_rate,
            }
        return LiveConfig(
            samples=self.mass.config.samples,
            inner_steps=inner.steps,
            inner_learning_rate=inner.learning_rate,
            **changes,
        )

    def with_settings(self, tasks: Sequence[Task], config: LiveConfig) -> MassModel:
        """The same weights with the settings asked for."""
        own = self.mass.config
        inner = replace(
            own.inner,
            steps=config.inner_steps or own.inner.steps,
            learning_rate=config.inner_learning_rate or own.inner.learning_rate,
        )
        changed = replace(own, inner=inner, samples=config.samples or own.samples)
        if not self.own_room:
            changed = replace(changed, **self._room(tasks))
        return MassModel(self.mass.model, self.mass.tokenizer, changed, self.mass.scorer)

    def require_room(self, mass: MassModel, tasks: Sequence[Task]) -> None:
        """Checks that problems are shown whole to a model with these settings, an answer behind them.

        Raises:
            DataError: If one is not.
        """
        limit = mass.config.max_length - mass.config.max_answer_tokens
        for task in tasks:
            length = len(mass.encoder.full_prompt_ids(task, mass.config.format.solver_prompt(task)))
            if length > limit:
                raise DataError(
                    f"Task {task.id!r} with its {len(task.demonstrations)} demonstrations has {length} tokens, and "
                    f"{self.name} has room for {limit}. Give fewer or shorter demonstrations."
                )

    def _room(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Room for samples and answers half as long again as the longest demonstration."""
        pairs = [pair for task in tasks for pair in task.demonstrations]
        length = self.mass.encoder.answer_ids
        question = max((len(length(pair.question)) for pair in pairs), default=LONGEST // 3)
        answer = max((len(length(pair.answer)) for pair in pairs), default=LONGEST // 3)
        context = getattr(self.mass.model.config.get_text_config(), "max_position_embeddings", None) or 2048
        longest = min(context, 4096)
        sample = min(round(1.5 * (question + answer)) + 8, longest // 2)
        return {
            "max_sample_tokens": sample,
            "max_answer_tokens": min(round(1.5 * answer) + 8, longest // 2),
            "max_length": longest,
        }

    def default_weighing(self, tasks: Sequence[Task]) -> str:
        """By attribution to demonstrations where there are some; else by the scorer where it needs none."""
        own = self.mass.config
        if all(task.demonstrations for task in tasks):
            return "demonstrations"
        needs_demonstrations = "attribution" in own.scorer.features
        return "scorer" if own.weigh_by == "scorer" and not needs_demonstrations else "uniform"


def _texts(tasks: Sequence[Task]) -> list[str]:
    shown = [text for task in tasks for pair in task.demonstrations for text in (pair.question, pair.answer)]
    return [*shown, *(task.problem for task in tasks)]


def default_model(kind: str, fields: Collection[str] = ()) -> str:
    """The shipped model that is made for problems of a kind whose tasks have these fields.

    Raises:
        DataError: If there is none.
    """
    fitting = [name for name, each in SHIPPED.items() if kind in each.kinds and set(fields) >= set(each.fields)]
    if not fitting:
        raise DataError(f"No model that ships is made for problems of {kind!r}. Name one.")
    return max(fitting, key=lambda name: len(SHIPPED[name].fields))


def load_model(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    device: str | None = None,
    **model_kwargs: Any,
) -> LiveModel:
    """A model that adapts live.

    Args:
        name_or_path: One of `SHIPPED` (see `default_model`), a folder or Hub id of a saved `MassModel`, or a folder or
            Hub id of any causal language model.
        revision: Of a Hub repository.
        token: For a private repository.
        device: Where to put it; None for a GPU if there is one.
        model_kwargs: For `AutoModelForCausalLM.from_pretrained`.

    Raises:
        CheckpointError: If it cannot be loaded.
    """
    name = str(name_or_path)
    if name in SHIPPED and not Path(name).is_dir():
        model = _shipped(name)
    else:
        model = _other(name, revision, token, model_kwargs)
    model.mass.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    model.mass.scorer.to(model.mass.device)
    return model


def _shipped(name: str) -> LiveModel:
    shipped, folder = SHIPPED[name], ASSETS / name
    if shipped.format is None:
        return LiveModel(name, MassModel.from_pretrained(folder), {}, shipped.kinds)
    config = MassConfig(
        samples=8,
        weigh_by="uniform",
        format=FORMATS[shipped.format],
        max_sample_tokens=LONGEST,
        max_answer_tokens=LONGEST,
        max_length=2048,
        inner=InnerConfig(learning_rate=shipped.inner_learning_rate, lora_rank=16, lora_alpha=16),
        scorer=ScorerConfig(("log_prob",), width=0),
    )
    presets = {kind: shipped.preset for kind in shipped.kinds if shipped.preset}
    mass = MassModel.from_base(folder, config, _generator(shipped.preset or "text"))
    return LiveModel(name, mass, presets, shipped.kinds, own_room=False)


def _other(name: str, revision: str | None, token: str | bool | None, model_kwargs: dict[str, Any]) -> LiveModel:
    if is_mass_model(name, revision, token):
        mass = MassModel.from_pretrained(name, revision=revision, token=token, **model_kwargs)
    else:
        config = MassConfig(weigh_by="uniform", scorer=ScorerConfig(("log_prob",), width=0))
        tokenizer = load_tokenizer(name, token, revision=revision)
        base = load_base(name, token, revision=revision, **model_kwargs)
        mass = MassModel.from_base(base, config, _generator("text"), tokenizer)
    fitting = {kind: [name for name in names if _can_write(mass.tokenizer, name)] for kind, names in PRESETS.items()}
    presets = {kind: names[0] for kind, names in fitting.items() if names}
    return LiveModel(name, mass, presets, chat=mass.tokenizer.chat_template is not None)


def _can_write(tokenizer: PreTrainedTokenizerBase, preset: str) -> bool:
    """Whether the tokenizer has the characters of a preset's prompts: one of a small world may not."""
    settings = TTTConfig.preset(preset, output_dir="unused", use_cpu=True, report_to="none")
    shown = Task("2", (Demonstration("1", "2"),))
    text = settings.format.prompt(shown) + settings.format.pair_separator
    read_back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    return "".join(read_back.split()) == "".join(text.split())


def _generator(preset: str) -> LoraConfig:
    """The adapter that TTT trains, as the preset says."""
    settings = TTTConfig.preset(preset, output_dir="unused", use_cpu=True, report_to="none")
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.lora_target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )


def is_mass_model(name: str, revision: str | None, token: str | bool | None) -> bool:
    """Whether a folder or repository is a saved `MassModel`, as its mass_config.json tells.

    Raises:
        HubError: If the repository cannot be asked.
    """
    if Path(name).is_dir():
        return (Path(name) / CONFIG_NAME).is_file()
    with explained(f"{name!r} is neither a folder nor a Hub repository that could be read", name, revision):
        try:
            hf_hub_download(name, CONFIG_NAME, revision=revision, token=token)
        except EntryNotFoundError:  # nor is it in the cache, where there is no network
            return False
    return True
