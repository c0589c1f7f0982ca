"""Field types: what becomes of each input, defaults, every validation error, modifiers, generated values, dates, json, geo points, files."""
import itertools
import os
import re

import pytest

from helpers_answers import NOT_FOUND
from helpers_answers import envelope
from helpers_answers import records

ALL = records("everything")
COUNT = itertools.count()    # for names of collections
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cfc00000030101"
                    "00c9fe92ef0000000049454e44ae426082")


def field(type, name, **options):
    return {"type": type, "name": name, **options}


@pytest.fixture(scope="module")
def api(server):
    target = server.make("targets", ["t"])["id"]
    server.targets = [server.add("targets", {"id": f"target00000000{i}"})["id"] for i in range(4)]
    server.make("everything", [
        "text", "number:number", "bool:bool", "email:email", "url:url", "editor:editor", "date:date", "json:json", "geo:geoPoint",
        "password:password", "file:file",
        field("select", "select", values=["a", "b", "c"]), field("select", "selects", values=["a", "b", "c"], maxSelect=3),
        field("file", "files", maxSelect=3),
        field("relation", "relation", collectionId=target), field("relation", "relations", collectionId=target, maxSelect=4),
        field("autodate", "created", onCreate=True), field("autodate", "updated", onUpdate=True)])
    return server


# ---- values

EMPTY = {"text": "", "number": 0, "bool": False, "email": "", "url": "", "editor": "", "date": "", "json": None, "geo": {"lon": 0, "lat": 0},
         "password": "", "file": "", "select": "",
         "selects": [], "files": [], "relation": "", "relations": []}


def test_empty_values(api):
    created = api.add("everything")
    assert {name: created[name] for name in EMPTY} == EMPTY
    assert created["created"] and created["updated"] == ""


@pytest.mark.parametrize("name", EMPTY)
def test_null_is_the_empty_value(api, name):
    assert api.add("everything", {name: None})[name] == EMPTY[name]


T0, T1 = "target000000000", "target000000001"


@pytest.mark.parametrize("name, sent, stored", [
    ("text", "  kept as is \n", "  kept as is \n"), ("text", 5, "5"), ("text", 1.5, "1.5"), ("text", True, "true"),
    ("text", 1e21, "1000000000000000000000"), ("text", ["a"], ""), ("text", {"a": 1}, ""),
    ("text", "\u0000\u2028é😀", "\u0000\u2028é😀"), ("editor", "<p onclick='x'>&amp;</p>", "<p onclick='x'>&amp;</p>"), ("editor", 5, "5"),
    ("number", 5, 5), ("number", -0.25, -0.25), ("number", "5", 5), ("number", "1.5e3", 1500), ("number", "+5", 5), ("number", ".5", 0.5),
    ("number", "1_000", 1000), ("number", " 5 ", 0), ("number", "0x10", 0), ("number", "1,5", 0),
    ("number", "junk", 0), ("number", True, 1), ("number", [5], 0), ("number", {}, 0), ("number", 9007199254740993, 9007199254740992),
    ("bool", True, True), ("bool", 1, True), ("bool", 0.5, True), ("bool", 0, False), ("bool", "true", True), ("bool", "t", True),
    ("bool", "TRUE", True), ("bool", "1", True), ("bool", "yes", False), ("bool", "false", False), ("bool", [1], False),
    ("email", "a@b.c", "a@b.c"), ("url", "http://a", "http://a"),
    ("select", "a", "a"), ("select", ["a", "b"], "b"), ("select", '["a","c"]', "c"), ("select", [], ""), ("select", {"a": 1}, ""),
    ("selects", "a", ["a"]), ("selects", ["b", "a", "b", ""], ["b", "a"]), ("selects", '["a","c"]', ["a", "c"]), ("selects", "", []),
    ("selects", {"a": 1}, []),
    ("relation", T0, T0), ("relation", [T0, T1], T1), ("relations", T0, [T0]), ("relations", [T1, T0, T1], [T1, T0]),
    ("json", {"b": 1.0, "a": [None, True, "x"]}, {"a": [None, True, "x"], "b": 1}), ("json", "text", "text"), ("json", "", ""),
    ("json", '{"a": 1}', {"a": 1}), ("json", "null", None), ("json", "true", True), ("json", "5", 5), ("json", " 5", " 5"),
    ("json", "{broken", "{broken"), ("json", '"quoted"', "quoted"), ("json", 0, 0), ("json", False, False), ("json", [], []), ("json", "-1.5", -1.5),
    ("json", "007", "007"),
    ("geo", {"lon": 1.5, "lat": -2}, {"lon": 1.5, "lat": -2}), ("geo", '{"lon":1,"lat":2}', {"lon": 1, "lat": 2}),
    ("geo", {"lat": 2}, {"lon": 0, "lat": 2}), ("geo", {"lon": 1, "lat": 2, "x": 3}, {"lon": 1, "lat": 2}),
    ("geo", "junk", {"lon": 0, "lat": 0}), ("geo", [1, 2], {"lon": 0, "lat": 0}), ("geo", {"Lon": 1}, {"lon": 0, "lat": 0}),
    ("password", "secret-password", ""),
])
def test_values_are_normalised(api, name, sent, stored):
    created = api.add("everything", {name: sent})
    assert created[name] == stored
    assert api.get(records("everything", created["id"])).json[name] == stored


@pytest.mark.parametrize("sent, stored", [
    ("2024-01-02 03:04:05.678Z", "2024-01-02 03:04:05.678Z"), ("2024-01-02 03:04:05.6789Z", "2024-01-02 03:04:05.678Z"),
    ("2024-01-02T03:04:05Z", "2024-01-02 03:04:05.000Z"), ("2024-01-02T03:04:05+02:00", "2024-01-02 01:04:05.000Z"),
    ("2024-01-02T03:04:05", "2024-01-02 03:04:05.000Z"), ("2024-01-02 03:04:05", "2024-01-02 03:04:05.000Z"),
    ("2024-01-02", "2024-01-02 00:00:00.000Z"), ("2024-01-02 3:04:05", "2024-01-02 03:04:05.000Z"),
    ("2024-01-02 03:04:05,5", "2024-01-02 03:04:05.500Z"), ("2024-01-02 03:04:05 -0700", "2024-01-02 10:04:05.000Z"),
    ("2024-01-02 03:04:05 -07:00", "2024-01-02 10:04:05.000Z"), ("Tue, 02 Jan 2024 03:04:05 GMT", "2024-01-02 03:04:05.000Z"),
    ("Tue, 02 Jan 2024 03:04:05 -0700", "2024-01-02 10:04:05.000Z"), ("02 Jan 2024", "2024-01-02 00:00:00.000Z"),
    ("02 Jan 24 03:04 UTC", "2024-01-02 03:04:00.000Z"), ("2024-02-29", "2024-02-29 00:00:00.000Z"),
    ("2024-01", ""), ("2024-1-2", ""), ("2024-01-02 03:04", ""), ("01/02/2024", ""), ("2023-02-29", ""), ("2024-13-01", ""),
    ("2024-01-02t03:04:05z", ""), (" 2024-01-02", ""), ("junk", ""), (1704164645, ""), ("1704164645", ""), (True, ""),
    ("0001-01-01 00:00:00.000Z", ""),
])
def test_dates(api, sent, stored):
    created = api.add("everything", {"date": sent})
    assert created["date"] == stored
    assert api.db("select date from everything where id = ?", created["id"]) == [(stored,)]


def test_autodates_are_set_by_the_server(api):
    created = api.add("everything")
    changed = api.patch(records("everything", created["id"]), {"created": "2001-01-01", "updated": "2001-01-01"}).json
    assert changed["created"] == created["created"] and created["updated"] == "" and changed["updated"] >= created["created"]


def test_values_on_disk(api):
    id = api.add("everything",
                 {"number": 10.0, "bool": True, "selects": ["a", "b"], "json": {"b": 1, "a": "<é>"}, "geo": {"lat": 1.5, "lon": 2}, "relations": [T0],
                  "password": "secret-password"})["id"]
    row = api.db("select number, typeof(number), bool, selects, json, geo, relations, password, files from everything where id = ?", id)[0]
    assert row[:7] == (10, "integer", 1, '["a","b"]', '{"a":"<é>","b":1}', '{"lon":2,"lat":1.5}', f'["{T0}"]')
    assert re.fullmatch(r"\$2[aby]\$10\$.{53}", row[7]) and row[8] == "[]"
    assert api.db("select json from everything where id = ?", api.add("everything", {"json": None})["id"]) == [(None,)]


# ---- validation

BLANK = ("validation_required", "Cannot be blank.", None)
RULES = [
    # options, refused value, (code, message, params)
    (field("text", "x", required=True), "", BLANK), (field("number", "x", required=True), 0, BLANK),
    (field("bool", "x", required=True), False, BLANK), (field("email", "x", required=True), "", BLANK), (field("url", "x", required=True), "", BLANK),
    (field("editor", "x", required=True), "", BLANK), (field("date", "x", required=True), "junk", BLANK),
    (field("select", "x", required=True, values=["a"]), "", BLANK), (field("json", "x", required=True), {}, BLANK),
    (field("json", "x", required=True), [], BLANK),
    (field("json", "x", required=True), None, BLANK), (field("json", "x", required=True), "", BLANK), (field("file", "x", required=True), "", BLANK),
    (field("geoPoint", "x", required=True), {"lon": 0, "lat": 0}, BLANK), (field("password", "x", required=True), "", BLANK),
    (field("relation", "x", required=True, collectionId="_pb_users_auth_"), "", BLANK),
    (field("select", "x", required=True, values=["a", "b"], maxSelect=2), [], BLANK),
    (field("text", "x", min=3), "éé", ("validation_min_text_constraint", "Must be at least 3 character(s).", {"min": 3})),
    (field("text", "x", max=3), "éééé", ("validation_max_text_constraint", "Must be no more than 3 character(s).", {"max": 3})),
    (field("text", "x"), "x" * 5001, ("validation_max_text_constraint", "Must be no more than 5000 character(s).", {"max": 5000})),
    (field("text", "x", pattern="^[a-z]+$"), "A", ("validation_invalid_format", "Invalid value format.", None)),
    (field("editor", "x", maxSize=3), "éé", ("validation_content_size_limit", "The maximum allowed content size is 3 bytes.", {"maxSize": 3})),
    (field("number", "x"), "NaN", ("validation_not_a_number", "The submitted number is not properly formatted.", None)),
    (field("number", "x"), "Inf", ("validation_not_a_number", "The submitted number is not properly formatted.", None)),
    (field("number", "x", onlyInt=True), 1.5, ("validation_only_int_constraint", "Decimal numbers are not allowed.", None)),
    (field("number", "x", min=5), 4, ("validation_min_number_constraint", "Must be greater or equal than 5.", {"min": 5})),
    (field("number", "x", max=5), 5.5, ("validation_max_number_constraint", "Must be less or equal than 5.", {"max": 5})),
    *[(field("email", "x"), value, ("validation_is_email", "Must be a valid email address.", None)) for value in ("a", "a@localhost", " a@b.co",
        "a@b.co ", '"x y"@e.com', "a@@b.co", "@b.co")],
    (field("email", "x", onlyDomains=["a.com"]), "x@b.com", ("validation_email_domain_not_allowed", "Email domain is not allowed.", None)),
    (field("email", "x", exceptDomains=["b.com"]), "x@b.com", ("validation_email_domain_not_allowed", "Email domain is not allowed.", None)),
    *[(field("url", "x"), value, ("validation_invalid_url", "Must be a valid url.", None)) for value in ("a.b", "//a.com", "HTTP://A.COM",
        "javascript:alert(1)", "http://a..com", "http://a b.com", "text")],
    (field("url", "x", onlyDomains=["a.com"]), "http://b.com", ("validation_url_domain_not_allowed", "Url domain is not allowed.", None)),
    (field("url", "x", onlyDomains=["a.com"]), "http://a.com:8080", ("validation_url_domain_not_allowed", "Url domain is not allowed.", None)),
    (field("date", "x", min="2020-01-01"), "2019-12-31",
     ("validation_min_greater_equal_than_required", "Must be no less than 2020-01-01 00:00:00 +0000 UTC.", {"threshold": "2020-01-01T00:00:00Z"})),
    (field("date", "x", max="2020-01-01"), "2020-01-02",
     ("validation_max_less_equal_than_required", "Must be no greater than 2020-01-01 00:00:00 +0000 UTC.", {"threshold": "2020-01-01T00:00:00Z"})),
    (field("select", "x", values=["a"]), "z", ("validation_invalid_value", "Invalid value z.", {"value": "z"})),
    (field("select", "x", values=["a", "b"], maxSelect=2), ["a", "z"], ("validation_invalid_value", "Invalid value z.", {"value": "z"})),
    (field("select", "x", values=["a", "b", "c"], maxSelect=2), ["a", "b", "c"],
     ("validation_too_many_values", "Select no more than 2.", {"maxSelect": 2})),
    (field("relation", "x", collectionId="_pb_users_auth_"), "missing",
     ("validation_missing_rel_records", "Failed to find all relation records with the provided ids.", None)),
    (field("relation", "x", collectionId="_pb_users_auth_", maxSelect=2), ["a", "b", "c"],
     ("validation_too_many_values", "Select no more than 2.", {"maxSelect": 2})),
    (field("relation", "x", collectionId="_pb_users_auth_", maxSelect=3, minSelect=2), ["a"],
     ("validation_not_enough_values", "Select at least 2.", {"minSelect": 2})),
    (field("file", "x"), "foreign.txt", ("validation_invalid_file", "Invalid new files: [foreign.txt].", {"invalidFiles": ["foreign.txt"]})),
    (field("json", "x", maxSize=3), "abcd", ("validation_json_size_limit", "The maximum allowed JSON size is 3 bytes.", {"maxSize": 3})),
    (field("json", "x"), '{"a":1,"a":2}', ("validation_invalid_json", "Must be a valid json value.", None)),
    (field("geoPoint", "x"), {"lon": 181, "lat": 91}, ("validation_invalid_latitude", "Latitude must be between -90 and 90 degrees.", None)),
    (field("geoPoint", "x"), {"lon": -181, "lat": 1}, ("validation_invalid_longitude", "Longitude must be between -180 and 180 degrees.", None)),
    (field("password", "x", min=9), "12345678", ("validation_min_text_constraint", "Must be at least 9 character(s).", None)),
    (field("password", "x", max=9), "1234567890", ("validation_max_text_constraint", "Must be less than 9 character(s).", None)),
    (field("password", "x"), "x" * 72, ("validation_max_text_constraint", "Must be less than 71 character(s).", None)),
    (field("password", "x", pattern="^[a-z]+$"), "ABC", ("validation_invalid_format", "Invalid value format.", None)),
]


@pytest.fixture(scope="module")
def validated(api):
    """One collection for all validation rules; field x<i> has the options of RULES[i]. Required ones live in collections of their own."""
    optional = [{**options, "name": f"x{i}"} for i, (options, _, _) in enumerate(RULES) if not options.get("required")]
    required = [{**options, "name": f"x{i}"} for i, (options, _, _) in enumerate(RULES) if options.get("required")]
    api.make("optional", optional)
    api.make("required", required)
    return api


@pytest.mark.parametrize("number", range(len(RULES)), ids=lambda number: f"{RULES[number][0]['type']}-{str(RULES[number][1])[:20]}")
def test_refused_values(validated, number):
    options, value, (code, message, params) = RULES[number]
    refused = validated.post(records("required" if options.get("required") else "optional"), {f"x{number}": value})
    assert refused.status == 400
    assert refused.json["data"][f"x{number}"] == {"code": code, "message": message, **({"params": params} if params else {})}


def test_all_errors_come_together(validated):
    body = {f"x{i}": value for i, (options, value, _) in enumerate(RULES) if not options.get("required")}
    refused = validated.post(records("optional"), body).json
    assert set(refused["data"]) == set(body) and list(refused["data"]) == sorted(body) and refused["message"] == "Failed to create record."


@pytest.mark.parametrize("options, value", [
    (field("text", "x", min=3, pattern="^a"), ""), (field("text", "x", max=3), "ééé"), (field("text", "x", pattern="b"), "abc"),
    (field("number", "x", min=5, onlyInt=True), 0), (field("number", "x", min=5, max=5), 5), (field("email", "x"), "é@b.com"),
    (field("email", "x", onlyDomains=["a.com"]), "x@a.com"), (field("url", "x"), "http://[::1]:80/p?q#f"), (field("url", "x"), "mailto:a@b.c"),
    (field("url", "x", onlyDomains=["a.com"]), "https://a.com/x"), (field("date", "x", min="2020-01-01"), "2020-01-01"),
    (field("relation", "x", collectionId="_pb_users_auth_", maxSelect=3, minSelect=2), []), (field("json", "x", required=True), False),
    (field("json", "x", required=True), 0), (field("geoPoint", "x"), {"lon": 180, "lat": -90}), (field("password", "x"), "x" * 71),
    (field("bool", "x", required=True), True), (field("json", "x", maxSize=5), "abc"),
])
def test_boundary_values_pass(api, options, value):
    name = f"pass_{next(COUNT)}"
    api.make(name, [options])
    api.add(name, {"x": value})


def test_values_are_validated_again_on_update(api):
    made = api.make("tightened", ["a", "b"])
    id = api.add("tightened", {"a": "long enough"})["id"]
    fields = [{**each, "max": 3} if each["name"] == "a" else each for each in made["fields"]]
    assert api.patch("/api/collections/tightened", {"fields": fields}, token=api.su).status == 200
    refused = api.patch(records("tightened", id), {"b": "x"})
    assert refused.json == envelope(400, "Failed to update record.",
                                    {"a": {"code": "validation_max_text_constraint", "message": "Must be no more than 3 character(s).",
                                           "params": {"max": 3}}})
    assert api.get(records("tightened", id)).json["b"] == ""


def test_custom_primary_keys(api):
    id = {"name": "id", "type": "text", "primaryKey": True, "required": True, "system": True, "pattern": "^.+$",
          "autogeneratePattern": "[A-Z]{3}-[0-9]{4}"}
    api.make("keyed", [id])
    assert re.fullmatch("[A-Z]{3}-[0-9]{4}", api.add("keyed")["id"])
    api.add("keyed", {"id": "Mixed"})
    for value, code in (("mixed", "validation_pk_invalid"), ("a.b", "validation_forbidden_pk_character"),
                        ("a b", "validation_forbidden_pk_character"), ("a/b", "validation_forbidden_pk_character"), ("con", "validation_reserved_pk"),
                        ("LPT1", "validation_reserved_pk")):
        assert api.post(records("keyed"), {"id": value}).json["data"]["id"]["code"] == code, value


# ---- modifiers and generated values

@pytest.mark.parametrize("name, stored, change, result", [
    ("number", 5, {"number+": 2}, 7), ("number", 5, {"number-": 2.5}, 2.5), ("number", 5, {"number+": "3"}, 8), ("number", 5, {"number+": "junk"}, 5),
    ("number", 5, {"number": 1, "number+": 2}, 3), ("number", 5, {"+number": 2}, 5),
    ("selects", ["a"], {"selects+": "b"}, ["a", "b"]), ("selects", ["a"], {"+selects": ["c", "b"]}, ["c", "b", "a"]),
    ("selects", ["a", "b", "c"], {"selects-": ["a", "c"]}, ["b"]), ("selects", ["a"], {"selects+": "a"}, ["a"]),
    ("selects", ["a"], {"selects-": "zzz"}, ["a"]), ("selects", ["a"], {"selects": "c", "selects+": "b"}, ["c", "b"]),
    ("select", "b", {"select+": "c"}, "c"), ("select", "b", {"+select": "c"}, "b"), ("select", "b", {"select-": "b"}, ""),
    ("relations", [T0], {"relations+": T1}, [T0, T1]), ("relations", [T0, T1], {"relations-": T0}, [T1]), ("relation", T0, {"relation-": T0}, ""),
    ("text", "a", {"text+": "b"}, "a"),
])
def test_modifiers(api, name, stored, change, result):
    id = api.add("everything", {name: stored})["id"]
    changed = api.patch(records("everything", id), change)
    assert changed.status == 200 and changed.json[name] == result
    assert api.get(records("everything", id)).json[name] == result


def test_modifiers_apply_to_the_empty_value_on_create(api):
    created = api.add("everything", {"number+": 2, "selects+": ["a"]})
    assert (created["number"], created["selects"]) == (2, ["a"])


@pytest.mark.parametrize("pattern, shape", [
    ("[A-Z]{3}-[0-9]{2,4}", "[A-Z]{3}-[0-9]{2,3}"), ("(foo|bar)x", "(foo|bar)x"), ("a.{5}", "a[A-Za-z0-9]{5}"), (r"\d{4}", "[0-9]{4}"),
    ("[a-c]{8}", "[a-c]{8}"), ("a+b", "a{1,5}b"),
])
def test_generated_values_fit_their_pattern(api, pattern, shape):
    name = f"gen_{next(COUNT)}"
    api.make(name, [field("text", "x", autogeneratePattern=pattern)])
    values = [api.add(name)["x"] for _ in range(10)]
    assert all(re.fullmatch(shape, value) for value in values), values


def test_generated_values_only_fill_blanks_on_create(api):
    api.make("generated", [field("text", "x", autogeneratePattern="[a-z]{8}")])
    assert api.add("generated", {"x": "given"})["x"] == "given"
    created = api.add("generated")
    assert api.patch(records("generated", created["id"]), {"x": ""}).json["x"] == ""
    prefixed = api.patch(records("generated", created["id"]), {"x:autogenerate": "PRE-"}).json["x"]
    assert re.fullmatch("PRE-[a-z]{8}", prefixed)


# ---- files

def stored_files(api, record):
    """What lies in the record's folder, without the side files that hold attributes."""
    folder = os.path.join(api.dir, "storage", record["collectionId"], record["id"])
    return sorted(name for name in os.listdir(folder) if not name.endswith(".attrs")) if os.path.isdir(folder) else []


def download(api, record, name, **options):
    return api.get(f"/api/files/{record['collectionName']}/{record['id']}/{name}", **options)


@pytest.mark.parametrize("original, shape", [
    ("a.txt", r"aRR\.txt"), ("hello.txt", r"helloR\.txt"), ("My Test.file.SVG", r"my_testR\.file\.SVG"),
    ("HelloWorldTEST   a--b.JPEG", r"hello_world_test_a_bR\.JPEG"), ("data.tar.gz", r"dataR\.tar\.gz"),
    ("camelCase (1).TXT", r"camel_case_1R\.TXT"), ("üni-code.png", r"ni_codeR\.png"), ("../../etc/passwd.txt", r"passwdR\.txt"),
    ("weird (1) [x].p+d=f", r"weird_1_xR\.p\+d=f"), ("plain", r"plainR\.txt"), (".htaccess", r"RR\.htaccess"),
])
def test_names_of_uploads(api, original, shape):
    created = api.add("everything", form={"file": (original, b"text content")})
    assert re.fullmatch(shape.replace("RR", "[a-z0-9]{10}_[a-z0-9]{10}").replace("R", "_[a-z0-9]{10}"), created["file"]), created["file"]
    assert stored_files(api, created) == [created["file"]]


def test_long_names_are_cut(api):
    name = api.add("everything", form={"file": ("x" * 280 + ".txt", b"x")})["file"]
    assert re.fullmatch("x{100}_[a-z0-9]{10}.txt", name)


def test_upload_and_download(api):
    created = api.add("everything", form={"text": "with a file", "file": ("pixel.png", PNG, "image/png")})
    assert created["text"] == "with a file"
    got = download(api, created, created["file"])
    assert (got.status, got.body, got.headers["Content-Type"]) == (200, PNG, "image/png")
    assert got.headers["Content-Disposition"] == f'inline; filename="{created["file"]}"'
    assert "sandbox" in got.headers["Content-Security-Policy"] and got.headers["Cache-Control"] == "max-age=2592000, stale-while-revalidate=86400"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    head = api.head(f"/api/files/everything/{created['id']}/{created['file']}")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(PNG)))


@pytest.mark.parametrize("name, content, kind, disposition", [
    ("page.html", b"<html><script>alert(1)</script></html>", "text/html", "attachment"),
    ("image.svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "image/svg+xml", "attachment"),
    ("text.txt", b"hello", "text/plain", "attachment"),
    ("lying.png", b"just text", "text/plain", "attachment"), ("doc.pdf", b"%PDF-1.4\n%%EOF", "application/pdf", "inline"),
    ("style.css", b"a{}", "text/css", "attachment"), ("empty.txt", b"", "text/plain", "attachment"),
])
def test_downloads_are_typed_by_content_and_kept_from_running(api, name, content, kind, disposition):
    created = api.add("everything", form={"file": (name, content, "image/png")})
    got = download(api, created, created["file"])
    assert (got.status, got.body) == (200, content)
    assert got.headers["Content-Type"].split(";")[0] == kind
    assert got.headers["Content-Disposition"].split(";")[0] == disposition
    assert download(api, created, created["file"], params={"download": "1"}).headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize("range, status, body, content_range", [
    ("bytes=0-3", 206, b"0123", "bytes 0-3/10"), ("bytes=7-", 206, b"789", "bytes 7-9/10"), ("bytes=-2", 206, b"89", "bytes 8-9/10"),
    ("bytes=20-", 416, None, "bytes */10"), ("junk", 416, None, None), ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
])
def test_parts_of_files(api, range, status, body, content_range):
    created = api.add("everything", form={"file": ("digits.txt", b"0123456789")})
    got = download(api, created, created["file"], headers={"Range": range})
    assert got.status == status and (body is None or got.body == body) and got.headers.get("Content-Range") == content_range


def test_unchanged_files_are_not_sent_again(api):
    created = api.add("everything", form={"file": ("same.txt", b"same")})
    modified = download(api, created, created["file"]).headers["Last-Modified"]
    again = download(api, created, created["file"], headers={"If-Modified-Since": modified})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", [
    "{collection}/{id}/missing.txt", "{collection}/missing/{file}", "targets/{id}/{file}", "{collection}/{id}/{file}.attrs",
    "{collection}/{id}/..%2f{id}%2f{file}", "{collection}/{id}/%2e%2e%2f%2e%2e%2f%2e%2e%2fdata.db", "{collection}/{id}/x%00.txt",
])
def test_other_paths_are_not_found(api, path):
    created = api.add("everything", form={"file": ("here.txt", b"here")})
    answer = api.get("/api/files/" + path.format(collection="everything", id=created["id"], file=created["file"]))
    assert answer.status in (400, 404) and b"here" != answer.body
    assert answer.status == 400 or answer.json == envelope(404, NOT_FOUND)


def test_files_of_unknown_collections(api):
    assert api.get("/api/files/nope/x/y.txt").json == envelope(404, "Missing or invalid collection context.")


def test_plain_upload_replaces_and_removes_old_files(api):
    created = api.add("everything", form={"files": [("one.txt", b"1"), ("two.txt", b"2")]})
    assert [name.split("_")[0] for name in created["files"]] == ["one", "two"]
    changed = api.patch(records("everything", created["id"]), form={"files": ("three.txt", b"3")}).json
    assert [name.split("_")[0] for name in changed["files"]] == ["three"]
    assert download(api, created, created["files"][0]).status == 404
    assert download(api, created, changed["files"][0]).body == b"3"


@pytest.mark.parametrize("change, names", [
    ({"files+": ("new.txt", b"n")}, ["one", "two", "new"]), ({"+files": ("new.txt", b"n")}, ["new", "one", "two"]),
    ({"files": ["{1}", ("new.txt", b"n")]}, ["two", "new"]), ({"files-": "{0}"}, ["two"]), ({"files-": ["{0}", "{1}"]}, []),
    ({"files": ["{1}", "{0}"]}, ["two", "one"]), ({"files": ""}, []), ({"text": "untouched"}, ["one", "two"]),
    ({"files-": "{0}", "files+": ("new.txt", b"n")}, ["two", "new"]), ({"files-": "missing.txt"}, ["one", "two"]),
])
def test_files_are_added_kept_and_removed(api, change, names):
    created = api.add("everything", form={"files": [("one.txt", b"1"), ("two.txt", b"2")]})
    fill = lambda value: value.format(*created["files"]) if isinstance(value, str) else value
    changed = api.patch(records("everything", created["id"]),
                        form={key: [fill(each) for each in value] if isinstance(value, list) else fill(value) for key, value in change.items()})
    assert changed.status == 200 and [name.split("_")[0] for name in changed.json["files"]] == names
    assert [download(api, created, name).status for name in changed.json["files"]] == [200] * len(names)
    gone = set(created["files"]) - set(changed.json["files"])
    assert all(download(api, created, name).status == 404 for name in gone)


def test_json_bodies_keep_reorder_and_clear_files(api):
    created = api.add("everything", form={"files": [("one.txt", b"1"), ("two.txt", b"2")]})
    one, two = created["files"]
    path = records("everything", created["id"])
    assert api.patch(path, {"files": [two, one]}).json["files"] == [two, one]
    assert api.patch(path, {"files-": one}).json["files"] == [two]
    assert api.patch(path, {"files": [two, "foreign.txt"]}).json["data"]["files"]["code"] == "validation_invalid_file"
    assert api.patch(path, {"files": None}).json["files"] == []


@pytest.mark.parametrize("word, operand, kept", [
    ("files+", [None], "12"), ("files+", ["", None], "12"), ("files+", [[]], "12"), ("files+", [{}], "12"), ("files+", [["{2}"]], "12"), ("+files", [["{2}"]], "21"),
    ("files+", [0], "0"), ("+files", [1.5], "1.5"), ("files+", [True], "true"), ("files+", [None, [["a"]]], "a"),
    ("files", [["{1}"]], "1"), ("files-", [["{1}"]], "2"), ("files-", [None, 0, [[]]], "12"),
    ("file+", [None], "1"), ("file+", [""], "1"), ("file+", ["", "{1}"], "1"), ("file+", [[]], "1"), ("+file", [["a"]], "1"),
    ("file+", [0], "0"), ("file+", [["a"]], "a"), ("file", [["{1}"]], "1")])
def test_what_is_no_name_does_no_harm_to_stored_files(api, word, operand, kept):
    """`kept`: the first letters of the files afterwards, or the text that is refused."""
    created = api.add("everything", form={"file": ("1.txt", b"1"), "files": [("1.txt", b"1"), ("2.txt", b"2")]})
    name = word.strip("+-")
    stored = created[name] if isinstance(created[name], list) else [created[name]]
    fill = lambda value: [fill(v) for v in value] if isinstance(value, list) else value.format("", *stored) if isinstance(value, str) else value
    changed = api.patch(records("everything", created["id"]), {word: fill(operand)})
    if kept.strip("12"):
        assert (changed.status, changed.json["data"][name]["params"]) == (400, {"invalidFiles": [kept]})
    else:
        names = changed.json[name] if isinstance(changed.json[name], list) else [changed.json[name]]
        assert changed.status == 200 and names == [stored[int(digit) - 1] for digit in kept]
    assert len(stored_files(api, created)) >= 2


def test_refused_names_are_shown_in_part(api):
    refused = api.post(ALL, {"files": ["é" * 200, "b"]}).json["data"]["files"]
    assert refused["params"] == {"invalidFiles": ["é" * 125, "b"]} and refused["message"] == f"Invalid new files: [{'é' * 125} b]."


def test_last_upload_wins_on_single_fields(api):
    created = api.add("everything", form={"file": [("one.txt", b"1"), ("two.txt", b"2")]})
    assert created["file"].startswith("two_") and stored_files(api, created) == [created["file"]]


def test_uploads_for_other_fields_are_ignored(api):
    created = api.add("everything", form={"text": ("t.txt", b"t"), "nope": ("n.txt", b"n"), "bool": "true"})
    assert (created["text"], created["bool"], stored_files(api, created)) == ("", True, [])


def test_payload_part_is_merged_into_the_form(api):
    created = api.add("everything", form={"@jsonPayload": '{"json": {"a": [1]}, "number": 5}', "number": "7", "file": ("p.txt", b"p")})
    assert (created["json"], created["number"], created["file"][:1]) == ({"a": [1]}, 5, "p")
    assert api.post(ALL, form={"@jsonPayload": "{broken"}).status == 400


@pytest.fixture(scope="module")
def picky(api):
    api.make("picky", [field("file", "small", maxSize=10), field("file", "few", maxSelect=2), field("file", "images", mimeTypes=["image/png"]), field("text", "must", required=True)])
    return api


@pytest.mark.parametrize("form, error", [
    ({"small": ("big.txt", b"x" * 11)},
     {"code": "validation_file_size_limit", "message": "Failed to upload big.txt - the maximum allowed file size is 10 bytes.",
      "params": {"file": "big.txt", "maxSize": 10}}),
    ({"few": [("a.txt", b"a")] * 3}, {"code": "validation_too_many_files", "message": "The maximum allowed files is 2.", "params": {"maxSelect": 2}}),
    ({"images": ("lying.png", b"text", "image/png")}, {"code": "validation_invalid_mime_type", "message": None}),
])
def test_refused_uploads(picky, form, error):
    refused = picky.post(records("picky"), form={**form, "must": "x"})
    [found] = refused.json["data"].values()
    if error["message"] is None:
        assert re.fullmatch(r'"lying_[a-z0-9]{10}\.png" mime type must be one of: image/png\.', found.pop("message"))
        error = {"code": error["code"]}
    assert refused.status == 400 and found == error


def test_refused_records_leave_no_files(picky):
    refused = picky.post(records("picky"), form={"images": ("pixel.png", PNG), "must": "", "id": "refused00000001"})
    assert (refused.status, set(refused.json["data"])) == (400, {"must"})
    collection = picky.get("/api/collections/picky", token=picky.su).json["id"]
    assert not os.path.exists(os.path.join(picky.dir, "storage", collection, "refused00000001"))
    assert picky.add("picky", form={"images": ("pixel.png", PNG), "must": "x", "small": ("s.txt", b"x" * 10)})["images"]


def test_deleted_records_take_their_files_along(api):
    created = api.add("everything", form={"file": ("gone.txt", b"gone")})
    assert api.delete(records("everything", created["id"])).status == 204
    assert download(api, created, created["file"]).status == 404
