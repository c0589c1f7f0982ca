"""Records over HTTP: create, read, update, delete, lists with paging and sorting, the fields picker, errors and their order."""
import re

import pytest

from helpers_answers import BAD_REQUEST
from helpers_answers import NOT_FOUND
from helpers_answers import ONLY_SUPERUSERS
from helpers_answers import envelope
from helpers_answers import items
from helpers_answers import records
from helpers_answers import refusal

DATE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z$")
POSTS = records("posts")    # read only
DRAFTS = records("drafts")    # where tests write


@pytest.fixture(scope="module")
def api(server):
    """The server with posts p1..p5 (numbers 5, 4, 3, 2, 1; p3..p5 share a group) and some collections behind rules."""
    fields = [
        {"name": "title", "type": "text", "max": 200}, "n:number", "group", "body:editor", "data:json", "place:geoPoint",
        {"name": "created", "type": "autodate", "onCreate": True},
        {"name": "updated", "type": "autodate", "onCreate": True, "onUpdate": True},
    ]
    server.make("posts", fields)
    server.make("drafts", fields)
    for i in range(1, 6):
        server.add("posts", {
            "id": f"post0000000000{i}", "title": f"p{i}", "n": 6 - i, "group": "a" if i < 3 else "b", "body": "<p>Hello <b>w</b>orld</p><div>x</div>",
            "data": {"b": i, "a": [1, {"z": 1, "y": 2}]}, "place": {"lon": i, "lat": -i},
        })
    server.make("locked", ["title"], listRule=None, viewRule=None, createRule=None, updateRule=None, deleteRule=None)
    server.add("locked", {"id": "locked000000001", "title": "x"})
    server.make("filtered", ["title"], **{f"{kind}Rule": "title = 'open'" for kind in ("list", "view", "create", "update", "delete")})
    server.add("filtered", {"id": "filtered0000001", "title": "open"})
    server.add("filtered", {"id": "filtered0000002", "title": "shut"})
    server.make("strict", [{"name": "title", "type": "text", "required": True}])
    server.make("seen", type="view", viewQuery="select id, title from posts")
    return server


# ---- create, view, update, delete

def test_create_answers_with_the_stored_record(api):
    created = api.post(DRAFTS, {"title": "Ünï <b>&</b>", "n": 1.5})
    assert created.status == 200
    assert created.headers["Content-Type"] == "application/json"
    record = created.json
    assert re.fullmatch("[a-z0-9]{15}", record["id"])
    assert DATE.match(record["created"]) and record["created"] == record["updated"]
    assert (record["title"], record["n"], record["body"], record["data"]) == ("Ünï <b>&</b>", 1.5, "", None)
    assert record["collectionName"] == "drafts"
    assert record["collectionId"] == api.get("/api/collections/drafts", token=api.su).json["id"]
    assert api.get(records("drafts", record["id"])).json == record


def test_record_json_is_compact_with_sorted_keys_and_raw_characters(api):
    created = api.post(DRAFTS, {"title": "é<&>\u2028", "data": {"b": 1.0, "a": 1e21}, "place": {"lat": 1, "lon": 2}})
    assert list(created.json) == sorted(created.json)
    assert created.body == created.body.strip()
    assert '"title":"é<&>\u2028"' in created.text
    assert '"data":{"a":1e+21,"b":1}' in created.text
    assert '"place":{"lon":2,"lat":1}' in created.text


@pytest.mark.parametrize("value, text", [
    (5, "5"), (5.0, "5"), (0.1, "0.1"), (-2.5, "-2.5"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (0.000001, "0.000001"), (1e-7, "1e-7"),
    (9007199254740993, "9007199254740992"), (123456789.125, "123456789.125"),
])
def test_numbers_are_written_in_the_shortest_way(api, value, text):
    created = api.post(DRAFTS, {"n": value, "data": {"x": value}})
    assert f'"n":{text},' in created.text and '"data":{"x":%s}' % text in created.text


def test_update_changes_only_what_was_sent(api):
    id = api.add("drafts", {"title": "before", "n": 7})["id"]
    assert api.post("/api/sql", {"query": f"update drafts set updated = '2020-01-02 03:04:05.678Z' where id = '{id}'"}, token=api.su).status == 200
    before = api.get(records("drafts", id)).json
    changed = api.patch(records("drafts", id), {"n": 8})
    assert changed.status == 200
    assert {**changed.json, "updated": ""} == {**before, "n": 8, "updated": ""}
    assert before["updated"] == "2020-01-02 03:04:05.678Z" < changed.json["created"] <= changed.json["updated"]
    assert api.get(records("drafts", id)).json == changed.json


def test_delete_answers_204_without_body(api):
    id = api.add("drafts", {"title": "gone"})["id"]
    deleted = api.delete(records("drafts", id))
    assert (deleted.status, deleted.body, deleted.headers["Content-Type"]) == (204, b"", None)
    again = api.delete(records("drafts", id))
    assert again.status == 404 and again.json == envelope(404, NOT_FOUND)
    assert api.get(records("drafts", id)).status == 404


def test_collection_is_found_by_name_in_any_case_and_by_id(api):
    id = api.get("/api/collections/posts", token=api.su).json["id"]
    assert api.get(records("POSTS")).json == api.get(records(id)).json == api.get(POSTS).json


def test_unknown_keys_and_collection_keys_in_the_body_are_ignored(api):
    created = api.post(DRAFTS, {"title": "x", "nope": 1, "collectionId": "a", "collectionName": "b", "expand": {}, "TITLE": "y", "created": "2001-01-01 00:00:00.000Z"})
    assert created.status == 200
    assert (created.json["title"], created.json["collectionName"]) == ("x", "drafts")
    assert "nope" not in created.json and not created.json["created"].startswith("2001")


@pytest.mark.parametrize("body", [{}, {"id": ""}, {"id": None}])
def test_id_is_generated_when_blank(api, body):
    created = api.post(DRAFTS, body)
    assert created.status == 200 and re.fullmatch("[a-z0-9]{15}", created.json["id"])


@pytest.mark.parametrize("id, code", [
    ("post00000000001", "validation_not_unique"), ("short", "validation_min_text_constraint"), ("post000000000012", "validation_max_text_constraint"),
    ("UPPER0000000001", "validation_invalid_format"), ("../000000000001", "validation_invalid_format"),
])
def test_bad_id_is_refused(api, id, code):
    assert refusal(api.post(POSTS, {"id": id})) == (400, {"id": code})


@pytest.mark.parametrize("id", ["post0000000000z", ""])
def test_id_never_changes(api, id):
    assert refusal(api.patch(records("posts", "post00000000001"), {"id": id})) == (400, {"id": "validation_pk_change"})


# ---- lists

def test_list_envelope_has_its_keys_in_order(api):
    listed = api.get(POSTS)
    assert listed.status == 200
    assert list(listed.json) == ["items", "page", "perPage", "totalItems", "totalPages"]
    assert (listed.json["page"], listed.json["perPage"], listed.json["totalItems"], listed.json["totalPages"]) == (1, 30, 5, 1)
    assert items(listed, "title") == ["p1", "p2", "p3", "p4", "p5"]


@pytest.mark.parametrize("params, titles, totals", [
    ({"perPage": 2}, ["p1", "p2"], (1, 2, 5, 3)),
    ({"perPage": 2, "page": 3}, ["p5"], (3, 2, 5, 3)),
    ({"perPage": 2, "page": 9}, [], (9, 2, 5, 3)),
    ({"page": 0}, ["p1", "p2", "p3", "p4", "p5"], (1, 30, 5, 1)),
    ({"page": -1, "perPage": -1}, ["p1", "p2", "p3", "p4", "p5"], (1, 30, 5, 1)),
    ({"perPage": 5000}, ["p1", "p2", "p3", "p4", "p5"], (1, 1000, 5, 1)),
    ({"page": "", "perPage": ""}, ["p1", "p2", "p3", "p4", "p5"], (1, 30, 5, 1)),
    ({"perPage": 1, "skipTotal": "1"}, ["p1"], (1, 1, -1, -1)),
    ({"perPage": 1, "skipTotal": "t"}, ["p1"], (1, 1, -1, -1)),
    ({"perPage": 1, "skipTotal": "false"}, ["p1"], (1, 1, 5, 5)),
    ({"filter": "n > 100"}, [], (1, 30, 0, 0)),
    ({"filter": "n > 3", "perPage": 1}, ["p1"], (1, 1, 2, 2)),
])
def test_paging(api, params, titles, totals):
    listed = api.get(POSTS, params=params)
    assert items(listed, "title") == titles
    assert tuple(listed.json[key] for key in ("page", "perPage", "totalItems", "totalPages")) == totals


@pytest.mark.parametrize("params", [
    "page=a", "page=1.5", "page=99999999999999999999", "perPage=x", "skipTotal=yes", "skipTotal=2", "sort=nope", "sort=-", "sort=title,,n",
    "sort=collectionId",
    "sort=@now", "sort='a'", "sort=" + ",".join(["n"] * 9), "sort=" + "n" * 256, "filter=nope=1", "filter=%20", "fields=title:nope()",
    "fields=title:excerpt()",
    "fields=title:excerpt(0)", "fields=title:excerpt(a)", "fields=title:excerpt(1,true,2)", "fields=title:excerpt(1",
])
def test_bad_list_parameters_are_refused(api, params):
    refused = api.get(f"{POSTS}?{params}")
    assert refused.status == 400 and refused.json == envelope(400, BAD_REQUEST)


@pytest.mark.parametrize("sort, titles", [
    ("n", ["p5", "p4", "p3", "p2", "p1"]), ("-n", ["p1", "p2", "p3", "p4", "p5"]), ("+n", ["p5", "p4", "p3", "p2", "p1"]),
    ("-group,n", ["p5", "p4", "p3", "p2", "p1"]), ("group, -title", ["p2", "p1", "p5", "p4", "p3"]), ("-@rowid", ["p5", "p4", "p3", "p2", "p1"]),
    ("-data.b", ["p5", "p4", "p3", "p2", "p1"]), ("-title:lower", ["p5", "p4", "p3", "p2", "p1"]), ("place.lat", ["p5", "p4", "p3", "p2", "p1"]),
])
def test_sort(api, sort, titles):
    assert items(api.get(POSTS, params={"sort": sort}), "title") == titles


def test_random_sort_returns_every_record_once(api):
    orders = {tuple(items(api.get(POSTS, params={"sort": "@random"}), "title")) for _ in range(30)}
    assert len(orders) > 1 and {tuple(sorted(order)) for order in orders} == {("p1", "p2", "p3", "p4", "p5")}


def test_first_of_repeated_parameters_wins_and_broken_ones_are_dropped(api):
    assert items(api.get(POSTS + "?perPage=1&perPage=2"), "title") == ["p1"]
    assert len(items(api.get(POSTS + "?perPage=%zz"))) == 5


def test_views_are_listed_and_viewed_but_not_written(api):
    listed = api.get(records("seen"), params={"sort": "-title", "perPage": 1})
    assert items(listed, "title") == ["p5"] and listed.json["totalItems"] == 5
    assert api.get(records("seen", "post00000000002")).json["title"] == "p2"
    assert api.get(records("seen"), params={"sort": "@rowid"}).status == 400
    for method, path in (("POST", records("seen")), ("PATCH", records("seen", "post00000000001")), ("DELETE", records("seen", "post00000000001"))):
        refused = api.request(method, path, {}, token=api.su)
        assert (refused.status, refused.json["message"]) == (400, "Unsupported collection type.")


# ---- the fields picker

@pytest.mark.parametrize("fields, expected", [
    ("title", {"title": "p1"}),
    (" title , n", {"title": "p1", "n": 5}),
    ("title,nope", {"title": "p1"}),
    ("nope", {}),
    ("data.b", {"data": {"b": 1}}),
    ("place.lat", {"place": {"lat": -1}}),
    ("title.x", {"title": "p1"}),
    ("body:excerpt(7)", {"body": "Hello w"}),
    ("body:excerpt(8,true)", {"body": "Hello wo..."}),
    ("body:excerpt(13)", {"body": "Hello world x"}),
    ("body:excerpt(100,true)", {"body": "Hello world x"}),
    ("n:excerpt(1)", {"n": 5}),
    ("title,title:excerpt(1)", {"title": "p"}),
])
def test_fields_pick_parts_of_the_answer(api, fields, expected):
    viewed = api.get(records("posts", "post00000000001"), params={"fields": fields})
    assert (viewed.status, viewed.json) == (200, expected)


def test_fields_with_a_star_keep_everything_but_narrow_what_is_named(api):
    whole = api.get(records("posts", "post00000000001")).json
    starred = api.get(records("posts", "post00000000001"), params={"fields": "*,body:excerpt(5)"}).json
    assert starred == {**whole, "body": "Hello"}


def test_fields_of_a_list_apply_to_its_items(api):
    listed = api.get(POSTS, params={"fields": "title", "perPage": 2})
    assert listed.json == {"items": [{"title": "p1"}, {"title": "p2"}], "page": 1, "perPage": 2, "totalItems": 5, "totalPages": 3}


def test_fields_work_on_writes_and_not_on_errors(api):
    created = api.post(DRAFTS + "?fields=title", {"title": "picked"})
    assert created.json == {"title": "picked"}
    assert api.post(records("strict") + "?fields=title", {}).json["message"] == "Failed to create record."


@pytest.mark.parametrize("html, size, expected", [
    ("ab cd", "3,true", "ab..."), ("<p>a</p><p>b</p>", "9", "a b"), ("a<script>evil()</script>b", "9", "ab"), ("&lt;x&gt; &amp; y", "20", "<x> & y"),
    ("  many\n\n  blanks\t here ", "50", "many blanks here"), ("<b>b</b>old", "9", "bold"), ("<style>s</style><i>i</i>", "9", "i"),
    ("üöä", "2", "üö"),
])
def test_excerpt_is_the_plain_text_of_html(api, html, size, expected):
    created = api.add("drafts", {"body": html})
    assert api.get(records("drafts", created["id"]), params={"fields": f"body:excerpt({size})"}).json == {"body": expected}


# ---- errors, and which of them comes first

@pytest.mark.parametrize("method, path, message", [
    ("GET", records("nope"), "Missing collection context."),
    ("GET", records("nope", "x"), "Missing collection context."),
    ("POST", records("nope"), "Missing or invalid collection context."),
    ("PATCH", records("nope", "x"), "Missing or invalid collection context."),
    ("DELETE", records("nope", "x"), "Missing collection context."),
    ("GET", records("posts", "missing"), NOT_FOUND),
    ("PATCH", records("posts", "missing"), NOT_FOUND),
    ("DELETE", records("posts", "missing"), NOT_FOUND),
    ("PUT", records("posts"), NOT_FOUND),
    ("DELETE", records("posts"), NOT_FOUND),
    ("POST", records("posts", "post00000000001"), NOT_FOUND),
    ("GET", records("posts") + "/", "File not found."),
    ("GET", records("posts", "post00000000001") + "/x", "File not found."),
])
def test_what_does_not_exist_is_404(api, method, path, message):
    answer = api.request(method, path, {} if method in ("POST", "PATCH", "PUT") else None)
    assert answer.status == 404 and answer.json == envelope(404, message)


@pytest.mark.parametrize("method, path", [
    ("GET", records("locked")), ("GET", records("locked", "locked000000001")), ("POST", records("locked")),
    ("PATCH", records("locked", "locked000000001")),
    ("DELETE", records("locked", "locked000000001")), ("PATCH", records("locked", "missing")), ("GET", records("locked") + "?filter=nope=1"),
])
def test_locked_collections_are_for_superusers_only(api, method, path):
    body = {"title": "y"} if method in ("POST", "PATCH") else None
    refused = api.request(method, path, body)
    assert refused.status == 403 and refused.json == envelope(403, ONLY_SUPERUSERS)
    assert api.get(records("locked", "locked000000001"), token=api.su).json["title"] == "x"


def test_superusers_pass_every_rule(api):
    assert api.get(records("locked"), token=api.su).json["totalItems"] == 1
    assert api.patch(records("filtered", "filtered0000002"), {"title": "shut"}, token=api.su).status == 200
    created = api.post(records("locked"), {"title": "new"}, token=api.su)
    assert created.status == 200 and api.delete(records("locked", created.json["id"]), token=api.su).status == 204


@pytest.mark.parametrize("method, path, body, status, message", [
    ("GET", records("filtered", "filtered0000002"), None, 404, NOT_FOUND),
    ("POST", records("filtered"), {"title": "shut"}, 400, "Failed to create record."),
    ("PATCH", records("filtered", "filtered0000002"), {"title": "open"}, 404, NOT_FOUND),
    ("DELETE", records("filtered", "filtered0000002"), None, 404, NOT_FOUND),
])
def test_failing_rule_says_nothing_about_the_record(api, method, path, body, status, message):
    refused = api.request(method, path, body)
    assert refused.status == status and refused.json == envelope(status, message)


def test_failing_list_rule_hides_records(api):
    assert items(api.get(records("filtered"))) == ["filtered0000001"]
    assert len(items(api.get(records("filtered"), token=api.su))) == 2


@pytest.mark.parametrize("collection, body, status", [
    ("nope", "{", 404),                     # an unknown collection comes before a broken body
    ("seen", "{", 400),                     # a view is never written
    ("locked", "{", 400),                   # a broken body comes before the rule
    ("locked", '{"id": "bad"}', 403),       # the rule comes before validation
    ("filtered", '{"id": "bad"}', 400),
])
def test_order_of_checks(api, collection, body, status):
    refused = api.request("POST", records(collection), body=body, headers={"Content-Type": "application/json"})
    assert (refused.status, refused.json["data"]) == (status, {})


def test_failed_validation_saves_nothing(api):
    assert refusal(api.post(records("strict"), {"title": ""})) == (400, {"title": "validation_required"})
    assert api.get(records("strict")).json["totalItems"] == 0


@pytest.mark.parametrize("body, kind, message", [
    ('{"title":', "application/json", BAD_REQUEST),
    ("[]", "application/json", BAD_REQUEST),
    ('"text"', "application/json", BAD_REQUEST),
    ('{"title":"a","title":"b"}', "application/json", BAD_REQUEST),
    (b'{"title":"\xff"}', "application/json", BAD_REQUEST),
    ('{"title":"\\ud800"}', "application/json", BAD_REQUEST),
    ('{"n":1e400}', "application/json", BAD_REQUEST),
    ("{}", "text/plain", "Unsupported Content-Type."),
    ("{}", "APPLICATION/JSON", "Unsupported Content-Type."),
    ("{}", None, "Unsupported Content-Type."),
    ("nonsense", "multipart/form-data; boundary=x", BAD_REQUEST),
    ("nonsense", "multipart/form-data", BAD_REQUEST),
])
def test_unreadable_body_is_refused(api, body, kind, message):
    headers = {"Content-Type": kind} if kind else {}
    refused = api.request("POST", DRAFTS, body=body, headers=headers)
    assert refused.status == 400 and refused.json["status"] == 400 and refused.json["data"] == {}
    assert refused.json["message"] == message


@pytest.mark.parametrize("body, kind, title", [
    ('{"title":"a"} trailing', "application/json", "a"),
    ('{"title":"a"}', "application/json; charset=utf-8", "a"),
    ("null", "application/json", ""),
    ("", "text/plain", ""),
    ("title=a+b&n=5", "application/x-www-form-urlencoded", "a b"),
    ("@jsonPayload=%7B%22title%22%3A%22j%22%7D&title=f", "application/x-www-form-urlencoded", "j"),
])
def test_readable_bodies(api, body, kind, title):
    created = api.request("POST", DRAFTS, body=body, headers={"Content-Type": kind})
    assert created.status == 200 and created.json["title"] == title


@pytest.mark.parametrize("text, stored", [
    ("true", "true"), ("5", "5"), ("-1.5", "-1.5"), ("1.50", "1.50"), ("007", '"007"'), ("x y", '"x y"'), ("", '""'),
    ('{"b": 1, "a": [ ]}', '{"b":1,"a":[]}'),
])
def test_form_values_are_inferred(api, text, stored):
    created = api.post(DRAFTS, form={"data": text, "title": text})
    assert created.status == 200 and f'"data":{stored},' in created.text and created.json["title"] == text


def test_query_parameters_merge_into_form_bodies(api):
    created = api.post(DRAFTS + "?group=q", urlenc={"title": "f"})
    assert (created.json["title"], created.json["group"]) == ("f", "q")


def test_broken_json_body_is_refused_even_on_get(api):
    assert api.request("GET", POSTS, body="{", headers={"Content-Type": "application/json"}).status == 400


def test_all_unique_fields_of_a_violated_index_are_named(api):
    api.make("pairs", ["a", "b", "c"], indexes=["CREATE UNIQUE INDEX idx_pairs ON pairs (a, b)"])
    first = api.add("pairs", {"a": "1", "b": "2"})
    api.add("pairs", {"a": "1", "b": "3"})
    refused = api.post(records("pairs"), {"a": "1", "b": "2", "c": "x"})
    unique = {"code": "validation_not_unique", "message": "Value must be unique."}
    assert refused.json == envelope(400, "Failed to create record.", {"a": unique, "b": unique})
    refused = api.patch(records("pairs", first["id"]), {"b": "3"})
    assert refused.json == envelope(400, "Failed to update record.", {"a": unique, "b": unique})


# ---- HEAD

@pytest.mark.parametrize("path, status",
                         [(POSTS, 200), (records("posts", "post00000000001"), 200), (records("posts", "missing"), 404), (records("locked"), 403)])
def test_head_is_get_without_the_body(api, path, status):
    got, head = api.get(path), api.head(path)
    assert (got.status, head.status, head.body) == (status, status, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


# ---- auth records

@pytest.fixture(scope="module")
def people(api):
    """Ann shows her address, Bob does not; chiefs of the collection (role = chief) may manage it."""
    api.make("people", ["role", {"name": "note", "type": "text", "hidden": True}], type="auth", manageRule="@request.auth.role = 'chief'")
    for name, visible, role in (("ann", True, ""), ("bob", False, ""), ("eve", False, "chief")):
        api.add_user(f"{name}@example.com", "people", emailVisibility=visible, role=role, note=f"about {name}")
    return {name: api.login("people", f"{name}@example.com") for name in ("ann", "bob", "eve")} | {"guest": None, "root": api.su}


@pytest.mark.parametrize("who, seen", [
    ("guest", ["ann@example.com", None, None]), ("ann", ["ann@example.com", None, None]), ("bob", ["ann@example.com", "bob@example.com", None]),
    ("eve", ["ann@example.com", "bob@example.com", "eve@example.com"]), ("root", ["ann@example.com", "bob@example.com", "eve@example.com"]),
])
def test_address_is_shown_to_its_owner_managers_and_superusers(api, people, who, seen):
    listed = api.get(records("people"), token=people[who])
    assert items(listed, "email") == seen
    assert all({"password", "tokenKey"}.isdisjoint(item) for item in listed.json["items"])
    assert all(("note" in item) == (who == "root") for item in listed.json["items"])
    assert all({"emailVisibility", "verified"} <= item.keys() for item in listed.json["items"])


@pytest.mark.parametrize("header", ["{}", "Bearer {}", "bearer {}", "BEARER {}"])
def test_token_is_read_raw_or_as_bearer(api, header):
    assert api.get(records("locked"), headers={"Authorization": header.format(api.su)}).status == 200


@pytest.mark.parametrize("header", ["Token {}", "Bearer  {}", "{}x", "nonsense", "Bearer", ""])
def test_unusable_token_makes_a_guest(api, header):
    headers = {"Authorization": header.format(api.su)}
    assert api.get(records("locked"), headers=headers).status == 403
    assert api.get(POSTS, headers=headers).status == 200
