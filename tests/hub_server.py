"""HTTP in front of `EmulatedHub`: which path asks for what, headers, ranges, redirects, and faults."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_card_check import card_problems
from hub_emulator import Account, ApiError, EmulatedHub, Fault, entry

Groups = dict[str, str]
REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: EmulatedHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours."""


@contextmanager
def serving(hub: EmulatedHub) -> Iterator[EmulatedHub]:
    """Answer at the hub's port until the end of the block."""
    server = _Server(("", hub.port), _Handler)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    who: Account | None

    def log_message(self, *args: Any) -> None:
        """Tests have the list of requests instead."""

    def handle_any(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(self.path)
        body = self._body()
        with hub.lock:
            hub.requests.append((self.command, path, token))
            fault = hub.fault(self.command, path)
        if fault is not None and self._failed(fault):
            return
        try:
            with hub.lock:
                self.who = None if parts.path.startswith(("/cdn/", "/put/")) else hub.account(token)
                route, groups = self._route(parts.path)
                send = route(self, groups, parse_qs(parts.query), body)
            send(fault)
        except ApiError as error:
            self._error(error)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _failed(self, fault: Fault) -> bool:
        """Whether the fault is all of the answer."""
        threading.Event().wait(fault.seconds)  # time.sleep may be patched
        if fault.kind == "drop":
            self.close_connection = True
        elif isinstance(fault.kind, int):
            self._error(ApiError(fault.kind, "the emulated Hub was told to fail"))
        return fault.kind == "drop" or isinstance(fault.kind, int)

    def _route(self, path: str) -> tuple[Callable[..., Callable[[Fault | None], None]], Groups]:
        for method, pattern, route in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == ("GET" if self.command == "HEAD" else self.command):
                return route, {name: unquote(value or "") for name, value in found.groupdict().items()}
        raise ApiError(404, f"Sorry, we can't find the page you are looking for: {path}", "RepoNotFound")

    # -- answers -------------------------------------------------------------------------------------------------------

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Request-Id": "emulated", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, error: ApiError) -> None:
        codes = {"X-Error-Code": error.code} if error.code else {}
        body = json.dumps({"error": error.message, **error.body}).encode()
        self._send(error.status, body, {"Content-Type": "application/json", "X-Error-Message": error.message, **codes})

    def json(self, value: Any, status: int = 200) -> Callable[[Fault | None], None]:
        body = json.dumps(value).encode()
        return lambda fault: self._send(status, body, {"Content-Type": "application/json"})

    def file(self, data: bytes, headers: dict[str, str]) -> Callable[[Fault | None], None]:
        """A file's content, or the part of it that was asked for."""

        def send(fault: Fault | None) -> None:
            content, status = data, 200
            if fault is not None and fault.kind == "wrong" and data:
                content = data[:-1] + bytes([data[-1] ^ 1])
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(asked[1]), int(asked[2] or len(data) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
                content, status = content[start : end + 1], 206
            if fault is not None and fault.kind == "short":
                content = content[: len(content) // 2]
            length = len(content)
            if fault is not None and fault.kind == "cut" and self.command == "GET":
                content, self.close_connection = content[: length // 2], True
            self._send(status, content, {"Accept-Ranges": "bytes", **headers}, length)

        return send


def _repo(h: _Handler, groups: Groups, **needs: bool) -> Any:
    return h.server.hub.repo(groups["repo"], h.who, **needs)


def _whoami(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    if h.who is None:
        raise ApiError(401, "Invalid username or password.")
    role = "write" if h.who.write else "read"
    return h.json({"type": "user", "name": h.who.name, "orgs": [], "auth": {"accessToken": {"role": role}}})


def _validate(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    errors, warnings = card_problems(json.loads(body)["content"])
    h.server.hub.card_warnings += warnings
    found = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return h.json(found, 400 if errors else 200)


def _create(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    return h.json(h.server.hub.create(h.who, json.loads(body)))


def _delete(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    asked = json.loads(body)
    owner = asked.get("organization") or (h.who.name if h.who else "")
    repo = h.server.hub.repo(f"{owner}/{asked['name']}", h.who, write=True)
    del h.server.hub.repos[repo.id]
    return h.json({})


def _branch(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    start = json.loads(body or b"{}").get("startingPoint", "main")
    h.server.hub.branch(_repo(h, groups, write=True), groups["branch"], start)
    return h.json({})


def _preupload(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    repo = _repo(h, groups, write="create_pr" not in query)
    return h.json(h.server.hub.upload_modes(repo, groups["revision"], json.loads(body)["files"]))


def _batch(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    _repo(h, groups)
    return h.json(h.server.hub.batch(groups["repo"], json.loads(body)["objects"]))


def _verify(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    asked = json.loads(body)
    if len(h.server.hub.large.get(asked["oid"], b"")) != asked["size"]:
        raise ApiError(404, "the uploaded object is not there")
    return h.json({})


def _put(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    h.server.hub.large[groups["oid"]] = body
    return h.json({})


def _commit(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    pull_request = "create_pr" in query
    repo = _repo(h, groups, write=not pull_request)
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    return h.json(h.server.hub.commit(repo, groups["revision"], lines, pull_request))


def _tree(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    recursive = query.get("recursive", ["false"])[0].lower() == "true"
    return h.json(h.server.hub.tree(_repo(h, groups), groups["revision"], groups["path"], recursive))


def _paths(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    repo, asked = _repo(h, groups), parse_qs(body.decode()).get("paths", [])
    files = repo.commits[h.server.hub.commit_of(repo, groups["revision"])]
    return h.json([entry(path, files[path]) for path in asked if path in files])


def _refs(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    return h.json(h.server.hub.refs(_repo(h, groups)))


def _info(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    return h.json(h.server.hub.info(_repo(h, groups), groups.get("revision") or "main"))


def _resolve(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    hub, path = h.server.hub, groups["path"]
    repo = _repo(h, groups, content=True)
    sha = hub.commit_of(repo, groups["revision"])
    blob = repo.commits[sha].get(path)
    if blob is None:
        error = ApiError(404, "Entry not found", "EntryNotFound")
        return lambda fault: h._send(404, b"", {"X-Error-Code": error.code or "", "X-Repo-Commit": sha})
    headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"'}
    if not blob.large:
        return h.file(blob.data, headers)
    target = f"{hub.storage}/cdn/{blob.sha256}?name={quote(path)}"
    linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data)), "Location": target}
    return lambda fault: h._send(302, b"", {**headers, **linked})


def _stored(h: _Handler, groups: Groups, query: Any, body: bytes) -> Any:
    if "Authorization" in h.headers:
        raise ApiError(400, "a token was sent to the storage")
    return h.file(h.server.hub.large[groups["oid"]], {"ETag": '"the storage has its own"'})


API = f"/api/models/{REPO}"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/validate-yaml", _validate),
    ("POST", "/api/repos/create", _create),
    ("DELETE", "/api/repos/delete", _delete),
    ("POST", f"{API}/branch/(?P<branch>[^/]+)", _branch),
    ("POST", f"{API}/preupload/{REVISION}", _preupload),
    ("POST", f"{API}/commit/{REVISION}", _commit),
    ("POST", f"{API}/paths-info/{REVISION}", _paths),
    ("GET", f"{API}/tree/{REVISION}(?:/(?P<path>.+))?", _tree),
    ("GET", f"{API}/refs", _refs),
    ("GET", f"{API}/revision/{REVISION}", _info),
    ("GET", API, _info),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", _batch),
    ("POST", f"/{REPO}.git/info/lfs/verify", _verify),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _resolve),
    ("GET", "/cdn/(?P<oid>[0-9a-f]{64})", _stored),
    ("PUT", "/put/(?P<oid>[0-9a-f]{64})", _put),
]
