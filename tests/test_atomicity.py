"""Concurrent writers: nothing is lost, rules guard the very write they allow, a batch is seen whole or not at all."""
import collections

import pytest

from helpers_answers import records
from helpers_answers import refusal
from helpers_beyond import beyond
from helpers_crowd import crowd
from helpers_crowd import salvo

CLIENTS = 64


@pytest.fixture(scope="module")
def api(server):
    server.settings(batch={"enabled": True, "maxRequests": 50, "timeout": 60})
    assert server.su    # logs in before the threads start
    return server


def statuses(answers):
    return collections.Counter(answer.status for answer in answers)


@beyond
def test_no_increment_is_lost(api):
    api.make("counters", ["n:number"])
    counter = records("counters", api.add("counters")["id"])
    answers = [answer for _ in range(10) for answer in salvo(api, "PATCH", counter, [{"n+": 1}] * CLIENTS)]
    assert statuses(answers) == {200: CLIENTS * 10}
    assert sorted(answer.json["n"] for answer in answers) == list(range(1, CLIENTS * 10 + 1))
    assert api.get(counter).json["n"] == CLIENTS * 10


@beyond
def test_no_append_is_lost(api):
    targets = api.make("targets")["id"]
    ids = [api.add("targets")["id"] for _ in range(CLIENTS)]
    api.make("lists", [{"name": "r", "type": "relation", "collectionId": targets, "maxSelect": 999}])
    path = records("lists", api.add("lists")["id"])
    assert statuses(salvo(api, "PATCH", path, [{"r+": id} for id in ids])) == {200: CLIENTS}
    assert sorted(api.get(path).json["r"]) == sorted(ids)


@beyond
def test_exactly_one_wins_each_compare_and_set(api):
    api.make("versioned", ["version:number", "winner"], updateRule="version = @request.body.expected")
    path = records("versioned", api.add("versioned")["id"])
    for round in range(10):
        answers = salvo(api, "PATCH", path, [{"expected": round, "version": round + 1, "winner": str(i)} for i in range(CLIENTS)])
        assert statuses(answers) == {200: 1, 404: CLIENTS - 1}
        [winner] = [i for i, answer in enumerate(answers) if answer.status == 200]
        assert (api.get(path).json["version"], api.get(path).json["winner"]) == (round + 1, str(winner))


def test_exactly_one_wins_each_unique_value(api):
    api.make("unique", ["name", "who"], indexes=["create unique index idx_unique on `unique` (name)"])
    for round in range(5):
        answers = salvo(api, "POST", records("unique"), [{"name": str(round), "who": str(i)} for i in range(CLIENTS)])
        assert statuses(answers) == {200: 1, 400: CLIENTS - 1}
        assert all(refusal(answer)[1] == {"name": "validation_not_unique"} for answer in answers if answer.status == 400)
    assert api.db("select count(*) from `unique`") == [(5,)]


@beyond
def test_a_create_rule_sees_every_earlier_record(api):
    api.make("seats", ["no:number"], createRule="@collection.seats.no != @request.body.no")
    for round in range(5):
        assert statuses(salvo(api, "POST", records("seats"), [{"no": round}] * CLIENTS)) == {200: 1, 400: CLIENTS - 1}
    assert api.db("select count(*), count(distinct no) from seats") == [(5, 5)]


@beyond
def test_a_cascade_racing_with_new_children_leaves_no_orphan(api):
    parents = api.make("parents")["id"]
    api.make("children", [{"name": "parent", "type": "relation", "collectionId": parents, "required": True, "cascadeDelete": True}])
    for _ in range(10):
        parent = api.add("parents")["id"]
        deleted = []
        answers = crowd(16, lambda _: [api.post(records("children"), {"parent": parent}) for _ in range(5)],
                        lambda: deleted.append(api.delete(records("parents", parent))))
        assert deleted[0].status == 204
        assert all(answer.status == 200 or refusal(answer) == (400, {"parent": "validation_missing_rel_records"}) for each in answers for answer in each)
    assert api.db("select count(*) from children where parent not in (select id from parents)") == [(0,)]


def test_half_a_batch_is_never_seen(api):
    """Sixteen clients move money between two accounts, eight watch the sum."""
    api.make("accounts", ["name", "n:number"])
    a, b = (records("accounts", api.add("accounts", {"name": name, "n": 500})["id"]) for name in "ab")
    body = {"requests": [{"method": "PATCH", "url": a, "body": {"n-": 1}}, {"method": "PATCH", "url": b, "body": {"n+": 1}}]}

    def work(i):
        if i < 16:
            return {api.post("/api/batch", body).status for _ in range(20)}
        return {sum(item["n"] for item in api.get(records("accounts")).json["items"]) for _ in range(40)}

    results = crowd(24, work)
    assert set.union(*results[:16]) == {200} and set.union(*results[16:]) == {1000}
    assert (api.get(a).json["n"], api.get(b).json["n"]) == (500 - 16 * 20, 500 + 16 * 20)


def test_a_failing_batch_is_never_seen(api):
    api.make("drafts", ["title"])
    api.make("strict", [{"name": "title", "type": "text", "required": True}])
    body = {"requests": [*[{"method": "POST", "url": records("drafts"), "body": {"title": "x"}}] * 10,
                         {"method": "POST", "url": records("strict"), "body": {}}]}

    def work(i):
        if i % 2:
            return {api.post("/api/batch", body).status for _ in range(5)}
        return {api.get(records("drafts")).json["totalItems"] for _ in range(20)}

    results = crowd(16, work)
    assert set.union(*results[1::2]) == {400} and set.union(*results[::2]) == {0}


def test_concurrent_changes_of_collections_and_records_stay_consistent(api):
    """Each thread makes a collection, fills it, adds a field and renames it, while the others do the same."""
    def work(i):
        made = api.make(f"busy_{i}", ["a"])
        api.add(f"busy_{i}", {"a": str(i)})
        fields = [*made["fields"], {"name": "b", "type": "number"}]
        assert api.patch(f"/api/collections/busy_{i}", {"fields": fields, "name": f"done_{i}"}, token=api.su).status == 200
        return api.add(f"done_{i}", {"a": "new", "b": i})["b"]

    assert crowd(8, work) == list(range(8))
    for i in range(8):
        assert api.db(f"select a, b from done_{i} order by rowid") == [(str(i), 0), ("new", i)]
