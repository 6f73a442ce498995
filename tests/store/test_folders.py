"""Folders under writers that are killed anywhere, and under several of them at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from folder_writers import NAMES, SEAL, save, save_until_killed
from repository import FIXTURES, ROOT, python_path

from hf_mass.errors import CheckpointError
from hf_mass.store import folders
from hf_mass.store.folders import DIGESTS, read_whole, replace_text, require_sealed, require_writable, write_atomically

# Forking this process, which holds all that the tests before left in it, would take most of the time.
SMALL = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def small_processes() -> Iterator[None]:
    """Children of `SMALL` are forked from a process that has imported `folder_writers` and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(ROOT, FIXTURES))
        SMALL.set_forkserver_preload([save_until_killed.__module__])
        forkserver.ensure_running()
        yield


def load(target: Path) -> set[str]:
    """The texts of all files: one, unless they are a mixture."""

    def read() -> set[str]:
        names = (SEAL, *json.loads((target / SEAL).read_text())[DIGESTS])
        return {json.loads((target / name).read_text())["text"] for name in names}

    return read_whole(target, SEAL, read)


def leftovers(target: Path) -> list[str]:
    return [file.name for file in target.parent.rglob(".*")]


def inside(target: Path) -> set[str]:
    return {file.relative_to(target).as_posix() for file in target.rglob("*")}


def in_child(work: Callable[[], None]) -> int:
    """Do work in a process of its own; its number."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_everywhere(target: Path, setup: Callable[[], None], load: Callable[[], set[str]]) -> list[set[str] | None]:
    """Kill a writer of "new" before each of its changes; what is loaded then, None for nothing to load."""
    found: list[set[str] | None] = []
    for point in range(1, 500):
        setup()
        writer = SMALL.Process(target=save_until_killed, args=(point, target, "new"))
        writer.start()
        writer.join()
        try:
            found.append(load())
        except (CheckpointError, FileNotFoundError):
            found.append(None)
        if writer.exitcode == 0:
            return found
        assert writer.exitcode == -signal.SIGKILL
    raise AssertionError("the writer did not come to its end")


@pytest.mark.usefixtures("small_processes")
def test_a_kill_anywhere_leaves_the_old_or_the_new_among_other_files(tmp_path: Path) -> None:
    target = tmp_path / "run"
    (target / "checkpoint-10").mkdir(parents=True)
    for name in ("README.md", "checkpoint-10/state"):
        (target / name).write_text("kept")

    def setup() -> None:
        save(target, "old")
        assert load(target) == {"old"}
        assert not leftovers(target), "of the killed writer"

    found = killed_everywhere(target, setup, lambda: load(target))
    assert len(found) > 20 and found[0] == {"old"} and found[-1] == {"new"}
    assert all(texts in ({"old"}, {"new"}) for texts in found)
    assert (target / "README.md").read_text() == (target / "checkpoint-10" / "state").read_text() == "kept"


@pytest.mark.usefixtures("small_processes")
def test_a_kill_anywhere_over_a_folder_without_digests(tmp_path: Path) -> None:
    target = tmp_path / "run"

    def setup() -> None:
        save(target, "old")
        (target / SEAL).write_text('{"text": "old"}')

    def texts() -> set[str]:
        return {json.loads((target / name).read_text())["text"] for name in (SEAL, *NAMES)}

    found = killed_everywhere(target, setup, lambda: read_whole(target, SEAL, texts))
    assert found[-1] == {"new"} and all(texts in ({"old"}, {"new"}) for texts in found)


@pytest.mark.usefixtures("small_processes")
def test_a_kill_anywhere_of_the_first_writer_leaves_nothing_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "run"
    found = killed_everywhere(target, lambda: shutil.rmtree(target, ignore_errors=True), lambda: load(target))
    assert not leftovers(target)
    assert found[0] is None and found[-1] == {"new"} and all(texts in (None, {"new"}) for texts in found)


def test_several_writers_and_readers_at_once(tmp_path: Path) -> None:
    target, end = tmp_path / "run", time.monotonic() + 3
    target.mkdir()
    (target / "notes").write_text("kept")
    save(target, "writer 0")

    def write(number: int) -> None:
        while time.monotonic() < end:
            save(target, f"writer {number}")

    def read() -> None:
        while time.monotonic() < end:
            try:
                assert len(load(target)) == 1
            except CheckpointError as error:
                assert "again and again" in str(error)  # refused, no mixture

    children = [in_child(lambda number=number: write(number)) for number in range(3)]  # type: ignore[misc]
    children += [in_child(read) for _ in range(2)]
    assert [status_of(child) for child in children] == [0] * 5
    assert len(load(target)) == 1
    assert inside(target) == {SEAL, "inner", *NAMES, "notes"}


def test_a_folder_that_is_taken_for_a_leftover_while_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, taken = folders._flock, list[Path]()

    def late(folder: Path) -> int | None:
        lock = flock(folder)
        if not taken:
            taken.append(folder)
            shutil.rmtree(folder)
        return lock

    monkeypatch.setattr(folders, "_flock", late)
    save(tmp_path / "run", "new")
    assert len(load(tmp_path / "run")) == 1 and not taken[0].exists()


def test_what_an_earlier_writer_listed_and_this_one_does_not_goes(tmp_path: Path) -> None:
    target = tmp_path / "run"
    save(target, "old")
    (target / "inner" / "notes").write_text("kept")
    save(target, "new", ("first.safetensors",))
    assert inside(target) == {SEAL, "first.safetensors", "inner", "inner/notes"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["another", "missing"])
def test_files_that_are_not_those_of_the_seal_are_refused(name: str, change: str, tmp_path: Path) -> None:
    save(tmp_path, "old")
    (tmp_path / name).unlink() if change == "missing" else (tmp_path / name).write_text("other")
    with pytest.raises(CheckpointError, match=rf"{name} is {change}.*Save or copy the folder again"):
        require_sealed(tmp_path, SEAL)


@pytest.mark.parametrize("listed", [3, [], "x", {"../x": "0"}, {"/etc/passwd": "0"}, {"": "0"}, {"first": 5}])
def test_a_list_of_digests_that_is_none(listed: Any, tmp_path: Path) -> None:
    (tmp_path / SEAL).write_text(json.dumps({DIGESTS: listed}))
    with pytest.raises(CheckpointError, match="lists no digests"):
        require_sealed(tmp_path, SEAL)
    save(tmp_path, "new")  # and a writer goes by nothing of it
    assert load(tmp_path) == {"new"}


def test_a_locked_folder_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.05)
    save(tmp_path, "old")
    with (
        folders._locked(tmp_path),
        pytest.raises(CheckpointError, match="is being written to by another process"),
    ):
        save(tmp_path, "new")
    assert load(tmp_path) == {"old"}


def test_places_that_cannot_be_written_to_are_told_with_the_cure(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for attempt in (
        lambda: write_atomically(file, lambda folder: None),
        lambda: require_writable(file),
        lambda: require_writable(file / "deep"),
        lambda: replace_text(file / "text", "x"),
    ):
        with pytest.raises(CheckpointError, match=r"could not be written.*A file is in the way"):
            attempt()
    with pytest.raises(CheckpointError, match="could not be written") as caught:
        require_writable("/proc/nothing/here")
    assert "\n" not in str(caught.value)
    assert file.read_text() == "in the way"


def test_partial_texts_of_killed_writers_go(tmp_path: Path) -> None:
    child = in_child(lambda: None)
    status_of(child)
    (tmp_path / f".text.{child}.partial").write_text("half")
    (tmp_path / f".text.{os.getppid()}.partial").write_text("being written")
    replace_text(tmp_path / "text", "whole")
    assert (tmp_path / "text").read_text() == "whole"
    assert inside(tmp_path) == {"text", f".text.{os.getppid()}.partial"}
