"""Sign-in providers: a certified OpenID one (npm `oidc-provider`, run by node), and one that lies."""
import base64
import http.server
import json
import subprocess
import threading
import time
import urllib.parse

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import rsa

import helpers_node

CLIENT_ID, CLIENT_SECRET = "the:client", "s3 cret/+"    # with letters that HTTP Basic must encode


class IdentityProvider:
    """A running oidc-provider with PKCE enforced. It sends browsers back to `callback` and to nowhere else."""

    callback = "http://127.0.0.1:1/callback"    # nobody listens there: the browser below stops before it

    def __init__(self):
        helpers_node.install_packages()
        self.process = subprocess.Popen(**helpers_node.command(["node", "oidc_provider.mjs"], {"REDIRECT_URIS": self.callback}), text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr.read()
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def close(self):
        self.process.stdin.close()    # its cue to end
        self.process.wait(60)
        self.process.stdout.close()

    def row(self, name="oidc", **more):
        """An item of a collection's oauth2.providers."""
        return {"name": name, "clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET, "authURL": self.url + "/auth", "tokenURL": self.url + "/token",
                "userInfoURL": self.url + "/me", **more}

    def visit(self, auth_url, claims):
        """What a browser brings back from the provider (query of the callback) after a person with these claims signed in there."""
        browser, url = requests.Session(), f"{auth_url}&{urllib.parse.urlencode({'login_hint': json.dumps(claims)})}"
        browser.trust_env = False
        for _ in range(10):
            answer = browser.get(url, allow_redirects=False)
            assert answer.is_redirect, answer.text
            url = urllib.parse.urljoin(url, answer.headers["Location"])
            if url.startswith(self.callback):
                return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
        raise AssertionError(f"the provider never sent the browser back; the last address: {url}")


class LyingProvider:
    """A provider that answers what a test tells it to: `token` and `user` are its next answers, `seen` the requests it got.

    `sign` makes an id token as a good provider would, with any of its parts changed.
    """

    keys = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("own", "foreign")}

    def __init__(self):
        self.token, self.user, self.seen, self.files = {"access_token": "access"}, {}, [], {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                outer.seen.append((self.command, self.path, body))
                status, headers, data = outer.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            do_GET = do_POST = answer

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path):
        """(status, headers, bytes) for a path: /token, /me, /jwks, or one of `files`."""
        value = {"/token": self.token, "/me": self.user, "/jwks": {"keys": [self.public_key()]}}.get(path)
        if value is not None:
            return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
        return self.files.get(path, (404, {}, b""))

    def paths(self):
        return [path for _, path, _ in self.seen]

    def row(self, name="oidc", **more):
        """An item of a collection's oauth2.providers."""
        return {"name": name, "clientId": "app", "clientSecret": "secret", "authURL": self.url + "/auth", "tokenURL": self.url + "/token",
                "userInfoURL": self.url + "/me", **more}

    def public_key(self):
        return {**jwt.algorithms.RSAAlgorithm.to_jwk(self.keys["own"].public_key(), as_dict=True), "kid": "own", "alg": "RS256", "use": "sig"}

    def sign(self, key="own", algorithm="RS256", kid="own", **claims):
        """An id token for client `app`; a claim that is None is left out."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": "app", "sub": "ann", "iat": now, "exp": now + 600, "email": "ann@example.com", "email_verified": True, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        secret = {"none": None, "HS256": self.public_text()}.get(algorithm, self.keys.get(key))
        if algorithm == "HS256":    # PyJWT refuses to sign with a public key as the secret; an attacker does not
            return _hmac_token({"alg": "HS256", "typ": "JWT", "kid": kid}, claims, secret)
        return jwt.encode(claims, secret, algorithm, headers={"kid": kid})

    def public_text(self):
        from cryptography.hazmat.primitives import serialization
        return self.keys["own"].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _hmac_token(header, claims, secret):
    import hashlib
    import hmac
    text = ".".join(_part(json.dumps(each).encode()) for each in (header, claims))
    return text + "." + _part(hmac.new(secret, text.encode(), hashlib.sha256).digest())


def _part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def enable(server, collection="users", rows=(), **options):
    """Switches OAuth2 on for a collection, with these providers."""
    answer = server.patch(f"/api/collections/{collection}", {"oauth2": {"enabled": True, "providers": list(rows), **options}}, token=server.su)
    assert answer.status == 200, answer
    return answer.json


def method_of(server, provider="oidc", collection="users"):
    """The provider's item of auth-methods."""
    methods = server.get(f"/api/collections/{collection}/auth-methods").json
    return next(item for item in methods["oauth2"]["providers"] if item["name"] == provider)


def present(server, code, verifier="", provider="oidc", collection="users", redirect=IdentityProvider.callback, token=None, headers=None, **more):
    """Asks for a sign-in with a code."""
    body = {"provider": provider, "code": code, "codeVerifier": verifier, "redirectURL": redirect, **more}
    return server.post(f"/api/collections/{collection}/auth-with-oauth2", body, token=token, headers=headers)


def sign_in(server, idp, claims, provider="oidc", collection="users", **more):
    """The whole flow of a client: auth-methods, a visit to the provider, the code for a token."""
    method = method_of(server, provider, collection)
    back = idp.visit(method["authURL"] + urllib.parse.quote(idp.callback, safe=""), claims)
    assert back["state"] == method["state"]
    return present(server, back["code"], method["codeVerifier"], provider, collection, **more)
