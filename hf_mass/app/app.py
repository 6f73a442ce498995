"""The Gradio app: give a problem, watch a model adapt to it, compare the answers before and after."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from hf_mass.app.controls import AUTOMATIC, OPTIONS, TEXT_FORM, control, form_controls, model_values
from hf_mass.app.drawing import problem_html, status_html
from hf_mass.app.handlers import LIMITS, Handlers
from hf_mass.app.told import PlainRefusals, ToldBlocks
from hf_mass.app.visitors import KEEP, SWEEP, Visitors
from hf_mass.app.workshop import METHOD_NAMES, Lease, Workshop, example
from hf_mass.engine.models import SMALL
from hf_mass.errors import ConfigError
from hf_mass.lm.threads import choose_threads
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.checks import shown
from hf_mass.tasks.problems import KINDS, Problem

QUEUE = 100
"""Requests that may wait in Gradio's own queue, where adaptations do not: `Line` has those."""
THREADS = 100
"""Of handlers: who waits in our line takes one, and what others click must not wait for it."""

INTRODUCTION = """# Watch a model adapt to your problem
Give a few solved examples and a question. The model answers; then it **changes its own weights for this one problem**,
and answers again. *TTT* trains on your examples, each left out in turn. *MASS* writes examples of its own, weighs each
by whether training on it explains yours, and trains on those. Nothing of it stays: the next problem starts afresh.
"""
PASTE_HINT = "hello -> HELLO\ncat -> CAT\nbird ->"
FORMS = """An ARC task (JSON with `train` and `test`), rows with `input` and `output` (CSV, JSON lines), lines
`input -> output`, or a text. Rows without an output are asked; if all have one, the last row is."""


def build(workshop: Workshop, sessions: Visitors) -> gr.Blocks:
    """The page, not launched yet.

    Args:
        workshop: The models that it offers.
        sessions: Its visitors.
    """
    do = Handlers(workshop, sessions)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with ToldBlocks(title="Live adaptation", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        first = example(workshop.examples()[1])  # there from the beginning, with the settings that suit it
        problem = gr.State(first)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                sources = _problem_elements(*workshop.examples())
                picture = gr.HTML(problem_html(first), elem_id="problem")
                method, model, controls = _settings(workshop, first)
                with gr.Row():
                    start = gr.Button("Adapt", variant="primary", elem_id="adapt")
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
            with gr.Column(scale=6, min_width=320, elem_id="results"):
                earlier, *results = _result_elements()
        choice = [method, *controls.values()]
        display = [problem, picture, *choice]
        for (tab, element, *form), show in zip(sources, (do.show_example, do.show_file, do.show_text), strict=True):
            changes = [tab.select, *(each.change for each in (element, *form))]  # the problem is that of the front tab
            gr.on(changes, show, [element, model, *form], display, trigger_mode="always_last", **quiet)
        model.change(do.offered, [problem, model], choice, **quiet)

        def adapt(values: dict[Any, Any], request: gr.Request) -> Iterator[tuple[Any, ...]]:
            settings = {name: values[element] for name, element in controls.items()}
            yield from do.adapt(values[problem], values[model], values[method], settings, request)

        def catch_up(values: dict[Any, Any], request: gr.Request) -> tuple[Any, ...]:
            given = [tuple(values[each] for each in elements) for _, *elements in sources]
            return do.catch_up(given, values[model], request)

        everything = {model, *(each for _, *elements in sources for each in elements)}
        start.click(catch_up, everything, display, queue=False, **quiet).then(
            adapt,
            {problem, model, *choice},
            [*results, start, stop, earlier],
            concurrency_limit=None,  # all are let in, and wait in our line
            show_progress="minimal",
            show_progress_on=results[0],
            api_visibility="private",
        )
        stopping = stop.click(do.stop, None, results[0], queue=False, **quiet)
        stopping.then(do.stopped, None, results[0], queue=False, **quiet)
        problem.change(do.earlier, problem, earlier, **quiet)
        results[-1].click(do.downloaded, None, [results[0], results[-1]], queue=False, **quiet)
        page.load(do.show_example, [sources[0][1], model], display, **quiet)
        page.unload(do.leave)
        gr.Timer(SWEEP).tick(do.here, None, None, queue=False, **quiet)
        _offer_to_programs(do)
    return page


def _offer_to_programs(do: Handlers) -> None:
    """What programs may call."""
    names = "; ".join(f"{name}: {option.help}" for name, option in OPTIONS.items())
    about = f"{cleandoc(str(do.solve.__doc__))} Settings are {names}"
    gr.api(do.solve, api_name="solve", api_description=about, concurrency_limit=None)


def _problem_elements(examples: list[str], first: str) -> tuple[tuple[Any, ...], ...]:
    """(tab, element) for an example, a file and a text; behind the latter, the controls of what they do not say."""
    with gr.Tabs():
        with gr.Tab("Example", id="example") as example_tab:
            example = gr.Dropdown(examples, value=first, label="Problems that come with the app", elem_id="example")
        with gr.Tab("Upload", id="upload") as file_tab:
            file = gr.File(label=f"A file: {', '.join(KINDS)}", file_types=list(KINDS), height=120, elem_id="file")
            with gr.Accordion("Columns of the file", open=False, elem_id="form"):
                form = form_controls()
        with gr.Tab("Paste", id="paste") as text_tab:
            text = gr.Textbox(label="A problem", placeholder=PASTE_HINT, lines=6, elem_id="text")
            with gr.Accordion("Columns of a pasted table", open=False, elem_id="text-form"):
                text_form = form_controls(TEXT_FORM, "text-form")
    gr.Markdown(FORMS + f" At most {LIMITS.bytes // 1000} kB.", elem_classes="hm-muted")
    return (example_tab, example), (file_tab, file, *form), (text_tab, text, *text_form)


def _result_elements() -> tuple[Any, ...]:
    """(what is told of an earlier problem, status, answers, losses, samples, download)."""
    earlier = gr.HTML(elem_id="earlier")
    status = gr.HTML(status_html("Nothing adapted yet"), elem_id="status")
    answers = gr.HTML(elem_id="answers")
    download = gr.DownloadButton("Download the adapter (PEFT, zip)", visible=False, elem_id="download")
    return earlier, status, answers, gr.HTML(elem_id="losses"), gr.HTML(elem_id="samples"), download


def _settings(workshop: Workshop, first: Problem) -> tuple[Any, Any, dict[str, Any]]:
    """(method, model, setting → its control)."""
    choices = [(label, name) for name, label in METHOD_NAMES.items()]
    method = gr.Radio(choices, value="ttt", label="How to adapt", elem_id="method")
    with gr.Accordion("Settings", open=False):
        models = [(f"{name} ({lm.measure})", name) for name, lm in workshop.models.items()]
        model = gr.Dropdown([(AUTOMATIC, AUTOMATIC), *models], value=AUTOMATIC, label="Model", elem_id="model")
        values = model_values(workshop.choose(first), first.tasks)
        return method, model, {name: control(name, values.get(name)) for name in OPTIONS}


def launch(
    model: str | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    block: bool = True,
    lease: Lease | None = None,
    keep_files: float = KEEP,
    **model_settings: Any,
) -> gr.Blocks:
    """Start the app.

    Args:
        model: A shipped model, a folder or a Hub id; by default that of the environment variable HF_MASS_MODEL, else
            all that ship.
        host: Address to listen at; by default this machine's own, or as GRADIO_SERVER_NAME says.
        port: Port; by default the first free one from 7860 on.
        share: Whether Gradio makes a public link to it.
        block: Whether to wait until it is stopped.
        lease: Decorator that leases a GPU for each adaptation.
        keep_files: Seconds after which the files of a visitor who is gone without a word are deleted.
        model_settings: `revision`, `token`, `device`, `chat` and so on for `hf_mass.load`.

    Raises:
        ConfigError: If the port is taken.
        CheckpointError: If the model cannot be loaded.
    """
    if port is not None and not (type(port) is int and 0 < port < 65_536):
        raise ConfigError(f"port is {shown(port)}; choose a whole number from 1 to 65535.")
    if port is not None:  # before the models are loaded, which takes its time
        _require_free(host or "127.0.0.1", port)
    files = Path(get_upload_folder())  # from where Gradio hands files out without making a copy that would stay
    files.mkdir(parents=True, exist_ok=True)
    sessions = Visitors(Path(tempfile.mkdtemp(prefix="hf_mass-", dir=files)), keep_files)
    sessions.keep_swept(min(SWEEP, keep_files / 4))
    atexit.register(shutil.rmtree, sessions.root, ignore_errors=True)
    choose_threads("cuda" if lease else model_settings.get("device"))
    workshop = Workshop.load(model, lease, **model_settings)
    if all(each.size < SMALL for each in workshop.models.values()):
        torch.set_num_threads(1)  # one thread is faster than several, and visitors have the others
    page = build(workshop, sessions)
    _reach_directly(host or "127.0.0.1")
    page.queue(max_size=QUEUE, default_concurrency_limit=8)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        max_threads=THREADS,
        max_file_size=100 * LIMITS.bytes,  # what is refused by us is explained on the page
        theme=_theme(),
        css_paths=ASSETS / "app.css",
        footer_links=["api", "settings"],
        quiet=not block,
        ssr_mode=False,
        enable_monitoring=False,  # nobody sees what others ask
        app_kwargs={"middleware": [Middleware(PlainRefusals)]},
    )
    return page


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's own system, as nothing is fetched from elsewhere, and hints that can be read."""
    fonts: dict[str, Any] = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "Consolas", "monospace"],
    }
    return gr.themes.Default(**fonts).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )


def _reach_directly(host: str) -> None:
    """Keep the page's own address from a proxy: Gradio asks it whether it is there before it goes on."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [part for part in os.environ.get(name, "").split(",") if part]
        own = [each for each in dict.fromkeys((host, "localhost", "127.0.0.1")) if each not in known]
        os.environ[name] = ",".join([*known, *own])


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port is {port}, which is not free at {host}. Choose another (`--port`).") from error
