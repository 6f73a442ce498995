"""The app, running as a user starts it, and a browser for it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPACE = ROOT / "spaces" / "live-adaptation"
PATIENCE = 150
"""Seconds that a start may take on a busy machine."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_app(work: Path, command: list[str] | None = None, **environment: str) -> Iterator[str]:
    """The address of the app, started as a process of its own; `work` is for its log and its files."""
    port = free_port()
    env = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(work / "files"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    log = work / "app.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command or [sys.executable, "app.py"], cwd=SPACE, env=env, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(20)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/gradio_api/info", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the app did not start ({process.poll()}):\n{log.read_text()[-3000:]}")


def chromium() -> str:
    """The path of Chromium; the test skips where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine; install Debian's package chromium")
    return path
