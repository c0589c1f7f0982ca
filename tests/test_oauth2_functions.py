"""OAuth2: the provider table, addresses, token exchange, user mapping, id tokens and keys, Apple's secret, guarded downloads."""
import base64
import datetime
import hashlib
import http.server
import json
import socket
import ssl
import threading
import time
import urllib.parse
import xml.etree.ElementTree

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric import rsa

from unit import pocketbase as oauth2

TOKEN_FAILED, USER_FAILED = "Failed to fetch OAuth2 token.", "Failed to fetch OAuth2 user."


class Web:
    """A local server: answers is {path: (status, body or JSON value, headers) or a function of the handler}; seen logs requests."""

    def __init__(self, host="127.0.0.1", tls=None):
        self.answers, self.seen = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                outer.seen.append((self.command, self.path, dict(self.headers), body))
                found = outer.answers.get(self.path.partition("?")[0], (404, {}))
                if callable(found):
                    return found(self)
                status, value, headers = (*found, {})[:3]
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)
            do_GET = do_POST = answer

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *args):
                pass

        self.server = Server((host, 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.url = f"http{'s' if tls else ''}://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(oauth2, "key_sets", oauth2.KeySets())
    running = []

    def start(*args, **options):
        running.append(Web(*args, **options))
        return running[-1]
    yield start
    for one in running:
        one.close()


def provider(web, name, **more):
    return oauth2.provider_config({"name": name, "clientId": "cid", "clientSecret": "sec", "authURL": web.url + "/authorize", "tokenURL": web.url + "/token",
                                   "userInfoURL": web.url + "/me", **more})


# ---- the table

def test_provider_order_and_defaults():
    assert list(oauth2.PROVIDERS) == (
        "apple google microsoft yandex facebook instagram2 github gitlab bitbucket gitee gitea discord twitter kakao vk linear notion monday lark box "
        "spotify trakt twitch patreon strava wakatime livechat mailcow planningcenter oidc oidc2 oidc3").split()
    assert [name for name, row in oauth2.PROVIDERS.items() if not row["pkce"]] == ["bitbucket", "vk", "linear"]
    assert [name for name, row in oauth2.PROVIDERS.items() if not row["authURL"]] == ["mailcow", "oidc", "oidc2", "oidc3"]
    assert [name for name, row in oauth2.PROVIDERS.items() if not row["scopes"]] == ["notion", "lark", "trakt", "livechat"]
    for row in oauth2.PROVIDERS.values():
        assert all(row[key].startswith("https://") for key in ("authURL", "tokenURL", "userInfoURL") if row[key])
        assert set(row) == set(oauth2._PROVIDER_DEFAULTS) | {"displayName"}


def test_provider_list_has_own_marks():
    rows = oauth2.provider_list()
    assert rows[0]["name"] == "apple" and list(rows[0]) == ["name", "displayName", "logo"] and rows[14]["displayName"] == "ВКонтакте"
    for row in rows:
        assert len(xml.etree.ElementTree.fromstring(row["logo"])) == 2


def test_provider_config_merges_the_configured_row():
    given = oauth2.provider_config({"name": "gitlab", "clientId": "c", "clientSecret": "s", "authURL": "https://git.example.com/a", "tokenURL": "", "pkce": None})
    assert given["authURL"] == "https://git.example.com/a" and given["tokenURL"] == "https://gitlab.com/oauth/token"
    assert given["displayName"] == "GitLab" and given["pkce"] is True and given["extra"] == {}
    assert oauth2.provider_config({"name": "vk", "pkce": True})["pkce"] is True
    assert oauth2.provider_config({"name": "gitlab", "pkce": False})["pkce"] is False
    assert oauth2.provider_config({"name": "nope"}) is None


# ---- sending away

def test_auth_urls_as_measured():
    def url(name, **row):
        return oauth2.auth_url(oauth2.provider_config({"name": name, "clientId": "CID", **row}), "ST", row.pop("challenge", "CH"))
    assert url("gitlab") == ("https://gitlab.com/oauth/authorize?client_id=CID&code_challenge=CH&code_challenge_method=S256&response_type=code"
                             "&scope=read_user&state=ST&redirect_uri=")
    assert url("apple") == ("https://appleid.apple.com/auth/authorize?client_id=CID&code_challenge=CH&code_challenge_method=S256"
                            "&response_mode=form_post&response_type=code&scope=name+email&state=ST&redirect_uri=")
    assert url("oidc").startswith("?client_id=CID&") and "&scope=openid+email+profile&" in url("oidc")
    assert url("oidc", authURL="http://x/a?prompt=y").startswith("http://x/a?prompt=y&client_id=CID&")
    assert "scope" not in url("notion") and "scope=login%3Aemail+login%3Aavatar+login%3Ainfo&" in url("yandex")
    assert "scope=User.Read+openid&" in url("microsoft", extra={"idTokenEmailClaim": "email"}) and "scope=User.Read&" in url("microsoft")


def test_auth_method_item():
    item = oauth2.auth_method(oauth2.provider_config({"name": "google", "clientId": "g"}))
    assert list(item) == ["name", "displayName", "logo", "state", "authURL", "authUrl", "codeVerifier", "codeChallenge", "codeChallengeMethod"]
    assert (len(item["state"]), len(item["codeVerifier"]), item["codeChallengeMethod"]) == (30, 43, "S256")
    digest = hashlib.sha256(item["codeVerifier"].encode()).digest()
    assert item["codeChallenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=") and item["codeChallenge"] in item["authURL"]
    plain = oauth2.auth_method(oauth2.provider_config({"name": "vk", "clientId": "g"}))
    assert [plain[key] for key in ("codeVerifier", "codeChallenge", "codeChallengeMethod")] == ["", "", ""] and "code_challenge" not in plain["authURL"]
    assert item["state"] != oauth2.auth_method(oauth2.provider_config({"name": "google", "clientId": "g"}))["state"]


def test_code_challenge_of_rfc_7636():
    assert oauth2.code_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


# ---- code for token

def test_exchange_sends_basic_then_form(web):
    site = web()
    one = provider(site, "oidc", clientId="c:id", clientSecret="s ec")
    site.answers["/token"] = 200, {"access_token": "AT"}
    assert oauth2.exchange_code(one, "abc", "ver", "http://r/cb") == {"access_token": "AT"}
    (method, _, headers, body), = site.seen
    assert method == "POST" and headers["Authorization"] == "Basic YyUzQWlkOnMrZWM=" and headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert body == "code=abc&code_verifier=ver&grant_type=authorization_code&redirect_uri=http%3A%2F%2Fr%2Fcb"
    site.seen.clear()
    site.answers["/token"] = 401, {"error": "invalid_client", "secret": "do not log"}
    with pytest.raises(oauth2.OAuth2Error) as caught:
        oauth2.exchange_code(one, "abc", "", "")
    assert (caught.value.status, caught.value.message, caught.value.raw) == (400, TOKEN_FAILED, "token endpoint: status 401, invalid_client")
    assert [("Authorization" in headers, body) for _, _, headers, body in site.seen] == [
        (True, "code=abc&code_verifier=&grant_type=authorization_code"),
        (False, "client_id=c%3Aid&client_secret=s+ec&code=abc&code_verifier=&grant_type=authorization_code")]


@pytest.mark.parametrize("status,body,kind,good", [
    (200, b"access_token=AT&expires_in=60", "application/x-www-form-urlencoded", True), (200, b"access_token=AT", "text/plain; charset=utf-8", True),
    (200, b'{"access_token":"AT"}', "text/javascript", True), (200, b'{"access_token":""}', "application/json", False), (200, b"{", "application/json", False),
    (200, b'{"access_token":5}', "application/json", False), (200, b"[]", "application/json", False), (500, b'{"access_token":"AT"}', "application/json", False),
    (200, b"[" * 100000, "application/json", False), (200, b"error=x", "text/plain", False)])
def test_token_answers(web, status, body, kind, good):
    site = web()
    site.answers["/token"] = status, body, {"Content-Type": kind}
    if good:
        assert oauth2.exchange_code(provider(site, "google"), "c")["access_token"] == "AT"
    else:
        with pytest.raises(oauth2.OAuth2Error, match=TOKEN_FAILED):
            oauth2.exchange_code(provider(site, "google"), "c")


def test_token_endpoint_redirect_does_not_carry_the_secret_on(web):
    site, other = web(), web()
    site.answers["/token"] = 307, b"", {"Location": other.url + "/token"}
    other.answers["/token"] = 200, {"access_token": "AT"}
    with pytest.raises(oauth2.OAuth2Error, match=TOKEN_FAILED):
        oauth2.exchange_code(provider(site, "google"), "c", "v")
    assert other.seen == []


def test_unreachable_and_missing_endpoints(web):
    site = web()
    for url in ("http://127.0.0.1:1/", "nonsense", "http://[", "ftp://x/", "http://nosuch.invalid/"):
        with pytest.raises(oauth2.OAuth2Error, match=TOKEN_FAILED):
            oauth2.exchange_code(provider(site, "google", tokenURL=url), "c")
    with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
        oauth2.fetch_user(oauth2.provider_config({"name": "mailcow", "clientId": "c"}), {"access_token": "AT"})


def test_answer_beyond_the_cap_is_refused(web, monkeypatch):
    monkeypatch.setattr(oauth2, "_OAUTH2_BODY", 1000)
    site = web()
    site.answers["/me"] = 200, {"id": "1", "name": "x" * 2000}
    with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED) as caught:
        oauth2.fetch_user(provider(site, "microsoft"), {"access_token": "AT"})
    assert caught.value.raw == "the provider's answer is too large"


# ---- token for user: provider, user info, expected (id, name, username, email, avatarURL), more answers, more of the token

ONE_BYTE = "x@example.com"
MAPPINGS = [
    ("google", {"sub": "g", "name": "N", "email": ONE_BYTE, "email_verified": True, "picture": "P"}, ("g", "N", "", ONE_BYTE, "P")),
    ("google", {"sub": "g", "email": ONE_BYTE, "email_verified": False}, ("g", "", "", "", "")),
    ("google", {"sub": "g", "email": ONE_BYTE}, ("g", "", "", "", "")),
    ("microsoft", {"id": "m", "displayName": "N", "mail": ONE_BYTE}, ("m", "N", "", ONE_BYTE, "")),
    ("microsoft", {"id": "m", "displayName": "N", "mail": None}, ("m", "N", "", "", "")),
    ("yandex", {"id": "y", "real_name": "N", "login": "U", "default_email": ONE_BYTE, "default_avatar_id": "a", "is_avatar_empty": False},
     ("y", "N", "U", ONE_BYTE, "https://avatars.yandex.net/get-yapic/a/islands-200")),
    ("yandex", {"id": "y", "default_avatar_id": "a", "is_avatar_empty": True}, ("y", "", "", "", "")),
    ("facebook", {"id": "f", "name": "N", "email": ONE_BYTE, "picture": {"data": {"url": "P"}}}, ("f", "N", "", ONE_BYTE, "P")),
    ("instagram2", {"id": "no", "user_id": "i", "name": "N", "username": "U", "profile_picture_url": "P"}, ("i", "N", "U", "", "P")),
    ("github", {"id": 7, "name": "N", "login": "U", "email": "profile@example.com", "avatar_url": "P"}, ("7", "N", "U", ONE_BYTE, "P"),
     {"/me/emails": (200, [{"email": "a@b.c", "verified": True, "primary": False}, {"email": "d@e.f", "verified": False, "primary": True},
                           {"email": ONE_BYTE, "verified": True, "primary": True}])}),
    ("github", {"id": 7, "login": "U", "email": "profile@example.com"}, ("7", "", "U", "", ""), {"/me/emails": (404, {})}),
    ("github", {"id": 7, "login": "U"}, None, {"/me/emails": (500, {})}), ("github", {"id": 7, "login": "U"}, None, {"/me/emails": (200, b"{")}),
    ("github", {"id": "7"}, None, {"/me/emails": (404, {})}), ("github", {"id": 7.5}, None), ("github", {"id": True}, None),
    ("gitlab", {"id": 1, "name": "N", "username": "U", "email": ONE_BYTE, "confirmed_at": "2020-01-01T00:00:00.000Z", "avatar_url": "P"},
     ("1", "N", "U", ONE_BYTE, "P")),
    ("gitlab", {"id": 1, "email": ONE_BYTE, "confirmed_at": None}, ("1", "", "", "", "")),
    ("gitlab", {"id": 1, "email": ONE_BYTE, "confirmed_at": "2020-01-01"}, ("1", "", "", "", "")),
    ("gitlab", {"name": "N"}, ("", "N", "", "", "")), ("gitlab", {"id": 0}, ("", "", "", "", "")),
    ("bitbucket", {"uuid": "b", "display_name": "N", "username": "U", "account_status": "active", "links": {"avatar": {"href": "P"}}},
     ("b", "N", "U", ONE_BYTE, "P"), {"/me/emails": (200, {"values": [{"email": "a@b.c", "is_primary": True}, {"email": ONE_BYTE, "is_primary": True, "is_confirmed": True}]})}),
    ("bitbucket", {"uuid": "b", "account_status": "active"}, ("b", "", "", "", ""), {"/me/emails": (500, {})}),
    ("bitbucket", {"uuid": "b", "account_status": "inactive"}, None), ("bitbucket", {"uuid": "b"}, None),
    ("gitee", {"id": 3, "name": "N", "login": "U", "email": ONE_BYTE, "avatar_url": "P"}, ("3", "N", "U", ONE_BYTE, "P")),
    ("gitee", {"id": 3, "email": "未公开邮箱"}, ("3", "", "", ONE_BYTE, ""), {"/gitee": (200, [
        {"email": "a@b.c", "state": "confirmed", "scope": ["notified"]}, {"email": ONE_BYTE, "state": "confirmed", "scope": ["primary"]}])}),
    ("gitee", {"id": 3}, ("3", "", "", "", ""), {"/gitee": (401, {})}), ("gitee", {"id": 3}, ("3", "", "", "", ""), {"/gitee": (200, b"{")}),
    ("gitea", {"id": 4, "full_name": "N", "login": "U", "active": True}, ("4", "N", "U", ONE_BYTE, ""),
     {"/me/emails": (200, [{"email": ONE_BYTE, "verified": True, "primary": True}])}),
    ("gitea", {"id": 4, "active": False}, None),
    ("discord", {"id": "d", "global_name": "G", "username": "U", "discriminator": "12", "avatar": "a", "email": ONE_BYTE, "verified": True},
     ("d", "G", "U", ONE_BYTE, "https://cdn.discordapp.com/avatars/d/a.png")),
    ("discord", {"id": "d", "global_name": None, "username": "U", "discriminator": "12", "email": ONE_BYTE, "verified": False}, ("d", "U#12", "U", "", "")),
    ("discord", {"id": "d", "username": "U", "discriminator": "0"}, ("d", "U", "U", "", "")),
    ("twitter", {"data": {"id": "t", "name": "N", "username": "U", "confirmed_email": ONE_BYTE, "profile_image_url": "P"}}, ("t", "N", "U", ONE_BYTE, "P")),
    ("kakao", {"id": 5, "properties": {"nickname": "U", "profile_image": "P"}, "kakao_account": {
        "email": ONE_BYTE, "is_email_valid": True, "is_email_verified": True}}, ("5", "", "U", ONE_BYTE, "P")),
    ("kakao", {"id": 5, "kakao_account": {"email": ONE_BYTE, "is_email_valid": False, "is_email_verified": True}}, ("5", "", "", "", "")),
    ("vk", {"response": [{"id": 6, "first_name": "A", "last_name": "B", "screen_name": "U", "photo_max": "P"}]}, ("6", "A B", "U", ONE_BYTE, "P"), {},
     {"email": ONE_BYTE}),
    ("vk", {"response": []}, None),
    ("linear", {"data": {"viewer": {"id": "l", "name": "N", "displayName": "U", "email": ONE_BYTE, "avatarUrl": "P", "active": True}}}, ("l", "N", "U", ONE_BYTE, "P")),
    ("linear", {"data": {"viewer": {"id": "l", "active": False}}}, None),
    ("notion", {"bot": {"owner": {"user": {"id": "n", "name": "N", "avatar_url": "P", "person": {"email": ONE_BYTE}}}}}, ("n", "N", "", ONE_BYTE, "P")),
    ("monday", {"data": {"me": {"id": "m", "enabled": True, "name": "N", "email": ONE_BYTE, "is_verified": True, "photo_small": "P"}}}, ("m", "N", "", ONE_BYTE, "P")),
    ("monday", {"data": {"me": {"id": "m", "enabled": True, "email": ONE_BYTE, "is_verified": False}}}, ("m", "", "", "", "")),
    ("monday", {"data": {"me": {"id": "m", "enabled": False}}}, None),
    ("lark", {"data": {"union_id": "k", "name": "N", "email": ONE_BYTE, "avatar_url": "P"}}, ("k", "N", "", "", "P")),
    ("box", {"id": "b", "name": "N", "login": ONE_BYTE, "avatar_url": "P", "status": "active"}, ("b", "N", "", ONE_BYTE, "P")),
    ("box", {"id": "b", "status": "inactive"}, None),
    ("spotify", {"id": "s", "display_name": "N", "email": ONE_BYTE, "images": [{"url": "P"}]}, ("s", "N", "", "", "P")),
    ("spotify", {"id": "s", "images": []}, ("s", "", "", "", "")),
    ("trakt", {"user": {"ids": {"uuid": "t"}, "name": "N", "username": "U", "images": {"avatar": {"full": "P"}}}}, ("t", "N", "U", "", "P")),
    ("twitch", {"data": [{"id": "t", "display_name": "N", "login": "U", "email": ONE_BYTE, "profile_image_url": "P"}]}, ("t", "N", "U", ONE_BYTE, "P")),
    ("twitch", {"data": []}, None),
    ("patreon", {"data": {"id": "p", "attributes": {"full_name": "N", "vanity": "U", "email": ONE_BYTE, "is_email_verified": True, "image_url": "P"}}},
     ("p", "N", "U", ONE_BYTE, "P")),
    ("strava", {"id": 9, "firstname": "A", "lastname": "", "username": "U", "profile": "P"}, ("9", "A", "U", "", "P")), ("strava", {"id": 0}, ("", "", "", "", "")),
    ("wakatime", {"data": {"id": "w", "display_name": "N", "username": "U", "email": ONE_BYTE, "is_email_confirmed": True, "photo": "P", "photo_public": True}},
     ("w", "N", "U", ONE_BYTE, "P")),
    ("wakatime", {"data": {"id": "w", "email": ONE_BYTE, "is_email_confirmed": False, "photo": "P", "photo_public": False}}, ("w", "", "", "", "")),
    ("livechat", {"account_id": "l", "name": "N", "email": ONE_BYTE, "email_verified": True, "avatar_url": "P"}, ("l", "N", "", ONE_BYTE, "P")),
    ("mailcow", {"id": "m", "active": 1, "full_name": "N", "username": "joe@x.yz", "email": ONE_BYTE}, ("m", "N", "joe", ONE_BYTE, "")),
    ("mailcow", {"id": "m", "active": True}, None), ("mailcow", {"id": "m", "active": "1"}, None),
    ("planningcenter", {"data": {"id": "p", "attributes": {"status": "active", "name": "N", "avatar": "P"}}}, ("p", "N", "", "", "P")),
    ("planningcenter", {"data": {"id": "p", "attributes": {"status": "inactive"}}}, None),
    *[("oidc2", {"sub": "o", "name": "N", "preferred_username": "U", "email": ONE_BYTE, "email_verified": yes, "picture": "P"}, ("o", "N", "U", ONE_BYTE, "P"))
      for yes in (True, 1, "1", "true", "T")],
    *[("oidc", {"sub": "o", "email": ONE_BYTE, "email_verified": no}, ("o", "", "", "", "")) for no in (False, 0, "0", "no", None, [], {"a": 1})],
    ("google", {"sub": 5}, None), ("google", {"sub": "g", "name": 5}, None), ("google", {"sub": "g", "email": ONE_BYTE, "email_verified": "true"}, None),
    ("oidc", [1], None), ("oidc", b"{", None), ("oidc", b"[" * 100000, None), ("oidc", b'{"sub":"x","n":NaN}', None),
    ("oidc", b'{"sub":"x","name":"\\ud800"}', ("x", "?", "", "", "")),
]


@pytest.mark.parametrize("row", MAPPINGS, ids=lambda row: row[0])
def test_user_mapping(web, monkeypatch, row):
    name, info, expected, answers, token = (*row, {}, {})[:5] if len(row) < 5 else row
    site = web()
    monkeypatch.setattr(oauth2, "_GITEE_EMAILS", site.url + "/gitee")
    site.answers.update({"/me": (200, info), **answers})
    token = {"access_token": "AT", "token_type": "bearer", "refresh_token": "RT", "expires_in": "3600", **token}
    if expected is None:
        with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
            oauth2.fetch_user(provider(site, name), token)
        return
    user = oauth2.fetch_user(provider(site, name), token)
    assert tuple(user[key] for key in ("id", "name", "username", "email", "avatarURL")) == expected
    assert (user["accessToken"], user["refreshToken"]) == ("AT", "RT") and (user["rawUser"] == info or isinstance(info, bytes))
    assert abs(datetime.datetime.strptime(user["expiry"] + "+0000", "%Y-%m-%d %H:%M:%S.%fZ%z").timestamp() - time.time() - 3600) < 60
    assert site.seen[0][2]["Authorization"] == "Bearer AT"


def test_every_provider_is_mapped():
    assert set(oauth2.PROVIDERS) - {row[0] for row in MAPPINGS} == {"apple", "oidc3"}


def test_user_requests_that_are_odd(web):
    site = web()
    for name, header, value in (("notion", "Notion-Version", "2022-06-28"), ("twitch", "Client-Id", "cid"), ("trakt", "trakt-api-key", "cid"),
                                ("trakt", "trakt-api-version", "2"), ("trakt", "Content-type", "application/json")):
        with pytest.raises(oauth2.OAuth2Error):
            oauth2.fetch_user(provider(site, name), {"access_token": "AT"})
        assert site.seen[-1][0] == "GET" and {k.lower(): v for k, v in site.seen[-1][2].items()}[header.lower()] == value
    for name in ("linear", "monday"):
        with pytest.raises(oauth2.OAuth2Error):
            oauth2.fetch_user(provider(site, name), {"access_token": "AT"})
        assert site.seen[-1][0] == "POST" and "email" in json.loads(site.seen[-1][3])["query"] and site.seen[-1][2]["Content-Type"] == "application/json"


def test_instagram_permissions_and_token_without_expiry(web):
    site = web()
    site.answers["/me"] = 200, {"user_id": "i"}
    user = oauth2.fetch_user(provider(site, "instagram2"), {"access_token": "AT", "permissions": ["x"], "expires_in": "soon"})
    assert user["rawUser"] == {"user_id": "i", "permissions": ["x"]} and user["expiry"] == "" and user["refreshToken"] == ""


def test_token_type_cannot_add_a_header(web):
    site = web()
    site.answers["/me"] = 200, {"sub": "x"}
    with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
        oauth2.fetch_user(provider(site, "google"), {"access_token": "AT", "token_type": "Bearer\r\nX-Evil: 1"})
    assert site.seen == []


def test_netrc_does_not_replace_the_token(web, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    site = web()
    site.answers["/me"] = 200, {"sub": "x"}
    oauth2.fetch_user(provider(site, "google"), {"access_token": "AT"})
    assert site.seen[0][2]["Authorization"] == "Bearer AT"


def test_user_info_redirect_to_another_host_loses_the_token(web):
    site, other = web(), web("127.0.0.2")
    site.answers["/me"] = 302, b"", {"Location": other.url + "/me"}
    other.answers["/me"] = 200, {"sub": "x"}
    assert oauth2.fetch_user(provider(site, "google"), {"access_token": "AT"})["id"] == "x"
    assert "Authorization" not in other.seen[0][2]


def test_sign_in_runs_both_steps(web):
    site = web()
    site.answers.update({"/token": (200, {"access_token": "AT"}), "/me": (200, {"sub": "x"})})
    assert oauth2.oauth2_sign_in(provider(site, "oidc"), "code", "v", "http://r")["id"] == "x"
    assert [one[1] for one in site.seen] == ["/token", "/me"]


# ---- microsoft

@pytest.mark.parametrize("rule,claims,email", [
    ("", {"email": "c@x.yz"}, "mail@x.yz"), ("unknown", {"email": "c@x.yz"}, "mail@x.yz"), ("verified_primary_email", {"verified_primary_email": "v@x.yz"}, "v@x.yz"),
    ("verified_primary_email", {"verified_primary_email": ["v@x.yz"]}, ""), ("email_and_xms_edov", {"email": "c@x.yz", "xms_edov": "1"}, "c@x.yz"),
    ("email_and_xms_edov", {"email": "c@x.yz", "xms_edov": False}, ""), ("email_and_xms_edov", {"email": "c@x.yz"}, ""),
    ("any_verified", {"verified_primary_email": "v@x.yz", "email": "c@x.yz", "xms_edov": 1}, "v@x.yz"), ("any_verified", {"email": "c@x.yz", "xms_edov": 1}, "c@x.yz"),
    ("any_verified", {"email": "c@x.yz"}, ""), ("email", {"email": "c@x.yz"}, "c@x.yz"), ("email", {"email": "c@x.yz", "exp": 1}, ""),
    ("email", {"email": "c@x.yz", "aud": "other"}, "")])
def test_microsoft_email_claim(web, rule, claims, email):
    site = web()
    site.answers["/me"] = 200, {"id": "m", "mail": "mail@x.yz"}
    token = {"access_token": "AT", "id_token": signed(HMAC, {"aud": "cid", **claims})}
    assert oauth2.fetch_user(provider(site, "microsoft", extra={"idTokenEmailClaim": rule}), token)["email"] == email


# ---- id tokens

HMAC = ("HS256", b"k" * 32)
RSA_KEY, OTHER_RSA = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
KEYS = {"RS256": RSA_KEY, "PS256": RSA_KEY, "ES256": ec.generate_private_key(ec.SECP256R1()), "ES384": ec.generate_private_key(ec.SECP384R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate()}


def signed(key, claims, kid="k1", **headers):
    algorithm, secret = key
    return jwt.encode(claims, secret, algorithm, headers={"kid": kid, **headers} if kid else headers)


def b64(value):
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode().rstrip("=")


def jwk(key, kid="k1", **more):
    algorithm = {rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm, ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm}.get
    kind = algorithm(type(key)) or next((a for base, a in ((rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm), (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm),
                                                         (ed25519.Ed25519PrivateKey, jwt.algorithms.OKPAlgorithm)) if isinstance(key, base)))
    return {**{name: value for name, value in kind.to_jwk(key.public_key(), as_dict=True).items() if name != "key_ops"}, "kid": kid, **more}


def good_claims(**more):
    now = int(time.time())
    more = {key: value() if callable(value) else value for key, value in more.items()}
    return {key: value for key, value in {"iss": "https://i.example.com", "sub": "s1", "aud": "cid", "iat": now, "exp": now + 600, "email": ONE_BYTE,
                                          "email_verified": "true", **more}.items() if value is not None}


def sign_in(site, token, name="oidc", keys=None, issuers=("https://i.example.com",), **extra):
    site.answers["/jwks"] = 200, {"keys": [jwk(RSA_KEY)] if keys is None else keys}
    one = provider(site, name, userInfoURL="", extra={"jwksURL": site.url + "/jwks", "issuers": list(issuers), **extra})
    return oauth2.fetch_user(one, {"access_token": "AT", "id_token": token})


def refused(site, token, raw, **more):
    with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED) as caught:
        sign_in(site, token, **more)
    assert raw in caught.value.raw, caught.value.raw


@pytest.mark.parametrize("algorithm", list(KEYS))
@pytest.mark.parametrize("named", [True, False])
def test_id_token_of_every_key_type(web, algorithm, named):
    key = jwk(KEYS[algorithm], **({"alg": algorithm, "use": "sig"} if named else {}))
    user = sign_in(web(), signed((algorithm, KEYS[algorithm]), good_claims()), keys=[key])
    assert (user["id"], user["email"], user["rawUser"]["iss"]) == ("s1", ONE_BYTE, "https://i.example.com")


def test_case_22_id_token_signature_negatives(web, monkeypatch):
    import hmac
    site, good = web(), signed(("RS256", RSA_KEY), good_claims())
    head, body, signature = good.split(".")
    public = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    confused = b64({"alg": "HS256", "kid": "k1"}) + "." + body
    confused += "." + b64(hmac.digest(public, confused.encode(), "sha256"))
    refused(site, b64({"alg": "none", "kid": "k1"}) + "." + body + ".", "no key")
    refused(site, b64({"alg": "None", "kid": "k1"}) + "." + body + ".", "no key")
    refused(site, confused, "no key")
    refused(site, signed(("RS256", OTHER_RSA), good_claims()), "InvalidSignatureError")
    refused(site, f"{head}.{b64(good_claims(sub='admin'))}.{signature}", "InvalidSignatureError")
    refused(site, f"{head}.{body}.", "InvalidSignatureError")
    refused(site, good[:-6] + "AAAAAA", "InvalidSignatureError")
    refused(site, signed(("RS256", RSA_KEY), good_claims(), kid=None), "header without key id")
    refused(site, signed(("RS256", RSA_KEY), good_claims(), crit=["x"], x=1), "header without key id")
    for token, raw, key in ((signed(("RS512", RSA_KEY), good_claims()), "no key", jwk(RSA_KEY, alg="RS256")), (good, "no key", jwk(RSA_KEY, use="enc")),
                            (signed(HMAC, good_claims()), "no key", {"kty": "oct", "k": b64(HMAC[1]), "kid": "k1", "alg": "HS256"}),
                            (signed(HMAC, good_claims()), "no key", jwk(RSA_KEY, alg="HS256")),
                            (signed(("ES256", KEYS["ES256"]), good_claims()), "no key", jwk(KEYS["ES256"], crv="P-384"))):
        monkeypatch.setattr(oauth2, "key_sets", oauth2.KeySets())
        refused(site, token, raw, keys=[key])


def test_id_token_short_and_broken_keys(web, monkeypatch):
    short = rsa.generate_private_key(65537, 1024)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = signed(("RS256", short), good_claims())
        refused(web(), token, "", keys=[jwk(short)])
    for key in ({"kty": "RSA", "kid": "k1"}, {"kty": "RSA", "kid": "k1", "n": 5, "e": "AQAB"}, {"kty": "RSA", "kid": "k1", "n": "!!", "e": ""}, {"kid": "k1"}, {"kty": ["RSA"], "kid": "k1"}):
        refused(web(), signed(("RS256", RSA_KEY), good_claims()), "", keys=[key, "nonsense"])


@pytest.mark.parametrize("change,raw", [
    ({"iss": "https://other.example.com"}, "issuer"), ({"iss": None}, "issuer"), ({"iss": ["https://i.example.com"]}, "issuer"), ({"aud": "other"}, "somebody else"),
    ({"aud": None}, "somebody else"), ({"aud": []}, "somebody else"), ({"aud": ["cid", "other"], "azp": "other"}, "somebody else"), ({"exp": time.time() - 400}, "exp"),
    ({"exp": "never"}, "exp"), ({"exp": True}, "exp"), ({"nbf": time.time() + 900}, "nbf"), ({"iat": time.time() + 900}, "iat")])
def test_id_token_claims_that_are_refused(web, change, raw):
    head = {"alg": "RS256", "kid": "k1"}
    text = b64(head) + "." + b64(good_claims(**change))
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    refused(web(), text + "." + b64(RSA_KEY.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())), raw)


@pytest.mark.parametrize("change", [{"exp": lambda: time.time() - 200}, {"exp": None}, {"iat": None}, {"nbf": lambda: int(time.time()) + 200}, {"aud": ["other", "cid"]}, {"aud": ["cid", "o"], "azp": "cid"}])
def test_id_token_claims_that_are_accepted(web, change):
    assert sign_in(web(), signed(("RS256", RSA_KEY), good_claims(**change)))["id"] == "s1"


def test_id_token_leeway_can_be_set(web, monkeypatch):
    monkeypatch.setenv("PB_ID_TOKEN_LEEWAY", "10")
    refused(web(), signed(("RS256", RSA_KEY), good_claims(exp=int(time.time()) - 60)), "exp")


@pytest.mark.parametrize("token", [None, "", "x", "x.y.z", "..", 5, "a" * 70000, b64({"alg": "none"}) + "." + b64([1]) + ".", b64({}) + "." + b64(b"[" * 50000) + "."])
def test_id_token_missing_or_garbled(web, token):
    refused(web(), token, "missing or garbled")


def test_issuers_may_be_one_text(web):
    token = signed(("RS256", RSA_KEY), good_claims())
    assert sign_in(web(), token, **{"issuers": ()}, )["id"] == "s1"
    site = web()
    site.answers["/jwks"] = 200, {"keys": [jwk(RSA_KEY)]}
    one = provider(site, "oidc", userInfoURL="", extra={"jwksURL": site.url + "/jwks", "issuers": "https://a.b  https://i.example.com"})
    assert oauth2.fetch_user(one, {"access_token": "AT", "id_token": token})["id"] == "s1"


def test_nonce(web):
    site = web()
    one, token = provider(site, "oidc"), signed(("RS256", RSA_KEY), good_claims(nonce="n1"))
    assert oauth2.verify_id_token(token, one, nonce="n1")["sub"] == "s1"
    for sent, given in (("n1", "n2"), (None, "n1")):
        with pytest.raises(oauth2.OAuth2Error) as caught:
            oauth2.verify_id_token(signed(("RS256", RSA_KEY), good_claims(nonce=sent)), one, nonce=given)
        assert caught.value.raw == "id token: wrong nonce"


def test_without_issuer_and_keys_the_token_endpoint_is_trusted(web):
    one = provider(web(), "oidc", userInfoURL="")
    assert oauth2.fetch_user(one, {"access_token": "AT", "id_token": signed(HMAC, good_claims())})["id"] == "s1"


def test_issuer_without_keys_is_verified_through_discovery(web):
    site = web()
    one = provider(site, "oidc", userInfoURL="", extra={"issuers": [site.url]})
    site.answers.update({"/.well-known/openid-configuration": (200, {"issuer": site.url, "jwks_uri": site.url + "/jwks"}), "/jwks": (200, {"keys": [jwk(RSA_KEY)]})})

    def go(key):
        return oauth2.fetch_user(one, {"access_token": "AT", "id_token": signed(key, good_claims(iss=site.url))})["id"]
    assert go(("RS256", RSA_KEY)) == "s1" and go(("RS256", RSA_KEY)) == "s1"
    assert [row[1] for row in site.seen] == ["/.well-known/openid-configuration", "/jwks"]
    for key in (("RS256", OTHER_RSA), HMAC):
        with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
            go(key)


@pytest.mark.parametrize("answer", [(404, {}), (200, {"issuer": "https://evil.example.com", "jwks_uri": "http://127.0.0.1/"}), (200, {}), (200, b"<html>"), (200, [])])
def test_broken_discovery_fails_closed(web, answer):
    site = web()
    site.answers["/jwks"] = 200, {"keys": [jwk(RSA_KEY)]}
    status, document = answer
    if isinstance(document, dict) and "jwks_uri" in document:
        document["jwks_uri"] = site.url + "/jwks"  # the right keys, but of somebody else's document
    site.answers["/.well-known/openid-configuration"] = status, document
    with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
        oauth2.fetch_user(provider(site, "oidc", userInfoURL="", extra={"issuers": site.url}),
                          {"access_token": "AT", "id_token": signed(("RS256", RSA_KEY), good_claims(iss=site.url))})


def test_user_info_and_id_token_must_name_the_same_user(web):
    site = web()
    site.answers["/me"] = 200, {"sub": "s1"}
    for sub, good in (("s1", True), ("s2", False)):
        token = {"access_token": "AT", "id_token": signed(("RS256", RSA_KEY), good_claims(sub=sub))}
        if good:
            assert oauth2.fetch_user(provider(site, "oidc"), token)["id"] == "s1"
        else:
            with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
                oauth2.fetch_user(provider(site, "oidc"), token)
    assert oauth2.fetch_user(provider(site, "oidc"), {"access_token": "AT", "id_token": "garbled"})["id"] == "s1"


def test_key_rotation_refetches_once_on_an_unknown_id(web):
    site = web()

    def go(key, kid):
        return sign_in(site, signed(("RS256", key), good_claims(), kid=kid), keys=keys)["id"]

    def fetches():
        return sum(row[1] == "/jwks" for row in site.seen)
    keys = [jwk(RSA_KEY, "k1")]
    assert go(RSA_KEY, "k1") == go(RSA_KEY, "k1") == "s1" and fetches() == 1
    keys = [jwk(OTHER_RSA, "k2")]
    assert go(OTHER_RSA, "k2") == "s1" and fetches() == 2
    for number in range(5):  # ids that anybody can make up do not make us ask each time
        with pytest.raises(oauth2.OAuth2Error):
            go(OTHER_RSA, f"made up {number}")
    assert fetches() == 2
    with pytest.raises(oauth2.OAuth2Error):
        go(RSA_KEY, "k1")  # the key that was taken back


def test_keys_are_fetched_anew_when_old(web, monkeypatch):
    site, keys = web(), [jwk(RSA_KEY)]
    token = signed(("RS256", RSA_KEY), good_claims())
    sign_in(site, token, keys=keys)
    monkeypatch.setattr(oauth2, "_KEYS_SECONDS", -1)
    with pytest.raises(oauth2.OAuth2Error):
        sign_in(site, token, keys=[jwk(OTHER_RSA)])
    monkeypatch.setattr(oauth2, "_KEYS_SECONDS", 600)
    for number in range(oauth2._KEY_SETS + 5):
        site.answers[f"/keys{number}"] = 200, {"keys": [jwk(RSA_KEY)]}
        oauth2.key_sets.key(f"{site.url}/keys{number}", "k1", "RS256")
    assert len(oauth2.key_sets._sets) == oauth2._KEY_SETS


@pytest.mark.parametrize("answer", [(500, {}), (200, {}), (200, {"keys": 5}), (200, b"{"), (200, [])])
def test_broken_key_sets(web, answer):
    site = web()
    site.answers["/k"] = answer
    with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
        oauth2.key_sets.key(site.url + "/k", "k1", "RS256")


# ---- apple

def test_apple_profile(web, monkeypatch):
    site = web()
    monkeypatch.setattr(oauth2, "_APPLE_KEYS", site.url + "/jwks")
    site.answers["/jwks"] = 200, {"keys": [jwk(RSA_KEY, alg="RS256", use="sig")]}

    def go(**claims):
        token = signed(("RS256", RSA_KEY), good_claims(**{"iss": "https://appleid.apple.com", "name": "N", **claims}))
        return oauth2.fetch_user(provider(site, "apple"), {"access_token": "AT", "id_token": token})
    user = go()
    assert tuple(user[key] for key in ("id", "name", "username", "email", "avatarURL")) == ("s1", "N", "", ONE_BYTE, "")
    assert go(email_verified=False)["email"] == "" and [row[1] for row in site.seen] == ["/jwks"]
    for bad in ({"iss": "https://evil.example.com"}, {"aud": "other"}, {"exp": None}, {"exp": 1}):
        with pytest.raises(oauth2.OAuth2Error, match=USER_FAILED):
            go(**bad)


def pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def test_apple_client_secret():
    key = ec.generate_private_key(ec.SECP256R1())
    secret = oauth2.apple_client_secret("cid", "T" * 10, "K" * 10, "\n" + pem(key) + "\n", 100)
    head, body, _ = secret.split(".")
    assert base64.urlsafe_b64decode(head + "==") == b'{"alg":"ES256","kid":"KKKKKKKKKK","typ":"JWT"}'
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert list(claims) == ["iss", "sub", "aud", "exp", "iat"] and claims["exp"] - claims["iat"] == 100 and claims["aud"] == ["https://appleid.apple.com"]
    assert jwt.decode(secret, key.public_key(), ["ES256"], audience="https://appleid.apple.com")["sub"] == "cid"


@pytest.mark.parametrize("key,reason", [
    ("-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----", "invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key."),
    ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "invalid key: Key must be a PEM encoded PKCS1 or PKCS8 key."), ("", "invalid key: Key must be"),
    (pem(RSA_KEY), "key is not a valid ECDSA private key."), (pem(KEYS["EdDSA"]), "key is not a valid ECDSA private key."), (pem(KEYS["ES384"]), "key is invalid.")])
def test_apple_client_secret_bad_keys(key, reason):
    with pytest.raises(oauth2.OAuth2Error) as caught:
        oauth2.apple_client_secret("c", "t", "k", key, 10)
    assert caught.value.message.startswith("Failed to generate client secret. Raw error: \n" + reason)


# ---- guarded downloads

PRIVATE = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "198.18.0.1", "192.0.2.1", "224.0.0.1",
           "240.0.0.1", "255.255.255.255", "192.88.99.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:10.0.0.1", "fe80::1", "fe80::1%lo",
           "fc00::1", "fd12::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::", "2001:db8::1",
           "100::1", "fd00:ec2::254"]


@pytest.mark.parametrize("address", PRIVATE)
def test_case_34_addresses_that_are_not_public(address):
    assert oauth2.is_public_address(address) is False


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1", "2a00:1450::1"])
def test_public_addresses(address):
    assert oauth2.is_public_address(address) is True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
                                  "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "user@127.0.0.1", "8.8.8.8@127.0.0.1", "127.0.0.1.", "①②⑦.0.0.1", "LOCALHOST", "[::1%25lo]"])
def test_case_34_local_targets_are_never_reached(web, host):
    site = web()
    site.answers["/x"] = 200, b"secret"
    with pytest.raises(oauth2.FetchError):
        oauth2.safe_fetch(f"http://{host}:{site.port}/x")
    assert site.seen == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://8.8.8.8/", "gopher://127.0.0.1:25/_x", "data:text/plain,x", "http://", "http:///x", "//x/y", "", "x", "http://[", "http://a:b/",
                                 "http://8.8.8.8:99999/", "http://" + "a" * 300 + "/", "http://nosuch.invalid/"])
def test_urls_that_are_not_fetched(url):
    with pytest.raises(oauth2.FetchError):
        oauth2.safe_fetch(url)


@pytest.fixture
def public(monkeypatch):
    """Let 127.0.0.2 count as public; names: {host: [addresses of the first look-up, of the second, ...]}; asked logs look-ups."""
    real_check, real_lookup, names, asked = oauth2.is_public_address, socket.getaddrinfo, {}, []

    def lookup(host, port, *args, **options):
        asked.append(host)
        if host in names:
            addresses = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
            return [row for address in addresses for row in real_lookup(address, port, *args, **options)]
        return real_lookup(host, port, *args, **options)
    monkeypatch.setattr(oauth2, "is_public_address", lambda address: address == "127.0.0.2" or real_check(address))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return names, asked


def test_fetch_of_a_public_address(web, public):
    site = web("127.0.0.2")
    site.answers["/a b"] = site.answers["/a%20b"] = 200, b"\x89PNG", {"Content-Type": "image/png"}
    assert oauth2.safe_fetch(site.url + "/a b?x=1#frag") == (b"\x89PNG", "image/png")
    assert site.seen[0][2]["Host"] == f"127.0.0.2:{site.port}" and "Authorization" not in site.seen[0][2]
    with pytest.raises(oauth2.FetchError, match="status 404"):
        oauth2.safe_fetch(site.url + "/missing")


def test_case_34_dns_rebinding_meets_a_pinned_address(web, public):
    names, asked = public
    inner = web("127.0.0.1")
    outer = web("127.0.0.2")
    outer.answers["/x"] = 200, b"outer"
    inner.answers["/x"] = 200, b"secret"
    names["rebind.test"] = [["127.0.0.2"], ["127.0.0.1"]]
    assert oauth2.safe_fetch(f"http://rebind.test:{outer.port}/x")[0] == b"outer"
    assert asked.count("rebind.test") == 1 and outer.seen[0][2]["Host"] == f"rebind.test:{outer.port}" and inner.seen == []
    names["mixed.test"] = [["127.0.0.2", "127.0.0.1"]]
    with pytest.raises(oauth2.FetchError, match="not a public address"):
        oauth2.safe_fetch(f"http://mixed.test:{outer.port}/x")


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/secret", "http://[::ffff:127.0.0.1]:{port}/secret", "http://2130706433:{port}/secret", "http://0x7f.1:{port}/secret",
                                    "//localhost:{port}/secret", "http://inner.test:{port}/secret", "file:///etc/passwd", "http://["])
def test_case_34_redirects_are_checked_again(web, public, target):
    public[0]["inner.test"] = [["127.0.0.1"]]
    inner, outer = web("127.0.0.1"), web("127.0.0.2")
    inner.answers["/secret"] = 200, b"secret"
    outer.answers["/x"] = 302, b"", {"Location": target.format(port=inner.port)}
    with pytest.raises(oauth2.FetchError):
        oauth2.safe_fetch(outer.url + "/x")
    assert inner.seen == [] and len(outer.seen) == 1


def test_redirects_are_followed_and_bounded(web, public):
    site = web("127.0.0.2")
    site.answers.update({"/1": (301, b"", {"Location": "/2"}), "/2": (307, b"", {"Location": "3"}), "/3": (200, b"end"), "/loop": (302, b"", {"Location": "/loop"})})
    assert oauth2.safe_fetch(site.url + "/1")[0] == b"end"
    with pytest.raises(oauth2.FetchError, match="too many redirects"):
        oauth2.safe_fetch(site.url + "/loop")
    assert sum(row[1] == "/loop" for row in site.seen) == 6


def test_proxies_of_the_environment_are_not_used(web, public, monkeypatch):
    site, proxy = web("127.0.0.2"), web()
    site.answers["/x"] = 200, b"direct"
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    assert oauth2.safe_fetch(site.url + "/x")[0] == b"direct" and proxy.seen == []


def test_size_cap(web, public):
    site = web("127.0.0.2")

    def endless(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(200):
            handler.wfile.write(b"x" * 1000)
    site.answers.update({"/exact": (200, b"x" * 1000), "/said": (200, b"", {"Content-Length": "1001"}), "/endless": endless, "/bomb": (200, b"\x1f\x8b" + b"0" * 20, {"Content-Encoding": "gzip"}),
                         "/bad": (200, b"", {"Content-Length": "nonsense"})})
    assert len(oauth2.safe_fetch(site.url + "/exact", max_bytes=1000)[0]) == 1000
    for path in ("/said", "/endless"):
        with pytest.raises(oauth2.FetchError, match="too large"):
            oauth2.safe_fetch(site.url + path, max_bytes=1000)
    assert oauth2.safe_fetch(site.url + "/bomb", max_bytes=1000)[0] == b"\x1f\x8b" + b"0" * 20  # nothing is unpacked
    assert oauth2._FETCH_BYTES == 32 * 1024 * 1024 and oauth2._FETCH_SECONDS == 10


@pytest.mark.parametrize("kind", ["silent", "body"])
def test_time_cap(web, public, kind):
    site, stop = web("127.0.0.2"), threading.Event()

    def slow(handler):
        if kind == "body":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(2000):
            if stop.wait(0.02):
                return
            if kind == "body":
                handler.wfile.write(b"x")
    site.answers["/x"] = slow
    with pytest.raises(oauth2.FetchError):
        oauth2.safe_fetch(site.url + "/x", seconds=0.3)
    stop.set()


def test_time_cap_covers_dripping_headers_and_the_retry_under_gevent():
    """Each byte restarts a socket's time-out, so only the greenlet's own clock ends this."""
    import os
    import subprocess
    import sys
    code = """if True:
        from gevent import monkey; monkey.patch_all()
        import gevent, gevent.server, pocketbase as oauth2
        oauth2.is_public_address = lambda address: True
        def drip(client, address):
            client.send(b"HTTP/1.1 200 OK\\r\\nX-A: ")
            while True: client.send(b"x"); gevent.sleep(0.02)
        server = gevent.server.StreamServer(("127.0.0.1", 0), drip); server.start()
        url = "http://127.0.0.1:%d/" % server.server_port
        one = oauth2.provider_config({"name": "oidc", "clientId": "c", "tokenURL": url, "userInfoURL": url})
        for call in (lambda: oauth2.safe_fetch(url, seconds=0.3), lambda: oauth2.exchange_code(one, "c", seconds=0.3),
                     lambda: oauth2.fetch_user(one, {"access_token": "a"}, seconds=0.3)):
            try: call()
            except (oauth2.FetchError, oauth2.OAuth2Error) as error: print(getattr(error, "raw", error))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(oauth2.__file__), capture_output=True, text=True, timeout=60, env={**os.environ, "NO_PROXY": "*"})
    assert done.stdout == "the download took too long\nthe token endpoint took too long\nthe user info took too long\n", done.stderr


def test_https_is_verified_for_the_name_though_the_address_is_pinned(web, public, monkeypatch, tmp_path):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1).not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1)).add_extension(x509.SubjectAlternativeName([x509.DNSName("good.test")]), False)
            .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()))
    path = tmp_path / "cert.pem"
    path.write_text(made.public_bytes(serialization.Encoding.PEM).decode() + pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    site = web("127.0.0.2", tls=context)
    site.answers["/x"] = 200, b"tls"
    public[0].update({"good.test": [["127.0.0.2"]], "other.test": [["127.0.0.2"]]})
    with pytest.raises(oauth2.FetchError, match="SSLError"):
        oauth2.safe_fetch(f"https://good.test:{site.port}/x")
    monkeypatch.setattr("certifi.where", lambda: str(path))
    assert oauth2.safe_fetch(f"https://good.test:{site.port}/x")[0] == b"tls"
    with pytest.raises(oauth2.FetchError, match="SSLError"):
        oauth2.safe_fetch(f"https://other.test:{site.port}/x")
    assert len(site.seen) == 1 and urllib.parse.urlsplit(site.url).hostname == "127.0.0.2"
