"""How much memory the passes may take: everything at once, or one layer of a few rows at a time.

Two plans, the same numbers. `FAST` keeps the activations of all rows for the backward pass, as plain training does.
`LEAN` keeps each layer's input only and recomputes the rest one layer at a time, a quarter of the rows in one pass;
its second-order passes do so too (`hf_mass.core.layer_sweep`). `choose_plan` decides between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hf_mass.errors import ConfigError

PREFERENCES = ("auto", "fast", "lean")

# A second-order pass keeps four to five times what a first-order one does (a layer and its tangents three times what a
# layer does), so it takes fewer rows: memory then does not grow with K.
SECOND_ORDER_PARTS = 6
LEAN_PARTS = 4
LEAN_SECOND_ORDER_PARTS = 12
SECOND_ORDER_COST = 5
FULL_PASS_TOKENS = 256
# Share of the free memory that `choose_plan` lets a pass take: its estimate knows nothing of fragmentation.
HEADROOM = 0.6
# A row's lean pass takes a small part of what its whole graph does; this much less is safe to count on.
LEAN_SHARE = 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the passes of an inner loop may keep.

    Args:
        checkpoint: Keep layer inputs only, and redo one layer at a time.
        keep_row_gradients: Keep ∇ℓ_r(θ_0) of every row (R trees of parameters) for the attributions. Else one forward
            pass with tangents takes their place.
        microbatch: Rows of a first-order pass; None for all, or with `checkpoint` for a quarter of them.
        reason: Why this plan was chosen.
    """

    checkpoint: bool = False
    keep_row_gradients: bool = True
    microbatch: int | None = None
    reason: str = "set by hand"

    def rows(self, total: int, second_order: bool, length: int = FULL_PASS_TOKENS) -> int:
        """Rows of one pass over `total` rows of `length` tokens (at least 1)."""
        first = self.microbatch or (-(-total // LEAN_PARTS) if self.checkpoint else total)
        parts = LEAN_SECOND_ORDER_PARTS if self.checkpoint else SECOND_ORDER_PARTS
        # Passes of few tokens are all overhead, and small whatever they keep.
        rows = min(first, max(-(-total // parts), FULL_PASS_TOKENS // length)) if second_order else first
        return max(1, min(rows, total))


FAST = MemoryPlan()
LEAN = MemoryPlan(checkpoint=True)


def choose_plan(
    preference: str,
    rows: int,
    row_bytes: int,
    tree_bytes: int,
    free_bytes: int,
    microbatch: int | None = None,
    pass_bytes: int | None = None,
    second_order: bool = False,
    sweeps: Callable[[], bool] = lambda: True,
) -> MemoryPlan:
    """The plan for a preference.

    "fast" and "lean" are taken at their word; "auto" is fast where the graph of all rows and their gradients fit in
    the free memory, else fast in microbatches where a row's graph fits several times, else lean. Lean keeps the rows'
    gradients as long as they take less than a quarter of what the graph of the same rows would. Where layers carry no
    tangents, "auto" takes what does without: the rows' gradients, or fast passes.

    Args:
        preference: "auto", "fast" or "lean".
        rows: R.
        row_bytes: What the graph of one row's first-order pass keeps.
        tree_bytes: One task's parameters.
        free_bytes: Free memory of the device.
        microbatch: Rows of one pass where the user says so; never overruled.
        pass_bytes: The graph of a pass beyond which larger passes gain nothing, as on a CPU; None where they do.
        second_order: Whether there will be second-order passes (K > 1).
        sweeps: Asked, where it matters, whether passes with tangents go through the model layer by layer.

    Raises:
        ConfigError: If the preference is unknown.
    """
    enough = rows if pass_bytes is None else max(1, min(rows, pass_bytes // max(1, row_bytes)))
    rows_at_once = microbatch or enough
    if preference == "fast":
        return replace(FAST, microbatch=rows_at_once, reason='memory="fast"')
    if preference == "lean":
        return replace(
            LEAN, microbatch=microbatch, keep_row_gradients=4 * tree_bytes <= row_bytes, reason='memory="lean"'
        )
    if preference != "auto":
        raise ConfigError(f"inner_memory is {preference!r}; choose one of {list(PREFERENCES)}.")
    gradients, budget = rows * tree_bytes, int(HEADROOM * free_bytes)
    # While a microbatch's graph stands, its rows have copies of the parameters and of their gradients besides.
    capacity = (budget - gradients) // (row_bytes + 2 * tree_bytes)
    sizes = f"{rows} rows of {_megabytes(row_bytes)} each, {_megabytes(free_bytes)} free"
    # A second-order pass of one row takes as much as SECOND_ORDER_COST first-order ones, however few the rows are.
    least = SECOND_ORDER_COST * MemoryPlan(microbatch=rows_at_once).rows(rows, True) if second_order else 1
    if capacity >= max(rows_at_once, least):
        return replace(FAST, microbatch=rows_at_once, reason=f"fast: {sizes}")
    if microbatch is None and capacity >= max(4, least):
        return replace(FAST, microbatch=int(capacity), reason=f"fast, {int(capacity)} rows at a time: {sizes}")
    keep_gradients = 4 * tree_bytes <= row_bytes and 4 * gradients <= budget
    if (second_order or not keep_gradients) and not sweeps():
        keep_gradients = True
        if second_order:
            return replace(FAST, microbatch=microbatch or max(1, int(capacity)), reason=f"fast, no tangents: {sizes}")
    capacity = max(1, min(rows, budget // max(1, row_bytes // LEAN_SHARE)))
    return replace(LEAN, microbatch=microbatch or capacity, keep_row_gradients=keep_gradients, reason=f"lean: {sizes}")


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
