"""What a data directory holds: tables and rows of a fresh one, settings and their encryption, secrets, survival of restarts, foreign hands."""
import base64
import json
import os
import re
import sqlite3

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from helpers_answers import items
from helpers_answers import records

TEXT = ("TEXT", 1, "''", 0)
ID = ("TEXT", 1, "'r'||lower(hex(randomblob(7)))", 1)
NOW = ("TEXT", 1, "strftime('%Y-%m-%d %H:%M:%fZ')", 0)
BOOL = ("BOOLEAN", 1, "FALSE", 0)
AUTH = {"created": TEXT, "email": TEXT, "emailVisibility": BOOL, "id": ID, "password": TEXT, "tokenKey": TEXT, "updated": TEXT, "verified": BOOL}
OWNED = {"collectionRef": TEXT, "created": TEXT, "id": ID, "recordRef": TEXT, "updated": TEXT}
TABLES = {
    "_migrations": {"file": ("VARCHAR(255)", 1, None, 1), "applied": ("INTEGER", 1, None, 0)},
    "_params": {"id": ID, "value": ("JSON", 0, "NULL", 0), "created": NOW, "updated": NOW},
    "_collections": {
        "id": ID, "system": BOOL, "type": ("TEXT", 1, '"base"', 0), "name": ("TEXT", 1, None, 0), "fields": ("JSON", 1, '"[]"', 0),
        "indexes": ("JSON", 1, '"[]"', 0), "listRule": ("TEXT", 0, "NULL", 0), "viewRule": ("TEXT", 0, "NULL", 0),
        "createRule": ("TEXT", 0, "NULL", 0), "updateRule": ("TEXT", 0, "NULL", 0), "deleteRule": ("TEXT", 0, "NULL", 0),
        "options": ("JSON", 1, '"{}"', 0), "created": NOW, "updated": NOW},
    "_mfas": {**OWNED, "method": TEXT}, "_otps": {**OWNED, "password": TEXT, "sentTo": TEXT},
    "_externalAuths": {**OWNED, "provider": TEXT, "providerId": TEXT}, "_authOrigins": {**OWNED, "fingerprint": TEXT},
    "_superusers": AUTH, "users": {**AUTH, "avatar": TEXT, "name": TEXT},
}
INDEXES = {
    "idx__collections_type": ("_collections", 0, ["type"]), "idx_mfas_collectionRef_recordRef": ("_mfas", 0, ["collectionRef", "recordRef"]),
    "idx_otps_collectionRef_recordRef": ("_otps", 0, ["collectionRef", "recordRef"]),
    "idx_externalAuths_record_provider": ("_externalAuths", 1, ["collectionRef", "recordRef", "provider"]),
    "idx_externalAuths_collection_provider": ("_externalAuths", 1, ["collectionRef", "provider", "providerId"]),
    "idx_authOrigins_unique_pairs": ("_authOrigins", 1, ["collectionRef", "recordRef", "fingerprint"]),
    "idx_tokenKey_pbc_3142635823": ("_superusers", 1, ["tokenKey"]), "idx_email_pbc_3142635823": ("_superusers", 1, ["email"]),
    "idx_tokenKey__pb_users_auth_": ("users", 1, ["tokenKey"]), "idx_email__pb_users_auth_": ("users", 1, ["email"]),
}
MIGRATIONS = ["1640988000_aux_init.go", "1640988000_init.go", "1717233556_v0.23_migrate.go", "1717233557_v0.23_migrate2.go",
              "1717233558_v0.23_migrate3.go", "1717233559_v0.23_migrate4.go",
              "1763020353_update_default_auth_alert_templates.go", "1778828400_normalize_indexes.go"]
OWNER = "@request.auth.id != '' && recordRef = @request.auth.id && collectionRef = @request.auth.collectionId"
SELF = "id = @request.auth.id"
# name: (id, type, system, list, view, create, update, delete rule, names of the fields)
COLLECTIONS = {
    "_mfas": ("pbc_2279338944", "base", 1, OWNER, OWNER, None, None, None, "id collectionRef recordRef method created updated"),
    "_otps": ("pbc_1638494021", "base", 1, OWNER, OWNER, None, None, None, "id collectionRef recordRef password sentTo created updated"),
    "_externalAuths": ("pbc_2281828961", "base", 1, OWNER, OWNER, None, None, OWNER,
                       "id collectionRef recordRef provider providerId created updated"),
    "_authOrigins": ("pbc_4275539003", "base", 1, OWNER, OWNER, None, None, OWNER, "id collectionRef recordRef fingerprint created updated"),
    "_superusers": ("pbc_3142635823", "auth", 1, None, None, None, None, None, "id password tokenKey email emailVisibility verified created updated"),
    "users": ("_pb_users_auth_", "auth", 0, SELF, SELF, "", SELF, SELF,
              "id password tokenKey email emailVisibility verified name avatar created updated"),
}
SETTINGS = {
    "superuserIPs": [],
    "smtp": {"enabled": False, "port": 587, "host": "smtp.example.com", "username": "", "authMethod": "", "tls": False, "localName": ""},
    "backups": {"cron": "", "cronMaxKeep": 3,
                "s3": {"enabled": False, "bucket": "", "region": "", "endpoint": "", "accessKey": "", "forcePathStyle": False}},
    "s3": {"enabled": False, "bucket": "", "region": "", "endpoint": "", "accessKey": "", "forcePathStyle": False},
    "meta": {"accentColor": "#1055c9", "appName": "Acme", "appURL": "http://localhost:8090", "senderName": "Support",
             "senderAddress": "support@example.com", "hideControls": False},
    "rateLimits": {"rules": [{"label": "*:auth", "audience": "", "duration": 3, "maxRequests": 2},
                             {"label": "*:create", "audience": "", "duration": 5, "maxRequests": 20},
                             {"label": "/api/batch", "audience": "", "duration": 1, "maxRequests": 3},
                             {"label": "/api/", "audience": "", "duration": 10, "maxRequests": 300}], "excludedIPs": [], "enabled": False},
    "trustedProxy": {"headers": [], "useLeftmostIP": False}, "batch": {"enabled": False, "maxRequests": 50, "timeout": 3, "maxBodySize": 0},
    "logs": {"maxDataSize": 0, "maxDays": 5, "minLevel": 0, "logIP": True, "logAuthId": False},
}
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def api(server):
    return server


def columns(api, table, file="data.db"):
    return {name: (kind, not_null, default, key) for _, name, kind, not_null, default, key in api.db(f"PRAGMA table_info(`{table}`)", file=file)}


# ---- a fresh directory

def test_tables_of_a_fresh_directory(api):
    found = {name for (name,) in api.db("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")}
    assert found == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_columns_of_a_fresh_directory(api, table):
    assert columns(api, table) == TABLES[table]


@pytest.mark.parametrize("index", INDEXES)
def test_indexes_of_a_fresh_directory(api, index):
    [(table,)] = api.db("select tbl_name from sqlite_master where type = 'index' and name = ?", index)
    [unique] = [row[2] for row in api.db(f"PRAGMA index_list(`{table}`)") if row[1] == index]
    assert (table, unique, [row[2] for row in api.db(f"PRAGMA index_info(`{index}`)")]) == INDEXES[index]


def test_no_other_indexes(api):
    assert {name for (name,) in api.db("select name from sqlite_master where type = 'index' and sql is not null")} == set(INDEXES)


def test_addresses_are_unique_only_where_given(api):
    assert [("where `email` != ''" in sql.lower()) for (sql,) in api.db("select sql from sqlite_master where name like 'idx_email_%'")] == [True,
        True]


def test_history_of_migrations(api):
    rows = api.db("select file, applied from _migrations order by rowid")
    assert [file for file, _ in rows] == MIGRATIONS
    assert all(len(str(applied)) == 16 for _, applied in rows) and [applied for _, applied in rows] == sorted(applied for _, applied in rows)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_of_a_fresh_directory(api, name):
    row = api.db("select id, type, system, listRule, viewRule, createRule, updateRule, deleteRule, fields from _collections where name = ?", name)[0]
    fields = json.loads(row[-1])
    assert (*row[:-1], " ".join(field["name"] for field in fields)) == COLLECTIONS[name]
    assert all(list(field) == sorted(field) for field in fields)


def test_collections_are_stored_in_their_order(api):
    assert [name for (name,) in api.db("select name from _collections order by rowid")] == list(COLLECTIONS)


def test_options_of_auth_collections_hold_their_secrets(api):
    [(text,)] = api.db("select options from _collections where name = 'users'")
    options = json.loads(text)
    assert list(options) == ["authRule", "manageRule", "authAlert", "oauth2", "passwordAuth", "mfa", "otp", "authToken", "passwordResetToken",
                             "emailChangeToken", "verificationToken", "fileToken",
                             "verificationTemplate", "resetPasswordTemplate", "confirmEmailChangeTemplate"]
    secrets = [options[name]["secret"] for name in options if name.endswith("Token")]
    assert len(set(secrets)) == 5 and all(re.fullmatch("[A-Za-z0-9]{50}", secret) for secret in secrets)
    assert options["oauth2"]["mappedFields"] == {"id": "", "name": "name", "username": "", "avatarURL": "avatar"}
    assert api.db("select options from _collections where name = '_mfas'") == [("{}",)]


def test_log_database(api):
    default = lambda kind, text: (kind, 1, text, 0)
    assert columns(api, "_logs", "auxiliary.db") == {"id": ID, "level": default("INTEGER", "0"), "message": default("TEXT", '""'),
                                                     "data": default("JSON", '"{}"'), "created": NOW}
    assert {name for (name,) in api.db("select name from sqlite_master where type = 'index' and sql is not null",
                                       file="auxiliary.db")} == {"idx_logs_level", "idx_logs_message", "idx_logs_created_hour"}


def test_databases_use_a_write_ahead_log(api):
    assert api.db("PRAGMA journal_mode") == api.db("PRAGMA journal_mode", file="auxiliary.db") == [("wal",)]


def test_two_fresh_directories_share_no_secret(api, fresh):
    other = fresh(start=False, superuser=False)
    assert other.cli("superuser", "upsert", "x@example.com", "1234567890").returncode == 0
    mine, theirs = (set(re.findall('"secret":"([^"]+)"', each.db("select group_concat(options) from _collections")[0][0])) for each in (api, other))
    assert len(mine) == len(theirs) == 10 and not mine & theirs


# ---- settings

def test_default_settings(api):
    assert json.loads(api.db("select value from _params where id = 'settings'")[0][0]) == {
        **SETTINGS, "smtp": {**SETTINGS["smtp"], "password": ""}}
    answer = api.get("/api/settings", token=api.su)
    assert answer.json == SETTINGS and list(answer.json) == list(SETTINGS)


def test_changed_settings_are_merged_and_survive_a_restart(fresh):
    api = fresh()
    changed = api.settings(meta={"appName": "Renamed"}, smtp={"password": "mail-secret", "host": "mail.example.com"})
    assert changed == {**SETTINGS, "meta": {**SETTINGS["meta"], "appName": "Renamed"}, "smtp": {**SETTINGS["smtp"], "host": "mail.example.com"}}
    api.restart()
    assert api.get("/api/settings", token=api.su).json == changed
    stored = json.loads(api.db("select value from _params")[0][0])
    assert (stored["smtp"]["password"], stored["meta"]["appName"]) == ("mail-secret", "Renamed")


@pytest.mark.parametrize("change, path, code", [
    ({"meta": {"appName": ""}}, ["meta", "appName"], "validation_required"),
    ({"meta": {"appURL": "no url"}}, ["meta", "appURL"], "validation_is_url"),
    ({"meta": {"senderAddress": "bad"}}, ["meta", "senderAddress"], "validation_is_email"),
    ({"logs": {"maxDays": -1}}, ["logs", "maxDays"], "validation_min_greater_equal_than_required"),
    ({"superuserIPs": ["nonsense"]}, ["superuserIPs", "0"], "validation_invlaid_ip_or_subnet"),
    ({"backups": {"cron": "nonsense"}}, ["backups", "cron"], "validation_invalid_cron"),
    ({"s3": {"enabled": True}}, ["s3", "bucket"], "validation_required"),
    ({"rateLimits": {"rules": [{"label": "x"}]}}, ["rateLimits", "rules", "0", "duration"], "validation_required"),
    ({"smtp": {"authMethod": "X"}}, ["smtp", "authMethod"], "validation_in_invalid"),
])
def test_invalid_settings_are_refused(api, change, path, code):
    refused = api.patch("/api/settings", change, token=api.su)
    assert refused.status == 400 and refused.json["message"] == "An error occurred while saving the new settings."
    found = refused.json["data"]
    for part in path:
        found = found[part]
    assert found["code"] == code
    assert api.get("/api/settings", token=api.su).json == SETTINGS


def test_secrets_of_settings_are_never_shown(fresh):
    api = fresh()
    s3 = {"enabled": True, "bucket": "b", "region": "r", "endpoint": "http://127.0.0.1:1", "accessKey": "a", "secret": "s3-secret"}
    answers = [api.patch("/api/settings", {"smtp": {"password": "mail-secret"}, "s3": s3, "backups": {"s3": s3}}, token=api.su),
               api.get("/api/settings", token=api.su)]
    for answer in answers:
        assert answer.status == 200 and "mail-secret" not in answer.text and "s3-secret" not in answer.text and '"secret"' not in answer.text
    stored = json.loads(api.db("select value from _params")[0][0])
    assert (stored["smtp"]["password"], stored["s3"]["secret"], stored["backups"]["s3"]["secret"]) == ("mail-secret", "s3-secret", "s3-secret")
    assert api.settings(s3={"bucket": "other"}) and json.loads(api.db("select value from _params")[0][0])["s3"]["secret"] == "s3-secret"


def test_settings_are_for_superusers(api):
    assert api.get("/api/settings").status == 401 and api.patch("/api/settings", {}).status == 401


# ---- encryption

def test_settings_are_encrypted_with_the_key_of_the_environment(fresh):
    api = fresh("--encryptionEnv", "TEST_KEY", env={"TEST_KEY": KEY})
    api.settings(meta={"appName": "Hidden"})
    [(stored,)] = api.db("select value from _params")
    raw = base64.b64decode(stored, validate=True)
    assert json.loads(AESGCM(KEY.encode()).decrypt(raw[:12], raw[12:], None))["meta"]["appName"] == "Hidden"
    api.restart()
    assert api.get("/api/settings", token=api.su).json["meta"]["appName"] == "Hidden"


@pytest.mark.parametrize("args, env, message", [
    ((), {}, 'invalid settings db data or missing encryption key ""'),
    (("--encryptionEnv", "TEST_KEY"), {"TEST_KEY": KEY[::-1]}, "cipher: message authentication failed"),
    (("--encryptionEnv=TEST_KEY",), {"TEST_KEY": "short"}, "crypto/aes: invalid key size 5"),
])
def test_encrypted_settings_need_the_right_key(fresh, args, env, message):
    api = fresh("--encryptionEnv", "TEST_KEY", env={"TEST_KEY": KEY})
    api.settings(meta={"appName": "Hidden"})
    api.stop()
    api.env = {**{name: value for name, value in api.env.items() if name != "TEST_KEY"}, **env}
    done = api.cli("serve", "--http", "127.0.0.1:0", *args)
    assert done.returncode == 1 and message in done.stderr


def test_plain_settings_become_encrypted_at_the_next_save(fresh):
    api = fresh()
    assert api.stop() == 0
    api.args, api.env = ("--encryptionEnv", "TEST_KEY"), {**api.env, "TEST_KEY": KEY}
    api.start()
    assert api.get("/api/settings", token=api.su).json == SETTINGS
    api.settings(meta={"appName": "Now"})
    assert b"Now" not in base64.b64decode(api.db("select value from _params")[0][0])


# ---- life

def test_everything_survives_a_restart(fresh):
    api = fresh()
    api.make("kept", ["title", {"name": "file", "type": "file"}], indexes=["create unique index idx_kept on kept (title)"],
             listRule="title != 'hidden'")
    record = api.add("kept", form={"title": "x", "file": ("f.txt", b"content")})
    user = api.add_user("kept@example.com")
    token, model = api.login("users", "kept@example.com"), api.get("/api/collections/kept", token=api.su).json
    api.restart()
    assert api.get(records("kept", record["id"])).json == record
    assert api.get(f"/api/files/kept/{record['id']}/{record['file']}").body == b"content"
    assert api.get("/api/collections/kept", token=api.su).json == model
    assert api.get(records("users", user["id"]), token=token).json["email"] == "kept@example.com"
    assert api.post(records("kept"), {"title": "x"}).json["data"]["title"]["code"] == "validation_not_unique"


def test_layout_of_the_directory(fresh):
    api = fresh()
    api.make("photos", [{"name": "file", "type": "file"}])
    record = api.add("photos", form={"file": ("Photo.txt", b"content")})
    folder = os.path.join(api.dir, "storage", record["collectionId"], record["id"])
    assert set(os.listdir(folder)) == {record["file"], record["file"] + ".attrs"}
    with open(os.path.join(folder, record["file"] + ".attrs")) as attrs:
        kept = json.load(attrs)
    assert kept["user.content_type"].startswith("text/plain") and kept["md5"] == "mgNkuembtIDdJeHwKEyFVQ=="
    assert {"data.db", "auxiliary.db", "storage"} <= set(os.listdir(api.dir))


def test_logs_database_is_made_again_when_it_is_gone(fresh):
    api = fresh()
    api.stop()
    os.remove(os.path.join(api.dir, "auxiliary.db"))
    api.start()
    assert columns(api, "_logs", "auxiliary.db")


# ---- rows written by other hands

@pytest.fixture(scope="module")
def odd(api):
    """A collection into whose table rows are written directly, while the server is running."""
    api.make("odd", ["t", "n:number", "b:bool", "d:date", "j:json", "g:geoPoint", {"name": "s", "type": "select", "values": ["a", "b"]}, {"name": "m", "type": "select", "values": ["a", "b"], "maxSelect": 2}])
    return api


@pytest.mark.parametrize("column, stored, shown", [
    ("t", 5, "5"), ("t", 1.5, "1.5"), ("n", "abc", 0), ("n", "7.5", 7.5), ("b", "yes", False), ("b", "true", True), ("b", 2, False), ("b", "1", True),
    ("d", "2024-01-02T03:04:05+02:00", "2024-01-02 01:04:05.000Z"), ("d", "2024-01-02", "2024-01-02 00:00:00.000Z"), ("d", "garbage", ""),
    ("m", "a", ["a"]), ("m", "", []), ("m", '["a", "a","b"]', ["a", "b"]), ("m", "[1,2]", ["[1,2]"]),
    ("s", '["a","b"]', "b"), ("s", "unknown", "unknown"), ("j", "not json", "not json"), ("j", "", ""), ("j", 5, 5),
    ("j", '{"b": 1, "a": 2}', {"b": 1, "a": 2}), ("g", "", {"lon": 0, "lat": 0}), ("g", '{"lat":1}', {"lon": 0, "lat": 1}),
])
def test_odd_values_are_read_as_their_type(odd, column, stored, shown):
    with sqlite3.connect(os.path.join(odd.dir, "data.db"), timeout=30) as db:
        db.execute("delete from odd")
        db.execute(f"insert into odd ({column}) values (?)", [stored])
    db.close()
    [record] = odd.get(records("odd")).json["items"]
    assert record[column] == shown and re.fullmatch("r[0-9a-f]{14}", record["id"])


def test_rows_written_by_other_hands_are_seen_at_once(odd):
    assert items(odd.get(records("odd"), params={"filter": "t = 'outside'"})) == []
    with sqlite3.connect(os.path.join(odd.dir, "data.db"), timeout=30) as db:
        db.execute("insert into odd (id, t) values ('Weird ID.1', 'outside')")
    db.close()
    listed = odd.get(records("odd"), params={"filter": "t = 'outside'"})
    assert items(listed) == ["Weird ID.1"] and listed.json["totalItems"] == 1
