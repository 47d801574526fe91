"""A Hub on loopback that speaks enough of the protocol for uploads by the real huggingface_hub client."""

import hashlib
import json
import threading
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_" + "FakeTokenOfTheTests" * 2


@dataclass
class Repository:
    """One model repository: is it private, its files by name, and the names of the files in each commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    renamed_to: str | None = None

    @property
    def head(self) -> str:
        """The id of the last commit."""
        return hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """Everything that a client sent, so that tests can search it for secrets."""

    method: str
    path: str
    headers: str
    body: bytes


@dataclass(frozen=True)
class Answer:
    """The answer to a request; an object or list goes out as JSON, bytes as they are."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


# Instead of an answer, the connection is cut: before the request is carried out, or after.
CUT = Answer("cut")
CUT_AFTER = Answer("cut after")


class FakeHub:
    """The server, as a context manager. What it got is in `repositories`, `blobs` and `requests`.

    `faults` maps a stage (whoami, list, create, info, resolve, validate, preupload, lfs, put, commit) to the
    answer to give there, and `transient` to answers that are given once each; `before` holds functions to
    call before an answer. A stage in `hanging` is never answered, and `hung` is set once a client waits
    there. With `creates_public` every new repository is public, whatever was asked, otherwise only those of
    `public_names`; names in `taken` belong to something that is not a model. `account` answers whoami.
    """

    def __init__(self, user: str = "lab") -> None:
        self.user = user
        self.creates_public = False
        self.public_names: set[str] = set()
        self.taken: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, Answer] = {}
        self.transient: dict[str, list[Answer]] = {}
        self.before: dict[str, Callable[[], None]] = {}
        self.account: dict[str, Any] = {
            "name": user,
            "type": "user",
            "orgs": [{"name": "institute", "roleInOrg": "write"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
        }
        self.hanging: set[str] = set()
        self.hung = threading.Event()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def endpoint(self) -> str:
        """The address, as HF_ENDPOINT takes it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """The variables that send the real client here, with a token that is accepted."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: Request, authorized: bool) -> Answer:
        """Carry out one request."""
        stage, respond = self._route(request)
        if stage in self.hanging:
            self.hung.set()
            self.closing.wait()
        if stage in self.before:
            self.before[stage]()
        transient = self.transient.get(stage)
        fault = transient.pop(0) if transient else self.faults.get(stage)
        if fault is not None and fault is not CUT_AFTER:
            return fault
        if stage != "put" and not authorized:
            return Answer({"error": "Invalid credentials in Authorization header"}, 401)
        answer = respond()
        return answer if fault is None else fault

    def _route(self, request: Request) -> tuple[str, Callable[[], Answer]]:
        match [request.method, *request.path.strip("/").split("/")]:
            case ["GET", "api", "whoami-v2"]:
                return "whoami", lambda: Answer(self.account)
            case ["POST", "api", "repos", "create"]:
                return "create", lambda: self._create(json.loads(request.body))
            case ["POST", "api", "validate-yaml"]:
                return "validate", lambda: Answer({"errors": [], "warnings": []})
            case ["GET", "api", "models"]:
                return "list", self._list
            case ["GET" | "HEAD", owner, name, "resolve", _, file]:
                return "resolve", lambda: self._resolve(f"{owner}/{name}", file)
            case ["GET", "api", "models", owner, name, *_]:
                return "info", lambda: self._info(f"{owner}/{name}")
            case ["POST", "api", "models", owner, name, "preupload", "main"]:
                return "preupload", lambda: self._preupload(f"{owner}/{name}", json.loads(request.body))
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                return "lfs", lambda: self._lfs_batch(json.loads(request.body))
            case ["PUT", "lfs", oid]:
                return "put", lambda: self._put(oid, request.body)
            case ["POST", "api", "models", owner, name, "commit", "main"]:
                return "commit", lambda: self._commit(f"{owner}/{name}", request.body)
        return "unknown", lambda: Answer({"error": f"no such page: {request.path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> Answer:
        repository_id = f"{asked['organization'] or self.user}/{asked['name']}"
        url = {"url": f"{self.endpoint}/{repository_id}"}
        if repository_id in self.repositories:
            return Answer(url | {"error": "You already created this model repo"}, 409)
        if repository_id in self.taken:
            return Answer(url | {"error": "This name is taken"}, 409)
        # Clients before 1.0 say `private`, later ones `visibility`.
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.repositories[repository_id] = Repository(
            private=private and not self.creates_public and repository_id not in self.public_names
        )
        return Answer(url)

    def _info(self, repository_id: str) -> Answer:
        repository = self.repositories.get(repository_id)
        if repository is None:
            return Answer({"error": "Repository not found"}, 404)
        return Answer(self._described(repository_id, repository))

    def _described(self, repository_id: str, repository: Repository) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in sorted({".gitattributes", *repository.files})]
        about = {"private": repository.private, "sha": repository.head, "siblings": siblings}
        return about | {"id": repository.renamed_to or repository_id}

    def _list(self) -> Answer:
        return Answer([self._described(*item) for item in self.repositories.items()])

    def _resolve(self, repository_id: str, name: str) -> Answer:
        repository = self.repositories[repository_id]
        if name not in repository.files:
            return Answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = repository.files[name]
        headers = {"ETag": f'"{_oid(content, large=False)}"', "X-Repo-Commit": repository.head}
        return Answer(content, 200, headers)

    def _preupload(self, repository_id: str, asked: dict[str, Any]) -> Answer:
        files = self.repositories[repository_id].files
        modes = []
        for path in (file["path"] for file in asked["files"]):
            large = path.endswith(".safetensors")
            modes.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(files[path], large) if path in files else None,
                }
            )
        return Answer({"files": modes})

    def _lfs_batch(self, asked: dict[str, Any]) -> Answer:
        objects: list[dict[str, Any]] = []
        for item in asked["objects"]:
            known = item["oid"] in self.blobs
            upload = {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{item['oid']}"}}}
            objects.append({"oid": item["oid"], "size": item["size"]} | ({} if known else upload))
        return Answer({"transfer": "basic", "objects": objects})

    def _put(self, oid: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return Answer({"error": "other bytes than were promised"}, 400)
        self.blobs[oid] = body
        return Answer({})

    def _commit(self, repository_id: str, body: bytes) -> Answer:
        repository = self.repositories[repository_id]
        entries = [json.loads(line) for line in body.splitlines()]
        (header,) = (entry["value"] for entry in entries if entry["key"] == "header")
        if header.get("parentCommit", repository.head) != repository.head:
            return Answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = {e["value"]["path"]: b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
        files |= {e["value"]["path"]: self.blobs[e["value"]["oid"]] for e in entries if e["key"] == "lfsFile"}
        repository.files |= files
        repository.commits.append(sorted(files))
        url = f"{self.endpoint}/{repository_id}/commit/{repository.head}"
        return Answer({"commitUrl": url, "commitOid": repository.head, "success": True})


def _oid(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: tests kill clients in the middle of a request."""


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self) -> None:
            request = Request(self.command, urlsplit(self.path).path, str(self.headers), self._body())
            hub.requests.append(request)
            answer = hub.answer(request, self.headers.get("Authorization") == f"Bearer {TOKEN}")
            if answer in (CUT, CUT_AFTER):
                self.close_connection = True
                return
            whole = isinstance(answer.content, bytes)
            content = answer.content if whole else json.dumps(answer.content).encode()
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
            for name, value in (headers | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _respond  # noqa: N815 - the base class wants these names

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the tests' output clean."""

    return Handler
