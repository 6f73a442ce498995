"""A saved folder becomes a repository: it gets a card, others' missing base is warned about, and it is uploaded."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from hf_mass.store.card import CardParts, hub_id, write_basic_card
from hf_mass.store.hub_files import CARD_NAME, Token, fetch_card, push_folder
from hf_mass.store.shipped import shipped_name
from hf_mass.store.storage import read_json

logger = logging.getLogger(__name__)


def publish(
    folder: Path,
    repo_id: str,
    card: CardParts,
    *,
    token: Token = None,
    revision: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Give a saved model (a PEFT adapter, or one in generator/) a card, and upload it as `push_folder` does.

    A README.md that folder or repository has stays if more stands in it than in a basic card. The base is read from the
    folder.

    Raises:
        HubError: If it could not be pushed.
    """
    adapter = folder if (folder / "adapter_config.json").is_file() else folder / "generator"
    base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not shipped_name(base) and not hub_id(base):
        logger.warning(
            "The base model of %s is %s, which is not on the Hub: whoever loads %s needs that base, and passes it as "
            "`base=`. Push the base too, and load it from there before training.",
            repo_id,
            f"the local folder {base}" if base else "not known by name",
            repo_id,
        )
    if not (folder / CARD_NAME).is_file():
        fetch_card(folder, repo_id, token, revision)
    write_basic_card(folder, replace(card, base_model=base or None, repo_id=repo_id))
    return push_folder(folder, repo_id, token=token, revision=revision, **options)
