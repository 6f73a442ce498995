"""One task's adapter as files: saved, pushed to the Hub, and loaded again for answering the task."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.adapters import read_adapter
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Method
from hf_mass.store.adapters import write_adapter
from hf_mass.store.card import CardParts
from hf_mass.store.folders import require_no_other_model, write_atomically
from hf_mass.store.publishing import publish
from hf_mass.store.storage import resolve_adapter
from hf_mass.tasks.checks import as_path
from hf_mass.tasks.task import Task
from hf_mass.training.publishing_trainer import PublishingTrainer
from hf_mass.training.ttt_config import TTTConfig


class AdapterTrainer(PublishingTrainer):
    """The part of `TTTTrainer` that puts adapters into files and repositories, and gets them back."""

    args: TTTConfig
    lm: LanguageModel
    method: Method[Any]
    trained: list[Adaptation]

    def save_adapter(self, record: Adaptation, path: str | Path) -> None:
        """One task's adapter as a PEFT folder, which `PeftModel.from_pretrained` reads.

        Raises:
            DataError: If the record has none.
            CheckpointError: If it cannot be written.
        """
        if record.adapted is None:
            raise DataError(f"The record of task {record.task.id!r} has no adapter: {record.reason}.")
        require_no_other_model(as_path("path", path))
        lora, tree = record.parts[-1]  # a record of another trainer may have another shape
        matrices, config = lora.state_dict(tree, 0), lora.config.to_dict()
        write_atomically(Path(path), lambda folder: write_adapter(folder, matrices, config))

    def _own_adapter(self, record: Adaptation) -> Adaptation:
        """A record of this trainer or of another one of the same base, with its matrices in this model's adapter.

        Raises:
            DataError: If they are no adapter of the same modules, shape and scale.
        """
        if record.adapted is None:
            return record
        (theirs, tree), own = record.parts[-1], self.lm.starting_lora()
        sites, shapes = own.function.sites, {name: leaf.shape[1:] for name, leaf in own.start(1).items()}
        scales = [{name: site.scaling for name, site in lora.function.sites.items()} for lora in (theirs, own)]
        problem = None
        if len(record.parts) > 1:
            problem = f"has {len(record.parts)} adapters on top of each other, and this trainer has one"
        elif {name: leaf.shape[1:] for name, leaf in tree.items()} != shapes:
            problem = "has an adapter of other modules or of another rank than this trainer's"
        elif scales[0] != scales[1]:
            name = next(name for name in sites if scales[0][name] != scales[1][name])
            problem = (
                f"was trained at scale {scales[0][name]:g} (lora_alpha / r), and this trainer has {scales[1][name]:g}"
            )
        if problem is not None:
            raise DataError(f"The record of task {record.task.id!r} {problem}. Use record.answer(), or the same LoRA.")
        return replace(record, parts=((own, tree),))

    def load_adapter(
        self, path_or_id: str | Path, task: Task, revision: str | None = None, token: str | bool | None = None
    ) -> Adaptation:
        """An adapter that was saved or pushed, as a record for `predict(records=...)`.

        With the same base and settings the answers are those of the record that was saved, bit for bit.

        Args:
            path_or_id: Folder, or Hub id.
            task: The task that it is for.
            revision: Branch, tag or commit of a Hub repository.
            token: Token for a private repository.

        Raises:
            HubError: If the repository cannot be had.
            CheckpointError: If it holds no adapter in safetensors, or one of another shape than this trainer's.
        """
        folder = resolve_adapter(path_or_id, revision, token)
        lora = self.lm.starting_lora()
        return Adaptation(task, ((lora, read_adapter(folder, lora)),), lm=self.lm, method=self.method)

    def push_adapter_to_hub(self, record: Adaptation, repo_id: str, **options: Any) -> CommitInfo:
        """Upload one task's adapter in one commit.

        The task itself is not uploaded, but an adapter may give away what it was trained on.

        Args:
            record: What `adapt` gave.
            repo_id: owner/name; made if it is not there.
            options: As `hf_mass.store.hub_files.push_folder`'s: `private`, `token`, `revision`, `commit_message`,
                `create_pr`.

        Raises:
            DataError: If the record has no adapter.
            HubError: If it could not be pushed.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_adapter(record, folder)
            return publish(Path(folder), repo_id, self.published_card(), **options)

    def save_published(self, folder: Path) -> None:
        """The adapter that all tasks share.

        Raises:
            ConfigError: If each task has its own, or none is trained yet.
        """
        if self.args.adapters != "shared":
            raise ConfigError(
                f"TTTTrainer.push_to_hub: adapters is {self.args.adapters!r}, so each task has an adapter of its own. "
                "Push one with push_adapter_to_hub(record, repo_id), or train with adapters='shared'."
            )
        if (record := next((record for record in self.trained if record.parts), None)) is None:
            raise ConfigError("TTTTrainer.push_to_hub: no adapter is trained yet; call train() first.")
        self.save_adapter(record, folder)

    def published_card(self, **details: Any) -> CardParts:
        """What the model card is made from: the settings that the adapter depends on, and `details`."""
        return CardParts(settings=sorted(self.args.result_settings().items()), **details)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a checkpoint of one task's run is no result."""
