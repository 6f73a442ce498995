"""Folders that are written as a whole or not at all, whoever is killed, and read as one writer left them.

A writer fills a hidden folder, and commits it by one rename into the target. Only then are its files moved into
place, one by one, the seal last: a JSON file of the folder that lists the digests of the others. Whoever finds a commit
that was not moved to its end moves the rest, so a kill at any point leaves the earlier files or the new ones. The
target itself is never renamed: it may be a mount, hold other files, and be locked.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from hf_mass.errors import CheckpointError
from hf_mass.store.hub_files import FILES
from hf_mass.store.json_files import read_json

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks; digests still tell a mixture there
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
DIGESTS = "files"
"""Under this name a seal lists the digests of the files that were written with it."""
LOCK_SECONDS = 60.0
_WRITING = ".hf_mass-writing-"
_COMMITTED = ".hf_mass-written-"  # the seal's name follows
_CURES = {
    errno.ENOSPC: "Free some space and save again.",
    errno.EDQUOT: "Free some space and save again.",
    errno.EROFS: "It is read-only: choose another folder.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EEXIST: "A file is in the way: remove it, or choose another folder.",
    errno.ENOTDIR: "A file is in the way: remove it, or choose another folder.",
    errno.EISDIR: "A folder is in the way of a file: remove it, or choose another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


# -- writing -----------------------------------------------------------------------------------------------------------


def write_atomically(target: Path, write: Callable[[Path], None], seal: str = "") -> None:
    """Let `write` fill a new folder, whose files then take the place of those in `target`.

    Until all of them are written nothing changes. Other files in `target` (the checkpoints of a run, a README) stay;
    what an earlier seal lists and the new one does not is removed. Several writers may be at work: the last one counts,
    whole. What killed writers left is removed.

    Args:
        target: The folder.
        write: Writes the files into the folder that it is called with.
        seal: The JSON file among them that gets the digests of the others, for `require_sealed`; empty for none.

    Raises:
        CheckpointError: If the files could not be written; the earlier ones are untouched.
    """
    target = target.absolute()
    with writing(target):
        if seal in _MODELS:
            require_no_other_model(target, seal)
        is_new = not target.exists()
        _remove_leftovers(target)
        temporary, mine = _made_temporary(target)
        try:
            write(temporary)
            if seal:
                _add_digests(temporary, seal)
            with _locked(_made(target)):
                _settle(target)
                os.rename(temporary, target / f"{_COMMITTED}{seal}")
                _settle(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _unlock(mine)
            if is_new:
                with suppress(OSError):
                    target.rmdir()  # only if nothing is in it


_MODELS = ("adaptation.json", "mass_config.json")


def require_no_other_model(target: Path, seal: str = "") -> None:
    """Refuses a folder of a model of another kind: files of both would have the same names, and neither be whole.

    Args:
        target: The folder.
        seal: The file that says what is to be saved there; empty for an adapter by itself.

    Raises:
        CheckpointError: If it is one.
    """
    others = [name for name in _MODELS if name != seal and (target / name).is_file()]
    if (target / "config.json").is_file() and any(target.glob("model*.safetensors")):
        others.append("config.json")
    if others:
        raise CheckpointError(
            f"{target} holds another model ({others[0]}), which would be damaged. Choose another folder, or remove it."
        )


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Within this context what keeps a place from being written to is told with what helps.

    Raises:
        CheckpointError: In place of what the system or a library raises.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # tokenizers reports a lack of space or rights as a bare Exception, and torch as a RuntimeError of its writer.
        is_bare = type(error) is Exception and "os error" in str(error)
        is_torch = isinstance(error, RuntimeError) and "inline_container" in str(error)
        if not is_bare and not is_torch and not isinstance(error, OSError | SafetensorError):
            raise
        number = error.errno if isinstance(error, OSError) else None
        cure = _CURES.get(number or 0) or next((_CURES[n] for n in _CURES if f"(os error {n})" in str(error)), None)
        cure = cure or "Make room and rights for it, and save again."
        raise CheckpointError(f"{target} could not be written: {error}. {cure}") from error


def require_writable(folder: str | Path) -> Path:
    """Make a folder that results will be written to, and check that they can be, before any work is done for them.

    Raises:
        CheckpointError: If not; it says why and what helps.
    """
    path = Path(folder)
    with writing(path), tempfile.TemporaryFile(dir=_made(path)):
        return path


def replace_text(path: Path, text: str) -> Path:
    """Write a text file; an existing one is replaced only once the new one is complete.

    Raises:
        CheckpointError: If it cannot be written.
    """
    with writing(path):
        _made(path.parent)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        for left in path.parent.glob(f".{path.name}.*.partial"):
            if not _is_alive(left.name.split(".")[-2]):
                left.unlink(missing_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            return partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # somebody else's
        pass
    return True


def _settle(target: Path) -> None:
    """Move what is committed into its place, the seal last, under the lock. What is done already is not done again."""
    if (committed := _committed(target)) is None:
        return
    name = committed.name.removeprefix(_COMMITTED)
    seal = committed / name if name else None
    files = sorted(file for file in committed.rglob("*") if file.is_file() and file != seal)
    for file in files:
        place = target / file.relative_to(committed)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    if seal is not None and seal.is_file():
        for stale in _listed(target / name) - _listed(seal):
            (target / stale).unlink(missing_ok=True)
        os.replace(seal, target / name)
    shutil.rmtree(committed)


def _committed(target: Path) -> Path | None:
    return next(target.glob(f"{_COMMITTED}*"), None)


def _places(target: Path) -> list[tuple[Path, str]]:
    """Where writers have their hidden folders, and how their names begin: beside the target, or else within it."""
    beside, within = (target.parent, f".{target.name}{_WRITING}"), (target, _WRITING)
    return [within] if os.path.ismount(target) else [beside, within]


def _made_temporary(target: Path) -> tuple[Path, int]:
    """A new hidden folder on the target's file system, with a lock that tells others that its writer is alive."""
    _made(target.parent)
    for place, prefix in _places(target):
        if not place.is_dir() or (not os.access(place, os.W_OK) and place != target):
            continue
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            with suppress(FileNotFoundError):  # another writer took it for a leftover before it was locked
                if (lock := _flock(folder)) is not None:
                    if folder.is_dir():  # else it was taken between being opened and being locked
                        return folder, lock
                    _unlock(lock)
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))


def _remove_leftovers(target: Path) -> None:
    """Remove what writers left that are no longer alive."""
    for place, prefix in _places(target):
        for folder in place.glob(f"{glob.escape(prefix)}*"):
            with suppress(OSError):
                lock = _flock(folder)
                if lock is not None and lock >= 0:  # where there are no locks nobody is known to be dead
                    shutil.rmtree(folder, ignore_errors=True)
                _unlock(lock)


# -- reading -----------------------------------------------------------------------------------------------------------


def settle(target: str | Path) -> None:
    """Wait for a writer that is moving its files into a folder, and finish what a killed one had begun.

    Raises:
        CheckpointError: If it is begun and cannot be finished.
    """
    target = Path(target)
    replaced = target.absolute().with_name(f".{target.absolute().name}-replaced")
    if replaced.is_dir() and not target.exists():  # by an earlier release, which exchanged folders
        with suppress(OSError):
            os.rename(replaced, target)
    if _committed(target) is not None:
        with writing(target), _locked(target):
            _settle(target)


def read_whole(folder: Path, seal: str, read: Callable[[], T]) -> T:
    """What `read` reads from a folder, all of it from one writer.

    Args:
        folder: The folder.
        seal: Its JSON file that may list digests.
        read: Reads it; called again if the folder was written to meanwhile.

    Raises:
        CheckpointError: If a file is not the one that was written with the seal, or it is written to without end.
    """
    for _ in range(10):
        settle(folder)
        if (before := _stamp(folder, seal)) is None:
            continue
        try:
            require_sealed(folder, seal)
            value = read()
        except Exception:
            if _stamp(folder, seal) == before:
                raise
            continue
        if _stamp(folder, seal) == before:
            return value
    raise CheckpointError(f"{folder} was written to again and again while it was read. Load it when that is done.")


def require_sealed(folder: Path, seal: str) -> None:
    """Checks that a folder's files are those that were written with its seal. One without digests is not checked.

    Raises:
        CheckpointError: If one is another, or missing.
    """
    if not (folder / seal).is_file():
        return
    listed = read_json(folder / seal).get(DIGESTS, {})
    names = listed if isinstance(listed, dict) else {"": None}
    for name, digest in names.items():
        if not _is_within(name) or not isinstance(digest, str):
            raise CheckpointError(f"{folder / seal}: {DIGESTS} lists no digests of files. Save or copy it again.")
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            state = "another than was saved" if (folder / name).is_file() else "missing, but was saved"
            raise CheckpointError(
                f"{folder / name} is {state} with {seal}: writing or copying was cut short, or it was changed. Save or "
                f"copy the folder again; if you changed it yourself, remove {DIGESTS!r} from {seal}."
            )


def _stamp(folder: Path, seal: str) -> tuple[int, ...] | None:
    """What changes whenever a writer's files come into a folder; None while they do."""
    try:
        state = (folder / seal).stat()
        stamp: tuple[int, ...] = (state.st_ino, state.st_mtime_ns, state.st_size)
    except OSError:
        stamp = ()
    return stamp if _committed(folder) is None else None  # looked for last: a writer removes it behind the seal


def _add_digests(folder: Path, seal: str) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / seal)
    named = {file.relative_to(folder).as_posix(): file for file in files}
    # Only what is uploaded too, so that a downloaded copy has all that is listed.
    digests = {name: _digest(file) for name, file in named.items() if any(fnmatch(name, p) for p in FILES)}
    text = json.dumps({**read_json(folder / seal), DIGESTS: digests}, indent=2, ensure_ascii=False)
    (folder / seal).write_text(text + "\n", encoding="utf-8")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _listed(seal: Path) -> set[str]:
    try:
        listed = read_json(seal).get(DIGESTS)
    except CheckpointError:
        return set()
    return {name for name in listed if _is_within(name)} if isinstance(listed, dict) else set()


def _is_within(name: str) -> bool:
    """Whether a name from a file names a file below the folder."""
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


# -- locks -------------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within this context nobody else moves files into the folder.

    Where the file system has no such locks nobody waits.

    Raises:
        CheckpointError: If another process keeps it locked.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while (lock := _flock(folder)) is None:
        if time.monotonic() > deadline:
            raise CheckpointError(f"{folder} is being written to by another process. Try again when that has ended.")
        time.sleep(0.01)
    try:
        yield
    finally:
        _unlock(lock)


def _flock(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process; -1 where there are no such locks, None if it is another's."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # or on Windows, where no folder can be opened
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # a network's file system
        os.close(handle)
        return -1
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None and lock >= 0:
        os.close(lock)
