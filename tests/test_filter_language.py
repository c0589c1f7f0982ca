"""Filter language: parsing, errors, operators, relations, match-all, modifiers, @request, access limits, sort, plan cache."""

import json
import sqlite3
import types

import pytest

from unit import pocketbase as filters

ApiError = filters.ApiError
FilterError = filters.FilterError
RequestInfo = filters.RequestInfo


class Field:
    def __init__(self, name, type="text", multiple=False, hidden=False, collection_id=""):
        self.name, self.type, self.multiple, self.hidden, self.collection_id = name, type, multiple, hidden, collection_id


class Collection:
    list_rule = ""

    def __init__(self, id, name, fields, type="base", unique=()):
        self.id, self.name, self.type, self.unique = id, name, type, unique
        self.fields = [Field("id"), *fields]

    def field(self, name):
        return next((f for f in self.fields if f.name == name), None)

    def has_unique_index(self, name):
        return name in self.unique


class Schema:
    version = 1

    def __init__(self, *collections):
        self.collections = collections

    def find(self, name):
        return next((c for c in self.collections if c.id == name or c.name.lower() == name.lower()), None)


class Record:
    def __init__(self, collection, id, **values):
        self.collection, self.id, self.get = collection, id, values.get


ROWS = {
    "groups": [
        {"id": "a", "v": "a", "n": 1, "owner": "u1"},
        {"id": "b", "v": "b", "n": 5, "owner": "u2"},
        {"id": "c", "v": "c", "n": 9, "owner": ""},
    ],
    "members": [
        {"id": "u1", "email": "one@x.io", "emailVisibility": 1, "role": "admin", "verified": 1, "tags": '["x","y"]'},
        {"id": "u2", "email": "two@x.io", "emailVisibility": 0, "role": "", "verified": 0, "tags": "[]"},
    ],
    "items": [
        {
            "id": "none",
            "title": "",
            "num": 0,
            "ok": 0,
            "one": "",
            "many": "[]",
            "tags": "[]",
            "meta": None,
            "place": '{"lon":0,"lat":0}',
            "secret": "s",
            "at": "",
        },
        {
            "id": "ia",
            "title": "Alpha",
            "num": 1,
            "ok": 1,
            "one": "a",
            "many": '["a"]',
            "tags": '["red"]',
            "meta": '{"k":1,"l":[{"m":"x"}]}',
            "place": '{"lon":23.3,"lat":42.7}',
            "secret": "t",
            "at": "2024-01-15 10:00:00.000Z",
        },
        {
            "id": "iab",
            "title": "50% a_b",
            "num": 2.5,
            "ok": 0,
            "one": "b",
            "many": '["a","b"]',
            "tags": '["red","blue"]',
            "meta": '"text"',
            "place": '{"lon":13.4,"lat":52.5}',
            "secret": "",
            "at": "2025-06-01 00:00:00.000Z",
        },
        {
            "id": "iabc",
            "title": "10",
            "num": 10,
            "ok": 1,
            "one": "c",
            "many": '["a","b","c"]',
            "tags": '["blue"]',
            "meta": '{"k":null}',
            "place": '{"lon":1,"lat":1}',
            "secret": "",
            "at": "2025-06-02 00:00:00.000Z",
        },
    ],
    "notes": [
        {"id": "n1", "v": "x", "item": "ia", "items": '["ia","iab"]'},
        {"id": "n2", "v": "y", "item": "ia", "items": "[]"},
        {"id": "n3", "v": "x", "item": "iab", "items": '["iabc"]'},
    ],
    "pins": [{"id": "p1", "v": "x", "item": "iab"}],
}
AFFINITY = {"number": "NUMERIC", "bool": "BOOLEAN", "json": "JSON"}


@pytest.fixture
def world():
    groups = Collection("g", "groups", [Field("v"), Field("n", "number"), Field("owner", "relation", collection_id="m")])
    members = Collection(
        "m",
        "members",
        [Field("email", "email"), Field("emailVisibility", "bool"), Field("role"), Field("verified", "bool"), Field("tags", "select", True)],
        "auth",
    )
    items = Collection(
        "i",
        "items",
        [
            Field("title"),
            Field("num", "number"),
            Field("ok", "bool"),
            Field("one", "relation", collection_id="g"),
            Field("many", "relation", True, collection_id="g"),
            Field("tags", "select", True),
            Field("meta", "json"),
            Field("place", "geoPoint"),
            Field("secret", hidden=True),
            Field("at", "date"),
        ],
    )
    notes = Collection("n", "notes", [Field("v"), Field("item", "relation", collection_id="i"), Field("items", "relation", True, collection_id="i")])
    pins = Collection("p", "pins", [Field("v"), Field("item", "relation", collection_id="i")], unique=("item",))
    schema = Schema(groups, members, items, notes, pins)
    db = sqlite3.connect(":memory:")
    for collection in schema.collections:
        columns = ", ".join(
            f"`{f.name}` {AFFINITY.get(f.type, 'TEXT')}" + (" PRIMARY KEY NOT NULL" if f.name == "id" else "") for f in collection.fields
        )
        db.execute(f"CREATE TABLE `{collection.name}` ({columns})")
        for row in ROWS[collection.name]:
            db.execute(f"INSERT INTO `{collection.name}` ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
    yield types.SimpleNamespace(schema=schema, db=db, items=items, members=members, groups=groups, notes=notes)
    db.close()


SUPERUSER = RequestInfo(superuser=True)
GUEST = RequestInfo()


def ids(world, filter="", *, info=SUPERUSER, sort="", collection=None, **options):
    collection = collection or world.items
    query = filters.plan_query(world.schema, collection, info, filter=filter, sort=sort, **options)
    sql = f"SELECT {'DISTINCT ' if query.distinct else ''}`{collection.name}`.* FROM `{collection.name}` {query.joins}"
    sql += (f" WHERE {query.where}" if query.where else "") + (f" ORDER BY {query.order}" if query.order else "")
    return [row[0] for row in world.db.execute(sql, query.params_joins + query.params_where + query.params_order)]


# ------------------------------------------------------------------ parsing


def test_and_binds_tighter_than_or():
    assert filters.parse_filter("a=1||b=2&&c=3")[0] == "or"
    assert filters.parse_filter("(a=1||b=2)&&c=3")[0] == "and"


@pytest.mark.parametrize(
    "text, same",
    [
        ("a = 1 // note", "a=1"),
        ("(a=1)(b=2)", "a=1&&b=2"),
        ("a=1||b=2(c=3)", "a=1||b=2||c=3"),
        ("((a=1))", "a=1"),
        ("a\n=\t1", "a=1"),
        ('a="x\\"y"', "a='x\"y'"),
        ("a='\\q'", "a='\\\\q'"),
        ("(a='(')", "a='('"),
    ],
)
def test_texts_that_mean_the_same(text, same):
    assert filters.parse_filter(text) == filters.parse_filter(same)


def test_a_thousand_brackets_are_fine():
    assert filters.parse_filter("(" * 1000 + "a=1" + ")" * 1000) == filters.parse_filter("a=1")


def test_trees_are_cached_by_text():
    assert filters.parse_filter("a ~ 'b'") is filters.parse_filter("a ~ 'b'")


ERRORS = {
    "()": "empty filter expression",
    "// only": "empty filter expression",
    "title": "invalid or incomplete filter expression",
    "title=1 &&": "invalid or incomplete filter expression",
    "((title=1)": "invalid formatted group - missing 1 closing bracket(s)",
    "title=1)": "unexpected character ')'",
    "title='x": 'invalid quoted text "\'x"',
    "title==1": 'invalid sign operator "=="',
    "title=1 & num=2": 'invalid join operator "&"',
    "title='x'y": 'expected && or ||, got "y" (identifier)',
    "title=1 || || num=2": 'expected left operand (identifier, function, text or number), got "||" (join)',
    "title= &&": 'expected right operand (identifier, function text or number), got "&&" (join)',
    "title num": 'expected a sign operator, got "num" (identifier)',
    "title.=1": 'invalid identifier "title."',
    "title/**/=1": "invalid comment",
    "num+=1": "unexpected character '+'",
    "num=1.": 'invalid number "1."',
    "title={:x}": "unexpected character '{'",
    "x=1": 'invalid left operand "x" - unknown field "x"',
    "1=x": 'invalid right operand "x" - unknown field "x"',
    "x.y=1": 'invalid left operand "x.y" - failed to resolve field "x"',
    "title.y=1": 'invalid left operand "title.y" - field "title" is not a valid relation',
    "@x=1": 'invalid left operand "@x" - failed to resolve field "@x"',
    "@request.auth=1": 'invalid left operand "@request.auth" - failed to resolve field "@request.auth"',
    "title:foo=1": 'invalid left operand "title:foo" - unknown modifier in "title:foo"',
    "f(1)=1": 'invalid left operand "f" - unknown function "f"',
    "f(1=1": 'expected comma after the last argument in function "f"',
    "f(,)=1": 'unexpected comma in function "f"',
    "geoDistance(1,2)=1": 'invalid left operand "geoDistance" - [geoDistance] expected 4 arguments, got 2',
    "strftime(num)=1": 'invalid left operand "strftime" - [strftime] expects the first argument to be a format string',
    "@request.body.title:length>0": 'invalid left operand "@request.body.title:length" - field "title" doesn\'t support multivalue operations',
    "@request.body.x:changed=true": 'invalid left operand "@request.body.x:changed" - invalid modifier sequence x:changed',
    "@collection.no.id=1": 'invalid left operand "@collection.no.id" - failed to load collection "no" from field path "@collection.no.id"',
    "notes_via_item=1": 'invalid left operand "notes_via_item" - unknown field "notes_via_item"',
    "notes_via_no.v=1": 'invalid left operand "notes_via_no.v" - missing back relation field "no"',
    " || ".join(["num=1"] * 201): "max filter expressions limit reached",
}


@pytest.mark.parametrize("text", ERRORS)
def test_rule_errors_are_told_in_the_known_words(world, text):
    with pytest.raises(FilterError) as error:
        filters.check_rule(world.schema, world.items, text)
    assert str(error.value) == ERRORS[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@request.body.any:isset = true",
        "@request.auth.nope = 1",
        "@request.auth.tags:each ?= 'x'",
        "geoDistance(1,2,3,4,) < 5",
        "secret != ''",
        "@collection.ITEMS:x.title = 'a'",
        " || ".join(["num=1"] * 200),
    ],
)
def test_rules_that_are_accepted(world, text):
    filters.check_rule(world.schema, world.items, text)


def test_rules_are_checked_against_the_fields_to_be_saved(world):
    changed = Collection("i", "items", [Field("fresh"), Field("self", "relation", collection_id="i")])
    filters.check_rule(world.schema, changed, "self.fresh = 'x' && @collection.items.fresh = 'y'")
    with pytest.raises(FilterError):
        filters.check_rule(world.schema, changed, "title = 'x'")


# ------------------------------------------------------------------ operators and empty values

NONE, A, AB, ABC = "none", "ia", "iab", "iabc"
PLAIN = {
    "title='Alpha'": [A],
    "title!='Alpha'": [NONE, AB, ABC],
    "title=''": [NONE],
    "title=null": [NONE],
    "title!=''": [A, AB, ABC],
    "null=null": [NONE, A, AB, ABC],
    "num='10'": [ABC],
    "num=10": [ABC],
    "title=10": [],
    "title='10'": [ABC],
    "num>1": [AB, ABC],
    "num<=1": [NONE, A],
    "num>null": [],
    "num=-1": [],
    "ok=true": [A, ABC],
    "ok=FALSE": [NONE, AB],
    "ok='true'": [],
    "title~'alpha'": [A],
    "title~'a%'": [A],
    "title~'a_b'": [AB],
    "title~'50\\%'": [AB],
    "title!~'a'": [NONE, ABC],
    "title~''": [NONE, A, AB, ABC],
    "title~title": [NONE, A, AB, ABC],
    "title=one": [NONE],
    "num=1 || num=10 && ok=false": [A],
    "title:lower='alpha'": [A],
    "title:length='Alpha'": [A],
    "meta.k=1": [A],
    "meta.k=null": [NONE, AB, ABC],
    "meta='text'": [AB],
    "meta.l.0.m='x'": [A],
    "place.lon>20": [A],
    "place~'52.5'": [AB],
    "geoDistance(place.lon,place.lat,23.32,42.69)<5": [A],
    "strftime('%Y',at)='2025'": [AB, ABC],
    "strftime('%Y',at)=''": [NONE],
    "at<@now": [NONE, A, AB, ABC],
    "at>='2025-06-02'": [ABC],
    "@year>2020 && num=1": [A],
    "tags:length=2": [AB],
    "many='[]'": [NONE],
}


@pytest.mark.parametrize("text", PLAIN)
def test_operators(world, text):
    assert ids(world, text) == PLAIN[text]


MATCH_ALL = {
    "many.v='a'": [A],
    "many.v?='a'": [A, AB, ABC],
    "many.v!='a'": [NONE],
    "many.v?!='a'": [NONE, AB, ABC],
    "many.v~'a'": [A],
    "many.v!~'a'": [],
    "many.v?!~'a'": [AB, ABC],
    "many.v=''": [NONE],
    "many.v!=''": [A, AB, ABC],
    "many.v?='a' && many.v?='b'": [],
    "many.v?='a' || many.v?='c'": [A, AB, ABC],
    "many.v=one.v": [NONE, A],
    "many:length>0": [A, AB, ABC],
    "many.n<6": [A, AB],
    "many.n?>6": [ABC],
    "many:each?='b'": [AB, ABC],
    "tags:each!='red'": [NONE, ABC],
    "tags:each='red'": [A],
    "one.v='a'": [A],
    "one.id='b'": [AB],
    "many.id?='b'": [AB, ABC],
    "many.v=many.id": [NONE, A],
    "many.v?=many.id": [NONE, A, AB, ABC],
    "notes_via_item.v='x'": [AB],
    "notes_via_item.v?='x'": [A, AB],
    "notes_via_item.v!='x'": [ABC, NONE],
    "notes_via_item.v?!='x'": [A, ABC, NONE],
    "notes_via_item.id=''": [ABC, NONE],
    "notes_via_items.v='x'": [A, AB, ABC],
    "pins_via_item.v='x'": [AB],
    "one.owner.role='admin'": [A],
    "many.owner.role?='admin'": [A, AB, ABC],
    "one.items_via_many.title?='10'": [A, AB, ABC],
    "one.items_via_many.title?!='10' && num=1": [A],
    "@collection.groups.v?='a' && num=1": [A],
    "@collection.groups.v='a'": [],
    "@collection.groups:x.v?=one && @collection.groups:y.n?=9": [A, AB, ABC],
    "@collection.groups.v?=one && @collection.groups.n?=9": [ABC],
    "strftime('%Y',many.v)=''": [NONE, A, AB, ABC],
    "notes_via_item.item.title?='Alpha'": [A],
}


@pytest.mark.parametrize("text", MATCH_ALL)
def test_paths_with_many_values(world, text):
    assert sorted(ids(world, text)) == sorted(MATCH_ALL[text])
    assert sorted(ids(world, text, one=True)) == sorted(MATCH_ALL[text])


def test_rows_come_once_and_in_a_stable_order(world):
    assert ids(world, "many.v?!='zz'") == sorted([NONE, A, AB, ABC])
    assert ids(world, "num>=0") == [NONE, A, AB, ABC]


def test_six_relations_are_the_limit(world):
    assert ids(world, "one.items_via_one.one.items_via_one.one.items_via_one.num=1") == [A]
    with pytest.raises(FilterError, match="max nested relations"):
        ids(world, "one.items_via_one.one.items_via_one.one.items_via_one.one.v='a'")


def test_no_query_reads_a_table_once_a_record(world):
    """A back relation without an index would cost records times rows; it is read once, whatever the operator."""
    for text in ("notes_via_item.v?='x'", "notes_via_item.v!='x'", "notes_via_item.v?!='x'", "notes_via_item.id=''"):
        query = filters.plan_query(world.schema, world.items, SUPERUSER, filter=text)
        plan = " ".join(
            row[3] for row in world.db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM items {query.joins} WHERE {query.where}", query.params_where)
        )
        assert "LIST SUBQUERY" in plan and "CORRELATED" not in plan, text


# ------------------------------------------------------------------ @request


def passes(world, rule, id=A, **request):
    return id in ids(world, rule=rule, info=RequestInfo(**request))


@pytest.mark.parametrize(
    "rule, body, expected",
    [
        ("@request.body.title = 'x'", {"title": "x"}, True),
        ("@request.body.title = 'x'", {}, False),
        ("@request.body.title = ''", {}, True),
        ("@request.body.title:isset = true", {"title": None}, True),
        ("@request.body.title:isset = true", {}, False),
        ("@request.body.title:changed = true", {"title": "x"}, True),
        ("@request.body.title:changed = true", {"title": "Alpha"}, False),
        ("@request.body.title:changed = true", {}, False),
        ("@request.body.num > num", {"num": 2}, True),
        ("@request.body.extra.num = num", {"extra": {"num": "1"}}, True),
        ("@request.body.extra.0 = 'p'", {"extra": ["p"]}, True),
        ("@request.body.tags:length = 2", {"tags": ["a", "b"]}, True),
        ("@request.body.tags:each ~ 'pb_'", {"tags": ["pb_a", "x"]}, False),
        ("@request.body.tags:each ?= 'x'", {"tags": ["pb_a", "x"]}, True),
        ("@request.body.tags = '[\"a\"]'", {"tags": ["a"]}, True),
        ("@request.body.title:lower = 'abc'", {"title": "ABC"}, True),
        ("@request.body.meta.a = 1", {"meta": {"a": 1}}, True),
        ("@request.body.meta = '{\"a\":1}'", {"meta": {"a": 1.0}}, True),
        ("@request.body.many.v = 'a'", {"many": ["a", "b"]}, False),
        ("@request.body.many.v ?= 'a'", {"many": ["a", "b"]}, True),
        ("@request.body.one.v = 'a'", {"one": "a"}, True),
        ("@request.body.one.v = 'a'", {}, False),
        ("title ~ @request.body.title", {"title": "lph"}, True),
        ("'' != @request.body.title:isset", {}, False),
    ],
)
def test_body(world, rule, body, expected):
    assert passes(world, rule, body=body) is expected


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("@request.auth.id = 'u1'", True),
        ("@request.auth.role = 'admin'", True),
        ("@request.auth.verified = true", True),
        ("@request.auth.collectionName = 'members'", True),
        ("@request.auth.groups_via_owner.v ?= 'a'", True),
        ("@request.auth.tags:each ?= 'y'", True),
        ("@request.auth.tags:length = 2", True),
        ("@request.auth.nope = ''", True),
        ("@request.auth.nope.deep != ''", False),
        ("one.owner = @request.auth.id", True),
        ("@request.auth.email ~ 'one'", True),
    ],
)
def test_auth(world, rule, expected):
    record = Record(world.members, "u1", email="one@x.io", emailVisibility=True, verified=True)
    assert passes(world, rule, auth=record) is expected
    assert passes(world, rule.replace("!= ''", "= 'x'").replace("nope = ''", "nope = 'x'")) is False


def test_query_headers_method_and_context(world):
    assert passes(
        world,
        "@request.query.num = num && @request.headers.x_key = 'k' && @request.method = 'PATCH' && @request.context = 'expand'",
        query={"num": "1"},
        headers={"x_key": "k"},
        method="PATCH",
        context="expand",
    )
    assert not passes(world, "@request.query.a:isset = true")


def test_create_rule_reads_the_given_source(world):
    info = RequestInfo(method="POST", body={"title": "new"})
    query = filters.plan_query(world.schema, world.items, info, rule="title = @request.body.title && one.v = 'a'", source="`fresh`", one=True)
    sql = f"WITH fresh AS (SELECT 'x' AS id, 'new' AS title, 'a' AS one) SELECT 1 FROM fresh {query.joins} WHERE {query.where}"
    assert world.db.execute(sql, query.params_joins + query.params_where).fetchone() == (1,)
    with pytest.raises(FilterError):
        filters.plan_query(world.schema, world.items, info, rule="notes_via_item.v = ''", source="`fresh`")


# ------------------------------------------------------------------ what clients may ask


@pytest.mark.parametrize("text", ["secret='s'", "notes_via_item.item.secret='s'", "num=1 || secret!=''"])
def test_hidden_fields_are_for_superusers(world, text):
    assert isinstance(ids(world, text), list)
    with pytest.raises(FilterError):
        ids(world, text, info=GUEST)
    with pytest.raises(FilterError):
        ids(world, info=GUEST, sort="secret")
    assert ids(world, rule="secret='s'", info=GUEST) == [NONE]


def test_hidden_emails_cannot_be_guessed(world):
    assert ids(world, "email~'@x.io'", info=GUEST, collection=world.members) == ["u1"]
    assert ids(world, "email~'@x.io'", collection=world.members) == ["u1", "u2"]
    assert ids(world, "owner.email!='zz'", info=GUEST, collection=world.groups) == ["a"]


def test_joined_collections_must_be_listable(world):
    world.groups.list_rule = "n > 3"
    assert ids(world, "one.v!='zz'", info=GUEST) == sorted([NONE, AB, ABC])
    assert ids(world, "many.v?='a'", info=GUEST) == []
    assert ids(world, "one.id='a'", info=GUEST) == [A]
    assert ids(world, "one.v='a'") == [A]
    assert ids(world, info=GUEST, sort="one.v") == [NONE, AB, ABC]
    world.groups.list_rule, world.schema.version = None, 2
    for options in ({"filter": "many.v='a'"}, {"sort": "one.v"}):
        with pytest.raises(FilterError):
            ids(world, info=GUEST, **options)
    assert ids(world, rule="one.v='a'", info=GUEST) == [A]


def test_list_rules_of_joined_collections_may_join_back(world):
    world.groups.list_rule = "items_via_one.num > 1"
    assert ids(world, "one.v!='zz'", info=GUEST) == sorted([NONE, AB, ABC])


@pytest.mark.parametrize(
    "filter, sort, word", [("'@request.x'='a'", "", "@request"), ("@collection.a.b=1", "", "@collection"), ("", "@request.auth.id", "@request")]
)
def test_client_texts_with_superuser_words(filter, sort, word):
    with pytest.raises(ApiError) as error:
        filters.check_client_text(filter, sort)
    assert (error.value.status, error.value.message) == (403, f"Only superusers can filter by {word}.")


def test_client_filters_have_a_length(world):
    long = "title='" + "y" * 3600 + "'"
    assert ids(world, rule=long, info=GUEST) == []
    with pytest.raises(FilterError):
        ids(world, long, info=GUEST)


# ------------------------------------------------------------------ sort


@pytest.mark.parametrize(
    "sort, expected",
    [
        ("-num", [ABC, AB, A, NONE]),
        ("+ok,-num", [AB, NONE, ABC, A]),
        ("-@rowid", [ABC, AB, A, NONE]),
        ("-one.v", [ABC, AB, A, NONE]),
        (" -tags:length , num ", [AB, A, ABC, NONE]),
        ("title:lower", [NONE, ABC, AB, A]),
        ("meta.k,num", [NONE, AB, ABC, A]),
        ("many.n,-num", [NONE, ABC, AB, A]),
        ("-notes_via_item.v,num", [A, AB, NONE, ABC]),
    ],
)
def test_sort(world, sort, expected):
    assert ids(world, sort=sort) == expected


def test_random_sort_keeps_all(world):
    assert sorted(ids(world, sort="@random,num")) == sorted([NONE, A, AB, ABC])


@pytest.mark.parametrize(
    "sort",
    [
        "-",
        "num,,ok",
        "nope",
        "null",
        "true",
        "'x'",
        "@now",
        "@request.method",
        "@request.auth.id",
        "num desc",
        "- num",
        "x" * 256,
        ",".join(["num"] * 9),
        "collectionId",
        "notes_via_item",
    ],
)
def test_what_cannot_be_sorted_by(world, sort):
    with pytest.raises(FilterError):
        ids(world, sort=sort)


def test_views_have_no_rowid(world):
    view = Collection("w", "w", [Field("title")], "view")
    with pytest.raises(FilterError):
        ids(world, sort="@rowid", collection=view)


# ------------------------------------------------------------------ plans


def test_values_never_enter_the_sql(world):
    nasty = "x') OR 1=1 --"
    info = RequestInfo(query={"a": nasty}, superuser=True)
    query = filters.plan_query(world.schema, world.items, info, rule=f'title = @request.query.a || title ~ "{nasty}"')
    assert nasty not in query.where and query.params_where == [nasty, f"%{nasty}%"]
    assert ids(world, f'title="{nasty}"') == []


def test_one_plan_serves_all_values_of_a_kind(world):
    def plan(**query):
        return filters.plan_query(world.schema, world.items, RequestInfo(query=query), rule="title = @request.query.a")

    assert plan(a="x").plan is plan(a="y").plan
    assert plan(a="y").params_where == ["y"]
    assert len({plan(a="x").plan, plan(a="").plan, plan().plan}) == 3
    before = plan(a="x").plan
    world.schema.version += 1
    assert plan(a="x").plan is not before


def test_plans_know_the_tables_they_read(world):
    query = filters.plan_query(world.schema, world.items, SUPERUSER, filter="many.owner.role?='admin' || @collection.pins.v='x'")
    assert query.tables == {"items", "groups", "members", "pins"}


def test_rule_and_filter_share_joined_rows(world):
    assert ids(world, "many.n?=5", rule="many.v?='a'") == []
    assert ids(world, "many.n?=5", rule="many.v?='b'") == [AB, ABC]


def test_plain_tables():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE logs (id, level, data)")
    db.executemany("INSERT INTO logs VALUES (?, ?, ?)", [("a", 0, json.dumps({"status": 200})), ("b", 8, json.dumps({"status": 404}))])
    columns = {"id": "`id`", "level": "`level`", "data": "`data`"}

    def found(filter, sort="@rowid"):
        query = filters.plan_simple(columns, filter, sort, json_columns=("data",))
        return [r[0] for r in db.execute(f"SELECT id FROM logs WHERE {query.where} ORDER BY {query.order}", query.params_where)]

    assert found("data.status=404") == ["b"]
    assert found("level>=0", "-data.status") == ["b", "a"]
    for text in ("nope=1", "id:lower='a'", "@request.auth.id='x'"):
        with pytest.raises(FilterError):
            found(text)
    db.close()
