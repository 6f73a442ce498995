"""Downloads of the app's page that are gone, and disks that are full."""

from __future__ import annotations

import errno

import gradio as gr
import pytest
from page_fixtures import Visitor, download, strips

from hf_mass.app import workshop as module
from hf_mass.methods.base import Adaptation
from hf_mass.tasks.problems import read_problem


def test_a_download_that_is_gone_is_told(visitor: Visitor) -> None:
    do, request = visitor.do, visitor.request
    assert "Adapt again" in do.downloaded(request)[0]  # type: ignore[arg-type]
    archive = download([*visitor.adapt(read_problem(strips()))][-1])
    assert do.downloaded(request) == (gr.skip(), gr.skip())  # type: ignore[arg-type]
    archive.unlink()
    status, button = do.downloaded(request)  # type: ignore[arg-type]
    assert "no longer on the server" in status and not button.visible
    assert download([*visitor.adapt(read_problem(strips()))][-1]) == archive
    list(visitor.adapt(read_problem(strips()), settings={"samples": 999}))
    assert "Adapt again" in do.downloaded(request)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["save", "make_archive"])
def test_answers_are_shown_if_the_disk_is_full(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret")

    monkeypatch.setattr(Adaptation if name == "save" else module.shutil, name, fail)
    *_, last = visitor.adapt(read_problem(strips()))
    assert "Done in" in last[0] and "could not be written (No space left on device), so" in last[0]
    assert 'role="alert"' in last[0] and "After" in last[1] and not last[4].visible and "secret" not in last[0]
    assert "/secret" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_mass.app.visitors.tempfile.mkdtemp", fail)
    (page,) = visitor.adapt(read_problem(strips()))
    assert "no room" in page[0] and page[5].interactive and not visitor.do.sessions._open["one"].busy
    monkeypatch.undo()
    folder = visitor.do.sessions.folder("one")
    folder.rmdir()  # by others, who tidy away what is old
    assert visitor.do.sessions.folder("one").is_dir()
