"""Memory plans: which one is chosen, what they keep, and that they never change a number."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import WORLD, conventions_config, conventions_model, largest_difference
from tiny_models import lora_model, random_batch

from hf_mass.core import trees
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import weighted_gradient
from hf_mass.core.memory import FAST, LEAN, MemoryPlan, choose_plan
from hf_mass.core.optimizers import SGD
from hf_mass.core.token_loss import TokenLoss
from hf_mass.errors import ConfigError, ModelWarning
from hf_mass.lm.binding import BoundLora
from hf_mass.lm.device_memory import container_memory, free_bytes, graph_bytes, training_plan

MIB = 2**20


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_everything_at_once_where_it_fits() -> None:
    plan = choose_plan("auto", rows=12, row_bytes=10 * MIB, tree_bytes=MIB, free_bytes=1000 * MIB)
    assert not plan.checkpoint and plan.rows(12, False) == 12 and plan.keep_row_gradients
    assert plan.reason == "fast: 12 rows of 10 MiB each, 1,000 MiB free"


def test_fewer_rows_at_a_time_before_anything_is_recomputed() -> None:
    plan = choose_plan("auto", rows=12, row_bytes=10 * MIB, tree_bytes=MIB, free_bytes=150 * MIB)
    assert not plan.checkpoint and 4 <= plan.rows(12, False) < 12
    assert "rows at a time" in plan.reason


def test_a_second_order_pass_over_one_row_must_fit_too() -> None:
    assert not choose_plan("auto", 1, 100 * MIB, MIB, 300 * MIB).checkpoint
    assert choose_plan("auto", 1, 100 * MIB, MIB, 300 * MIB, second_order=True).checkpoint
    assert not choose_plan("auto", 1, 100 * MIB, MIB, 1000 * MIB, second_order=True).checkpoint


def test_layer_by_layer_where_little_is_free() -> None:
    plan = choose_plan("auto", rows=12, row_bytes=10 * MIB, tree_bytes=MIB, free_bytes=30 * MIB)
    assert plan.checkpoint and plan.rows(12, False) < 12 and plan.reason.startswith("lean")
    assert not plan.keep_row_gradients  # 12 MiB of 18


@given(
    rows=st.integers(1, 200),
    row_bytes=st.integers(1, 10**9),
    tree_bytes=st.integers(1, 10**9),
    free=st.integers(0, 10**12),
    microbatch=st.none() | st.integers(1, 50),
)
def test_auto_stays_within_the_free_memory(
    rows: int, row_bytes: int, tree_bytes: int, free: int, microbatch: int | None
) -> None:
    plan = choose_plan("auto", rows, row_bytes, tree_bytes, free, microbatch)
    assert plan.rows(rows, False) >= 1 and plan.rows(rows, True) <= -(-rows // 6)
    if microbatch:
        assert plan.rows(rows, False) == min(microbatch, rows)
    if not plan.checkpoint:
        taken = plan.rows(rows, False) if plan.microbatch else rows
        assert min(taken, rows) * (row_bytes + 2 * tree_bytes) + rows * tree_bytes <= free


def test_a_preference_is_taken_at_its_word() -> None:
    for free in (0, 10**12):
        assert not choose_plan("fast", 12, MIB, MIB, free).checkpoint
        assert choose_plan("lean", 12, MIB, MIB, free).checkpoint
    assert choose_plan("lean", 12, 4 * MIB, MIB, 0).keep_row_gradients
    assert not choose_plan("lean", 12, 4 * MIB - 4, MIB, 0).keep_row_gradients
    with pytest.raises(ConfigError, match=r"inner_memory is 'small'; choose one of \['auto', 'fast', 'lean'\]"):
        choose_plan("small", 12, MIB, MIB, 0)


@pytest.mark.parametrize(
    ("plan", "first", "second"),
    [(FAST, 12, 2), (LEAN, 3, 1), (MemoryPlan(microbatch=1), 1, 1), (MemoryPlan(True, microbatch=5), 5, 1)],
)
def test_rows_of_a_pass(plan: MemoryPlan, first: int, second: int) -> None:
    assert (plan.rows(12, False), plan.rows(12, True)) == (first, second)
    assert (plan.rows(1, False), plan.rows(1, True)) == (1, 1)


# -- measuring ---------------------------------------------------------------------------------------------------------


def token_loss(layers: int, memory: MemoryPlan = FAST, length: int = 24) -> tuple[TokenLoss, BoundLora]:
    model = lora_model("llama", torch.float32, layers=layers, hidden=32)
    batch = random_batch([0] * 8, torch.Generator().manual_seed(0), shortest=length, longest=length)
    lora = BoundLora(model, "inner")
    return TokenLoss(model, lora.function, batch, memory=memory), lora


def saved_bytes(loss: TokenLoss, lora: BoundLora) -> int:
    """The most that autograd holds for a backward pass at any one time, in storages of its own."""
    held: dict[int, list[int]] = {}
    most = 0

    class Handle:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            nonlocal most
            held.setdefault(self.key, [tensor.untyped_storage().nbytes(), 0])[1] += 1
            most = max(most, sum(size for size, _ in held.values()))

        def __del__(self) -> None:
            held[self.key][1] -= 1
            if not held[self.key][1]:
                del held[self.key]

    with lora.inactive(), torch.autograd.graph.saved_tensors_hooks(Handle, lambda handle: handle.tensor):
        weighted_gradient(loss, lora.start(), torch.ones(8))
    return most


def test_lean_keeps_one_layer_and_the_inputs_of_the_others() -> None:
    deep, shallow = (saved_bytes(*token_loss(layers, LEAN)) for layers in (8, 2))
    per_layer_fast = (saved_bytes(*token_loss(8)) - saved_bytes(*token_loss(2))) / 6
    inputs = 3 * 24 * 32 * 4  # rows of a pass, tokens, features, bytes
    # Rotary angles and the mask are given to each layer; each is one storage, whatever the number of layers.
    assert (deep - shallow) / 6 < 2 * inputs < per_layer_fast / 10


def test_the_estimate_is_what_a_pass_keeps() -> None:
    loss, lora = token_loss(2)
    with lora.inactive():
        estimate = graph_bytes(loss, lora.start()).row(24) * 8
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in loss.model.parameters()}
    measured = saved_bytes(loss, lora)
    assert 0.5 * (measured - sum(own.values())) < estimate < 1.5 * measured


@pytest.mark.parametrize(
    ("free", "enough", "plan"),
    [
        (2**40, 2**31, (False, 8)),  # all eight rows
        (2**40, 1, (False, 1)),  # one after another, as each is more than enough for a pass
        (2**16, 2**31, (True, 1)),  # none fits
    ],
)
def test_plain_training_takes_what_is_free(
    free: int, enough: int, plan: tuple[bool, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_mass.lm.device_memory.free_bytes", lambda device: free)
    monkeypatch.setattr("hf_mass.lm.device_memory.TRAINING_BYTES", enough)
    loss, lora = token_loss(2)
    with lora.inactive():
        chosen = training_plan(loss, lora.start())
    assert (chosen.checkpoint, chosen.microbatch) == plan


def test_free_memory_of_this_machine() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("second_order", [False, True])
def test_what_grows_with_the_square_of_the_length(second_order: bool) -> None:
    """Eager attention keeps a softmax [heads, S, S] of each layer, and so does the math kernel."""
    loss, lora = token_loss(2)
    with lora.inactive():
        fused = graph_bytes(loss, lora.start(), second_order)
        loss.model.get_base_model().set_attn_implementation("eager")
        eager = graph_bytes(loss, lora.start(), second_order)
    assert (fused.per_pair > 0) == second_order
    heads = loss.model.config.num_attention_heads
    assert 1 <= eager.per_pair / (2 * heads * 4) < 6  # float32, two layers; masks and scores may be kept beside it
    assert eager.row(2000) > 4 * eager.row(500)


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/", {"memory.max": "max", "memory.current": "5"}, []),
        ("0::/", {"memory.max": "100", "memory.current": "60", "memory.stat": "anon 3\ninactive_file 20\n"}, [60]),
        (
            "0::/a/b",  # the limit of a group above counts too
            {"a/memory.max": "90", "a/memory.current": "50", "a/b/memory.max": "max", "a/b/memory.current": "40"},
            [40],
        ),
        (
            "3:cpu:/x\n4:memory:/host/path\n0::/",  # v1, in a container that sees its own group as the root
            {"memory/memory.limit_in_bytes": "70", "memory/memory.usage_in_bytes": "80"},
            [0],
        ),
        ("4:cpu,memory:/g", {"memory/g/memory.limit_in_bytes": "9", "memory/g/memory.usage_in_bytes": "2"}, [7]),
    ],
)
def test_the_limits_of_a_container(groups: str, files: dict[str, str], left: list[int], tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(groups + "\n")
    for name, text in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        if not (file.parent / "memory.stat").exists():
            (file.parent / "memory.stat").write_text("inactive_file 0\n")
    assert list(container_memory(tmp_path / "cgroup", tmp_path / "fs")) == left


def test_no_control_groups(tmp_path: Path) -> None:
    assert list(container_memory(tmp_path / "none", tmp_path)) == []


def test_lean_with_further_parameters_says_what_it_takes() -> None:
    loss, lora = token_loss(2, LEAN)
    also = [next(p.requires_grad_() for name, p in loss.model.named_parameters() if "lora_A" in name)]
    start = trees.tree_map(torch.clone, lora.start())
    with lora.inactive(), pytest.warns(ModelWarning, match="keeps the whole graph"):
        loss.curvature(start, torch.arange(2), torch.ones(2), start, also)


def test_the_adapter_says_what_it_chose(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    mass = conventions_model(conventions_config(samples=3, inner_steps=2, inner_learning_rate=0.5))
    tasks = WORLD.tasks("train", 2, seed=0)
    samples = mass.generate_auxiliary(tasks)
    with caplog.at_level(logging.INFO, logger="hf_mass"):
        fast = mass.adapt(tasks, weigh_by="demonstrations", samples=samples)
    assert mass.adapter.memory is not None and not mass.adapter.memory.checkpoint
    assert "Inner loop: fast:" in caplog.text
    monkeypatch.setattr("hf_mass.methods.inner.free_bytes", lambda device: 1000)
    with caplog.at_level(logging.INFO, logger="hf_mass"):
        lean = mass.adapt(tasks, weigh_by="demonstrations", samples=samples)
    assert mass.adapter.memory.checkpoint and "Inner loop: lean:" in caplog.text
    for one, other in zip(fast, lean, strict=True):
        assert one.adapted is not None and other.adapted is not None
        assert largest_difference(other.adapted, one.adapted) < 1e-4


def test_a_loop_without_row_gradients_can_be_reweighted() -> None:
    loss, lora = token_loss(2, MemoryPlan(keep_row_gradients=False))
    with lora.inactive():
        loop = InnerLoop(2, SGD(0.1))
        trajectory = loop.run(loss, lora.start(), torch.rand(8))
        assert trajectory.first is None
        weights = torch.rand(8)
        found, expected = trajectory.reweighted(weights), loop.run(loss, lora.start(), weights)
    assert all(torch.equal(found.adapted[name], leaf) for name, leaf in expected.adapted.items())
    assert trees.num_tasks(found.adapted) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps what was freed")
def test_memory_that_was_freed_is_handed_back() -> None:
    """Pieces below glibc's threshold lie in its heap; one that stays on top keeps those below it from going back."""
    code = """
import psutil, torch
from hf_mass.lm.device_memory import hand_back
held = lambda: psutil.Process().memory_info().rss / 2**20
pieces = [torch.ones(2**14) for _ in range(4000)]  # 64 KiB each
full, last = held(), pieces[-1]
del pieces
before = held()
hand_back(torch.device("cpu"))
assert full - before < 20 and full - held() > 200, (full, before, held())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
