"""A tokenizer's chat template, with the arguments that go with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_mass.errors import ConfigError
from hf_mass.tasks.chat import Messages
from hf_mass.tasks.checks import shown

PROBE = "\ue000"


class Chat:
    """Turns messages into text.

    Args:
        tokenizer: The tokenizer.
        kwargs: Arguments of the template, such as `enable_thinking`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
        self.tokenizer, self.kwargs = tokenizer, dict(kwargs)

    def text(self, messages: Messages, generate: bool) -> str:
        """The text of messages; with `generate` up to where the assistant's next one begins.

        Raises:
            ConfigError: If there is no template, or it refuses the messages.
        """
        if not self.tokenizer.chat_template:
            raise ConfigError("chat is set, but the tokenizer has no chat template. Unset chat, or give it one.")
        try:
            return self._rendered(self._in_parts(messages) if self._takes_parts else messages, generate)
        except TemplateError as error:
            raise ConfigError(f"The chat template cannot be used ({error}). Use another, or unset chat.") from error

    def _rendered(self, messages: Any, generate: bool) -> str:
        settings = {**self.kwargs, "tokenize": False, "add_generation_prompt": generate}
        return str(self.tokenizer.apply_chat_template(messages, **settings))

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether contents are lists of parts, as templates of multimodal models have them, and no text."""
        messages: Messages = [{"role": "user", "content": PROBE}]
        try:
            return PROBE not in self._rendered(messages, False)
        except TemplateError:
            return PROBE in self._rendered(self._in_parts(messages), False)

    @staticmethod
    def _in_parts(messages: Messages) -> list[dict[str, Any]]:
        return [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]


def require_chat(tokenizer: PreTrainedTokenizerBase, chat: object, kwargs: object) -> None:
    """Checks what was chosen about a chat template.

    Args:
        tokenizer: The tokenizer.
        chat: Whether to use its template; None for where it suits.
        kwargs: Arguments of the template.

    Raises:
        ConfigError: If there is no such template, or it has no such argument.
    """
    if chat is not None and not isinstance(chat, bool):
        raise ConfigError(f"chat is {shown(chat)}; choose True, False, or None for what suits the method.")
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise ConfigError(f"chat_template_kwargs is {shown(kwargs)}; give names and values, as enable_thinking: False.")
    template = getattr(tokenizer, "chat_template", None)
    if not template and (chat or kwargs):
        what = "chat is True" if chat else f"chat_template_kwargs has {next(iter(kwargs))!r}"
        raise ConfigError(f"{what}, but the tokenizer has no chat template. Leave it out, or take a chat model.")
    written = template if isinstance(template, str) else "\n".join(map(str, (template or {}).values()))
    for name in kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", written):
            raise ConfigError(f"chat_template_kwargs has {name!r}, which the model's chat template does not use.")
