"""What every test stands on: a real server, a client for it, and its command line.

    server = Server("--dev").start()                  # own data directory in a temporary folder, superuser made
    posts = server.make("posts", ["title", "n:number"])   # open rules unless told otherwise
    record = server.add("posts", {"title": "x"})
    assert server.get(f"/api/collections/posts/records/{record['id']}").json == record
    assert server.stop() == 0

The program under test is `pocketbase.py` beside this folder; the environment variable POCKETBASE_CMD names another one
(the frozen executable, or any PocketBase-compatible server), so that all black-box tests can be pointed at it.
"""
import functools
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GIVEN = [os.path.abspath(word) if os.path.exists(word) else word for word in shlex.split(os.environ.get("POCKETBASE_CMD", ""))]
COMMAND = GIVEN or [sys.executable, os.path.join(HOME, "pocketbase.py")]
SUPERUSER = ("root@example.com", "1234567890")
RULES = ("listRule", "viewRule", "createRule", "updateRule", "deleteRule")
PATIENCE = 60    # seconds after which a server that shows no sign of life counts as broken; never a timing assertion


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(args, command=None, **options):
    """Runs the program under test to its end, without a terminal."""
    options = {"capture_output": True, "text": True, "timeout": PATIENCE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([*(command or COMMAND), *args], **options)


@functools.cache
def _seed(command):
    """A data directory that has the superuser, made once by the command line and copied for each new server."""
    folder = tempfile.TemporaryDirectory(prefix="pb-seed-")
    done = run(["superuser", "upsert", *SUPERUSER, "--dir", os.path.join(folder.name, "pb_data")], command, cwd=folder.name)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Response:
    """An answer: status, headers (case-insensitive), body (bytes), text, and json (None unless the body is JSON)."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @functools.cached_property
    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __repr__(self):
        return f"<{self.status} {self.text[:500]}>"


class Server:
    """One `serve` process on a data directory: `work/pb_data`, with `work` as its working directory.

    `dir` names an existing data directory to serve in place; without it a new one is made, with the superuser unless
    `superuser=False`. More arguments of `serve` go first: Server("--dev", "--origins", "http://a.com").
    """

    def __init__(self, *args, dir=None, env=None, superuser=True, command=None):
        self.args, self.env, self.command = args, {**os.environ, **(env or {})}, tuple(command or COMMAND)
        self.temporary = None if dir else tempfile.TemporaryDirectory(prefix="pb-test-")
        self.dir = os.path.abspath(dir) if dir else os.path.join(self.temporary.name, "pb_data")
        self.work = os.path.dirname(self.dir)
        if self.temporary:
            self.env["TMPDIR"] = self.work    # what a killed frozen executable had unpacked goes with the folder
        if not dir and superuser:
            shutil.copytree(os.path.join(_seed(self.command).name, "pb_data"), self.dir)
        self.process, self.port, self.log = None, None, ""
        self._news, self._local, self._su = threading.Condition(), threading.local(), None

    # ---- life
    def start(self, wait=True):
        """Starts it on a free port, and returns once it answers."""
        self.port = self.port or free_port()
        command = [*self.command, "serve", "--dir", self.dir, "--http", f"127.0.0.1:{self.port}", *self.args]
        self.process = subprocess.Popen(command, cwd=self.work, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        seen = len(self.log)
        self._reader = threading.Thread(target=self._read_log, args=(self.process.stdout,), daemon=True)
        self._reader.start()
        if wait:
            self.wait_log(r"Server started at http", seen)
            self._connect().close()
        return self

    def _read_log(self, pipe):
        with pipe:
            for line in pipe:
                with self._news:
                    self.log += line.decode("utf-8", "replace")
                    self._news.notify_all()

    def wait_log(self, pattern, start=0, timeout=PATIENCE):
        """Waits until what the process printed (after position `start`) matches the pattern, and returns the match."""
        search = re.compile(pattern).search
        with self._news:
            self._news.wait_for(lambda: search(self.log, start) or not self._reader.is_alive(), timeout)
            found = search(self.log, start)
        assert found, f"{pattern!r} was never printed; the log:\n{self.log[-3000:]}"
        return found

    def stop(self, signum=signal.SIGTERM):
        """Asks it to end, and returns its exit code."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.send_signal(signum)
        try:
            process.wait(PATIENCE)
        finally:
            _kill_group(process)
            self._reader.join(PATIENCE)
            self._local = threading.local()
        return process.returncode

    def kill9(self):
        """Ends it as a crash or a power cut would: no handler runs."""
        _kill_group(self.process)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.process, self._local = None, threading.local()

    def restart(self):
        code = self.stop()
        assert code == 0, f"exit code {code}; the log:\n{self.log[-3000:]}"
        return self.start()

    def close(self):
        """Stops it if it runs, and removes a data directory that it made."""
        if self.process is not None:
            self.kill9()
        if self.temporary:
            self.temporary.cleanup()

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, *error):
        self.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def cli(self, *args, **options):
        """Runs another command on the same data directory: server.cli("superuser", "delete", "a@b.co")."""
        return run([*args, "--dir", self.dir], self.command, cwd=self.work, env=self.env, **options)

    def db(self, sql, *values, file="data.db"):
        """Rows of a query on the database file itself, read-only."""
        db = sqlite3.connect(f"file:{urllib.parse.quote(os.path.join(self.dir, file))}?mode=ro", uri=True, timeout=PATIENCE)
        try:
            return db.execute(sql, values).fetchall()
        finally:
            db.close()

    # ---- requests
    def _connect(self):
        """A connection; tries again while the port is not open yet."""
        end = time.monotonic() + PATIENCE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            try:
                connection.connect()
                return connection
            except ConnectionRefusedError:
                if time.monotonic() > end or self.process is None or self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def request(self, method, path, json=None, token=None, headers=None, form=None, urlenc=None, body=None, params=None):
        """Sends one request on this thread's kept-alive connection.

        Body, one of: `json` any value; `form` a dict sent as multipart, where a value is text, bytes, a list of values, or a file
        (name, bytes) or (name, bytes, type); `urlenc` a dict; `body` bytes or text as they are. `params` is the query.
        """
        headers = dict(headers or {})
        if token:
            headers.setdefault("Authorization", token)
        body, kind = _encode(json, form, urlenc, body)
        if kind:
            headers.setdefault("Content-Type", kind)
        if params:
            path += ("&" if "?" in path else "?") + urllib.parse.urlencode(params, doseq=True)
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._exchange(connection, method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                pass    # a kept-alive connection may have been closed meanwhile; a new one may not
        return self._exchange(self._connect(), method, path, body, headers)

    def _exchange(self, connection, method, path, body, headers):
        self._local.connection = None
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            response = Response(answer.status, answer.headers, answer.read())
        except Exception:
            connection.close()
            raise
        if not answer.will_close:
            self._local.connection = connection
        return response

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def head(self, path, **options):
        return self.request("HEAD", path, **options)

    def post(self, path, json=None, **options):
        return self.request("POST", path, json, **options)

    def patch(self, path, json=None, **options):
        return self.request("PATCH", path, json, **options)

    def put(self, path, json=None, **options):
        return self.request("PUT", path, json, **options)

    def delete(self, path, **options):
        return self.request("DELETE", path, **options)

    def raw(self, data, timeout=PATIENCE):
        """Sends bytes as they are on a connection of its own, and returns everything until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def events(self, *topics, token=None):
        """An open realtime connection, subscribed to the topics."""
        return Events(self, topics, token)

    # ---- the product's words
    @property
    def su(self):
        """The superuser's token."""
        self._su = self._su or self.login("_superusers", *SUPERUSER)
        return self._su

    def login(self, collection, identity, password="1234567890"):
        """The token of a record that logs in with its password."""
        response = self.post(f"/api/collections/{collection}/auth-with-password", {"identity": identity, "password": password})
        assert response.status == 200, response
        return response.json["token"]

    def make(self, name, fields=(), type="base", **options):
        """Creates a collection and returns it. A field is a dict, or text: "title" (a text field), "n:number".

        Its rules are open ("") unless given: make("notes", ["text"], listRule=None, viewRule="owner = @request.auth.id").
        """
        rules = dict.fromkeys(RULES[:2] if type == "view" else RULES, "")
        model = {"name": name, "type": type, "fields": [_field(field) for field in fields], **rules, **options}
        if type == "view":
            del model["fields"]
        response = self.post("/api/collections", model, token=self.su)
        assert response.status == 200, response
        return response.json

    def add(self, collection, body=None, **options):
        """Creates a record as superuser (unless `token` says otherwise) and returns it; `form=` for files."""
        options.setdefault("token", self.su)
        json = None if options.get("form") else (body or {})
        response = self.post(f"/api/collections/{collection}/records", json, **options)
        assert response.status == 200, response
        return response.json

    def add_user(self, email, collection="users", password="1234567890", **fields):
        """Creates an auth record and returns it."""
        return self.add(collection, {"email": email, "password": password, "passwordConfirm": password, **fields})

    def settings(self, **changes):
        """Changes settings: server.settings(batch={"enabled": True})."""
        response = self.patch("/api/settings", changes, token=self.su)
        assert response.status == 200, response
        return response.json


class Events:
    """A realtime (SSE) connection: `next()` gives (topic, data) of the next message, None when the server ended the stream."""

    def __init__(self, server, topics=(), token=None):
        self.server, self.token = server, token
        self.connection = server._connect()
        self.connection.request("GET", "/api/realtime", headers={"Accept": "text/event-stream"})
        self.response = self.connection.getresponse()
        self.client_id = self.next()[1]["clientId"]
        if topics:
            answer = self.subscribe(*topics)
            assert answer.status == 204, answer

    def subscribe(self, *topics):
        body = {"clientId": self.client_id, "subscriptions": list(topics)}
        return self.server.post("/api/realtime", body, token=self.token)

    def next(self, timeout=PATIENCE):
        """Waits for one message; raises TimeoutError when none comes in time."""
        if self.connection.sock:
            self.connection.sock.settimeout(timeout)
        frame = {}
        while line := self.response.readline():
            line = line.decode().rstrip("\r\n")
            if line and not line.startswith(":"):
                name, _, value = line.partition(":")
                frame[name] = value.removeprefix(" ")
            elif frame:
                return frame.get("event", "message"), json.loads(frame.get("data", "null"))
        return None

    def close(self):
        self.response.close()
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def _kill_group(process):
    """A frozen executable is two processes, so the whole group goes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _field(field):
    if isinstance(field, str):
        name, _, kind = field.partition(":")
        return {"name": name, "type": kind or "text"}
    return field


def _encode(value, form, urlenc, body):
    """The body of a request and its content type."""
    if form is not None:
        return _multipart(form)
    if urlenc is not None:
        return urllib.parse.urlencode(urlenc, doseq=True), "application/x-www-form-urlencoded"
    if body is not None:
        return body.encode() if isinstance(body, str) else body, None
    if value is not None:
        return json.dumps(value).encode(), "application/json"
    return None, None


def _multipart(form):
    boundary, out = "----test-boundary-7d3f1c", []
    for name, values in form.items():
        for value in values if isinstance(values, list) else [values]:
            file_name, kind = "", ""
            if isinstance(value, tuple):
                file_name, value, kind = value if len(value) == 3 else (*value, "application/octet-stream")
                file_name, kind = f'; filename="{file_name}"', f"\r\nContent-Type: {kind}"
            content = value if isinstance(value, bytes) else str(value).encode()
            out.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file_name}{kind}\r\n\r\n'.encode() + content + b"\r\n")
    return b"".join(out) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
