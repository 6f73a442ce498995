"""Watch a model adapt to your problem: the app of `hf-mass demo`, as a Space.

HF_MASS_MODEL, a variable of the Space, names a Hub repository (a saved MassModel, or any causal language model) to offer
instead of the tiny models that ship with the package. A private or gated one also needs the secret HF_TOKEN.
"""

import os

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401 - must come before torch, so that a GPU is leased for each call

from hf_mass.live.app import launch

if __name__ == "__main__":
    launch()
