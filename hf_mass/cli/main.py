"""The entry point: which commands there are, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_mass import __version__
from hf_mass.cli import commands
from hf_mass.cli.streams import open_what_is_closed, shown_warning, write_what_can_be_written
from hf_mass.errors import ConfigError, HFMassError

PROXIES = ("all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")


LONGEST = 900
"""Characters of an error that are shown."""


class Group(TyperGroup):
    """Turns the errors of every command into a line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Notes the command line, as a reader could type it again; --debug may stand anywhere."""
        ctx.meta["hf_mass.command"] = shlex.join(["hf-mass", *args])
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            require_one_process()
            require_place()
            with stoppable(), warnings.catch_warnings():  # which --quiet silences
                return super().invoke(ctx)
        except BrokenPipeError:  # `hf-mass ... | head`: the reader has had enough
            raise
        except (HFMassError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"hf-mass: {_line(error)}", err=True)
            raise typer.Exit(1) from error
        except ImportError as error:
            if "socksio" not in str(error) or ctx.params.get("debug"):
                raise
            name = next((name for name in PROXIES if os.environ.get(name, "").startswith("socks")), "the proxy")
            typer.echo(
                f"hf-mass: {name} is {os.environ.get(name, 'a SOCKS proxy')}, which needs the package socksio. Install "
                "it (`pip install httpx[socks]`), or unset the variable.",
                err=True,
            )
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            typer.echo("hf-mass: stopped", err=True)
            raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from None


@contextmanager
def stoppable() -> Iterator[None]:
    """Within this context Ctrl-C, SIGTERM and whatever error follows them are a KeyboardInterrupt with the signal.

    So what is being written is finished or removed. Libraries that are being imported make an error of their own of
    it: that a module could not be imported.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    asked = list[int]()

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt(number)

    ours = {number: before for number, before in usual.items() if signal.getsignal(number) is before}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    except Exception as error:
        if asked:
            raise KeyboardInterrupt(asked[0]) from error
        raise
    finally:
        for number, before in ours.items():
            signal.signal(number, before)


def _line(error: BaseException) -> str:
    """An error in a line that can be read: of words that are very long, the beginning and the end."""
    words = " ".join(str(error).split())
    return words if len(words) <= LONGEST else f"{words[: LONGEST // 2]} ... {words[-LONGEST // 2 :]}"


def require_one_process() -> None:
    """Checks that this is not one of several processes that a launcher started, of which each would do everything.

    Raises:
        ConfigError: If it is.
    """
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(
            f"WORLD_SIZE is {count}: a launcher started several processes, and each would do all of the work and write "
            "the same files. Start hf-mass by itself; accelerate launch is for scripts with a trainer."
        )


def require_place() -> None:
    """Checks that the folder that this runs in is there: without it libraries end the process.

    Raises:
        ConfigError: If it is not.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("The folder that this was started in was removed. Start it in another one (cd).") from error


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-mass {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="hf-mass",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Options have the names that Python has; --inner-steps is as good as --inner_steps.
        "token_normalize_func": lambda name: name.replace("-", "_"),
    },
)


@app.callback()
def top(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="HF_MASS_DEBUG", help="Show where an error came from. May stand anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Language models that adapt themselves to the problem in front of them.

    Give a problem with a few solved examples; the model answers it, **changes its own weights for this one problem**,
    and answers again. *TTT* trains on your examples, each left out in turn. *MASS* writes new examples, weighs each,
    and trains on those. Nothing of it stays, unless you save the adapter.

    Tiny models ship with the package, so this runs as it is, on a laptop:

    ```
    hf-mass solve "abc -> cba" "hello -> olleh" "stone -> enots" "river"
    ```

    Exit codes: 0 done (also where an answer is wrong); 1 it could not be done, and a line on stderr says why; 2 the
    command line is wrong; 130 stopped by Ctrl-C, 143 by SIGTERM. Results go to stdout, everything else to stderr.
    """


for _command in commands.ALL:
    app.command(no_args_is_help=_command is not commands.demo)(_command)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command, and exit.

    Args:
        args: The words after the program's name; None for those that it was started with.
    """
    if not sys.warnoptions:
        for name in ("torchao", "torch.utils._pytree"):  # on import, about parts that are not used here
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.showwarning = shown_warning
    # A tokenizer's threads warn about every process that is forked beside them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if closed := open_what_is_closed():
        raise SystemExit(closed)
    write_what_can_be_written()
    app(args=None if args is None else list(args), prog_name="hf-mass")
