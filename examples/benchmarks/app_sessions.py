"""Thirty visitors of the app at once, some of whom vanish midway: who gets what, what is left over, what memory grows.

    python -m benchmarks.app_sessions --sessions 30 --rounds 3

The app runs as a process of its own with a small model that ships. A third of the visitors call its API by
gradio_client; the others do what a page does: join the queue, watch, and download the adapter. Half of these vanish
midway, every other one without having told Gradio that it is there: nothing tells that it is gone. Every visitor
has a problem of their own, which is adapted to here as well: an answer or an adapter of another's is found out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client
from safetensors.torch import load

import hf_mass
from benchmarks.campaigns import campaign_arguments, counts, report
from benchmarks.common import MEBIBYTE, Table, say
from hf_mass.lm.fingerprint import weights_digest
from hf_mass.methods.registry import make_method
from hf_mass.tasks.problems import read_problem

MODEL, KEEP = "strings-base", 20.0
SMALL: dict[str, Any] = {"max_examples": 6, "num_train_epochs": 1}
PATIENCE = 300.0
"""Seconds that a visitor waits."""


class App:
    """The app as a process of its own.

    Args:
        folder: For its files and its log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[App]:
        """The app, once it answers."""
        code = f"from hf_mass.app.app import launch; launch({MODEL!r}, port={self.port}, keep_files={KEEP})"
        settings = {"GRADIO_TEMP_DIR": str(self.folder / "files"), "GRADIO_ANALYTICS_ENABLED": "False"}
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], env={**os.environ, **settings}, stdout=log, stderr=log
            )
            try:
                end = time.monotonic() + PATIENCE
                while time.monotonic() < end:
                    with suppress(OSError):
                        urllib.request.urlopen(f"{self.address}/gradio_api/info", timeout=2).close()
                        break
                    time.sleep(0.2)
                self.config = httpx.get(f"{self.address}/config", timeout=60).json()
                yield self
            finally:
                self.process.terminate()
                self.process.wait(20)

    @property
    def memory(self) -> float:
        """MiB that it holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / MEBIBYTE for line in lines if line.startswith("VmRSS:"))

    def files(self) -> list[Path]:
        """What it keeps for visitors."""
        return [path for path in (self.folder / "files").rglob("*") if path.is_file()]

    def event(self, name: str) -> dict[str, Any]:
        """What the page calls by a name: its number "id", its "inputs" and "outputs"."""
        return next(each for each in self.config["dependencies"] if each["api_name"] == name)

    def initial(self, number: int) -> Any:
        """What an element of the page holds when it is opened."""
        return next(each["props"].get("value") for each in self.config["components"] if each["id"] == number)

    def element(self, name: str) -> int:
        """The number of an element of the page."""
        return next(each["id"] for each in self.config["components"] if each["props"].get("elem_id") == name)


def problem_of(number: int, seed: int) -> str:
    """The problem of one visitor: words of their own, and one of two rules."""
    draw = random.Random(f"{seed} {number}")
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 6))) for _ in range(5)]
    rule = (lambda word: word[::-1]) if draw.random() < 0.5 else (lambda word: word.upper())
    return "\n".join([*(f"{word} -> {rule(word)}" for word in words[:4]), words[4]])


@cache
def model() -> hf_mass.LanguageModel:
    """The model, here."""
    return hf_mass.load(MODEL)


def expected(text: str) -> tuple[str, str | None]:
    """(digest of the adapter, answer) for a problem, adapted to here."""
    solution = hf_mass.solve(model(), read_problem(text, "pasted"), make_method("ttt", SMALL))
    with tempfile.TemporaryDirectory() as folder:
        next(iter(solution.distinct())).save(Path(folder) / "a")
        weights = (Path(folder) / "a" / "adapter_model.safetensors").read_bytes()
    return weights_digest(load(weights)), solution.after[0].text


class Page:
    """What the page of a visitor does.

    Args:
        app: The app.
        key: The visitor's key.
        alive: Whether it tells Gradio that it is there.
    """

    def __init__(self, app: App, key: str, alive: bool) -> None:
        self.app, self.key = app, key
        self.client = httpx.Client(base_url=f"{app.address}/gradio_api", timeout=PATIENCE)
        self.leaving = threading.Event()
        if alive:
            threading.Thread(target=self._stay, daemon=True).start()

    def _stay(self) -> None:
        with (
            suppress(httpx.HTTPError),
            httpx.stream("GET", f"{self.app.address}/gradio_api/heartbeat/{self.key}", timeout=PATIENCE) as stream,
        ):
            for _ in stream.iter_lines():
                if self.leaving.is_set():
                    return

    def call(self, name: str, values: dict[int, Any], until: float | None = None) -> dict[str, Any] | None:
        """The last message of an event; None if the queue is full, or the visitor vanishes `until` then."""
        event = self.app.event(name)
        data = [values.get(each, self.app.initial(each)) for each in event["inputs"]]
        body = {"fn_index": event["id"], "data": data, "session_hash": self.key}
        if self.client.post("/queue/join", json=body).status_code == 503:
            return None
        begun, last = time.monotonic(), None
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.key}) as stream:
            for line in stream.iter_lines():
                if until is not None and time.monotonic() - begun > until:
                    return None
                if line.startswith("data:") and (message := json.loads(line.removeprefix("data:"))):
                    last = message
                    if message["msg"] == "process_completed":
                        return message
        return last

    def leave(self) -> None:
        """Close everything, without a word."""
        self.leaving.set()
        self.client.close()


def patient(call: Any) -> Any:
    """What a call gives, made again while the queue is full."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (found := call()) is not None:
            return found
        time.sleep(1)
    raise TimeoutError("nobody had time for the visitor")


def visit(app: App, number: int, seed: int, round: int) -> str:
    """What came of one visit."""
    text = problem_of(number, seed)
    if number % 3 == 0:
        return _by_client(app, text)
    vanishing, alive = number % 6 in (1, 2), number % 2 == 0
    page = Page(app, f"visitor-{round}-{number}", alive=alive or not vanishing)
    shown_by = app.event("show_text")
    element, chosen, *_ = shown_by["inputs"]
    shown = patient(lambda: page.call("show_text", {element: text, chosen: MODEL}))
    if not shown["success"]:
        return "the problem was not shown"
    updates = zip(shown_by["outputs"], shown["output"]["data"], strict=True)
    values = {n: update["value"] for n, update in updates if isinstance(update, dict) and "value" in update}
    values |= {chosen: MODEL, app.element("method"): "ttt", app.element("setting-weigh_by"): "automatic"}
    values |= {app.element("setting-vote"): True, app.element("setting-guard"): False, app.element("setting-seed"): 0}
    values |= {app.element(f"setting-{name}"): value for name, value in SMALL.items()}
    if vanishing:
        page.call("adapt", values, until=random.Random(number).uniform(0.5, 4))
        page.leave()
        return f"vanished {'with' if alive else 'without'} a sign"
    last = patient(lambda: page.call("adapt", values))
    if "data" not in last.get("output", {}):
        return f"refused: {last!s:.200}"
    status, _, _, _, download, *_ = last["output"]["data"]
    if not download.get("visible"):
        return f"no adapter: {status:.200}"
    packed = page.client.get(download["value"]["url"])
    page.leave()
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        digest = weights_digest(load(archive.read("adapter_model.safetensors")))
    return "a page got its own adapter" if digest == expected_of[text][0] else "A PAGE GOT ANOTHER ADAPTER"


def _by_client(app: App, text: str) -> str:
    def call() -> Any:
        try:
            return Client(app.address, verbose=False, httpx_kwargs={"timeout": PATIENCE}).predict(
                text, "ttt", MODEL, SMALL, api_name="/solve"
            )
        except Exception as error:
            if "full" in str(error).lower():
                return None
            raise

    found = patient(call)
    right = found["after"][0]["answer"] == expected_of[text][1]
    return "a client got its own answer" if right else "A CLIENT GOT ANOTHER ANSWER"


expected_of: dict[str, tuple[str, str | None]] = {}
"""Problem → what it comes to."""


def campaign(app: App, sessions: int, rounds: int, seed: int) -> tuple[Counter[str], list[dict[str, Any]]]:
    """(what came of each visit, memory and files after each round)."""
    found, rows = Counter[str](), [{"round": "before", "memory": app.memory, "files": len(app.files())}]
    for number in range(rounds):
        for text in {problem_of(n, seed) for n in range(sessions)} - set(expected_of):
            expected_of[text] = expected(text)
        with ThreadPoolExecutor(sessions) as pool:
            visits = [pool.submit(visit, app, n, seed, number) for n in range(sessions)]
            for each in visits:
                try:
                    found[each.result()] += 1
                except Exception as error:  # noqa: BLE001 - it is counted
                    found[f"{type(error).__name__}: {error!s:.150}"] += 1
        at_end, begun = len(app.files()), time.monotonic()
        while app.files() and time.monotonic() - begun < PATIENCE:
            time.sleep(0.5)
        rows.append(
            {
                "round": number + 1,
                "memory": app.memory,
                "files": at_end,
                "left": len(app.files()),
                "gone": time.monotonic() - begun,
            }
        )
        say(f"{rows[-1]} {dict(found)}")
    return found, rows


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    campaign_arguments(
        parser, "app_sessions", sessions=(30, "visitors at once"), rounds=(3, "how often they come, one after another")
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, App(Path(folder)).running() as app:
        found, rows = campaign(app, arguments.sessions, arguments.rounds, arguments.seed)
    columns = {
        "round": "round",
        "memory": "memory of the app (MiB)",
        "files": "files at its end",
        "left": "left later",
        "gone": "seconds until they were gone",
    }
    note = f"Files of a visitor who is gone without a word are kept for {KEEP:g} s here, and for 480 s by default."
    tables = {"visits": counts("What came of the visits", found), "rounds": Table("Rounds", columns, rows, [note])}
    report(arguments, "Visitors of the app at once", tables)


if __name__ == "__main__":
    main()
