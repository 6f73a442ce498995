"""What belongs to one visitor until they leave: the sign that stops their adaptation, and the files made for them."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEEP = 480.0
"""Seconds that a visitor may be silent: an open page says every minute that it is there."""
SWEEP = 60.0
"""Seconds between two looks for visitors who are gone."""

Offer = tuple[Sequence[str], Mapping[str, Any]]
"""Methods, and values by setting."""
NEW: Offer = ((), {})
"""What was offered to a visitor who is new."""


@dataclass
class _Session:
    stop: threading.Event = field(default_factory=threading.Event)
    files: set[Path] = field(default_factory=set)
    folder: Path | None = None
    seen: float = field(default_factory=time.monotonic)
    busy: int = 0
    offered: Offer = NEW
    adapted: Any = None
    chosen: tuple[Any, ...] = ()
    source: int | None = None
    archive: Path | None = None
    word: Any = None


class Visitors:
    """Visitors by the key that Gradio gives each page.

    Gradio tells of a page that was closed. Of one that lost its network, or of a program that keeps no connection, it
    tells nothing: whoever was silent for a while, and for whom nothing goes on, counts as gone.

    Args:
        root: Where their files are written; each gets a folder of its own.
        keep: Seconds of silence after which a visitor is gone.
    """

    def __init__(self, root: Path, keep: float = KEEP) -> None:
        self.root, self.silence = root, keep
        self._open: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def _of(self, key: str) -> _Session:
        with self._lock:
            session = self._open.setdefault(key, _Session())
            session.seen = time.monotonic()
            return session

    def here(self, key: str) -> None:
        """The visitor's page is open."""
        with self._lock:
            if (session := self._open.get(key)) is not None:
                session.seen = time.monotonic()

    def sweep(self) -> None:
        """Close the visitors who have been silent for too long."""
        with self._lock:
            oldest = time.monotonic() - self.silence
            gone = [key for key, session in self._open.items() if not session.busy and session.seen < oldest]
        for key in gone:
            self.close(key)

    def keep_swept(self, every: float = SWEEP) -> None:
        """From now on `sweep` at intervals, for as long as the process lives."""

        def work() -> None:
            while True:
                time.sleep(every)
                self.sweep()

        threading.Thread(target=work, daemon=True, name="sweep").start()

    def begin(self, key: str, problem: Any = None) -> threading.Event:
        """A new sign for a new adaptation, to `problem`; an earlier one that still goes on is stopped."""
        session = self._of(key)
        session.stop.set()
        session.stop, session.adapted, session.archive = threading.Event(), problem, None
        return session.stop

    def choose(self, key: str, problem: Any) -> None:
        """Note which problem the visitor has chosen, whether or not it is adapted to."""
        self._of(key).chosen = (problem,)

    def read_from(self, key: str, source: int) -> None:
        """Note which of the page's sources its problem is read from."""
        self._of(key).source = source

    def source(self, key: str) -> int | None:
        """The source that the page's problem was read from last; None if it has read none."""
        return self._of(key).source

    def earlier(self, key: str) -> Any:
        """The problem whose results the visitor's page shows, if another one has been chosen since; else None."""
        with self._lock:
            session = self._open.get(key)
        return session.adapted if session and session.chosen not in ((), (session.adapted,)) else None

    def offer(self, key: str, methods: Sequence[str], values: Mapping[str, Any]) -> Offer:
        """Note the methods and the settings that the visitor is offered; returns those of before."""
        session = self._of(key)
        before, session.offered = session.offered, (methods, values)
        return before

    def hand_out(self, key: str, archive: Path) -> None:
        """Note the file that the visitor may download."""
        self._of(key).archive = archive

    def has_archive(self, key: str) -> bool:
        """Whether the file that the visitor may download is still there."""
        with self._lock:
            session = self._open.get(key)
        return session is not None and session.archive is not None and session.archive.is_file()

    def stop(self, key: str) -> bool:
        """Ask the visitor's adaptation to end; returns whether there is one."""
        with self._lock:
            session = self._open.get(key)
        if session is None or not session.busy:
            return False
        session.stop.set()
        return True

    def say(self, key: str, word: Any) -> None:
        """Note what the visitor's page is told of its adaptation."""
        with self._lock:
            if (session := self._open.get(key)) is not None:
                session.word = word

    def last_word(self, key: str, patience: float = 60.0) -> Any:
        """What the page was told last, once what was asked to end has ended.

        None where that takes longer than `patience`, in seconds, or the visitor has begun anew.
        """
        end = time.monotonic() + patience
        with self._lock:
            session = self._open.get(key)
        if session is None:
            return None
        stop = session.stop
        while session.busy and session.stop is stop and time.monotonic() < end:
            time.sleep(0.02)
        return session.word if not session.busy and session.stop is stop else None

    def keep(self, key: str, path: Path) -> None:
        """Note a file or folder that goes when the visitor does."""
        self._of(key).files.add(path)

    def folder(self, key: str) -> Path:
        """The visitor's own folder, for what goes on until `settle`.

        Its name is not made of the key, which comes from outside and could be any path.
        """
        session = self._of(key)
        if session.folder is None or not session.folder.is_dir():  # which others may have tidied away
            self.root.mkdir(parents=True, exist_ok=True)
            session.folder = Path(tempfile.mkdtemp(dir=self.root))
            session.files.add(session.folder)
        session.busy += 1
        return session.folder

    def settle(self, key: str, folder: Path) -> None:
        """Delete a visitor's folder if they left while it was filled, so that `close` came too early for it."""
        with self._lock:
            session = self._open.get(key)
            if session is not None and session.folder == folder:
                session.busy, session.seen = session.busy - 1, time.monotonic()
                return
        shutil.rmtree(folder, ignore_errors=True)

    def close(self, key: str) -> None:
        """The visitor has left: stop what goes on, and delete what was made for them."""
        with self._lock:
            session = self._open.pop(key, None)
            others = [path for other in self._open.values() for path in other.files]
        if session is None:
            return
        session.stop.set()
        for path in session.files.difference(others):  # Gradio keeps one file for two uploads that are the same
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
                if path.parent != self.root and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()  # Gradio puts every upload into a folder of its own
