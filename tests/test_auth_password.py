"""Password login, tokens and what kills them, refresh, impersonation, password rules, guards of superusers."""
import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest

from helpers_answers import NOT_FOUND
from helpers_answers import envelope
from helpers_answers import records
from helpers_answers import refusal

AUTH_ONLY = "The request requires valid record authorization token."
PASSWORD = "1234567890"
ANN = "ann@example.com"


@pytest.fixture(scope="module")
def api(server):
    """Auth collections: users (with Ann), nicked (logs in by nick or e-mail), closed (nobody), gated (verified only), silent (no passwords)."""
    server.add_user(ANN, name="Ann")
    unique = "CREATE UNIQUE INDEX idx_{0}_{1} ON {0} ({1}{2})"
    server.make("nicked", ["nick", "code", "plain"], type="auth", passwordAuth={"enabled": True, "identityFields": ["nick", "code", "email"]},
                indexes=[unique.format("nicked", "nick", ""), unique.format("nicked", "code", " COLLATE NOCASE")])
    server.add_user(ANN, "nicked", nick="annie", code="Abc")
    server.add_user("bob@example.com", "nicked", nick=ANN, code="xyz", password="bob-password")
    server.make("closed", type="auth", authRule=None)
    server.make("gated", type="auth", authRule="verified = true")
    server.make("silent", type="auth", passwordAuth={"enabled": False, "identityFields": []})
    for name in ("closed", "gated", "silent"):
        server.add_user(ANN, name)
    server.make("base")
    return server


def login(api, collection, identity=ANN, password=PASSWORD, **more):
    return api.post(f"/api/collections/{collection}/auth-with-password", {"identity": identity, "password": password, **more})


def refresh(api, token, collection="users"):
    return api.post(f"/api/collections/{collection}/auth-refresh", token=token)


def user_of(api, collection="users", email=ANN):
    return api.get(records(collection), params={"filter": f"email = '{email}'"}, token=api.su).json["items"][0]


def key_of(api, collection="users", email=ANN, token="authToken"):
    """The signing key of a record's tokens: its own key followed by its collection's secret."""
    [(own,)] = api.db(f"select tokenKey from {collection} where email = ?", email)
    [(options,)] = api.db("select options from _collections where name = ?", collection)
    return own + json.loads(options)[token]["secret"]


def unsigned(data):
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def signed(header, claims, key, digest=hashlib.sha256):
    text = f"{unsigned(header)}.{unsigned(claims)}"
    return text + "." + base64.urlsafe_b64encode(hmac.new(key.encode(), text.encode(), digest).digest()).rstrip(b"=").decode()


# ---- login

def test_login_answers_with_the_record_and_a_token(api):
    answer = login(api, "users")
    assert answer.status == 200 and list(answer.json) == ["record", "token"]
    record = answer.json["record"]
    assert (record["email"], record["name"], record["collectionName"], record["verified"]) == (ANN, "Ann", "users", False)
    assert {"password", "tokenKey"}.isdisjoint(record)
    assert refresh(api, answer.json["token"]).json["record"] == record


@pytest.mark.parametrize("body, status, errors, message", [
    ({}, 400, {"identity": "validation_required", "password": "validation_required"}, "An error occurred while validating the submitted data."),
    ({"identity": ANN}, 400, {"password": "validation_required"}, "An error occurred while validating the submitted data."),
    ({"identity": "a" * 256, "password": "b" * 256}, 400,
     {"identity": "validation_length_out_of_range", "password": "validation_length_out_of_range"}, None),
    ({"identity": ANN, "password": PASSWORD, "identityField": "name"}, 400, {"identityField": "validation_in_invalid"}, None),
    ({"identity": ANN, "password": "wrong"}, 400, {}, "Failed to authenticate."),
    ({"identity": "nobody@example.com", "password": PASSWORD}, 400, {}, "Failed to authenticate."),
    ({"identity": ANN.upper(), "password": PASSWORD}, 400, {}, "Failed to authenticate."),
    ({"identity": ANN, "password": PASSWORD.upper() + " "}, 400, {}, "Failed to authenticate."),
    ({"identity": 5, "password": PASSWORD}, 400, {}, "An error occurred while loading the submitted data."),
    ({"identity": "Ann", "password": PASSWORD}, 400, {}, "Failed to authenticate."),
    ({"identity": "' OR 1=1 --", "password": PASSWORD}, 400, {}, "Failed to authenticate."),
])
def test_refused_logins(api, body, status, errors, message):
    refused = api.post("/api/collections/users/auth-with-password", body)
    assert refusal(refused) == (status, errors)
    assert message is None or refused.json["message"] == message


@pytest.mark.parametrize("collection, status, message", [
    ("closed", 403, "The request doesn't satisfy the collection requirements to authenticate."),
    ("gated", 403, "The request doesn't satisfy the collection requirements to authenticate."),
    ("silent", 403, "The collection is not configured to allow password authentication."),
    ("base", 404, "Missing or invalid auth collection context."),
    ("nope", 404, "Missing or invalid collection context."),
])
def test_collections_that_refuse_everybody(api, collection, status, message):
    assert login(api, collection).json == envelope(status, message)


def test_auth_rule_is_checked_after_the_password(api):
    assert login(api, "gated", password="wrong").json["message"] == "Failed to authenticate."
    api.patch(records("gated", user_of(api, "gated")["id"]), {"verified": True}, token=api.su)
    assert login(api, "gated").status == 200


@pytest.mark.parametrize("identity, password, field, found", [
    ("annie", PASSWORD, None, "annie"),
    ("ANNIE", PASSWORD, None, None),                       # identities are compared exactly ...
    ("ABC", PASSWORD, None, "annie"),                      # ... unless their index says NOCASE
    ("abc", PASSWORD, "code", "annie"),
    (ANN, PASSWORD, None, "annie"),                        # the e-mail comes first
    (ANN, "bob-password", None, None),                     # no other field is tried after a hit
    (ANN, "bob-password", "nick", ANN),
    ("annie", PASSWORD, "email", None),
    ("annie", PASSWORD, "nick", "annie"),
    ("xyz", "bob-password", None, ANN),
    ("", PASSWORD, None, None),
])
def test_identity_fields(api, identity, password, field, found):
    answer = login(api, "nicked", identity, password, **({"identityField": field} if field else {}))
    assert answer.status == (200 if found else 400)
    assert not found or answer.json["record"]["nick"] == found


def test_login_takes_expand_fields_and_forms(api):
    answer = api.post("/api/collections/users/auth-with-password?fields=token,record.email", urlenc={"identity": ANN, "password": PASSWORD})
    assert answer.json == {"token": answer.json["token"], "record": {"email": ANN}}
    answer = api.post("/api/collections/users/auth-with-password?fields=record.email", form={"identity": ANN, "password": "s3cret-text"})
    assert answer.status == 400


def test_keys_of_the_login_form_match_in_any_case(api):
    assert api.post("/api/collections/users/auth-with-password", {"IDENTITY": ANN, "Password": PASSWORD}).status == 200


def test_auth_methods(api):
    methods = api.get("/api/collections/nicked/auth-methods").json
    assert methods == {"password": {"identityFields": ["nick", "code", "email"], "enabled": True}, "oauth2": {"providers": [], "enabled": False},
                       "mfa": {"enabled": False, "duration": 0}, "otp": {"enabled": False, "duration": 0}, "authProviders": [],
                       "usernamePassword": False, "emailPassword": True}
    assert api.get("/api/collections/silent/auth-methods").json["password"] == {"identityFields": [], "enabled": False}
    assert api.get("/api/collections/base/auth-methods").json == envelope(404, "Missing or invalid auth collection context.")


# ---- tokens

def test_token_is_hs256_with_known_claims_and_key(api):
    before = int(time.time())
    token = login(api, "users").json["token"]
    assert base64.urlsafe_b64decode(token.split(".")[0] + "==") == b'{"alg":"HS256","typ":"JWT"}'
    claims = jwt.decode(token, key_of(api), algorithms=["HS256"])
    exp = claims.pop("exp")
    assert before + 432000 <= exp <= int(time.time()) + 432000
    assert claims == {"collectionId": "_pb_users_auth_", "id": user_of(api)["id"], "refreshable": True, "type": "auth"}


def test_superuser_token_lasts_a_day(api):
    claims = jwt.decode(api.su, options={"verify_signature": False})
    assert 86300 < claims["exp"] - time.time() <= 86400 and claims["collectionId"] == "pbc_3142635823"


@pytest.mark.parametrize("header, changes, accepted", [
    ({"alg": "HS256", "typ": "JWT"}, {}, True),
    ({"alg": "HS256"}, {}, True),
    ({"alg": "HS256", "typ": "JWT"}, {"exp": None}, True),                       # never expires
    ({"alg": "HS256", "typ": "JWT"}, {"exp": time.time() + 1000.5}, True),
    ({"alg": "HS256", "typ": "JWT"}, {"collectionId": "users"}, True),
    ({"alg": "none"}, {}, False),
    ({"alg": "None"}, {}, False),
    ({"typ": "JWT"}, {}, False),
    ({"alg": "HS512", "typ": "JWT"}, {}, False),
    ({"alg": "RS256", "typ": "JWT"}, {}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) - 1}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"exp": "9999999999"}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"nbf": int(time.time()) + 1000}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"iat": int(time.time()) + 1000}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"type": "file"}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"type": None}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"id": "missing00000000"}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"id": None}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"collectionId": "pbc_3142635823"}, False),
    ({"alg": "HS256", "typ": "JWT"}, {"collectionId": "nope"}, False),
])
def test_crafted_tokens(api, header, changes, accepted):
    claims = {"collectionId": "_pb_users_auth_", "exp": int(time.time()) + 1000, "id": user_of(api)["id"], "refreshable": True, "type": "auth",
              **changes}
    digest = hashlib.sha512 if header.get("alg") == "HS512" else hashlib.sha256
    token = signed(header, {name: value for name, value in claims.items() if value is not None}, key_of(api), digest)
    assert refresh(api, token).status == (200 if accepted else 401)


@pytest.mark.parametrize("spoil", [
    lambda token: token.rsplit(".", 1)[0] + ".",                    # no signature
    lambda token: unsigned({"alg": "none", "typ": "JWT"}) + "." + token.split(".")[1] + ".",
    lambda token: token[:-2] + ("AA" if token[-2:] != "AA" else "BA"),
    lambda token: token + "=",
    lambda token: token.split(".")[1],
    lambda token: token + ".x",
    lambda token: "." + token,
    lambda token: "x" * 100_000,
])
def test_spoiled_tokens_are_not_accepted(api, spoil):
    token = login(api, "users").json["token"]
    assert refresh(api, token).status == 200
    assert refresh(api, spoil(token)).json == envelope(401, AUTH_ONLY)


@pytest.mark.parametrize("wrong_key", [
    lambda api: key_of(api, token="fileToken"), lambda api: key_of(api, "nicked"), lambda api: key_of(api, "_superusers", "root@example.com"),
    lambda api: "",
])
def test_tokens_signed_with_another_key_are_not_accepted(api, wrong_key):
    claims = {"collectionId": "_pb_users_auth_", "exp": int(time.time()) + 1000, "id": user_of(api)["id"], "refreshable": True, "type": "auth"}
    assert refresh(api, signed({"alg": "HS256", "typ": "JWT"}, claims, wrong_key(api))).status == 401


def test_tokens_of_one_purpose_serve_no_other(api):
    token = login(api, "users").json["token"]
    file_token = api.post("/api/files/token", token=token).json["token"]
    claims = jwt.decode(file_token, key_of(api, token="fileToken"), algorithms=["HS256"])
    assert (claims["type"], claims["id"], set(claims)) == ("file", user_of(api)["id"], {"collectionId", "exp", "id", "type"})
    assert refresh(api, file_token).status == 401
    assert api.post("/api/files/token").json == envelope(401, AUTH_ONLY)


# ---- refresh and impersonation

def test_refresh_needs_a_token_of_the_same_collection(api):
    token = login(api, "users").json["token"]
    assert refresh(api, token).status == 200
    assert refresh(api, None).json == envelope(401, AUTH_ONLY)
    assert refresh(api, token, "nicked").json == envelope(403, "The request requires auth record from users collection.")
    assert refresh(api, api.su).status == 403


def test_refresh_renews_and_the_old_token_stays_valid(api):
    claims = {"collectionId": "_pb_users_auth_", "exp": int(time.time()) + 1000, "id": user_of(api)["id"], "refreshable": True, "type": "auth"}
    old = signed({"alg": "HS256", "typ": "JWT"}, claims, key_of(api))
    new = refresh(api, old).json["token"]
    assert jwt.decode(new, key_of(api), algorithms=["HS256"])["exp"] > claims["exp"]
    assert refresh(api, old).status == refresh(api, new).status == 200


def test_impersonated_token_cannot_be_prolonged(api):
    path = f"/api/collections/users/impersonate/{user_of(api)['id']}"
    answer = api.post(path, {"duration": 100}, token=api.su)
    assert answer.status == 200 and answer.json["record"]["email"] == ANN
    token = answer.json["token"]
    claims = jwt.decode(token, key_of(api), algorithms=["HS256"])
    assert claims["refreshable"] is False and 0 < claims["exp"] - time.time() <= 101
    assert refresh(api, token).json["token"] == token


@pytest.mark.parametrize("who, body, status", [
    ("guest", {}, 401), ("ann", {}, 403), ("root", {"duration": -1}, 400), ("root", {"duration": "x"}, 400), ("root", {"duration": 0}, 200),
    ("root", None, 200),
])
def test_impersonate_is_for_superusers(api, who, body, status):
    token = {"guest": None, "ann": login(api, "users").json["token"], "root": api.su}[who]
    assert api.post(f"/api/collections/users/impersonate/{user_of(api)['id']}", body, token=token).status == status


def test_answers_show_the_record_as_its_owner_sees_it_whoever_asks(api):
    peer = user_of(api)["id"]
    api.make("owned", [{"name": "secret", "type": "text", "hidden": True}, {"name": "peer", "type": "relation", "collectionId": "_pb_users_auth_", "maxSelect": 1}],
             type="auth")
    made = api.add_user(ANN, "owned", secret="s", peer=peer)
    own = api.post("/api/collections/owned/auth-with-password?expand=peer", {"identity": ANN, "password": PASSWORD}).json["record"]
    assert "secret" in made and "secret" not in own and own["expand"] == {}
    asked = api.post("/api/collections/owned/auth-with-password?expand=peer", {"identity": ANN, "password": PASSWORD}, token=api.su)
    assert asked.json["record"] == own
    assert api.post(f"/api/collections/owned/impersonate/{made['id']}?expand=peer", {}, token=api.su).json["record"] == own


def test_of_several_form_values_the_first_counts(api):
    body = f"identity={ANN}&password={PASSWORD}&identity=other"
    answer = api.post("/api/collections/users/auth-with-password", body=body.encode(), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 200


def test_impersonate_unknown_records(api):
    assert api.post("/api/collections/users/impersonate/missing", token=api.su).json == envelope(404, NOT_FOUND)
    assert api.post("/api/collections/base/impersonate/missing", token=api.su).json == envelope(404, "Missing or invalid auth collection context.")


def test_impersonation_passes_the_auth_rule(api):
    assert api.post(f"/api/collections/closed/impersonate/{user_of(api, 'closed')['id']}", token=api.su).status == 200


# ---- what kills tokens

@pytest.mark.parametrize("change, survives", [
    ({"name": "New"}, True),
    ({"emailVisibility": True}, True),
    ({"verified": True}, True),
    ({"password": "another-one", "passwordConfirm": "another-one"}, False),
    ({"password": PASSWORD, "passwordConfirm": PASSWORD}, False),
    ({"email": "changed@example.com"}, False),
    ({"tokenKey": "k" * 30}, False),
    ({"tokenKey:autogenerate": ""}, False),
])
def test_tokens_die_with_password_address_and_key(api, change, survives):
    user = api.add_user("mortal@example.com")
    token = api.login("users", "mortal@example.com")
    assert api.patch(records("users", user["id"]), change, token=api.su).status == 200
    assert refresh(api, token).status == (200 if survives else 401)
    assert api.delete(records("users", user["id"]), token=api.su).status == 204


def test_tokens_die_with_their_record(api):
    user = api.add_user("mortal@example.com")
    token = api.login("users", "mortal@example.com")
    api.delete(records("users", user["id"]), token=api.su)
    assert refresh(api, token).status == 401


@pytest.mark.parametrize("change, survives", [
    ({"authRule": "email != 'x'"}, False), ({"authToken": {"secret": "s" * 30}}, False), ({"authToken": {"duration": 100}}, True),
    ({"authRule": ""}, True),
])
def test_tokens_die_with_a_new_auth_rule_or_secret(api, change, survives):
    name = f"rotated_{hashlib.md5(str(change).encode()).hexdigest()[:6]}"
    api.make(name, type="auth")
    api.add_user(ANN, name)
    token = api.login(name, ANN)
    assert api.patch(f"/api/collections/{name}", change, token=api.su).status == 200
    assert refresh(api, token, name).status == (200 if survives else 401)


# ---- passwords

@pytest.mark.parametrize("password, confirm, errors", [
    (None, None, {"password": "validation_required", "passwordConfirm": "validation_required"}),
    (PASSWORD, None, {"passwordConfirm": "validation_required"}),
    (PASSWORD, "different", {"passwordConfirm": "validation_values_mismatch"}),
    ("short12", "short12", {"password": "validation_min_text_constraint"}),
    ("x" * 72, "x" * 72, {"password": "validation_max_text_constraint"}),
    ("é" * 37, "é" * 37, {"password": "validation_invalid_value"}),
])
def test_refused_passwords(api, password, confirm, errors):
    body = {name: value for name, value in (("password", password), ("passwordConfirm", confirm)) if value is not None}
    assert refusal(api.post(records("users"), {"email": "new@example.com", **body}, token=api.su)) == (400, errors)


@pytest.mark.parametrize("password", ["12345678", "x" * 71, "pässwörd ☃", "é" * 36])
def test_accepted_passwords_log_in_exactly(api, password):
    user = api.add_user("typed@example.com", password=password)
    assert login(api, "users", "typed@example.com", password).status == 200
    assert login(api, "users", "typed@example.com", password[:-1]).status == 400
    api.delete(records("users", user["id"]), token=api.su)


def test_password_is_stored_as_bcrypt_hash_only(api):
    [(stored,)] = api.db("select password from users where email = ?", ANN)
    assert stored.startswith("$2") and "$10$" in stored and len(stored) == 60


@pytest.mark.parametrize("change, errors", [
    ({"password": "new-password"}, {"oldPassword": "validation_required", "passwordConfirm": "validation_required"}),
    ({"password": "new-password", "passwordConfirm": "new-password"}, {"oldPassword": "validation_required"}),
    ({"password": "new-password", "passwordConfirm": "new-password", "oldPassword": "wrong"}, {"oldPassword": "validation_invalid_old_password"}),
    ({"oldPassword": PASSWORD}, {"password": "validation_required", "passwordConfirm": "validation_required"}),
    ({"email": "other@example.com"}, {"email": "validation_values_mismatch"}),
    ({"verified": True}, {"verified": "validation_values_mismatch"}),
])
def test_owner_changes_neither_password_nor_address_freely(api, change, errors):
    user = user_of(api)
    assert refusal(api.patch(records("users", user["id"]), change, token=api.login("users", ANN))) == (400, errors)
    assert login(api, "users").status == 200


def test_owner_changes_the_password_with_the_old_one(api):
    user = api.add_user("owner@example.com")
    token = api.login("users", "owner@example.com")
    body = {"oldPassword": PASSWORD, "password": "new-password", "passwordConfirm": "new-password"}
    assert api.patch(records("users", user["id"]), body, token=token).status == 200
    assert login(api, "users", "owner@example.com").status == 400
    assert login(api, "users", "owner@example.com", "new-password").status == 200


def test_key_of_a_record_is_not_set_by_its_owner(api):
    before = key_of(api)
    assert api.patch(records("users", user_of(api)["id"]), {"tokenKey": "k" * 40}, token=api.login("users", ANN)).status == 200
    assert key_of(api) == before


@pytest.mark.parametrize("change, errors", [
    ({"tokenKey": "short"}, {"tokenKey": "validation_min_text_constraint"}), ({"tokenKey": "k" * 61}, {"tokenKey": "validation_max_text_constraint"}),
    ({"tokenKey": ""}, {"tokenKey": "validation_required"}), ({"password": ""}, {"password": "validation_required"}),
    ({"email": "bad"}, {"email": "validation_is_email"}),
    ({"email": ""}, {"email": "validation_required"}),
])
def test_superusers_obey_field_validation_too(api, change, errors):
    assert refusal(api.patch(records("users", user_of(api)["id"]), change, token=api.su)) == (400, errors)


def test_guests_sign_up_unverified(api):
    body = {"email": "guest@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD}
    assert refusal(api.post(records("users"), {**body, "verified": True})) == (400, {"verified": "validation_values_mismatch"})
    created = api.post(records("users"), body)
    assert created.status == 200 and created.json["verified"] is False and "email" not in created.json


def test_address_and_id_are_unique(api):
    body = {"email": ANN, "password": PASSWORD, "passwordConfirm": PASSWORD}
    assert refusal(api.post(records("users"), body, token=api.su)) == (400, {"email": "validation_not_unique"})
    body = {"email": "x@example.com", "id": user_of(api, "nicked")["id"], "password": PASSWORD, "passwordConfirm": PASSWORD}
    assert refusal(api.post(records("users"), body, token=api.su)) == (400, {"id": "validation_invalid_auth_id"})


# ---- superusers

def test_superusers_are_seen_and_made_by_superusers_only(api):
    body = {"email": "evil@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD}
    for token in (None, api.login("users", ANN)):
        assert api.get(records("_superusers"), token=token).status == 403
        assert api.post(records("_superusers"), body, token=token).status == 403
    assert api.db("select count(*) from _superusers where email = 'evil@example.com'") == [(0,)]


def test_last_superuser_stays(fresh):
    api = fresh()
    first = user_of(api, "_superusers", "root@example.com")["id"]
    kept = api.delete(records("_superusers", first), token=api.su)
    assert kept.json == envelope(400, "You can't delete the only existing superuser.")
    second = api.add_user("second@example.com", "_superusers", verified=False)
    assert second["verified"] is True
    assert api.delete(records("_superusers", second["id"]), token=api.su).status == 204


def test_superusers_log_in_from_listed_addresses_only(fresh):
    api = fresh()
    token = api.su
    api.settings(superuserIPs=["10.0.0.0/8"])
    assert api.get("/api/settings", token=token).status == api.get("/api/health", token=token).status == 403
    assert login(api, "_superusers", "root@example.com").status == 403
    assert login(api, "_superusers", "root@example.com", "wrong").json == envelope(400, "Failed to authenticate.")
    assert api.get("/api/health").status == 200
    done = api.cli("superuser", "ips")
    assert (done.returncode, done.stdout) == (0, "Successfully cleared SuperuserIPs setting!\n")


def test_bad_json_is_a_loading_error(api):
    refused = api.post("/api/collections/users/auth-with-password", body="{", headers={"Content-Type": "application/json"})
    assert refused.json == envelope(400, "An error occurred while loading the submitted data.")
