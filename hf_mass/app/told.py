"""What Gradio refuses, or fails at, before a handler sees it: told in a line, not in a traceback in the log."""

from __future__ import annotations

import logging
from copy import copy
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_mass.tasks.checks import shown

logger = logging.getLogger(__name__)


class ToldBlocks(gr.Blocks):
    """Blocks whose elements are each given their value alone, so that a refusal names its element."""

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """The values that the handler gets."""
        if len(inputs) != len(block_fn.inputs):
            raise _refusal(f"{block_fn.api_name} takes {len(block_fn.inputs)} values, got {len(inputs)}. Give each.")
        values = []
        for element, given in zip(block_fn.inputs, inputs, strict=True):
            one = copy(block_fn)
            one.inputs = [element]
            told = refused(element, given)
            if isinstance(element, gr.File) and isinstance(given, dict) and "://" in str(given.get("path")):
                raise _refusal(told)  # Gradio would fetch it
            try:
                values += await super().preprocess_data(one, [given], state, explicit_call)
            except Exception as error:
                raise _refusal(told) from error
        return values


class PlainRefusals:
    """Middleware: a request that the server fails at is answered, and logged, in a line instead of a traceback.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:  # noqa: BLE001 -- whatever it is
            text = f"{scope.get('path', ''):.80} could not be answered: {type(error).__name__}: {shown(str(error))}"
            logger.warning(text)
            if scope["type"] == "http" and not begun:
                answer = JSONResponse({"error": f"{text}. The page /?view=api shows what may be asked."}, 400)
                await answer(scope, receive, send)


def refused(element: Any, given: Any) -> str:
    """Which value an element does not take, and what to give instead."""
    name, cure = element.label or "The value", "give another"
    if isinstance(element, gr.File):
        path = given.get("path") if isinstance(given, dict) else given
        name, given = "The file", Path(path).name if isinstance(path, str) else path
        cure = f"upload one that ends in one of {element.file_types}"
    elif choices := getattr(element, "choices", None):
        cure = f"choose one of {[value for _, value in choices]}"
    elif isinstance(element, gr.Slider):
        cure = f"choose a number from {element.minimum} to {element.maximum}"
    return f"{name} is {shown(given)}; {cure}."


def _refusal(text: str) -> gr.Error:
    return gr.Error(escape(text, quote=False), print_exception=False)  # which a page shows as HTML
