"""Answers that are remembered are never old: after every way of writing, and where the clock, chance or a view decides as well."""
import sqlite3
import time

import pytest

from helpers_answers import items
from helpers_answers import records
from kit import PATIENCE

AUTHORS = [f"author00000000{i}" for i in range(10)]


@pytest.fixture
def api(fresh):
    """Authors; posts that fall with theirs; notes that only let go of it; a guarded collection whose rule looks at the notes."""
    api = fresh()
    authors = api.make("authors", ["name", "n:number", {"name": "secret", "type": "text", "hidden": True}])["id"]
    api.make("posts", ["title", {"name": "author", "type": "relation", "collectionId": authors, "cascadeDelete": True}])
    api.make("notes", ["text", {"name": "author", "type": "relation", "collectionId": authors}])
    api.make("guarded", ["title"], listRule="@collection.notes.text ?= title")
    api.make("seen", type="view", viewQuery="SELECT id, text FROM notes")
    api.make("behind", ["title"], listRule="@collection.seen.text ?= title")
    api.patch("/api/settings", {"batch": {"enabled": True}}, token=api.su)
    for i, id in enumerate(AUTHORS[:4]):
        api.add("authors", {"id": id, "name": f"a{i}", "n": i, "secret": f"s{i}"})
        api.add("posts", {"id": f"post0000000000{i}", "title": f"p{i}", "author": id})
        api.add("notes", {"id": f"note0000000000{i}", "text": f"t{i}", "author": id})
        for name in ("guarded", "behind"):
            api.add(name, {"id": f"{name:a<14}{i}", "title": f"t{i}"})
    return api


LISTS = {"authors": "name", "posts": "author", "notes": "author", "guarded": "title", "behind": "title", "seen": "text"}


def shown(api):
    """What the lists say: {collection: {id: value}}, each asked twice so that the second answer can be a remembered one."""
    answers = [{name: api.get(records(name), params={"sort": "id"}).json for name in LISTS} for _ in range(2)]
    assert answers[0] == answers[1]
    for name, answer in answers[0].items():
        assert answer["totalItems"] == len(answer["items"]), name
    return {name: {item["id"]: item[LISTS[name]] for item in answer["items"]} for name, answer in answers[0].items()}


def stored(api):
    """The same, worked out from the database file."""
    rows = {name: dict(api.db(f"SELECT id, {LISTS[name]} FROM {name}")) for name in LISTS}
    texts = {text for text, in api.db("SELECT text FROM notes")}
    for name in ("guarded", "behind"):
        rows[name] = {id: title for id, title in rows[name].items() if title in texts}
    return rows


def foreign(api, sql):
    """Another process writes to the database."""
    with sqlite3.connect(f"{api.dir}/data.db", timeout=PATIENCE) as db:
        db.execute(sql)
    db.close()


WAYS = {
    "create": lambda api: api.post(records("notes"), {"text": "t1"}),
    "update": lambda api: api.patch(records("authors", AUTHORS[1]), {"name": "new"}),
    "update what a rule looks at": lambda api: api.patch(records("notes", "note00000000001"), {"text": "t1x"}),
    "delete": lambda api: api.delete(records("notes", "note00000000002")),
    "delete with cascade and unlinking": lambda api: api.delete(records("authors", AUTHORS[0])),
    "batch": lambda api: api.post("/api/batch", {"requests": [
        {"method": "DELETE", "url": records("authors", AUTHORS[0])}, {"method": "POST", "url": records("notes"), "body": {"text": "t0"}}]}),
    "truncate": lambda api: api.delete("/api/collections/notes/truncate", token=api.su),
    "console": lambda api: api.post("/api/sql", {"query": "UPDATE notes SET text = 'z' || text"}, token=api.su),
    "schema": lambda api: api.patch("/api/collections/authors", {"name": "authors", "fields": [
        field for field in api.get("/api/collections/authors", token=api.su).json["fields"] if field["name"] != "n"]}, token=api.su),
    "another process": lambda api: foreign(api, "UPDATE notes SET text = 'q' WHERE text = 't3'"),
}


@pytest.mark.parametrize("way", WAYS)
def test_lists_follow_every_way_of_writing(api, way):
    assert shown(api) == stored(api)
    before = api.get(records("authors", AUTHORS[1])).json
    answer = WAYS[way](api)
    assert answer is None or answer.status < 300, answer
    assert shown(api) == stored(api)
    if way in ("update", "schema"):
        assert api.get(records("authors", AUTHORS[1])).json != before


def test_a_trigger_reaches_lists_of_other_tables(api):
    foreign(api, "CREATE TRIGGER bump AFTER UPDATE ON authors BEGIN UPDATE notes SET text = 'by trigger'; END")
    assert shown(api) == stored(api)
    api.patch(records("authors", AUTHORS[1]), {"name": "new"})
    assert shown(api) == stored(api)
    assert set(shown(api)["notes"]) and {item["text"] for item in api.get(records("notes")).json["items"]} == {"by trigger"}


def test_a_failed_write_changes_no_answer(api):
    before = shown(api)
    failed = api.post("/api/batch", {"requests": [
        {"method": "DELETE", "url": records("authors", AUTHORS[0])}, {"method": "PATCH", "url": records("notes", "missing00000000"), "body": {}}]})
    assert failed.status == 400
    assert shown(api) == before


def test_callers_get_their_own_view(api):
    for _ in range(2):
        guest, root = api.get(records("authors")).json, api.get(records("authors"), token=api.su).json
        assert "secret" not in guest["items"][0] and root["items"][0]["secret"] == "s0"
        assert api.get(records("authors"), params={"fields": "n"}).json["items"][0] == {"n": 0}
        assert api.get(records("posts"), params={"expand": "author"}).json["items"][0]["expand"]["author"]["name"] == "a0"
        assert "expand" not in api.get(records("posts")).json["items"][0]
        assert api.get(records("guarded"), token=api.su).json["totalItems"] == 4


def test_values_and_pages_are_told_apart(api):
    for _ in range(2):
        for i in range(4):
            listed = api.get(records("authors"), params={"filter": f"name = 'a{i}'"}).json
            assert [item["n"] for item in listed["items"]] == [i] and listed["totalItems"] == 1
            page = api.get(records("authors"), params={"perPage": "1", "page": str(i + 1), "sort": "n"}).json
            assert [item["n"] for item in page["items"]] == [i] and page["totalItems"] == 4


def test_email_is_shown_to_whom_it_may_concern(api):
    api.make("people", type="auth")
    for name in "ab":
        api.add_user(f"{name}@example.com", "people", id=f"person{name:0>9}", emailVisibility=name == "a")
    token = api.login("people", "b@example.com")
    for _ in range(2):
        for who, last in ((None, None), (token, "b@example.com"), (api.su, "b@example.com")):
            assert items(api.get(records("people"), params={"sort": "id"}, token=who), "email") == ["a@example.com", last]


def test_random_order_is_drawn_each_time(api):
    orders = {tuple(item["id"] for item in api.get(records("authors"), params={"sort": "@random"}).json["items"]) for _ in range(40)}
    assert len(orders) > 1


def becomes(ask, expected):
    """Asks until the answer is the expected one."""
    end = time.monotonic() + PATIENCE
    while (answer := ask()) != expected and time.monotonic() < end:
        pass
    return answer


def test_the_clock_is_read_each_time(api):
    at = int(time.time()) + 2
    query = {"filter": f"strftime('%s', 'now') >= '{at}'"}
    total = lambda: api.get(records("authors"), params=query, token=api.su).json["totalItems"]
    assert becomes(total, 4) == 4


def test_a_view_that_reads_the_clock_is_asked_each_time(api):
    at = int(time.time()) + 2
    api.make("late", type="view", viewQuery=f"SELECT id, name FROM authors WHERE unixepoch() >= {at}")
    api.make("waiting", ["title"], listRule="@collection.late.name ?= title")
    api.add("waiting", {"title": "a1"})
    assert becomes(lambda: api.get(records("late")).json["totalItems"], 4) == 4
    assert becomes(lambda: api.get(records("waiting")).json["totalItems"], 1) == 1
