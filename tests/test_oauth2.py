"""Sign-in with an account held elsewhere: the whole flow against a certified OpenID provider, and everything that must not get through."""
import base64
import hashlib
import itertools
import os
import socket
import sys
import threading
import urllib.parse

import pytest

import kit
from helpers_answers import envelope
from helpers_answers import records
from helpers_answers import refusal
from helpers_beyond import beyond
from helpers_crowd import salvo
from helpers_mail import wait_until
from helpers_oidc import CLIENT_ID
from helpers_oidc import IdentityProvider
from helpers_oidc import LyingProvider
from helpers_oidc import enable
from helpers_oidc import method_of
from helpers_oidc import present
from helpers_oidc import sign_in

PASSWORD = "1234567890"
NO_TOKEN = envelope(400, "Failed to fetch OAuth2 token.")
NO_USER = envelope(400, "Failed to fetch OAuth2 user.")
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def idp():
    running = IdentityProvider()
    yield running
    running.close()


@pytest.fixture(scope="module")
def api(server, idp, mailbox):
    mailbox.serve(server)
    enable(server, rows=[idp.row(), idp.row("oidc2")], mappedFields={"name": "name", "avatarURL": "avatar"})
    return server


@pytest.fixture
def liar():
    """A provider of ours that says what the test wants."""
    running = LyingProvider()
    yield running
    running.close()


def person(**claims):
    """Claims of somebody new."""
    number = next(_numbers)
    return {"sub": f"sub-{number}", "email": f"person{number}@example.com", "email_verified": True, "name": f"Person {number}",
            "preferred_username": f"person{number}", **claims}


def collection(api, rows, fields=(), **options):
    """A new auth collection with these providers; returns its name."""
    name = f"members{next(_numbers)}"
    oauth2 = {"enabled": True, "providers": rows, "mappedFields": options.pop("mappedFields", {})}
    api.make(name, list(fields), type="auth", oauth2=oauth2, **options)
    return name


def alive(api, token, name="users"):
    return api.post(f"/api/collections/{name}/auth-refresh", token=token).status == 200


def links(api, record_id):
    """{provider: id there} of a record."""
    return dict(api.db("select provider, providerId from _externalAuths where recordRef = ?", record_id))


def count(api, name):
    return api.db(f"select count(*) from {name}")[0][0]


def password_login(api, email, name="users", password=PASSWORD, **more):
    return api.post(f"/api/collections/{name}/auth-with-password", {"identity": email, "password": password, **more})


# ---- the flow

def test_the_code_flow_makes_a_record_a_link_and_a_token(api, idp):
    ann = person()
    answer = sign_in(api, idp, ann)
    assert answer.status == 200 and list(answer.json) == ["meta", "record", "token"]
    meta, record = answer.json["meta"], answer.json["record"]
    assert (record["email"], record["name"], record["verified"], record["avatar"]) == (ann["email"], ann["name"], True, "")
    assert {"password", "tokenKey"}.isdisjoint(record)
    assert (meta["id"], meta["name"], meta["username"], meta["email"], meta["isNew"]) == (ann["sub"], ann["name"], ann["preferred_username"], ann["email"], True)
    assert meta["avatarURL"] == meta["avatarUrl"] == "" and meta["rawUser"] == ann and meta["accessToken"] and meta["expiry"] > "2020"
    assert links(api, record["id"]) == {"oidc": ann["sub"]}
    assert alive(api, answer.json["token"])


def test_the_second_sign_in_finds_the_same_record(api, idp):
    ann = person()
    first, before = sign_in(api, idp, ann).json, count(api, "users")
    again = sign_in(api, idp, {**ann, "name": "Renamed", "email": f"moved-{ann['email']}"}).json
    assert again["record"]["id"] == first["record"]["id"] and again["meta"]["isNew"] is False
    assert again["record"]["name"] == ann["name"] and again["record"]["email"] == ann["email"]    # a link is to the account, not to its e-mail
    assert count(api, "users") == before


def test_a_method_brings_its_own_state_and_s256_challenge(api, idp):
    one, two = method_of(api), method_of(api)
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(one["authURL"]).query, keep_blank_values=True))
    assert one["authURL"].startswith(idp.url + "/auth?") and one["authURL"].endswith("&redirect_uri=")
    assert (query["client_id"], query["response_type"], query["scope"]) == (CLIENT_ID, "code", "openid email profile")
    assert (query["state"], query["code_challenge"], query["code_challenge_method"]) == (one["state"], one["codeChallenge"], "S256")
    digest = hashlib.sha256(one["codeVerifier"].encode()).digest()
    assert one["codeChallenge"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode() and len(one["codeVerifier"]) >= 43
    assert one["state"] != two["state"] and one["codeVerifier"] != two["codeVerifier"]


def test_secrets_of_providers_are_shown_to_nobody(api):
    for path, token in (("/api/collections/users/auth-methods", None), ("/api/collections/users", api.su)):
        answer = api.get(path, token=token)
        assert answer.status == 200 and "s3 cret" not in answer.text and "clientSecret" not in answer.text


@pytest.mark.parametrize("how", ["issuer and keys", "issuer alone, keys by discovery"])
def test_without_a_user_info_address_the_verified_id_token_is_the_user(api, idp, how):
    extra = {"issuers": [idp.url], **({"jwksURL": idp.url + "/jwks"} if "and" in how else {})}
    name, ann = collection(api, [idp.row(userInfoURL="", extra=extra)]), person()
    answer = sign_in(api, idp, ann, collection=name)
    assert answer.status == 200 and answer.json["record"]["email"] == ann["email"]
    assert answer.json["meta"]["rawUser"]["iss"] == idp.url and answer.json["meta"]["id"] == ann["sub"]


@beyond
def test_sign_ins_of_one_new_person_at_the_same_moment_make_one_record(api, liar):
    liar.user, name = person(), collection(api, [liar.row()])
    answers = salvo(api, "POST", f"/api/collections/{name}/auth-with-oauth2", [{"provider": "oidc", "code": f"code{number}"} for number in range(6)])
    assert [answer.status for answer in answers] == [200] * 6
    assert len({answer.json["record"]["id"] for answer in answers}) == 1 and count(api, name) == 1
    assert [answer.json["meta"]["isNew"] for answer in answers].count(True) == 1


# ---- refused codes

def test_case_23_a_wrong_verifier_is_refused(api, idp):
    method = method_of(api)
    back = idp.visit(method["authURL"] + idp.callback, person())
    assert present(api, back["code"], method_of(api)["codeVerifier"]).json == NO_TOKEN


def test_case_23_a_missing_verifier_is_refused(api, idp):
    back = idp.visit(method_of(api)["authURL"] + idp.callback, person())
    assert present(api, back["code"]).json == NO_TOKEN


def test_case_23_a_replayed_code_is_refused(api, idp):
    method = method_of(api)
    back = idp.visit(method["authURL"] + idp.callback, person())
    assert present(api, back["code"], method["codeVerifier"]).status == 200
    assert present(api, back["code"], method["codeVerifier"]).json == NO_TOKEN


def test_case_23_a_code_presented_by_many_at_the_same_moment_serves_one_at_most(api, idp):
    method = method_of(api)
    back = idp.visit(method["authURL"] + idp.callback, person())
    body = {"provider": "oidc", "code": back["code"], "codeVerifier": method["codeVerifier"], "redirectURL": idp.callback}
    answers = salvo(api, "POST", "/api/collections/users/auth-with-oauth2", [body] * 6)
    assert [answer.status for answer in answers].count(200) <= 1


def test_case_23_another_redirect_address_than_the_visited_one_is_refused(api, idp):
    method = method_of(api)
    back = idp.visit(method["authURL"] + idp.callback, person())
    assert present(api, back["code"], method["codeVerifier"], redirect="http://evil.example.com/callback").json == NO_TOKEN


def test_case_23_a_code_of_one_provider_is_refused_by_another(api, idp, liar):
    liar.token = {"error": "invalid_grant"}
    name = collection(api, [idp.row(), liar.row("oidc2")])
    method = method_of(api, "oidc", name)
    back = idp.visit(method["authURL"] + idp.callback, person())
    assert present(api, back["code"], method["codeVerifier"], "oidc2", name).json == NO_TOKEN


def test_case_23_without_pkce_the_provider_lets_nobody_in(api, idp):
    name = collection(api, [idp.row(pkce=False)])
    method = method_of(api, collection=name)
    assert method["codeVerifier"] == method["codeChallenge"] == method["codeChallengeMethod"] == ""
    back = idp.visit(method["authURL"] + idp.callback, person())
    assert back["error"] == "invalid_request" and "code" not in back


def test_a_wrong_client_secret_is_refused(api, idp):
    name = collection(api, [idp.row(clientSecret="wrong")])
    assert sign_in(api, idp, person(), collection=name).json == NO_TOKEN


def test_a_made_up_code_is_refused(api):
    assert present(api, "made-up", "v" * 43).json == NO_TOKEN


@pytest.mark.parametrize("body, errors", [
    ({}, {"provider": "validation_required", "code": "validation_required"}),
    ({"provider": "oidc"}, {"code": "validation_required"}),
    ({"provider": "google", "code": "x"}, {"provider": "validation_invalid_provider"}),
    ({"provider": "x" * 101, "code": "x"}, {"provider": "validation_length_too_long"}),
])
def test_refused_forms(api, body, errors):
    refused = api.post("/api/collections/users/auth-with-oauth2", body)
    assert refused.json["message"] == "An error occurred while loading the submitted data." and refusal(refused) == (400, errors)


def test_collections_without_oauth2(api):
    name = f"members{next(_numbers)}"
    api.make(name, type="auth")
    for each in (name, "_superusers"):
        assert present(api, "x", collection=each).json == envelope(403, "The collection is not configured to allow OAuth2 authentication.")


def test_superusers_cannot_be_opened_to_providers(api, idp):
    changed = api.patch("/api/collections/_superusers", {"oauth2": {"enabled": True, "providers": [idp.row()]}}, token=api.su)
    assert changed.status == 200 and changed.json["oauth2"]["enabled"] is False and changed.json["oauth2"]["providers"] == []


# ---- the browser is sent back to the server, which tells the waiting client

GOOD, BAD = ("../_/#/auth/oauth2-redirect-" + word for word in ("success", "failure"))


def redirected(api, headers=None, **query):
    """(status, where the browser goes next) of a visit to the redirect address."""
    answer = api.get("/api/oauth2-redirect", params=query, headers=headers)
    assert answer.body == b""
    return answer.status, answer.headers["Location"]


def test_the_waiting_client_gets_the_code_from_the_redirect_address(api, idp):
    with api.events("@oauth2") as client:
        method, ann = method_of(api), person()
        address = method["authURL"].replace(method["state"], client.client_id) + idp.callback
        back = idp.visit(address, ann)
        assert redirected(api, **back) == (307, GOOD)
        assert client.next() == ("@oauth2", {"state": client.client_id, "code": back["code"]})
        assert present(api, back["code"], method["codeVerifier"]).json["record"]["email"] == ann["email"]


def test_case_23_a_redirect_serves_once(api):
    with api.events("@oauth2") as client:
        assert redirected(api, state=client.client_id, code="first") == (307, GOOD)
        assert redirected(api, state=client.client_id, code="second") == (307, BAD)
        assert client.next()[1]["code"] == "first"
        client.subscribe("@oauth2")
        assert redirected(api, state=client.client_id, code="third") == (307, GOOD)
        assert client.next()[1]["code"] == "third"    # and the second never came


@pytest.mark.parametrize("query", [{}, {"state": "", "code": "x"}, {"state": "guessed", "code": "x"}, {"code": "x"}, {"state": "x" * 10_000, "code": "x"}, {"state": "a\0b", "code": "x"}])
def test_case_23_a_guessed_state_is_refused(api, query):
    assert redirected(api, **query) == (307, BAD)


def test_case_23_a_client_that_waits_for_no_sign_in_gets_no_code(api):
    with api.events("users/*") as client:
        assert redirected(api, state=client.client_id, code="x") == (307, BAD)
        client.subscribe("@oauth2")
        assert redirected(api, state=client.client_id, code="mine") == (307, GOOD)
        assert client.next()[1]["code"] == "mine"


def test_case_23_a_redirect_from_another_address_is_refused_and_burns_the_state(api):
    api.settings(trustedProxy={"headers": ["X-Real-Ip"], "useLeftmostIP": False})
    try:
        with api.events("@oauth2") as client:
            assert redirected(api, {"X-Real-Ip": "10.0.0.9"}, state=client.client_id, code="planted") == (307, BAD)
            assert redirected(api, state=client.client_id, code="mine") == (307, BAD)
            client.subscribe("@oauth2")
            assert redirected(api, state=client.client_id, code="again") == (307, GOOD)
            assert client.next()[1]["code"] == "again"
    finally:
        api.settings(trustedProxy={"headers": [], "useLeftmostIP": False})


@pytest.mark.parametrize("query, told", [({"error": "access_denied"}, {"code": "", "error": "access_denied"}), ({}, {"code": ""}), ({"code": "x", "error": "e"}, {"code": "x", "error": "e"})])
def test_a_refusal_of_the_provider_reaches_the_waiting_client(api, query, told):
    with api.events("@oauth2") as client:
        assert redirected(api, state=client.client_id, **query) == (307, BAD)
        assert client.next() == ("@oauth2", {"state": client.client_id, **told})


def test_providers_may_post_to_the_redirect_address(api):
    with api.events("@oauth2") as client:
        answer = api.post("/api/oauth2-redirect", urlenc={"state": client.client_id, "code": "123456"})
        assert (answer.status, answer.headers["Location"]) == (303, GOOD)
        assert client.next() == ("@oauth2", {"state": client.client_id, "code": "123456"})


@pytest.mark.parametrize("body, kind", [(b"{", "application/json"), (b"state=x", "text/plain"), (b"x", "")])
def test_what_cannot_be_read_leads_to_the_failure_page(api, body, kind):
    answer = api.post("/api/oauth2-redirect", body=body, headers={"Content-Type": kind})
    assert (answer.status, answer.headers["Location"]) == (303, BAD)


def test_case_23_the_redirect_address_sends_nobody_elsewhere(api):
    for query in ({"redirect": "https://evil.example.com"}, {"redirect_uri": "//evil.example.com"}, {"state": "//evil.example.com", "error": "\r\nLocation: http://evil.example.com"}):
        assert redirected(api, {"Host": "evil.example.com", "X-Forwarded-Host": "evil.example.com"}, **query) == (307, BAD)


# ---- id tokens of a provider that lies

@pytest.fixture
def by_id_token(api, liar):
    """Signs in with an id token as the only word on who it is; the arguments are those of LyingProvider.sign."""
    name = collection(api, [liar.row(userInfoURL="", extra={"issuers": [liar.url], "jwksURL": liar.url + "/jwks"})])

    def attempt(id_token=None, **changes):
        liar.token = {"access_token": "access", "id_token": liar.sign(**changes) if id_token is None else id_token}
        answer = present(api, "code", collection=name)
        assert answer.status == 200 or count(api, name) == 0
        return answer
    return attempt


def test_a_good_id_token_is_accepted(by_id_token):
    answer = by_id_token()
    assert answer.status == 200 and answer.json["record"]["email"] == "ann@example.com" and answer.json["record"]["verified"] is True


def test_case_22_an_id_token_of_a_wrong_issuer_is_refused(by_id_token):
    assert by_id_token(iss="https://evil.example.com").json == NO_USER


def test_case_22_an_id_token_without_issuer_is_refused(by_id_token):
    assert by_id_token(iss=None).json == NO_USER


def test_case_22_an_id_token_for_a_wrong_audience_is_refused(by_id_token):
    assert by_id_token(aud="another-app").json == NO_USER


def test_case_22_an_id_token_without_audience_is_refused(by_id_token):
    assert by_id_token(aud=None).json == NO_USER


@beyond
def test_case_22_an_id_token_issued_to_another_party_is_refused(by_id_token):
    assert by_id_token(aud=["app", "another-app"], azp="another-app").json == NO_USER


def test_case_22_an_expired_id_token_is_refused(by_id_token):
    assert by_id_token(exp=1_700_000_000).json == NO_USER


def test_case_22_an_id_token_of_the_future_is_refused(by_id_token):
    assert by_id_token(nbf=4_000_000_000).json == NO_USER


def test_case_22_an_id_token_with_a_text_as_expiry_is_refused(by_id_token):
    assert by_id_token(exp="9999999999").json == NO_USER


def test_case_22_an_id_token_with_alg_none_is_refused(by_id_token):
    assert by_id_token(algorithm="none").json == NO_USER


def test_case_22_an_id_token_with_its_signature_cut_off_is_refused(by_id_token, liar):
    assert by_id_token(liar.sign().rpartition(".")[0] + ".").json == NO_USER


def test_case_22_an_id_token_signed_by_a_foreign_key_is_refused(by_id_token):
    assert by_id_token(key="foreign").json == NO_USER


def test_case_22_an_id_token_with_an_unknown_key_id_is_refused(by_id_token):
    assert by_id_token(key="foreign", kid="foreign").json == NO_USER


def test_case_22_an_id_token_signed_with_the_public_key_as_secret_is_refused(by_id_token):
    assert by_id_token(algorithm="HS256").json == NO_USER


def test_case_22_an_id_token_that_brings_its_own_key_is_refused(by_id_token, liar):
    import jwt
    foreign = jwt.algorithms.RSAAlgorithm.to_jwk(liar.keys["foreign"].public_key(), as_dict=True)
    claims = jwt.decode(liar.sign(), options={"verify_signature": False})
    token = jwt.encode(claims, liar.keys["foreign"], "RS256", headers={"kid": "own", "jwk": foreign, "jku": "http://evil.example.com/jwks"})
    assert by_id_token(token).json == NO_USER


def test_case_22_an_id_token_with_changed_claims_is_refused(by_id_token, liar):
    head, _, signature = liar.sign().split(".")
    assert by_id_token(".".join((head, liar.sign(sub="somebody-else").split(".")[1], signature))).json == NO_USER


@pytest.mark.parametrize("token", ["", "garbage", "a.b.c", "x" * 100_000, None, 5, {}])
def test_a_missing_or_garbled_id_token_is_refused(api, liar, token):
    name = collection(api, [liar.row(userInfoURL="")])
    liar.token = {"access_token": "access", "id_token": token}
    assert present(api, "code", collection=name).json == NO_USER and count(api, name) == 0


@beyond
def test_a_user_info_of_another_user_than_the_id_token_is_refused(api, liar):
    name = collection(api, [liar.row()])
    liar.user, liar.token = person(sub="somebody-else"), {"access_token": "access", "id_token": liar.sign()}
    assert present(api, "code", collection=name).json == NO_USER and count(api, name) == 0


@pytest.mark.parametrize("user", [{}, {"sub": ""}, {"sub": None}, {"sub": 5}, {"sub": ["x"]}, {"sub": "x" * 10_000}])
def test_users_without_a_proper_id_get_no_account(api, liar, user):
    name = collection(api, [liar.row()])
    liar.user = {"email": "ann@example.com", "email_verified": True, **user}
    assert present(api, "code", collection=name).status == 400 and count(api, name) == 0


def test_a_provider_that_never_answers_holds_nobody_else_up(api):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(kit.PATIENCE)
        name, waited = collection(api, [{**LyingProvider.row(_Nowhere, "oidc"), "tokenURL": f"http://127.0.0.1:{listener.getsockname()[1]}/token"}]), []
        waiting = threading.Thread(target=lambda: waited.append(present(api, "code", collection=name)))
        waiting.start()
        calls = [listener.accept()[0]]
        assert api.get("/api/health").status == 200 and waited == []
        listener.settimeout(0.1)
        while waiting.is_alive():    # it tries twice: credentials in the header, then in the form
            calls.pop().close() if calls else None
            try:
                calls.append(listener.accept()[0])
            except TimeoutError:
                pass
        waiting.join()
    assert waited[0].json == NO_TOKEN


class _Nowhere:
    url = "http://127.0.0.1:1"


def test_a_provider_that_is_down_is_an_error_of_the_client_request_only(api):
    name = collection(api, [LyingProvider.row(_Nowhere, "oidc")])
    assert present(api, "code", collection=name).json == NO_TOKEN


# ---- whose account it is

def test_case_20_who_waits_with_a_password_in_an_unverified_account_is_thrown_out(api, idp):
    """CVE-2024-38351"""
    victim = person()
    waiting = api.add_user(victim["email"])
    session = api.login("users", victim["email"])
    answer = sign_in(api, idp, victim)
    assert answer.status == 200 and answer.json["record"]["id"] == waiting["id"] and answer.json["record"]["verified"] is True
    assert not alive(api, session) and alive(api, answer.json["token"])
    assert password_login(api, victim["email"]).status == 400


def test_case_20_who_waits_with_another_provider_in_an_unverified_account_is_thrown_out(api, idp):
    """CVE-2026-44166"""
    victim, attacker = person(), person(email_verified=False)
    planted = sign_in(api, idp, attacker, "oidc2", createData={"email": victim["email"], "password": PASSWORD, "passwordConfirm": PASSWORD}).json
    assert planted["record"]["email"] == victim["email"] and planted["record"]["verified"] is False
    answer = sign_in(api, idp, victim, "oidc").json
    assert answer["record"]["id"] == planted["record"]["id"] and answer["record"]["verified"] is True
    assert links(api, answer["record"]["id"]) == {"oidc": victim["sub"]}
    assert not alive(api, planted["token"]) and password_login(api, victim["email"]).status == 400
    later = sign_in(api, idp, attacker, "oidc2")
    assert later.status == 400 or later.json["record"]["id"] != planted["record"]["id"]


@pytest.mark.parametrize("way", ["a one-time password", "the verification link", "the reset link"])
def test_case_20_who_waits_with_a_provider_is_thrown_out_when_the_owner_comes_by_mail(api, idp, mailbox, way):
    victim, attacker = person(), person(email_verified=False)
    name = collection(api, [idp.row(), idp.row("oidc2")], otp={"enabled": True, "duration": 180, "length": 8})
    planted = sign_in(api, idp, attacker, "oidc2", name, createData={"email": victim["email"]}).json
    assert planted["record"]["verified"] is False and links(api, planted["record"]["id"]) == {"oidc2": attacker["sub"]}
    base = f"/api/collections/{name}/"
    if way == "a one-time password":
        id = api.post(base + "request-otp", {"email": victim["email"]}).json["otpId"]
        code = mailbox.letter(victim["email"]).code
        wait_until(lambda: api.db("select sentTo from _otps where id = ?", id) == [(victim["email"],)])
        assert api.post(base + "auth-with-otp", {"otpId": id, "password": code}).status == 200
    elif way == "the verification link":
        api.post(base + "request-verification", {"email": victim["email"]})
        assert api.post(base + "confirm-verification", {"token": mailbox.letter(victim["email"]).token}).status == 204
    else:
        api.post(base + "request-password-reset", {"email": victim["email"]})
        body = {"token": mailbox.letter(victim["email"]).token, "password": "new-password", "passwordConfirm": "new-password"}
        assert api.post(base + "confirm-password-reset", body).status == 204
    assert links(api, planted["record"]["id"]) == {} and not alive(api, planted["token"], name)
    mine = sign_in(api, idp, victim, "oidc", name).json
    assert mine["record"]["id"] == planted["record"]["id"] and mine["record"]["verified"] is True
    later = sign_in(api, idp, attacker, "oidc2", name)
    assert later.status == 400 or later.json["record"]["id"] != planted["record"]["id"]


def test_a_verified_account_keeps_its_password_and_sessions(api, idp):
    ann = person()
    record, session = api.add_user(ann["email"], verified=True), api.login("users", ann["email"])
    answer = sign_in(api, idp, ann).json
    assert answer["record"]["id"] == record["id"] and answer["meta"]["isNew"] is False
    assert alive(api, session) and password_login(api, ann["email"]).status == 200


@pytest.mark.parametrize("changes", [
    {"email_verified": False}, {"email_verified": "false"}, {"email_verified": None}, {"email_verified": 0}, {"email_verified": {}},
])
def test_case_21_an_address_that_the_provider_does_not_vouch_for_opens_no_account(api, liar, changes):
    name, victim = collection(api, [liar.row()]), person()
    api.add_user(victim["email"], name, verified=True)
    liar.user = {**victim, **changes}
    assert refusal(present(api, "code", collection=name)) == (400, {"email": "validation_required"})


@pytest.mark.parametrize("vouched", [True, "true", "1", 1])
def test_case_21_an_address_that_the_provider_vouches_for_finds_its_account(api, liar, vouched):
    name, ann = collection(api, [liar.row()]), person()
    record = api.add_user(ann["email"], name, verified=True)
    liar.user = {**ann, "email_verified": vouched}
    assert present(api, "code", collection=name).json["record"]["id"] == record["id"]


@pytest.mark.parametrize("other", [
    "VICTIM@example.com", "victim@EXAMPLE.com", "victim@examрle.com", "vıctim@example.com", " victim@example.com", "victim@example.com ", "victim@example.com\0",
    "victim@example.com\n", "victim+x@example.com", '"victim"@example.com', "victim@example.com,evil@example.com",
])
def test_case_21_an_address_that_only_looks_alike_opens_no_account(api, liar, other):
    name = collection(api, [liar.row()])
    victim = api.add_user("victim@example.com", name, verified=True)
    liar.user = person(email=other)
    answer = present(api, "code", collection=name)
    assert answer.status == 400 or answer.json["record"]["id"] != victim["id"]
    assert links(api, victim["id"]) == {}


def test_linking_while_signed_in(api, idp):
    mine = api.add_user(person()["email"], verified=True)
    token, account = api.login("users", mine["email"]), person()
    linked = sign_in(api, idp, account, token=token).json
    assert linked["record"]["id"] == mine["id"] and linked["record"]["email"] == mine["email"] and linked["meta"]["isNew"] is False
    assert sign_in(api, idp, account).json["record"]["id"] == mine["id"]    # as guest, by the link
    assert alive(api, token) and password_login(api, mine["email"]).status == 200


def test_the_owner_of_an_unverified_account_links_without_losing_the_password(api, idp):
    account = person()
    mine = api.add_user(account["email"])
    linked = sign_in(api, idp, account, token=api.login("users", mine["email"])).json
    assert linked["record"]["id"] == mine["id"] and linked["record"]["verified"] is True
    assert password_login(api, mine["email"]).status == 200


def test_an_account_linked_elsewhere_stays_there(api, idp):
    theirs = person()
    owner = sign_in(api, idp, theirs).json["record"]["id"]
    mine = api.add_user(person()["email"], verified=True)
    assert sign_in(api, idp, theirs, token=api.login("users", mine["email"])).json["record"]["id"] == owner
    assert links(api, mine["id"]) == {}


def test_a_second_account_of_one_provider_is_refused(api, idp):
    first = sign_in(api, idp, person()).json
    refused = sign_in(api, idp, person(), token=first["token"])
    assert refused.json["message"] == "Failed to authenticate." and set(refusal(refused)[1].values()) == {"validation_not_unique"}
    assert sign_in(api, idp, person(), "oidc2", token=first["token"]).json["record"]["id"] == first["record"]["id"]
    assert set(links(api, first["record"]["id"])) == {"oidc", "oidc2"}


def test_who_is_signed_in_to_another_collection_is_not_linked(api, idp):
    name, ann = collection(api, [idp.row()]), person()
    stranger = api.add_user(person()["email"], name, verified=True)
    answer = sign_in(api, idp, ann, token=api.login(name, stranger["email"]))
    assert answer.json["record"]["collectionName"] == "users" and answer.json["record"]["id"] != stranger["id"]
    assert links(api, stranger["id"]) == {}


def test_unlinking_is_for_the_owner(api, idp):
    ann, other = person(), person()
    mine, theirs = sign_in(api, idp, ann).json, sign_in(api, idp, other).json
    [link] = api.get(records("_externalAuths"), token=mine["token"]).json["items"]
    assert (link["provider"], link["providerId"], link["recordRef"]) == ("oidc", ann["sub"], mine["record"]["id"])
    assert api.get(records("_externalAuths")).json["totalItems"] == 0
    for token in (theirs["token"], None):
        assert api.delete(records("_externalAuths", link["id"]), token=token).status == 404
    assert api.delete(records("_externalAuths", link["id"]), token=mine["token"]).status == 204
    assert links(api, mine["record"]["id"]) == {}
    stranger = sign_in(api, idp, {**ann, "email": person()["email"]}).json
    assert stranger["record"]["id"] != mine["record"]["id"] and stranger["meta"]["isNew"] is True


def test_links_are_made_by_signing_in_only(api, idp):
    mine = sign_in(api, idp, person()).json
    body = {"collectionRef": "_pb_users_auth_", "recordRef": mine["record"]["id"], "provider": "oidc2", "providerId": "x"}
    assert api.post(records("_externalAuths"), body, token=mine["token"]).status == 403
    [link] = api.get(records("_externalAuths"), token=mine["token"]).json["items"]
    assert api.patch(records("_externalAuths", link["id"]), {"providerId": "x"}, token=mine["token"]).status == 403


def test_links_go_with_their_record(api, idp):
    mine = sign_in(api, idp, person()).json["record"]
    assert api.delete(records("users", mine["id"]), token=api.su).status == 204
    assert links(api, mine["id"]) == {}


def test_a_provider_that_was_removed_lets_nobody_in(api, idp):
    name, ann = collection(api, [idp.row(), idp.row("oidc2")]), person()
    assert sign_in(api, idp, ann, collection=name).status == 200
    enable(api, name, [idp.row("oidc2")])
    assert refusal(present(api, "code", collection=name)) == (400, {"provider": "validation_invalid_provider"})


# ---- the record of a new account

def test_mapped_fields_are_filled_on_creation_only(api, idp):
    mapped = {"id": "ext", "name": "full", "username": "nick", "avatarURL": "picture"}
    name = collection(api, [idp.row()], ["ext", "full", "nick", "picture:url"], mappedFields=mapped)
    ann = person(picture="https://pictures.example.com/ann.png")
    record = sign_in(api, idp, ann, collection=name).json["record"]
    assert (record["ext"], record["full"], record["nick"], record["picture"]) == (ann["sub"], ann["name"], ann["preferred_username"], ann["picture"])
    assert sign_in(api, idp, {**ann, "name": "New"}, collection=name).json["record"]["full"] == ann["name"]


@pytest.mark.parametrize("username, kept", [("good", True), ("not good!", False), ("taken", False), ("TAKEN", False)])
def test_a_username_is_taken_over_when_it_fits_and_is_free(api, liar, username, kept):
    name = f"members{next(_numbers)}"
    index = f"CREATE UNIQUE INDEX idx_{name} ON {name} (nick COLLATE NOCASE) WHERE nick != ''"
    api.make(name, [{"name": "nick", "type": "text", "pattern": "^[A-Za-z]*$"}], type="auth", indexes=[index],
             oauth2={"enabled": True, "providers": [liar.row()], "mappedFields": {"username": "nick"}})
    api.add_user(person()["email"], name, nick="taken")
    liar.user = person(preferred_username=username)
    answer = present(api, "code", collection=name)
    assert answer.status == 200 and answer.json["record"]["nick"] == (username if kept else "")


def test_submitted_data_wins_over_the_provider(api, idp):
    ann, other = person(), person()["email"]
    answer = sign_in(api, idp, ann, createData={"name": "Chosen", "email": other, "password": PASSWORD, "passwordConfirm": PASSWORD}).json
    assert (answer["record"]["name"], answer["record"]["email"], answer["record"]["verified"]) == ("Chosen", other, False)
    assert password_login(api, other).status == 200


@pytest.mark.parametrize("data, errors", [
    ({"verified": True}, {"verified": "validation_values_mismatch"}),
    ({"password": "short", "passwordConfirm": "short"}, {"password": "validation_min_text_constraint"}),
    ({"password": "1234567890"}, {"passwordConfirm": "validation_required"}),
    ({"email": "bad"}, {"email": "validation_is_email"}),
    ({"email": "root@example.com", "id": "BAD ID"}, {"id": "validation_invalid_format"}),
])
def test_case_18_submitted_data_obeys_the_rules_of_a_sign_up(api, idp, data, errors):
    before, ann = count(api, "users"), person()
    refused = sign_in(api, idp, ann, createData=data)
    assert refused.status == 400 and set(refusal(refused)[1]) == set(errors), refused
    assert count(api, "users") == before


def test_case_18_submitted_data_does_not_set_the_key_of_tokens(api, idp):
    record = sign_in(api, idp, person(), createData={"tokenKey": "k" * 40}).json["record"]
    assert api.db("select tokenKey from users where id = ?", record["id"]) != [("k" * 40,)]


def test_case_18_submitted_data_cannot_take_an_existing_record_over(api, idp):
    victim = api.add_user(person()["email"], verified=True)
    for data in ({"id": victim["id"]}, {"email": victim["email"]}):
        refused = sign_in(api, idp, person(), createData=data)
        assert refused.status == 400 and links(api, victim["id"]) == {}
    assert password_login(api, victim["email"]).status == 200


@pytest.mark.parametrize("rule, status", [
    ("", 200), (None, 403), ("@request.context = 'oauth2'", 200), ("@request.context = 'default'", 400), ("@request.body.name = 'let me in'", 200),
    ("@request.body.email ?~ '@evil.example.com'", 400), ("@request.auth.id != ''", 400),
])
def test_the_create_rule_says_who_may_get_an_account(api, idp, rule, status):
    name, ann = collection(api, [idp.row()], ["name"], createRule=rule), person()
    answer = sign_in(api, idp, ann, collection=name, createData={"name": "let me in"})
    assert answer.status == status and count(api, name) == (status == 200)
    assert links(api, answer.json["record"]["id"] if status == 200 else "") == ({"oidc": ann["sub"]} if status == 200 else {})


def test_the_create_rule_does_not_ask_who_has_an_account(api, idp):
    name, ann = collection(api, [idp.row()], createRule=None), person()
    record = api.add_user(ann["email"], name, verified=True)
    assert sign_in(api, idp, ann, collection=name).json["record"]["id"] == record["id"]


@pytest.mark.parametrize("rule, status", [(None, 403), ("verified = true", 200), ("name = 'invited'", 403), ("@request.context = 'oauth2'", 200)])
def test_the_auth_rule_is_asked_too(api, idp, rule, status):
    name = collection(api, [idp.row()], ["name"], authRule=rule)
    answer = sign_in(api, idp, person(), collection=name)
    assert answer.status == status and (status == 200 or "token" not in answer.json)


def test_a_second_factor_is_asked_for_after_a_provider_too(api, idp):
    name, ann = collection(api, [idp.row(), idp.row("oidc2")], mfa={"enabled": True, "duration": 600, "rule": ""}), person()
    api.add_user(ann["email"], name, verified=True)
    first = sign_in(api, idp, ann, collection=name)
    assert first.status == 401 and list(first.json) == ["mfaId"]
    again = sign_in(api, idp, ann, "oidc2", name, mfaId=first.json["mfaId"])
    assert again.json == envelope(400, "A different authentication method is required.")
    assert password_login(api, ann["email"], name, mfaId=first.json["mfaId"]).status == 200


# ---- pictures

@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]", "user:pw@127.0.0.1"])
def test_case_34_a_picture_inside_the_network_is_not_fetched(api, liar, host):
    liar.files["/ann.png"] = 200, {"Content-Type": "image/png"}, PICTURE
    enable(api, rows=[*_rows(api), liar.row("oidc3")], mappedFields={"name": "name", "avatarURL": "avatar"})
    port = urllib.parse.urlsplit(liar.url).port
    liar.user = person(picture=f"http://{host}:{port}/ann.png")
    answer = present(api, "code", provider="oidc3")
    assert answer.status == 200 and answer.json["record"]["avatar"] == ""
    assert "/me" in liar.paths() and "/ann.png" not in liar.paths()


def _rows(api):
    """The configured providers but oidc3; what is left out of a row is kept."""
    shown = api.get("/api/collections/users", token=api.su).json["oauth2"]["providers"]
    return [{"name": row["name"]} for row in shown if row["name"] != "oidc3"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "gopher://127.0.0.1:25/_x", "javascript:alert(1)", "/etc/passwd", "../../data.db", "x" * 5000])
def test_case_34_a_picture_address_that_is_none_is_ignored(api, liar, url):
    name = collection(api, [liar.row()], ["picture:file"], mappedFields={"avatarURL": "picture"})
    liar.user = person(picture=url)
    answer = present(api, "code", collection=name)
    assert answer.status == 200 and answer.json["record"]["picture"] == ""


# `pictures.test` counts as a public address here, though it is this machine: so that a test needs no Internet
LAUNCHER = f"""
import sys
sys.path.insert(0, {kit.HOME!r})
import pocketbase
checked = pocketbase.public_addresses
pocketbase.public_addresses = lambda host, port: ["127.0.0.1"] if host == "pictures.test" else checked(host, port)
sys.exit(pocketbase.main())
"""


@pytest.fixture(scope="module")
def outdoors():
    """A server to which one host of this machine is public."""
    with kit.Server(command=[sys.executable, "-c", LAUNCHER]) as running:
        yield running


def public_person(liar, path):
    """Somebody new whose picture is at a path of the public host."""
    return person(picture=f"http://pictures.test:{urllib.parse.urlsplit(liar.url).port}{path}")


def picture_of(server, liar, path, **more):
    """Signs such a person in."""
    enable(server, rows=[liar.row()], mappedFields={"avatarURL": "avatar"})
    liar.user = public_person(liar, path)
    return present(server, "code", **more)


@beyond
def test_a_public_picture_is_fetched_and_stored(outdoors, liar):
    liar.files["/ann.png"] = 200, {"Content-Type": "image/png"}, PICTURE
    record = picture_of(outdoors, liar, "/ann.png").json["record"]
    assert record["avatar"].startswith("ann_") and record["avatar"].endswith(".png")
    assert outdoors.get(f"/api/files/users/{record['id']}/{record['avatar']}").body == PICTURE


@beyond
@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/secret.png", "http://localhost:{port}/secret.png", "//2130706433:{port}/secret.png", "http://[::ffff:127.0.0.1]:{port}/secret.png"])
@pytest.mark.parametrize("status", [301, 302, 307])
def test_case_34_a_public_picture_that_redirects_inside_the_network_is_not_followed(outdoors, liar, target, status):
    liar.files["/secret.png"] = 200, {"Content-Type": "image/png"}, PICTURE
    liar.files["/ann.png"] = status, {"Location": target.format(port=urllib.parse.urlsplit(liar.url).port)}, b""
    assert picture_of(outdoors, liar, "/ann.png").json["record"]["avatar"] == ""
    assert "/ann.png" in liar.paths() and "/secret.png" not in liar.paths()


@beyond
def test_a_picture_of_a_kind_that_the_field_does_not_take_is_not_stored(outdoors, liar):
    liar.files["/ann.png"] = 200, {"Content-Type": "image/png"}, b"<html><script>alert(1)</script></html>"
    assert refusal(picture_of(outdoors, liar, "/ann.png")) == (400, {"avatar": "validation_invalid_mime_type"})
    assert outdoors.db("select count(*) from users where email = ?", liar.user["email"]) == [(0,)]


@beyond
def test_case_34_an_address_that_the_client_submits_as_picture_is_not_fetched(outdoors, liar):
    liar.files["/mine.png"] = 200, {"Content-Type": "image/png"}, PICTURE
    refused = picture_of(outdoors, liar, "/ann.png", createData={"avatar": liar.url.replace("127.0.0.1", "pictures.test") + "/mine.png"})
    assert refusal(refused) == (400, {"avatar": "validation_invalid_file"}) and "/mine.png" not in liar.paths()


@beyond
def test_sign_ins_at_the_same_moment_store_one_picture(outdoors, liar):
    liar.files["/ann.png"] = 200, {"Content-Type": "image/png"}, PICTURE
    folder = os.path.join(outdoors.dir, "storage", "_pb_users_auth_")
    before = set(os.listdir(folder)) if os.path.exists(folder) else set()
    liar.user = public_person(liar, "/ann.png")
    enable(outdoors, rows=[liar.row()], mappedFields={"avatarURL": "avatar"})
    answers = salvo(outdoors, "POST", "/api/collections/users/auth-with-oauth2", [{"provider": "oidc", "code": f"code{number}"} for number in range(4)])
    assert {(answer.status, answer.json["record"]["id"]) for answer in answers} == {(200, answers[0].json["record"]["id"])}
    assert outdoors.stop() == 0    # what is cleaned up in the background is done then
    outdoors.start()
    assert [name for name in set(os.listdir(folder)) - before if os.listdir(os.path.join(folder, name))] == [answers[0].json["record"]["id"]]
