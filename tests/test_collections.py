"""Collections: create, change, delete, validation, table changes that keep data, indexes, views, import, truncate, guards of the system ones."""
import re
import zlib

import pytest

from helpers_answers import NOT_FOUND
from helpers_answers import envelope
from helpers_answers import items
from helpers_answers import records
from helpers_answers import refusal

API = "/api/collections"
BASE_KEYS = ["id", "listRule", "viewRule", "createRule", "updateRule", "deleteRule", "name", "type", "fields", "indexes", "created", "updated",
             "system"]
AUTH_KEYS = ["authRule", "manageRule", "authAlert", "oauth2", "passwordAuth", "mfa", "otp", "authToken", "passwordResetToken", "emailChangeToken",
             "verificationToken",
             "fileToken", "verificationTemplate", "resetPasswordTemplate", "confirmEmailChangeTemplate"]
ID_FIELD = {"autogeneratePattern": "[a-z0-9]{15}", "help": "", "hidden": False, "id": "text3208210256", "max": 15, "min": 15, "name": "id",
            "pattern": "^[a-z0-9]+$",
            "presentable": False, "primaryKey": True, "required": True, "system": True, "type": "text"}


@pytest.fixture(scope="module")
def api(server):
    return server


@pytest.fixture(scope="module")
def plain_user(api):
    """The token of a user who is no superuser."""
    api.add_user("plain@example.com")
    return api.login("users", "plain@example.com")


def create(api, **model):
    return api.post(API, model, token=api.su)


def change(api, name, /, **model):
    return api.patch(f"{API}/{name}", model, token=api.su)


def read(api, name):
    return api.get(f"{API}/{name}", token=api.su)


def columns(api, table):
    """{column: (type, default, not null, primary key)} of a table on disk."""
    return {name: (kind, default, not_null, key) for _, name, kind, not_null, default, key in api.db(f"PRAGMA table_info(`{table}`)")}


def crc(text):
    return zlib.crc32(text.encode())


def field(type, name, **options):
    return {"type": type, "name": name, **options}


# ---- create, read, change, delete

def test_base_collection_has_its_keys_in_order(api):
    made = create(api, name="plain", fields=[field("text", "title")])
    assert made.status == 200
    assert list(made.json) == BASE_KEYS
    assert [made.json[rule] for rule in BASE_KEYS[1:6]] == [None] * 5
    assert (made.json["type"], made.json["system"], made.json["indexes"]) == ("base", False, [])
    assert read(api, "plain").json == made.json == read(api, made.json["id"]).json == read(api, "PLAIN").json


def test_ids_are_derived_from_the_names(api):
    made = create(api, name="derived", fields=[field("text", "title"), field("number", "n")]).json
    assert made["id"] == f"pbc_{crc('basederived')}"
    assert [each["id"] for each in made["fields"]] == ["text3208210256", f"text{crc('title')}", f"number{crc('n')}"]
    assert create(api, name="derived_auth", type="auth").json["id"] == f"pbc_{crc('authderived_auth')}"


def test_taken_ids_get_a_number(api):
    first = create(api, name="taken").json
    change(api, "taken", name="moved")
    assert create(api, name="taken").json["id"] == first["id"] + "2"


def test_auth_collection_gets_system_fields_indexes_and_options(api):
    made = create(api, name="members", type="auth", fields=[field("text", "nick")]).json
    assert list(made) == BASE_KEYS + AUTH_KEYS
    assert [each["name"] for each in made["fields"]] == ["id", "nick", "password", "tokenKey", "email", "emailVisibility", "verified"]
    assert made["indexes"] == [
        f"CREATE UNIQUE INDEX `idx_tokenKey_{made['id']}` ON `members` (`tokenKey`)",
        f"CREATE UNIQUE INDEX `idx_email_{made['id']}` ON `members` (`email`) WHERE `email` != ''",
    ]
    assert (made["authRule"], made["manageRule"]) == ("", None)
    assert made["passwordAuth"] == {"enabled": True, "identityFields": ["email"]}
    assert made["mfa"] == {"enabled": False, "duration": 600, "rule": ""}
    assert made["oauth2"] == {"providers": [], "mappedFields": {"id": "", "name": "", "username": "", "avatarURL": ""}, "enabled": False}
    durations = {name: made[name] for name in ("authToken", "passwordResetToken", "emailChangeToken", "verificationToken", "fileToken")}
    assert durations == {"authToken": {"duration": 432000}, "passwordResetToken": {"duration": 1800}, "emailChangeToken": {"duration": 1800},
                         "verificationToken": {"duration": 86400}, "fileToken": {"duration": 180}}


def test_table_has_a_column_per_field_sorted_by_name(api):
    others = create(api, name="others").json["id"]
    create(api, name="everything", fields=[
        field("text", "t"), field("number", "n"), field("bool", "b"), field("email", "e"), field("url", "u"), field("editor", "ed"),
        field("date", "d"),
        field("autodate", "ad", onCreate=True), field("select", "s1", values=["a"]), field("select", "s2", values=["a", "b"], maxSelect=2),
        field("json", "j"),
        field("file", "f1"), field("file", "f2", maxSelect=2), field("relation", "r1", collectionId=others),
        field("relation", "r2", collectionId=others, maxSelect=2), field("password", "p"), field("geoPoint", "g")])
    text, many = ("TEXT", "''", 1, 0), ("JSON", "'[]'", 1, 0)
    found = columns(api, "everything")
    assert list(found) == sorted(found)
    assert found == {
        "ad": text, "b": ("BOOLEAN", "FALSE", 1, 0), "d": text, "e": text, "ed": text, "f1": text, "f2": many,
        "g": ("JSON", """'{"lon":0,"lat":0}'""", 1, 0),
        "id": ("TEXT", "'r'||lower(hex(randomblob(7)))", 1, 1), "j": ("JSON", "NULL", 0, 0), "n": ("NUMERIC", "0", 1, 0), "p": text, "r1": text,
        "r2": many,
        "s1": text, "s2": many, "t": text, "u": text,
    }


@pytest.mark.parametrize("type, options", [
    ("text", {"autogeneratePattern": "", "max": 0, "min": 0, "pattern": "", "primaryKey": False}),
    ("number", {"max": None, "min": None, "onlyInt": False}),
    ("bool", {}),
    ("email", {"exceptDomains": [], "onlyDomains": []}),
    ("url", {"exceptDomains": [], "onlyDomains": []}),
    ("editor", {"convertURLs": False, "maxSize": 0}),
    ("date", {"max": "", "min": ""}),
    ("json", {"maxSize": 0}),
    ("file", {"maxSelect": 0, "maxSize": 0, "mimeTypes": [], "protected": False, "thumbs": []}),
    ("password", {"cost": 0, "max": 0, "min": 0, "pattern": ""}),
    ("geoPoint", {}),
])
def test_field_options_have_defaults_and_sorted_keys(api, type, options):
    made = create(api, name=f"defaults_{type}", fields=[field(type, "x")]).json["fields"][1]
    common = {"hidden": False, "id": f"{type}{crc('x')}", "name": "x", "presentable": False, "required": False, "system": False, "type": type,
              "help": ""}
    assert made == {**common, **options}
    assert list(made) == sorted(made)


def test_autodate_field_has_no_required_and_no_help(api):
    made = create(api, name="defaults_autodate", fields=[field("autodate", "x", onUpdate=True)]).json["fields"][1]
    assert made == {"hidden": False, "id": f"autodate{crc('x')}", "name": "x", "onCreate": False, "onUpdate": True, "presentable": False,
                    "system": False, "type": "autodate"}


def test_list_filters_sorts_and_pages(api):
    create(api, name="list_a")
    create(api, name="list_b")
    listed = api.get(API, params={"filter": "name ~ 'list_%'", "sort": "-name", "fields": "name"}, token=api.su)
    assert listed.json["items"] == [{"name": "list_b"}, {"name": "list_a"}]
    paged = api.get(API, params={"filter": "system = true", "perPage": 2, "page": 2, "sort": "name"}, token=api.su).json
    assert (len(paged["items"]), paged["page"], paged["perPage"], paged["totalItems"], paged["totalPages"]) == (2, 2, 2, 5, 3)
    for bad in ("filter=nope=1", "sort=fields", "filter=listRule=''"):
        assert api.get(f"{API}?{bad}", token=api.su).status == 400


def test_delete_drops_the_table(api):
    id = create(api, name="short_lived").json["id"]
    assert columns(api, "short_lived")
    deleted = api.delete(f"{API}/{id}", token=api.su)
    assert (deleted.status, deleted.body) == (204, b"")
    assert not columns(api, "short_lived")
    assert read(api, "short_lived").json == envelope(404, NOT_FOUND)
    assert api.get(records("short_lived")).status == 404


def test_referenced_collection_is_not_deleted(api):
    id = create(api, name="target").json["id"]
    create(api, name="pointer_b", fields=[field("relation", "r", collectionId=id)])
    create(api, name="pointer_a", fields=[field("relation", "r", collectionId=id)])
    refused = api.delete(f"{API}/target", token=api.su)
    assert refused.status == 400
    assert re.fullmatch("Failed to delete collection probably due to existing reference in pointer_[ab], pointer_[ab].", refused.json["message"])
    for name in ("pointer_a", "pointer_b", "target"):
        assert api.delete(f"{API}/{name}", token=api.su).status == 204


@pytest.mark.parametrize("method, path", [
    ("GET", ""), ("POST", ""), ("GET", "/users"), ("PATCH", "/users"), ("DELETE", "/users"), ("DELETE", "/users/truncate"), ("PUT", "/import"),
    ("GET", "/meta/scaffolds"), ("GET", "/meta/oauth2-providers"), ("POST", "/meta/dry-run-view"),
])
def test_only_superusers_may_touch_collections(api, plain_user, method, path):
    body = {} if method in ("POST", "PATCH", "PUT") else None
    guest = api.request(method, API + path, body)
    assert guest.json == envelope(401, "The request requires valid record authorization token.")
    user = api.request(method, API + path, body, token=plain_user)
    assert user.json == envelope(403, "The authorized record is not allowed to perform this action.")


# ---- validation

@pytest.mark.parametrize("model, errors", [
    ({}, {"name": "validation_required"}),
    ({"name": ""}, {"name": "validation_required"}),
    ({"name": "a b"}, {"name": "validation_match_invalid"}),
    ({"name": "é"}, {"name": "validation_match_invalid"}),
    ({"name": "a" * 256}, {"name": "validation_length_out_of_range"}),
    ({"name": "a_VIA_b"}, {"name": "validation_found_via"}),
    ({"name": "USERS"}, {"name": "validation_collection_name_exists"}),
    ({"name": "_pb_users_auth_"}, {"name": "validation_collection_name_id_duplicate"}),
    ({"name": "_params"}, {"name": "validation_collection_name_invalid"}),
    ({"name": "_collections"}, {"name": "validation_collection_name_invalid"}),
    ({"name": "bad", "type": "nope"}, {"type": "validation_in_invalid"}),
    ({"name": "bad", "id": "a b"}, {"id": "validation_match_invalid"}),
    ({"name": "bad", "id": "x" * 101}, {"id": "validation_length_out_of_range"}),
    ({"name": "bad", "id": "_pb_users_auth_"}, {"id": "validation_invalid_or_existing_id"}),
    ({"name": "bad", "listRule": "nope = 1"}, {"listRule": "validation_invalid_rule"}),
    ({"name": "bad", "listRule": "((", "createRule": "id"}, {"listRule": "validation_invalid_rule", "createRule": "validation_invalid_rule"}),
    ({"name": "bad", "deleteRule": "@collection.nope.id = 1"}, {"deleteRule": "validation_invalid_rule"}),
    ({"name": "bad", "type": "view"}, {"fields": "validation_required", "viewQuery": "validation_required"}),
    ({"name": "bad", "type": "view", "viewQuery": "select * from users"},
     {"fields": "validation_required", "viewQuery": "validation_invalid_view_query"}),
    ({"name": "bad", "type": "view", "viewQuery": "select id from users", "createRule": ""}, {"createRule": "validation_nil"}),
    ({"name": "bad", "type": "view", "viewQuery": "select id from users", "indexes": ["create index x on bad (id)"]},
     {"indexes": "validation_indexes_not_supported"}),
    ({"name": "bad", "type": "auth", "manageRule": ""}, {"manageRule": "validation_nil_or_not_empty_required"}),
    ({"name": "bad", "type": "auth", "authRule": "nope = 1"}, {"authRule": "validation_invalid_rule"}),
    ({"name": "bad", "type": "auth", "authToken": {"duration": 1}}, {"authToken.duration": "validation_min_greater_equal_than_required"}),
    ({"name": "bad", "type": "auth", "authToken": {"duration": 94670857}}, {"authToken.duration": "validation_max_less_equal_than_required"}),
    ({"name": "bad", "type": "auth", "fileToken": {"secret": "short"}}, {"fileToken.secret": "validation_length_out_of_range"}),
    ({"name": "bad", "type": "auth", "verificationTemplate": {"subject": "", "body": ""}},
     {"verificationTemplate.subject": "validation_required", "verificationTemplate.body": "validation_required"}),
    ({"name": "bad", "type": "auth", "mfa": {"enabled": True}}, {"mfa.enabled": "validation_mfa_not_enough_auths"}),
    ({"name": "bad", "type": "auth", "mfa": {"enabled": True, "duration": 5}}, {"mfa.duration": "validation_min_greater_equal_than_required"}),
    ({"name": "bad", "type": "auth", "otp": {"enabled": True, "length": 3, "duration": 5}},
     {"otp.length": "validation_min_greater_equal_than_required", "otp.duration": "validation_min_greater_equal_than_required"}),
    ({"name": "bad", "type": "auth", "mfa": {"enabled": True, "rule": "bad ="}}, {"mfa.enabled": "validation_mfa_not_enough_auths"}),
    ({"name": "bad", "type": "auth", "otp": {"enabled": True}, "mfa": {"enabled": True, "rule": "bad ="}}, {"mfa.rule": "validation_invalid_rule"}),
    ({"name": "bad", "type": "auth", "authToken": {"secret": ""}}, {"authToken.secret": "validation_required"}),
    ({"name": "bad", "type": "auth", "fileToken": None}, {"fileToken.secret": "validation_required", "fileToken.duration": "validation_required"}),
    ({"name": "bad", "type": "auth", "oauth2": {"enabled": True, "providers": [None]}},
     {f"oauth2.providers.0.{key}": "validation_required" for key in ("name", "clientId", "clientSecret")}),
    ({"name": "bad", "type": "auth", "passwordAuth": {"identityFields": []}}, {"passwordAuth.identityFields": "validation_required"}),
    ({"name": "bad", "type": "auth", "passwordAuth": {"identityFields": ["email", None]}}, {"passwordAuth.identityFields": "validation_required"}),
    ({"name": "bad", "type": "auth", "passwordAuth": {"identityFields": ["nope"]}}, {"passwordAuth.identityFields": "validation_missing_field"}),
    ({"name": "bad", "type": "auth", "passwordAuth": {"identityFields": ["id2"]}, "fields": [field("text", "id2")]},
     {"passwordAuth.identityFields": "validation_missing_unique_constraint"}),
    ({"name": "bad", "type": "auth", "oauth2": {"enabled": True, "providers": [{"name": "nope", "clientId": "a", "clientSecret": "b"}]}},
     {"oauth2.providers.0.name": "validation_missing_provider"}),
    ({"name": "bad", "type": "auth", "oauth2": {"enabled": True, "providers": [{"name": "google"}]}},
     {"oauth2.providers.0.clientId": "validation_required", "oauth2.providers.0.clientSecret": "validation_required"}),
    ({"name": "bad", "type": "auth", "oauth2": {"enabled": True, "providers": [{"name": "google", "clientId": "a", "clientSecret": "b"}] * 2}},
     {"oauth2.providers.1.name": "validation_duplicated_provider"}),
])
def test_invalid_collection_is_refused(api, model, errors):
    refused = create(api, **model)
    assert refusal(refused) == (400, errors)
    assert refused.json["message"] == "Failed to create collection."


@pytest.mark.parametrize("fields, errors", [
    ([field("text", "")], {"fields.1.name": "validation_required"}),
    ([field("text", "a b")], {"fields.1.name": "validation_match_invalid"}),
    ([field("text", "a" * 101)], {"fields.1.name": "validation_length_out_of_range"}),
    ([field("text", "x_via_y")], {"fields.1.name": "validation_found_via"}),
    ([field("text", "expand")], {"fields.1.name": "validation_not_in_invalid"}),
    ([field("text", "collectionId")], {"fields.1.name": "validation_not_in_invalid"}),
    ([field("text", "null")], {"fields.1.name": "validation_not_in_invalid"}),
    ([field("text", "a"), field("number", "A")], {"fields.2.name": "validation_duplicated_field_name"}),
    ([field("text", "a", help="x" * 301)], {"fields.1.help": "validation_length_out_of_range"}),
    ([field("text", "a", min=-1)], {"fields.1.min": "validation_min_greater_equal_than_required"}),
    ([field("text", "a", min=5, max=4)], {"fields.1.max": "validation_min_greater_equal_than_required"}),
    ([field("text", "a", max=9007199254740992)], {"fields.1.max": "validation_max_less_equal_than_required"}),
    ([field("text", "a", pattern="((")], {"fields.1.pattern": "validation_invalid_regex"}),
    ([field("text", "a", pattern="(?=x)")], {"fields.1.pattern": "validation_invalid_regex"}),
    ([field("text", "a", autogeneratePattern="((")], {"fields.1.autogeneratePattern": "validation_invalid_regex"}),
    ([field("text", "a", autogeneratePattern="^a$")], {"fields.1.autogeneratePattern": "validation_invalid_autogenerate_pattern"}),
    ([field("text", "a", autogeneratePattern="[a-z]{3}", min=5)], {"fields.1.autogeneratePattern": "validation_invalid_autogenerate_pattern_value"}),
    ([field("number", "a", onlyInt=True, min=1.5, max=2.5)],
     {"fields.1.min": "validation_only_int_constraint", "fields.1.max": "validation_only_int_constraint"}),
    ([field("number", "a", min=5, max=4)], {"fields.1.max": "validation_min_number_constraint"}),
    ([field("email", "a", onlyDomains=["a.com"], exceptDomains=["b.com"])],
     {"fields.1.onlyDomains": "validation_empty", "fields.1.exceptDomains": "validation_empty"}),
    ([field("email", "a", onlyDomains=["no domain"])], {"fields.1.onlyDomains.0": "validation_is_domain"}),
    ([field("url", "a", exceptDomains=["no domain"])], {"fields.1.exceptDomains.0": "validation_is_domain"}),
    ([field("editor", "a", maxSize=-1)], {"fields.1.maxSize": "validation_min_greater_equal_than_required"}),
    ([field("json", "a", maxSize=-1)], {"fields.1.maxSize": "validation_min_greater_equal_than_required"}),
    ([field("autodate", "a")], {"fields.1.onCreate": "validation_required", "fields.1.onUpdate": "validation_required"}),
    ([field("select", "a")], {"fields.1.values": "validation_required"}),
    ([field("select", "a", values=["x"], maxSelect=2)], {"fields.1.maxSelect": "validation_max_less_equal_than_required"}),
    ([field("file", "a", maxSelect=-1)], {"fields.1.maxSelect": "validation_min_greater_equal_than_required"}),
    ([field("file", "a", thumbs=["1x1", "0x0"])], {"fields.1.thumbs.1": "validation_not_in_invalid"}),
    ([field("file", "a", thumbs=["big"])], {"fields.1.thumbs.0": "validation_match_invalid"}),
    ([field("relation", "a")], {"fields.1.collectionId": "validation_required"}),
    ([field("relation", "a", collectionId="users")], {"fields.1.collectionId": "validation_field_relation_missing_collection"}),
    ([field("relation", "a", collectionId="_pb_users_auth_", minSelect=2)], {"fields.1.maxSelect": "validation_required"}),
    ([field("relation", "a", collectionId="_pb_users_auth_", minSelect=3, maxSelect=2)],
     {"fields.1.maxSelect": "validation_min_greater_equal_than_required"}),
    ([field("password", "a", min=72)], {"fields.1.min": "validation_max_less_equal_than_required"}),
    ([field("password", "a", min=9, max=8)], {"fields.1.max": "validation_min_greater_equal_than_required"}),
    ([field("password", "a", cost=3)], {"fields.1.cost": "validation_min_greater_equal_than_required"}),
    ([field("password", "a", pattern="((")], {"fields.1.pattern": "validation_invalid_regex"}),
    ([field("text", "a", primaryKey=True, required=True, pattern="x")],
     {"fields.0.primaryKey": "validation_unsupported_composite_pk", "fields.1.name": "validation_in_invalid",
      "fields.1.primaryKey": "validation_unsupported_composite_pk"}),
])
def test_invalid_field_is_refused(api, fields, errors):
    assert refusal(create(api, name="bad_field", fields=fields)) == (400, errors)


def test_reserved_field_names_of_auth_collections(api):
    refused = create(api, name="bad_auth", type="auth", fields=[field("text", "oldPassword"), field("text", "passwordConfirm")])
    assert refusal(refused) == (400, {"fields.1.name": "validation_reserved_field_name", "fields.2.name": "validation_reserved_field_name"})


@pytest.mark.parametrize("body", [
    '{"name":"bad","fields":[{"name":"x"}]}', '{"name":"bad","fields":[{"name":"x","type":"nope"}]}',
    '{"name":"bad","fields":[{"name":"x","type":"text","max":"5"}]}',
    '{"name":"bad","fields":[{"name":"x","type":"text","required":"true"}]}', '{"name":"bad","listRule":5}', '{"name":"bad","name":"worse"}', "[]",
    "{", '{"name":"bad","fields":{}}',
])
def test_malformed_collection_is_refused(api, body):
    refused = api.post(API, body=body, headers={"Content-Type": "application/json"}, token=api.su)
    assert (refused.status, refused.json["data"]) == (400, {})
    assert re.fullmatch("Failed to load the (submitted|collection type) data due to invalid formatting.", refused.json["message"])


@pytest.mark.parametrize("rule, reason", [
    ("foo = 1", 'invalid left operand "foo" - unknown field "foo"'),
    ("id = foo", 'invalid right operand "foo" - unknown field "foo"'),
    ("((", "invalid formatted group - missing 2 closing bracket(s)"),
    ("title", "invalid or incomplete filter expression"),
    ("title = 1 && ", "invalid or incomplete filter expression"),
    ("title == 1", 'invalid sign operator "=="'),
    ("title = 'x", """invalid quoted text "'x\""""),
    ("title = 1 & id = 2", 'invalid join operator "&"'),
    ("title:foo = 1", 'invalid left operand "title:foo" - unknown modifier in "title:foo"'),
    ("f(1) = 1", 'invalid left operand "f" - unknown function "f"'),
    ("()", "empty filter expression"),
    ("@collection.nope.id = 1",
     'invalid left operand "@collection.nope.id" - failed to load collection "nope" from field path "@collection.nope.id"'),
])
def test_refused_rule_says_why(api, rule, reason):
    refused = create(api, name="bad_rule", fields=[field("text", "title")], viewRule=rule)
    assert refused.json["data"] == {"viewRule": {"code": "validation_invalid_rule", "message": f"Invalid rule. Raw error: {reason}."}}


@pytest.mark.parametrize("rule", [
    "@request.body.anything:isset = true", "@request.auth.nope = ''", "geoDistance(1, 2, 3, 4) > 1", "strftime('%Y', created) = '2020'",
    "title:length > 1", "id = @request.auth.id",
    "@collection.users.email ?= title", "@request.query.x = 'y' // comment", "title ~ 'x' || (title !~ 'y' && id != null)",
    "@request.headers.x_token = 'a'",
])
def test_accepted_rules(api, rule):
    made = create(api, name=f"rule_{crc(rule)}", fields=[field("text", "title"), field("autodate", "created", onCreate=True)], viewRule=rule)
    assert (made.status, made.json["viewRule"]) == (200, rule)


# ---- changes

def test_patch_keeps_what_is_not_sent(api):
    before = create(api, name="kept", fields=[field("text", "title")], listRule="title != ''").json
    after = change(api, "kept", viewRule="").json
    assert {**after, "updated": ""} == {**before, "viewRule": "", "updated": ""}


def test_patch_replaces_the_fields_list(api):
    create(api, name="replaced", fields=[field("text", "a", max=9, required=True), field("text", "b")])
    api.add("replaced", {"a": "one", "b": "two"})
    after = change(api, "replaced", fields=[field("text", "a")]).json
    assert [(each["name"], each.get("max"), each["required"]) for each in after["fields"]] == [("id", 15, True), ("a", 0, False)]
    assert set(columns(api, "replaced")) == {"id", "a"}
    assert items(api.get(records("replaced"), token=api.su), "a") == ["one"]


def renamed(collection, **names):
    return [{**each, "name": names.get(each["name"], each["name"])} for each in collection["fields"]]


def test_renamed_fields_keep_their_values(api):
    made = create(api, name="swap", fields=[field("text", "a"), field("text", "b"), field("number", "c")]).json
    api.add("swap", {"a": "1", "b": "2", "c": 3})
    after = change(api, "swap", fields=renamed(made, a="b", b="a", c="d"))
    assert after.status == 200
    record = api.get(records("swap"), token=api.su).json["items"][0]
    assert (record["a"], record["b"], record["d"], "c" in record) == ("2", "1", 3, False)


def test_renamed_collection_keeps_its_records_and_indexes(api):
    made = create(api, name="before", fields=[field("text", "a")], indexes=["create index idx_before on before (a)"]).json
    id = api.add("before", {"a": "x"})["id"]
    after = change(api, "before", name="after").json
    assert (after["id"], after["indexes"]) == (made["id"], ["CREATE INDEX `idx_before` ON `after` (`a`)"])
    assert api.get(records("after", id), token=api.su).json["collectionName"] == "after"
    assert api.get(records("before", id), token=api.su).status == 404
    assert api.db("select tbl_name from sqlite_master where name = 'idx_before'") == [("after",)]


def test_relations_survive_the_rename_of_their_target(api):
    target = create(api, name="goal", fields=[field("text", "a")]).json["id"]
    create(api, name="arrow", fields=[field("relation", "r", collectionId=target)])
    goal = api.add("goal", {"a": "x"})["id"]
    arrow = api.add("arrow", {"r": goal})["id"]
    change(api, "goal", name="aim")
    assert api.get(records("arrow", arrow), params={"expand": "r"}, token=api.su).json["expand"]["r"]["collectionName"] == "aim"


def test_same_name_with_a_new_type_starts_empty(api):
    create(api, name="retyped", fields=[field("text", "x")])
    api.add("retyped", {"x": "5"})
    assert change(api, "retyped", fields=[field("number", "x")]).status == 200
    assert items(api.get(records("retyped"), token=api.su), "x") == [0]


def test_type_never_changes_under_the_same_id(api):
    made = create(api, name="typed", fields=[field("text", "x")]).json
    fields = [{**each, "type": "number"} if each["name"] == "x" else each for each in made["fields"]]
    assert refusal(change(api, "typed", fields=[made["fields"][0], {"id": fields[1]["id"], "name": "x", "type": "number"}])) == (400,
        {"fields.1": "validation_field_type_change"})
    status, errors = refusal(change(api, "typed", type="auth"))
    assert (status, errors["type"]) == (400, "validation_collection_type_change")


def test_relation_target_never_changes(api):
    made = create(api, name="fixed", fields=[field("relation", "r", collectionId="_pb_users_auth_")]).json
    other = create(api, name="fixed_other").json["id"]
    fields = [made["fields"][0], {**made["fields"][1], "collectionId": other}]
    assert refusal(change(api, "fixed", fields=fields)) == (400, {"fields.1.collectionId": "validation_field_relation_change"})


@pytest.mark.parametrize("before, after", [("c", ["c"]), ("", [])])
def test_single_values_become_lists(api, before, after):
    name = f"widen_{before}"
    made = create(api, name=name, fields=[field("select", "s", values=["a", "b", "c"])]).json
    api.add(name, {"s": before})
    assert change(api, name, fields=[made["fields"][0], {**made["fields"][1], "maxSelect": 3}]).status == 200
    assert items(api.get(records(name), token=api.su), "s") == [after]
    assert columns(api, name)["s"][0] == "JSON"


@pytest.mark.parametrize("before, after", [(["c", "a"], "a"), (["b"], "b"), ([], "")])
def test_lists_become_their_last_value(api, before, after):
    name = f"narrow_{len(before)}"
    made = create(api, name=name, fields=[field("select", "s", values=["a", "b", "c"], maxSelect=3)]).json
    api.add(name, {"s": before})
    assert change(api, name, fields=[made["fields"][0], {**made["fields"][1], "maxSelect": 1}]).status == 200
    assert items(api.get(records(name), token=api.su), "s") == [after]
    assert columns(api, name)["s"][0] == "TEXT"


def test_rules_are_checked_against_the_new_fields(api):
    made = create(api, name="ruled", fields=[field("text", "a")], listRule="a = 'x'").json
    assert refusal(change(api, "ruled", fields=renamed(made, a="b"))) == (400, {"listRule": "validation_invalid_rule"})
    assert change(api, "ruled", fields=renamed(made, a="b"), listRule="b = 'x'").status == 200


def test_failed_change_leaves_everything_as_it_was(api):
    made = create(api, name="atomic", fields=[field("text", "a")]).json
    api.add("atomic", {"a": "same"})
    api.add("atomic", {"a": "same"})
    refused = change(api, "atomic", fields=made["fields"] + [field("text", "b")], indexes=["create unique index idx_atomic on atomic (a)"])
    assert refusal(refused) == (400, {"indexes.0": "validation_invalid_index_expression"})
    assert "UNIQUE constraint failed: atomic.a" in refused.json["data"]["indexes"]["0"]["message"]
    assert set(columns(api, "atomic")) == {"id", "a"}
    assert {**read(api, "atomic").json, "updated": ""} == {**made, "updated": ""}


def test_auth_options_merge_deeply(api):
    create(api, name="merged", type="auth")
    after = change(api, "merged", authToken={"duration": 999}, mfa={"duration": 700}).json
    assert (after["authToken"], after["mfa"]) == ({"duration": 999}, {"enabled": False, "duration": 700, "rule": ""})
    assert "secret" in api.db("select options from _collections where name = 'merged'")[0][0]


def test_removed_auth_indexes_come_back(api):
    before = create(api, name="reindexed", type="auth").json
    assert change(api, "reindexed", indexes=[]).json["indexes"] == before["indexes"]


# ---- indexes

@pytest.mark.parametrize("typed, stored, on_disk", [
    ("create index idx_t1 on indexed (a)", "create index idx_t1 on indexed (a)", "CREATE INDEX `idx_t1` ON `indexed` (`a`)"),
    ("create unique index if not exists idx_t2 on other (a, b desc)",
     "CREATE UNIQUE INDEX IF NOT EXISTS `idx_t2` ON `indexed` (\n  `a`,\n  `b` DESC\n)",
     "CREATE UNIQUE INDEX `idx_t2` ON `indexed` (\n  `a`,\n  `b` DESC\n)"),
    ("CREATE INDEX idx_t3 ON `indexed` (lower(a)) WHERE a != ''", "CREATE INDEX idx_t3 ON `indexed` (lower(a)) WHERE a != ''",
     "CREATE INDEX `idx_t3` ON `indexed` (lower(a)) WHERE a != ''"),
    ("CREATE INDEX idx_t4 ON (`a` COLLATE NOCASE)", "CREATE INDEX `idx_t4` ON `indexed` (`a` COLLATE NOCASE)",
     "CREATE INDEX `idx_t4` ON `indexed` (`a` COLLATE NOCASE)"),
])
def test_index_texts(api, typed, stored, on_disk):
    if read(api, "indexed").status == 404:
        create(api, name="indexed", fields=[field("text", "a"), field("text", "b")])
    assert change(api, "indexed", indexes=[typed]).json["indexes"] == [stored]
    assert api.db("select sql from sqlite_master where type = 'index' and tbl_name = 'indexed' and sql != ''") == [(on_disk,)]


@pytest.mark.parametrize("indexes, errors", [
    (["nonsense"], {"indexes.0": "validation_invalid_index_expression"}),
    (["create index i1 on bad_index (nope)"], {"indexes.0": "validation_invalid_index_expression"}),
    (["create index i1 on bad_index (a)", "create index I1 on bad_index (b)"], {"indexes.1": "validation_duplicated_index_name"}),
    (["create index i1 on bad_index (a)", "create index i2 on bad_index (a)"], {"indexes.1": "validation_duplicated_index_definition"}),
    (["create index idx_email__pb_users_auth_ on bad_index (a)"], {"indexes.0": "validation_existing_index_name"}),
])
def test_bad_index_is_refused(api, indexes, errors):
    assert refusal(create(api, name="bad_index", fields=[field("text", "a"), field("text", "b")], indexes=indexes)) == (400, errors)
    assert not columns(api, "bad_index")


# ---- views

@pytest.fixture(scope="module")
def sources(api):
    target = create(api, name="src_target", fields=[field("text", "label")]).json["id"]
    create(api, name="src",
           fields=[field("text", "t", max=7), field("number", "n"), field("bool", "b"), field("select", "s", values=["x", "y"], maxSelect=2),
                                    field("relation", "r", collectionId=target), field("json", "j")])
    goal = api.add("src_target", {"label": "goal"})["id"]
    for n in (1, 2):
        api.add("src", {"t": f"t{n}", "n": n, "b": True, "s": ["x"], "r": goal, "j": {"k": n}})


@pytest.mark.parametrize("expression, type, options", [
    ("t as x", "text", {"max": 7}), ("src.n as x", "number", {"onlyInt": False}), ("b x", "bool", {}),
    ("s as x", "select", {"values": ["x", "y"], "maxSelect": 2}),
    ("count(id) as x", "number", {"onlyInt": True}), ("total(n) as x", "number", {"onlyInt": False}),
    ("cast(n as int) as x", "number", {"onlyInt": True}),
    ("cast(n as real) as x", "number", {"onlyInt": False}), ("cast(n as text) as x", "text", {}), ("cast(n as bool) as x", "bool", {}),
    ("src.id as x", "relation", {"maxSelect": 1}),
    ("sum(n) as x", "json", {"maxSize": 1}), ("'literal' as x", "json", {"maxSize": 1}), ("(n + 1) as x", "json", {"maxSize": 1}),
    ("r as x", "relation", {}),
])
def test_field_types_of_views_come_from_the_query(api, sources, expression, type, options):
    dry = api.post(f"{API}/meta/dry-run-view", {"query": f"select src.id, {expression} from src group by src.id"}, token=api.su)
    assert dry.status == 200, dry
    id, x = dry.json["fields"]
    assert (id["name"], id["type"], x["name"], x["type"]) == ("id", "text", "x", type)
    assert {key: x[key] for key in options} == options


def test_dry_run_shows_a_sample_and_creates_nothing(api, sources):
    dry = api.post(f"{API}/meta/dry-run-view", {"query": "select id, n from src order by n"}, token=api.su).json
    assert [row["n"] for row in dry["sample"]] == [1, 2]
    assert re.fullmatch("temp_view_[A-Za-z0-9]{5}", dry["sample"][0]["collectionName"])
    assert api.db("select count(*) from sqlite_master where name like 'temp_view_%'") == [(0,)]


@pytest.mark.parametrize("query, reason", [
    ("select * from src", "wildcard columns"), ("select t from src", "missing required id column"),
    ("select id, t || n from src", "invalid identifier part"),
    ("select id from nope", "no such table"), ("select id from src; select id from src", "multiple statements are not supported"),
    ("select id, t as expand from src", "must not be in list"),
    ("select '' as id from src", "empty or invalid ids"), ("select 'same' as id from src", "non-unique ids"), ("delete from src", ""),
    ("select id from src) as x; drop table src; --", ""),
])
def test_bad_view_query_is_refused(api, sources, query, reason):
    dry = api.post(f"{API}/meta/dry-run-view", {"query": query}, token=api.su)
    assert dry.status == 400 and dry.json["message"].startswith("Invalid view query. Raw error: \n") and reason in dry.json["message"]
    assert refusal(create(api, name="bad_view", type="view", viewQuery=query))[1].get("viewQuery") == "validation_invalid_view_query"
    assert len(items(api.get(records("src"), token=api.su))) == 2


@pytest.mark.parametrize("query, code", [("", "validation_required"), ("select " + "x" * 5000, "validation_length_too_long")])
def test_dry_run_needs_a_query_of_reasonable_size(api, query, code):
    assert refusal(api.post(f"{API}/meta/dry-run-view", {"query": query}, token=api.su)) == (400, {"query": code})


def test_view_shows_current_rows_and_values(api, sources):
    made = create(api, name="src_view", type="view", viewQuery="select src.id, src.t, src.s, src.r, src.j, (n * 2) as twice from src where n > 1;")
    assert made.status == 200 and list(made.json) == BASE_KEYS + ["viewQuery"]
    listed = api.get(records("src_view"), params={"expand": "r"}, token=api.su).json["items"]
    assert [(row["t"], row["s"], row["j"], row["twice"], row["expand"]["r"]["label"]) for row in listed] == [("t2", ["x"], {"k": 2}, 4, "goal")]
    added = api.add("src", {"t": "t3", "n": 3})["id"]
    assert api.get(records("src_view", added), token=api.su).json["twice"] == 6
    api.delete(records("src", added), token=api.su)
    assert api.get(records("src_view", added), token=api.su).status == 404


def test_views_follow_changes_of_their_sources(api):
    made = create(api, name="followed", fields=[field("text", "a")]).json
    create(api, name="follower", type="view", viewQuery="select id, a from followed")
    fields = [made["fields"][0], {**made["fields"][1], "max": 33}]
    assert change(api, "followed", fields=fields).status == 200
    assert read(api, "follower").json["fields"][1]["max"] == 33


def test_column_used_by_a_view_is_not_dropped(api):
    made = create(api, name="needed", fields=[field("text", "a")]).json
    create(api, name="needing", type="view", viewQuery="select id, a from needed")
    refused = change(api, "needed", fields=made["fields"][:1])
    assert (refused.status, refused.json["data"]) == (400, {}) and "failed to drop column a" in refused.json["message"]
    assert "a" in columns(api, "needed")
    assert api.delete(f"{API}/needed", token=api.su).status == 400
    assert api.delete(f"{API}/needing", token=api.su).status == 204
    assert api.delete(f"{API}/needed", token=api.su).status == 204


def test_views_are_not_truncated(api, sources):
    create(api, name="untruncated", type="view", viewQuery="select id from src")
    refused = api.delete(f"{API}/untruncated/truncate", token=api.su)
    assert refused.json == envelope(400, "View collections cannot be truncated since they don't store their own records.")


def test_base_collections_do_not_point_at_views(api, sources):
    view = create(api, name="pointed_view", type="view", viewQuery="select id from src").json["id"]
    refused = create(api, name="bad_pointer", fields=[field("relation", "r", collectionId=view)])
    assert refusal(refused) == (400, {"fields.1.collectionId": "validation_relation_field_non_view_base_collection"})


# ---- truncate, scaffolds, import

def test_truncate_deletes_all_records_and_cascades(api):
    target = create(api, name="emptied", fields=[field("text", "a")]).json["id"]
    create(api, name="emptied_child", fields=[field("relation", "r", collectionId=target, cascadeDelete=True)])
    for parent in [api.add("emptied", {"a": str(i)})["id"] for i in range(3)]:
        api.add("emptied_child", {"r": parent})
    truncated = api.delete(f"{API}/emptied/truncate", token=api.su)
    assert (truncated.status, truncated.body) == (204, b"")
    assert api.db("select (select count(*) from emptied), (select count(*) from emptied_child)") == [(0, 0)]


def test_truncate_stops_at_required_references(api):
    target = create(api, name="held", fields=[field("text", "a")]).json["id"]
    create(api, name="holder", fields=[field("relation", "r", collectionId=target, required=True)])
    api.add("holder", {"r": api.add("held")["id"]})
    refused = api.delete(f"{API}/held/truncate", token=api.su)
    assert refused.json == envelope(400, "Failed to truncate collection (most likely due to required cascade delete record references).")
    assert api.db("select count(*) from held") == [(1,)]


def test_scaffolds(api):
    scaffolds = api.get(f"{API}/meta/scaffolds", token=api.su).json
    assert set(scaffolds) == {"base", "auth", "view"}
    assert scaffolds["base"]["fields"] == [ID_FIELD] and scaffolds["view"]["fields"] == []
    assert all((each["id"], each["name"], each["created"], each["listRule"]) == ("", "", "", None) for each in scaffolds.values())
    assert [each["name"] for each in scaffolds["auth"]["fields"]] == ["id", "password", "tokenKey", "email", "emailVisibility", "verified"]
    assert re.fullmatch(r"CREATE UNIQUE INDEX `idx_tokenKey_[a-z0-9]{10}` ON `` \(`tokenKey`\)", scaffolds["auth"]["indexes"][0])


def imported(api, collections, **options):
    return api.put(f"{API}/import", {"collections": collections, **options}, token=api.su)


def test_import_creates_and_extends(api):
    create(api, name="imp_old", fields=[field("text", "a")])
    api.add("imp_old", {"a": "kept"})
    done = imported(api, [{"name": "imp_old", "fields": [field("number", "b")]}, {"name": "imp_new", "type": "base", "fields": [field("text", "c")]}])
    assert (done.status, done.body) == (204, b"")
    assert [each["name"] for each in read(api, "imp_old").json["fields"]] == ["b", "id", "a"]
    assert items(api.get(records("imp_old"), token=api.su), "a") == ["kept"]
    assert [each["name"] for each in read(api, "imp_new").json["fields"]] == ["id", "c"]


def test_import_resolves_relations_in_any_order(api):
    done = imported(api, [
        {"id": "imp_child_id", "name": "imp_child", "type": "base", "fields": [field("relation", "r", collectionId="imp_parent_id")]},
        {"id": "imp_parent_id", "name": "imp_parent", "type": "base", "fields": [field("text", "a")]}])
    assert done.status == 204
    assert api.add("imp_child", {"r": api.add("imp_parent")["id"]})["r"]


@pytest.mark.parametrize("broken, reason", [
    ({"name": "imp_bad", "type": "base", "listRule": "nope = 1"}, 'Data validations failed for collection "imp_bad"'),
    ({"name": "imp_bad", "type": "view", "viewQuery": "select id from nope"}, 'Raw error:\n'),
])
def test_failed_import_changes_nothing(fresh, broken, reason):
    api = fresh()
    refused = imported(api, [{"name": "imp_good", "type": "base"}, broken])
    assert refused.status == 400 and refused.json["message"] == "Failed to import collections."
    error = refused.json["data"]["collections"]
    assert error["code"] == "validation_collections_import_failure" and re.search(reason, error["message"])
    assert not columns(api, "imp_good") and not columns(api, "imp_bad")
    assert api.db("select count(*) from _collections where name like 'imp_%'") == [(0,)]


def test_import_needs_collections(api):
    assert refusal(imported(api, [])) == (400, {"collections": "validation_required"})


def test_import_with_delete_missing_keeps_only_what_is_sent_and_the_system(fresh):
    api = fresh()
    create(api, name="dropped", fields=[field("text", "a")])
    kept = create(api, name="kept", fields=[field("text", "a"), field("text", "b")]).json
    done = imported(api, [{**kept, "fields": kept["fields"][:2]}], deleteMissing=True)
    assert done.status == 204
    names = {item["name"] for item in api.get(API, token=api.su).json["items"]}
    assert names == {"kept", "_mfas", "_otps", "_externalAuths", "_authOrigins", "_superusers"}
    assert set(columns(api, "kept")) == {"id", "a"} and not columns(api, "users")


# ---- system collections

@pytest.mark.parametrize("model, errors", [
    ({"name": "renamed"}, {"name": "validation_collection_system_name_change"}),
    ({"system": False}, {"system": "validation_collection_system_flag_change"}),
    ({"listRule": ""}, {"listRule": "validation_collection_system_rule_change"}),
    ({"authRule": "id != ''"}, {"authRule": "validation_collection_system_rule_change"}),
    ({"type": "base"}, {"type": "validation_collection_type_change"}),
])
def test_system_collections_are_guarded(api, model, errors):
    status, found = refusal(change(api, "_superusers", **model))
    assert status == 400 and errors.items() <= found.items()


def test_system_fields_are_not_removed(api):
    fields = read(api, "_mfas").json["fields"]
    assert refusal(change(api, "_mfas", fields=[each for each in fields if each["name"] != "method"])) == (400,
        {"fields": "validation_system_field_change"})


def test_unique_indexes_over_system_fields_are_kept(api):
    assert refusal(change(api, "_externalAuths", indexes=[])) == (400, {"indexes": "validation_invalid_unique_system_field_index"})


@pytest.mark.parametrize("name", ["_superusers", "_mfas", "_otps", "_externalAuths", "_authOrigins"])
def test_system_collections_are_not_deleted(api, name):
    assert api.delete(f"{API}/{name}", token=api.su).json == envelope(400, "Failed to delete collection.")


def test_system_collections_take_more_fields(api):
    before = read(api, "_superusers").json["fields"]
    after = change(api, "_superusers", fields=before + [field("text", "nick")])
    assert after.status == 200 and after.json["fields"][-1]["name"] == "nick"
    assert change(api, "_superusers", fields=before).status == 200


def test_secrets_are_never_shown(api):
    provider = {"name": "google", "clientId": "id", "clientSecret": "very-secret"}
    create(api, name="secretive", type="auth", oauth2={"enabled": True, "providers": [provider]}, authToken={"secret": "s" * 40, "duration": 100})
    for answer in (read(api, "secretive"), change(api, "secretive", listRule=""), api.get(API + "?perPage=500", token=api.su),
                   api.get(f"{API}/meta/scaffolds", token=api.su)):
        assert answer.status == 200
        assert "very-secret" not in answer.text and "s" * 40 not in answer.text and '"secret"' not in answer.text and '"clientSecret"' not in answer.text
    assert "very-secret" in api.db("select options from _collections where name = 'secretive'")[0][0]


def test_provider_keeps_its_secret_when_none_is_sent(api):
    create(api, name="provided", type="auth",
           oauth2={"enabled": True, "providers": [{"name": "google", "clientId": "a", "clientSecret": "first-secret"}]})
    after = change(api, "provided",
                   oauth2={"providers": [{"name": "github", "clientId": "b", "clientSecret": "other"}, {"name": "google", "clientId": "c"}]})
    assert after.status == 200 and [each["name"] for each in after.json["oauth2"]["providers"]] == ["github", "google"]
    assert "first-secret" in api.db("select options from _collections where name = 'provided'")[0][0]


def test_oauth2_providers_are_listed_with_logos(api):
    providers = api.get(f"{API}/meta/oauth2-providers", token=api.su).json
    assert [each["name"] for each in providers][:4] == ["apple", "google", "microsoft", "yandex"] and len(providers) >= 30
    assert all(each["displayName"] and each["logo"].lstrip().startswith("<svg") for each in providers)
