"""Whether torch's CPU threads help: measured, since where other processes want the cores they cost many times more.

Each product of matrices ends when its last thread does. A thread that has to wait for its core holds up all others, for
milliseconds each time, where the product itself takes a tenth of one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import linear

logger = logging.getLogger(__name__)

WORSE = 1.3
"""How many times as long as with one thread a product must take for a warning."""
BETTER = 0.9
"""The most of one thread's time that several may take to be used where the choice is ours."""


def relative_time() -> float:
    """How long a product takes with torch's CPU threads just now, as a multiple of the time with one.

    Takes a few hundredths of a second, about one second on a busy machine. The number of threads stays as it is.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return 1.0
    seconds = {1: 0.0, threads: 0.0}
    for number in (1, threads) * 4:
        with _threads(number):
            _product()  # threads are begun, and memory is taken
            begun = time.perf_counter()
            for _ in range(3):
                _product()
            seconds[number] += time.perf_counter() - begun
    return seconds[threads] / seconds[1]


def choose_threads(device: str | None) -> str | None:
    """Let torch use one CPU thread, for the whole process, unless several are faster just now.

    Args:
        device: Where a model will be; None for a GPU if there is one.

    Returns:
        What was changed and why, for people; None where nothing was, as for a model on another device.
    """
    on_cpu = not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
    threads = torch.get_num_threads()
    if not on_cpu or threads == 1 or (ratio := relative_time()) <= BETTER:
        return None
    torch.set_num_threads(1)
    return f"1 CPU thread instead of {threads}, which take {ratio:.1f} times as long just now"


def warn_of_threads() -> None:
    """Log a warning where torch's CPU threads slow down what they should speed up. Nothing is changed."""
    if (ratio := relative_time()) > WORSE:
        logger.warning(
            "%d CPU threads take %.1f times as long as one just now: other processes want the cores. Call "
            "torch.set_num_threads(1), or set OMP_NUM_THREADS=1.",
            torch.get_num_threads(),
            ratio,
        )


def _product() -> None:
    linear(torch.ones(64, 1024), torch.ones(1024, 1024))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Within this context torch uses so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
