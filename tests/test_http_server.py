"""The HTTP server on real sockets: strict parsing, keep-alive, bodies, streams, WebSocket, files, limits, a clean end.

Run as a program this file is the server under test: `test_http_server.py '{"idle_seconds": 1}' [certificate]`.
"""
import contextlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))      # the demo application runs this file as a program

HOST = b"Host: x\r\n"
CLOSE = HOST + b"Connection: close\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\n" + CLOSE + b"\r\n"
WHEN = 1700000000
WHEN_TEXT = "Tue, 14 Nov 2023 22:13:20 GMT"


# ---- The application under test

def demo_application(server, root):
    import gevent
    from pocketbase import ApiError

    headers = (("Content-Type", "application/json"), ("Vary", "Origin"))
    counters = {"streams": 0, "errors": 0}

    def ticks(request):
        counters["streams"] += 1
        try:
            yield b"data: 0\n\n"
            while not request.connection.server.closing.wait(float(request.header("x-every", "30"))):
                yield b"data: tick\n\n"
            yield b"data: bye\n\n"
        finally:
            counters["streams"] -= 1

    def broken():
        yield b"first"
        raise RuntimeError("in the middle")

    def echo_frames(websocket):
        while (message := websocket.receive()) is not None:
            websocket.send(message)

    def read_slowly(request):
        total = 0
        while part := request.stream.read(100_000):
            total += len(part)
        return str(total)

    def describe(request):
        return json.dumps({"method": request.method, "path": request.path, "raw": request.raw_path, "query": request.query, "ip": request.remote_ip,
                           "version": request.version, "scheme": request.scheme, "host": request.header("Host"),
                           "headers": request.headers, "length": request.content_length, "counters": counters})

    def form(request):
        from bottle import BaseRequest
        request.body(1 << 20)
        return json.dumps(dict(BaseRequest(request.environ).forms.decode()))

    answers = {
        "/describe": describe,
        "/echo": lambda request: request.body(1000 if request.query.get("limit") else 1 << 24),
        "/count": read_slowly,
        "/form": form,
        "/ticks": lambda request: server.Response(200, [("Content-Type", "text/event-stream")], ticks(request)),
        "/items": lambda request: server.Response(200, headers, iter([b"one", b"", b"two"])),
        "/broken": lambda request: server.Response(200, headers, broken()),
        "/websocket": lambda request: server.websocket_accept(request, echo_frames, protocols=("chat",), max_message=70_000),
        "/sleep": lambda request: gevent.sleep(float(request.query["s"][0])) or b"slept",
        "/fail": lambda request: 1 / 0,
        "/empty": lambda request: server.Response(204, headers),
        "/big": lambda request: b"x" * 5_000_000,
        "/split": lambda request: server.Response(200, [("X-A", "a\r\nX-B: b")], b""),
        "/health": lambda request: b'{"code":200}',
    }

    def handle(request):
        try:
            answer = answers[request.path](request) if request.path in answers else server.serve_static(
                request, root, request.path, request.header("x-fallback") != "no")
        except ApiError as exc:
            return server.Response(exc.status, headers, exc.message)
        return answer if isinstance(answer, server.Response) else server.Response(200, headers, answer)

    def on_error(exc, request):
        counters["errors"] += 1

    return handle, on_error


def run_demo(limits, certificate):
    import gevent
    import gevent.event
    import gevent.ssl
    import pocketbase as server

    handle, on_error = demo_application(server, os.getcwd() + "/public")
    context = None
    if certificate:
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    web = server.HttpServer(handle, "127.0.0.1", 0, ssl_context=context, limits=server.Limits(**limits), on_error=on_error)
    web.start()
    print(web.port, flush=True)
    stop = gevent.event.Event()
    gevent.signal_handler(signal.SIGTERM, stop.set)
    stop.wait()
    web.stop(grace=1.0)
    print("stopped", flush=True)


class Server:
    """The demo in a process of its own, and a raw client for it."""

    def __init__(self, directory, limits=None, certificate="", **options):
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), json.dumps(limits or {}), certificate],
                                        stdout=subprocess.PIPE, cwd=directory, text=True, **options)
        self.port = int(self.process.stdout.readline())

    def connect(self, timeout=5):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def send(self, data, timeout=5):
        """Everything the server answers to `data` until it closes."""
        with self.connect(timeout) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            return read_to_end(sock)

    def get(self, path, *headers, method="GET"):
        lines = "".join(line + "\r\n" for line in headers)
        return Answer(self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode()))

    def counters(self):
        return self.get("/describe").json()["counters"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stdout.close()


class Answer:
    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}

    def json(self):
        return json.loads(self.body)


def read_to_end(sock):
    data = b""
    while True:
        try:
            part = sock.recv(65536)
        except ConnectionError:
            return data
        if not part:
            return data
        data += part


def read_until(sock, mark):
    data = b""
    while mark not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


def is_closed(sock):
    return sock.recv(1) == b""


def eventually(check, seconds=5):
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    home = tmp_path_factory.mktemp("web")
    files = {"index.html": b"<h1>home</h1>", "text.txt": b"hello text", "big.txt": b"0123456789" * 20000, "empty.txt": b"", "noext": b"plain",
             "page": b"<!DOCTYPE html><p>", "app.mjs": b"1", "style.css": b"a{}", "sub/index.html": b"<h1>sub</h1>", "bare/x.txt": b"x",
             "name with space.txt": b"space", "data.bin": b"\0\1\2", "\u00fcn\u00ef.txt": b"unicode"}
    for name, content in files.items():
        path = home / "public" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (WHEN, WHEN))
    (home / "secret.txt").write_text("secret")
    (home / "public" / "out.txt").symlink_to("../secret.txt")
    (home / "public" / "outdir").symlink_to("..")
    (home / "public" / "inside.txt").symlink_to("text.txt")
    os.mkfifo(home / "public" / "pipe")
    return home


@pytest.fixture(scope="session")
def web(directory):
    server = Server(directory)
    yield server
    server.stop()


@pytest.fixture
def hurried(directory):
    """A server whose patience is over at once."""
    server = Server(directory, {"head_seconds": 1, "idle_seconds": 1, "body_grace": 1, "write_seconds": 1, "linger_seconds": 1, "drain_bytes": 1000})
    yield server
    server.stop()


# ---- Parsing

def test_a_simple_request_is_answered(web):
    answer = web.get("/health")
    assert (answer.status, answer.body) == (200, b'{"code":200}')
    assert answer.headers["content-length"] == "12"
    assert answer.headers["connection"] == "close"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])


BAD_HEADS = [
    b"GARBAGE\r\n\r\n", b"GET /health\r\n\r\n", b"\r\nGET /health HTTP/1.1\r\n" + HOST + b"\r\n", b" GET /health HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /health http/1.1\r\n" + HOST + b"\r\n", b"GET /health HTTP/1.10\r\n" + HOST + b"\r\n", b"GET /he alth HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", b"GET\t/health\tHTTP/1.1\r\n" + HOST + b"\r\n", b"GET health HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", b"GET mailto:x HTTP/1.1\r\n" + HOST + b"\r\n", b"CONNECT x:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"G(T /health HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /\x7f HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /%zz HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /% HTTP/1.1\r\n" + HOST + b"\r\n", b"GET /health HTTP/1.1\n" + HOST + b"\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\n\n", b"GET /health HTTP/1.1\nHost: x\n\n", b"\x16\x03\x01\x02\x00\x01",
    *[b"GET /health HTTP/1.1\r\n" + HOST + line + b"\r\n\r\n" for line in (
        b"X", b": y", b" X: y", b"X: y\r\n folded", b"X: y\r\n\tfolded", b"X: a\0b", b"X: a\x01b", b"X: a\x7fb", b"X: a\rb", b"X: a\nY: b",
        b"X\xe9: y", b"X(: y", b"X\0: y", b"Host: x", b"Host: y")],
]


@pytest.mark.parametrize("data", BAD_HEADS)
def test_what_is_not_http_is_refused_and_the_connection_closed(web, data):
    assert web.send(data + (b"" if data[0] == 22 else NEXT)) == (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request")


@pytest.mark.parametrize(("head", "text"), [
    (b"GET / HTTP/1.1\r\n", "400 Bad Request: missing required Host header"),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n", "400 Bad Request: malformed Host header"),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n", "400 Bad Request: malformed Host header"),
    (b"GET / HTTP/1.1\r\nX : y\r\n" + HOST, "400 Bad Request: invalid header name"),
    (b"GET / HTTP/1.1\r\nX y: z\r\n" + HOST, "400 Bad Request: invalid header name"),
    (b"GET / HTTP/2.0\r\n" + HOST, "505 HTTP Version Not Supported: unsupported protocol version"),
    (b"GET / HTTP/0.9\r\n" + HOST, "505 HTTP Version Not Supported: unsupported protocol version"),
    (b"GET / HTTP/1.1\r\nX: " + b"y" * 1_200_000 + b"\r\n" + HOST, "431 Request Header Fields Too Large"),
    (b"GET /" + b"y" * 1_200_000 + b" HTTP/1.1\r\n" + HOST, "431 Request Header Fields Too Large"),
    (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 600 + HOST, "431 Request Header Fields Too Large"),
    (b"POST /echo HTTP/1.1\r\nExpect: magic\r\nContent-Length: 1\r\n" + HOST, "417 Expectation Failed"),
])
def test_refusals_say_why(web, head, text):
    raw = web.send(head + b"\r\n")
    assert raw.startswith(f"HTTP/1.1 {text}\r\n".encode())
    assert raw.endswith(b"\r\n\r\n" + text.encode())


FRAMINGS = [
    b"Content-Length: 2\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 2", b"Content-Length: 2\r\nContent-Length: 2",
    b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: 2, 2", b"Content-Length: +2", b"Content-Length: -2", b"Content-Length: 0x2",
    b"Content-Length: 2_0", b"Content-Length: ", b"Content-Length: 2 2", b"Content-Length: 99999999999999999999",
    b"Content-Length: 9223372036854775808",
    b"Content-Length: \xc2\xb2", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: \tchunked", b"Transfer-Encoding: chunked\t",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: ", b"Transfer-Encoding: \"chunked\"", b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked",
]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_ambiguous_framing_smuggles_nothing(web, framing):
    raw = web.send(b"POST /echo HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n0\r\n\r\n" + NEXT)
    assert raw.startswith(b"HTTP/1.1 400 Bad Request")
    assert raw.count(b"HTTP/1.1") == 1


def test_chunked_is_no_http_1_0(web):
    assert web.send(b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").startswith(b"HTTP/1.1 400")


CHUNKS = [
    b"zz\r\n", b"0x2\r\nab\r\n0\r\n\r\n", b"+2\r\nab\r\n0\r\n\r\n", b"-2\r\nab\r\n0\r\n\r\n", b"0_2\r\nab\r\n0\r\n\r\n", b"2 \r\nab\r\n0\r\n\r\n",
    b" 2\r\nab\r\n0\r\n\r\n", b"\r\nab\r\n0\r\n\r\n", b"2\nab\n0\n\n", b"2\r\nab0\r\n\r\n", b"2\r\nabXX0\r\n\r\n", b"2\r\nab\n0\r\n\r\n",
    b"fffffffffffffffff\r\nab\r\n0\r\n\r\n", b"2;" + b"a" * 300 + b"\r\nab\r\n0\r\n\r\n", b"2;a\nb\r\nab\r\n0\r\n\r\n", b"2;a\rb\r\nab\r\n0\r\n\r\n",
    b"0\r\nX y\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\nGET / HTTP/1.1\r\n\r\n", b"0\r\nX: " + b"y" * 9000 + b"\r\n\r\n", b"0\r\nX: y\n\n",
    b"0\r\n\n", b"0\n\r\n", b"2\r\nab\r\n0\r\n\0\r\n\r\n", b"0\r\n: y\r\n\r\n", b"0\r\nX: \0\r\n\r\n",
]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("path", [b"/echo", b"/health"], ids=["read", "unread"])
def test_broken_chunks_and_trailers_smuggle_nothing(web, chunks, path):
    """The corpus of CVE-2023-41419, with a handler that reads the body and one that leaves it to the server."""
    raw = web.send(b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (path, HOST, chunks + NEXT))
    assert raw.count(b"HTTP/1.1 ") == 1
    assert raw.startswith(b"HTTP/1.1 400" if path == b"/echo" else b"HTTP/1.1 200")


def test_extensions_on_tiny_chunks_are_work_without_data(web):
    chunks = (b"1;" + b"e" * 200 + b"\r\nx\r\n") * 200 + b"0\r\n\r\n"
    raw = web.send(b"POST /echo HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert raw.startswith(b"HTTP/1.1 400")


def test_the_same_head_twice_and_a_different_one_between_are_told_apart(web):
    heads = [b"GET /describe?n=%d HTTP/1.1\r\nHost: h%d\r\nX-N: %d\r\n%b\r\n" % (n, n, n, b"Connection: close\r\n" if last else b"")
             for n, last in ((1, False), (2, False), (1, False), (3, True))]
    bodies = [json.loads(body) for body in re.findall(rb"\r\n\r\n(\{.*?\}\})", web.send(b"".join(heads)))]
    assert [(body["query"], body["host"], dict(body["headers"])["x-n"]) for body in bodies] == [
        ({"n": [str(n)]}, f"h{n}", str(n)) for n in (1, 2, 1, 3)]


# ---- What the handler sees

def test_request_attributes(web):
    seen = web.get("/describe?a=1&a=2&b=x+y%20z&bad=%zz&c;d=1&%C3%BC=%ff&e", "X-Two: 1", "X-Two: 2", "Content-Length: 0").json()
    assert seen["query"] == {"a": ["1", "2"], "b": ["x y z"], "ü": ["\ufffd"], "e": [""]}
    assert [value for name, value in seen["headers"] if name == "x-two"] == ["1", "2"]
    assert (seen["ip"], seen["version"], seen["scheme"], seen["host"], seen["length"]) == ("127.0.0.1", "1.1", "http", "x", 0)


def test_path_is_decoded_and_kept_raw(web):
    seen = web.get("/%64escribe").json()
    assert (seen["path"], seen["raw"]) == ("/describe", "/%64escribe")


def test_absolute_form_names_the_host(web):
    seen = web.get("http://other:80/describe?x=1").json()
    assert (seen["path"], seen["host"], seen["query"]) == ("/describe", "other:80", {"x": ["1"]})


def test_options_of_the_server(web):
    answer = web.get("*", method="OPTIONS")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(("path", "location"), [
    ("//", "/"), ("/.", "/"), ("/a/..", "/"), ("/a/.", "/a"), ("/a/./", "/a/"), ("/a//b?x=1", "/a/b?x=1"), ("/a//b?x=<y>", "/a/b?x=<y>"),
    ("/a/b/../../..//c/", "/c/"), ("//evil.com/..", "/"), ("//evil.com", "/evil.com"), ("/\\evil//", "/%5Cevil/"), ("/a//%2e%2e/x", "/a/%2e%2e/x"),
    ("/a//b%2Fc", "/a/b%2Fc"), ("/..//x#f", "/x%23f"), ("/a//?", "/a/"), ("/_", "/_/"), ("/a//b<c>&\"'", "/a/b%3Cc%3E&%22%27"),
])
def test_unclean_paths_are_redirected(web, path, location):
    answer = web.get(path)
    assert (answer.status, answer.headers["location"]) == (307, location)
    text = location.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert answer.body.decode() == f'<a href="{text}">Temporary Redirect</a>.\n\n'
    assert web.get(path, method="POST").body == b""


@pytest.mark.parametrize("path", ["/a/...", "/.a/b", "/a/..b", "/%2e%2e/x", "/a%2f%2fb"])
def test_clean_paths_are_not(web, path):
    assert web.get(path).status == 200


def test_bottle_reads_forms(web):
    body = b"n=a%20b&m=%C3%BC"
    for framing, data in ((b"Content-Length: %d" % len(body), body), (b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))):
        raw = web.send(b"POST /form HTTP/1.1\r\n%bContent-Type: application/x-www-form-urlencoded\r\n%b\r\n\r\n%b" % (CLOSE, framing, data))
        assert Answer(raw).json() == {"n": "a b", "m": "ü"}


# ---- Keep-alive

def test_pipelined_requests_are_answered_in_order(web):
    raw = web.send(b"".join(b"POST /echo HTTP/1.1\r\n%bContent-Length: 4\r\n\r\n%04d" % (HOST, n) for n in range(300)) + NEXT)
    assert [int(n) for n in re.findall(rb"\r\n\r\n(\d{4})", raw)] == list(range(300))


def test_a_pipelining_client_starves_nobody(web):
    flood = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    with web.connect(30) as greedy:
        sender = threading.Thread(target=greedy.sendall, args=(flood * 50_000 + NEXT,))
        reader = threading.Thread(target=read_to_end, args=(greedy,))
        reader.start()
        sender.start()
        others = 0
        while reader.is_alive():
            others += web.get("/health").status == 200
        sender.join()
    assert others > 3


def test_http_1_0(web):
    assert web.send(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 OK")
    with web.connect() as sock:
        for _ in range(2):
            sock.sendall(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"Connection: keep-alive" in read_until(sock, b'{"code":200}')
    raw = web.send(b"GET /items HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert raw.endswith(b"\r\n\r\nonetwo")
    assert b"chunked" not in raw


def test_head_has_the_headers_and_no_body(web):
    for path in ("/health", "/big", "/big.txt"):
        get, head = web.get(path), web.get(path, method="HEAD")
        assert head.body == b""
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))
    with web.connect() as sock:
        sock.sendall(b"HEAD /items HTTP/1.1\r\n%b\r\n" % HOST + NEXT)
        assert read_to_end(sock).count(b"HTTP/1.1 200") == 2


def test_204_has_no_length(web):
    answer = web.get("/empty")
    assert answer.status == 204
    assert "content-length" not in answer.headers


def test_a_half_closed_client_gets_its_answer(web):
    with web.connect() as sock:
        sock.sendall(b"GET /sleep?s=0.2 HTTP/1.1\r\n" + HOST + b"\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock).endswith(b"slept")


def test_a_line_break_in_a_header_value_splits_nothing(web):
    assert web.get("/split").headers["x-a"] == "a  X-B: b"


def test_a_failing_handler_is_500_and_the_connection_goes_on(web):
    before = web.counters()["errors"]
    raw = web.send(b"GET /fail HTTP/1.1\r\n" + HOST + b"\r\n" + NEXT)
    assert re.findall(rb"HTTP/1.1 (\d+)", raw) == [b"500", b"200"]
    assert web.counters()["errors"] == before + 1


# ---- Bodies

def test_expect_100_only_when_the_body_is_read(web):
    with web.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n%bExpect: 100-continue\r\nContent-Length: 2\r\n\r\n" % CLOSE)
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert read_to_end(sock).endswith(b"{}")
    raw = web.send(b"POST /health HTTP/1.1\r\n%bExpect: 100-continue\r\nContent-Length: 2\r\n\r\n" % HOST)
    assert raw.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in raw
    assert web.send(b"POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}").startswith(b"HTTP/1.0 200 OK")


def test_chunked_body_in_any_pieces(web):
    data = b"POST /echo HTTP/1.1\r\n%bTransfer-Encoding: Chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n00006 ; x\r\n world\r\n0\r\nX-T: 1\r\n\r\n" % HOST
    assert web.send(data + NEXT).count(b"HTTP/1.1 200") == 2
    with web.connect() as sock:
        for at in range(len(data)):
            sock.sendall(data[at:at + 1])
        assert read_until(sock, b"hello world").startswith(b"HTTP/1.1 200")


def test_body_limits(web):
    assert web.send(b"POST /echo?limit=1 HTTP/1.1\r\n%bContent-Length: 1001\r\n\r\n" % CLOSE).startswith(b"HTTP/1.1 413")
    assert web.send(b"POST /echo?limit=1 HTTP/1.1\r\n%bContent-Length: 9223372036854775807\r\n\r\n" % CLOSE).startswith(b"HTTP/1.1 413")
    chunked = b"POST /echo?limit=1 HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n3e9\r\n%b\r\n0\r\n\r\n" % (CLOSE, b"x" * 1001)
    assert web.send(chunked).startswith(b"HTTP/1.1 400")


def test_an_unread_body_is_drained_or_the_connection_closed(web):
    raw = web.send(b"POST /health HTTP/1.1\r\n%bContent-Length: 200000\r\n\r\n%b" % (HOST, b"x" * 200_000) + NEXT)
    assert raw.count(b"HTTP/1.1 200") == 2
    raw = web.send(b"POST /health HTTP/1.1\r\n%bContent-Length: 300000\r\n\r\n%b" % (HOST, b"x" * 300_000) + NEXT)
    assert raw.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in raw


def test_a_big_upload_streams_in_bounded_memory(web):
    before = _peak_memory(web.process.pid)
    piece = b"x" * 1_000_000
    with web.connect(30) as sock:
        sock.sendall(b"POST /count HTTP/1.1\r\n%bContent-Length: 200000000\r\n\r\n" % CLOSE)
        for _ in range(200):
            sock.sendall(piece)
        assert read_to_end(sock).endswith(b"200000000")
    assert _peak_memory(web.process.pid) - before < 30_000


def _peak_memory(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1])


def test_a_client_that_leaves_mid_body_hurts_nobody(web):
    errors = web.counters()["errors"]
    for head in (b"Content-Length: 1000", b"Transfer-Encoding: chunked"):
        with web.connect() as sock:
            sock.sendall(b"POST /echo HTTP/1.1\r\n%b%b\r\n\r\n5\r\nhal" % (HOST, head))
    assert web.counters()["errors"] == errors


# ---- Streams

def test_items_are_chunked(web):
    answer = web.get("/items")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


def test_a_stream_that_fails_is_not_ended_as_if_whole(web):
    assert web.get("/broken").body == b"5\r\nfirst\r\n"


def test_200_event_streams_beside_normal_traffic(web):
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(web.connect()) for _ in range(200)]
        for sock in streams:
            sock.sendall(b"GET /ticks HTTP/1.1\r\n%bX-Every: 0.2\r\n\r\n" % HOST)
        for sock in streams:
            read_until(sock, b"data: 0\n\n")
        assert web.counters()["streams"] == 200
        for sock in streams:
            read_until(sock, b"data: tick\n\n")
    eventually(lambda: web.counters()["streams"] == 0)


def test_a_silent_stream_ends_when_its_client_leaves(web):
    with web.connect() as sock:
        sock.sendall(b"GET /ticks HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(sock, b"data: 0\n\n")
        assert web.counters()["streams"] == 1
    eventually(lambda: web.counters()["streams"] == 0)


# ---- WebSocket

@pytest.fixture
def websocket(web):
    from websockets.sync.client import connect
    with connect(f"ws://127.0.0.1:{web.port}/websocket", subprotocols=["other", "chat"], compression=None) as client:
        yield client


def test_websocket_echo(websocket):
    assert websocket.subprotocol == "chat"
    for message in ("hello", "", "ü" * 100, b"\0\1", "x" * 60_000, b"y" * 70_000):
        websocket.send(message)
        assert websocket.recv(5) == message
    websocket.send(["frag", "men", "ted"])
    assert websocket.recv(5) == "fragmented"
    assert websocket.ping().wait(5)


@pytest.mark.parametrize(("message", "code"), [(b"x" * 70_001, 1009), ([b"x" * 50_000, b"x" * 50_000], 1009)], ids=["frame", "fragments"])
def test_websocket_message_limit(websocket, message, code):
    from websockets.exceptions import ConnectionClosed
    websocket.send(message)
    with pytest.raises(ConnectionClosed) as closed:
        websocket.recv(5)
    assert closed.value.rcvd.code == code


def test_websocket_broken_text_and_missing_mask(web):
    for frame, code in ((b"\x81\x81\0\0\0\0\xff", 1007), (b"\x81\x01a", 1002), (b"\xc1\x80\0\0\0\0", 1002)):
        with web.connect() as sock:
            sock.sendall(b"GET /websocket HTTP/1.1\r\n%bUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                         b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n%b" % (HOST, frame))
            raw = read_to_end(sock)
        assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in raw
        assert raw.endswith(b"\x88\x02" + code.to_bytes(2, "big"))


@pytest.mark.parametrize(("headers", "status"), [
    (("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 8"), 426),
    (("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: short", "Sec-WebSocket-Version: 13"), 400),
    (("Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"), 400), ((), 400)])
def test_websocket_refusals(web, headers, status):
    assert web.get("/websocket", *headers).status == status


# ---- Files

@pytest.mark.parametrize(("path", "media", "body"), [
    ("/", "text/html; charset=utf-8", b"<h1>home</h1>"), ("/text.txt", "text/plain; charset=utf-8", b"hello text"),
    ("/page", "text/html; charset=utf-8", b"<!DOCTYPE html><p>"),
    ("/app.mjs", "text/javascript; charset=utf-8", b"1"), ("/noext", "text/plain; charset=utf-8", b"plain"),
    ("/data.bin", "application/octet-stream", b"\0\1\2"),
    ("/sub/", "text/html; charset=utf-8", b"<h1>sub</h1>"), ("/name%20with%20space.txt", "text/plain; charset=utf-8", b"space"),
    ("/%C3%BCn%C3%AF.txt", "text/plain; charset=utf-8", b"unicode"), ("/sub/%2e%2e/text.txt", "text/plain; charset=utf-8", b"hello text"),
    ("/inside.txt", "text/plain; charset=utf-8", b"hello text"), ("/empty.txt", "text/plain; charset=utf-8", b""),
    ("/big.txt", "text/plain; charset=utf-8", b"0123456789" * 20000)])
def test_static_files(web, path, media, body):
    answer = web.get(path)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, media, body)
    assert (answer.headers["last-modified"], answer.headers["accept-ranges"]) == (WHEN_TEXT, "bytes")


@pytest.mark.parametrize(("path", "location"), [
    ("/index.html", "/"), ("/sub", "/sub/"), ("/sub/index.html?x=1", "/sub/"), ("/text.txt/", "/text.txt"), ("/index.html/", "/index.html"),
    ("/bare", "/bare/"),
    ("/%2fsub", "/sub/"), ("/%2f%2f/sub", "/sub/"), ("/name%20with%20space.txt/", "/name%20with%20space.txt")])
def test_static_addresses_are_canonical(web, path, location):
    answer = web.get(path)
    assert (answer.status, answer.headers["location"]) == (301, location)


@pytest.mark.parametrize("path", ["/missing", "/bare/", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/sub/%2e%2e/%2e%2e/secret.txt", "/out.txt",
    "/outdir/secret.txt",
                                  "/text.txt%00", "/a%00b", "/text.txt/x", "/pipe", "/%5c..%5csecret.txt", "/" + "a" * 300, "/" + "a/" * 3000])
def test_static_escapes_and_missing_files(web, path):
    assert web.get(path).body == b"<h1>home</h1>"
    answer = web.get(path, "X-Fallback: no")
    assert (answer.status, answer.body) == (404, b"File not found.")


@pytest.mark.parametrize(("value", "status", "content_range", "body"), [
    ("bytes=0-9", 206, "bytes 0-9/200000", b"0123456789"), ("bytes=199999-", 206, "bytes 199999-199999/200000", b"9"),
    ("bytes=-5", 206, "bytes 199995-199999/200000", b"56789"),
    ("bytes= 0 - 1", 206, "bytes 0-1/200000", b"01"), ("bytes=0-1,999999-", 206, "bytes 0-1/200000", b"01"),
    ("bytes=0-1,,", 206, "bytes 0-1/200000", b"01"),
    ("bytes=200000-", 416, "bytes */200000", b"invalid range: failed to overlap\n"),
    ("bytes=-0", 416, "bytes */200000", b"invalid range: failed to overlap\n"),
    ("bytes=5-4", 416, None, b"invalid range\n"), ("bytes=a-b", 416, None, b"invalid range\n"), ("items=0-1", 416, None, b"invalid range\n"),
    ("bytes=-", 416, None, b"invalid range\n"),
    ("bytes=18446744073709551616-", 416, None, b"invalid range\n"), ("bytes=--5", 416, None, b"invalid range\n"),
    ("bytes=\u0662-3", 416, None, b"invalid range\n")])
def test_ranges(web, value, status, content_range, body):
    answer = web.get("/big.txt", "Range: " + value)
    assert (answer.status, answer.headers.get("content-range"), answer.body) == (status, content_range, body)
    assert ("last-modified" in answer.headers) == (status == 206)


@pytest.mark.parametrize("value", ["bytes=", "bytes=,", "bytes=0-199999,0-199999", "bytes=" + ",".join(["0-0"] * 100), "bytes=0-,0-"])
def test_ranges_that_ask_for_more_than_the_file_get_the_file(web, value):
    answer = web.get("/big.txt", "Range: " + value)
    assert (answer.status, len(answer.body)) == (200, 200_000)


def test_a_big_range_is_cut_exactly(web):
    assert web.get("/big.txt", "Range: bytes=1-150001").body == (b"0123456789" * 20000)[1:150002]


def test_multipart_ranges(web):
    answer = web.get("/big.txt", "Range: bytes=0-1, 3-4,-1")
    boundary = answer.headers["content-type"].removeprefix("multipart/byteranges; boundary=")
    part = "--{b}\r\nContent-Range: bytes {r}/200000\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{d}\r\n"
    expected = "".join(part.format(b=boundary, r=r, d=d) for r, d in (("0-1", "01"), ("3-4", "34"), ("199999-199999", "9"))) + f"--{boundary}--\r\n"
    assert (answer.status, answer.body.decode()) == (206, expected)
    assert answer.headers["content-length"] == str(len(expected)) == web.get("/big.txt", "Range: bytes=0-1, 3-4,-1",
    method="HEAD").headers["content-length"]


EARLIER, LATER = "Tue, 14 Nov 2023 22:13:19 GMT", "Tue, 14 Nov 2023 22:13:21 GMT"


@pytest.mark.parametrize(("headers", "status"), [
    ((f"If-Modified-Since: {WHEN_TEXT}",), 304), ((f"If-Modified-Since: {LATER}",), 304), ((f"If-Modified-Since: {EARLIER}",), 200),
    (("If-Modified-Since: junk",), 200),
    (("If-Modified-Since: Tuesday, 14-Nov-23 22:13:20 GMT",), 304), (("If-Modified-Since: Tue Nov 14 22:13:20 2023",), 304),
    ((f"If-Unmodified-Since: {WHEN_TEXT}",), 200), ((f"If-Unmodified-Since: {EARLIER}",), 412), (("If-Unmodified-Since: junk",), 200),
    (("If-None-Match: *",), 304), (('If-None-Match: "x"', f"If-Modified-Since: {WHEN_TEXT}"), 200), (('If-Match: "x"',), 412),
    (("If-Match: *", f"If-Unmodified-Since: {EARLIER}"), 200), ((f"If-Range: {WHEN_TEXT}", "Range: bytes=0-1"), 206),
    ((f"If-Range: {LATER}", "Range: bytes=0-1"), 200),
    (('If-Range: "x"', "Range: bytes=0-1"), 200), ((f"If-Modified-Since: {WHEN_TEXT}", "Range: bytes=99-"), 304),
    ((f"If-Unmodified-Since: {EARLIER}", "Range: bytes=0-1"), 412)])
def test_conditions(web, headers, status):
    answer = web.get("/text.txt", *headers)
    assert answer.status == status
    assert answer.headers["last-modified"] == WHEN_TEXT
    if status in (304, 412):
        assert answer.body == b""
        assert "content-type" not in answer.headers


# ---- Patience

def test_slow_and_idle_clients_are_cut_and_others_served(hurried):
    starts = [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n",
              b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n1",
              b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1"]
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(hurried.connect(10)) for _ in starts]
        for sock, start in zip(socks, starts):
            sock.sendall(start)
        assert hurried.get("/health").status == 200
        for sock in socks:
            read_to_end(sock)


def test_a_dripping_head_or_body_does_not_reset_the_clock(hurried):
    for start, drip in ((b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", b"y"),
    (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n", b"z")):
        with hurried.connect(10) as sock:
            sock.sendall(start)
            sock.settimeout(0.1)
            until = time.monotonic() + 8
            while time.monotonic() < until:
                try:
                    sock.sendall(drip)
                    if not sock.recv(1):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            else:
                pytest.fail("still connected")


def test_a_client_that_never_reads_is_cut(hurried):
    with contextlib.ExitStack() as stack:
        for path in (b"/big", b"/ticks"):
            sock = stack.enter_context(hurried.connect(10))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"GET %b HTTP/1.1\r\n%bX-Every: 30\r\n\r\n" % (path, HOST))
        assert hurried.get("/health").status == 200
        lazy = stack.enter_context(hurried.connect(20))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall((b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n") * 3)
        eventually(lambda: _open_sockets(hurried.process.pid) <= 3, 10)  # the listener, the stream, and the connection that asks


def _open_sockets(pid):
    names = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sum(name.startswith("socket:") for name in names)


def test_no_descriptor_is_left_behind(web):
    eventually(lambda: _open_sockets(web.process.pid) <= 1)
    for path in ("/big.txt", "/text.txt", "/missing", "/out.txt", "/items"):
        web.get(path)
        web.get(path, "Range: bytes=0-1,5-6", "If-Modified-Since: " + EARLIER)
        web.get(path, method="HEAD")
    eventually(lambda: _open_sockets(web.process.pid) <= 1)
    assert not [name for name in os.listdir(f"/proc/{web.process.pid}/fd")
                if "/public/" in os.readlink(f"/proc/{web.process.pid}/fd/{name}")]


def test_out_of_descriptors_the_server_recovers(directory):
    server = Server(directory, {"connections": 1000}, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    stderr=subprocess.DEVNULL)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(server.connect())
            eventually(lambda: _open_sockets(server.process.pid) > 40)
        eventually(lambda: _answers(server))
    finally:
        server.stop()


def _answers(server):
    with contextlib.suppress(OSError, IndexError):
        return server.get("/health").status == 200
    return False


def test_more_connections_than_allowed_are_closed(directory):
    server = Server(directory, {"connections": 5})
    try:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(server.connect()) for _ in range(6)]
            for sock in socks[:5]:
                sock.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
                read_until(sock, b'{"code":200}')
            assert is_closed(socks[5])
    finally:
        server.stop()


# ---- The end

def test_a_taken_port_is_an_error(web):
    import errno

    from unit import pocketbase as server
    with pytest.raises(OSError) as taken:
        server.HttpServer(None, "127.0.0.1", web.port).start()
    assert taken.value.errno == errno.EADDRINUSE


def test_stop_closes_idle_lets_open_requests_end_and_cuts_the_rest(directory):
    server = Server(directory)
    with server.connect() as idle, server.connect() as busy, server.connect() as stream, server.connect() as late:
        idle.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(idle, b'{"code":200}')
        stream.sendall(b"GET /ticks HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(stream, b"data: 0\n\n")
        late.sendall(b"GET /sleep?s=30 HTTP/1.1\r\n" + HOST + b"\r\n")
        busy.sendall(b"GET /sleep?s=0.5 HTTP/1.1\r\n" + HOST + b"\r\n")
        assert server.get("/health").status == 200
        assert server.stop() == 0
        assert is_closed(idle)
        assert read_to_end(busy).endswith(b"slept")
        assert read_to_end(stream).endswith(b"b\r\ndata: bye\n\n\r\n0\r\n\r\n")
        assert read_to_end(late) == b""


# ---- TLS

@pytest.fixture(scope="session")
def secure(directory):
    certificate = str(directory / "certificate.pem")
    _write_certificate(certificate)
    server = Server(directory, {"handshake_seconds": 1}, certificate)
    yield server
    server.stop()


def _write_certificate(path):
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
                   .not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1)).sign(key, hashes.SHA256()))
    with open(path, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        file.write(certificate.public_bytes(serialization.Encoding.PEM))


def _tls(server):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(server.connect(), suppress_ragged_eofs=True)


def test_tls_requests_uploads_files_and_streams(secure):
    for data, end in ((b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n", b'{"code":200}'),
    (b"GET /big.txt HTTP/1.1\r\n" + CLOSE + b"\r\n", b"0123456789" * 20000),
                      (b"GET /big HTTP/1.1\r\n" + CLOSE + b"\r\n", b"x" * 5_000_000),
                      (b"POST /count HTTP/1.1\r\n%bContent-Length: 300000\r\n\r\n%b" % (CLOSE, b"z" * 300000), b"300000")):
        with _tls(secure) as sock:
            sock.sendall(data)
            assert read_to_end(sock).endswith(b"\r\n\r\n" + end)
    with _tls(secure) as sock:
        sock.sendall(b"GET /ticks HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(sock, b"data: 0\n\n")

    def streams():
        with _tls(secure) as sock:
            sock.sendall(b"GET /describe HTTP/1.1\r\n" + CLOSE + b"\r\n")
            return Answer(read_to_end(sock)).json()["counters"]["streams"]
    eventually(lambda: streams() == 0)


def test_tls_a_slow_handshake_blocks_nobody_and_is_cut(secure):
    with secure.connect(10) as silent:
        with _tls(secure) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n")
            assert b"200 OK" in read_to_end(sock)
        assert is_closed(silent)


# ---- Pure functions

def test_parse_query_is_like_go():
    from unit import pocketbase
    assert pocketbase.parse_query("a=1&&a=&=x&b;c=2&d=%&e=%41+%2B") == {"a": ["1", ""], "": ["x"], "e": ["A +"]}


def test_memo_is_bounded():
    from unit import pocketbase as server
    for n in range(3 * server.MEMO_ENTRIES):
        server._new_line(b"GET /%d HTTP/1.1" % n)
    server._new_line(b"GET /%b HTTP/1.1" % (b"x" * server.MEMO_BYTES))
    assert len(server._known_lines) <= server.MEMO_ENTRIES
    assert max(map(len, server._known_lines)) <= server.MEMO_BYTES


if __name__ == "__main__":
    run_demo(json.loads(sys.argv[1]), sys.argv[2])
