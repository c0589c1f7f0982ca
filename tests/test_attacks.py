"""Attacks on identities and the answer that each one gets. Every row reads as a sentence:

    python tests/test_attacks.py        prints the table
"""
import base64
import hashlib
import hmac
import itertools
import json
import re
import select
import socket
import time
from types import SimpleNamespace

import jwt
import pytest

import kit
from helpers_answers import records
from helpers_beyond import beyond
from helpers_crowd import salvo
from unit import pocketbase

PASSWORD = "1234567890"
ATTACKS = {}    # topic -> its rows: (sentence, answer, function that attacks and returns what was answered, marks)
_numbers = itertools.count(1)


def attack(topic, sentence, answer, marks=()):
    """Registers the function below as one row; it returns an answer, several, or a text."""
    def register(function):
        ATTACKS.setdefault(topic, []).append((sentence, answer, function, marks))
        return function
    return register


def rows(topic):
    return [pytest.param(function, answer, id=f"{sentence} -> {answer}", marks=marks) for sentence, answer, function, marks in ATTACKS[topic]]


def told(result):
    """What was answered, as the table has it: "401", "200 429", or the text itself."""
    if isinstance(result, str):
        return result
    return " ".join(str(answer.status) for answer in result) if isinstance(result, list) else str(result.status)


# ---- means

def new_user(api, collection="users", **fields):
    return api.add_user(f"person{next(_numbers)}@example.com", collection, **fields)


def login(api, email, password=PASSWORD, collection="users", **options):
    return api.post(f"/api/collections/{collection}/auth-with-password", {"identity": email, "password": password}, **options)


def refresh(api, token, collection="users"):
    return api.post(f"/api/collections/{collection}/auth-refresh", token=token)


def key_of(api, user, option="authToken"):
    """The signing key of a record's tokens."""
    [(own,)] = api.db(f"select tokenKey from {user['collectionName']} where id = ?", user["id"])
    [(options,)] = api.db("select options from _collections where name = ?", user["collectionName"])
    return own + json.loads(options)[option]["secret"]


def part(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header, claims, key, digest=hashlib.sha256):
    text = f"{part(header)}.{part(claims)}"
    return text + "." + part(hmac.new(key if isinstance(key, bytes) else key.encode(), text.encode(), digest).digest())


def claims_of(user, kind="auth", **more):
    return {"collectionId": user["collectionId"], "exp": int(time.time()) + 600, "id": user["id"], "refreshable": True, "type": kind, **more}


@pytest.fixture(scope="module")
def api(server, mailbox):
    mailbox.serve(server)
    server.settings(batch={"enabled": True})
    server.make("secrets", ["text", {"name": "doc", "type": "file", "maxSelect": 1, "protected": True}], listRule="@request.auth.id != ''", viewRule="@request.auth.id != ''")
    server.make("coded", type="auth", otp={"enabled": True, "duration": 180, "length": 8})
    return server


# ---- tokens: everything but the trick is right, key included

HS256 = {"alg": "HS256", "typ": "JWT"}


def forged(sentence, header=HS256, digest=hashlib.sha256, key=None, answer="401", marks=(), **claims):
    """A row: a token of a real user that is right but for what is given here."""
    @attack("tokens", sentence, answer, marks)
    def attempt(api):
        user = new_user(api)
        return refresh(api, signed(header, claims_of(user, **claims), key_of(api, user) if key is None else key, digest))


forged("a token that is right in everything is presented", answer="200")
forged("a token says alg none", {"alg": "none", "typ": "JWT"})
forged("a token says alg nOnE", {"alg": "nOnE", "typ": "JWT"})
forged("a token says no alg", {"typ": "JWT"})
forged("a token says alg HS512 and is signed so", {"alg": "HS512"}, hashlib.sha512)
forged("a token says alg RS256 and is signed as HS256", {"alg": "RS256"})
forged("a token's alg is a list", {"alg": ["HS256"]})
forged("a token is signed with an empty key", key="")
forged("a token's key id points to an empty file", {**HS256, "kid": "../../../../dev/null"}, key="")
forged("a token brings its own key", {**HS256, "jwk": {"kty": "oct", "k": part(b"mine")}}, key="mine")
forged("a token says where its key is", {**HS256, "jku": "http://127.0.0.1:1/jwks", "x5u": "http://127.0.0.1:1/x"}, key="mine")
forged("a token demands an extension that nobody knows", {**HS256, "crit": ["admin"], "admin": True}, marks=beyond)
forged("a token has expired a second ago", exp=int(time.time()) - 1)
forged("a token expires at a text", exp="9999999999")
forged("a token expires at true", exp=True)
forged("a token expires at NaN", exp=float("nan"))
forged("a token is valid in the future only", nbf=int(time.time()) + 600)
forged("a token was issued in the future", iat=int(time.time()) + 600)
forged("a token's type is a list", type=["auth"])
forged("a token's id is SQL", id="' OR 1=1 --")
forged("a token's id is a list", id=["x"])
forged("a token's collection is SQL", collectionId="_superusers' --")
forged("a user's token says that it is a superuser's", collectionId="pbc_3142635823")
forged("a user's token names a base collection", collectionId="secrets")


@attack("tokens", "the id in a token is changed to another user's", "401")
def _(api):
    token, victim = api.login("users", new_user(api)["email"]), new_user(api)
    head, _, signature = token.split(".")
    return refresh(api, ".".join((head, part(claims_of(victim)), signature)))


@attack("tokens", "the signature of one token is put on another", "401")
def _(api):
    one, two = (api.login("users", new_user(api)["email"]) for _ in range(2))
    return refresh(api, one.rpartition(".")[0] + "." + two.rpartition(".")[2])


@attack("tokens", "a user signs a superuser's claims with the own key", "401")
def _(api):
    user = new_user(api)
    root = api.get(records("_superusers"), token=api.su).json["items"][0]
    return refresh(api, signed(HS256, claims_of(root), key_of(api, user)), "_superusers")


@attack("tokens", "a token of half a megabyte is presented", "no 200, and the server lives")
def _(api):
    answer = api.raw(b"GET /api/settings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + b"x" * 500_000 + b"\r\n\r\n")
    alive = api.get("/api/health").status == 200
    return "no 200, and the server lives" if alive and not answer.startswith(b"HTTP/1.1 200") else repr(answer[:100])


@attack("tokens", "a token's claims are five thousand lists deep", "401")
def _(api):
    return refresh(api, f"{part(HS256)}.{part(b'[' * 5000)}.x")


@attack("tokens", "a token is given in the query instead of the header", "401")
def _(api):
    token = api.login("users", new_user(api)["email"])
    return api.post(f"/api/collections/users/auth-refresh?token={token}&Authorization={token}&access_token={token}")


@attack("tokens", "a token is given in a cookie", "401")
def _(api):
    token = api.login("users", new_user(api)["email"])
    return api.post("/api/collections/users/auth-refresh", headers={"Cookie": f"pb_auth={token}; Authorization={token}; token={token}"})


@attack("tokens", "a token is given by another scheme than Bearer", "401 401 401")
def _(api):
    token = api.login("users", new_user(api)["email"])
    return [api.post("/api/collections/users/auth-refresh", headers={"Authorization": text + token}) for text in ("Basic ", "Token ", "Bearer  ")]


@attack("tokens", "a password change leaves the thief's token", "401")
def _(api):
    user = new_user(api)
    token = api.login("users", user["email"])
    api.patch(records("users", user["id"]), {"password": "new-password", "passwordConfirm": "new-password"}, token=api.su)
    return refresh(api, token)


@attack("tokens", "a deleted superuser's token is used", "401")
def _(api):
    second = new_user(api, "_superusers")
    token = api.login("_superusers", second["email"])
    assert api.get("/api/settings", token=token).status == 200
    api.delete(records("_superusers", second["id"]), token=api.su)
    return api.get("/api/settings", token=token)


@attack("tokens", "a user asks what only superusers may", "403 403 403 403 403 403")
def _(api):
    user = new_user(api)
    token = api.login("users", user["email"])
    return [api.request(method, path, {} if method != "GET" else None, token=token) for method, path in (
        ("GET", "/api/settings"), ("PATCH", "/api/settings"), ("POST", "/api/collections"), ("POST", "/api/sql"), ("GET", "/api/crons"),
        ("POST", f"/api/collections/users/impersonate/{user['id']}"))]


@attack("tokens", "an impersonating token asks for a longer life", "the same token")
def _(api):
    user = new_user(api)
    token = api.post(f"/api/collections/users/impersonate/{user['id']}", {"duration": 60}, token=api.su).json["token"]
    return "the same token" if refresh(api, token).json["token"] == token else "another token"


@attack("tokens", "an impersonating token is made refreshable by hand", "401")
def _(api):
    user = new_user(api)
    token = api.post(f"/api/collections/users/impersonate/{user['id']}", {"duration": 60}, token=api.su).json["token"]
    head, claims, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return refresh(api, ".".join((head, part({**claims, "refreshable": True}), signature)))


@attack("tokens", "an impersonated superuser goes on to prolong the token", "the same token")
def _(api):
    second = new_user(api, "_superusers")
    token = api.post(f"/api/collections/_superusers/impersonate/{second['id']}", {"duration": 60}, token=api.su).json["token"]
    same = refresh(api, token, "_superusers").json["token"] == token
    api.delete(records("_superusers", second["id"]), token=api.su)
    return "the same token" if same else "another token"


@pytest.mark.parametrize("attempt, answer", rows("tokens"))
def test_case_22_tokens(api, attempt, answer):
    assert told(attempt(api)) == answer


# ---- a token of one kind in the place of another

KINDS = {"auth": "authToken", "file": "fileToken", "verification": "verificationToken", "passwordReset": "passwordResetToken", "emailChange": "emailChangeToken"}
USES = {
    "auth": lambda api, user, token: refresh(api, token),
    "file": lambda api, user, token: api.get(_protected_file(api) + f"?token={token}"),
    "verification": lambda api, user, token: api.post("/api/collections/users/confirm-verification", {"token": token}),
    "passwordReset": lambda api, user, token: api.post("/api/collections/users/confirm-password-reset", {"token": token, "password": "new-password", "passwordConfirm": "new-password"}),
    "emailChange": lambda api, user, token: api.post("/api/collections/users/confirm-email-change", {"token": token, "password": PASSWORD}),
}


def _protected_file(api):
    record = api.add("secrets", form={"text": "x", "doc": ("a.txt", b"secret")})
    return f"/api/files/secrets/{record['id']}/{record['doc']}"


@pytest.mark.parametrize("use", USES, ids=[f"used as {use}" for use in USES])
@pytest.mark.parametrize("kind", KINDS, ids=[f"a token for {kind}" for kind in KINDS])
def test_case_22_a_token_serves_its_own_purpose_only(api, kind, use):
    """All claims that any kind needs are there; only the type and the key are of one kind."""
    user = new_user(api)
    token = signed(HS256, claims_of(user, kind, email=user.get("email") or _email(api, user), newEmail=f"new{user['id']}@example.com"), key_of(api, user, KINDS[kind]))
    assert USES[use](api, user, token).status == ((200, 200, 204, 204, 204)[list(USES).index(use)] if kind == use else {"auth": 401, "file": 404}.get(use, 400))


def _email(api, user):
    return api.db("select email from users where id = ?", user["id"])[0][0]


@pytest.mark.parametrize("kind", KINDS, ids=[f"a type claim of {kind}" for kind in KINDS])
def test_case_22_a_type_claim_needs_the_key_of_that_type(api, kind):
    user = new_user(api)
    for key in set(KINDS.values()) - {KINDS[kind]}:
        token = signed(HS256, claims_of(user, kind, email=_email(api, user), newEmail=f"new{user['id']}@example.com"), key_of(api, user, key))
        assert USES[kind](api, user, token).status in (400, 401, 404)


# ---- fields that nobody may set

def sign_up(**more):
    return {"email": f"person{next(_numbers)}@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD, **more}


def as_guest(sentence, answer, body, **options):
    @attack("fields", sentence, answer)
    def attempt(api):
        return api.post(records("users"), body() if callable(body) else body, **options)


as_guest("a guest signs up as verified", "400", lambda: sign_up(verified=True))
as_guest("a guest signs up as verified by the text true", "400", lambda: sign_up(verified="true"))
as_guest("a guest signs up as verified by the number 1", "400", lambda: sign_up(verified=1))


def effect(topic, sentence, answer, column):
    """A row whose function returns the id of a user; the answer is the value that is stored then."""
    def register(function):
        @attack(topic, sentence, answer)
        def attempt(api):
            id = function(api)
            return str(api.db(f"select {column} from users where id = ?", id)[0][0])
        return function
    return register


def changed(api, user, body, **options):
    """Updates a user as that user, whatever the answer is; returns the id."""
    api.patch(records("users", user["id"]), body, token=api.login("users", _email(api, user)), **options)
    return user["id"]


@effect("fields", "a guest signs up as Verified, with a capital", "0", "verified")
def _(api):
    return api.post(records("users"), sign_up(Verified=True)).json["id"]


@effect("fields", "a guest signs up with an own token key", "generated", f"CASE tokenKey WHEN '{'k' * 40}' THEN 'own' ELSE 'generated' END")
def _(api):
    return api.post(records("users"), sign_up(tokenKey="k" * 40)).json["id"]


@effect("fields", "a guest signs up with the hash of a password", "hashed", "CASE password WHEN '$2a$10$chosen' THEN 'chosen' ELSE 'hashed' END")
def _(api):
    return api.post(records("users"), sign_up(**{"password:hash": "$2a$10$chosen", "passwordHash": "$2a$10$chosen"})).json["id"]


@effect("fields", "a guest signs up with an own date of creation", "now", "CASE WHEN created < '2020' THEN 'chosen' ELSE 'now' END")
def _(api):
    return api.post(records("users"), sign_up(created="2001-01-01 00:00:00.000Z", updated="2001-01-01 00:00:00.000Z")).json["id"]


for _how, _options in (("a form", lambda: {"form": {**sign_up(), "verified": "true"}}), ("a form's JSON part", lambda: {"form": {"@jsonPayload": json.dumps(sign_up(verified=True))}}),
                       ("an urlencoded body", lambda: {"urlenc": {**sign_up(), "verified": "true"}})):
    @attack("fields", f"a guest signs up as verified by {_how}", "400")
    def _(api, options=_options):
        return api.post(records("users"), **options())


@attack("fields", "a guest signs up as verified by a query parameter beside a form", "400")
def _(api):
    return api.post(records("users") + "?verified=true", urlenc=sign_up())


@attack("fields", "a guest signs up as verified in a batch", "400")
def _(api):
    return api.post("/api/batch", {"requests": [{"method": "POST", "url": records("users"), "body": sign_up(verified=True)}]})


@attack("fields", "a guest signs up into the superusers by naming them in the body", "users")
def _(api):
    created = api.post(records("users"), sign_up(collectionName="_superusers", collectionId="pbc_3142635823"))
    assert api.db("select count(*) from _superusers where id = ?", created.json["id"]) == [(0,)]
    return created.json["collectionName"]


@attack("fields", "a guest signs up straight into the superusers", "403")
def _(api):
    return api.post(records("_superusers"), sign_up())


@attack("fields", "a user makes a superuser", "403")
def _(api):
    return api.post(records("_superusers"), sign_up(), token=api.login("users", _email(api, new_user(api))))


@attack("fields", "a guest signs up with the id of a superuser", "400")
def _(api):
    root = api.get(records("_superusers"), token=api.su).json["items"][0]
    return api.post(records("users"), sign_up(id=root["id"]))


for _name, _body, _column, _kept in (
        ("verifies the own address", {"verified": True}, "verified", "0"),
        ("verifies the own address by a modifier", {"verified+": 1, "+verified": 1, "verified:excerpt": True}, "verified", "0"),
        ("sets the own token key", {"tokenKey": "k" * 40}, f"CASE tokenKey WHEN '{'k' * 40}' THEN 'set' ELSE 'kept' END", "kept"),
        ("changes the address without a mail", {"email": "other@example.com"}, "CASE email WHEN 'other@example.com' THEN 'changed' ELSE 'kept' END", "kept"),
        ("changes the address by a modifier", {"email+": "x", "+email": "x", "email:lower": "other@example.com"}, "CASE WHEN email LIKE 'person%@example.com' THEN 'kept' ELSE email END", "kept"),
        ("changes the own id", {"id": "x" * 15}, "CASE id WHEN 'xxxxxxxxxxxxxxx' THEN 'changed' ELSE 'kept' END", "kept"),
        ("moves the own date of creation", {"created": "2001-01-01 00:00:00.000Z"}, "CASE WHEN created < '2020' THEN 'moved' ELSE 'kept' END", "kept")):
    @effect("fields", f"a user {_name}", _kept, _column)
    def _(api, body=_body):
        return changed(api, new_user(api), body)


for _name, _body in (("without the old one", {"password": "new-password", "passwordConfirm": "new-password"}),
                     ("with a wrong old one", {"password": "new-password", "passwordConfirm": "new-password", "oldPassword": "wrong"}),
                     ("with an empty old one", {"password": "new-password", "passwordConfirm": "new-password", "oldPassword": ""}),
                     ("by an autogenerate modifier", {"password:autogenerate": ""}),
                     ("with a list as the old one", {"password": "new-password", "passwordConfirm": "new-password", "oldPassword": [PASSWORD]})):
    @attack("fields", f"a stolen session changes the password {_name}", "the old password stays")
    def _(api, body=_body):
        user = new_user(api)
        email = _email(api, user)
        changed(api, user, body)
        return "the old password stays" if login(api, email).status == 200 else "the password is another"


@attack("fields", "a user changes another user", "404 404")
def _(api):
    token, victim = api.login("users", _email(api, new_user(api))), new_user(api)
    return [api.patch(records("users", victim["id"]), {"name": "x"}, token=token), api.delete(records("users", victim["id"]), token=token)]


@attack("fields", "a user reads the own hidden fields by naming them", "nothing")
def _(api):
    user = new_user(api)
    shown = api.get(records("users", user["id"]) + "?fields=*,password,tokenKey,email&expand=tokenKey", token=api.login("users", _email(api, user)))
    return "nothing" if shown.status == 200 and {"password", "tokenKey"}.isdisjoint(shown.json) else shown.text


@attack("fields", "a user searches by fields that are hidden", "400 400")
def _(api):
    token = api.login("users", _email(api, new_user(api)))
    return [api.get(records("users"), params={"filter": f"{name} ~ 'a%'"}, token=token) for name in ("tokenKey", "password")]


@pytest.mark.parametrize("attempt, answer", rows("fields"))
def test_case_18_fields_that_nobody_may_set(api, attempt, answer):
    assert told(attempt(api)) == answer


# ---- the superusers' list of addresses

@pytest.fixture(scope="module")
def guarded():
    """A server whose superusers come from 127.0.0.1 or 10.1.0.0/16 only; a trusted proxy says X-Real-Ip."""
    with kit.Server() as running:
        running.settings(trustedProxy={"headers": ["X-Real-Ip"], "useLeftmostIP": False}, superuserIPs=["127.0.0.1", "10.1.0.0/16"])
        running.add_user("ann@example.com")
        running.make("secrets", [{"name": "doc", "type": "file", "maxSelect": 1, "protected": True}], viewRule=None)
        yield running


def from_address(sentence, answer, ip, request):
    @attack("addresses", sentence, answer)
    def attempt(api):
        return request(api, {"X-Real-Ip": ip})


from_address("a superuser's token is used from a listed address", "200", "127.0.0.1", lambda api, h: api.get("/api/settings", token=api.su, headers=h))
from_address("a superuser's token is used from a listed network", "200", "10.1.200.3", lambda api, h: api.get("/api/settings", token=api.su, headers=h))
from_address("a superuser's token is used from elsewhere", "403", "10.2.0.1", lambda api, h: api.get("/api/settings", token=api.su, headers=h))
from_address("a superuser's token is used from elsewhere where anybody may", "403", "10.2.0.1", lambda api, h: api.get("/api/health", token=api.su, headers=h))
from_address("a superuser's password is used from elsewhere", "403", "10.2.0.1", lambda api, h: login(api, *kit.SUPERUSER, "_superusers", headers=h))
from_address("a superuser's password is guessed from elsewhere", "400", "10.2.0.1", lambda api, h: login(api, kit.SUPERUSER[0], "wrong", "_superusers", headers=h))
from_address("a superuser refreshes a token from elsewhere", "403", "10.2.0.1",
             lambda api, h: api.post("/api/collections/_superusers/auth-refresh", token=api.su, headers=h))
from_address("a user signs in from elsewhere", "200", "10.2.0.1", lambda api, h: login(api, "ann@example.com", headers=h))
from_address("a client puts a listed address before the proxy's", "403", "127.0.0.1, 10.2.0.1", lambda api, h: api.get("/api/settings", token=api.su, headers=h))
from_address("a client puts nonsense behind an address", "403", "10.2.0.1, nonsense", lambda api, h: api.get("/api/settings", token=api.su, headers=h))
from_address("a client names a network as its address", "403", "10.2.0.1, 127.0.0.0/8", lambda api, h: api.get("/api/settings", token=api.su, headers=h))
from_address("a client uses another header of proxies", "403", "10.2.0.1",
             lambda api, h: api.get("/api/settings", token=api.su, headers={**h, "X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "CF-Connecting-IP": "127.0.0.1"}))


@attack("addresses", "a client sends the proxy's header twice", "403")
def _(api):
    head = f"GET /api/settings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {api.su}\r\nX-Real-Ip: 127.0.0.1\r\nX-Real-Ip: 10.2.0.1\r\n\r\n"
    return api.raw(head.encode()).split(b" ")[1].decode()


@attack("addresses", "a superuser's file token is used from elsewhere", "200 404")
def _(api):
    record = api.add("secrets", form={"doc": ("a.txt", b"secret")})
    token = api.post("/api/files/token", token=api.su).json["token"]
    path = f"/api/files/secrets/{record['id']}/{record['doc']}?token={token}"
    return [api.get(path), api.get(path, headers={"X-Real-Ip": "10.2.0.1"})]


@attack("addresses", "a batch carries a superuser's token from elsewhere", "403")
def _(api):
    body = {"requests": [{"method": "POST", "url": records("users"), "body": sign_up(), "headers": {"X-Real-Ip": "127.0.0.1"}}]}
    return api.post("/api/batch", body, token=api.su, headers={"X-Real-Ip": "10.2.0.1"})


@pytest.mark.parametrize("attempt, answer", rows("addresses"))
def test_case_29_the_list_of_superusers_addresses(guarded, attempt, answer):
    assert told(attempt(guarded)) == answer


def test_case_29_headers_of_proxies_are_nothing_while_none_is_trusted(fresh):
    api = fresh()
    token = api.su
    api.settings(superuserIPs=["10.9.9.9"])
    for name in ("X-Forwarded-For", "X-Real-Ip", "Forwarded", "CF-Connecting-IP", "Fly-Client-IP", "X-Client-IP", "True-Client-IP"):
        assert api.get("/api/settings", token=token, headers={name: "10.9.9.9"}).status == 403


# ---- the installer's token

@pytest.fixture
def installer(fresh):
    """(server without superusers, the token of the printed link)"""
    server = fresh(superuser=False)
    return server, server.wait_log(r"/_/#/pbinstall/(\S+)").group(1)


def test_case_29_an_installer_token_makes_one_superuser(installer):
    api, token = installer
    assert api.post(records("_superusers"), sign_up(), token=token).status == 200
    assert api.post(records("_superusers"), sign_up(), token=token).status in (401, 403)
    assert api.get("/api/settings", token=token).status == 401
    assert api.db("select count(*) from _superusers") == [(1,)]


@beyond
def test_case_29_an_installer_token_makes_one_superuser_even_at_the_same_moment(installer):
    api, token = installer
    answers = salvo(api, "POST", records("_superusers"), [sign_up() for _ in range(8)], token)
    assert [answer.status for answer in answers].count(200) == 1
    assert api.db("select count(*) from _superusers") == [(1,)]


def test_case_29_an_installer_token_lasts_half_an_hour_and_is_not_prolonged(installer):
    api, token = installer
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["refreshable"] is False and 0 < claims["exp"] - time.time() <= 1801
    assert refresh(api, token, "_superusers").json["token"] == token
    [(id, key)] = api.db("select id, tokenKey from _superusers")
    user = {"collectionName": "_superusers", "collectionId": "pbc_3142635823", "id": id}
    late = signed(HS256, {**claims, "exp": int(time.time()) - 1}, key_of(api, user))
    assert api.post(records("_superusers"), sign_up(), token=late).status in (401, 403) and api.get("/api/settings", token=late).status == 401


def test_case_29_an_installer_token_dies_when_the_command_line_makes_a_superuser(installer):
    api, token = installer
    assert api.cli("superuser", "create", "first@example.com", PASSWORD).returncode == 0
    assert api.get("/api/settings", token=token).status == 401
    assert api.db("select email from _superusers") == [("first@example.com",)]


def test_case_29_the_installer_has_no_password_that_works(installer, mailbox):
    api, token = installer
    email = "__pbinstaller@example.com"
    api.patch("/api/settings", {"smtp": {"enabled": True, "host": "127.0.0.1", "port": mailbox.port}}, token=token)
    for password in (email, PASSWORD, "x" * 71, "__pbinstaller"):
        assert login(api, email, password, "_superusers").status == 400
    assert api.post("/api/collections/_superusers/request-password-reset", {"email": email}).status == 204
    later = sign_up()
    assert api.post(records("users"), later).status == 200
    api.post("/api/collections/users/request-verification", {"email": later["email"]})
    mailbox.letter(later["email"])
    assert mailbox.to(email) == []


# ---- rate limits

@pytest.fixture(scope="module")
def limited(mailbox):
    """A server behind a proxy that says who asks; limits are set by each row."""
    with kit.Server() as running:
        running.settings(trustedProxy={"headers": ["X-Real-Ip"], "useLeftmostIP": False}, batch={"enabled": True})
        running.make("posts", ["title"])
        running.make("others", type="auth")
        running.make("coded", type="auth", otp={"enabled": True, "duration": 180, "length": 8})
        running.add_user("ann@example.com")
        running.token, running.mailbox = running.login("users", "ann@example.com"), mailbox
        yield running


LOGIN = ("POST", "/api/collections/users/auth-with-password")
HEALTH = ("GET", "/api/health")


def limit(sentence, answer, rules, requests, marks=(), **settings):
    """A row: under these rules (label, audience, most) the requests, each (method, path[, address, who, headers]), get these answers."""
    @attack("limits", sentence, answer, marks)
    def attempt(api):
        listed = [{"label": label, "audience": audience, "duration": 1000, "maxRequests": most} for label, audience, most in rules]
        api.settings(rateLimits={"enabled": True, "rules": listed, "excludedIPs": [], **settings})
        return [_asked(api, *request) for request in requests]


def _asked(api, method, path, ip="10.0.0.1", who=None, headers=None):
    token = {"ann": api.token, "root": api.su}.get(who)
    body = None if method == "GET" else {LOGIN[1]: {"identity": "nobody@example.com", "password": "x"}, "/api/batch": _BATCH}.get(path, {"title": "x"})
    return api.request(method, path, body, token=token, headers={"X-Real-Ip": ip, **(headers or {})})


_BATCH = {"requests": [{"method": "POST", "url": records("posts"), "body": {"title": "x"}}] * 4}


limit("a password is guessed more often than allowed", "400 400 429", [("*:auth", "", 2)], [LOGIN] * 3)
limit("a password is guessed from a second address", "400 429 400", [("*:auth", "", 1)], [LOGIN, LOGIN, (*LOGIN, "10.0.0.2")])
limit("a password is guessed from another address of the same IPv6 network", "400 429 429 400", [("*:auth", "", 1)],
      [(*LOGIN, "2001:db8:1:1::1"), (*LOGIN, "2001:db8:1:1::2"), (*LOGIN, "2001:db8:1:1:ffff:ffff:ffff:ffff"), (*LOGIN, "2001:db8:1:2::1")], beyond)
limit("one IPv6 address is written in another way", "400 429 429", [("*:auth", "", 1)],
      [(*LOGIN, "2001:db8:1:3::1"), (*LOGIN, "2001:0db8:0001:0003:0:0:0:1"), (*LOGIN, "2001:DB8:1:3::1")], beyond)
limit("two IPv4 clients come as mapped IPv6 addresses", "400 400 429", [("*:auth", "", 1)],
      [(*LOGIN, "::ffff:10.0.0.1"), (*LOGIN, "::ffff:10.0.0.2"), (*LOGIN, "::ffff:10.0.0.2")])
limit("one IPv4 client comes as a mapped IPv6 address, too", "400 429", [("*:auth", "", 1)], [(*LOGIN, "10.0.0.9"), (*LOGIN, "::ffff:10.0.0.9")], beyond)
limit("a rule for a collection comes before one for all", "400 400 429", [("*:auth", "", 1), ("users:auth", "", 2)], [LOGIN] * 3)
limit("a rule for an action comes before one for a path", "400 429", [("/api/", "", 100), (LOGIN[1], "", 100), ("*:authWithPassword", "", 1)], [LOGIN] * 2)
limit("a rule for an exact path comes before one for a prefix", "200 429 404 404", [("/api/", "", 100), ("/api/health", "", 1)],
      [HEALTH, HEALTH, ("GET", "/api/nothing"), ("GET", "/api/nothing")])
limit("a rule for a method leaves others alone", "200 200 429 200", [("POST /api/collections/posts/records", "", 1)],
      [("GET", records("posts")), ("POST", records("posts")), ("POST", records("posts")), ("GET", records("posts"))])
limit("a rule for guests does not count who is signed in", "200 429 200 200", [("/api/health", "@guest", 1)], [HEALTH, HEALTH, (*HEALTH, "10.0.0.1", "ann"), (*HEALTH, "10.0.0.1", "ann")])
limit("a rule for the signed in does not count guests", "200 200 200 429", [("/api/health", "@auth", 1)], [HEALTH, HEALTH, (*HEALTH, "10.0.0.1", "ann"), (*HEALTH, "10.0.0.1", "ann")])
limit("superusers are not counted", "200 200 200", [("/api/health", "", 1)], [(*HEALTH, "10.0.0.1", "root")] * 3)
limit("excluded addresses are not counted", "200 200 200 429", [("/api/health", "", 1)], [(*HEALTH, "10.3.0.1"), (*HEALTH, "10.3.0.1"), HEALTH, HEALTH], excludedIPs=["10.3.0.0/16"])
limit("each collection has its own count", "400 429 400", [("*:auth", "", 1)], [LOGIN, LOGIN, ("POST", "/api/collections/others/auth-with-password")])
limit("a collection is named by its id instead", "400 429", [("*:auth", "", 1)], [LOGIN, ("POST", "/api/collections/_pb_users_auth_/auth-with-password")])
limit("a collection is named by its id where the rule has its path", "400 429", [(LOGIN[1], "", 1), ("/api/", "", 100)],
      [LOGIN, ("POST", "/api/collections/_pb_users_auth_/auth-with-password")])
limit("a collection's name is written in capitals where the rule has its path", "400 429", [(LOGIN[1], "", 1), ("/api/", "", 100)],
      [LOGIN, ("POST", "/api/collections/USERS/auth-with-password")])
limit("a collection is named by its id where the rule has the path of its files", "404 429", [("/api/files/users/", "", 1), ("/api/", "", 100)],
      [("GET", "/api/files/users/a/b"), ("GET", "/api/files/_pb_users_auth_/a/b")])
limit("a collection is named by its name where the rule has its id", "200 429", [("/api/collections/_pb_users_auth_/auth-methods", "", 1), ("/api/", "", 100)],
      [("GET", "/api/collections/_pb_users_auth_/auth-methods"), ("GET", "/api/collections/users/auth-methods")])
limit("a path is written with percent signs", "200 429 429 429", [("/api/health", "", 1)],
      [HEALTH, HEALTH, ("GET", "/api/%68ealth"), ("GET", "/%61pi/health")])
limit("a prefix is written with percent signs", "200 429 429", [("/api/", "", 1)], [HEALTH, HEALTH, ("GET", "/%61pi/health")])
limit("a query is put behind a path", "200 429", [("/api/health", "", 1)], [HEALTH, ("GET", "/api/health?x=1")])
limit("many requests are put into one batch", "200 400", [("*:create", "", 4)], [("POST", "/api/batch")] * 2)
limit("a client hides behind headers of proxies that are not trusted", "200 429 429", [("/api/health", "", 1)],
      [(*HEALTH, "10.0.0.1", None, {"X-Forwarded-For": ip, "Forwarded": f"for={ip}", "CF-Connecting-IP": ip}) for ip in ("1.1.1.1", "2.2.2.2", "3.3.3.3")])
limit("a client adds addresses to the header of the trusted proxy", "200 429 429", [("/api/health", "", 1)],
      [(*HEALTH, f"{ip}, 10.0.0.1") for ip in ("1.1.1.1", "2.2.2.2", "3.3.3.3")])
limit("a guest sends a made-up token to count as signed in", "200 429", [("/api/health", "@guest", 1)],
      [HEALTH, (*HEALTH, "10.0.0.1", None, {"Authorization": f"{part(HS256)}.{part({'id': 'x', 'type': 'auth', 'collectionId': 'users'})}.x"})])
limit("another method is named in a header", "200 429", [("GET /api/health", "", 1)],
      [HEALTH, (*HEALTH, "10.0.0.1", None, {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"})])


@attack("limits", "one-time passwords are guessed from many addresses of one IPv6 network", "400 400 400 400 400 429", beyond)
def _(api):
    api.settings(rateLimits={"enabled": False}, smtp={"enabled": True, "host": "127.0.0.1", "port": api.mailbox.port})
    user = new_user(api, "coded", emailVisibility=True)
    id = api.post("/api/collections/coded/request-otp", {"email": user["email"]}).json["otpId"]
    return [api.post("/api/collections/coded/auth-with-otp", {"otpId": id, "password": "wrong"}, headers={"X-Real-Ip": f"2001:db8:9:9::{number}"}) for number in range(1, 7)]


@pytest.mark.parametrize("attempt, answer", rows("limits"))
def test_case_26_limits(limited, attempt, answer):
    try:
        assert told(attempt(limited)) == answer
    finally:
        limited.settings(rateLimits={"enabled": False})


def test_case_26_a_window_ends_though_the_clock_was_set_back(monkeypatch):
    windows, wall = pocketbase.Windows(), time.time()
    assert windows.allow("a", 1, 5) and not windows.allow("a", 1, 5)
    monkeypatch.setattr(pocketbase.time, "time", lambda: wall - 3600)
    steady = time.monotonic()
    monkeypatch.setattr(pocketbase.time, "monotonic", lambda: steady + 6)
    assert windows.allow("a", 1, 5)


def test_case_26_a_pause_between_mails_ends_though_the_clock_was_set_back(monkeypatch):
    user = SimpleNamespace(id="x", collection=SimpleNamespace(id="y"))
    mails, wall, steady = pocketbase.RecentMails(), time.time(), time.monotonic()
    assert not mails.recent("reset", user)
    mails.note("reset", user)
    assert mails.recent("reset", user)
    monkeypatch.setattr(pocketbase.time, "time", lambda: wall - 3600)
    monkeypatch.setattr(pocketbase.time, "monotonic", lambda: steady + pocketbase.MAIL_PAUSE + 1)
    assert not mails.recent("reset", user)


# ---- mails

BREAKS = "x\r\nBcc: evil@example.com\r\n\r\n<h1>evil</h1>"


@attack("mails", "a name with line breaks stands in a subject", "no header, no recipient")
def _(api, mailbox):
    name = f"named{next(_numbers)}"
    api.make(name, ["title"], type="auth", verificationTemplate={"subject": "Hi {RECORD:title}", "body": "{TOKEN}"})
    user = new_user(api, name, title=BREAKS, emailVisibility=True)
    api.post(f"/api/collections/{name}/request-verification", {"email": user["email"]})
    return _harm(mailbox.letter(user["email"]), user["email"])


@attack("mails", "the application's name has line breaks", "no header, no recipient")
def _(api, mailbox):
    api.settings(meta={"appName": "App" + BREAKS, "senderName": "Me" + BREAKS})
    user = new_user(api, emailVisibility=True)
    api.post("/api/collections/users/request-password-reset", {"email": user["email"]})
    harm = _harm(mailbox.letter(user["email"]), user["email"])
    api.settings(meta={"appName": "App", "senderName": "Me"})
    return harm


def _harm(letter, address):
    head = letter.raw.partition(b"\r\n\r\n")[0].lower()
    clean = letter.people == [address] and not re.search(rb"^bcc:", head, re.M) and letter.message["Bcc"] is None and len(letter.message.get_all("From")) == 1
    return "no header, no recipient" if clean else head.decode()


for _address in ("evil@example.com\r\nBcc: x@example.com", "a@example.com,b@example.com", "<a@example.com>", "a@example.com>\r\nRCPT TO:<b@example.com",
                 "a b@example.com", "a@example.com\0", "Ann <a@example.com>"):
    @attack("mails", f"an account is made for the address {_address!r}", "400")
    def _(api, mailbox, address=_address):
        return api.post(records("users"), {**sign_up(), "email": address})

    @attack("mails", f"a mail to a new address {_address!r} is asked for", "400")
    def _(api, mailbox, address=_address):
        return api.post("/api/collections/users/request-email-change", {"newEmail": address}, token=api.login("users", _email(api, new_user(api))))


@attack("mails", "a name is written in the language of templates", "as it was typed", beyond)
def _(api, mailbox):
    name, typed = f"named{next(_numbers)}", "{TOKEN} {{7*7}} ${7*7} <%= 7*7 %> #{7*7} {RECORD:tokenKey} %s {0.__class__}"
    api.make(name, ["title"], type="auth", verificationTemplate={"subject": "{RECORD:title}", "body": "<p>{RECORD:title}</p>{TOKEN}"})
    user = new_user(api, name, title=typed, emailVisibility=True)
    api.post(f"/api/collections/{name}/request-verification", {"email": user["email"]})
    letter = mailbox.letter(user["email"])
    return "as it was typed" if letter.subject == typed.replace("<", "&lt;").replace(">", "&gt;") and typed.replace("<", "&lt;").replace(">", "&gt;") in letter.html else letter.subject


@attack("mails", "a name is markup", "text")
def _(api, mailbox):
    name = f"named{next(_numbers)}"
    api.make(name, ["title"], type="auth", verificationTemplate={"subject": "x", "body": "<p>{RECORD:title}</p>{TOKEN}"})
    user = new_user(api, name, title="<img src=x onerror=alert(1)>", emailVisibility=True)
    api.post(f"/api/collections/{name}/request-verification", {"email": user["email"]})
    return "text" if "&lt;img src=x onerror=alert(1)&gt;" in mailbox.letter(user["email"]).html else "markup"


@attack("mails", "the Host header is forged to turn the link of a reset", "the configured address")
def _(api, mailbox):
    api.settings(meta={"appURL": "http://app.example.com"})
    user = new_user(api, emailVisibility=True)
    body = json.dumps({"email": user["email"]}).encode()
    api.raw(b"POST /api/collections/users/request-password-reset HTTP/1.1\r\nHost: evil.example.com\r\nX-Forwarded-Host: evil.example.com\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    letter = mailbox.letter(user["email"])
    return "the configured address" if "http://app.example.com/_/#/auth/" in letter.html and b"evil.example.com" not in letter.raw else "a forged address"


@pytest.mark.parametrize("attempt, answer", rows("mails"))
def test_case_35_mails(api, mailbox, attempt, answer):
    assert told(attempt(api, mailbox)) == answer


# ---- passwords

def with_password(api, password):
    """The address of a new user with this password."""
    user = new_user(api, password=password)
    return _email(api, user)


@attack("passwords", "a login brings a password of a megabyte", "400")
def _(api):
    return login(api, _email(api, new_user(api)), "x" * 2**20)


@attack("passwords", "a sign-up brings a password of a megabyte", "400")
def _(api):
    return api.post(records("users"), sign_up(password="x" * 2**20, passwordConfirm="x" * 2**20))


@attack("passwords", "a sign-up brings a password of more than 72 bytes", "400 400")
def _(api):
    return [api.post(records("users"), sign_up(password=text, passwordConfirm=text)) for text in ("x" * 73, "é" * 37)]


@attack("passwords", "a password of 72 bytes is cut by one", "400")
def _(api):
    return login(api, with_password(api, "é" * 36), "é" * 35 + "e")


@attack("passwords", "a password of 72 bytes is changed in its last letter", "400")
def _(api):
    return login(api, with_password(api, "é" * 36), "é" * 35 + "è")


@attack("passwords", "a password is followed by a NUL byte", "400")
def _(api):
    return login(api, _email(api, new_user(api)), PASSWORD + "\0")


@attack("passwords", "a password with a NUL byte is cut there", "200 400 400")
def _(api):
    email = with_password(api, "before\0after")
    return [login(api, email, text) for text in ("before\0after", "before", "before\0other")]


@attack("passwords", "an empty password is tried", "400")
def _(api):
    return login(api, _email(api, new_user(api)), "")


@attack("passwords", "a password has half a surrogate pair", "400")
def _(api):
    return api.post("/api/collections/users/auth-with-password", body=b'{"identity":"a@b.co","password":"\\ud800"}', headers={"Content-Type": "application/json"})


@attack("passwords", "the stored hash is used as the password", "400")
def _(api):
    user = new_user(api)
    return login(api, _email(api, user), api.db("select password from users where id = ?", user["id"])[0][0])


@attack("passwords", "the record has no hash at all", "400 400")
def _(api):
    user = new_user(api)
    assert api.post("/api/sql", {"query": f"UPDATE users SET password = '' WHERE id = '{user['id']}'"}, token=api.su).status == 200
    return [login(api, _email(api, user), text) for text in ("", " ")]


@attack("passwords", "the identity is SQL", "400 400 400")
def _(api):
    return [login(api, text) for text in ("' OR 1=1 --", "a@b.co' OR '1'='1", "%")]


@attack("passwords", "the identity is another type of value", "400 400 400 400 400")
def _(api):
    return [api.post("/api/collections/users/auth-with-password", {"identity": value, "password": PASSWORD}) for value in ([], {}, 1, True, None)]


@attack("passwords", "another column is named as the identity's", "400 400 400")
def _(api):
    user = new_user(api)
    return [api.post("/api/collections/users/auth-with-password", {"identity": value, "password": PASSWORD, "identityField": field})
            for field, value in (("id", user["id"]), ("tokenKey", "x"), ("email` = '' OR 1=1 --", "x"))]


@pytest.mark.parametrize("attempt, answer", rows("passwords"))
def test_case_27_passwords(api, attempt, answer):
    assert told(attempt(api)) == answer


def test_case_27_others_are_served_while_many_passwords_are_checked(api):
    email = _email(api, new_user(api))
    body = json.dumps({"identity": email, "password": "wrong-password"}).encode()
    head = b"POST /api/collections/users/auth-with-password HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    socks = [socket.create_connection(("127.0.0.1", api.port), kit.PATIENCE) for _ in range(50)]
    try:
        for sock in socks:
            sock.sendall(head % len(body) + body)
        assert api.get("/api/health").status == 200
        assert len(select.select(socks, [], [], 0)[0]) < 50    # some still wait: nobody waited for all of them
        assert {sock.recv(12) for sock in socks} == {b"HTTP/1.1 400"}
    finally:
        for sock in socks:
            sock.close()


# ---- NUL bytes and values of wrong types

_FORMS = {
    "auth-with-password": ("identity", "password"), "auth-with-otp": ("otpId", "password"), "auth-with-oauth2": ("provider", "code"), "request-otp": ("email",),
    "request-verification": ("email",), "confirm-verification": ("token",), "request-password-reset": ("email",),
    "confirm-password-reset": ("token", "password", "passwordConfirm"), "confirm-email-change": ("token", "password"), "records": ("email", "password", "passwordConfirm"),
}
_ODD = {"a NUL byte": "a\0b@example.com", "only NUL bytes": "\0" * 10, "a list": ["x"], "an object": {"x": "y"}, "a number": 5, "a huge number": 10**30, "true": True,
        "lists ten thousand deep": None, "a line break": "x\r\ny", "half a pair": "\ud800"}


@pytest.mark.parametrize("odd", _ODD, ids=[f"with {odd}" for odd in _ODD])
@pytest.mark.parametrize("action", _FORMS)
def test_case_7_odd_values_in_forms_are_refused(api, action, odd):
    value = "[" * 10_000 + "]" * 10_000 if odd == "lists ten thousand deep" else json.dumps(_ODD[odd])
    body = "{" + ",".join(f'"{name}":{value}' for name in _FORMS[action]) + "}"
    for collection in ("users", "coded"):
        answer = api.post(f"/api/collections/{collection}/{action}", body=body.encode(), headers={"Content-Type": "application/json"})
        assert answer.status in (400, 403) and answer.json["message"]
    assert api.get("/api/health").status == 200


@pytest.mark.parametrize("path", ["/api/collections/users%00/auth-methods", "/api/collections/%00/auth-methods", "/api/collections/users/records/a%00b",
                                  "/api/collections/users/records?filter=name%3D%27%00%27", "/api/files/users/a%00b/c%00d", "/api/collections/users/records?fields=%00&expand=%00&sort=%00"])
def test_case_7_nul_bytes_in_addresses_break_nothing(api, path):
    assert api.get(path, token=api.su).status in (200, 400, 404)


if __name__ == "__main__":
    print("| attack tried | answer given |\n|---|---|")
    for _topic, _rows in ATTACKS.items():
        for _sentence, _answer, *_ in _rows:
            print(f"| {_sentence} | {_answer} |".replace("\\", "\\\\"))
