"""Watch a model adapt to your problem: the app of `hf-mass demo`, as a Space.

HF_MASS_MODEL, a variable of the Space, names a Hub repository (a saved MassModel, or any causal language model) to
offer instead of the tiny models that ship with the package. A private or gated one also needs the secret HF_TOKEN.
"""

import os
from importlib import import_module

lease = None
if os.environ.get("SPACES_ZERO_GPU"):
    # Before torch is imported, as ZeroGPU demands. Adapting and answering are one call, and so one lease.
    lease = import_module("spaces").GPU(duration=120)

from hf_mass.app.app import launch  # noqa: E402

if __name__ == "__main__":
    launch(lease=lease)
