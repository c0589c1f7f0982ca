"""HTTP itself: headers, errors, methods, CORS, bodies and their limits, static files, unclean paths, and requests that try to smuggle."""
import json
import os
import re
import socket

import pytest

from helpers_answers import NOT_FOUND
from helpers_answers import envelope
from helpers_answers import records
from helpers_beyond import beyond

SECURITY = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "SAMEORIGIN", "X-Xss-Protection": "1; mode=block",
            "Cross-Origin-Opener-Policy": "same-origin"}
HEALTH = b'{"message":"API is healthy.","code":200,"data":{}}'
NOTES = records("notes")


@pytest.fixture(scope="module")
def api(server):
    """The server with a collection `notes` and a public folder."""
    server.make("notes", ["title", "data:json"])
    server.add("notes", {"id": "note00000000001", "title": "x"})
    public = os.path.join(server.work, "pb_public")
    os.makedirs(os.path.join(public, "folder"))
    os.makedirs(os.path.join(public, "empty"))
    for name, content in {"index.html": "<h1>home</h1>", "style.css": "a{}", "code.js": "1", "data.json": "{}",
                          "folder/index.html": "<h1>folder</h1>", "digits.txt": "0123456789", "a b.txt": "blank"}.items():
        with open(os.path.join(public, name), "w") as file:
            file.write(content)
    with open(os.path.join(server.work, "outside.txt"), "w") as file:
        file.write("outside")
    return server


# ---- ordinary answers

def test_health(api):
    answer = api.get("/api/health")
    assert (answer.status, answer.body, answer.headers["Content-Type"], answer.headers["Content-Length"]) == (200, HEALTH, "application/json",
        str(len(HEALTH)))


@pytest.mark.parametrize("method, path",
                         [("GET", "/api/health"), ("GET", NOTES), ("POST", "/api/nope"), ("GET", "/api/settings"), ("GET", "/style.css"),
                          ("DELETE", NOTES + "/missing")])
def test_security_headers(api, method, path):
    headers = api.request(method, path).headers
    assert {name: headers[name] for name in SECURITY} == SECURITY
    assert headers["Vary"] == "Origin" and re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["Date"])
    assert headers["Server"] is None and headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "FOO"])
@pytest.mark.parametrize("path", ["/api/nope", "/api/health", "/nope", "/"])
def test_unknown_routes_and_methods_are_404(api, method, path):
    answer = api.request(method, path)
    assert answer.status == 404 and answer.json == envelope(404, NOT_FOUND)


def test_head_has_the_headers_of_get(api):
    for path in ("/api/health", "/style.css", NOTES + "/missing"):
        got, head = api.get(path), api.head(path)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert api.head("/api/health").headers["Content-Length"] == str(len(HEALTH))


def test_connections_are_kept_and_requests_on_them_answered_in_order(api):
    request = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = api.raw(request + b"POST /api/nope HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" + request)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"404", b"200"]


@pytest.mark.parametrize("data, status, closes", [
    (b"GET /api/health HTTP/1.0\r\n\r\n", b"200", True), (b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200", True),
    (b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n", b"200", False),
    (b"GET http://x/api/health HTTP/1.1\r\nHost: x\r\n\r\n", b"200", False), (b"GET /api/h%65alth HTTP/1.1\r\nHost: x\r\n\r\n", b"200", False),
    (b"GET /api/health HTTP/1.1\r\n\r\n", b"400", True), (b"GET /api/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400", True),
    (b"GARBAGE\r\n\r\n", b"400", True), (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", b"400", True),
    (b"GET api/health HTTP/1.1\r\nHost: x\r\n\r\n", b"400", True),
])
def test_request_lines(api, data, status, closes):
    with socket.create_connection(("127.0.0.1", api.port), 20) as sock:
        sock.sendall(data)
        first = sock.recv(65536)
        assert re.match(rb"HTTP/1\.[01] " + status, first), first
        if closes:
            while sock.recv(65536):    # ends, or the time limit of the socket fails the test
                pass
        else:
            sock.sendall(b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_expect_continue(api):
    body = b'{"title":"expected"}'
    with socket.create_connection(("127.0.0.1", api.port), 20) as sock:
        sock.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (NOTES.encode(), len(body)))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def chunked(*chunks, head=b"", path=NOTES.encode(), trailer=b""):
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"
    return b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n" + head + b"\r\n" + body


def test_chunked_bodies(api):
    answer = api.raw(chunked(b'{"tit', b'le":', b'"chunky"}') + chunked(b'{"title":"again"}', trailer=b"X-Trailer: 1\r\n"))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200"]
    assert b'"title":"chunky"' in answer and b'"title":"again"' in answer


# ---- CORS

@pytest.mark.parametrize("path", [NOTES, "/api/nope", "/nope"])
def test_preflights(api, path):
    answer = api.request("OPTIONS", path,
                         headers={"Origin": "http://example.com", "Access-Control-Request-Method": "PATCH",
                                  "Access-Control-Request-Headers": "content-type,x-custom"})
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET,HEAD,PUT,PATCH,POST,DELETE"
    assert answer.headers["Access-Control-Allow-Headers"] == "content-type,x-custom"
    assert answer.headers["Access-Control-Allow-Credentials"] is None
    assert answer.headers.get_all("Vary") == ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]


def test_options_without_origin(api):
    answer = api.request("OPTIONS", NOTES)
    assert (answer.status, answer.body, answer.headers["Access-Control-Allow-Origin"]) == (204, b"", None)


def test_answers_to_other_origins(api):
    for path in ("/api/health", "/api/nope", "/style.css"):
        answer = api.get(path, headers={"Origin": "http://example.com"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*" and answer.headers["Access-Control-Allow-Credentials"] is None


# ---- bodies

@pytest.mark.parametrize("body", [
    "{", '{"title":}', '{"title":"a",}', "{'title':'a'}", '{"title":NaN}', '{"title":"a\nb"}', '{"title":"\\x"}', '\ufeff{"title":"a"}',
    '{"title" "a"}', "tru", '{"data":' + "[" * 20_000 + "]" * 20_000 + "}", '{"data":01}', '{"data":1e999}',
])
def test_broken_json_is_400(api, body):
    refused = api.post(NOTES, body=body, headers={"Content-Type": "application/json"})
    assert refused.status == 400 and refused.json["data"] == {}
    assert api.get("/api/health").status == 200


def test_deep_but_reasonable_json_is_kept(api):
    value = json.loads("[" * 100 + "]" * 100)
    assert api.add("notes", {"data": value})["data"] == value


@pytest.mark.parametrize("method, path",
                         [("POST", "/api/settings"), ("GET", "/api/health"), ("POST", "/api/nope"), ("PATCH", "/api/collections/users")])
def test_too_large_bodies_are_refused_by_their_announced_length(api, method, path):
    answer = api.raw(b"%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 33554433\r\n\r\n" % (method.encode(), path.encode()))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1]) == envelope(413, "Request entity too large.")


def test_limit_of_a_record_grows_with_its_fields(api):
    size = 32 * 2**20 + 2**20
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    assert api.raw(head % (NOTES.encode(), size + 1)).startswith(b"HTTP/1.1 413 ")
    value = b'{"title":"after many blanks"}'
    assert api.raw(head % (NOTES.encode(), size) + value.rjust(size)).startswith(b"HTTP/1.1 200 ")


def test_too_large_chunked_bodies_are_refused_while_they_arrive(api):
    limit = 32 * 2**20 + 2**20
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" % NOTES.encode()
    with socket.create_connection(("127.0.0.1", api.port), 20) as sock:
        sock.sendall(head)
        try:
            for _ in range(limit // 2**20 + 1):
                sock.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")
            sock.sendall(b"0\r\n\r\n")
        except ConnectionError:    # it may stop reading
            pass
        try:
            answer = sock.recv(65536)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 "), answer
    assert api.get("/api/health").status == 200


def test_huge_headers_are_refused(api):
    with socket.create_connection(("127.0.0.1", api.port), 20) as sock:
        try:
            sock.sendall(b"GET /api/health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(300)) + b"\r\n")
            answer = sock.recv(65536)
        except ConnectionError:    # closed while we were still sending
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert api.get("/api/health").status == 200


# ---- paths and static files

@pytest.mark.parametrize("path, location", [
    ("//api/health", "/api/health"), ("/api//health", "/api/health"), ("/api/./health", "/api/health"), ("/api/x/../health?a=b", "/api/health?a=b"),
    ("/../../etc/passwd", "/etc/passwd"), ("/_", "/_/"),
])
def test_unclean_paths_are_redirected(api, path, location):
    answer = api.get(path)
    assert (answer.status, answer.headers["Location"]) == (307, location)


@pytest.mark.parametrize("path, status, kind, body", [
    ("/", 200, "text/html; charset=utf-8", b"<h1>home</h1>"), ("/style.css", 200, "text/css; charset=utf-8", b"a{}"),
    ("/code.js", 200, "text/javascript; charset=utf-8", b"1"), ("/data.json", 200, "application/json", b"{}"),
    ("/a%20b.txt", 200, "text/plain; charset=utf-8", b"blank"), ("/folder/", 200, "text/html; charset=utf-8", b"<h1>folder</h1>"),
    ("/missing/page", 200, "text/html; charset=utf-8", b"<h1>home</h1>"), ("/api/nope", 200, "text/html; charset=utf-8", b"<h1>home</h1>"),
    ("/api/health/", 200, "text/html; charset=utf-8", b"<h1>home</h1>"), ("/empty/", 200, "text/html; charset=utf-8", b"<h1>home</h1>"),
    ("/%2e%2e/outside.txt", 200, "text/html; charset=utf-8", b"<h1>home</h1>"),
    ("/..%2foutside.txt", 200, "text/html; charset=utf-8", b"<h1>home</h1>"),
    ("/..%5coutside.txt", 200, "text/html; charset=utf-8", b"<h1>home</h1>"),
])
def test_static_files(api, path, status, kind, body):
    answer = api.get(path)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (status, kind, body)


@pytest.mark.parametrize("path, location",
                         [("/folder", "/folder/"), ("/folder/index.html", "/folder/"), ("/index.html", "/"), ("/style.css/", "/style.css")])
def test_static_redirects(api, path, location):
    answer = api.get(path)
    assert (answer.status, answer.headers["Location"]) == (301, location)


def test_parts_of_static_files(api):
    whole = api.get("/digits.txt")
    assert whole.headers["Accept-Ranges"] == "bytes" and whole.headers["ETag"] is None
    part = api.get("/digits.txt", headers={"Range": "bytes=2-4"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert api.get("/digits.txt", headers={"If-Modified-Since": whole.headers["Last-Modified"]}).status == 304


def test_symbolic_links_and_files_outside_are_not_reachable_by_name(api):
    for path in ("/../outside.txt", "/folder/../../outside.txt", "/%2e%2e%2f%2e%2e%2foutside.txt", "/pb_data/data.db", "/..%00/outside.txt"):
        assert b"outside" != api.get(path).body and b"SQLite" not in api.get(path).body


def test_without_a_public_folder_or_fallback_everything_is_404(fresh):
    api = fresh("--indexFallback=false")
    assert api.get("/").json == api.get("/api/nope").json == envelope(404, "File not found.")
    os.makedirs(os.path.join(api.work, "pb_public"))
    with open(os.path.join(api.work, "pb_public", "index.html"), "w") as file:
        file.write("home")
    assert api.get("/").body == b"home"
    assert api.get("/missing").json == envelope(404, "File not found.")


def test_dashboard_is_served(api):
    page = api.get("/_/")
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"] and "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert api.get("/_/missing.js").json == envelope(404, "File not found.")


# ---- smuggling: what two parsers could read differently is refused, and the connection closed

SMUGGLED = b"GET /api/health?smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def post(*headers, body=b"", path=NOTES):
    return b"\r\n".join([b"POST " + path.encode() + b" HTTP/1.1", b"Host: x", b"Content-Type: application/json", *headers, b"", body])


CHUNK = b'2\r\n{}\r\n0\r\n\r\n'
AMBIGUOUS = {
    "two different lengths": post(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
    "length list": post(b"Content-Length: 2, 3", body=b"{}"),
    "negative length": post(b"Content-Length: -1", body=b"{}"),
    "signed length": post(b"Content-Length: +2", body=b"{}"),
    "hexadecimal length": post(b"Content-Length: 0x2", body=b"{}"),
    "length with underscore": post(b"Content-Length: 1_0", body=b"{}"),
    "unknown coding": post(b"Transfer-Encoding: xchunked", body=CHUNK),
    "two codings": post(b"Transfer-Encoding: chunked, identity", body=CHUNK),
    "two coding lines": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=CHUNK),
    "quoted coding": post(b'Transfer-Encoding: "chunked"', body=CHUNK),
    "chunk size with 0x": post(b"Transfer-Encoding: chunked", body=b"0x2\r\n{}\r\n0\r\n\r\n"),
    "chunk size with plus": post(b"Transfer-Encoding: chunked", body=b"+2\r\n{}\r\n0\r\n\r\n"),
    "chunk size with underscore": post(b"Transfer-Encoding: chunked", body=b"0_2\r\n{}\r\n0\r\n\r\n"),
    "chunk size that overflows": post(b"Transfer-Encoding: chunked", body=b"fffffffffffffffff2\r\n{}\r\n0\r\n\r\n"),
    "empty chunk size": post(b"Transfer-Encoding: chunked", body=b"\r\n{}\r\n0\r\n\r\n"),
    "chunk longer than announced": post(b"Transfer-Encoding: chunked", body=b"1\r\n{}\r\n0\r\n\r\n"),
    "space before the colon": post(b"Content-Length : 2", body=b"{}"),
    "NUL in a value": post(b"X-Nul: a\x00b", b"Content-Length: 2", body=b"{}"),
    "NUL in a name": post(b"X-\x00Nul: ab", b"Content-Length: 2", body=b"{}"),
    "space in a name": post(b"X Name: ab", b"Content-Length: 2", body=b"{}"),
    "no colon": post(b"Nonsense", b"Content-Length: 2", body=b"{}"),
    "carriage return in a value": post(b"X-Cr: a\rContent-Length: 40", b"Content-Length: 2", body=b"{}"),
}
STRICT = {
    "length and coding": post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=CHUNK),
    "coding and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 6", body=CHUNK),
    "same length twice": post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"),
    "folded header": post(b"X-Folded: a", b" b", b"Content-Length: 2", body=b"{}"),
    "bare line feeds": post(b"Content-Length: 2", body=b"{}").replace(b"\r\n", b"\n"),
    "coding in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=CHUNK).replace(b"HTTP/1.1", b"HTTP/1.0"),
}


def assert_refused(api, data):
    """400 (or 501) for the request, nothing for what follows it, and the end of the connection."""
    before = api.get(NOTES, params={"perPage": 1}).json["totalItems"]
    answer = api.raw(data + SMUGGLED)
    statuses = re.findall(rb"HTTP/1\.[01] (\d+)", answer)
    assert statuses in ([b"400"], [b"501"]), answer
    assert api.get(NOTES, params={"perPage": 1}).json["totalItems"] == before


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_requests_are_refused(api, name):
    assert_refused(api, AMBIGUOUS[name])


@beyond
@pytest.mark.parametrize("name", STRICT)
def test_doubtful_requests_are_refused_too(api, name):
    assert_refused(api, STRICT[name])
