"""A server on this machine that answers as the Hugging Face hub does, or as it fails.

It serves random weights under the real names of repositories. Large files are on a
second server, as the hub has them at other hosts, by a redirect with their SHA-256.
Every request is kept, to be looked at.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pt", ".model")  # what the hub keeps apart
_PIECE = 1 << 16


class Request(NamedTuple):
    server: str
    method: str
    path: str
    headers: dict


class Hub:
    """As a context manager: up inside, and gone after.

    Attributes
    ----------
    repositories : dict
        Repository to name of a file to its bytes, or a function that makes them when
        they are first asked for.
    fault : str or None
        What goes wrong from now on: a status code ("404", "401", "503"; "429" asks to
        come back in an hour), of every answer or, after "file ", of those that send
        large files; "zeroed" (content after 1 MB), "truncated" (half of a file, as if
        it were all), "longer" (with more behind it), "dropped" (the first answer with
        each large file ends early), "breaking" (every one does, from its start),
        "stalled" (silent amid a file), "silent" (no answer), "slow" (a pause after each
        piece), "trickling" (a byte now and then, for ever).
    requests : list of Request
    """

    def __init__(self, repositories):
        self.repositories, self.fault, self.requests = repositories, None, []
        self.stop = threading.Event()
        self._made, self._lock = {}, threading.Lock()

    def __enter__(self):
        self._servers = [_start(self, "hub"), _start(self, "files")]
        hub, files = (server.server_address[1] for server in self._servers)
        # Two names of this machine are two hosts, as for the hub and its files.
        self.endpoint = f"http://127.0.0.1:{hub}"
        self.files = f"http://localhost:{files}"
        return self

    def __exit__(self, *error):
        self.stop.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, *, server=None, method=None):
        """Paths of the requests so far."""
        return [
            request.path
            for request in self.requests
            if server in (None, request.server) and method in (None, request.method)
        ]

    def read(self, repository, name):
        """Return a file's bytes; None if there is none."""
        content = self.repositories.get(repository, {}).get(name)
        if callable(content):
            with self._lock:
                if (repository, name) not in self._made:
                    self._made[repository, name] = content()
            content = self._made[repository, name]
        return content


def _start(hub, name):
    handler = type("Handler", (_Handler,), {"hub": hub, "name": name})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *args):
        pass

    def answer(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.name, self.command, self.path, headers)
        self.hub.requests.append(request)
        fault = self.hub.fault or ""
        self.path = re.sub(r"^http://[^/]+", "", self.path)  # asked as a proxy
        if fault == "silent":
            self.hub.stop.wait(60)
            self.close_connection = True
        elif fault == "401":
            self.refuse(401, "RepoNotFound")
        elif fault.isdigit():
            self.refuse(int(fault), "EntryNotFound" if fault == "404" else None)
        elif self.name == "files":
            self.answer_with_large_file(fault)
        elif found := re.match(
            r"/(?:api/models/)?([^?]+)/resolve/[^/]+/(.+)", self.path
        ):
            self.answer_with_file(*found.groups())
        elif found := re.match(r"/api/models/([^?]+?)(/tree/.*)?$", self.path):
            self.answer_about(found[1], bool(found[2]))
        else:
            self.send(200, b"", {})

    def answer_with_file(self, repository, name):
        content = self.hub.read(repository, name)
        if repository not in self.hub.repositories:
            return self.refuse(401, "RepoNotFound")  # as if it were private
        if content is None:
            return self.refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": COMMIT}
        if not name.endswith(LARGE):
            blob = b"blob %d\0" % len(content) + content
            headers["ETag"] = f'"{hashlib.sha1(blob).hexdigest()}"'
            return self.send(200, content, headers)
        headers["X-Linked-Size"] = str(len(content))
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        headers["Location"] = f"{self.hub.files}/{repository}/{name}?signature=secret"
        return self.send(302, b"", headers)

    def answer_about(self, repository, as_tree):
        files = self.hub.repositories.get(repository)
        if files is None:
            return self.refuse(401, "RepoNotFound")
        about = {"id": repository, "modelId": repository, "sha": COMMIT, "tags": []}
        about["siblings"] = [{"rfilename": name} for name in files]
        tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
        text = json.dumps(tree if as_tree else about).encode()
        return self.send(200, text, {"Content-Type": "application/json"})

    def answer_with_large_file(self, fault):
        repository, _, name = self.path.split("?")[0][1:].rpartition("/")
        content = self.hub.read(repository, name)
        if fault.startswith("file "):
            return self.refuse(int(fault[5:]), None)
        if fault == "zeroed":
            content = content[: 1 << 20] + bytes(len(content) - (1 << 20))
        if fault == "truncated":
            content = content[: len(content) // 2]
        if fault == "longer":
            content = content + bytes(1000)
        start = 0
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and fault != "breaking":
            start = int(asked[1])
        size, headers = len(content), {"Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        rest = content[start:]
        self.send(206 if start else 200, rest, headers, fault)

    def refuse(self, status, code):
        headers = {"X-Error-Code": code} if code else {}
        if status == 404:
            headers["X-Repo-Commit"] = COMMIT
        if status == 429:
            headers["Retry-After"] = "3600"
        self.send(status, b"{}", headers)

    def send(self, status, content, headers, fault=""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        is_first = self.hub.asked(method="GET").count(self.path) == 1
        if fault in ("stalled", "breaking") or fault == "dropped" and is_first:
            content = content[: len(content) // 2]
            self.close_connection = True
        piece, pause = (1, 0.1) if fault == "trickling" else (_PIECE, 0.01)
        try:
            for start in range(0, len(content), piece):
                self.wfile.write(content[start : start + piece])
                if fault in ("slow", "trickling"):
                    time.sleep(pause)
            if fault == "stalled":
                self.hub.stop.wait(60)
        except OSError:
            pass  # the other side has hung up


# What a user's process does with the lines that it is given, one by one.
_SESSION = """
import json, resource, sys, time
import numpy as np
import open_clip
from skclip_icm import CLIPFeaturizer, unload_models

open_clip.add_model_config(sys.argv[1])
pictures = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), np.uint8)
options = {"device": "cpu", "dtype": "float32", "backend": "torch"}
for line in sys.stdin:
    asked = json.loads(line)
    unload_models()
    if "largest_file" in asked:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"] or hard, hard))
        asked = {}
    start, answer = time.monotonic(), {}
    try:
        for model in asked.get("models", ()):
            name, tag, texts = (*model, None, None)[:3]
            clip = CLIPFeaturizer(name, tag, interventions=None, **options)
            answer[name] = clip.transform(pictures).tolist()
            if texts:
                answer[name] = clip.encode_text(texts).tolist()
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    answer["seconds"] = time.monotonic() - start
    print(json.dumps(answer), flush=True)
"""


class User:
    """A process of its own that loads models from a hub, as a context manager."""

    def __init__(self, endpoint, home, configs, **environment):
        self._command = [sys.executable, "-c", _SESSION, str(configs)]
        left_out = ("HF_", "HUGGING_FACE_", "TRANSFORMERS_")
        here = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        self._environment = {
            **here,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HOME": str(home),
            "NO_PROXY": "localhost,127.0.0.1",
            "PYTHONWARNINGS": "ignore",
            **environment,
        }

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def load(self, *models):
        """Return embeddings by name; or the error and its message."""
        return self._ask(models=models)

    def kill_once(self, is_so, *models, by=signal.SIGKILL):
        """End the process by a signal while it loads, as soon as something is so."""
        self._send(models=models)
        while not is_so() and self._process.poll() is None:
            time.sleep(0.01)
        self._process.send_signal(by)

    def limit_files(self, size):
        """Let no file grow above a size, as on a full disk; None ends that."""
        self._ask(largest_file=size)

    def _send(self, **asked):
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _ask(self, **asked):
        self._send(**asked)
        return json.loads(self._process.stdout.readline())
