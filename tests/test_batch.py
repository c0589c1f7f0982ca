"""Batches: many writes in one transaction, as JSON or with files, and what happens when one of them fails."""
import json
import os

import pytest

from helpers_answers import envelope
from helpers_answers import records
from helpers_answers import refusal

NOTES = "/api/collections/notes/records"


@pytest.fixture(scope="module")
def api(server):
    server.settings(batch={"enabled": True, "maxRequests": 20, "timeout": 30, "maxBodySize": 200_000})
    server.make("notes", [{"name": "title", "type": "text", "required": True}, "n:number", {"name": "file", "type": "file"}, {"name": "files", "type": "file", "maxSelect": 5}])
    notes = server.get("/api/collections/notes", token=server.su).json["id"]
    server.make("replies", [{"name": "note", "type": "relation", "collectionId": notes, "required": True}])
    server.make("locked", ["title"], createRule=None, updateRule=None, deleteRule=None)
    server.make("context", ["title"], createRule="@request.context = 'batch'", updateRule="@request.headers.x_key = 'outer'")
    return server


def batch(api, *requests, **options):
    return api.post("/api/batch", {"requests": [request if isinstance(request, dict) else call(*request) for request in requests]}, **options)


def call(method, url, body=None, **more):
    return {"method": method, "url": url, **({"body": body} if body is not None else {}), **more}


def note(api, id):
    return api.get(records("notes", id))


def test_batch_answers_in_order_and_later_requests_see_earlier_ones(api):
    answer = batch(api,
                   ("POST", NOTES, {"id": "batch0000000001", "title": "a", "n": 1}),
                   ("POST", "/api/collections/replies/records", {"note": "batch0000000001"}),
                   ("PATCH", f"{NOTES}/batch0000000001", {"n+": 5}),
                   ("POST", NOTES, {"id": "batch0000000002", "title": "b"}),
                   ("DELETE", f"{NOTES}/batch0000000002"))
    assert answer.status == 200
    assert [each["status"] for each in answer.json] == [200, 200, 200, 200, 204]
    assert [list(each) for each in answer.json] == [["body", "status"]] * 5
    assert answer.json[2]["body"] == note(api, "batch0000000001").json and answer.json[2]["body"]["n"] == 6
    assert answer.json[4]["body"] is None and note(api, "batch0000000002").status == 404


def test_put_updates_what_exists_and_creates_the_rest(api):
    first = batch(api, ("PUT", NOTES, {"id": "upsert000000001", "title": "made", "n": 1}), ("PUT", NOTES, {"title": "without id"}))
    assert [each["status"] for each in first.json] == [200, 200]
    second = batch(api, ("PUT", NOTES, {"id": "upsert000000001", "title": "changed"})).json[0]["body"]
    assert (second["title"], second["n"]) == ("changed", 1)


def test_expand_and_fields_work_per_request(api):
    answer = batch(api, ("POST", NOTES + "?fields=title", {"id": "expand000000001", "title": "x"}),
                   ("POST", "/api/collections/replies/records?expand=note&fields=expand.note.title", {"note": "expand000000001"}))
    assert [each["body"] for each in answer.json] == [{"title": "x"}, {"expand": {"note": {"title": "x"}}}]


@pytest.mark.parametrize("failing, response", [
    (("POST", NOTES, {}), envelope(400, "Failed to create record.", {"title": {"code": "validation_required", "message": "Cannot be blank."}})),
    (("PATCH", NOTES + "/missing", {"title": "x"}), envelope(404, "The requested resource wasn't found.")),
    (("DELETE", NOTES + "/missing"), envelope(404, "The requested resource wasn't found.")),
    (("POST", "/api/collections/locked/records", {"title": "x"}), envelope(403, "Only superusers can perform this action.")),
    (("POST", "/api/collections/nope/records", {}), envelope(404, "Missing collection context.")),
    (("GET", NOTES), envelope(500, "Something went wrong while processing your request.")),
    (("POST", "/api/nope", {}), envelope(500, "Something went wrong while processing your request.")),
    (("POST", NOTES + "/", {}), envelope(500, "Something went wrong while processing your request.")),
    (("POST", "http://127.0.0.1" + NOTES, {}), envelope(500, "Something went wrong while processing your request.")),
    (("POST", "/api/batch", {"requests": []}), envelope(500, "Something went wrong while processing your request.")),
])
def test_one_failure_undoes_everything(api, failing, response):
    kept = api.add("notes", {"title": "kept", "n": 1})["id"]
    answer = batch(api, ("POST", NOTES, {"id": "rolled000000001", "title": "x"}), ("PATCH", f"{NOTES}/{kept}", {"n": 99}), failing,
                   ("POST", NOTES, {"title": "never reached"}))
    assert answer.status == 400
    error = {"code": "batch_request_failed", "message": "Batch request failed.", "response": response}
    assert answer.json == envelope(400, "Batch transaction failed.", {"requests": {"2": error}})
    assert note(api, "rolled000000001").status == 404 and note(api, kept).json["n"] == 1


@pytest.mark.parametrize("body, errors", [
    ({}, {"requests": "validation_required"}), ({"requests": []}, {"requests": "validation_required"}),
    ({"requests": [call("POST", NOTES, {"title": "x"})] * 21}, {"requests": "validation_length_too_long"}),
    ({"requests": [call("POST", NOTES, {"title": "x"}), {"url": NOTES}]}, {"requests.1.method": "validation_required"}),
    ({"requests": [call("post", NOTES)]}, {"requests.0.method": "validation_in_invalid"}),
    ({"requests": [call("HEAD", NOTES)]}, {"requests.0.method": "validation_in_invalid"}),
    ({"requests": [{"method": "POST"}]}, {"requests.0.url": "validation_required"}),
    ({"requests": [call("POST", "/" + "x" * 2000)]}, {"requests.0.url": "validation_length_too_long"}),
])
def test_invalid_batches(api, body, errors):
    refused = api.post("/api/batch", body)
    assert refusal(refused) == (400, errors) and refused.json["message"] == "Invalid batch request data."


@pytest.mark.parametrize("body, kind",
                         [("{", "application/json"), ('{"requests": 5}', "application/json"), ('{"requests": [{"method": 5}]}', "application/json"),
                          ("{}", "text/plain")])
def test_unreadable_batches(api, body, kind):
    assert api.post("/api/batch", body=body, headers={"Content-Type": kind}).json == envelope(400, "Failed to read the submitted batch data.")


def test_requests_act_for_the_caller_in_the_batch_context(api):
    assert batch(api, ("POST", "/api/collections/locked/records", {"title": "x"}), token=api.su).status == 200
    assert batch(api, call("POST", "/api/collections/locked/records", {"title": "x"}, headers={"Authorization": api.su})).status == 400
    assert api.post("/api/collections/context/records", {"title": "x"}).status == 400
    created = batch(api, ("POST", "/api/collections/context/records", {"title": "x"})).json[0]["body"]["id"]
    path = f"/api/collections/context/records/{created}"
    assert batch(api, ("PATCH", path, {}), headers={"X-Key": "outer"}).status == 200
    assert batch(api, call("PATCH", path, {}, headers={"X-Key": "outer"})).status == 200
    assert batch(api, ("PATCH", path, {})).status == 400


def form(requests, **files):
    return {"@jsonPayload": json.dumps({"requests": requests}), **files}


def folder(api, id):
    [(collection,)] = api.db("select id from _collections where name = 'notes'")
    return os.path.join(api.dir, "storage", collection, id)


def test_batch_with_files(api):
    stored = api.add("notes", form={"title": "old", "files": ("old.txt", b"old")})
    answer = api.post("/api/batch", form=form(
        [call("POST", NOTES, {"title": "one"}), call("PATCH", f"{NOTES}/{stored['id']}", {"title": "two"})],
        **{"requests.0.file": ("a.txt", b"first"), "requests[1].files+": [("b.txt", b"second"), ("c.txt", b"third")]}))
    assert answer.status == 200
    one, two = (each["body"] for each in answer.json)
    assert one["file"].startswith("a") and [name[0] for name in two["files"]] == ["o", "b", "c"]
    contents = [api.get(f"/api/files/notes/{record['id']}/{name}").body for record,
                name in ((one, one["file"]), *((two, name) for name in two["files"]))]
    assert contents == [b"first", b"old", b"second", b"third"]


def test_failed_batch_leaves_no_files(api):
    refused = api.post("/api/batch",
                       form=form([call("POST", NOTES, {"id": "filed0000000001", "title": "x"}), call("POST", NOTES, {})],
                                 **{"requests.0.file": ("a.txt", b"a")}))
    assert refused.status == 400 and note(api, "filed0000000001").status == 404
    left = [name for _, _, names in os.walk(folder(api, "filed0000000001")) for name in names]
    assert left == []


def test_failed_batch_keeps_replaced_files(api):
    stored = api.add("notes", form={"title": "old", "file": ("old.txt", b"old")})
    refused = api.post("/api/batch",
                       form=form([call("PATCH", f"{NOTES}/{stored['id']}", {}), call("POST", NOTES, {})], **{"requests.0.file": ("new.txt", b"new")}))
    assert refused.status == 400 and note(api, stored["id"]).json["file"] == stored["file"]
    assert api.get(f"/api/files/notes/{stored['id']}/{stored['file']}").body == b"old"


def test_too_large_batches(api):
    refused = batch(api, ("POST", NOTES, {"title": "x" * 200_000}))
    assert refused.json == envelope(413, "Request entity too large.")


def test_batches_can_be_turned_off(fresh):
    api = fresh()
    assert batch(api, ("POST", "/api/collections/users/records", {}), token=api.su).json == envelope(403, "Batch requests are not allowed.")
