"""Asks this server and a PocketBase executable the same questions, and prints every answer that differs.

    make parity REFERENCE=path/to/pocketbase

Both start on empty data directories of their own and get the requests below in this order. What is random or tells the time is
masked; the order of keys in an object does not count. Exit code: 0 all answers equal, 1 some differ, 2 no reference given.
"""
import os
import re
import sys

import kit

ROOT, USER, GUEST = "superuser", "user", "guest"
RULES = dict.fromkeys(kit.RULES, "")
RECORDS, USERS = "/api/collections/posts/records", "/api/collections/users/records"
ANN = {"id": "ann000000000001", "email": "ann@example.com", "password": "1234567890", "passwordConfirm": "1234567890", "name": "Ann"}
FIELDS = [
    {"name": "title", "type": "text", "required": True, "max": 20}, {"name": "body", "type": "editor"}, {"name": "score", "type": "number"},
    {"name": "public", "type": "bool"}, {"name": "tags", "type": "select", "maxSelect": 3, "values": ["red", "green", "blue"]},
    {"name": "meta", "type": "json"}, {"name": "day", "type": "date"}, {"name": "mail", "type": "email"}, {"name": "link", "type": "url"},
    {"name": "author", "type": "relation", "collectionId": "_pb_users_auth_", "maxSelect": 1}, {"name": "doc", "type": "file", "maxSelect": 1},
    {"name": "place", "type": "geoPoint"}, {"name": "created", "type": "autodate", "onCreate": True}]
POSTS = [{"id": f"post{n:011}", "title": f"title {n}", "score": n * 1.5, "public": n % 2 == 0, "tags": ["red", "blue"][:n % 3], "meta": {"n": n},
          "day": f"2024-0{n}-01", "author": ANN["id"] if n < 3 else "", "place": {"lon": n, "lat": -n}} for n in range(1, 7)]
FILTERS = [
    "score > 3", "score >= 3 && public = true", "title ~ 'title'", "title !~ '%3'", "title = 'title 1' || title = \"title 2\"", "(score > 1)",
    "tags:length = 2", "tags ?= 'red'", "tags:each = 'red'", "meta.n > 2", "author.name = 'Ann'", "author.email != ''", "author = null",
    "day < '2024-03-01'", "created <= @now", "title:lower = 'title 1'", "geoDistance(place.lon, place.lat, 0, 0) < 400", "@request.auth.id = ''",
    "public", "score = ", "nope = 1", "title = 'a' && ", "author.nope = 1", "1 = 1", "(((1=1)))", "title = 1 // remark", "@todayStart < @now"]
QUERIES = [
    "page=2&perPage=2", "perPage=0", "page=x", "skipTotal=1", "sort=-score", "sort=title,-score", "sort=nope", "sort=author.name,id",
    "fields=id,title", "fields=*,meta.n", "fields=title:excerpt(3,true)", "expand=author", "expand=author&fields=expand.author.name",
    "expand=nope"]
INVALID = [
    {}, {"title": ""}, {"title": "x" * 21}, {"title": "x", "score": "y"}, {"title": "x", "tags": ["none"]}, {"title": "x", "tags": ["red"] * 4},
    {"title": "x", "mail": "nope"}, {"title": "x", "link": "nope"}, {"title": "x", "day": "nope"}, {"title": "x", "author": "missing"},
    {"title": "x", "meta": "{"}, {"title": "x", "id": "short"}, {"title": "x", "id": POSTS[0]["id"]}, {"title": "x", "place": {"lon": 999, "lat": 0}}]
FIRST, LAST = (f"{RECORDS}/{POSTS[n]['id']}" for n in (0, -1))
BATCH = [{"method": "POST", "url": RECORDS, "body": {"id": "batch0000000001", "title": "batch"}}, {"method": "DELETE", "url": LAST}]

SAMPLES = [    # (who asks, method, path, body), in this order
    (GUEST, "GET", "/api/health", None),
    (ROOT, "POST", "/api/collections", {"name": "posts", "type": "base", "fields": FIELDS, **RULES}),
    (ROOT, "POST", "/api/collections", {"name": "posts", "type": "base"}),
    (ROOT, "POST", "/api/collections", {"name": "a b", "type": "nope", "fields": [{"name": "x"}]}),
    (ROOT, "POST", "/api/collections", {"name": "totals", "type": "view", "viewQuery": "select id, count(*) as n from posts group by public"}),
    (ROOT, "PATCH", "/api/collections/users", {"viewRule": "", "listRule": ""}),
    (ROOT, "GET", "/api/collections?sort=name&fields=items.name,items.type", None),
    (ROOT, "GET", "/api/collections/meta/scaffolds", None),
    (GUEST, "GET", "/api/collections", None),
    (GUEST, "POST", USERS, ANN),
    (GUEST, "POST", USERS, {**ANN, "id": ""}),
    (GUEST, "POST", USERS, {"email": "x", "password": "1", "passwordConfirm": "2"}),
    (GUEST, "GET", "/api/collections/users/auth-methods", None),
    (GUEST, "POST", "/api/collections/users/auth-with-password", {"identity": "ann@example.com", "password": "1234567890"}),
    (GUEST, "POST", "/api/collections/users/auth-with-password", {"identity": "ann@example.com", "password": "wrong"}),
    (GUEST, "POST", "/api/collections/users/auth-with-password", {}),
    (USER, "POST", "/api/collections/users/auth-refresh", {}),
    (GUEST, "POST", "/api/collections/users/auth-refresh", {}),
    *((GUEST, "POST", RECORDS, post) for post in POSTS),
    *((GUEST, "POST", RECORDS, {"id": f"invalid{n:08}", **body}) for n, body in enumerate(INVALID)),
    *((who, "GET", f"{RECORDS}?sort=id&filter={kit.urllib.parse.quote(text)}", None) for text in FILTERS for who in (GUEST, ROOT)),
    *((GUEST, "GET", f"{RECORDS}?{query}", None) for query in QUERIES),
    *((who, "GET", f"{USERS}/{ANN['id']}", None) for who in (GUEST, USER, ROOT)),
    *((GUEST, "PATCH", FIRST, body) for body in ({"score+": 1}, {"tags+": "green"}, {"tags-": "green"}, {"title": ""}, {"unknown": 1})),
    (GUEST, "GET", FIRST + "?expand=author", None),
    (GUEST, "GET", "/api/collections/totals/records", None),
    (ROOT, "GET", "/api/collections/totals/records?fields=items.n&sort=n", None),
    (GUEST, "POST", "/api/batch", {"requests": BATCH}),
    (ROOT, "PATCH", "/api/settings", {"batch": {"enabled": True}, "meta": {"appName": "parity"}}),
    (ROOT, "PATCH", "/api/settings", {"batch": {"maxRequests": -1}, "logs": {"maxDays": "x"}}),
    (GUEST, "GET", "/api/settings", None),
    (GUEST, "POST", "/api/batch", {"requests": BATCH}),
    (GUEST, "POST", "/api/batch", {"requests": [*BATCH, {"method": "POST", "url": RECORDS, "body": {}}]}),
    (GUEST, "DELETE", FIRST, None),
    (GUEST, "DELETE", FIRST, None),
    (GUEST, "POST", "/api/realtime", {"clientId": "missing", "subscriptions": []}),
    (GUEST, "GET", "/api/files/posts/x/y", None),
    (USER, "POST", "/api/files/token", None),
    (ROOT, "GET", "/api/crons", None),
    (GUEST, "GET", "/api/nope", None),
    (GUEST, "PUT", FIRST, {}),
    (ROOT, "DELETE", "/api/collections/users", None),
    (ROOT, "DELETE", "/api/collections/totals", None),
    (ROOT, "DELETE", "/api/collections/posts", None),
]
MASKS = [(re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"), lambda found: "<time>" if found[0] > "2025" else found[0]),
         (re.compile(r"ey[\w-]+\.ey[\w-]+\.[\w-]+"), "<token>"), (re.compile(r"(idx_(?:tokenKey|email)_)\w{10}"), r"\1<random>"),
         (re.compile(r"http://127\.0\.0\.1:\d+"), "<url>")]


def masked(value):
    """The value without what differs by nature."""
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    for pattern, replacement in MASKS:
        value = pattern.sub(replacement, value) if isinstance(value, str) else value
    return value


def answers(server):
    tokens = {ROOT: server.su, GUEST: None}
    for who, method, path, body in SAMPLES:
        if who == USER and USER not in tokens:
            tokens[USER] = server.login("users", ANN["email"])
        response = server.request(method, path, body, token=tokens[who])
        kind = response.headers.get("Content-Type", "")
        yield {"status": response.status, "type": kind, "body": masked(response.json if "json" in kind else response.text)}


def differences(ours, theirs, path=""):
    """(where, our value, their value) of each place where two answers differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            yield from differences(ours.get(key, "<missing>"), theirs.get(key, "<missing>"), f"{path}.{key}".lstrip("."))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{path}.{index}")
    elif (ours, type(ours) is bool) != (theirs, type(theirs) is bool):
        yield path, ours, theirs


def main():
    reference = os.environ.get("REFERENCE")
    if not reference:
        print(__doc__)
        return 2
    with kit.Server() as ours, kit.Server(command=[os.path.abspath(reference)]) as theirs:
        equal = 0
        for sample, *pair in zip(SAMPLES, answers(ours), answers(theirs), strict=True):
            found = list(differences(*pair))
            equal += not found
            if found:
                print("{1} {2} as {0}: {3}".format(*sample))
            for path, here, there in found[:5]:
                print(f"    {path}\n        here:      {here!r:.160}\n        reference: {there!r:.160}")
            if len(found) > 5:
                print(f"    and {len(found) - 5} more places")
    print(f"{equal} of {len(SAMPLES)} answers are equal")
    return int(equal < len(SAMPLES))


if __name__ == "__main__":
    sys.exit(main())
