"""Pictures of the live app for the README: a recording of one adaptation, the finished page, and a phone in the dark.

In the folder `examples`:

    python -m demo.pictures
    python -m demo.pictures --model ~/.cache/hf_mass/smollm2-135m-instruct   # language-model.png alone

Starts the app on a free port, drives headless Chromium through it (Debian's chromium and the test extra), and
writes app.gif, app.png and phone.png. What is shown is what the models answer; nothing is touched up.
"""

from __future__ import annotations

import argparse
import io
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

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from paths import RESULTS

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTH = 1000
"""Pixels of the recording."""


@contextmanager
def running_app(model: str | None = None) -> Iterator[str]:
    """The address of the app, started as a user starts it, on the models that ship or another one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hf_mass", "demo", "--port", str(port)]
    command += ["--model", model] if model else []
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=2).close()
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait()


def opened(browser: Browser, address: str, example: str, phone: bool = False) -> Page:
    """The page with an example picked."""
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 1000}
    page = browser.new_context(viewport=size, color_scheme="dark" if phone else "light").new_page()  # type: ignore[arg-type]
    page.goto(address)
    page.locator("#example input").click()
    page.get_by_role("option", name=example).click()
    page.wait_for_selector(f'[aria-label="problem {example.replace(" ", "-")}"]')
    page.wait_for_timeout(1500)
    return page


def is_done(page: Page) -> bool:
    """Whether adapting has come to its end."""
    return "Done in" in page.locator("#status").inner_text()


def record(page: Page, most: int = 40) -> list[Image.Image]:
    """Frames of one adaptation, as fast as they can be taken."""
    frames = [shot(page)]
    page.click("#adapt")
    while not is_done(page) and len(frames) < most:
        frames.append(shot(page))
    page.wait_for_timeout(500)
    return [*frames, shot(page)]


def shot(page: Page) -> Image.Image:
    """The visible part of the page."""
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    return image.resize((WIDTH, image.height * WIDTH // image.width), Image.Resampling.LANCZOS)


def save_recording(frames: list[Image.Image], path: Path) -> None:
    """An endless GIF: the problem for a while, the adaptation, its end for longer."""
    colours = [frame.quantize(96, dither=Image.Dither.NONE) for frame in frames]
    times = [1500, *[350] * (len(frames) - 2), 5000]
    colours[0].save(path, save_all=True, append_images=colours[1:], duration=times, loop=0, optimize=True)


def picture_of_language_model(browser: Browser, address: str, path: Path) -> None:
    """The page after an adaptation to README's first example."""
    page = opened(browser, address, "the word in the middle")
    page.click("#adapt")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Done in')", timeout=300_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "app")
    parser.add_argument("--example", default="grid mirrored tiles", help="what the recording shows")
    parser.add_argument("--method", default="both", choices=["TTT", "MASS", "both"])
    parser.add_argument("--model", help="a language model: only its picture is taken")
    parser.add_argument("--phone_example", default="fruit colours by a hidden rule")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with running_app(arguments.model) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        if arguments.model:
            picture_of_language_model(browser, address, arguments.output / "language-model.png")
            return
        page = opened(browser, address, arguments.example)
        page.get_by_label(arguments.method, exact=True).check()
        save_recording(record(page), arguments.output / "app.gif")
        page.screenshot(path=arguments.output / "app.png", full_page=True)
        phone = opened(browser, address, arguments.phone_example, phone=True)
        record(phone)
        phone.screenshot(path=arguments.output / "phone.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
