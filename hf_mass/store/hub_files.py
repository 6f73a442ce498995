"""Saved models on the Hub: downloaded whole or not at all, pushed with nothing else, failures explained in plain words.

Only safetensors, JSON and text are read or written: no pickles, no code, no checkpoints.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    HfApi,
    constants,
    get_cached_repo_tree,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects

from hf_mass import __version__
from hf_mass.errors import CheckpointError, HubError

Token = str | bool | None
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""Patterns of what is downloaded and pushed; they hold below folders too."""
OTHER_FILES = ("checkpoint-*", "last-checkpoint/*", ".*", "*/.*", "_*")
"""Of these, what is no part of a saved model."""
CARD_NAME = "README.md"
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.ENOTDIR}
_LOG_IN = "log in with `hf auth login`, or pass `token=` (`--token`)"


# -- reading -----------------------------------------------------------------------------------------------------------


def download_snapshot(repo_id: str, revision: str | None = None, token: Token = None) -> Path:
    """Download a saved model's files, all of one commit, and check their hashes.

    Without a network the files come from the cache alone. What was downloaded before a failure stays there for the next
    call.

    Args:
        repo_id: owner/name.
        revision: Branch, tag or commit.
        token: Access token; None for the one that is logged in, False for none.

    Returns:
        The folder in the Hub cache.

    Raises:
        HubError: If the files cannot be had; it says why and what helps.
    """
    patterns: dict[str, Any] = {"allow_patterns": list(FILES), "ignore_patterns": list(OTHER_FILES)}
    download = partial(snapshot_download, repo_id, revision=revision, token=token, **patterns)
    with explained(f"{repo_id!r} is neither a folder nor a Hub repository that could be downloaded", repo_id, revision):
        require_known_token(repo_id, token)
        try:
            folder = Path(download())
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError):
                raise
            try:  # the cache alone, as the client itself does where no connection comes about
                folder = Path(download(local_files_only=True))
            except LocalEntryNotFoundError as missing:
                raise missing from error
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        _require_intact([folder / name for name in filter_repo_objects(names, **patterns)])
    return folder


_KNOWN_TOKENS: set[tuple[str, str]] = set()


def require_known_token(repo_id: str, token: Token = None) -> None:
    """Checks that the Hub knows the token that would be sent, where it can be reached; once for each token.

    The client keeps quiet about a token that is refused where the cache has a copy.

    Raises:
        HfHubHTTPError: If it does not.
    """
    sent = None if token is False else token if isinstance(token, str) else get_token()
    if sent is None or constants.is_offline_mode() or (constants.ENDPOINT, sent) in _KNOWN_TOKENS:
        return
    try:
        HfApi(endpoint=constants.ENDPOINT).model_info(repo_id, token=sent, timeout=10)
    except HfHubHTTPError as error:
        if error.response.status_code == 401 and re.search("credential|token", error.server_message or ""):
            raise
    except (HTTPError, OSError):  # out of reach: the cache is what there is
        return
    _KNOWN_TOKENS.add((constants.ENDPOINT, sent))


def cached_folder(repo_id: str, commit: str, cache_dir: str | Path | None = None) -> Path:
    """Where the downloaded files of a repository's commit lie."""
    folder = repo_folder_name(repo_id=repo_id, repo_type="model")
    return Path(cache_dir or constants.HF_HUB_CACHE) / folder / "snapshots" / commit


def listed_files(repo_id: str, folder: Path) -> set[str]:
    """Returns the names of all files in the repository at the commit of a downloaded folder, downloaded or not."""
    try:
        return {file.path for file in get_cached_repo_tree(repo_id, revision=folder.name)}
    except CachedRepoTreeNotFoundError:  # the cache was filled by something else
        return set()


@contextmanager
def checked_download(repo_id: str, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Check the hashes of all that is downloaded from a repository within this context, by any library.

    What was in the cache before is not hashed again.

    Raises:
        OSError: If a file is damaged; it is no longer in the cache.
    """
    blobs = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    before = set(blobs.glob("*"))
    yield
    _require_intact(sorted(set(blobs.glob("*")) - before))


def _require_intact(files: list[Path]) -> None:
    # The cache names content by its hash; on plain downloads the client compares sizes only.
    damaged_names = []
    for file in files:
        blob = file.parent / os.readlink(file) if file.is_symlink() else file
        if blob.is_file() and not _is_intact(blob):
            damaged_names.append(file.name)
            blob.unlink()
    if damaged_names:
        raise OSError(
            f"the content of {', '.join(damaged_names)} does not have the hash that the Hub lists. It is removed from "
            "the cache; load it again"
        )


def _is_intact(blob: Path) -> bool:
    """Whether the content has the hash in its name: sha256 for large files, git's (or plain) sha1 for others."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        digests = [hashlib.sha256()]
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        digests = [hashlib.sha1(b"blob %d\0" % blob.stat().st_size), hashlib.sha1()]
    else:
        return True  # named by something else
    with blob.open("rb") as file:
        while part := file.read(1 << 20):
            for digest in digests:
                digest.update(part)
    return blob.name in [digest.hexdigest() for digest in digests]


# -- writing -----------------------------------------------------------------------------------------------------------


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: Token = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload the files of a saved model in one commit; a missing repository or branch is created.

    Args:
        folder: Folder of the saved model.
        repo_id: owner/name; a bare name is one of the token's owner.
        private: Whether a repository that is made here is private; default: as the owner's settings say.
        token: Access token; None for the one that is logged in.
        revision: Branch to push to; default: main.
        commit_message: Title of the commit.
        create_pr: Open a pull request instead of committing to the branch.

    Raises:
        HubError: If it could not be pushed; it says why and what helps.
        CheckpointError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder, so there is nothing to push. Save the model first.")
    api = HfApi(token=token, library_name="hf_mass", library_version=__version__)
    with explained(f"{repo_id!r} could not be pushed to", repo_id, revision, writing=True):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload with hf_mass",
            allow_patterns=[*FILES, CARD_NAME],
            ignore_patterns=list(OTHER_FILES),
        )


def fetch_card(folder: str | Path, repo_id: str, token: Token = None, revision: str | None = None) -> None:
    """Copy the README.md of a repository into a folder, so that a push keeps what somebody wrote there.

    Raises:
        HubError: If the Hub cannot be asked.
    """
    with explained(f"{repo_id!r} could not be pushed to", repo_id, revision, writing=True):
        try:
            hf_hub_download(repo_id, CARD_NAME, revision=revision, token=token, local_dir=folder)
        except (EntryNotFoundError, HfHubHTTPError) as error:
            # A server without the Hub's headers answers a bare 404. Missing rights show when the repository is written.
            statuses = {cause.response.status_code for cause in _chain(error) if isinstance(cause, HfHubHTTPError)}
            if statuses.isdisjoint((401, 403, 404)):
                raise


# -- what went wrong ---------------------------------------------------------------------------------------------------


@contextmanager
def explained(
    subject: str, repo_id: str, revision: str | None = None, writing: bool = False, cure: str = ""
) -> Iterator[None]:
    """Turn what the client raises into an error that says what is wrong and what helps.

    Args:
        subject: How the message begins.
        repo_id: The repository.
        revision: The revision that was asked for.
        writing: Whether something is pushed.
        cure: What else helps; the end of the message.

    Raises:
        HubError: If the repository, the network or the cache is the reason.
        CheckpointError: If it is something else about the files.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, HTTPError, RevisionResolutionError, ValueError, RuntimeError) as error:
        chain = _chain(error)
        reason = _access_problem(chain, repo_id, revision, writing) or _network_problem(chain, writing)
        reason = reason or (None if writing else _disk_problem(chain))
        if reason is None and isinstance(error, RuntimeError) and not isinstance(error, RecursionError):  # no memory
            raise
        kind = CheckpointError if reason is None else HubError
        raise kind(f"{subject}: {reason or _first_lines(error)}. {cure}".rstrip()) from error


def _chain(error: BaseException) -> list[BaseException]:
    """Returns the error, its cause, the cause of that, and so on."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _access_problem(chain: list[BaseException], repo_id: str, revision: str | None, writing: bool) -> str | None:
    """What the Hub answered: nothing there, or not for this token."""
    cause = next((error for error in chain if isinstance(error, HfHubHTTPError | HFValidationError)), None)
    if cause is None:
        return None
    if isinstance(cause, HFValidationError):
        return f"this is no id of a repository (owner/name): {_first_lines(cause)}"
    status = cause.response.status_code
    answer = cause.server_message or ""
    if isinstance(cause, GatedRepoError):
        return f"it is gated. Ask for access at {constants.ENDPOINT}/{repo_id}, then {_LOG_IN}"
    if isinstance(cause, RevisionNotFoundError):
        return f"it has no revision {revision!r}. Give a branch, tag or commit that it has as `revision=`"
    if isinstance(cause, RemoteEntryNotFoundError):
        return f"a file is missing there ({cause.response.url})"
    if status == 401 and re.search("credential|token", answer):
        return "the Hub does not know the token (`token=`, HF_TOKEN, or the one of `hf auth login`). Log in again"
    if status in (401, 404) and writing:
        return f"it cannot be written to without a token that may ({answer}): {_LOG_IN}"
    if status in (401, 404):
        other = "" if revision is None else f", or has no revision {revision!r}"
        return f"it does not exist{other}, or is private. Check the name; if it is private, {_LOG_IN}"
    if status == 403:
        return f"the token has no right to do this ({answer}). Use one with the right: {_LOG_IN}"
    if status == 429 or status >= 500:
        return f"the Hub answers {status}, a failure of its own or too many requests. Try again later"
    if status == 413:
        return f"a file or the request is too large for the Hub or a proxy before it (413: {_first_lines(chain[0])})"
    told = _first_lines(chain[0])
    return told if str(status) in told else f"{told} (the Hub answers {status}{answer and ': '}{answer})"


def _network_problem(chain: list[BaseException], writing: bool) -> str | None:
    """The Hub was not reached, and the cache could not help."""
    cause = next((e for e in chain if isinstance(e, OfflineModeIsEnabled | HTTPError)), None)
    if cause is None:
        return None
    offline = isinstance(cause, OfflineModeIsEnabled)
    state = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached ({_first_lines(cause)})"
    cure = "Unset it, and try again" if offline else "Connect, and try again"
    if writing:
        return f"{state}. {cure}"
    cache = f"the cache ({constants.HF_HUB_CACHE}) has no whole copy of it"
    incomplete = next((e for e in chain if isinstance(e, IncompleteSnapshotError)), None)
    if incomplete is not None:
        cache += f": {_first_lines(incomplete).split(': ', 1)[-1].split('. ')[0]}"
    return f"{state}, and {cache}. {cure}"


def _disk_problem(chain: list[BaseException]) -> str | None:
    """The cache has no room or is read-only, or a file was cut off."""
    for error in chain:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            return (
                f"the cache cannot be written ({error}). Make {constants.HF_HUB_CACHE} writable with room in it, or "
                "set HF_HUB_CACHE to another folder"
            )
        if "Consistency check failed" in str(error):
            return f"a file was cut off on the way ({_first_lines(error)}). Try again"
    return None


def _first_lines(error: BaseException) -> str:
    """The client's own words, in one line."""
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
