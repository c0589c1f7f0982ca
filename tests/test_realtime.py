"""Realtime: event streams and WebSockets, topics, rules, options, auth changes, slow clients, coming back after a cut."""
import base64
import contextlib
import functools
import http.client
import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import kit
from helpers_answers import envelope
from helpers_answers import records
from helpers_answers import refusal
from helpers_beyond import beyond
from helpers_crowd import crowd

QUIET = 0.3     # seconds without a message that count as silence where silence is the point; a marker record follows wherever possible


# ---- ways to look

def topic(base, **options):
    """`topic("a/*", query={"expand": "b"})`"""
    return f"{base}?options={urllib.parse.quote(json.dumps(options))}" if options else base


def told(events, count):
    """The next messages as a sorted list of (topic, action, record id)."""
    return sorted((name, data["action"], data["record"].get("id")) for name, data in (events.next() for _ in range(count)))


def silent(events):
    """True when nothing comes for a while."""
    try:
        return not events.next(QUIET)
    except TimeoutError:
        return True


def tuned(**changes):
    """A command that runs the program with other constants: tuned(STREAM_IDLE_SECONDS=1); `patch` is code run after the import."""
    patch = changes.pop("patch", "")
    lines = [f"import sys; sys.path.insert(0, {kit.HOME!r}); import pocketbase"]
    lines += [f"pocketbase.{name} = {value!r}" for name, value in changes.items()]
    return [sys.executable, "-c", "\n".join([*lines, patch, "sys.exit(pocketbase.main(sys.argv[1:]))"])]


class Socket:
    """A WebSocket client: `next()` gives (event, data); `last` is the id of the last message."""

    def __init__(self, server, *topics, token=None, **options):
        self.server = server
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(connect(f"ws://127.0.0.1:{server.port}/api/realtime", open_timeout=kit.PATIENCE, **options))
        self.last = None
        event, data = self.next()
        assert event == "PB_CONNECT"
        self.client_id = data["clientId"]
        if topics:
            self.say(type="subscribe", subscriptions=list(topics), **({"token": token} if token else {}))
            assert self.next() == ("PB_SUBSCRIBED", {"subscriptions": list(topics)})

    def say(self, **message):
        self.socket.send(json.dumps(message))

    def next(self, timeout=kit.PATIENCE):
        message = json.loads(self.socket.recv(timeout))
        assert sorted(message) == ["data", "event", "id"]
        self.last = message["id"]
        return message["event"], message["data"]

    def sync(self):
        """All messages that come before the answer to a ping."""
        self.say(type="ping")
        return list(iter(self.next, ("PB_PONG", {})))

    def code(self):
        """The close code, after whatever was still on its way."""
        try:
            while True:
                self.socket.recv(kit.PATIENCE)
        except ConnectionClosed as closed:
            return closed.rcvd and closed.rcvd.code

    def cut(self):
        """Ends the connection as a broken network would; its own thread closes the descriptor, which nobody else may reuse before."""
        with contextlib.suppress(OSError):
            self.socket.socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.close()


class Stream:
    """An event stream with its ids: `Stream(server, resume=True)`, `Stream(server, last=id)`."""

    def __init__(self, server, *topics, token=None, resume=False, last=None, headers=None):
        self.connection = server._connect()
        headers = {**(headers or {}), **({"Last-Event-ID": last} if last else {})}
        self.connection.request("GET", "/api/realtime" + ("?resume=1" if resume else ""), headers=headers)
        self.response = self.connection.getresponse()
        self.last, self.sock = last, self.connection.sock
        self.client_id = self.next()[1]["clientId"]
        if topics:
            body = {"clientId": self.client_id, "subscriptions": list(topics)}
            assert server.post("/api/realtime", body, token=token).status == 204

    def next(self, timeout=kit.PATIENCE):
        """(event, data) of the next message, None at the end of the stream."""
        self.sock.settimeout(timeout)
        frame = {}
        while line := self.response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(":")
            frame[name] = value
        if not frame:
            return None
        self.last = frame["id"]
        return frame["event"], json.loads(frame["data"])

    def cut(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.response.close()
        self.connection.close()


@pytest.fixture(scope="module")
def people(server):
    """An auth collection with ann and bob, and collections guarded in different ways."""
    server.make("people", ["n", {"name": "secret", "type": "text", "hidden": True}], type="auth")
    ids = {n: server.add_user(f"{n}@example.com", "people", n=n, secret="s")["id"] for n in ("ann", "bob")}
    owner = {"name": "owner", "type": "relation", "collectionId": server.get("/api/collections/people", token=server.su).json["id"], "maxSelect": 1}
    server.make("open", ["t", {"name": "hid", "type": "text", "hidden": True}, owner])
    server.make("owned", ["t", owner], listRule="owner = @request.auth.id", viewRule="owner = @request.auth.id || @request.query.key = 'k'")
    server.make("locked", ["t"], listRule=None, viewRule=None)
    return {**ids, **{n + " token": server.login("people", f"{n}@example.com") for n in ids}}


# ---- the event stream's wire

def test_connect_frame_is_exact(server):
    answer = server._connect()
    answer.request("GET", "/api/realtime")
    response = answer.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    assert (response.status, headers["content-type"], headers["cache-control"], headers["x-accel-buffering"], headers["transfer-encoding"]) \
        == (200, "text/event-stream", "no-store", "no", "chunked")
    lines = [response.readline().decode() for _ in range(4)]
    id = lines[0].removeprefix("id:").rstrip()
    assert len(id) == 40 and id.isalnum()
    assert lines == [f"id:{id}\n", "event:PB_CONNECT\n", f'data:{{"clientId":"{id}"}}\n', "\n"]
    answer.close()


def test_frames_carry_client_id_topic_as_subscribed_and_plain_json(server, people):
    name = topic("open/*", query={"fields": "t,id"})
    with server.events(name) as events:
        made = server.add("open", {"t": '<b>"&\u2028é\n'})
        lines = [events.response.readline().decode() for _ in range(4)]
        assert lines[:2] + lines[3:] == [f"id:{events.client_id}\n", f"event:{name}\n", "\n"]
        assert lines[2] == 'data:{"record":{"id":"%s","t":"<b>\\"&\u2028é\\n"},"action":"create"}\n' % made["id"]


@beyond
def test_head_answers_without_a_stream(server):
    response = server.head("/api/realtime")
    assert (response.status, response.headers["content-type"], response.body) == (200, "text/event-stream", b"")


def test_http_1_0_streams_unchunked(server, people):
    with socket.create_connection(("127.0.0.1", server.port), kit.PATIENCE) as sock:
        sock.sendall(b"GET /api/realtime HTTP/1.0\r\n\r\n")
        file = sock.makefile("rb")
        head = b"".join(iter(file.readline, b"\r\n"))
        assert b"chunked" not in head.lower()
        assert [file.readline()[:3] for _ in range(2)] == [b"id:", b"eve"]


# ---- POST

def test_subscribe_problems_come_in_the_order_body_client_ip_auth(server, people):
    post = functools.partial(server.post, "/api/realtime")
    with server.events() as events:
        id = events.client_id
        assert refusal(post({})) == (400, {"clientId": "validation_required"})
        assert refusal(post({"clientId": "x" * 256})) == (400, {"clientId": "validation_length_out_of_range"})
        assert refusal(post({"clientId": id, "subscriptions": ["x"] * 1001})) == (400, {"subscriptions": "validation_length_too_long"})
        assert refusal(post({"clientId": id, "subscriptions": ["a", "x" * 2501]})) == (400, {"subscriptions.1": "validation_length_too_long"})
        assert refusal(post({"clientId": id, "subscriptions": "open/*"})) == (400, {})
        assert post({"clientId": "nobody"}).json == envelope(404, "Missing or invalid client id.")
        assert post({"clientId": id, "subscriptions": ["", "no/such", "@custom"]}).status == 204
        assert post(urlenc={"clientId": id, "subscriptions": "open/*"}).status == 204
        made = server.add("open")
        assert told(events, 1) == [("open/*", "create", made["id"])]
    deadline = time.monotonic() + kit.PATIENCE
    while post({"clientId": id}).status != 404:         # gone as soon as the server notices
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_subscribing_from_another_address_is_refused(fresh):
    server = fresh()
    server.settings(trustedProxy={"headers": ["X-Real-IP"], "useLeftmostIP": False})
    with server.events() as events:
        answer = server.post("/api/realtime", {"clientId": events.client_id}, headers={"X-Real-IP": "9.9.9.9"})
        assert answer.json == envelope(400, "Invalid realtime client.")


def test_each_post_replaces_the_whole_set(server, people):
    with server.events("open/*", "locked/*") as events:
        events.subscribe("open")
        made = server.add("open")
        assert told(events, 1) == [("open", "create", made["id"])]
        events.subscribe()
        server.add("open")
        events.subscribe("open")
        last = server.add("open")
        assert told(events, 1) == [("open", "create", last["id"])]


# ---- topics and rules

def test_every_spelling_of_a_topic_fires_once(server, people):
    id = server.get("/api/collections/open", token=server.su).json["id"]
    record = server.add("open")["id"]
    with server.events("open/*", "open", f"open/{record}", f"{id}/*", id, f"{id}/{record}", "OPEN/*", "open/other", "people/*") as events:
        for verb in ("update", "delete"):
            server.request({"update": "PATCH", "delete": "DELETE"}[verb], records("open", record))
            assert told(events, 6) == sorted((name, verb, record) for name in ("open/*", "open", f"open/{record}", f"{id}/*", id, f"{id}/{record}"))


def test_list_rule_guards_all_and_view_rule_guards_one(server, people):
    owned = server.add("owned", {"owner": people["ann"]})["id"]
    with server.events("owned/*", f"owned/{owned}", topic(f"owned/{owned}", query={"key": "k"}), topic("owned/*", query={"key": "k"})) as guest, \
            server.events("owned/*", f"owned/{owned}", token=people["ann token"]) as ann, \
            server.events("owned/*", "locked/*", token=server.su) as su:
        server.patch(records("owned", owned), {"t": "x"}, token=server.su)
        assert told(guest, 1) == [(topic(f"owned/{owned}", query={"key": "k"}), "update", owned)]
        assert told(ann, 2) == [("owned/*", "update", owned), (f"owned/{owned}", "update", owned)]
        assert told(su, 1) == [("owned/*", "update", owned)]
        locked = server.add("locked")["id"]
        assert told(su, 1) == [("locked/*", "create", locked)]
        assert silent(guest)


def test_record_that_leaves_the_rule_is_silent_and_one_that_enters_is_an_update(server, people):
    with server.events("owned/*", token=people["ann token"]) as ann, server.events("owned/*", token=people["bob token"]) as bob:
        record = server.add("owned", {"owner": people["ann"]})["id"]
        server.patch(records("owned", record), {"owner": people["bob"]}, token=server.su)
        server.delete(records("owned", record), token=server.su)
        marker = server.add("owned", {"owner": people["ann"]})["id"]
        assert told(ann, 2) == sorted([("owned/*", "create", record), ("owned/*", "create", marker)])
        assert [bob.next()[1]["action"] for _ in range(2)] == ["update", "delete"]


def test_null_rule_is_for_superusers_and_token_at_connect_means_nothing(server, people):
    stream = Stream(server, "locked/*", "open/*", headers={"Authorization": server.su})
    server.add("locked")
    server.add("open")
    assert stream.next()[0] == "open/*"
    stream.cut()


def test_superusers_see_hidden_fields_but_no_secrets(server, people):
    with server.events("people/*", "open/*", token=server.su) as su, server.events("people/*", "open/*") as guest:
        server.add("open", {"hid": "h"})
        assert su.next()[1]["record"]["hid"] == "h" and "hid" not in guest.next()[1]["record"]
        server.patch(records("people", people["bob"]), {"n": "bob2"}, token=server.su)
        seen, public = su.next()[1]["record"], guest.next()[1]["record"]
        assert seen["secret"] == "s" and seen["email"] == "bob@example.com" and not {"password", "tokenKey"} & set(seen)
        assert not {"secret", "email", "password", "tokenKey"} & set(public)


def test_email_is_shown_to_its_owner_only(server, people):
    with server.events("people/*", token=people["ann token"]) as ann:
        for name in ("bob", "ann"):
            server.patch(records("people", people[name]), {"n": name}, token=server.su)
        assert [ann.next()[1]["record"].get("email") for _ in range(2)] == [None, "ann@example.com"]


# ---- options

def test_expand_fields_filter_and_headers_options(server, people):
    topics = {"expand": topic("open/*", query={"expand": "owner"}), "fields": topic("open/*", query={"fields": "id,expand.owner.n", "expand": "owner"}),
              "filter": topic("open/*", query={"filter": "t = 'yes'"}), "broken": topic("open/*", query={"filter": "nope = 1"}),
              "secret": topic("open/*", query={"filter": "hid != 'x'"}), "request": topic("open/*", query={"filter": "@request.auth.id = ''"}),
              "bad fields": topic("open/*", query={"fields": "t:excerpt("}), "junk": "open/*?options=bad"}
    with server.events(*topics.values()) as events:
        for text in ("no", "yes"):
            server.add("open", {"t": text, "owner": people["ann"]})
        got = {}
        for _ in range(9):
            name, data = events.next()
            got.setdefault(name, []).append(data["record"])
        assert silent(events)
    assert {name: [r.get("t") for r in got.get(topics[name], [])] for name in topics} == {
        "expand": ["no", "yes"], "fields": [None, None], "filter": ["yes"], "broken": [], "secret": [], "request": [],
        "bad fields": ["no", "yes"], "junk": ["no", "yes"]}
    assert got[topics["expand"]][0]["expand"]["owner"]["n"] == "ann"
    assert set(got[topics["fields"]][0]) == {"id", "expand"} and set(got[topics["fields"]][0]["expand"]["owner"]) == {"n"}


def test_topics_that_differ_in_options_only_both_fire_and_headers_are_snake_cased(server, people):
    server.make("keyed", ["t"], listRule="@request.headers.x_key = '5' && @request.context = 'realtime' && @request.method = 'GET'")
    fitting = [topic("keyed/*", headers={"X-Key": 5}), topic("keyed/*", headers={"x_key": "5"}), topic("keyed/*", headers={"xKey": 5}), topic("keyed/*", headers={"-x..key": 5})]
    with server.events(*fitting, topic("keyed/*", headers={"X-Key": "6"}), "keyed/*") as events:
        made = server.add("keyed")["id"]
        assert told(events, 4) == sorted((name, "create", made) for name in fitting)
        assert silent(events)


# ---- transactions

def test_failed_batch_is_silent_and_cascades_come_before_their_parent(server, people):
    server.settings(batch={"enabled": True, "maxRequests": 50, "timeout": 3})
    parent = server.make("parents", ["t"])["id"]
    server.make("kids", [{"name": "p", "type": "relation", "collectionId": parent, "maxSelect": 1, "cascadeDelete": True}])
    with server.events("parents/*", "kids/*") as events:
        url = records("parents")
        failed = server.post("/api/batch", {"requests": [{"method": "POST", "url": url, "body": {}}, {"method": "POST", "url": url, "body": {"id": "x"}}]})
        assert failed.status == 400
        requests = [{"method": "POST", "url": url, "body": {"id": "parent000000001"}},
                    {"method": "POST", "url": records("kids"), "body": {"id": "kid000000000001", "p": "parent000000001"}},
                    {"method": "PATCH", "url": records("parents", "parent000000001"), "body": {"t": "b"}}]
        assert server.post("/api/batch", {"requests": requests}).status == 200
        server.delete(records("parents", "parent000000001"))
        got = [(name, data["action"]) for name, data in (events.next() for _ in range(5))]
        assert got == [("parents/*", "create"), ("kids/*", "create"), ("parents/*", "update"), ("kids/*", "delete"), ("parents/*", "delete")]


def test_refused_delete_is_silent(server, people):
    held = server.make("held", ["t"])["id"]
    server.make("holders", [{"name": "h", "type": "relation", "collectionId": held, "maxSelect": 1, "required": True}])
    with server.events("held/*") as events:
        record = server.add("held")["id"]
        server.add("holders", {"h": record})
        assert server.delete(records("held", record)).status == 400
        marker = server.add("held")["id"]
        assert told(events, 2) == sorted([("held/*", "create", record), ("held/*", "create", marker)])


def test_truncate_tells_of_every_record(server, people):
    server.make("emptied", ["t"])
    ids = sorted(server.add("emptied")["id"] for _ in range(3))
    with server.events("emptied/*") as events:
        server.delete("/api/collections/emptied/truncate", token=server.su)
        assert told(events, 3) == [("emptied/*", "delete", id) for id in ids]


# ---- who is asking

def test_guest_may_become_a_user_and_a_user_nobody_else(server, people):
    with server.events("owned/*") as events:
        bind = functools.partial(server.post, "/api/realtime", {"clientId": events.client_id, "subscriptions": ["owned/*"]})
        assert bind(token=people["ann token"]).status == 204
        for token in (people["bob token"], None, "bad", server.su):
            assert bind(token=token).json == envelope(403, "The current and the previous request authorization don't match.")
        assert bind(token=people["ann token"]).status == 204
        made = server.add("owned", {"owner": people["ann"]})["id"]
        assert told(events, 1) == [("owned/*", "create", made)]


def test_password_change_makes_a_guest_at_once_and_a_plain_update_refreshes(server, people):
    server.make("staff", ["level"], type="auth", listRule="@request.auth.id = id")
    server.make("papers", ["t"], listRule="@request.auth.level = 'high'")
    user = server.add_user("eve@example.com", "staff", level="low")["id"]
    token = server.login("staff", "eve@example.com")
    with server.events("papers/*", "staff/*", token=token) as events:
        server.add("papers", {"t": "1"})
        server.patch(records("staff", user), {"level": "high"}, token=server.su)
        assert events.next()[1]["record"]["email"] == "eve@example.com"
        second = server.add("papers", {"t": "2"})["id"]
        assert told(events, 1) == [("papers/*", "create", second)]
        server.patch(records("staff", user), {"password": "new-password", "passwordConfirm": "new-password"}, token=server.su)
        server.add("papers", {"t": "3"})
        assert silent(events)


def test_after_a_downgrade_any_identity_may_be_bound(server, people):
    user = server.add_user("carl@example.com", "people")["id"]
    token = server.login("people", "carl@example.com")
    with server.events("owned/*", token=token) as events:
        server.patch(records("people", user), {"password": "new-password", "passwordConfirm": "new-password"}, token=server.su)
        body = {"clientId": events.client_id, "subscriptions": ["owned/*"]}
        assert server.post("/api/realtime", body, token=people["bob token"]).status == 204
        made = server.add("owned", {"owner": people["bob"]})["id"]
        assert told(events, 1) == [("owned/*", "create", made)]


def test_deleted_user_hears_of_its_own_delete_and_is_a_guest_then(server, people):
    user = server.add_user("dora@example.com", "people")["id"]
    with server.events("people/*", "owned/*", token=server.login("people", "dora@example.com")) as events:
        server.delete(records("people", user), token=server.su)
        name, data = events.next()
        assert (name, data["action"], data["record"]["email"]) == ("people/*", "delete", "dora@example.com")
        assert server.post("/api/realtime", {"clientId": events.client_id, "subscriptions": []}, token=people["ann token"]).status == 204


def test_new_token_secret_of_a_collection_makes_guests(fresh):
    server = fresh()
    server.make("members", [], type="auth")
    server.make("inner", ["t"], listRule="@request.auth.id != ''")
    server.make("outer", ["t"])
    server.add_user("m@example.com", "members")
    with server.events("inner/*", "outer/*", token=server.login("members", "m@example.com")) as events:
        server.add("inner")
        assert events.next()[0] == "inner/*"
        options = {"authToken": {"secret": "s" * 50, "duration": 1000}}
        assert server.patch("/api/collections/members", options, token=server.su).status == 200
        server.add("inner")
        server.add("outer")
        assert events.next()[0] == "outer/*"


# ---- @oauth2

def test_oauth2_redirect_reaches_the_subscribed_client_once(server):
    place = "../_/#/auth/oauth2-redirect-"
    with server.events() as events:
        go = f"/api/oauth2-redirect?state={events.client_id}"
        for path in ("/api/oauth2-redirect", "/api/oauth2-redirect?state=x&code=y", go + "&code=c"):
            answer = server.get(path)
            assert (answer.status, answer.headers["location"], answer.body) == (307, place + "failure", b"")
        events.subscribe("@oauth2")
        assert server.get(go + "&code=c").headers["location"] == place + "success"
        assert server.get(go + "&code=c").headers["location"] == place + "failure"
        events.subscribe("@oauth2")
        answer = server.post("/api/oauth2-redirect", urlenc={"state": events.client_id, "code": "d"})
        assert (answer.status, answer.headers["location"]) == (303, place + "success")
        events.subscribe("@oauth2")
        answer = server.post("/api/oauth2-redirect", {"state": events.client_id, "error": "access_denied"})
        assert (answer.status, answer.headers["location"]) == (303, place + "failure")
        events.subscribe("@oauth2")
        assert server.get(go).headers["location"] == place + "failure"
        state = {"state": events.client_id}
        assert [events.next() for _ in range(4)] == [("@oauth2", {**state, "code": "c"}), ("@oauth2", {**state, "code": "d"}),
                                                     ("@oauth2", {**state, "code": "", "error": "access_denied"}), ("@oauth2", {**state, "code": ""})]


def test_oauth2_redirect_from_another_address_burns_the_topic(fresh):
    server = fresh()
    server.settings(trustedProxy={"headers": ["X-Real-IP"], "useLeftmostIP": False})
    with server.events("@oauth2") as events:
        go = f"/api/oauth2-redirect?state={events.client_id}&code=c"
        assert server.get(go, headers={"X-Real-IP": "9.9.9.9"}).headers["location"].endswith("failure")
        assert server.get(go).headers["location"].endswith("failure")
        assert silent(events)


# ---- WebSocket

@beyond
def test_websocket_speaks_the_protocol(server, people):
    with Socket(server) as client:
        assert len(client.client_id) == 40
        client.say(type="ping")
        assert client.next() == ("PB_PONG", {})
        client.say(type="subscribe", subscriptions=["open/*", "", "open"])
        assert client.next() == ("PB_SUBSCRIBED", {"subscriptions": ["open/*", "open"]})
        client.say(type="subscribe", subscriptions=["open"])
        assert client.next() == ("PB_SUBSCRIBED", {"subscriptions": ["open"]})
        made = server.add("open", {"t": "é\u2028\"<"})
        assert client.next() == ("open", {"record": {k: v for k, v in made.items() if k != "hid"}, "action": "create"})


@beyond
def test_websocket_and_stream_get_the_same_data(server, people):
    name = topic("open/*", query={"expand": "owner"})
    with Socket(server, name) as client, server.events(name) as events:
        made = server.add("open", {"t": "x", "owner": people["ann"]})["id"]
        server.patch(records("open", made), {"t": "y"})
        server.delete(records("open", made))
        assert [client.next() for _ in range(3)] == [events.next() for _ in range(3)]


@beyond
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"type":5}', '{"type":"nope"}', '{"type":["ping"]}', '{"type":"resume"}',
                                  '{"type":"subscribe","subscriptions":"x"}', '{"type":"subscribe","subscriptions":[],"token":5}', "[" * 5000,
                                  '{"type":"ping","type":"ping"}', b"\x00\xff"])
def test_bad_websocket_messages_get_an_error_and_the_connection_stays(server, text):
    with Socket(server) as client:
        client.socket.send(text)
        event, data = client.next()
        assert event == "PB_ERROR" and data["status"] == 400 and sorted(data) == ["data", "message", "status"]
        assert client.sync() == []


@beyond
def test_websocket_topic_limits_are_the_ones_of_the_post(server):
    with Socket(server) as client:
        for topics, place in ((["x"] * 1001, ["code", "message", "params"]), (["x" * 2501], ["0"])):
            client.say(type="subscribe", subscriptions=topics)
            event, data = client.next()
            assert (event, data["status"], sorted(data["data"]["subscriptions"])) == ("PB_ERROR", 400, place)


@beyond
def test_websocket_binds_as_the_post_does(server, people):
    with Socket(server, "owned/*") as client:
        client.say(type="auth", token="bad")
        assert client.next()[1]["status"] == 401
        client.say(type="auth", token=people["ann token"])
        assert client.sync() == []
        client.say(type="auth", token=people["bob token"])
        assert client.next() == ("PB_ERROR", envelope(403, "The current and the previous request authorization don't match."))
        client.say(type="subscribe", subscriptions=["owned/*", "locked/*"], token=people["bob token"])
        assert client.next()[1]["status"] == 403
        client.say(type="subscribe", subscriptions=["owned/*", "locked/*"])      # no token: the binding stays
        assert client.next()[0] == "PB_SUBSCRIBED"
        made = server.add("owned", {"owner": people["ann"]})["id"]
        assert client.next()[1]["record"]["id"] == made


@beyond
def test_websocket_client_can_be_subscribed_by_post_and_used_for_oauth2(server, people):
    with Socket(server) as client:
        assert server.post("/api/realtime", {"clientId": client.client_id, "subscriptions": ["@oauth2", "locked/*"]}, token=server.su).status == 204
        assert server.get(f"/api/oauth2-redirect?state={client.client_id}&code=c").headers["location"].endswith("success")
        assert client.next() == ("@oauth2", {"state": client.client_id, "code": "c"})
        made = server.add("locked")["id"]
        assert client.next()[1]["record"]["id"] == made


@beyond
def test_rate_limits_of_the_post_hold_for_websocket_messages(fresh):
    server = fresh()
    server.settings(rateLimits={"enabled": True, "rules": [{"label": "/api/realtime", "maxRequests": 3, "duration": 1000, "audience": ""}]})
    with Socket(server) as client:                  # its own request is the first
        for _ in range(2):
            client.say(type="subscribe", subscriptions=["a"])
            assert client.next()[0] == "PB_SUBSCRIBED"
        client.say(type="subscribe", subscriptions=["b"])
        event, data = client.next()
        assert (event, data["status"]) == ("PB_ERROR", 429)
        assert client.sync() == []


@beyond
def test_superuser_outside_the_ip_list_cannot_bind_a_websocket(fresh):
    server = fresh()
    token = server.su
    server.settings(trustedProxy={"headers": ["X-Real-IP"], "useLeftmostIP": False}, superuserIPs=["127.0.0.1"])
    with Socket(server, additional_headers={"X-Real-IP": "9.9.9.9"}) as client:
        client.say(type="auth", token=token)
        event, data = client.next()
        assert (event, data["status"]) == ("PB_ERROR", 403)


@beyond
def test_foreign_origin_is_closed_with_1008_and_own_and_listed_are_not(fresh):
    server = fresh("--origins", "http://good.example")
    for origin in ("http://good.example", f"http://127.0.0.1:{server.port}", None):
        with Socket(server, origin=origin) as client:
            assert client.sync() == []
    with connect(f"ws://127.0.0.1:{server.port}/api/realtime", origin="http://evil.example") as bad, pytest.raises(ConnectionClosed) as closed:
        bad.recv(kit.PATIENCE)
    assert closed.value.rcvd.code == 1008


@beyond
def test_message_over_64_kib_is_closed_with_1009(server):
    with Socket(server) as client:
        client.socket.send(json.dumps({"type": "x" * 60000}))
        assert client.next()[0] == "PB_ERROR"
        for text in ("x" * (64 * 1024 + 1), ["x" * 40000, "x" * 40000]):      # fragments count together
            with Socket(server) as other, contextlib.suppress(ConnectionClosed):
                other.socket.send(text)
            assert other.code() == 1009
        assert client.sync() == []


@beyond
def test_broken_utf8_is_closed_with_1007_and_an_unmasked_frame_with_1002(server):
    for frame, code in ((b"\x81\x82\0\0\0\0\xff\xfe", 1007), (b"\x81\x02hi", 1002)):
        with socket.create_connection(("127.0.0.1", server.port), kit.PATIENCE) as sock:
            key = base64.b64encode(bytes(16)).decode()
            sock.sendall(f"GET /api/realtime HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
                         f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode() + frame)
            everything = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
        assert everything.endswith(b"\x88\x02" + code.to_bytes(2, "big"))


@beyond
def test_shutdown_closes_websockets_with_1001_and_ends_streams_cleanly(fresh):
    server = fresh()
    client, events = Socket(server, "a/*"), server.events("a/*")
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    assert client.code() == 1001
    assert events.next() is None            # the final chunk, no reset
    stopper.join(kit.PATIENCE)


@beyond
def test_both_transports_over_tls(fresh, tmp_path):
    key, cert, port = tmp_path / "key.pem", tmp_path / "cert.pem", kit.free_port()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    plain = fresh()
    plain.make("posts", ["n:number", {"name": "t", "type": "text", "max": 200000}])
    plain.stop()
    server = fresh("--https", f"127.0.0.1:{port}", "--httpsCert", str(cert), "--httpsKey", str(key), dir=plain.dir, start=False)
    server.start(wait=False)
    server.wait_log("Server started")
    context = ssl.create_default_context(cafile=cert)

    def post(path, body):
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=kit.PATIENCE)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    stream = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=kit.PATIENCE)
    stream.request("GET", "/api/realtime")
    response = stream.getresponse()
    id = response.readline().decode()[3:].strip()
    assert post("/api/realtime", {"clientId": id, "subscriptions": ["posts/*"]})[0] == 204
    with connect(f"wss://127.0.0.1:{port}/api/realtime", ssl=context) as client:
        client.recv(kit.PATIENCE)
        client.send('{"type":"subscribe","subscriptions":["posts/*"]}')
        client.recv(kit.PATIENCE)
        wanted = [post(records("posts"), {"n": number, "t": "x" * 100_000})[0] and number for number in range(8)]
        assert [json.loads(client.recv(kit.PATIENCE))["data"]["record"]["n"] for _ in wanted] == wanted
        lines = (line for line in iter(response.readline, b"") if line.startswith(b'data:{"record"'))
        assert [json.loads(next(lines)[5:])["record"]["n"] for _ in wanted] == wanted
    stream.close()


# ---- time

@beyond
def test_idle_stream_ends_cleanly_and_messages_keep_it(fresh):
    server = fresh(command=tuned(STREAM_IDLE_SECONDS=2))
    server.make("posts", ["t"])
    with server.events("posts/*") as busy, server.events() as idle:
        ended = threading.Thread(target=lambda: idle.next() or ends.append(idle))
        ends = []
        ended.start()
        while ended.is_alive():
            server.add("posts")
            assert busy.next()[0] == "posts/*"
            ended.join(0.2)
        assert ends == [idle]


@beyond
def test_silent_websocket_is_pinged_and_stays(fresh):
    server = fresh(command=tuned(STREAM_IDLE_SECONDS=1, WEBSOCKET_PING_SECONDS=1))
    with socket.create_connection(("127.0.0.1", server.port), kit.PATIENCE) as sock:
        key = base64.b64encode(bytes(16)).decode()
        sock.sendall(f"GET /api/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                     f"Sec-WebSocket-Key: {key}\r\n\r\n".encode())
        seen = b""
        while seen.count(b"\x89\0") < 2:
            seen += sock.recv(65536)
            assert seen


# ---- nobody pays for another

@beyond
def test_client_that_never_reads_is_dropped_and_others_hear_everything(fresh):
    server = fresh()
    server.make("posts", ["n:number", {"name": "t", "type": "text", "max": 200000}])
    text, count = "x" * 100_000, 60
    with Socket(server, "posts/*", max_queue=1) as slow, server.events("posts/*") as events:
        stuck = socket.create_connection(("127.0.0.1", server.port), kit.PATIENCE)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /api/realtime HTTP/1.1\r\nHost: x\r\n\r\n")
        first = b""
        while b"clientId" not in first or not first.endswith(b"\n\n\r\n"):
            first += stuck.recv(4096)
        id = first.partition(b'clientId":"')[2][:40].decode()
        assert server.post("/api/realtime", {"clientId": id, "subscriptions": ["posts/*"]}).status == 204
        numbers = []
        reader = threading.Thread(target=lambda: numbers.extend(int(events.next()[1]["record"]["n"]) for _ in range(count)))
        reader.start()
        for number in range(count):
            server.add("posts", {"n": number, "t": text})
        reader.join(kit.PATIENCE)
        assert numbers == list(range(count))
        assert server.post("/api/realtime", {"clientId": id}).status == 404       # dropped, although its socket was never closed by it
        stuck.close()
        assert slow.code() == 1013


@beyond
def test_failing_delivery_touches_nobody_else(fresh):
    patch = """
def encode(self, message, encode=pocketbase.Client.encode):
    assert message.event != "bad"
    return encode(self, message)
pocketbase.Client.encode = encode
def data(self, topic, caller, rule, data=pocketbase.ChangeView.data):
    assert topic.text != "posts"
    return data(self, topic, caller, rule)
pocketbase.ChangeView.data = data
"""
    server = fresh(command=tuned(patch=patch))
    bad = server.make("bad", ["t"])["id"]
    server.make("posts", ["t"])
    with server.events("bad", f"{bad}/*", "posts", "posts/*") as first, server.events(f"{bad}/*", "posts/*") as second:
        server.add("bad")
        server.add("posts")
        for events in (first, second):
            assert [events.next()[0] for _ in range(2)] == [f"{bad}/*", "posts/*"]


@beyond
def test_rules_are_asked_and_records_written_once_for_all_who_see_the_same(fresh):
    patch = """
def holds(self, query, holds=pocketbase.ChangeView._holds):
    print("ASKED", flush=True)
    return holds(self, query)
pocketbase.ChangeView._holds = holds
def wrap(self, *args, wrap=pocketbase.ChangeView._wrap):
    print("WRITTEN", flush=True)
    return wrap(self, *args)
pocketbase.ChangeView._wrap = wrap
"""
    server = fresh(command=tuned(patch=patch))
    server.make("posts", ["t"], listRule="t != @request.auth.id && t != 'x'")
    for name in ("ann", "bob"):
        server.add_user(f"{name}@example.com")
    tokens = [None, None, None, *[server.login("users", f"{name}@example.com") for name in ("ann", "ann", "bob")]]
    clients = [server.events("posts/*", token=token) for token in tokens] + [Socket(server, "posts/*")]
    server.add("posts", {"t": "y"})
    for client in clients:
        assert client.next()[0] == "posts/*"
        (client.close if isinstance(client, kit.Events) else client.cut)()
    server.stop()
    assert (server.log.count("ASKED"), server.log.count("WRITTEN")) == (3, 1)      # guest, ann, bob; one view


@beyond
def test_without_topics_the_records_events_have_no_listener(fresh):
    patch = """
def listen(self, wanted, listen=pocketbase.Broker._listen):
    listen(self, wanted)
    names = ("record_after_create_success", "record_after_update_success", "record_delete", "record_after_delete_success")
    print("LISTENED", self.app.events.listened(*names), flush=True)
pocketbase.Broker._listen = listen
"""
    server = fresh(command=tuned(patch=patch))
    with server.events("posts/*"):
        server.wait_log("LISTENED True")
    server.wait_log("LISTENED False")


# ---- coming back

@beyond
def test_last_event_id_of_a_client_that_never_asked_changes_nothing(server, people):
    with server.events("open/*") as events:
        again = Stream(server, last=events.client_id)
        assert again.client_id != events.client_id and again.last == again.client_id
        server.add("open")
        assert events.next()[0] == "open/*"
        again.cut()


@beyond
def test_stream_gets_what_it_missed(server, people):
    stream = Stream(server, "open/*", resume=True)
    assert stream.last.startswith(stream.client_id + ".")
    first = server.add("open")["id"]
    assert stream.next()[1]["record"]["id"] == first
    stream.cut()
    missed = [server.add("open")["id"] for _ in range(3)]
    server.patch(records("open", missed[0]), {"t": "x"})
    server.delete(records("open", missed[1]))
    stream = Stream(server, last=stream.last)
    got = [stream.next() for _ in range(5)]
    assert [(data["action"], data["record"]["id"]) for _, data in got] == [
        ("create", missed[0]), ("create", missed[1]), ("create", missed[2]), ("update", missed[0]), ("delete", missed[1])]
    after = server.add("open")["id"]
    assert stream.next()[1]["record"]["id"] == after
    stream.cut()


@beyond
def test_websocket_gets_what_it_missed_while_its_old_connection_still_hangs(server, people):
    with Socket(server, "open/*") as old, Socket(server) as client:
        old.sync()
        made = server.add("open")["id"]         # sent to the old connection, which never reads it
        client.say(type="resume", clientId=old.client_id, lastEventId=old.last)
        assert client.next()[1]["record"]["id"] == made
        with pytest.raises(ConnectionClosed):
            old.next()
            old.next()
        after = server.add("open")["id"]
        assert client.next()[1]["record"]["id"] == after
        assert client.sync() == []


@beyond
def test_unknown_client_and_a_restarted_server_mean_reset(fresh):
    server = fresh()
    server.make("open", ["t"])
    client = Socket(server, "open/*")
    server.add("open")
    client.next()
    client.cut()
    server.restart()
    with Socket(server) as again:
        again.say(type="resume", clientId=client.client_id, lastEventId=client.last)
        assert again.next() == ("PB_RESET", {"clientId": again.client_id, "subscriptions": []})
    stream = Stream(server, last=f"{client.client_id}.5")
    assert stream.next() == ("PB_RESET", {"clientId": stream.client_id, "subscriptions": []})
    stream.cut()


@beyond
@pytest.mark.parametrize("last", ["nope.5", "x", "{id}", "{id}.", "{id}.x", "{id}.-1"])
def test_an_event_id_of_nobody_means_reset_to_those_who_ask(fresh, last):
    server = fresh()
    first = Stream(server, resume=True)
    last = last.format(id=first.client_id)
    again = Stream(server, resume=True, last=last)
    assert again.next() == ("PB_RESET", {"clientId": again.client_id, "subscriptions": []})
    server.make("open", ["t"])
    plain = Stream(server, "open/*", last=last)
    server.add("open")
    assert plain.next()[0] == "open/*"


@beyond
def test_window_is_bounded_and_beyond_it_comes_a_reset_with_the_topics_kept(fresh):
    server = fresh(command=tuned(RESUME_MESSAGES=3, RESUME_SECONDS=2))
    server.make("open", ["t"])
    client = Socket(server, "open/*")
    client.cut()
    for _ in range(4):
        server.add("open")
    with Socket(server) as again:
        again.say(type="resume", clientId=client.client_id, lastEventId=client.last)
        assert again.next() == ("PB_RESET", {"clientId": again.client_id, "subscriptions": ["open/*"]})
        made = server.add("open")["id"]
        assert again.next()[1]["record"]["id"] == made
        again.cut()
    time.sleep(5)                               # the window's end is the point
    with Socket(server) as late:
        late.say(type="resume", clientId=again.client_id, lastEventId=again.last)
        assert late.next() == ("PB_RESET", {"clientId": late.client_id, "subscriptions": []})


@beyond
def test_rules_are_checked_again_for_what_was_missed(server, people):
    server.make("moods", ["t", "m"], listRule="m = @request.auth.id")
    client = Socket(server, "moods/*", token=people["ann token"])
    client.cut()
    kept = server.add("moods", {"m": people["ann"]})["id"]
    gone = server.add("moods", {"m": people["ann"], "t": "private"})["id"]
    server.patch(records("moods", gone), {"m": people["bob"]}, token=server.su)
    with Socket(server) as again:
        again.say(type="resume", clientId=client.client_id, lastEventId=client.last)
        assert [data["record"]["id"] for _, data in again.sync()] == [kept]
        again.cut()
    server.add("moods", {"m": people["ann"]})
    server.patch("/api/collections/moods", {"listRule": None}, token=server.su)
    with Socket(server) as third:
        third.say(type="resume", clientId=again.client_id, lastEventId=again.last)
        assert third.sync() == []


@beyond
def test_changed_fields_mean_reset_not_old_texts(server, people):
    server.make("shapes", ["t", "late"])
    client = Socket(server, "shapes/*")
    client.cut()
    server.add("shapes", {"late": "soon hidden"})
    fields = server.get("/api/collections/shapes", token=server.su).json["fields"]
    fields = [{**field, "hidden": field["name"] == "late"} for field in fields]
    assert server.patch("/api/collections/shapes", {"fields": fields}, token=server.su).status == 200
    with Socket(server) as again:
        again.say(type="resume", clientId=client.client_id, lastEventId=client.last)
        assert [event for event, _ in again.sync()] == ["PB_RESET"]


@beyond
def test_nobody_resumes_anothers_client(fresh):
    server = fresh()
    server.settings(trustedProxy={"headers": ["X-Real-IP"], "useLeftmostIP": False})
    server.make("private", ["t"], listRule="@request.auth.id != ''")
    for name in ("ann", "bob"):
        server.add_user(f"{name}@example.com")
    ann, bob = (server.login("users", f"{name}@example.com") for name in ("ann", "bob"))
    client = Socket(server, "private/*", token=ann)
    client.cut()
    server.add("private")
    say = {"type": "resume", "clientId": client.client_id, "lastEventId": client.last}
    elsewhere = {"additional_headers": {"X-Real-IP": "9.9.9.9"}}
    for options, token in ((elsewhere, {}), (elsewhere, {"token": bob}), ({}, {"token": bob})):
        with Socket(server, **options) as thief:
            thief.say(**say, **token)
            assert thief.next() == ("PB_RESET", {"clientId": thief.client_id, "subscriptions": []})
    with Socket(server, **elsewhere) as roaming:                # another network, but the token proves who it is
        roaming.say(**say, token=ann)
        assert roaming.next()[0] == "private/*"


@beyond
def test_identity_that_became_void_cannot_resume(server, people):
    user = server.add_user("fred@example.com", "people")["id"]
    client = Socket(server, "open/*", token=server.login("people", "fred@example.com"))
    client.cut()
    server.add("open")
    server.patch(records("people", user), {"password": "new-password", "passwordConfirm": "new-password"}, token=server.su)
    with Socket(server) as again:
        again.say(type="resume", clientId=client.client_id, lastEventId=client.last)
        assert again.sync() == [("PB_RESET", {"clientId": again.client_id, "subscriptions": []})]


class _Returning:
    """A client that is cut at random moments and comes back until it was told everything."""

    def __init__(self, server, seed):
        self.server, self.random, self.got, self.cuts, self.connection = server, random.Random(seed), [], 0, None
        self.open()
        self.first_id = self.connection.client_id

    def run(self, count):
        while len(self.got) < count:
            if self.random.random() < 0.15:
                self.cut()
                time.sleep(self.random.choice((0, self.random.random() / 50)))
                self.open()
                if self.random.random() < 0.3:          # cut again before anything is read
                    self.cut()
                    self.open()
            try:
                event, data = self.connection.next()
            except (ConnectionClosed, ConnectionError, TypeError):      # ended by an earlier resume that was handled late
                self.open()
                continue
            assert event == "posts/*", event
            self.got.append((data["action"], data["record"]["n"]))
        self.connection.cut()

    def cut(self):
        self.cuts += 1
        self.connection.cut()


class _ReturningStream(_Returning):
    def open(self):
        old = self.connection
        self.connection = Stream(self.server, last=old.last) if old else Stream(self.server, "posts/*", resume=True)


class _ReturningSocket(_Returning):
    def open(self):
        old = self.connection
        self.connection = Socket(self.server) if old else Socket(self.server, "posts/*")
        if old:
            id = self.random.choice((self.first_id, old.client_id))
            self.connection.say(type="resume", clientId=id, lastEventId=old.last)


@beyond
def test_cuts_at_random_moments_leave_no_gap_and_no_duplicate(server):
    server.make("posts", ["n:number"])
    clients = [kind(server, seed) for seed in range(4) for kind in (_ReturningStream, _ReturningSocket)]
    rounds, wanted = 100, []

    def write():
        for number in range(rounds):
            made = server.add("posts", {"n": number})["id"]
            server.patch(records("posts", made), {"n": number + 0.5})
            server.delete(records("posts", made))
            wanted.extend([("create", number), ("update", number + 0.5), ("delete", number + 0.5)])
    crowd(len(clients), lambda number: clients[number].run(3 * rounds), write)
    assert [client.got for client in clients] == [wanted] * len(clients)
    assert sum(client.cuts for client in clients) > 50
