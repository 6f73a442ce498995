"""Kills a process at random points while it saves a model over another, and loads what is left.

    python -m benchmarks.kill_saving --kills 100

The model is the one that ships, with two states of its generator; the folder holds other files too. Every loaded model
must be one of the two, whole, and no leftover may survive the next save. Prints how often each was found.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.campaigns import campaign_arguments, changes_of, counted, counts, forked, report
from hf_mass.errors import CheckpointError
from hf_mass.lm.fingerprint import weights_digest
from hf_mass.methods.mass_model import MassModel
from hf_mass.store.shipped import ASSETS


def state(mass: MassModel) -> str:
    """A digest of everything that is saved with the model."""
    weights = {name: each for name, each in mass.model.named_parameters() if "lora_" in name}
    return weights_digest({**weights, **mass.scorer.state_dict()})


def changed(mass: MassModel, by: float) -> None:
    """Move every saved weight."""
    with torch.no_grad():
        for name, each in (*mass.model.named_parameters(), *mass.scorer.named_parameters("scorer_lora_")):
            if "lora_" in name:
                each.add_(by)


def campaign(kills: int, seed: int, folder: Path) -> Counter[str]:
    """What was found after each kill: "old", "new", or what was wrong."""
    draw, found = random.Random(seed), Counter[str]()
    mass = MassModel.from_pretrained(ASSETS / "conventions-mass")
    target = folder / "run"
    (target / "checkpoint-1").mkdir(parents=True)
    (target / "checkpoint-1" / "state").write_text("kept")
    mass.save_pretrained(target)
    points = changes_of(lambda: mass.save_pretrained(target), folder / "count")
    for _ in range(kills):
        old = state(mass)
        changed(mass, 0.01)
        new = state(mass)
        point = draw.randint(1, points + 1)

        def save(point: int = point) -> None:
            counted(point)
            mass.save_pretrained(target)

        os.waitpid(forked(save), 0)
        try:
            left = state(MassModel.from_pretrained(target))
            found[{old: "old", new: "new"}.get(left, "a mixture, loaded without a word")] += 1
        except CheckpointError as error:
            found[f"refused: {str(error)[:200]}"] += 1
        mass.save_pretrained(target)
        if leftovers := [file.name for file in folder.rglob(".*")]:
            found[f"left over: {leftovers[0]}"] += 1
        if (target / "checkpoint-1" / "state").read_text() != "kept":
            found["another file lost"] += 1
    return found


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    campaign_arguments(parser, "kill_saving", kills=(100, "how many"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(arguments.kills, arguments.seed, Path(folder))
    report(arguments, "Killed while saving", {"kills": counts("What was loaded after each kill", found)})


if __name__ == "__main__":
    main()
