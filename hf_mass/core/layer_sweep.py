"""Second derivatives one layer at a time: memory for one layer's graph, plus each layer's input and its tangent.

A decoder is a chain h_{j+1} = f_j(h_j, θ_j) behind which a tail (final norm, head, loss) gives L = Σ_r c_r ℓ_r. For a
direction v in θ, going up and down the chain takes

    up:    ḣ_{j+1} = ∂f_j/∂h ḣ_j + ∂f_j/∂θ v_j        (forward mode, no graph; h_j and ḣ_j are kept),
    down:  c_j = ∂f_j/∂hᵀ c_{j+1},    and ċ_j, the change of c_j along (ḣ, v).

Writing φ_j(h, θ) = ⟨c_{j+1}, f_j(h, θ)⟩ with c_{j+1} held fixed, the change of ∇φ_j along (ḣ_j, v_j) is its Hessian
times that vector, which is the gradient of ⟨∇φ_j, (ḣ_j, v_j)⟩, and c_{j+1} itself changes by ċ_{j+1}; so

    (ċ_j, (∇²L v)_j) = ∇_{(h, θ)} [ ⟨∇φ_j, (ḣ_j, v_j)⟩ + ⟨ċ_{j+1}, f_j⟩ ],

from the graph of layer j alone. The tail is treated the same way, with L in the place of φ.

The identity of tensors is checked all along: each layer must be called with the very output of the one before it, and
nothing else may carry a tangent across. A model that is not such a chain is refused, never computed wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_mass.core import trees
from hf_mass.core.losses import Curvature, RowLoss
from hf_mass.core.second_order import dual_tree, inner_product, refusing, require_second_derivatives, tangent
from hf_mass.core.trees import TaskSubset, Tree
from hf_mass.errors import UnsupportedModelError

Applied = Callable[[Tree, Tensor], AbstractContextManager[None]]


@dataclass
class LayerCall:
    """One layer's part of a forward pass: its input h [rows, length, features], ḣ, and its other arguments."""

    layer: nn.Module
    hidden: Tensor
    tangent: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def again(self, hidden: Tensor) -> Tensor:
        """The layer's output for another input, with a graph."""
        return _hidden_of(self.layer(hidden, *self.arguments, **self.keywords))


class _Recorder:
    """Runs layers without a graph, keeps their inputs and tangents, and cuts the graph behind the last one."""

    def __init__(self, layers: Sequence[nn.Module], tail: Tree) -> None:
        self.tail = list(tail.values())
        self.layers, self.calls, self.outputs = layers, list[LayerCall](), list[Tensor]()
        self.top: Tensor | None = None  # h behind the last layer, a leaf
        self.top_tangent: Tensor | None = None

    @contextmanager
    def recording(self) -> Iterator[_Recorder]:
        with _forwards_replaced(self.layers, self._record):
            yield self

    def _depends_on_tail(self, value: Tensor) -> bool:
        """Returns True if parameters outside of the layers have a part in what a layer gets: it would be cut off."""
        if not self.tail or not value.requires_grad:
            return False
        zeros = torch.zeros_like(value)
        with torch.enable_grad():
            gradients = torch.autograd.grad(value, self.tail, zeros, allow_unused=True, retain_graph=True)
        return any(gradient is not None for gradient in gradients)

    def _record(self, layer: nn.Module, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        hidden, rest, keywords = _split(arguments, keywords)
        if self.top is not None:
            raise _not_a_chain(layer, "is called after the last one")
        if self.outputs and hidden is not self.outputs[-1]:
            raise _not_a_chain(layer, "is not called with the output of the layer before it")
        tangent_in = forward_ad.unpack_dual(hidden).tangent
        if not self.outputs and (tangent_in is not None or self._depends_on_tail(hidden)):
            raise _not_a_chain(layer, "is the first one, and what it gets depends on the adapted weights already")
        if any(
            forward_ad.unpack_dual(x).tangent is not None or self._depends_on_tail(x)
            for x in _tensors((rest, keywords))
        ):
            raise _not_a_chain(layer, "gets more than its hidden states from the layers before it")
        primal = forward_ad.unpack_dual(hidden).primal.detach()
        direction = torch.zeros_like(primal) if tangent_in is None else tangent_in.detach()
        self.calls.append(LayerCall(layer, primal, direction, rest, keywords))
        with torch.no_grad():
            output = forward(hidden, *rest, **keywords)
        states = _hidden_of(output)
        if any(forward_ad.unpack_dual(x).tangent is not None for x in _tensors(output) if x is not states):
            raise _not_a_chain(layer, "gives more than its hidden states to the layers behind it")
        if layer is self.layers[-1]:
            self.top = forward_ad.unpack_dual(states).primal.detach().requires_grad_()
            self.top_tangent = tangent(states).detach()
            states_out = self.top
        else:
            states_out = states
        self.outputs.append(states_out)
        return (states_out, *output[1:]) if isinstance(output, tuple) else states_out


@torch.enable_grad()
def swept_curvature(
    loss: RowLoss,
    layers: Mapping[nn.Module, Sequence[str]],
    at: Applied,
    params: Tree,
    rows: Tensor,
    coefficients: Tensor,
    direction: Tree,
    checked: bool = False,
) -> Curvature:
    """The `Curvature` of some rows (see the module's docstring); `double_backward` gives the same numbers.

    Args:
        loss: The row losses, of a model that passes hidden states through `layers`.
        layers: In the order of the forward pass, with the names of the parameters θ_j that each uses; all other
            parameters belong to the tail.
        at: (parameters of a layer, row_task [rows]) → context in which the model runs with them, as twice
            differentiable as in `loss.evaluate(second_order=True)`.
        params: θ, leaves [N, ...].
        rows: [rows] int64.
        coefficients: c [rows].
        direction: v, leaves [N, ...].
        checked: Whether an earlier pass over the same model found all its operations twice differentiable.

    Raises:
        UnsupportedModelError: If the model is not a chain of these layers, or an operation lacks a derivative rule.
    """
    subset = TaskSubset.of(loss.row_task[rows], trees.num_tasks(params))
    params, direction, row_task = subset.take(params), subset.take(direction), subset.local
    factors = coefficients.detach().clone().requires_grad_()
    inside = {name for names in layers.values() for name in names}
    tail = trees.leaves({name: leaf for name, leaf in params.items() if name not in inside})
    recorder, product = _Recorder(list(layers), tail), trees.zeros_like(params)
    with refusing(), forward_ad.dual_level():
        dual = dual_tree(*({name: tree[name] for name in inside} for tree in (params, direction)))
        mixed = {name: tail[name] if name in tail else dual[name] for name in params}
        with recorder.recording(), loss.evaluate(mixed, rows, row_task, second_order=True) as values:
            if recorder.top is None or forward_ad.unpack_dual(values).tangent is not None:
                raise _not_a_chain(recorder.layers[-1], "is not the only way from the layers to the loss")
            down, part, products = _turn(values, factors, recorder, tail, direction, checked)
        del dual, mixed, values
    product.update(part)
    with refusing():
        while recorder.calls:
            call = recorder.calls.pop()
            point = {name: params[name] for name in layers[call.layer]}
            bottom = not recorder.calls
            down, part = _descend(call, down, point, direction, at, row_task, checked, bottom)
            for name, leaf in part.items():
                product[name] += leaf
    return Curvature(product, subset, products.to(coefficients.dtype))


Down = tuple[Tensor, Tensor]  # (c, ċ), each [rows, length, features]


def _turn(
    values: Tensor, factors: Tensor, recorder: _Recorder, tail: Tree, direction: Tree, checked: bool
) -> tuple[Down, Tree, Tensor]:
    """At the top: ((c, ċ) behind the last layer, the tail's part of the product, ⟨∇ℓ_r, v⟩ [rows])."""
    top, top_tangent = recorder.top, recorder.top_tangent
    assert top is not None and top_tangent is not None
    inputs = [top, *tail.values()]
    first = torch.autograd.grad(
        (factors.to(values.dtype) * values).sum(), inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )
    slope = inner_product(first, [top_tangent, *(direction[name] for name in tail)])
    if not checked:
        require_second_derivatives(slope)
    second = torch.autograd.grad(slope, [*inputs, factors], allow_unused=True, materialize_grads=True)
    return (first[0].detach(), second[0]), dict(zip(tail, second[1:-1], strict=True)), second[-1]


def _descend(
    call: LayerCall,
    down: Down,
    point: Tree,
    direction: Tree,
    apply: Applied,
    row_task: Tensor,
    checked: bool,
    bottom: bool,
) -> tuple[Down, Tree]:
    """Through one layer: ((c, ċ) at its input, its part of the product)."""
    leaves = trees.leaves(point)
    # Below the first layer nothing depends on θ: ḣ is 0 there, and nobody asks for (c, ċ).
    tangents = () if bottom else (call.tangent,)
    hidden = call.hidden.requires_grad_(not bottom)
    inputs = [*leaves.values()] if bottom else [hidden, *leaves.values()]
    if not inputs:
        return down, {}
    with apply(leaves, row_task):
        output = call.again(hidden)
        first = torch.autograd.grad(
            output, inputs, down[0], create_graph=True, allow_unused=True, materialize_grads=True
        )
        slope = inner_product(first, [*tangents, *(direction[name] for name in leaves)])
        if not checked:
            require_second_derivatives(slope)
        second = torch.autograd.grad(
            [slope, output], inputs, [torch.ones_like(slope), down[1]], allow_unused=True, materialize_grads=True
        )
    products = dict(zip(leaves, second[len(tangents) :], strict=True))
    return (down if bottom else (first[0].detach(), second[0])), products


# -- first order -------------------------------------------------------------------------------------------------------


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context the graph keeps each layer's input only; backward passes redo one layer at a time.

    Backward passes must run inside the context in which the updates are applied (`LoraFunction.applied`).
    """

    def forward_once(layer: nn.Module, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

    with _forwards_replaced(layers, forward_once):
        yield


# -- helpers -----------------------------------------------------------------------------------------------------------


@contextmanager
def _forwards_replaced(layers: Sequence[nn.Module], replacement: Callable[..., Any]) -> Iterator[None]:
    """Within this context `layer.forward(...)` is `replacement(layer, forward, ...)`."""
    originals = {layer: layer.__dict__.get("forward") for layer in layers}
    try:
        for layer in layers:
            layer.forward = partial(replacement, layer, layer.forward)
        yield
    finally:
        for layer, original in originals.items():
            if original is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = original


def _split(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """(hidden states, other positional arguments, other keywords)."""
    if arguments:
        return arguments[0], arguments[1:], keywords
    return keywords["hidden_states"], (), {name: x for name, x in keywords.items() if name != "hidden_states"}


def _hidden_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _not_a_chain(layer: nn.Module, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f'memory="lean" needs a chain of layers, but {type(layer).__name__} {what}. Use memory="fast", with a small '
        "microbatch where memory is short."
    )
