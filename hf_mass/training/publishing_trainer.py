"""What the trainers share in pushing to the Hub: a saved model in the repository's root, at every moment a whole one.

transformers would upload its output folder, with pickles in it and while it is written to. Here each push takes a
folder of its own and one commit. Checkpoints, which `hub_strategy` may ask for, go beside the model as they are:
resuming needs their optimizer state.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, run_as_future, upload_folder
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from hf_mass.errors import ConfigError
from hf_mass.lm.random_state import RandomState, host_random_state
from hf_mass.store.card import NOT_MEASURED, CardParts
from hf_mass.store.folders import require_writable
from hf_mass.store.hub_files import CARD_NAME, explained
from hf_mass.store.publishing import publish
from hf_mass.tasks.checks import as_path, shown
from hf_mass.training.without_effect import require_some_steps, require_whole_model

logger = logging.getLogger(__name__)


@contextmanager
def _loading(model: Any) -> Iterator[None]:
    """Within this context it is told in a line that a model could not be loaded by its name."""
    try:
        yield
    except OSError:
        if not isinstance(model, str):
            raise
        with explained(
            f"model {model!r:.100} could not be loaded", model, cure="Give a folder or a Hub id of a model."
        ):
            raise


def require_parts(name: str, model: Any, args: Any, config: type, peft_config: Any) -> None:
    """Checks that a trainer is given what it takes, where TRL would fail on it somewhere.

    Raises:
        ConfigError: If an argument is of another type.
        DataError: If the model is the name of nothing.
    """
    parts: dict[str, tuple[Any, Any, str]] = {
        "model": (
            model,
            str | Path | PreTrainedModel | PeftModel,
            "a name, a folder, a PreTrainedModel or a PeftModel",
        ),
        "args": (args, config | None, f"a {config.__name__}, or None for its defaults"),
        "peft_config": (peft_config, PeftConfig | None, "a peft.LoraConfig, or None for the default"),
    }
    for part, (value, kinds, cure) in parts.items():
        if not isinstance(value, kinds):
            raise ConfigError(f"{name}.{part} is {shown(value)}; give {cure}.")
    if isinstance(model, str | Path):
        as_path(f"{name}.model", model)


class PublishingTrainer(GRPOTrainer):
    """A `GRPOTrainer` that pushes what `save_published` writes, instead of its output folder, and trains something.

    Its random state is its own: what TRL seeds and draws while it is made and while it trains leaves the host's alone.

    Raises:
        CheckpointError: If `output_dir` cannot be written to.
        ConfigError: If the model would be sharded.
        DataError: When it trains, if there are too few prompts for a step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_writable(str(kwargs["args"].output_dir))
        with host_random_state(), _loading(kwargs["model"]):
            super().__init__(*args, **kwargs)
            self._random_state = RandomState.now()
        require_whole_model(self.accelerator)

    @contextmanager
    def own_random_state(self) -> Iterator[None]:
        """Within this context random numbers go on from where this trainer's were left."""
        with host_random_state():
            self._random_state.put_back()
            try:
                yield
            finally:
                self._random_state = RandomState.now()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in TRL."""
        with self.own_random_state():
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """TRL's sampler, where it has something to sample."""
        sampler, args = super()._get_train_sampler(dataset), self.args
        assert isinstance(sampler, RepeatSampler)
        require_some_steps(sampler.num_samples, sampler.batch_size, args.generation_batch_size, args.num_generations)
        return sampler

    def save_published(self, folder: Path) -> None:
        """Write the files that the repository shall hold."""
        raise NotImplementedError

    def published_card(self, **details: Any) -> CardParts:
        """What the model card is made from: the settings, and `details` such as `repo_id`, `license` and `tags`."""
        raise NotImplementedError

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, as transformers does.

        Raises:
            HubError: If that is not possible.
        """
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        with explained(f"{name!r} (hub_model_id) could not be pushed to", name, writing=True):
            super().init_hf_repo(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Upload the trained model in one commit.

        Args:
            commit_message: Title of the commit.
            blocking: Whether to wait until it is done; else a future is returned.
            token: Access token; default: `hub_token`, or the one that is logged in.
            revision: Branch; default: `hub_revision`.
            private: Whether a repository that is made here is private; default: `hub_private_repo`.
            kwargs: `license`, `tags` and `datasets` (or `dataset`) for the model card; others are not used.

        Returns:
            The commit; None on all processes but the first.

        Raises:
            HubError: If it could not be pushed.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        tags, datasets = _as_list(kwargs.get("tags")), _as_list(kwargs.get("datasets") or kwargs.get("dataset"))
        details = {"license": kwargs.get("license"), "tags": tags, "datasets": datasets}
        push = partial(self._upload, self._stage(), commit_message, token, revision, **details)
        return push() if blocking else run_as_future(push)

    def _stage(self) -> Path:
        """A folder with what is to be pushed as it is now, which training does not write to any more."""
        folder = Path(tempfile.mkdtemp(prefix="hf_mass-push-"))
        self.save_published(folder)
        card = Path(self.args.output_dir) / CARD_NAME
        if card.is_file() and NOT_MEASURED not in (text := card.read_text(encoding="utf-8")):
            (folder / CARD_NAME).write_text(text, encoding="utf-8")
        return folder

    def _upload(
        self, folder: Path, message: str | None, token: str | None = None, revision: str | None = None, **details: Any
    ) -> CommitInfo:
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        try:
            card = self.published_card(repo_id=self.hub_model_id, **details)
            return publish(folder, self.hub_model_id, card, token=token, revision=revision, commit_message=message)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """After a checkpoint was saved: push the model in the background, and the checkpoint if that is asked for."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not self.args.hub_always_push:
            return
        self._tell_of_failures()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {progress}"
        jobs: list[Future[Any]] = [run_as_future(partial(self._upload, self._stage(), message))]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            copy = Path(tempfile.mkdtemp(prefix="hf_mass-push-"))
            shutil.copytree(checkpoint_folder, copy, dirs_exist_ok=True)
            jobs.append(run_as_future(partial(self._upload_checkpoint, copy, name, f"{message}, checkpoint")))
        earlier = [] if self.push_in_progress is None else self.push_in_progress.jobs  # nobody was told of these yet
        self.push_in_progress: PushInProgress | None = PushInProgress([*earlier, *jobs])

    def _upload_checkpoint(self, folder: Path, name: str, message: str) -> CommitInfo:
        try:
            with explained(f"{name} could not be pushed to {self.hub_model_id!r}", self.hub_model_id, writing=True):
                return upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=folder,
                    path_in_repo=name,
                    ignore_patterns=[CARD_NAME],  # PEFT's, which may name a local path and be refused for it
                    commit_message=message,
                    token=self.args.hub_token,
                    revision=self.args.hub_revision,
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _finish_current_push(self) -> None:
        """Wait for pushes in the background, and tell of those that failed: transformers says nothing."""
        super()._finish_current_push()
        self._tell_of_failures()

    def _tell_of_failures(self) -> None:
        running: Any = getattr(self, "push_in_progress", None)
        for job in [] if running is None else [job for job in running.jobs if job.done()]:
            running.jobs.remove(job)
            if not job.cancelled() and (error := job.exception()) is not None:
                logger.warning("A push during training failed, and training went on. %s", error)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
