"""The filter language: operators on every type, any/all matching, modifiers, macros, functions, back relations, what clients may not ask."""
import datetime

import pytest

from helpers_answers import BAD_REQUEST
from helpers_answers import envelope
from helpers_answers import items
from helpers_answers import records
from helpers_answers import refusal

ROWS = {
    "one": {"text": "Hello World", "num": 10, "ok": True, "day": "2020-01-15 10:00:00.000Z", "kind": "x", "tags": ["red", "green"],
            "data": {"a": 1, "b": {"c": "deep"}, "list": [1, 2], "t": True},
            "mail": "one@example.com", "site": "http://a.com", "place": {"lon": 23.3, "lat": 42.7}},
    "two": {"text": "50% off_now", "num": -5.5, "ok": False, "day": "2021-06-01 00:00:00.000Z", "kind": "y", "tags": ["blue"], "data": [1, "two"],
            "place": {"lon": 13.4, "lat": 52.5}},
    "three": {"text": "", "num": 0, "ok": True, "tags": [], "data": "text"},
    "four": {"text": "it's \"q\" \\", "num": 1000, "ok": False, "day": "2022-12-31 23:59:59.999Z", "kind": "x", "tags": ["red", "blue"], "data": 5},
    "five": {"text": "hello ü", "num": 3.25, "ok": True, "day": "2020-01-15 10:00:00.001Z", "data": None},
}
ALL = set(ROWS)


@pytest.fixture(scope="module")
def api(server):
    """Rows of every type; `graph` with relations for any/all matching; collections behind rules."""
    server.make("rows", [
        "name", "text", "num:number", "ok:bool", "day:date", {"name": "kind", "type": "select", "values": ["x", "y"]},
        {"name": "tags", "type": "select", "values": ["red", "green", "blue"], "maxSelect": 3}, "data:json", "mail:email", "site:url",
        "place:geoPoint",
        {"name": "secret", "type": "text", "hidden": True}])
    for name, row in ROWS.items():
        server.add("rows", {"name": name, "secret": name, **row})
    values = server.make("vals", ["v"])["id"]
    server.make("graph", ["name", {"name": "r", "type": "relation", "collectionId": values, "maxSelect": 9}, {"name": "o", "type": "relation", "collectionId": values}])
    ids = {v: server.add("vals", {"v": v})["id"] for v in "abc"}
    for name, many, one in (("none", "", ""), ("a", "a", "a"), ("ab", "ab", "b"), ("abc", "abc", "c")):
        server.add("graph", {"name": name, "r": [ids[v] for v in many], "o": ids.get(one, "")})
    server.ids = ids
    return server


def found(api, filter, collection="rows", token=None):
    """The names of the records that match."""
    return set(items(api.get(records(collection), params={"filter": filter}, token=token), "name"))


def names(text):
    return ALL if text == "*" else set(text.split())


def refused(api, filter, collection="rows", token=None):
    answer = api.get(records(collection), params={"filter": filter}, token=token)
    assert answer.status in (400, 403), answer
    return answer


# ---- operators

@pytest.mark.parametrize("filter, expected", [
    # text
    ("text = 'Hello World'", "one"), ('text = "Hello World"', "one"), ("text = 'hello world'", ""), ("text != 'Hello World'", "two three four five"),
    ("'Hello World' = text", "one"),
    ("text = ''", "three"), ("text != ''", "one two four five"), ("text = null", "three"), ("text = 5", ""), ("text > 'h'", "four five"),
    ("text >= '50' && text < '51'", "two"),
    (r"text = 'it\'s \"q\" \\'", "four"), (r"""text = "it's \"q\" \\" """, "four"),
    # like
    ("text ~ 'hello'", "one five"), ("text ~ 'hello%'", "one five"), ("text ~ '%world'", "one"), ("text ~ 'h%d'", "one"),
    ("text !~ 'hello'", "two three four"), ("text ~ '%'", "*"),
    ("text ~ '50%'", "two"), (r"text ~ '50\%'", "two"), ("text ~ '_'", "two"), (r"text ~ '\_'", "two"), ("text ~ ''", "*"), ("text ~ 'Ü'", ""),
    ("text ~ 'ü'", "five"),
    ("'Hello World' ~ text", "one three"), ("text ~ text", "one two three five"), (r"text ~ '\\'", "four"), ("text ~ 'o_w%'", ""),
    ("text ~ '%o_W%'", "one"), ("num ~ 10", "one four"), ("num ~ '.'", "two five"),
    # number
    ("num = 10", "one"), ("num = 10.0", "one"), ("num = '10'", "one"), ("num != 10", "two three four five"), ("num = -5.5", "two"), ("num = 007", ""),
    ("num > 3", "one four five"), ("num >= 3.25", "one four five"),
    ("num < 0", "two"), ("num <= 0", "two three"), ("10 < num", "four"), ("num = ''", ""), ("num = 0", "three"), ("num > null", ""),
    ("num = true", ""),
    # bool
    ("ok = true", "one three five"), ("ok = TRUE", "one three five"), ("ok = 1", "one three five"), ("ok = '1'", "one three five"),
    ("ok = 'true'", ""), ("ok != true", "two four"), ("ok = false", "two four"), ("ok = ''", ""),
    # date
    ("day >= '2021'", "two four"), ("day = '2020-01-15 10:00:00.000Z'", "one"), ("day = '2020-01-15 10:00:00Z'", ""), ("day = ''", "three"),
    ("day > '2020-01-15 10:00:00.000Z' && day < '2021'", "five"),
    ("day ~ '2020-01'", "one five"), ("day < @now", "*"), ("day = null", "three"),
    # select
    ("kind = 'x'", "one four"), ("kind != 'x'", "two three five"), ("kind = ''", "three five"), ("tags = 'red'", ""), ("tags ~ 'red'", "one four"),
    ("tags !~ 'red'", "two three five"), ("tags = '[]'", "three five"),
    ("tags = ''", ""), ("tags:length = 2", "one four"), ("tags:length = 0", "three five"), ("tags:each = 'blue'", "two"),
    ("tags:each ?= 'blue'", "two four"), ("tags:each != 'red'", "two three five"),
    ("tags:each ~ '%e%'", "one two four"), ("kind:length = 1", "one two four"), ("kind:length = 0", "three five"),
    # json
    ("data.a = 1", "one"), ("data.a = '1'", ""), ("data.b.c = 'deep'", "one"), ("data.list.1 = 2", "one"), ("data.1 = 'two'", "two"),
    ("data = 5", "four"), ("data = '5'", ""), ("data = 'text'", "three"), ("data = null", "five"),
    ("data != null", "one two three four"), ("data.t = true", "one"), ("data.t = 1", "one"), ("data.a > 0", "one"), ("data.missing = null", "*"),
    ("data ~ 'deep'", "one"), ("data = '[1,\"two\"]'", "two"), ("data.b ~ 'c'", "one"),
    # e-mail, url, geoPoint
    ("mail = 'one@example.com'", "one"), ("mail ~ 'EXAMPLE'", "one"), ("site ~ 'a.com'", "one"), ("place.lat > 50", "two"),
    ("place.lon = 23.3", "one"), ("place ~ '52.5'", "two"), ("place.lat = 0", "three four five"),
    # constants
    ("1 = 1", "*"), ("1 = 2", ""), ("null = null", "*"), ("'' = null", "*"), ("true = 1", "*"), ("text = text", "*"),
    ("num = num && 'a' != 'b'", "*"), ("'a' = 'a'", "*"),
    # names and modifiers
    ("text:lower = 'hello world'", "one"), ("text:lower ~ 'HELLO'", "one five"), ("id != '' && id != null", "*"), ("text:length = ''", "three"),
])
def test_operators(api, filter, expected):
    assert found(api, filter) == names(expected)


@pytest.mark.parametrize("filter, expected", [
    ("num = 10 || num = 0", "one three"), ("num = 10 && ok = true", "one"), ("num = 10 || ok = false && num = 1000", "one four"),
    ("(num = 10 || ok = false) && num = 1000", "four"), ("((num = 10))", "one"),
    ("num=10||num=0", "one three"), ("num = 10 // the first", "one"), ("num = 10 && // and\n ok = true", "one"),
    ("num = 10\n||\tnum = 0", "one three"), ("(num > 0) (ok = true)", "one five"), ("num > 0 (ok = true)", "one five"),
    ("(ok = true && (num = 10 || (num = 0 && text = '')))", "one three"), ("num = 1 || num = 2 (num = 10)", "one"),
])
def test_joins_groups_and_comments(api, filter, expected):
    assert found(api, filter) == names(expected)


# ---- every related value, or any of them

@pytest.mark.parametrize("filter, expected", [
    ("r.v = 'a'", "a"), ("r.v ?= 'a'", "a ab abc"), ("r.v != 'a'", "none"), ("r.v ?!= 'a'", "none ab abc"), ("r.v ~ 'a'", "a"),
    ("r.v ?~ 'a'", "a ab abc"), ("r.v !~ 'a'", ""), ("r.v ?!~ 'a'", "ab abc"),
    ("r.v = ''", "none"), ("r.v != ''", "a ab abc"), ("r.v > 'a'", ""), ("r.v ?> 'b'", "abc"), ("r.v >= 'a'", "a ab abc"), ("r.v < 'c'", "a ab"),
    ("r.v ?< 'b'", "a ab abc"), ("r.v ?>= 'c'", "abc"), ("r.v ?<= 'a'", "a ab abc"),
    ("r.v ?= 'a' && r.v ?= 'b'", ""), ("r.v = o.v", "none a"), ("r.v ?= o.v", "none a ab abc"), ("r:length > 0", "a ab abc"), ("r:length = 2", "ab"),
    ("r.id = o", "none a"), ("o.v = 'b'", "ab"), ("o.v = ''", "none"), ("o.v != 'b'", "none a abc"),
    ("r.v:lower ?= 'c'", "abc"), ("r.v ?= 'a' || o.v = ''", "none a ab abc"),
])
def test_matching_of_many_related_values(api, filter, expected):
    assert found(api, filter, "graph") == names(expected)


@pytest.mark.parametrize("filter, expected", [
    ("r.id ?= '{a}'", "a ab abc"), ("r:each ?= '{b}'", "ab abc"), ("r:each = '{a}'", "a"), ("r ~ '{c}'", "abc"), ("o = '{b}'", "ab"),
    ("o.id = '{b}'", "ab"), ("r ?= '{a}'", ""), ("r:each != '{c}'", "none a ab"),
])
def test_matching_of_related_ids(api, filter, expected):
    assert found(api, filter.format(**api.ids), "graph") == names(expected)


def test_related_records_never_repeat_rows(api):
    listed = api.get(records("graph"), params={"filter": "r.v ?!= 'x'", "sort": "-r.v"})
    assert sorted(items(listed, "name")) == ["a", "ab", "abc", "none"] and listed.json["totalItems"] == 4


@pytest.mark.parametrize("filter, expected", [
    ("graph_via_r.name ?= 'ab'", "a b"), ("graph_via_r.name = 'abc'", "c"), ("graph_via_o.name = 'a'", "a"), ("graph_via_o.name != 'a'", "b c"),
    ("graph_via_r.o.v ?= 'b'", "a b"), ("graph_via_r.name ?!= 'abc'", "a b"),
    ("graph_via_r.id != ''", "a b c"), ("GRAPH_via_o.name = 'a'", "a"),
])
def test_back_relations(api, filter, expected):
    assert set(items(api.get(records("vals"), params={"filter": filter}), "v")) == set(expected.split())


def test_back_relation_over_a_unique_field_is_a_single_value(api):
    owners = api.make("owners", ["name"])["id"]
    api.make("cards", ["no", {"name": "owner", "type": "relation", "collectionId": owners}],
             indexes=["create unique index idx_cards on cards (owner)"])
    owner = api.add("owners", {"name": "with"})["id"]
    api.add("owners", {"name": "without"})
    api.add("cards", {"no": "5", "owner": owner})
    assert found(api, "cards_via_owner.no = '5'", "owners") == {"with"}
    assert api.get(records("owners", owner), params={"expand": "cards_via_owner"}).json["expand"]["cards_via_owner"]["no"] == "5"


# ---- @collection, for superusers and rules

@pytest.mark.parametrize("filter, expected", [
    ("@collection.vals.v ?= 'a'", "none a ab abc"), ("@collection.vals.v = 'a'", ""), ("@collection.vals.v ?= name", "a"),
    ("@collection.vals.v ?= 'a' && @collection.vals.v ?= 'b'", ""),
    ("@collection.vals:x.v ?= 'a' && @collection.vals:y.v ?= 'b'", "none a ab abc"),
    ("@collection.graph.name ?= 'ab' && @collection.graph.o ?= o", "ab"),
])
def test_other_collections(api, filter, expected):
    assert found(api, filter, "graph", token=api.su) == names(expected)


# ---- macros and functions

@pytest.mark.parametrize("macro, value", [
    ("@year", lambda now: now.year), ("@month", lambda now: now.month), ("@day", lambda now: now.day), ("@weekday", lambda now: now.isoweekday() % 7),
    ("@hour", lambda now: now.hour),
])
def test_number_macros(api, macro, value):
    before = value(datetime.datetime.now(datetime.UTC))
    as_number, as_text = found(api, f"{macro} = {before}"), found(api, f"{macro} = '{before}'")
    if value(datetime.datetime.now(datetime.UTC)) == before:    # else the hour struck between the two
        assert (as_number, as_text) == (ALL, set())


@pytest.mark.parametrize("filter", [
    "@yesterday < @now && @now < @tomorrow", "@todayStart <= @now && @now <= @todayEnd", "@monthStart <= @todayStart && @todayEnd <= @monthEnd",
    "@yearStart <= @monthStart && @monthEnd <= @yearEnd",
    "@todayStart ~ '%00:00:00.000Z'", "@todayEnd ~ '%23:59:59.999Z'", "@yearStart ~ '%-01-01 00:00:00.000Z'", "@yearEnd ~ '%-12-31 23:59:59.999Z'",
    "@monthStart ~ '%-01 00:00:00.000Z'", "@now ~ '____-__-__ __:__:__.___Z%'",
    "@second >= 0 && @second < 60", "@minute >= 0 && @minute < 60",
])
def test_time_macros(api, filter):
    assert found(api, filter) == ALL


@pytest.mark.parametrize("filter, expected", [
    ("geoDistance(place.lon, place.lat, 23.3, 42.7) < 1", "one"),
    ("geoDistance(place.lon, place.lat, 23.3, 42.7) < 1500 && place.lat > 0", "one two"),
    ("geoDistance(0, 0, 0, 0) = 0", "*"), ("geoDistance(text, 0, 0, 0) > 0", ""),
    ("geoDistance(0, 0, 180, 0) > 20015 && geoDistance(0, 0, 180, 0) < 20016", "*"),
    ("strftime('%Y', day) = '2020'", "one five"), ("strftime('%Y', day) = ''", "three"),
    ("strftime('%Y-%m', day, '+1 month') = '2020-02'", "one five"), ("strftime('%Y', '2020-05-05') = '2020'", "*"),
    ("strftime('%Y', day,) = '2021'", "two"), ("strftime('%Y', @now) >= '2024'", "*"),
])
def test_functions(api, filter, expected):
    assert found(api, filter) == names(expected)


# ---- refused

@pytest.mark.parametrize("filter", [
    " ", "//", "// only", "()", "text", "true", "text =", "= 'x'", "text = 'x' &&", "&& text = 'x'", "(text = 'x'", "text = 'x')", "text == 'x'",
    "text <> 'x'", "text => 'x'", "text =! 'x'", "text = 'x' & num = 1", "text = 'x' | num = 1",
    "text = 'x' ||| num = 1", "text = 'x' and num = 1", "not text = 'x'", "!(text = 'x')", "text in ('x')", "text is null", "text = 'x", 'text = "x',
    "text = 'x';", "text = 'x' num = 1", "num = 1e3", "num = .5", "num = 1.", "num = +1", "num = --1",
    "num = 0x10", "num + 1 = 2", "/* c */ text = 'x'", "text = x", "nope = 1", "text.a = 1", "text. = 1", "@ = 1", "@nope = 1", "@now.x = 1",
    "@collection = 1", "text:nope = 1", "text:lower:length = 1", "tags:each:lower = 'red'", "NUM = 1", "f(1) = 1",
    "geoDistance(1, 2, 3) = 1", "geoDistance(1, 2, 3, 'x') = 1", "geoDistance(1, 2, 3, geoDistance(1, 2, 3, 4)) = 1", "GEODISTANCE(1, 2, 3, 4) = 1",
    "strftime() = ''", "strftime(day) = ''", "strftime(text, day) = ''", "text = 'a'\r&& num = 1",
    "text = 'a'\x01", "tëxt = 'a'", "expand = ''", "collectionId = 'x'", "num = 1 || (", "text = '" + "x" * 3500 + "'",
    " && ".join(["num = 1"] * 201), "nope_via_x.y = 1",
])
def test_refused_syntax(api, filter):
    answer = refused(api, filter)
    assert answer.json == envelope(400, BAD_REQUEST)


@pytest.mark.parametrize("filter, collection", [
    ("graph_via_r = 'x'", "vals"), ("graph_via_r:length > 0", "vals"), ("graph_via_name.o = 'x'", "vals"), ("r.nope = 1", "graph"),
    ("r.v.x = 1", "graph"), ("rows_via_r.x = 1", "vals"),
])
def test_refused_paths(api, filter, collection):
    assert refused(api, filter, collection).status == 400


def test_limits_are_at_the_promised_size(api):
    assert found(api, "text = '" + "x" * (3500 - 9) + "'") == set()
    assert found(api, " || ".join(["num=10"] * 200)) == {"one"}
    assert found(api, "(" * 300 + "num=10" + ")" * 300) == {"one"}


def test_relation_hops_are_limited_to_six(api):
    nodes = api.make("nodes", ["name"])
    field = {"name": "next", "type": "relation", "collectionId": nodes["id"]}
    assert api.patch("/api/collections/nodes", {"fields": [*nodes["fields"], field]}, token=api.su).status == 200
    api.add("nodes", {"name": "x"})
    assert found(api, "next." * 6 + "name = ''", "nodes") == {"x"}
    assert refused(api, "next." * 7 + "name = ''", "nodes").status == 400


@pytest.mark.parametrize("value", [
    "' OR 1=1 --", "\\' OR 1=1 --", "'; DROP TABLE rows; --", "x' UNION SELECT * FROM users --", "{:p0}", "?", "$1", "%s", "`text`", "[[text]]",
    "{{rows}}", '" OR ""="', "\\",
])
def test_values_are_never_sql(api, value):
    quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    for operator in ("=", "~", "?=", ">"):
        assert api.get(records("rows"), params={"filter": f"text {operator} {quoted}"}).status == 200
    assert found(api, f"text = {quoted}") == set()
    kept = api.add("vals", {"v": value})["id"]
    assert items(api.get(records("vals"), params={"filter": f"v = {quoted}"})) == [kept]
    assert items(api.get(records("vals"), params={"filter": f"v:lower = {quoted}"})) == ([kept] if value == value.lower() else [])
    api.delete(records("vals", kept))


# ---- what clients may not ask

@pytest.mark.parametrize("params, message", [
    ({"filter": "@collection.vals.v ?= 'a'"}, "Only superusers can filter by @collection."),
    ({"filter": "text = '@collection.x'"}, "Only superusers can filter by @collection."),
    ({"filter": "@request.auth.id = ''"}, "Only superusers can filter by @request."),
    ({"sort": "@collection.vals.v"}, "Only superusers can filter by @collection."),
    ({"sort": "@request.auth.id"}, "Only superusers can filter by @request."),
])
def test_clients_do_not_reach_outside_the_record(api, params, message):
    answer = api.get(records("rows"), params=params)
    assert answer.json == envelope(403, message)


@pytest.mark.parametrize("filter", ["secret = 'one'", "secret ~ 'o'", "secret:lower = 'one'", "secret != ''", "strftime('%Y', secret) = ''"])
def test_hidden_fields_are_not_filtered_by_clients(api, filter):
    assert refused(api, filter).status == 400
    assert api.get(records("rows"), params={"filter": filter}, token=api.su).status == 200
    assert api.get(records("rows"), params={"sort": "secret"}).status == 400


@pytest.fixture(scope="module")
def staff(api):
    """People with and without visible addresses, and what points at them and at collections behind list rules."""
    people = api.make("people", ["name"], type="auth")["id"]
    ids = {name: api.add_user(f"{name}@example.com", "people", name=name, emailVisibility=name == "ann")["id"] for name in ("ann", "bob")}
    closed = api.make("closed", ["name"], listRule=None)["id"]
    partly = api.make("partly", ["name"], listRule="name = 'open'")["id"]
    in_closed = api.add("closed", {"name": "x"})["id"]
    in_partly = {name: api.add("partly", {"name": name})["id"] for name in ("open", "shut")}
    api.make("jobs", ["name", {"name": "person", "type": "relation", "collectionId": people}, {"name": "closed", "type": "relation", "collectionId": closed},
                      {"name": "partly", "type": "relation", "collectionId": partly}])
    api.add("jobs", {"name": "a", "person": ids["ann"], "closed": in_closed, "partly": in_partly["open"]})
    api.add("jobs", {"name": "b", "person": ids["bob"], "closed": in_closed, "partly": in_partly["shut"]})
    api.add("jobs", {"name": "c"})
    return api


def test_hidden_addresses_are_not_found(staff):
    assert found(staff, "email ~ 'example'", "people") == {"ann"}
    assert found(staff, "email ~ 'example'", "people", token=staff.su) == {"ann", "bob"}
    assert found(staff, "person.email ~ 'example'", "jobs") == {"a"}
    assert found(staff, "person.email ~ 'example'", "jobs", token=staff.su) == {"a", "b"}


@pytest.mark.parametrize("filter, collection",
                         [("password != ''", "people"), ("tokenKey != ''", "people"), ("person.tokenKey ~ 'a'", "jobs"),
                          ("jobs_via_person.person.tokenKey ~ 'a'", "people")])
def test_keys_and_hashes_are_not_filtered_by_clients(staff, filter, collection):
    assert refused(staff, filter, collection).status == 400


def test_relations_are_followed_only_where_the_client_may_list(staff):
    assert refused(staff, "closed.name = 'x'", "jobs").status == 400
    assert staff.get(records("jobs"), params={"sort": "closed.name"}).status == 400
    assert refused(staff, "jobs_via_closed.name = 'a'", "closed").status == 403
    assert found(staff, "closed.name = 'x'", "jobs", token=staff.su) == {"a", "b"}
    assert found(staff, "partly.name != ''", "jobs") == {"a"}
    assert found(staff, "partly.name = 'shut'", "jobs") == set()
    assert set(items(staff.get(records("jobs"), params={"sort": "partly.name"}), "name")) == {"a", "c"}
    assert found(staff, "partly.name = 'shut'", "jobs", token=staff.su) == {"b"}


def test_rules_may_ask_what_clients_may_not(staff):
    staff.make("asked", ["name"], listRule="@collection.closed.name ?= name && @request.auth.id = ''")
    staff.add("asked", {"name": "x"})
    staff.add("asked", {"name": "y"})
    assert found(staff, "", "asked") == {"x"}
    assert refusal(staff.get(records("asked"), params={"filter": "nope = 1"})) == (400, {})
