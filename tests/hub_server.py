"""A local server that speaks the Hugging Face hub's protocol, as far as data set repositories need it.

Files live in memory. Large files travel by Git LFS, as on the hub: the content is uploaded, the commit points to it.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Hub(http.server.ThreadingHTTPServer):
    """The server: repositories by name, each a list of commits, each a dictionary of contents by path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.objects, self.requests = {}, {}, []
        self.refuse = lambda method, path: None  # may return a status to answer with

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repository):
        """The contents of the newest commit by path."""
        return self.repositories[repository][-1]

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


def sha(repository, index):
    """Name of a commit."""
    return hashlib.sha1(f"{repository}/{index}".encode()).hexdigest()


def is_large(path):
    """What the hub's .gitattributes names."""
    return path.endswith((".parquet", ".safetensors"))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        self.server.requests.append((self.command, path))
        refused = self.server.refuse(self.command, path)
        if refused:
            self.answer(refused, {"error": "refused"})
            return
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                function(self, body, **match.groupdict())
                return
        self.answer(501, {"error": f"{self.command} {path} is not part of this server"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def chunks(self):
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    def commits(self, repository):
        """The commits of a repository, or None after the hub's answer for one that does not exist."""
        if repository not in self.server.repositories:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return self.server.repositories[repository]

    def commit(self, repository, revision):
        """Index of a commit, or None after the hub's answer for an unknown one."""
        commits = self.commits(repository)
        if commits is None:
            return None
        names = {sha(repository, index): index for index in range(len(commits))} | {"main": len(commits) - 1}
        if revision not in names:
            self.answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
            return None
        return names[revision]

    def create(self, body):
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization") or "me", asked["name"].split("/")[-1])))
        assert asked["type"] == "dataset"
        if name in self.server.repositories:
            self.answer(409, {"error": "You already created this dataset repo", "url": f"{self.server.address}/{name}"})
            return
        self.server.repositories[name] = [{".gitattributes": b"*.safetensors filter=lfs\n"}]
        self.answer(200, {"url": f"{self.server.address}/datasets/{name}", "name": name, "id": "1"})

    def delete(self, body):
        asked = json.loads(body)
        self.server.repositories.pop("/".join(filter(None, (asked.get("organization"), asked["name"]))), None)
        self.answer(200, {})

    def info(self, body, repository, revision="main"):
        index = self.commit(repository, revision)
        if index is not None:
            files = self.server.repositories[repository][index]
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            name = sha(repository, index)
            self.answer(200, {"id": repository, "sha": name, "siblings": siblings, "tags": [], "private": False})

    def tree(self, body, repository, revision, folder):
        index = self.commit(repository, revision)
        if index is not None:
            files = self.server.repositories[repository][index]
            prefix = f"{folder.strip('/')}/" if folder else ""
            below = {path: content for path, content in files.items() if path.startswith(prefix)}
            entries = [entry(path, content) for path, content in below.items()]
            if "recursive=true" not in self.path.lower():
                entries = [one for one in entries if "/" not in one["path"].removeprefix(prefix)]
                names = {path.removeprefix(prefix).split("/")[0] for path in below if "/" in path.removeprefix(prefix)}
                entries += [{"type": "directory", "path": prefix + name, "oid": "0", "size": 0} for name in names]
            self.answer(200, entries, X_Repo_Commit=sha(repository, index))

    def paths_info(self, body, repository, revision):
        index = self.commit(repository, revision)
        if index is not None:
            files, asked = self.server.repositories[repository][index], urllib.parse.parse_qs(body.decode())
            if "json" in (self.headers.get("Content-Type") or ""):
                asked = json.loads(body)
            entries = [entry(path, files[path]) for path in asked.get("paths", []) if path in files]
            folders = {path.split("/")[0] for path in files if "/" in path} & set(asked.get("paths", []))
            entries += [{"type": "directory", "path": name, "oid": "0", "size": 0} for name in folders]
            self.answer(200, entries)

    def preupload(self, body, repository, revision):
        if self.commit(repository, revision) is not None:
            files = [
                {"path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular"}
                | {"shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})

    def batch(self, body, repository):
        objects = [
            item | {"actions": {"upload": {"href": f"{self.server.address}/objects/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer(200)

    def receive(self, body, repository, revision):
        index = self.commit(repository, revision)
        if index is None:
            return
        files = dict(self.server.repositories[repository][index])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        self.server.repositories[repository].append(files)
        name = sha(repository, index + 1)
        address = f"{self.server.address}/datasets/{repository}/commit/{name}"
        self.answer(200, {"success": True, "commitOid": name, "commitUrl": address})

    def resolve(self, body, repository, revision, path):
        index = self.commit(repository, revision)
        if index is None:
            return
        content = self.server.repositories[repository][index].get(path)
        if content is None:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(200, content, ETag=etag, X_Repo_Commit=sha(repository, index))


def entry(path, content):
    """A file in a listing."""
    facts = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if is_large(path):
        facts["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return facts


_REPOSITORY, _REVISION = r"(?P<repository>[\w.-]+/[\w.-]+)", r"(?P<revision>[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("DELETE", "/api/repos/delete", Handler.delete),
    ("POST", "/api/validate-yaml", lambda handler, body: handler.answer(200, {"errors": [], "warnings": []})),
    ("GET", f"/api/datasets/{_REPOSITORY}", Handler.info),
    ("GET", f"/api/datasets/{_REPOSITORY}/revision/{_REVISION}", Handler.info),
    ("GET", f"/api/datasets/{_REPOSITORY}/tree/{_REVISION}(?P<folder>/.*)?", Handler.tree),
    ("POST", f"/api/datasets/{_REPOSITORY}/paths-info/{_REVISION}", Handler.paths_info),
    ("POST", f"/api/datasets/{_REPOSITORY}/preupload/{_REVISION}", Handler.preupload),
    ("POST", f"/datasets/{_REPOSITORY}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/objects/(?P<oid>\w+)", Handler.put),
    ("POST", f"/api/datasets/{_REPOSITORY}/commit/{_REVISION}", Handler.receive),
    ("HEAD", f"/datasets/{_REPOSITORY}/resolve/{_REVISION}/(?P<path>.+)", Handler.resolve),
    ("GET", f"/datasets/{_REPOSITORY}/resolve/{_REVISION}/(?P<path>.+)", Handler.resolve),
)
