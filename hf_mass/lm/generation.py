"""Sampling that is reproducible row by row, whatever else shares the batch.

Adding Gumbel noise to log-probabilities and taking the largest samples from them exactly (the Gumbel-max trick). Each
row draws its noise from a generator of its own, so a row's sample depends on its seed alone: not on its batch, nor on
how a batch is split between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hf_mass.core.meter import count_sampled, unmetered
from hf_mass.lm.encoding import pad_rows
from hf_mass.lm.prefix import KEYWORD, Prefix, keeps_state
from hf_mass.lm.special_tokens import SpecialTokens

Watch = Callable[[list[list[int]], int], None]
"""Called with the tokens that each row has so far, and the most that it may have. An exception that it raises ends the
generation."""
_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Within this context every generation in this thread is watched, whoever asked for it."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


@contextmanager
def continuing(beginnings: Sequence[list[int]]) -> Iterator[None]:
    """Within this context what is written is shown behind these tokens, a list for each row."""
    watch = _WATCH.get()
    if watch is None:
        yield
        return

    def watch_all(rows: list[list[int]], longest: int) -> None:
        watch([[*a, *b] for a, b in zip(beginnings, rows, strict=True)], longest)

    with watching(watch_all):
        yield


def row_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class GumbelNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise to its logits [rows, vocabulary]."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with noise, float32 or wider; the arguments are those of every logits processor."""
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        # −log of an exponential variable is Gumbel distributed; the floor keeps an exact 0 from becoming infinite.
        return scores.float() - noise.clamp_(min=torch.finfo(torch.float32).tiny).log_().to(scores.device)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is drawn.

    Args:
        max_new_tokens: Longest completion in tokens.
        temperature: Softmax temperature; 0 for greedy decoding.
        top_p: Nucleus mass kept; 1 keeps everything.
        top_k: Number of tokens kept; 0 keeps all.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def processors(self, seeds: Sequence[int] | None) -> LogitsProcessorList:
        """Warpers in transformers' order, then the noise; nothing at all for greedy decoding."""
        if self.temperature == 0:
            return LogitsProcessorList()
        if seeds is None:
            raise ValueError("Sampling at a temperature above 0 needs a seed for each row; pass `seeds`.")
        chain = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chain.append(TopPLogitsWarper(self.top_p))
        chain.append(GumbelNoise(seeds))
        return chain


class _Watched(StoppingCriteria):
    """Never ends a row; shows what has been written so far after every token, up to each row's end."""

    def __init__(self, watch: Watch, prompt: int, longest: int, ends: set[int]) -> None:
        self.watch, self.prompt, self.longest, self.ends = watch, prompt, longest, ends

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """[rows] False; the arguments are those of every stopping criterion."""
        rows = [_up_to_end(row, self.ends) for row in input_ids[:, self.prompt :].tolist()]
        self.watch(rows, self.longest)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _up_to_end(row: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: end + 1]


def _without_filling(row: list[int], tokenizer: PreTrainedTokenizerBase, ends: set[int], stop: str | None) -> list[int]:
    """A row without the padding that fills it up behind the text that ended it."""
    pad = tokenizer.pad_token_id
    if pad not in ends:
        return row[: len(row) - next((i for i, each in enumerate(reversed(row)) if each != pad), len(row))]
    # Cut behind the first one already, which may also be what ended the row.
    filled = stop is not None and row[-1:] == [pad] and stop in tokenizer.decode(row[:-1])
    return row[:-1] if filled else row


@contextmanager
def _own_settings_aside(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within this context the model has no generation settings: `generate` fills those left open from them."""
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    before = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = GenerationConfig()
        yield
    finally:
        for holder, settings in zip(holders, before, strict=True):
            holder.generation_config = settings


def _contiguous_head(model: PreTrainedModel | PeftModel) -> AbstractContextManager[object]:
    """Within this context the output head sees contiguous hidden states.

    transformers cuts the last position out of a prefill, and on a CPU torch takes up to a thousand times as long for
    the product of such a view in bfloat16 (12 s for 48 rows and a vocabulary of 49152), ten times in float32.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return nullcontext()
    return head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))


@torch.no_grad()
def complete(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    stop: str | None = None,
    alike: bool = False,
) -> list[list[int]]:
    """Completions of token prompts, each up to and including its end-of-sequence token.

    The model is called as it is: with the adapters that are active, and the updates that are applied, at the time.
    Its own generation settings (penalties, beams, suppressed tokens) are left out, all but its end-of-sequence tokens:
    a sample comes from the distribution that its log-probability is computed under.

    Args:
        model: A causal language model; put it in evaluation mode first.
        tokenizer: For its padding and end-of-sequence ids.
        prompts: Token ids of each row, at least one row.
        sampling: How to draw.
        seeds: One per row; needed unless greedy.
        stop: A text that ends a completion too, and is then part of it.
        alike: Promise that all rows are answered by the same weights, so that what their prompts begin with is read
            once for all of them.
    """
    if len(lengths := sorted(set(map(len, prompts)))) > 1 and keeps_state(model):
        return _length_by_length(model, tokenizer, prompts, sampling, seeds, stop, lengths)
    device, watch = next(model.parameters()).device, _WATCH.get()
    prefix = Prefix.read(model, prompts, sampling.max_new_tokens) if alike else None
    ids, mask = pad_rows(prompts, tokenizer.pad_token_id, device, side="left", prefix=prefix.length if prefix else 0)
    ends = _ends(model, tokenizer, stop)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
        disable_compile=True,
        use_cache=not _remembers_wrongly(model, ids.shape[1]),
    )
    if stop is not None and SpecialTokens(tokenizer).ids(stop) not in [[end] for end in ends]:
        config.stop_strings = [stop]  # otherwise the end-of-sequence token does it
    watched = [] if watch is None else [_Watched(watch, ids.shape[1], sampling.max_new_tokens, ends)]
    with _own_settings_aside(model), _contiguous_head(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=sampling.processors(seeds),
            stopping_criteria=StoppingCriteriaList(watched),
            **({} if prefix is None else {KEYWORD: prefix.cache}),
            **({"tokenizer": tokenizer} if config.stop_strings else {}),
        )
    rows = [_up_to_end(row, ends) for row in output[:, ids.shape[1] :].tolist()]
    completions = [_without_filling(row, tokenizer, ends, stop if config.stop_strings else None) for row in rows]
    count_sampled(sum(map(len, completions)))
    return completions


def _remembers_wrongly(model: PreTrainedModel | PeftModel, length: int) -> bool:
    """Whether what a model remembers of prompts of this length is wrong (transformers 5.24), so that everything is read
    anew for every token: RWKV mixes up the states of several rows, and RecurrentGemma takes a prompt of one token for
    the next of an earlier text."""
    kind = model.config.get_text_config().model_type
    return kind == "rwkv" or (kind == "recurrent_gemma" and length == 1)


def _ends(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, stop: str | None) -> set[int]:
    """The tokens that end a completion; `stop` is one where it is a special token, and then no text is it."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    stopping = None if stop is None else SpecialTokens(tokenizer).control(stop)
    return {tokenizer.eos_token_id, stopping, *(declared if isinstance(declared, list) else [declared])} - {None}


def _length_by_length(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None,
    stop: str | None,
    lengths: Sequence[int],
) -> list[list[int]]:
    """`complete` without padding in front of a prompt, which a model that keeps a state would read as text.

    All rows take part each time, since updates may be applied row by row; those of another length with what begins
    their prompt, cut or repeated, and what they write then is thrown away.
    """
    done: list[list[int]] = [[] for _ in prompts]
    watch = _WATCH.get()

    def show(rows: list[list[int]], longest: int, own: Sequence[int]) -> None:
        assert watch is not None
        watch([rows[n] if n in own else done[n] for n in range(len(rows))], longest)

    for length in lengths:
        own = [n for n, prompt in enumerate(prompts) if len(prompt) == length]
        equal = [list(islice(cycle(prompt), length)) for prompt in prompts]
        with nullcontext() if watch is None else watching(partial(show, own=own)), unmetered():
            written = complete(model, tokenizer, equal, sampling, seeds, stop)
        for n in own:
            done[n] = written[n]
    count_sampled(sum(map(len, done)))
    return done
