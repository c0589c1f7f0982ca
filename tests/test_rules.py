"""API rules: who may list, view, create, update and delete; what @request knows; the record a create rule sees; manage rules; hidden fields."""
import pytest

from helpers_answers import items
from helpers_answers import records
from helpers_answers import refusal

NOTES = records("notes")
PASSWORD = "1234567890"


@pytest.fixture(scope="module")
def api(server):
    """Users Ann (leads team t1) and Bob (in team t1); `notes`, whose rules each test sets anew."""
    server.make("teams", ["name"])
    team = server.add("teams", {"name": "t1"})["id"]
    fields = server.get("/api/collections/users", token=server.su).json["fields"]
    more = [{"name": "role", "type": "text"}, {"name": "level", "type": "number"}, {"name": "pin", "type": "text", "hidden": True},
            {"name": "teams", "type": "relation", "collectionId": server.get("/api/collections/teams", token=server.su).json["id"], "maxSelect": 9}]
    assert server.patch("/api/collections/users", {"fields": fields + more}, token=server.su).status == 200
    server.ann = server.add_user("ann@example.com", role="lead", level=5, pin="1234", teams=[team], verified=True)["id"]
    server.bob = server.add_user("bob@example.com", role="", level=1, teams=[])["id"]
    server.tokens = {"guest": None, "ann": server.login("users", "ann@example.com"), "bob": server.login("users", "bob@example.com"),
                     "root": server.su}
    server.make("notes", [
        "title", "n:number", "ok:bool", {"name": "tags", "type": "select", "values": ["a", "b", "c"], "maxSelect": 3}, "data:json", "day:date",
        {"name": "owner", "type": "relation", "collectionId": "_pb_users_auth_"},
        {"name": "team", "type": "relation", "collectionId": server.get("/api/collections/teams", token=server.su).json["id"]},
        {"name": "secret", "type": "text", "hidden": True}, {"name": "code", "type": "text", "autogeneratePattern": "[a-z]{5}"},
        {"name": "created", "type": "autodate", "onCreate": True}])
    server.team = team
    return server


def rules(api, **rules):
    """Sets the rules of `notes`; those not named are open."""
    answer = api.patch("/api/collections/notes", {**dict.fromkeys(("listRule", "viewRule", "createRule", "updateRule", "deleteRule"), ""), **rules},
                       token=api.su)
    assert answer.status == 200, answer


def creates(api, rule, body, who="guest", path=NOTES, **options):
    """Whether the create rule lets this body pass."""
    rules(api, createRule=rule)
    answer = api.post(path, body, token=api.tokens[who], **options)
    assert answer.status in (200, 400), answer
    assert answer.status == 200 or answer.json["data"] == {}, answer
    return answer.status == 200


def updates(api, rule, stored, body, who="guest"):
    rules(api, updateRule=rule)
    answer = api.patch(records("notes", api.add("notes", stored)["id"]), body, token=api.tokens[who])
    assert answer.status in (200, 404), answer
    return answer.status == 200


def views(api, rule, who="guest", query="", **options):
    rules(api, viewRule=rule)
    answer = api.get(records("notes", api.add("notes", {"title": "x", "owner": api.ann, "team": api.team})["id"]) + query, token=api.tokens[who],
                     **options)
    assert answer.status in (200, 404), answer
    return answer.status == 200


# ---- the five rules

@pytest.mark.parametrize("rule, allowed",
                         [("", "guest bob ann root"), (None, "root"), ("@request.auth.id != ''", "bob ann root"),
                          ("owner = @request.auth.id", "ann root")])
@pytest.mark.parametrize("kind", ["list", "view", "create", "update", "delete"])
def test_each_rule_guards_its_action(api, kind, rule, allowed):
    rules(api, **{f"{kind}Rule": rule})
    for who, token in api.tokens.items():
        id = api.add("notes", {"title": "mine", "owner": api.ann})["id"]
        one = records("notes", id)
        answer = {
            "list": lambda: api.get(NOTES, params={"filter": f"id = '{id}'"}, token=token), "view": lambda: api.get(one, token=token),
            "create": lambda: api.post(NOTES, {"owner": api.ann}, token=token), "update": lambda: api.patch(one, {"title": "new"}, token=token),
            "delete": lambda: api.delete(one, token=token),
        }[kind]()
        if who in allowed.split():
            assert answer.status == (204 if kind == "delete" else 200), (who, answer)
            assert kind != "list" or items(answer) == [id]
        else:
            refused = {"list": 200, "create": 400}.get(kind, 404) if rule is not None else 403
            assert answer.status == refused, (who, answer)
            assert kind != "list" or rule is None or items(answer) == []
            [(title,)] = api.db("select title from notes where id = ?", id)
            assert title == "mine"


def test_list_rule_and_filter_must_both_hold(api):
    rules(api, listRule="ok = true || title = 'listed'")
    for title, ok in (("listed", False), ("flagged", True), ("neither", False)):
        api.add("notes", {"title": title, "ok": ok, "n": 77})
    assert items(api.get(NOTES, params={"filter": "n = 77 && title ~ '%ed' || title = 'neither'"}), "title") == ["listed", "flagged"]


# ---- what @request knows

@pytest.mark.parametrize("rule, who, allowed", [
    ("@request.auth.id = ''", "guest", True), ("@request.auth.id = ''", "bob", False), ("@request.auth.id != ''", "guest", False),
    ("@request.auth.id = owner", "ann", True), ("@request.auth.id = owner", "bob", False),
    ("@request.auth.collectionName = 'users'", "bob", True), ("@request.auth.collectionId = '_pb_users_auth_'", "bob", True),
    ("@request.auth.collectionName = null", "guest", True),
    ("@request.auth.email = 'ann@example.com'", "ann", True), ("@request.auth.verified = true", "ann", True),
    ("@request.auth.verified = true", "bob", False), ("@request.auth.role = 'lead'", "ann", True),
    ("@request.auth.role = 'lead'", "bob", False), ("@request.auth.level > 4", "ann", True), ("@request.auth.level > 4", "bob", False),
    ("@request.auth.pin = '1234'", "ann", True), ("@request.auth.teams.name ?= 't1'", "ann", True),
    ("@request.auth.teams.name ?= 't1'", "bob", False), ("@request.auth.teams:length = 1", "ann", True), ("@request.auth.teams ?~ team", "ann", True),
    ("@request.auth.notes_via_owner.title ?= 'x'", "ann", True),
    ("@request.auth.notes_via_owner.title ?= 'x'", "bob", False), ("@request.auth.unknown = ''", "ann", True),
    ("@request.auth.role:lower = 'lead'", "ann", True), ("owner.role = 'lead'", "guest", True), ("owner.pin = '1234'", "guest", True),
    ("@request.method = 'GET'", "guest", True), ("@request.method = 'POST'", "guest", False), ("@request.context = 'default'", "guest", True),
    ("@request.context = 'expand'", "guest", False),
    ("@collection.users.role ?= 'lead'", "guest", True), ("@collection.users.role = 'lead'", "guest", False),
    ("@collection.users.id ?= owner && @collection.users.level ?> 4", "guest", True),
    ("@request.body.title:isset = false", "guest", True), ("created <= @now && created > @yesterday", "guest", True),
])
def test_view_rules(api, rule, who, allowed):
    assert views(api, rule, who) is allowed


@pytest.mark.parametrize("rule, query, headers, allowed", [
    ("@request.query.key = 'abc'", "?key=abc", {}, True), ("@request.query.key = 'abc'", "?key=abd", {}, False),
    ("@request.query.key = 'abc'", "", {}, False), ("@request.query.key:isset = true", "?key=", {}, True),
    ("@request.query.key = '1'", "?key=1", {}, True), ("@request.query.key = 'a'", "?key=a&key=b", {}, True),
    ("@request.query.key = 'a b'", "?key=a%20b", {}, True),
    ("@request.headers.x_key = 'abc'", "", {"X-Key": "abc"}, True), ("@request.headers.x_key = 'abc'", "", {"X-KEY": "abd"}, False),
    ("@request.headers.x_key:isset = false", "", {}, True), ("@request.headers.user_agent ~ 'agent'", "", {"User-Agent": "my agent"}, True),
])
def test_query_and_headers(api, rule, query, headers, allowed):
    assert views(api, rule, query=query, headers=headers) is allowed


@pytest.mark.parametrize("rule, body, allowed", [
    ("@request.body.title = 'x'", {"title": "x"}, True), ("@request.body.title = 'x'", {"title": "y"}, False),
    ("@request.body.title = 'x'", {}, False), ("@request.body.title:isset = true", {"title": ""}, True),
    ("@request.body.title:isset = false", {"title": ""}, False), ("@request.body.title:isset = false", {"n": 1}, True),
    ("@request.body.n = 6", {"n": 6}, True), ("@request.body.n = 6", {"n": "6"}, True), ("@request.body.n > 5", {"n": 10}, True),
    ("@request.body.n = 7", {"n+": 7}, True), ("@request.body.n:isset = true", {"n+": 7}, True),
    ("@request.body.tags:length = 2", {"tags": ["a", "b"]}, True), ("@request.body.tags:length = 2", {"tags": "a"}, False),
    ("@request.body.tags:each != 'b'", {"tags": ["a", "c"]}, True), ("@request.body.tags:each != 'b'", {"tags": ["a", "b"]}, False),
    ("@request.body.tags:each ?= 'b'", {"tags": ["a", "b"]}, True), ("@request.body.data.k = 'v'", {"data": {"k": "v"}}, True),
    ("@request.body.data.k.0 = 5", {"data": {"k": [5]}}, True), ("@request.body.unknown = 'u'", {"unknown": "u"}, True),
    ("@request.body.secret:isset = false", {"secret": "hidden fields are not sent by clients"}, True),
    ("@request.body.title:lower = 'abc'", {"title": "ABC"}, True), ("@request.method = 'POST'", {}, True),
    ("@request.body.title = @request.query.t", {"title": "q"}, False),
])
def test_body_in_create_rules(api, rule, body, allowed):
    assert creates(api, rule, body) is allowed


def test_body_of_a_relation_is_followed(api):
    rule = "@request.body.owner.role = 'lead'"
    assert creates(api, rule, {"owner": api.ann}) is True
    assert creates(api, rule, {"owner": api.bob}) is False
    assert creates(api, rule, {}) is False


@pytest.mark.parametrize("rule, stored, body, allowed", [
    ("title = 'old'", {"title": "old"}, {"title": "new"}, True),                       # the stored record is what the rule sees ...
    ("title = 'new'", {"title": "old"}, {"title": "new"}, False),
    ("@request.body.title = 'new'", {"title": "old"}, {"title": "new"}, True),         # ... and the body is what is asked for
    ("@request.body.title:changed = true", {"title": "old"}, {"title": "new"}, True),
    ("@request.body.title:changed = true", {"title": "old"}, {"title": "old"}, False),
    ("@request.body.title:changed = false", {"title": "old"}, {"n": 1}, True),
    ("@request.body.title:isset = false", {"title": "old"}, {"title": "old"}, False),
    ("@request.body.n = 7", {"n": 2}, {"n+": 5}, True), ("@request.body.n > n", {"n": 2}, {"n": 3}, True),
    ("@request.body.n > n", {"n": 2}, {"n": 1}, False), ("n = @request.body.expected", {"n": 2}, {"n": 3, "expected": 2}, True),
    ("n = @request.body.expected", {"n": 2}, {"n": 3, "expected": 1}, False),
    ("@request.body.tags:length > tags:length", {"tags": ["a"]}, {"tags+": "b"}, True),
    ("@request.body.owner:changed = false", {}, {"title": "x"}, True),
    ("@request.method = 'PATCH'", {}, {}, True), ("@request.body.data:isset = true", {}, {"data": None}, True),
])
def test_update_rules(api, rule, stored, body, allowed):
    assert updates(api, rule, stored, body) is allowed


# ---- the record that a create rule sees

@pytest.mark.parametrize("rule, body, allowed", [
    ("title = 'x'", {"title": "x"}, True), ("title = 'x'", {"title": "y"}, False), ("title = ''", {}, True), ("n > 5", {"n": 6}, True),
    ("n > 5", {"n": "6"}, True), ("n > 5", {"n": 1}, False),
    ("n = '6'", {"n": 6}, False),                                                      # values of the new record have no column to lend them a type
    ("ok = true", {"ok": True}, True), ("ok = false", {}, True), ("id != ''", {}, True), ("id = 'given0000000001'", {"id": "given0000000001"}, True),
    ("code = ''", {}, True),
    ("created = ''", {}, True), ("secret = ''", {"secret": "x"}, True), ("tags:length = 2", {"tags": ["a", "b"]}, True),
    ("tags:each = 'a'", {"tags": ["a"]}, True), ("tags:each = 'a'", {"tags": ["a", "b"]}, False),
    ("tags:each ?= 'a'", {"tags": ["a", "b"]}, True), ("data.k = 'v'", {"data": {"k": "v"}}, True),
    ("day = '2020-01-01 00:00:00.000Z'", {"day": "2020-01-01"}, True), ("@request.body.title:changed = true", {"title": "x"}, False),
    ("@collection.users.role ?= title", {"title": "lead"}, True), ("@collection.users.role ?= title", {"title": "nope"}, False),
    ("@collection.notes.title ?= 'surely missing'", {"title": "surely missing"}, False),
])
def test_create_rules_see_the_new_record(api, rule, body, allowed):
    assert creates(api, rule, body) is allowed


def test_create_rules_follow_relations_of_the_new_record(api):
    assert creates(api, "owner.role = 'lead'", {"owner": api.ann}) is True
    assert creates(api, "owner.role = 'lead'", {"owner": api.bob}) is False
    assert creates(api, "owner = @request.auth.id", {"owner": api.ann}, "ann") is True
    assert creates(api, "owner = @request.auth.id", {"owner": api.ann}, "bob") is False
    assert creates(api, "team.name = 't1' && @request.auth.teams.id ?= team", {"team": api.team}, "ann") is True
    assert creates(api, "team.name = 't1' && @request.auth.teams.id ?= team", {"team": api.team}, "bob") is False


def test_refused_create_leaves_nothing(api):
    before = api.db("select count(*) from notes")
    assert creates(api, "title = 'never'", {"title": "x"}) is False
    assert api.db("select count(*) from notes") == before


def test_rule_that_no_longer_fits_another_collection_answers_400(api):
    api.make("leaned_on", ["x"])
    rules(api, listRule="@collection.leaned_on.x ?= 'x'")
    assert api.get(NOTES).status == 200
    assert api.delete("/api/collections/leaned_on", token=api.su).status == 204
    assert api.get(NOTES).status == 400
    rules(api)


# ---- contexts

def test_expanded_records_obey_their_view_rule_in_its_own_context(api):
    target = api.make("targets", ["t"], viewRule="@request.context = 'expand'")["id"]
    api.make("sources", [{"name": "r", "type": "relation", "collectionId": target}])
    goal = api.add("targets", {"t": "x"})["id"]
    source = api.add("sources", {"r": goal})["id"]
    assert api.get(records("targets", goal)).status == 404
    assert api.get(records("sources", source), params={"expand": "r"}).json["expand"]["r"]["t"] == "x"


@pytest.mark.parametrize("context, enters", [("password", True), ("default", False), ("otp", False)])
def test_auth_rule_knows_how_the_user_came(api, context, enters):
    api.make(f"by_{context}", type="auth", authRule=f"@request.context = '{context}'")
    api.add_user("x@example.com", f"by_{context}")
    answer = api.post(f"/api/collections/by_{context}/auth-with-password", {"identity": "x@example.com", "password": PASSWORD})
    assert answer.status == (200 if enters else 403)


# ---- manage rules

@pytest.fixture(scope="module")
def club(api):
    """An auth collection that its chiefs manage."""
    api.make("club", ["rank"], type="auth", manageRule="@request.auth.rank = 'chief' && rank != 'chief'")
    api.member = api.add_user("member@example.com", "club", rank="plain")["id"]
    api.other = api.add_user("other@example.com", "club", rank="plain")["id"]
    api.chief = api.add_user("chief@example.com", "club", rank="chief")["id"]
    api.club = {name: api.login("club", f"{name}@example.com") for name in ("member", "other", "chief")}
    return api


@pytest.mark.parametrize("change", [
    {"email": "changed@example.com"}, {"verified": True}, {"password": "changed-password", "passwordConfirm": "changed-password"},
])
def test_managers_change_what_owners_may_not(club, change):
    victim = club.add_user("victim@example.com", "club", rank="plain")["id"]
    assert club.patch(records("club", victim), change, token=club.club["other"]).status == 400
    assert club.patch(records("club", victim), change).status == 400
    assert club.patch(records("club", victim), change, token=club.club["chief"]).status == 200
    assert club.delete(records("club", victim), token=club.su).status == 204


def test_managers_manage_only_the_records_of_the_rule(club):
    assert refusal(club.patch(records("club", club.chief), {"verified": True}, token=club.club["chief"])) == (400,
        {"verified": "validation_values_mismatch"})


def test_managers_create_verified_records(club):
    body = {"email": "made@example.com", "password": PASSWORD, "passwordConfirm": PASSWORD, "verified": True, "rank": "plain"}
    assert refusal(club.post(records("club"), body, token=club.club["other"])) == (400, {"verified": "validation_values_mismatch"})
    created = club.post(records("club"), body, token=club.club["chief"])
    assert created.status == 200 and created.json["verified"] is True and created.json["email"] == "made@example.com"


def test_managers_see_addresses_but_no_keys(club):
    seen = club.get(records("club", club.member), token=club.club["chief"]).json
    assert seen["email"] == "member@example.com" and {"password", "tokenKey"}.isdisjoint(seen)
    assert "email" not in club.get(records("club", club.member), token=club.club["other"]).json
    [(before,)] = club.db("select tokenKey from club where id = ?", club.member)
    assert club.patch(records("club", club.member), {"tokenKey": "k" * 40}, token=club.club["chief"]).status == 200
    assert club.db("select tokenKey from club where id = ?", club.member) == [(before,)]


def test_manage_rule_does_not_replace_the_update_rule(club):
    assert club.patch("/api/collections/club", {"updateRule": "id = @request.auth.id"}, token=club.su).status == 200
    assert club.patch(records("club", club.member), {"verified": True}, token=club.club["chief"]).status == 404
    assert club.patch("/api/collections/club", {"updateRule": ""}, token=club.su).status == 200


# ---- hidden fields

@pytest.mark.parametrize("who, seen", [("guest", False), ("ann", False), ("root", True)])
def test_hidden_fields_are_shown_to_superusers_only(api, who, seen):
    rules(api)
    id = api.add("notes", {"secret": "s"})["id"]
    token = api.tokens[who]
    answers = [api.get(records("notes", id), token=token).json, api.get(NOTES, params={"filter": f"id = '{id}'"}, token=token).json["items"][0],
               api.patch(records("notes", id), {"title": "x"}, token=token).json, api.post(NOTES, {}, token=token).json]
    assert [("secret" in answer) for answer in answers] == [seen] * 4
    assert ("secret" in api.get(records("notes", id), params={"fields": "secret"}, token=token).json) is seen


def test_hidden_fields_are_not_written_by_clients(api):
    rules(api)
    created = api.post(NOTES, {"secret": "mine"}).json["id"]
    assert api.db("select secret from notes where id = ?", created) == [("",)]
    stored = api.add("notes", {"secret": "kept"})["id"]
    assert api.patch(records("notes", stored), {"secret": "taken", "title": "x"}).status == 200
    assert api.db("select secret, title from notes where id = ?", stored) == [("kept", "x")]
    assert api.patch(records("notes", stored), {"secret": "set"}, token=api.su).json["secret"] == "set"
