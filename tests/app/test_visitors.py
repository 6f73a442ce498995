"""Visitors of the app's page: kept apart, stopped by themselves alone, and gone with all that is theirs."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from model_fixtures import snapshot
from page_fixtures import LONG, PAIRS, RULE, Visitor, download, strips

from hf_mass.app import workshop as module
from hf_mass.app.controls import AUTOMATIC
from hf_mass.app.handlers import Handlers
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import Workshop, example
from hf_mass.tasks.problems import read_problem


def test_stopping_is_ones_own(do: Handlers) -> None:
    one, two = Visitor(do, "one"), Visitor(do, "two")
    running, other = one.adapt(read_problem(strips())), two.adapt(read_problem(strips()))
    next(running), next(other)
    two.stop()
    two.stop()
    *_, last = running
    assert "Done in" in last[0]
    *_, last = other
    assert "stopped" in last[0]  # from when their page offers to stop on
    assert two.stop() == gr.skip()  # nothing goes on


def test_stopping_ends_what_goes_on(do: Handlers, workshop: Workshop) -> None:
    one, two = Visitor(do, "one"), Visitor(do, "two")
    before = snapshot(workshop.models["grids-small"].model)
    running = one.adapt(read_problem(strips()), settings=LONG)
    next(running), next(running)
    two.stop()
    two.leave()
    next(running)
    assert "Stopping" in one.stop()
    *_, last = running
    assert "stopped" in last[0] and 'role="alert"' in last[0] and last[5].interactive and not last[4].visible
    after = snapshot(workshop.models["grids-small"].model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_last_word_stays_however_late_stopping_is_shown(do: Handlers) -> None:
    one = Visitor(do, "one")
    running = one.adapt(read_problem(strips()), settings=LONG)
    next(running), next(running)
    assert "Stopping" in one.stop()
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(do.stopped, one.request)
        time.sleep(0.2)
        assert not told.done()  # it goes on still
        *_, last = running
        assert told.result(30) == last[0] and "stopped" in last[0]
    running = one.adapt(read_problem(strips()), settings=LONG)
    next(running)
    assert do.sessions.last_word("one", patience=0.1) is None  # what was begun since has a word of its own
    one.stop()
    list(running)
    assert do.stopped(Visitor(do, "two").request) == gr.skip()


def test_two_visitors_get_what_each_gets_alone(do: Handlers) -> None:
    problems = [read_problem(strips()), example(RULE)]

    def last(n: int) -> tuple[Any, ...]:
        *_, page = Visitor(do, str(n)).adapt(problems[n], ("ttt", "mass")[n], model=("grids-small", AUTOMATIC)[n])
        return page

    alone = [last(n)[1:4] for n in (0, 1)]
    pages: dict[int, tuple[Any, ...]] = {}
    threads = [threading.Thread(target=lambda n=n: pages.update({n: last(n)})) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [pages[n][1:4] for n in (0, 1)] == alone
    assert download(pages[0]).parent != download(pages[1]).parent


def test_leaving_takes_ones_own_files_along(do: Handlers, tmp_path: Path) -> None:
    one, two = Visitor(do, "one"), Visitor(do, "two")
    uploads = {}
    for visitor in (one, two):
        folder = tmp_path / visitor.request.session_hash
        folder.mkdir()
        uploads[visitor] = folder / "a.json"
        uploads[visitor].write_text(strips())
    archives = {v: download([*v.adapt(v.file(uploads[v])[0])][-1]) for v in (one, two)}
    one.leave()
    assert not archives[one].exists() and not uploads[one].parent.exists()
    assert archives[two].exists() and uploads[two].exists()
    one.leave()
    two.leave()
    assert list(do.sessions.root.iterdir()) == []


@pytest.mark.parametrize("key", ["../outside", "{outside}", "..", ".", "", "a/b", "a\0b", "x" * 500])
def test_a_key_is_no_path(tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    sessions = Visitors(tmp_path / "sessions")
    key = key.format(outside=outside)
    folder = sessions.folder(key)
    assert folder.parent == sessions.root and folder == sessions.folder(key) != sessions.folder("other")
    sessions.close(key)
    assert not folder.exists() and (outside / "kept").exists() and sessions.root.exists()


def test_a_new_adaptation_stops_the_earlier_one() -> None:
    sessions = Visitors(Path("unused"))
    first, other = sessions.begin("one"), sessions.begin("two")
    second = sessions.begin("one")
    assert first.is_set() and not second.is_set() and not other.is_set()
    sessions.close("one")
    assert second.is_set() and not other.is_set()
    sessions.close("nobody")


def test_leaving_stops(do: Handlers) -> None:
    one = Visitor(do, "one")
    running = one.adapt(read_problem(strips()), settings=LONG)
    next(running), next(running)
    one.leave()
    *_, last = running
    assert "stopped" in last[0] and not last[4].visible


def test_a_visitor_who_leaves_while_their_archive_is_written_leaves_nothing(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page closes between the adapter and the archive."""
    sessions, key = visitor.do.sessions, str(visitor.request.session_hash)

    def leave_first(name: str, kind: str, source: Path) -> str:
        sessions.close(key)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{name}.{kind}").write_bytes(b"late")
        return f"{name}.{kind}"

    monkeypatch.setattr(module.shutil, "make_archive", leave_first)
    list(visitor.adapt(read_problem(json.dumps({"train": PAIRS, "test": PAIRS[:1]}))))
    assert [path for path in sessions.root.rglob("*") if path.is_file()] == []


def test_the_silent_are_swept(tmp_path: Path) -> None:
    """Who was heard of lately, and for whom something goes on, stays."""
    sessions = Visitors(tmp_path / "sessions", keep=0.05)
    silent, busy, heard = (sessions.folder(key) for key in ("silent", "busy", "heard"))
    sessions.settle("silent", silent)
    sessions.settle("heard", heard)
    sign = sessions.begin("silent")
    time.sleep(0.1)
    sessions.here("heard")
    sessions.here("nobody")
    sessions.sweep()
    assert not silent.exists() and sign.is_set() and busy.exists() and heard.exists()
    sessions.settle("busy", busy)
    time.sleep(0.1)
    sessions.sweep()
    assert not busy.exists() and not heard.exists() and not sessions._open


def test_sweeping_goes_on_by_itself(tmp_path: Path) -> None:
    sessions = Visitors(tmp_path / "sessions", keep=0.01)
    folder = sessions.folder("one")
    sessions.settle("one", folder)
    sessions.keep_swept(every=0.02)
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not folder.exists()


def test_an_upload_of_two_visitors_stays_until_both_have_left(tmp_path: Path) -> None:
    sessions, upload = Visitors(tmp_path / "sessions"), tmp_path / "upload" / "rows.csv"
    upload.parent.mkdir()
    upload.touch()
    sessions.keep("one", upload)
    sessions.keep("two", upload)
    sessions.close("one")
    assert upload.exists()
    sessions.close("two")
    assert not upload.parent.exists()
