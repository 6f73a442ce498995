"""Stopping within a pass: whoever asks is heard at every layer, forward and back, and no number is another for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from hf_mass.lm.binding import decoder_layers


@contextmanager
def asked_at_every_layer(model: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Within this context every layer of a model asks before it runs, and when a backward pass comes to its output.

    A pass over many rows takes many seconds, and would else not hear of a time limit, nor of Ctrl-C.

    Args:
        model: The model; where no decoder layers can be told apart, its linear maps ask.
        check: An exception that it raises ends the pass.
    """

    def before(*_: Any) -> None:
        check()

    def behind(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.requires_grad:
            first.register_hook(before)

    with ExitStack() as stack:
        for layer in decoder_layers(model) or [each for each in model.modules() if isinstance(each, nn.Linear)]:
            stack.callback(layer.register_forward_pre_hook(before).remove)
            stack.callback(layer.register_forward_hook(behind).remove)
        yield
