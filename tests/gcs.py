"""A server of the JSON API of Cloud Storage on loopback, as much of it as gcsfs, tensorstore and Orbax use.

    with gcs.serving() as server:
        subprocess.run(..., env={**os.environ, **server.env})      # any bucket is there
    with gcs.reached() as server:
        paths.path_of(f"{server.url}/run")                         # in this process
    python tests/gcs.py 4443                                       # for a look by hand

Preconditions on generations are held to, and objects are written whole, as in the real one. `server.refused` makes it
answer as to a machine without credentials. It is strict: what it does not know is an error (501) and printed.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class Stored(NamedTuple):
    data: bytes
    generation: int
    updated: str


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.objects: dict[str, Stored] = {}
        """By bucket/name."""
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.requests: list[str] = []
        self.lock, self.refused = threading.Lock(), False

    @property
    def bucket(self):
        """One of its own: clients remember where a bucket was."""
        return f"test-{self.server_address[1]}"

    @property
    def url(self):
        return f"gs://{self.bucket}"

    @property
    def env(self):
        """The variables by which the packages find it."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",  # of tensorstore
            "FSSPEC_GS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks for the kind of a bucket by gRPC
        }

    def write(self, key, data):
        old = self.objects.get(key)
        generation = max(time.time_ns() // 1000, 0 if old is None else old.generation + 1)
        self.objects[key] = Stored(data, generation, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    def put(self, name, data):
        """As if another one had written it."""
        self.write(f"{self.bucket}/{name}", data)

    def generation(self, name):
        """Of an object, another one each time it is written; 0 where there is none."""
        found = self.objects.get(f"{self.bucket}/{name}")
        return 0 if found is None else found.generation

    def put_all(self, name, directory):
        """The files of a directory as objects below a name."""
        for file in directory.rglob("*"):
            if file.is_file():
                self.put(f"{name}/{file.relative_to(directory).as_posix()}", file.read_bytes())

    def handle_error(self, request, address):
        """Clients that are killed are no error of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)

    def names(self, prefix=""):
        """Of all objects, by bucket/name."""
        return sorted(name for name in self.objects if name.startswith(prefix))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self):
        body = self._body()
        status, headers, answer = self._answer(self.command, self.path, dict(self.headers), body)
        if not isinstance(answer, bytes):
            answer, headers = json.dumps(answer).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_):
        pass

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, method, target, headers, body):
        """Status, headers and what is said."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in headers.items()}
        self.server.requests.append(f"{method} {target}")
        if self.server.refused:
            return self._error(401, "Anonymous caller does not have storage.objects.create access")
        for pattern, methods in (
            (BUCKET, {"GET": self._bucket}),
            (LISTING, {"GET": self._list}),
            (OBJECT, {"GET": self._get, "HEAD": self._get, "DELETE": self._delete}),
            (COPY, {"POST": self._copy}),
            (UPLOAD, {"POST": self._upload, "PUT": self._upload}),
        ):
            if (found := pattern.fullmatch(url.path)) and method in methods:
                with self.server.lock:
                    return methods[method]([unquote(x) for x in found.groups()], query, headers, body)
        print("tests/gcs.py does not know", method, target, file=sys.stderr)
        return self._error(501, f"{method} {target}")

    def _error(self, status, said):
        return status, {}, {"error": {"code": status, "message": said, "errors": [{"message": said}]}}

    def _bucket(self, names, query, headers, body):
        return 200, {}, {"kind": "storage#bucket", "id": names[0], "name": names[0]}

    def _list(self, names, query, headers, body):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, stop = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], []
        for key in self.server.names(f"{names[0]}/{prefix}"):
            name = key.partition("/")[2]
            if name < first or (stop is not None and name >= stop):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.append(prefix + head + found)
            else:
                items.append(self._said(key))
        shown = [*dict.fromkeys(prefixes), *items]
        begin, most = int(query.get("pageToken", 0)), int(query.get("maxResults", 1000))
        page = shown[begin : begin + most]
        more = {"nextPageToken": str(begin + most)} if begin + most < len(shown) else {}
        of = lambda kind: [x for x in page if isinstance(x, kind)]
        return 200, {}, {"kind": "storage#objects", "items": of(dict), "prefixes": of(str), **more}

    def _said(self, key):
        bucket, _, name = key.partition("/")
        data, generation, updated = self.server.objects[key]
        times = dict.fromkeys(("timeCreated", "updated", "timeStorageClassUpdated"), updated)
        numbers = {"size": str(len(data)), "generation": str(generation), "metageneration": "1"}
        kind = {"kind": "storage#object", "id": f"{key}/{generation}", "storageClass": "STANDARD"}
        return {**kind, "bucket": bucket, "name": name, "etag": str(generation), **numbers, **times}

    def _fails(self, key, query):
        """Whether a precondition does not hold: 412, or 304 of a reader that has the newest."""
        stored = self.server.objects.get(key)
        now = 0 if stored is None else stored.generation
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            return 412
        return 304 if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now else 0

    def _get(self, names, query, headers, body):
        key = "/".join(names)
        if key not in self.server.objects:
            return self._error(404, f"No such object: {key}")
        if fails := self._fails(key, query):
            return fails, {}, b""
        if query.get("alt") != "media":
            return 200, {}, self._said(key)
        data, generation, _ = self.server.objects[key]
        tells = {"x-goog-generation": str(generation), "x-goog-stored-content-length": str(len(data))}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        if found is None or not data:
            return 200, tells, data
        begin = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
        end = min(len(data), int(found[2]) + 1) if found[1] and found[2] else len(data)
        if begin >= end:
            return self._error(416, "The requested range cannot be satisfied.")
        return 206, {**tells, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[begin:end]

    def _delete(self, names, query, headers, body):
        key = "/".join(names)
        if fails := self._fails(key, query):
            return self._error(fails, "precondition")
        if self.server.objects.pop(key, None) is None:
            return self._error(404, f"No such object: {key}")
        return 204, {}, b""

    def _copy(self, names, query, headers, body):
        source, target = "/".join(names[:2]), "/".join(names[2:])
        if source not in self.server.objects:
            return self._error(404, f"No such object: {source}")
        self.server.write(target, self.server.objects[source].data)
        return 200, {}, {"kind": "storage#rewriteResponse", "done": True, "resource": self._said(target)}

    def _upload(self, names, query, headers, body):
        kind = query["uploadType"]
        if kind == "multipart":
            meta, body = _parts(headers["content-type"], body)
            name = json.loads(meta)["name"]
        elif kind == "resumable" and "upload_id" in query:
            key, before = self.server.uploads[query["upload_id"]]
            body = before + body
            self.server.uploads[query["upload_id"]] = key, body
            if not re.fullmatch(
                r"bytes .*/\d+", headers.get("content-range", "bytes /1")
            ):  # its end is not known
                return 308, {"Range": f"bytes=0-{len(body) - 1}"} if body else {}, b""
            name = key
        else:
            name = query.get("name") or json.loads(body)["name"]
        key = f"{names[0]}/{name}"
        if fails := self._fails(key, query):
            return self._error(fails, "precondition")
        if kind == "resumable" and "upload_id" not in query:
            number = str(len(self.server.uploads))
            self.server.uploads[number] = name, b""
            return 200, {"Location": f"http://{headers['host']}{self.path}&upload_id={number}"}, {}
        self.server.write(key, body)
        return 200, {}, self._said(key)


def _parts(kind, body):
    """What is in the parts of a multipart body."""
    mark = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
    end = b"\r\n" if body.lstrip().startswith(mark + b"\r\n") else b"\n"
    parts = (end + body.lstrip()).split(end + mark)[1:-1]
    return [part.split(end + end, 1)[1] for part in parts]


@contextlib.contextmanager
def serving(port=0) -> Iterator[Server]:
    """A server in a thread."""
    server = Server(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def reached() -> Iterator[Server]:
    """The same, where this process finds it."""
    from fsspec.config import conf

    with serving() as server:
        before, settings = dict(os.environ), dict(conf)
        os.environ.update(server.env)
        conf["gs"] = {"token": "anon", "use_listings_cache": False}
        try:
            yield server
        finally:
            os.environ.clear()
            os.environ.update(before)
            conf.clear()
            conf.update(settings)


if __name__ == "__main__":
    with serving(int(sys.argv[1])) as server:
        print("".join(f"export {name}={value}\n" for name, value in server.env.items()), flush=True)
        time.sleep(1e9)
