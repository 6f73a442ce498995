"""Whether a model's second derivatives are all there: a Hessian that is not symmetric has lost some.

A custom `autograd.Function` whose backward pass uses a statistic that its forward pass saved, as fused norms do, has
right first derivatives and passes every check of autograd; differentiated once more it takes the statistic for a
constant, and nobody is told. With w = Hv / |Hv| a symmetric H has ⟨Hw, v⟩ = ⟨Hv, w⟩ = |Hv|, and one row of a dozen
tokens tells whether it is.

H is taken over the matrices B alone, in which every update is linear. The product B A has second derivatives of its
own, which are right whatever the model does and would drown the rest: over A and B, SmolLM2-135M with a fused norm is
off by 0.4%, over B by 10%. What is right stays below 1e-6 in float32 and below two roundings in bfloat16.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_mass.core import trees
from hf_mass.core.lora import LoraFunction
from hf_mass.core.meter import unmetered
from hf_mass.core.second_order import graph_nodes, inner_product, refusing, require_second_derivatives
from hf_mass.core.trees import Tree
from hf_mass.errors import UnsupportedModelError

TOKENS = 12
"""Length of the row that is looked at."""
_ROUNDINGS = 4
_LEAST = 1e-4
_FINE = 1e-5  # roundings below are those of float32
# Of one module by itself, in float32: nothing dilutes its error there.
_OF_A_MODULE = 0.01
_LARGEST_MODULE = 2**27  # parameters; what is larger is left to the modules inside it


# Of models that were found right: what they were then.
_RIGHT: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()

Evaluate = Callable[[Tree], AbstractContextManager[Tensor]]


def require_second_order(model: nn.Module, lora: LoraFunction, params: Tree, evaluate: Evaluate) -> None:
    """Refuse a model whose second derivatives are not all there. Once for a model, and again when it was changed.

    Args:
        model: The model.
        lora: Its low-rank updates.
        params: θ of one task, leaves [1, ...]; only shapes, dtypes and device matter.
        evaluate: (leaves [1, ...]) → context that gives the loss of one row of `TOKENS` tokens, twice differentiable.

    Raises:
        UnsupportedModelError: If the Hessian is not symmetric, or an operation has no second derivative at all.
    """
    now = (*fingerprint(model), *(ref(site.module) for site in lora.sites.values()))
    if _RIGHT.get(model) == now:
        return
    with unmetered(), refusing(), torch.enable_grad():
        # Where the larger updates overflow, in float16, smaller ones show as much.
        if any(_look(model, lora, params, evaluate, scale) for scale in (1.0, 0.1)):
            _RIGHT[model] = now


def _look(model: nn.Module, lora: LoraFunction, params: Tree, evaluate: Evaluate, scale: float) -> bool:
    """Whether there was something to see: False where numbers are not finite."""
    point = trees.leaves(_random_updates(lora, params, scale))
    inputs = [point[site.b] for site in lora.sites.values()]
    with recorded(model) as recording, evaluate(point) as values:
        gradient = torch.autograd.grad(
            values.sum(), inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        require_second_derivatives(inner_product(gradient, gradient))
        # A loss that the updates change has curvature, unless a function's second derivative ends its graph.
        found = asymmetry(gradient, inputs, of_zero=math.inf if any(g.any() for g in gradient) else 0.0)
        if found != found:
            return False
        # What one module of many lacks may drown, in rounding above all; by itself it shows.
        suspect = found > recording.tolerance or has_own_functions(values)
        culprit = recording.culprit() if suspect else None
    if found > recording.tolerance or culprit is not None:
        raise UnsupportedModelError(_message(model, culprit, found))
    return True


def _random_updates(lora: LoraFunction, params: Tree, scale: float) -> Tree:
    """Low-rank updates about as large as what they are added to (at scale 1), from a generator of their own."""
    generator, drawn = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for site in lora.sites.values():
        rank, features = params[site.a].shape[1:]
        sizes = {site.a: features**-0.5, site.b: scale * rank**-0.5 / max(abs(site.scaling), 1e-6)}
        for name, size in sizes.items():
            drawn[name] = (size * torch.randn(params[name].shape, generator=generator)).to(params[name])
    return drawn


def _message(model: nn.Module, culprit: nn.Module | None, found: float) -> str:
    name = next((name for name, module in model.named_modules() if module is culprit), "")
    where = f"{name or 'the model'} ({type(culprit).__name__})" if culprit is not None else type(model).__name__
    size = "zero" if math.isinf(found) else f"asymmetric by {found:.1e}"
    return (
        f"The second derivatives of {where} are wrong (the loss's Hessian is {size}): a custom "
        "autograd.Function, such as a fused kernel, leaves terms out when it is differentiated twice, as K > 1 and "
        "solve_gradient='full' need. Switch fused kernels off (use_liger_kernel=False, use_kernels=False), or use "
        "inner_steps=1 and solve_gradient='direct'."
    )


def asymmetry(gradient: Sequence[Tensor], inputs: Sequence[Tensor], directions: int = 2, of_zero: float = 0.0) -> float:
    """The largest |⟨Hw, v⟩ − |Hv|| / |Hv| over some directions v, each the normalised product with the one before.

    NaN where the Hessian is not finite. Costs a product more than it has directions; draws from a generator of its own.

    Args:
        gradient: ∇L at `inputs`, with its graph.
        inputs: Tensors that require gradients.
        directions: How many v.
        of_zero: What a Hessian of zeros gives.
    """
    generator, worst = torch.Generator().manual_seed(0), 0.0
    vector = [torch.randn(x.shape, generator=generator).to(x) for x in inputs]
    product = _product(gradient, inputs, vector)
    for _ in range(directions):
        size = inner_product(product, product).sqrt()
        if not size:
            return max(worst, of_zero)
        following = [x / size.to(x.dtype) for x in product]
        again = _product(gradient, inputs, following)
        difference = float((inner_product(again, vector) - size).abs() / size)
        if difference != difference:
            return difference
        worst, vector, product = max(worst, difference), following, again
    return worst


def _product(gradient: Sequence[Tensor], inputs: Sequence[Tensor], vector: Sequence[Tensor]) -> Sequence[Tensor]:
    slope = inner_product(gradient, vector)
    if not slope.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(slope, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """What computes: the modules, and the code that they, their hooks and the functions of their source files run.

    Two of them differ once a module, a method or a function was exchanged for another.
    """
    parts: list[Any] = []
    for module in model.modules():
        parts += [ref(module), *_kind(module), *(_code(x) for x in vars(module).values() if callable(x))]
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks):
            parts += map(_code, hooks.values())
    sources = {name: vars(sys.modules[name]) for name in {type(x).__module__ for x in model.modules()}}
    parts += [x for name in sorted(sources) for x in sources[name].values() if isinstance(x, FunctionType)]
    return tuple(parts)


def _kind(module: nn.Module) -> tuple[Any, ...]:
    """The same for modules that run the same code."""
    return type(module), _code(type(module).forward), _code(vars(module).get("forward"))


def _code(function: Any) -> Any:
    """A function's code, which outlives wrappers that are made anew; the object itself where it has none."""
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", function)  # of a method
    return ref(function) if isinstance(function, nn.Module) else getattr(function, "__code__", function)


@dataclass
class _Call:
    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def asymmetry(self) -> float:
        """That of ⟨c, output⟩ in float32: in the module's first floating-point input x, and in x and c together.

        A backward pass must depend on c, which is what it is given; one that autograd sees nothing of does not.
        """
        weights = {name: _widened(x) for name, x in self.module.named_parameters()}
        if sum(x.numel() for x in weights.values()) > _LARGEST_MODULE:
            return 0.0
        arguments, keywords = _widened(self.arguments), _widened(self.keywords)
        point = next(_floats((arguments, keywords)), None)
        if point is None:
            return 0.0
        point.requires_grad_()
        output = next(_floats(functional_call(self.module, weights, arguments, keywords)), None)
        if output is None or not output.requires_grad:
            return 0.0
        c = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output).requires_grad_()
        gradient = torch.autograd.grad(
            (c * output).sum(), [point, c], create_graph=True, allow_unused=True, materialize_grads=True
        )
        return max(asymmetry(gradient[:1], [point]), asymmetry(gradient, [point, c]))


@dataclass
class Recording:
    """A forward pass: the first call of every kind of module, those inside others first, and its coarsest dtype."""

    calls: dict[tuple[Any, ...], _Call] = field(default_factory=dict)
    rounding: float = 0.0

    @property
    def tolerance(self) -> float:
        """How far a Hessian that is right may be from symmetric."""
        return max(_LEAST, _ROUNDINGS * self.rounding)

    def culprit(self) -> nn.Module | None:
        """The first module that by itself has a Hessian which is not symmetric; None if there is none."""
        for call in self.calls.values():
            if call.asymmetry() > _OF_A_MODULE:
                return call.module
        return None


@contextmanager
def recorded(model: nn.Module) -> Iterator[Recording]:
    """Context that records what is called."""
    recording, pending = Recording(), dict[nn.Module, _Call]()

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        pending[module] = _Call(module, arguments, keywords)
        for x in _floats((arguments, keywords)):
            recording.rounding = max(recording.rounding, torch.finfo(x.dtype).eps)

    def behind(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        recording.calls.setdefault(kinds[module], pending.pop(module))

    kinds = {module: _kind(module) for module in model.modules()}
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in kinds]
    handles += [module.register_forward_hook(behind) for module in kinds]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def has_own_functions(value: Tensor) -> bool:
    """Whether a custom `autograd.Function` is in the graph of a value: only those can lack terms."""
    own = torch.autograd.function.BackwardCFunction
    return any(isinstance(node, own) or "Cpp" in type(node).__name__ for node in graph_nodes(value))


def _widened(value: Any) -> Any:
    """A copy outside of any graph, in nested tuples, lists and dictionaries: half precision in float32."""
    if isinstance(value, Tensor):
        plain = value.is_floating_point() and not is_traceable_wrapper_subclass(value)  # quantised weights stay
        return value.detach().to(torch.promote_types(value.dtype, torch.float32)) if plain else value.detach()
    if isinstance(value, tuple | list):
        return type(value)(map(_widened, value))
    return {name: _widened(x) for name, x in value.items()} if type(value) is dict else value


def _floats(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in nested tuples, lists and dictionaries (a model's output is one)."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _floats(part)
