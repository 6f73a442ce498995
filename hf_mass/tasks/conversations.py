"""Rows of messages, as chats are saved: {"role", "content"} objects, or {"from", "value"} as in ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_mass.errors import DataError
from hf_mass.tasks.checks import shown

MESSAGES = ("messages", "conversations", "conversation")
"""Columns that hold them."""
_KEYS = (("role", "content"), ("from", "value"))
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}

Message = tuple[str, str]
"""Role and text."""


def as_messages(value: Any, where: str) -> list[Message]:
    """The messages of a list of objects; `where` names them in errors.

    Raises:
        DataError: If one has no role or no text.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where} expected a list of messages, found {shown(value)}. Give objects of role and content.")
    return [_message(each, where) for each in value]


def _message(message: Any, where: str) -> Message:
    keys = next((keys for keys in _KEYS if isinstance(message, Mapping) and keys[0] in message), _KEYS[0])
    role, content = (message.get(key) for key in keys) if isinstance(message, Mapping) else (None, None)
    if isinstance(content, list):  # parts, of which some may be pictures
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"{where} a message must have a text role and content, found {shown(message, 80)}.")
    return _ROLES.get(role, role), content


def solved_pair(value: Any, where: str) -> tuple[str, str, str | None]:
    """(what the system is told, question, answer or None) of a conversation of one question.

    Raises:
        DataError: If it has another form.
    """
    messages = as_messages(value, where)
    system = messages.pop(0)[1] if messages and messages[0][0] in ("system", "developer") else ""
    roles = [role for role, _ in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(
            f"{where} a solved example is one message of the user and one of the assistant, found {roles!r:.80}. Cut "
            "the conversation, or load it with load_tasks, which keeps what came before the last question."
        )
    return system, messages[0][1], messages[1][1] if len(messages) == 2 else None
