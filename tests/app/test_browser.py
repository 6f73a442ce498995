"""The app in a browser, as a visitor uses it: headless Chromium against the running Space."""

from __future__ import annotations

import json
import os
import re
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from app_fixtures import FLAGS, chromium, running_app
from peft import PeftModel
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from repository import ROOT
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

ASSETS = ROOT / "hf_mass" / "assets"
ARC = {
    "train": [
        {"input": [[1, 0, 2], [0, 0, 3]], "output": [[2, 0, 1], [3, 0, 0]]},
        {"input": [[3, 4, 0], [0, 4, 4]], "output": [[0, 4, 3], [4, 4, 0]]},
        {"input": [[5, 6, 7], [8, 0, 0]], "output": [[7, 6, 5], [0, 0, 8]]},
    ],
    "test": [{"input": [[9, 0, 1], [1, 2, 0]], "output": [[1, 0, 9], [0, 2, 1]]}],
}
WORDS = [("house", "HOUSE"), ("tree", "TREE"), ("river", "RIVER"), ("stone", "STONE"), ("cloud", "CLOUD")]
PATIENCE = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(files: Path) -> Iterator[str]:
    chromium()
    with running_app(files) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield chrome
        chrome.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Pages of one context share what was downloaded for the first; each is a session of its own for the app."""
    shared = browser.new_context(viewport={"width": 1280, "height": 900})
    yield shared
    shared.close()


@pytest.fixture
def page(context: BrowserContext, address: str) -> Iterator[Page]:
    page = opened(context, address)
    yield page
    page.close()


def opened(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector('[aria-label="problem grid-mirrored-tiles"]')  # there from the beginning
    expect(page.locator("#status")).to_contain_text("Nothing adapted yet", timeout=PATIENCE)
    return page


def upload(page: Page, path: Path) -> None:
    page.get_by_role("tab", name="Upload").click()
    page.set_input_files("#file input[type=file]", path)


def pick(page: Page, example: str) -> None:
    page.locator("#example input").click()
    page.get_by_role("option", name=example).click()
    page.wait_for_selector(f'[aria-label="problem {example.replace(" ", "-")}"]')


def adapt(page: Page) -> None:
    page.click("#adapt")
    expect(page.locator("#status")).to_contain_text(re.compile(r"Done in|Ended after"), timeout=PATIENCE)


def set_slider(page: Page, element: str, value: float) -> None:
    box = page.locator(f"#{element} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def problem_file(folder: Path, kind: str) -> Path:
    path = folder / f"words.{kind}"
    if kind == "json":
        path.write_text(json.dumps(ARC))
    elif kind == "csv":
        path.write_text("input,output\n" + "".join(f"{a},{b}\n" for a, b in WORDS))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"input": a, "output": b}) + "\n" for a, b in WORDS))
    else:
        path.write_text("".join(f"{a} -> {b}\n" for a, b in WORDS[:-1]) + f"{WORDS[-1][0]} ->\n")
    return path


def test_the_columns_of_an_upload_can_be_named(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    path.write_text("wort,laut\n" + "".join(f"{a},{b}\n" for a, b in WORDS))
    upload(page, path)
    expect(page.locator("#problem")).to_contain_text("no column 'input'", timeout=PATIENCE)
    expect(page.locator("#form-encoding")).not_to_be_visible()
    page.get_by_text("Columns of the file").click()
    page.locator("#form-input_column textarea, #form-input_column input").fill("wort")
    page.locator("#form-output_column textarea, #form-output_column input").fill("laut")
    page.wait_for_selector('[aria-label="problem words"]')
    expect(page.locator("#problem")).to_contain_text("Solved examples (4)")


@pytest.mark.parametrize("kind", ["json", "csv", "jsonl", "txt"])
def test_every_kind_of_upload_is_shown_and_adapted_to(page: Page, tmp_path: Path, kind: str) -> None:
    upload(page, problem_file(tmp_path, kind))
    page.wait_for_selector('[aria-label="problem words"]')
    picture = page.locator("#problem")
    expect(picture.locator(".hm-grid" if kind == "json" else ".hm-text").first).to_be_visible(timeout=PATIENCE)
    expect(picture).to_contain_text(f"Solved examples ({3 if kind == 'json' else 4})")
    adapt(page)
    expect(page.locator("#status")).to_contain_text("Done in")
    answers = page.locator("#answers")
    expect(answers).to_contain_text("Before")
    expect(answers).to_contain_text("After")
    if kind == "txt":
        expect(answers).not_to_contain_text("Right answer")  # which is not known
    else:
        expect(answers).to_contain_text("Right answer")
        assert answers.locator(".hm-right, .hm-wrong").count() == 2
    assert page.locator("#losses svg polyline").get_attribute("points").count(",") >= 4  # type: ignore[union-attr]


def test_an_example_wrong_before_and_right_after(page: Page, files: Path, tmp_path: Path) -> None:
    pick(page, "fruit colours by a hidden rule")
    adapt(page)
    cards = page.locator("#answers .hm-card")
    expect(cards.nth(0)).to_contain_text("Before ✗ wrong")
    expect(cards.nth(1)).to_contain_text("After ✓ right")
    expect(cards.nth(1)).to_contain_text("red")
    rows = page.locator("#samples tbody tr")
    weights = [float(text) for text in rows.locator("td:nth-child(3)").all_text_contents()]
    assert weights == sorted(weights, reverse=True) and abs(sum(weights) - 1) < 0.02
    attributions = [float(text) for text in rows.locator("td:nth-child(4)").all_text_contents()]
    assert attributions[0] > 0
    losses = re.search(r"MASS loss ([\d.]+) → ([\d.]+)\.", page.locator("#status").inner_text())
    assert losses is not None and float(losses[2]) < float(losses[1])
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "adapter.zip")
    zipfile.ZipFile(tmp_path / "adapter.zip").extractall(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "conventions-base")
    assert PeftModel.from_pretrained(base, str(tmp_path / "adapter")).peft_config["default"].r > 0
    for archive in files.rglob("adapter.zip"):
        archive.unlink()
    page.click("#download")
    expect(page.locator("#status")).to_contain_text("no longer on the server", timeout=PATIENCE)
    expect(page.locator("#download")).not_to_be_visible()


WATCH = """() => {
  window.seen = {status: [], samples: []};
  for (const name of ['status', 'samples'])
    new MutationObserver(() => {
      const text = document.querySelector('#' + name).innerText;
      const list = window.seen[name];
      if (list[list.length - 1] !== text) list.push(text);
    }).observe(document.querySelector('#' + name), {childList: true, subtree: true, characterData: true});
}"""


def test_it_can_be_watched(page: Page, tmp_path: Path) -> None:
    upload(page, problem_file(tmp_path, "json"))
    page.wait_for_selector('[aria-label="problem words"]')
    page.get_by_label("both").check()
    page.get_by_text("Settings").first.click()
    set_slider(page, "setting-samples", 32)
    page.evaluate(WATCH)
    adapt(page)
    seen: dict[str, list[str]] = page.evaluate("window.seen")
    steps = [
        text for text in seen["status"] if re.search(r"Training on the demonstrations, step \d+ of \d+, loss", text)
    ]
    assert len(steps) >= 2, seen["status"]
    writing = [text for text in seen["samples"] if "as they are written" in text]
    weighed = [text for text in seen["samples"] if "Samples by weight" in text]
    assert len(writing) >= 2 and len(weighed) >= 1, seen["samples"]
    assert seen["samples"].index(writing[0]) < seen["samples"].index(weighed[0])
    assert page.locator("#losses polyline").count() == 2


def slow(page: Page) -> None:
    page.get_by_text("Settings").first.click()
    set_slider(page, "setting-max_examples", 100)
    set_slider(page, "setting-num_train_epochs", 8)


def test_stop(page: Page, tmp_path: Path) -> None:
    upload(page, problem_file(tmp_path, "json"))
    page.wait_for_selector('[aria-label="problem words"]')
    slow(page)
    page.click("#adapt")
    expect(page.locator("#status")).to_contain_text(re.compile(r"demonstrations, step \d+"), timeout=PATIENCE)
    expect(page.locator("#adapt")).to_be_in_viewport()  # far below, with the settings open
    expect(page.locator("#status .hm-status")).to_be_in_viewport()
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("stopped", timeout=PATIENCE)
    expect(page.locator("#adapt")).to_be_enabled()
    expect(page.locator("#download")).not_to_be_visible()
    assert page.locator("#answers .hm-card").nth(1).inner_text().splitlines()[-1] == "–"
    expect(page.locator("#earlier")).to_be_empty()
    page.get_by_role("tab", name="Paste").click()
    page.locator("#text textarea").fill("wort,laut\nhouse,HOUSE\ntree,TREE\nstone,")
    expect(page.locator("#earlier")).to_contain_text("belongs to an earlier problem, words", timeout=PATIENCE)
    expect(page.locator("#problem")).to_contain_text("No solved example was found")
    page.get_by_text("Columns of a pasted table").click()
    page.locator("#text-form-input_column").get_by_role("textbox").fill("wort")
    page.locator("#text-form-output_column").get_by_role("textbox").fill("laut")
    expect(page.locator("#problem")).to_contain_text("Solved examples (2)", timeout=PATIENCE)
    assert page.locator("#setting-num_train_epochs input[type=number]").input_value() == "8"  # as it was set


def test_what_was_typed_a_moment_before_is_what_is_adapted_to(page: Page) -> None:
    page.get_by_role("tab", name="Paste").click()
    text = page.locator("#text textarea")
    text.fill("one -> ONE\ntwo -> TWO\nthree -> THREE")  # the last row is asked
    expect(page.locator("#problem")).to_contain_text("three", timeout=PATIENCE)
    for word in ("four", "five"):
        text.fill(f"one -> ONE\ntwo -> TWO\n{word} -> {word.upper()}")
        page.evaluate("document.querySelector('#adapt').click()")
        expect(page.locator("#answers")).to_contain_text(word.upper(), timeout=PATIENCE)
        expect(page.locator("#status")).to_contain_text(re.compile(r"Done in|Ended after"), timeout=PATIENCE)
        expect(page.locator("#earlier")).to_be_empty()


def test_two_visitors_at_once(browser: Browser, address: str, files: Path, tmp_path: Path) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    first, second = (opened(context, address) for context in contexts)
    upload(first, problem_file(tmp_path, "json"))
    first.wait_for_selector('[aria-label="problem words"]')
    slow(first)
    pick(second, "fruit colours by another rule")
    first.click("#adapt")
    expect(first.locator("#status")).to_contain_text(re.compile(r"demonstrations, step \d+"), timeout=PATIENCE)
    second.click("#adapt")
    expect(second.locator("#status")).to_contain_text("Waiting: 1 problem is before yours", timeout=PATIENCE)
    second.click("#stop")  # which must not reach the other
    expect(second.locator("#status")).to_contain_text("Stopped before its turn", timeout=PATIENCE)
    first.wait_for_timeout(500)
    expect(first.locator("#status")).not_to_contain_text("stopped")
    first.click("#stop")
    expect(first.locator("#status")).to_contain_text("stopped", timeout=PATIENCE)
    assert not first.locator("#answers .hm-text").count()
    second.click("#adapt")
    expect(second.locator("#download")).to_be_visible(timeout=PATIENCE)
    expect(second.locator("#answers")).to_contain_text("blue")
    assert not second.locator("#answers .hm-grid").count()
    assert files_on_disk(files)  # the second one's adapter, until it leaves
    for context in contexts:
        context.close()
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        if not files_on_disk(files):
            return
        time.sleep(0.2)
    pytest.fail(f"files of visitors who left: {files_on_disk(files)}")


def files_on_disk(files: Path) -> list[str]:
    """Uploads and adapters that the app has on disk; some may go while they are counted."""
    paths = []
    for folder, _, names in os.walk(files / "files"):
        for path in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):
                if path.stat().st_size:
                    paths.append(str(path))
    return paths


BAD = {
    "not.json": (b"{this is no JSON", "could not be read as JSON"),
    "ragged.json": (json.dumps({"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []}).encode(), "ragged"),
    "binary.csv": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no text, but a picture"),
    "zeros.json": (b'{"a": "\x00"}', "zero byte"),
    "no-query.jsonl": (b'{"input": "a", "output": "b"}\n', "no solved example"),
    "empty.txt": (b"  \n", "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_are_refused_in_words(page: Page, tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    upload(page, tmp_path / name)
    alert = page.locator("#problem .hm-error")
    expect(alert).to_contain_text(words, timeout=PATIENCE)
    assert str(tmp_path) not in alert.inner_text() and "/files/" not in alert.inner_text()
    page.click("#adapt")
    expect(page.locator("#status .hm-error")).to_contain_text(words, timeout=PATIENCE)
    page.get_by_role("tab", name="Example").click()  # which has its own problem
    page.wait_for_selector('[aria-label="problem grid-mirrored-tiles"]')


def test_ten_megabytes_are_refused(page: Page, tmp_path: Path, files: Path) -> None:
    (tmp_path / "large.json").write_text("[" + "1," * 5_000_000 + "1]")
    upload(page, tmp_path / "large.json")
    expect(page.locator("#problem .hm-error")).to_contain_text("bytes; at most", timeout=PATIENCE)
    assert not [path for path in files_on_disk(files) if "large" in path]
    page.click("#adapt")
    expect(page.locator("#status .hm-error")).to_contain_text("bytes; at most", timeout=PATIENCE)


def test_a_script_in_a_text_stays_a_text(page: Page, tmp_path: Path) -> None:
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    evil = ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "${alert(3)}", "{{alert(4)}}", "'\"--><b>"]
    rows = [{"input": text, "output": text[::-1]} for text in evil]
    (tmp_path / "<b>evil.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    upload(page, tmp_path / "<b>evil.jsonl")
    expect(page.locator("#problem")).to_contain_text(evil[0], timeout=PATIENCE)
    adapt(page)
    for text in evil:
        expect(page.locator("#problem")).to_contain_text(text)
    assert not alerts
    for element in ("#problem", "#answers", "#samples", "#status"):
        assert page.locator(f"{element} script, {element} img, {element} b").count() == 0


def test_phone_dark_and_keyboard(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 760}, color_scheme="dark", has_touch=True)
    page = opened(context, address)
    page.locator("#example input").focus()
    expect(page.locator("ul[role=listbox]")).to_be_visible()
    assert page.locator("#example input").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("Tab")
    expect(page.locator("ul[role=listbox]")).not_to_be_visible()
    page.get_by_role("tab", name="Paste").focus()
    page.keyboard.press("Enter")
    box = page.locator("#text textarea")
    box.focus()
    page.keyboard.type("house -> HOUSE\ntree -> TREE\nriver -> RIVER\nstone ->")
    expect(page.locator("#problem")).to_contain_text("Solved examples (3)", timeout=PATIENCE)
    page.locator("#adapt").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Done in", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    luminance = """element => {
      const of = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number)
        .map(v => v / 255).map(v => v <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const style = getComputedStyle(element);
      const [a, b] = [of(style.color), of(style.backgroundColor)];
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    }"""
    assert page.locator("#status .hm-status").evaluate(luminance) > 4.5
    assert page.locator("#problem .hm-text").first.evaluate(luminance) > 4.5
    context.close()
