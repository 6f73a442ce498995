"""A Hub on localhost for `huggingface_hub`'s own client: repositories, commits, large files, rights, and faults.

What the real one answers is answered alike (status, headers, error codes), without xet: clients run with
HF_HUB_DISABLE_XET=1. Large files are served from another origin (localhost instead of 127.0.0.1), as by a CDN, so a
client must not send its token there. Everything is kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".png")


@dataclass
class Account:
    """Whoever has a token: what they may write to is what lies under their name."""

    name: str
    write: bool = True


@dataclass(frozen=True)
class Blob:
    """A file's content; `large` ones are named by their sha256, others by their git hash."""

    data: bytes
    large: bool

    @property
    def git_hash(self) -> str:
        data = self.data
        if self.large:
            data = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\n" % self.sha256.encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_hash


@dataclass
class Repo:
    """Commits as whole trees, and what branches and pull requests point to."""

    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, Blob], message: str) -> str:
        content = "".join(f"{path} {blob.etag}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{content}{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[sha], self.refs[ref] = files, sha
        self.messages.append(message)
        return sha

    def files(self, ref: str = "main") -> dict[str, bytes]:
        """Content by path."""
        return {path: blob.data for path, blob in self.commits[self.refs[ref]].items()}


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path contains a match of `pattern`.

    `kind` is a status (503), or "cut" (the connection ends in the middle of the body), "short" (half of the content, as
    if it were all), "wrong" (a byte changed), "slow" (the answer comes after `seconds`) or "drop" (no answer).
    """

    pattern: str
    kind: int | str
    times: int = 1
    method: str | None = None
    seconds: float = 0.0


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body or {}


class EmulatedHub:
    """The state of the Hub; `hub_server` stands in front of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.lock = threading.RLock()  # held while a request is answered, not while a body is sent
        self.reset()

    def reset(self) -> None:
        self.accounts = {"hf_alice": Account("alice"), "hf_bob": Account("bob"), "hf_reader": Account("alice", False)}
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.card_warnings: list[str] = []

    # -- for tests -----------------------------------------------------------------------------------------------------

    def add(self, name: str, files: dict[str, bytes] | None = None, **options: Any) -> Repo:
        """A repository, put there without a client."""
        repo = self.repos[name] = Repo(name, **options)
        blobs = {path: Blob(data, path.endswith(LARGE)) for path, data in (files or {}).items()}
        self.large.update({blob.sha256: blob.data for blob in blobs.values() if blob.large})
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False), **blobs}, "initial commit")
        return repo

    def fail(self, pattern: str, kind: int | str, times: int = 1, **options: Any) -> None:
        """Let something go wrong; see `Fault`."""
        self.faults.append(Fault(pattern, kind, times, **options))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that is due, which counts it."""
        for fault in self.faults:
            if fault.times > 0 and fault.method in (None, method) and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def asked(self, pattern: str, method: str | None = None) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, p) is not None and method in (None, m) for m, p, _ in self.requests)

    # -- rights --------------------------------------------------------------------------------------------------------

    def account(self, token: str | None) -> Account | None:
        if token is not None and token not in self.accounts:
            raise ApiError(401, "Invalid credentials in Authorization header")
        return None if token is None else self.accounts[token]

    def repo(self, name: str, who: Account | None, write: bool = False, content: bool = False) -> Repo:
        repo = self.repos.get(name)
        owned = who is not None and name.split("/")[0] == who.name
        if repo is None or (repo.private and not owned):
            raise ApiError(404 if who else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and not owned and (who is None or who.name not in repo.granted):
            message = f"Access to model {name} is restricted."
            raise ApiError(403 if who else 401, message, "GatedRepo")
        if write and not (owned and who is not None and who.write):
            raise ApiError(403 if who else 401, "Forbidden: you don't have write access to this repository")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.refs.get(revision, revision if revision in repo.commits else None)
        if sha is None:
            raise ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # -- writing -------------------------------------------------------------------------------------------------------

    def create(self, who: Account | None, asked: dict[str, Any]) -> dict[str, Any]:
        if who is None:
            raise ApiError(401, "Invalid username or password.")
        owner = asked.get("organization") or who.name
        name = f"{owner}/{asked['name']}"
        if owner != who.name or not who.write:
            raise ApiError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if name in self.repos:
            raise ApiError(409, "You already created this model repo", body={"url": f"{self.endpoint}/{name}"})
        self.add(name, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return {"url": f"{self.endpoint}/{name}", "name": name}

    def branch(self, repo: Repo, branch: str, start: str) -> None:
        if branch in repo.refs:
            raise ApiError(409, f"Reference already exists: {branch}")
        repo.refs[branch] = self.commit_of(repo, start)

    def upload_modes(self, repo: Repo, revision: str, files: list[dict[str, Any]]) -> dict[str, Any]:
        known = repo.commits[self.commit_of(repo, revision)]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) or file["size"] > 10_000_000 else "regular",
                    "shouldIgnore": False,
                    **({"oid": known[file["path"]].etag} if file["path"] in known else {}),
                }
                for file in files
            ]
        }

    def batch(self, name: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
        def action(found: dict[str, Any]) -> dict[str, Any]:
            if found["oid"] in self.large:
                return found
            verify = {"href": f"{self.endpoint}/{name}.git/info/lfs/verify"}
            return {**found, "actions": {"upload": {"href": f"{self.storage}/put/{found['oid']}"}, "verify": verify}}

        return {"transfer": "basic", "objects": [action(each) for each in objects]}

    def commit(self, repo: Repo, revision: str, lines: list[dict[str, Any]], pull_request: bool) -> dict[str, Any]:
        files = dict(repo.commits[self.commit_of(repo, revision)])
        header = lines[0]["value"]
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    raise ApiError(400, f"LFS pointer of {path} points to a file that does not exist")
                files[path] = Blob(self.large[value["oid"]], True)
            else:
                files = {p: b for p, b in files.items() if p != path and not p.startswith(path.rstrip("/") + "/")}
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = f"refs/pr/{number}" if pull_request else revision
        sha = repo.commit(ref, files, header["summary"])
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.endpoint}/{repo.id}/commit/{sha}"}
        return answer | ({"pullRequestUrl": f"{self.endpoint}/{repo.id}/discussions/{number}"} if pull_request else {})

    # -- reading -------------------------------------------------------------------------------------------------------

    def info(self, repo: Repo, revision: str) -> dict[str, Any]:
        sha = self.commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        flags = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
        return {"_id": "0", "id": repo.id, "modelId": repo.id, "sha": sha, "tags": [], "siblings": siblings, **flags}

    def tree(self, repo: Repo, revision: str, below: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        files = repo.commits[self.commit_of(repo, revision)]
        inside = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(files.items()):
            if not path.startswith(inside):
                continue
            rest = path.removeprefix(inside).split("/")
            for depth in range(1, len(rest)):
                folder = inside + "/".join(rest[:depth])
                if recursive or depth == 1:
                    found[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            if recursive or len(rest) == 1:
                found[path] = entry(path, blob)
        if below and not found:
            raise ApiError(404, f"{below} does not exist on {revision!r}", "EntryNotFound")
        return list(found.values())

    def refs(self, repo: Repo) -> dict[str, Any]:
        listed = [
            {"name": n, "ref": n if "/pr/" in n else f"refs/heads/{n}", "targetCommit": s} for n, s in repo.refs.items()
        ]
        pulls = [ref for ref in listed if ref["name"].startswith("refs/pr/")]
        return {"branches": [r for r in listed if r not in pulls], "tags": [], "converts": [], "pullRequests": pulls}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    """A file as the tree lists it."""
    listed = {"type": "file", "oid": blob.git_hash, "size": len(blob.data), "path": path}
    large = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return {**listed, "lfs": large} if blob.large else listed
