"""The language model inside a multimodal one, as an ordinary causal language model: text only."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from hf_mass.errors import UnsupportedModelError
from hf_mass.lm.random_state import host_random_state

ALONE: dict[str, Any] = {"qwen2_vl_text": Qwen2Config, "qwen2_5_vl_text": Qwen2Config, "qwen3_vl_text": Qwen3Config}
"""Type of a language model that transformers has inside multimodal ones only → the config of the same model by itself.

They differ in the positions of images alone: on text the three parts of a position are equal."""
_OF_IMAGES = ("model_type", "architectures", "mrope_section", "mrope_interleaved", "rope_type", "type")


def is_multimodal(config: Any) -> bool:
    """Whether a config is that of a model with a language model inside."""
    return config.get_text_config(decoder=True) is not config


@host_random_state()
def language_model_of(whole: PreTrainedModel) -> PreTrainedModel:
    """The language model of a multimodal one, with its head. It shares the weights, and keeps the name.

    Raises:
        UnsupportedModelError: If transformers has no class for it by itself, or its weights are others than that
            class's.
    """
    config, name = _alone(whole.config.get_text_config(decoder=True)), type(whole).__name__
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModelError(
            f"{name} has a language model of type {config.model_type!r}, for which transformers has no class by "
            "itself, so it cannot be adapted on text alone. Use a text-only model of the family."
        )
    alone, inside = AutoModelForCausalLM.from_config(config), whole.get_decoder()
    head = whole.get_output_embeddings()
    try:
        getattr(alone, alone.base_model_prefix).load_state_dict(inside.state_dict(), assign=True)
        if head is None:
            raise RuntimeError("it has no head that gives words")
        alone.set_output_embeddings(head)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"The language model of {name} is not the {type(alone).__name__} that its config says: {reason}. Use a "
            "text-only model of the family."
        ) from error
    alone.tie_weights()
    alone.generation_config = whole.generation_config
    alone.config._name_or_path = alone.name_or_path = whole.config.name_or_path
    alone.is_converted = True  # `AutoModelForCausalLM.from_pretrained` gives another model by that name, or none
    return alone.eval()


def _alone(config: Any) -> Any:
    if config.model_type not in ALONE:
        return config
    values = {name: value for name, value in config.to_dict().items() if name not in _OF_IMAGES}
    rope = {key: value for key, value in (values.get("rope_parameters") or {}).items() if key not in _OF_IMAGES}
    return ALONE[config.model_type](**{**values, "rope_parameters": {"rope_type": "default", **rope}})
