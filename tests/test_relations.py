"""Relations: expand (depth, back relations, permissions, shape), and what happens to references when a record is deleted."""
import pytest

from helpers_answers import envelope
from helpers_answers import records
from helpers_answers import refusal


@pytest.fixture(scope="module")
def api(server):
    """Authors write posts, posts have tags, comments belong to posts; a chain of nodes; a private author."""
    authors = server.make("authors", ["name", {"name": "private", "type": "bool"}], viewRule="private = false")["id"]
    tags = server.make("tags", ["name"])["id"]
    locked = server.make("locked", ["name"], viewRule=None)["id"]
    posts = server.make("posts", [
        "title", {"name": "author", "type": "relation", "collectionId": authors},
        {"name": "tags", "type": "relation", "collectionId": tags, "maxSelect": 9}, {"name": "locked", "type": "relation", "collectionId": locked}])
    server.make("comments", ["text", {"name": "post", "type": "relation", "collectionId": posts["id"]}])
    server.make("covers", ["color", {"name": "post", "type": "relation", "collectionId": posts["id"]}],
                indexes=["create unique index idx_covers on covers (post)"])
    for id, name, private in (("author000000001", "ann", False), ("author000000002", "eve", True)):
        server.add("authors", {"id": id, "name": name, "private": private})
    for i in "123":
        server.add("tags", {"id": f"tag00000000000{i}", "name": f"tag{i}"})
    server.add("locked", {"id": "locked000000001", "name": "x"})
    server.add("posts", {"id": "post00000000001", "title": "first", "author": "author000000001", "tags": ["tag000000000003", "tag000000000001"], "locked": "locked000000001"})
    server.add("posts", {"id": "post00000000002", "title": "second", "author": "author000000002"})
    for i in (1, 2, 3):
        server.add("comments", {"id": f"comment0000000{i}", "text": f"c{i}", "post": "post00000000001"})
    server.add("covers", {"id": "cover0000000001", "color": "red", "post": "post00000000001"})
    return server


def expanded(api, expand, id="post00000000001", token=None, collection="posts"):
    """The `expand` part of a record, with every record reduced to its id and its own expand; None when there is none."""
    return shape(api.get(records(collection, id), params={"expand": expand}, token=token).json).get("expand")


def shape(record):
    if isinstance(record, list):
        return [shape(each) for each in record]
    reduced = {"id": record["id"]}
    if "expand" in record:
        reduced["expand"] = {name: shape(value) for name, value in record["expand"].items()}
    return reduced


def ref(id, **expand):
    return {"id": id, "expand": expand} if expand else {"id": id}


ANN, EVE, FIRST = ref("author000000001"), ref("author000000002"), ref("post00000000001")
TAG1, TAG3 = ref("tag000000000001"), ref("tag000000000003")
COMMENTS = [ref(f"comment0000000{i}") for i in (1, 2, 3)]


@pytest.mark.parametrize("expand, expected", [
    ("author", {"author": ANN}),
    ("tags", {"tags": [TAG3, TAG1]}),                                   # in the stored order
    ("author,tags", {"author": ANN, "tags": [TAG3, TAG1]}),
    (" author , author. ", {"author": ANN}),
    ("comments_via_post", {"comments_via_post": COMMENTS}),
    ("covers_via_post", {"covers_via_post": ref("cover0000000001")}),   # a unique reference is a single record
    ("comments_via_post.post.author", {"comments_via_post": [ref(each["id"], post=ref("post00000000001", author=ANN)) for each in COMMENTS]}),
    ("author,author.posts_via_author", {"author": ref("author000000001", posts_via_author=[FIRST])}),
    ("author.posts_via_author.tags,author.posts_via_author.author",
     {"author": ref("author000000001", posts_via_author=[ref("post00000000001", tags=[TAG3, TAG1], author=ANN)])}),
    ("nope", None), ("title", None), ("tags.nope", None), ("nope_via_post", None), ("comments_via_text", None), ("locked", None), ("", None),
    ("nope,author", {"author": ANN}), ("locked,author", {"author": ANN}),
])
def test_expand(api, expand, expected):
    assert expanded(api, expand) == expected


def test_valid_but_empty_expands_are_an_empty_object(api):
    assert expanded(api, "tags", "post00000000002") == {}
    assert expanded(api, "comments_via_post", "post00000000002") == {}


def test_expand_obeys_the_view_rule_of_the_target(api):
    assert expanded(api, "author", "post00000000002") == {}
    assert expanded(api, "author", "post00000000002", token=api.su) == {"author": EVE}
    assert expanded(api, "locked", token=api.su) == {"locked": ref("locked000000001")}


def test_expand_works_on_lists_and_writes(api):
    listed = api.get(records("posts"), params={"expand": "author", "sort": "title"}).json["items"]
    assert [shape(each) for each in listed] == [ref("post00000000001", author=ANN), {"id": "post00000000002", "expand": {}}]
    created = api.post(records("posts") + "?expand=author,tags", {"author": "author000000001", "tags": ["tag000000000001"]}).json
    assert shape(created)["expand"] == {"author": ANN, "tags": [TAG1]}
    changed = api.patch(records("posts", created["id"]) + "?expand=tags&fields=expand.tags.name", {"tags": ["tag000000000003"]}).json
    assert changed == {"expand": {"tags": [{"name": "tag3"}]}}
    api.delete(records("posts", created["id"]))


def test_expanded_records_are_whole(api):
    record = api.get(records("posts", "post00000000001"), params={"expand": "author"}).json["expand"]["author"]
    assert record == api.get(records("authors", "author000000001")).json


def test_expand_stops_after_six_levels(api):
    made = api.make("nodes", ["name"])
    assert api.patch("/api/collections/nodes", {"fields": [*made["fields"], {"name": "next", "type": "relation", "collectionId": made["id"]}]},
                     token=api.su).status == 200
    last = ""
    for i in range(9):
        last = api.add("nodes", {"name": str(i), "next": last})["id"]
    record, depth = api.get(records("nodes", last), params={"expand": ".".join(["next"] * 8)}).json, 0
    while "expand" in record:
        record, depth = record["expand"]["next"], depth + 1
    assert depth == 6


def test_missing_targets_are_skipped(api):
    api.post("/api/sql", {"query": "update posts set tags = '[\"gone\",\"tag000000000001\"]', author = 'gone' where id = 'post00000000002'"},
             token=api.su)
    assert expanded(api, "tags,author", "post00000000002") == {"tags": [TAG1]}
    api.post("/api/sql", {"query": "update posts set tags = '[]', author = 'author000000002' where id = 'post00000000002'"}, token=api.su)


def test_addresses_of_expanded_users_stay_hidden(api):
    api.make("letters", [{"name": "to", "type": "relation", "collectionId": "_pb_users_auth_"}])
    assert api.patch("/api/collections/users", {"viewRule": ""}, token=api.su).status == 200
    user = api.add_user("shy@example.com")["id"]
    letter = records("letters", api.add("letters", {"to": user})["id"]) + "?expand=to"
    assert "email" not in api.get(letter).json["expand"]["to"]
    assert api.get(letter, token=api.login("users", "shy@example.com")).json["expand"]["to"]["email"] == "shy@example.com"
    assert api.get(letter, token=api.su).json["expand"]["to"]["email"] == "shy@example.com"


# ---- deleting what others point at

@pytest.fixture(scope="module")
def tree(api):
    """`parents`, and one collection per kind of reference."""
    parents = api.make("parents", ["name"])["id"]
    for name, options in {"plain": {}, "cascade": {"cascadeDelete": True}, "required": {"required": True},
                          "both": {"required": True, "cascadeDelete": True}}.items():
        for kind, maxSelect in (("single", 1), ("multi", 9)):
            api.make(f"{kind}_{name}", ["note", {"name": "r", "type": "relation", "collectionId": parents, "maxSelect": maxSelect, **options},
                                        {"name": "updated", "type": "autodate", "onCreate": True, "onUpdate": True}])
    api.make("multi_min", ["note", {"name": "r", "type": "relation", "collectionId": parents, "maxSelect": 9, "minSelect": 2}])
    return api


@pytest.mark.parametrize("collection, refers, result", [
    ("single_plain", "P", ""), ("single_cascade", "P", None), ("single_required", "P", "refused"), ("single_both", "P", None),
    ("multi_plain", "P", []), ("multi_plain", "PQ", ["Q"]), ("multi_cascade", "P", None), ("multi_cascade", "PQ", ["Q"]),
    ("multi_cascade", "QP", ["Q"]),
    ("multi_required", "P", "refused"), ("multi_required", "PQ", ["Q"]), ("multi_both", "P", None), ("multi_both", "PQ", ["Q"]),
    ("multi_min", "PQ", ["Q"]), ("multi_plain", "Q", ["Q"]), ("single_cascade", "Q", "Q"),
])
def test_deleting_a_parent(tree, collection, refers, result):
    ids = {name: tree.add("parents", {"name": name})["id"] for name in "PQ"}
    value = [ids[name] for name in refers]
    child = records(collection, tree.add(collection, {"r": value if collection.startswith("multi") else value[0]})["id"])
    before = tree.get(child).json
    deleted = tree.delete(records("parents", ids["P"]))
    if result == "refused":
        assert deleted.json == envelope(400, "Failed to delete record. Make sure that the record is not part of a required relation reference.")
        assert tree.get(child).json == before and tree.get(records("parents", ids["P"])).status == 200
        assert tree.delete(child).status == 204
    else:
        assert deleted.status == 204
        after = tree.get(child)
        if result is None:
            assert after.status == 404
        else:
            assert after.json["r"] == ([ids[name] for name in result] if isinstance(result, list) else ids.get(result, ""))


def test_cascade_goes_all_the_way_down_or_not_at_all(api):
    top = api.make("top", ["name"])["id"]
    middle = api.make("middle", [{"name": "r", "type": "relation", "collectionId": top, "cascadeDelete": True}], deleteRule=None)["id"]
    bottom = api.make("bottom", [{"name": "r", "type": "relation", "collectionId": middle, "cascadeDelete": True}], deleteRule=None)["id"]
    api.make("holder", [{"name": "r", "type": "relation", "collectionId": bottom, "required": True}])
    a = api.add("top")["id"]
    b = [api.add("middle", {"r": a})["id"] for _ in range(3)]
    c = [api.add("bottom", {"r": each})["id"] for each in b]
    held = api.add("holder", {"r": c[2]})["id"]
    count = "select (select count(*) from top), (select count(*) from middle), (select count(*) from bottom)"
    assert api.delete(records("top", a)).status == 400
    assert api.db(count) == [(1, 3, 3)]
    assert api.delete(records("holder", held)).status == 204
    assert api.delete(records("top", a)).status == 204
    assert api.db(count) == [(0, 0, 0)]


def test_records_that_point_at_themselves_and_each_other(api):
    made = api.make("circle", ["name"])
    assert api.patch("/api/collections/circle",
                     {"fields": [*made["fields"], {"name": "r", "type": "relation", "collectionId": made["id"], "cascadeDelete": True}]},
                     token=api.su).status == 200
    a, b, c = (api.add("circle")["id"] for _ in range(3))
    for one, other in ((a, b), (b, a), (c, c)):
        assert api.patch(records("circle", one), {"r": other}).status == 200
    assert api.delete(records("circle", a)).status == 204
    assert api.delete(records("circle", c)).status == 204
    assert api.db("select count(*) from circle") == [(0,)]


def test_many_children_are_all_deleted(api):
    parent = api.make("hub", ["name"])["id"]
    api.make("spokes", ["name", {"name": "r", "type": "relation", "collectionId": parent, "cascadeDelete": True}])
    hub = api.add("hub")["id"]
    api.post("/api/sql",
             {"query": f"insert into spokes (id, name, r) with recursive n(i) as (select 1 union all select i + 1 from n where i < 1200) select printf('s%014d', i), '', '{hub}' from n"}, token=api.su)
    assert api.db("select count(*) from spokes") == [(1200,)]
    assert len(api.get(records("hub", hub), params={"expand": "spokes_via_r"}).json["expand"]["spokes_via_r"]) == 1000
    assert api.delete(records("hub", hub)).status == 204
    assert api.db("select count(*) from spokes") == [(0,)]


def test_references_to_nothing_are_refused(tree):
    assert refusal(tree.post(records("single_plain"), {"r": "missing"})) == (400, {"r": "validation_missing_rel_records"})
    parent = tree.add("parents")["id"]
    assert refusal(tree.post(records("multi_plain"), {"r": [parent, "missing"]})) == (400, {"r": "validation_missing_rel_records"})
    assert refusal(tree.post(records("multi_min"), {"r": [parent]})) == (400, {"r": "validation_not_enough_values"})
    assert refusal(tree.post(records("single_required"), {})) == (400, {"r": "validation_required"})


def test_deleting_a_user_deletes_what_belongs_to_the_login(api):
    user = api.add_user("leaving@example.com")["id"]
    body = {"collectionRef": "_pb_users_auth_", "recordRef": user}
    api.add("_externalAuths", {**body, "provider": "google", "providerId": "1"})
    api.add("_authOrigins", {**body, "fingerprint": "f" * 32})
    api.add("_mfas", {**body, "method": "password"})
    api.add("_otps", {**body, "password": "12345678"})
    count = " + ".join(f"(select count(*) from {table} where recordRef = '{user}')" for table in ("_externalAuths", "_authOrigins", "_mfas", "_otps"))
    assert api.db(f"select {count}") == [(4,)]
    assert api.delete(records("users", user), token=api.su).status == 204
    assert api.db(f"select {count}") == [(0,)]
