"""One vocabulary of errors.

Every error names the field, the value that was found and the cure. Each class also derives from the built-in that a
caller would expect, so `except ValueError` around a constructor keeps working.
"""

from __future__ import annotations


class HFMassError(Exception):
    """Base of every error raised by this package."""


class ConfigError(HFMassError, ValueError):
    """A setting is outside its range or contradicts another one; raised where the setting is made."""


class DataError(HFMassError, ValueError):
    """A dataset, a file or a task lacks something that the requested mode needs."""


class VerifierError(HFMassError, ValueError):
    """A verifier is unknown, or cannot judge the task that it was given."""


class UnsupportedModelError(HFMassError, TypeError):
    """The model has a layer, an adapter or an operation for which exact meta-gradients are not implemented."""


class AdaptationError(HFMassError, RuntimeError):
    """An inner loop could not be carried out (no usable sample, a non-finite loss)."""


class CheckpointError(HFMassError, OSError):
    """A saved model or checkpoint is missing, incomplete, of an unknown version, or could not be written."""


class HubError(CheckpointError):
    """A repository on the Hub could not be read or written: it is missing, closed to the token, or out of reach."""


class Stopped(HFMassError, RuntimeError):
    """What was going on was stopped, by a person or by its time limit."""


class ModelWarning(UserWarning):
    """A model is asked for something that it was not made for."""


class DataWarning(UserWarning):
    """Data were read in a way that only who gave them can tell to be right, or some were left out."""


EXTRAS = {
    "datasets": "train",
    "trl": "train",
    "gradio": "demo",
    "matplotlib": "plots",
    "math_verify": "math",
    "gguf": "gguf",
    "torchao": "quantized",
    "openpyxl": "xlsx",
}
"""Module → the extra that brings it."""


def missing_extra(what: str, error: ModuleNotFoundError) -> str | None:
    """What to install for something that a missing module is needed for; None if no extra brings that module."""
    extra = EXTRAS.get(error.name or "")
    return extra and f'{what} needs {error.name}. Run: pip install "hf_mass[{extra}]"'
