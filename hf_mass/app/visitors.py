"""What belongs to one visitor until they leave: the sign that stops their adaptation, and the files made for them."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _Session:
    stop: threading.Event = field(default_factory=threading.Event)
    files: set[Path] = field(default_factory=set)
    folder: Path | None = None


class Visitors:
    """Visitors by the key that Gradio gives each page.

    Args:
        root: Where their files are written; each gets a folder of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def _of(self, key: str) -> _Session:
        with self._lock:
            return self._open.setdefault(key, _Session())

    def begin(self, key: str) -> threading.Event:
        """A new sign for a new adaptation; an earlier one that still goes on is stopped."""
        session = self._of(key)
        session.stop.set()
        session.stop = threading.Event()
        return session.stop

    def stop(self, key: str) -> None:
        """Ask the visitor's adaptation to end."""
        self._of(key).stop.set()

    def keep(self, key: str, path: Path) -> None:
        """Note a file or folder that goes when the visitor does."""
        self._of(key).files.add(path)

    def folder(self, key: str) -> Path:
        """The visitor's own folder. Its name is not made of the key, which comes from outside and could be any path."""
        session = self._of(key)
        if session.folder is None:
            self.root.mkdir(parents=True, exist_ok=True)
            session.folder = Path(tempfile.mkdtemp(dir=self.root))
            session.files.add(session.folder)
        return session.folder

    def settle(self, key: str, folder: Path) -> None:
        """Delete a visitor's folder if they left while it was filled, so that `close` came too early for it."""
        with self._lock:
            session = self._open.get(key)
        if session is None or session.folder != folder:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self, key: str) -> None:
        """The visitor has left: stop what goes on, and delete what was made for them."""
        with self._lock:
            session = self._open.pop(key, None)
        if session is None:
            return
        session.stop.set()
        for path in session.files:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
                if path.parent != self.root and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()  # Gradio puts every upload into a folder of its own
