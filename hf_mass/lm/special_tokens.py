"""Special tokens are read where a format or a chat template writes them, and nowhere in what a person or model wrote.

A `<|im_end|>` in a question is text, as any other word of it. Before a text is put into a format or a template, the
special tokens in it are hidden: a mark stands inside each. What was put together is read as ever where no mark is in
it. Else a copy of the tokenizer reads it, to which special tokens are text, and which has another name for those that
the format wrote; so tokens are cut, and spaces kept, by the tokenizer's own rules.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from hf_mass.errors import DataError
from hf_mass.tasks.leave_one_out import TrainingExample
from hf_mass.tasks.task import Demonstration, Task

MARK = "\ufdd0"
"""What hides a special token, or a part that the format could complete; Unicode keeps this character out of texts."""
T = TypeVar("T", str, Task, TrainingExample)
_Twin = tuple[PreTrainedTokenizerBase, dict[str, str], dict[int, int]]
"""A tokenizer to which special tokens are text, its names for them, and its ids of these names → their ids."""
_TWINS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[str, ...], _Twin]] = WeakKeyDictionary()


class SpecialTokens:
    """The special tokens of a tokenizer, and how texts that have them are read.

    A special token is one that was added as such, or that begins, ends or fills up sequences. Tokens that were added
    without being special, such as `<think>` of Qwen 3, are words as any other.

    Args:
        tokenizer: The tokenizer; it is never changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def added(self) -> dict[str, AddedToken]:
        """The special tokens by what they read as, longest first."""
        known = {str(t): AddedToken(str(t), special=True, normalized=False) for t in self.tokenizer.all_special_tokens}
        decoder = getattr(self.tokenizer, "added_tokens_decoder", {})
        known |= {token.content: token for token in decoder.values() if token.special}
        return {text: known[text] for text in sorted(known, key=len, reverse=True) if text}

    @cached_property
    def numbers(self) -> set[int]:
        """Their ids."""
        return set(self.tokenizer.convert_tokens_to_ids(list(self.added)))

    @cached_property
    def _barred(self) -> set[int]:
        """Ids that no text may have; an unknown character has one of its own."""
        ends = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        return self.numbers - ({self.tokenizer.unk_token_id} - ends)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?:{'|'.join(map(re.escape, self.added)) or '(?!)'})(?!{MARK})")

    def hidden(self, what: T) -> T:
        """A text, a task or a training example with the special tokens in its texts hidden; itself where it has none.

        Raises:
            DataError: If it has the mark that hides them.
        """
        if isinstance(what, str):
            return self._hidden(what)
        changed = _with_texts(what, self._hidden)
        return what if changed == what else changed

    def _hidden(self, text: str) -> str:
        if MARK in text and not self._is_hidden(text):
            raise DataError(f"A text has the character U+FDD0, which is none of Unicode's: {text[:60]!r}. Take it out.")
        while (broken := self._pattern.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text)) != text:
            text = broken  # one may stand within another
        starts, ends = self._parts
        if any(text[-size:] in starts for size in range(1, self._longest)):
            text = f"{text}{MARK}"  # else what the format writes behind it could complete one
        if any(text[:size] in ends for size in range(1, self._longest)):
            text = f"{text[0]}{MARK}{text[1:]}" if text[1:2] != MARK else text
        return text

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.added), default=0)

    @cached_property
    def _parts(self) -> tuple[set[str], set[str]]:
        """(what special tokens begin with, what they end with), but for the whole of them."""
        places = [(token, n) for token in self.added for n in range(1, len(token))]
        return {token[:n] for token, n in places}, {token[n:] for token, n in places}

    def _is_hidden(self, text: str) -> bool:
        return self._hidden(text.replace(MARK, "")) == text

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, with no special tokens around it; those that are hidden in it are text.

        Raises:
            DataError: If the tokenizer cannot write one as text.
        """
        as_ever = _read(self.tokenizer, text.replace(MARK, ""))
        barred = self._barred if MARK in text else set()
        if not barred.intersection(as_ever):  # some tokenizers read no text as a special token
            return as_ever
        twin, names, back = self._twin(text)

        def read(written: str) -> list[int]:
            renamed = self._pattern.sub(lambda found: names[found[0]], written)
            return _read(twin, renamed.replace(MARK, ""), split_special_tokens=True)

        if [back.get(n, n) for n in read(text.replace(MARK, ""))] != as_ever:
            raise self._refusal(text, "which this one cannot be told to read as text")
        ids = read(text)
        if (found := next((n for n in ids if n in barred), None)) is not None:
            token = str(self.tokenizer.convert_ids_to_tokens(found))
            raise self._refusal(text, "which its vocabulary has no other way to write", token)
        return [back.get(n, n) for n in ids]

    def _twin(self, text: str) -> _Twin:
        key = (str(len(self.tokenizer)), *self.added)
        known = _TWINS.get(self.tokenizer)
        if known is None or known[0] != key:
            try:
                known = _TWINS[self.tokenizer] = (key, _twin(self.tokenizer, self.added))
            except (NotImplementedError, TypeError, AttributeError) as error:
                raise self._refusal(text, "which this one cannot be told to read as text") from error
        return known[1]

    def _refusal(self, text: str, why: str, token: str = "") -> DataError:
        shown, place = text.replace(MARK, ""), text.index(MARK) - 1
        place = max(shown.find(token, place), place)
        token = next((each for each in self.added if shown.startswith(each, place)), shown[max(0, place) :][:10])
        return DataError(
            f"A text has {token!r}, a special token of the tokenizer, {why}: "
            f"{shown[max(0, place - 30) : place + len(token) + 30]!r}. Take it out of the text, or use a model with a "
            "byte-level tokenizer of the library tokenizers."
        )

    def control(self, text: str) -> int | None:
        """The id of the special token that a text is; None if it is another text."""
        ids = self.ids(text) if text in self.added else []
        return ids[0] if len(ids) == 1 and ids[0] in self.numbers else None


def _read(tokenizer: Any, text: str, split_special_tokens: bool = False) -> list[int]:
    """Token ids, whatever the tokenizer was told about splitting special tokens when it was made."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"])


def _twin(tokenizer: PreTrainedTokenizerBase, added: dict[str, AddedToken]) -> _Twin:
    twin: Any = copy.deepcopy(tokenizer)
    names = {text: f"\ufdd1{number}\ufdd2" for number, text in enumerate(added)}
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    twin.add_tokens(
        [
            AddedToken(names[text], special=False, **{flag: getattr(token, flag) for flag in flags})
            for text, token in added.items()
        ]
    )
    ids = tokenizer.convert_tokens_to_ids(list(added))
    return twin, names, dict(zip(twin.convert_tokens_to_ids(list(names.values())), ids, strict=True))


def _with_texts(what: Any, change: Callable[[str], str]) -> Any:
    """A task or a training example with its texts changed, all that a prompt may show."""
    pairs = tuple(Demonstration(change(pair.question), change(pair.answer)) for pair in what.demonstrations)
    if isinstance(what, TrainingExample):
        query = Demonstration(change(what.query.question), change(what.query.answer))
        return replace(what, demonstrations=pairs, query=query, instruction=change(what.instruction))
    return replace(
        what,
        problem=change(what.problem),
        demonstrations=pairs,
        history=tuple((change(role), change(content)) for role, content in what.history),
        fields={name: change(value) if isinstance(value, str) else value for name, value in what.fields.items()},
    )


def tokens_without_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """How many tokens a text may hold for which a model of so many embeddings has none.

    Added special tokens that no prompt is made of are not counted: some models come with one too many, for images.
    """
    vocabulary, template = tokenizer.vocab_size, str(getattr(tokenizer, "chat_template", None))
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    beyond = {n: each for n, each in tokenizer.added_tokens_decoder.items() if n >= max(rows, vocabulary)}
    counted = [n for n, each in beyond.items() if not each.special or n in used or each.content in template]
    return max(vocabulary - rows, 0) + len(counted)
