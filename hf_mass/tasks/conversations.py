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
_SYSTEM = ("system", "developer")
_UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio")
"""What a message may hold besides its text, which templates would show."""

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


def row_messages(row: Mapping[str, Any], column: str, where: str) -> list[Message]:
    """The messages in a column of a row, behind what its column "system" tells, if there is one.

    Raises:
        DataError: As `as_messages`; and if the row has tools, which are not shown to the model.
    """
    messages, told = as_messages(row[column], where), row.get("system")
    if row.get("tools"):
        raise DataError(f"{where} the row has 'tools', {shown(row['tools'])}, which are not read. Take them out.")
    if told in (None, "") or [("system", told)] == messages[:1]:
        return messages
    if not isinstance(told, str) or (messages[:1] and messages[0][0] in _SYSTEM):
        raise DataError(f"{where} the row has 'system' {shown(told)} as well. Keep one text for the system.")
    return [("system", told), *messages]


def _message(message: Any, where: str) -> Message:
    keys = next((keys for keys in _KEYS if isinstance(message, Mapping) and keys[0] in message), _KEYS[0])
    role, content = (message.get(key) for key in keys) if isinstance(message, Mapping) else (None, None)
    if isinstance(content, list):  # parts, of which some may be pictures
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"{where} a message must have a text role and content, found {shown(message, 80)}.")
    if lost := next((key for key in _UNREAD if message.get(key)), None):
        raise DataError(f"{where} a message has {lost!r}, {shown(message[lost])}, which is not read. Take it out.")
    return _ROLES.get(role, role), content


def solved_pair(messages: list[Message], where: str) -> tuple[str, str, str | None]:
    """(what the system is told, question, answer or None) of a conversation of one question.

    Raises:
        DataError: If it has another form.
    """
    system = messages[0][1] if messages and messages[0][0] in _SYSTEM else ""
    messages = messages[1:] if messages and messages[0][0] in _SYSTEM else messages
    roles = [role for role, _ in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(
            f"{where} a solved example is one message of the user and one of the assistant, found {roles!r:.80}. Cut "
            "the conversation, or load it with load_tasks, which keeps what came before the last question."
        )
    return system, messages[0][1], messages[1][1] if len(messages) == 2 else None
