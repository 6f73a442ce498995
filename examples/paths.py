"""Where the scripts find and leave things, from the repository's root; what ships is `hf_mass.store.shipped.ASSETS`."""

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
RESULTS = EXAMPLES / "results"
OUTPUTS = ROOT / "outputs"
DATA = ROOT.parent / "shared" / "data"
"""Benchmark data, kept beside the checkout."""
