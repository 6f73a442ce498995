"""A limit on how long somebody's function may take, where the platform has a way to end it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TOO_LONG = "it has not returned after"
_SIGNAL = getattr(signal, "SIGVTALRM", None)
"""Not SIGALRM, which verifiers of mathematics use themselves. Windows has none."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Within this context, TimeoutError is raised after so many seconds, if this is the main thread.

    A signal ends loops and regular expressions of Python as well as what waits for a file, a socket or a process. What
    computes may let no other thread run, so a timer of processor time sends it; and a thread where something waits.
    """
    if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    end = time.monotonic() + seconds

    def stop(number: int, frame: FrameType | None) -> None:
        if (left := end - time.monotonic()) > 0:  # other threads compute, too
            signal.setitimer(signal.ITIMER_VIRTUAL, max(left, 0.01))
            return
        raise TimeoutError(f"{TOO_LONG} {seconds:g} s")

    before = signal.signal(_SIGNAL, stop)
    waiting = threading.Timer(seconds + 0.01, signal.pthread_kill, (threading.main_thread().ident, _SIGNAL))
    waiting.daemon = True
    waiting.start()
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.signal(_SIGNAL, signal.SIG_IGN)  # what is on its way must not end the program
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        waiting.cancel()
        waiting.join()
        signal.signal(_SIGNAL, signal.SIG_DFL if before is None else before)
