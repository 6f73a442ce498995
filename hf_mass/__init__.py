"""Hugging Face language models that adapt themselves at test time, and meta-learn to do it better."""

from importlib import import_module
from typing import Any

from hf_mass.errors import missing_extra

__version__ = "0.1.0"

# The names most programs need, found when they are first asked for: `import hf_mass.tasks` must not load torch.
_PUBLIC = {
    "Adaptation": "hf_mass.methods.base",
    "Answer": "hf_mass.methods.base",
    "Columns": "hf_mass.tasks.sources",
    "Demonstration": "hf_mass.tasks.task",
    "FORMATS": "hf_mass.tasks.formats",
    "FewShotFormat": "hf_mass.tasks.few_shot_format",
    "Guard": "hf_mass.methods.guard",
    "LanguageModel": "hf_mass.lm.language_model",
    "MASS": "hf_mass.methods.mass",
    "MajorityVote": "hf_mass.methods.unadapted",
    "MassConfig": "hf_mass.methods.mass_settings",
    "MassModel": "hf_mass.methods.mass_model",
    "MetaAdaptConfig": "hf_mass.training.meta_adapt_config",
    "MetaAdaptTrainer": "hf_mass.training.meta_adapt_trainer",
    "Method": "hf_mass.methods.base",
    "NoAdaptation": "hf_mass.methods.unadapted",
    "PromptFormat": "hf_mass.tasks.formats",
    "TTT": "hf_mass.methods.ttt",
    "TTTConfig": "hf_mass.training.ttt_config",
    "TTTSettings": "hf_mass.methods.ttt_settings",
    "TTTThenMASS": "hf_mass.methods.sequence",
    "TTTTrainer": "hf_mass.training.ttt_trainer",
    "Task": "hf_mass.tasks.task",
    "adapt": "hf_mass.engine.api",
    "load": "hf_mass.engine.models",
    "load_bbh": "hf_mass.tasks.bbh",
    "load_few_shot_file": "hf_mass.tasks.rows",
    "load_grid_tasks": "hf_mass.tasks.arc",
    "load_tasks": "hf_mass.tasks.sources",
    "register_method": "hf_mass.methods.registry",
    "register_verifier": "hf_mass.tasks.verifiers",
    "solve": "hf_mass.engine.api",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hf_mass' has no attribute {name!r}; it has {sorted(_PUBLIC)}.")
    try:
        return getattr(import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        if (message := missing_extra(f"hf_mass.{name}", error)) is None:
            raise
        raise ImportError(message, name=error.name) from error


def __dir__() -> list[str]:
    return sorted(__all__)
