"""A mock of the bucket services `gs` and `s3`, which stores objects in a local folder.

As in a real bucket, folders exist only as prefixes of names, objects cannot be renamed or appended
to, writes are atomic, and a client caches listings unless it is told not to.
"""

import contextlib
import http.server
import os
import pathlib
import re
import sys
import tempfile
import threading
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractBufferedFile

ROOT = "BUCKETS"  # environment variable: the folder, with a subfolder per bucket


class Object(AbstractBufferedFile):
    """An object that is open for reading or writing."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)

    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.pipe_file(self.path, b"".join(self.parts))
        return True


class Buckets(fsspec.AbstractFileSystem):
    """The file system of the mock."""

    protocol = ("gs", "gcs", "s3")

    def _file(self, path):
        bucket, _, key = self._strip_protocol(path).partition("/")
        return pathlib.Path(os.environ[ROOT], bucket, quote(key, safe=""))

    def _keys(self, bucket):
        folder = pathlib.Path(os.environ[ROOT], bucket)
        return {unquote(name): folder / name for name in os.listdir(folder)}

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        if path in self.dircache:
            found = self.dircache[path]
        else:
            found = self.dircache[path] = self._ls(path)  # not stored without a listings cache
        return found if detail else [one["name"] for one in found]

    def _ls(self, path):
        bucket, _, prefix = path.partition("/")
        found = {}
        for key, file in self._keys(bucket).items():
            if key == prefix or (not prefix or key.startswith(f"{prefix}/")):
                rest = key[len(prefix) :].strip("/")
                name = "/".join(filter(None, (bucket, prefix, rest.partition("/")[0])))
                if "/" in rest:
                    found[name] = {"name": name, "size": 0, "type": "directory"}
                else:
                    size = file.stat().st_size
                    found[name] = {"name": name, "size": size, "type": "file"}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values())

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if self._file(path).is_file():
            return {"name": path, "size": self._file(path).stat().st_size, "type": "file"}
        self._ls(path)
        return {"name": path, "size": 0, "type": "directory"}

    def mkdir(self, path, create_parents=True, **_):
        """Does nothing: buckets have no folders."""

    def makedirs(self, path, exist_ok=False):
        """Does nothing: buckets have no folders."""

    def cat_file(self, path, start=None, end=None, **_):
        return self._file(path).read_bytes()[start:end]

    def pipe_file(self, path, value, mode="overwrite", **_):
        file = self._file(path)
        handle, new = tempfile.mkstemp(dir=os.environ[ROOT])
        with open(handle, "wb") as written:
            written.write(value)
        if mode == "create":
            os.link(new, file)  # fails if the object exists
            os.unlink(new)
        else:
            os.replace(new, file)
        self.dircache.clear()

    def put_file(self, lpath, rpath, **_):
        self.pipe_file(rpath, pathlib.Path(lpath).read_bytes())

    def cp_file(self, path1, path2, **_):
        self.pipe_file(path2, self.cat_file(path1))

    def _rm(self, path):
        self._file(path).unlink()
        self.dircache.clear()

    def mv(self, *_, **__):
        raise NotImplementedError("objects are not renamed")

    def _open(self, path, mode="rb", block_size=None, **options):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"objects are not opened with {mode!r}")
        return Object(self, path, mode, block_size or 2**20)


@contextlib.contextmanager
def registered():
    """Context manager: replaces the real services in this process by the mock."""
    register()
    try:
        yield
    finally:
        for kind in Buckets.protocol:
            del sys.modules["fsspec.registry"]._registry[kind]
        Buckets.clear_instance_cache()


def register():
    """Replaces the real services in this process by the mock, if the variable `ROOT` is set."""
    if ROOT in os.environ:
        for kind in Buckets.protocol:
            fsspec.register_implementation(kind, Buckets, clobber=True)


def upload(folder, address):
    """Copies the files of a folder into a bucket."""
    files = Buckets()
    for path in map(pathlib.Path, pathlib.Path(folder).rglob("*")):
        if path.is_file():
            files.put_file(path, f"{address}/{path.relative_to(folder)}")


class _Downloads(http.server.BaseHTTPRequestHandler):
    """Answers downloads by Google's JSON API, the only requests of the readers of records."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked = re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/?]+)\?alt=media", self.path)
        file = asked and pathlib.Path(os.environ[ROOT], asked[1], quote(unquote(asked[2]), safe=""))
        if not file or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = int(last) + 1 if first and last else len(content)
        part = content[start:end]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the reader has disconnected early
            super().handle()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def downloads():
    """Context manager: serves objects by HTTP, for libraries in C++; yields the address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Downloads) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
