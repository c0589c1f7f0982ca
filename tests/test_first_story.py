"""The story that every new user plays: from an empty folder to people who sign in elsewhere and may do what their record says."""
import os

import pytest

import kit
from helpers_answers import records
from helpers_oidc import IdentityProvider
from helpers_oidc import enable
from helpers_oidc import sign_in

pytestmark = pytest.mark.last
ANN = {"sub": "ann", "email": "ann@example.com", "email_verified": True, "name": "Ann"}


@pytest.fixture
def program():
    """The command of the frozen executable, when one is built from the present source; else of what is under test anyway."""
    frozen, source = (os.path.join(kit.HOME, *path) for path in (("dist", "pocketbase"), ("pocketbase.py",)))
    return [frozen] if not kit.GIVEN and os.path.exists(frozen) and os.path.getmtime(frozen) > os.path.getmtime(source) else kit.COMMAND


@pytest.fixture
def idp():
    running = IdentityProvider()
    yield running
    running.close()


def test_from_an_empty_folder_to_an_admin_who_signed_in_elsewhere(program, idp):
    with kit.Server(superuser=False, command=program) as server:
        # the printed link makes the first superuser
        token = server.wait_log(r"/_/#/pbinstall/(\S+)").group(1)
        email, password = kit.SUPERUSER
        assert server.post(records("_superusers"), {"email": email, "password": password, "passwordConfirm": password}, token=token).status == 200
        assert server.get("/api/settings", token=server.su).status == 200

        # a well-known provider needs two fields, a generic one also its addresses
        enable(server, rows=[{"name": "google", "clientId": "id", "clientSecret": "secret"}, idp.row()])
        methods = server.get("/api/collections/users/auth-methods").json["oauth2"]
        assert methods["enabled"] and [row["name"] for row in methods["providers"]] == ["google", "oidc"]
        assert methods["providers"][0]["authURL"].startswith("https://accounts.google.com/o/oauth2/v2/auth?client_id=id&")

        # users get a field that only superusers set, tasks a rule that asks for it
        fields = server.get("/api/collections/users", token=server.su).json["fields"]
        untouched = "@request.body.admin:isset = false"
        changes = {"fields": [*fields, {"name": "admin", "type": "bool"}], "createRule": untouched, "updateRule": f"id = @request.auth.id && {untouched}"}
        assert server.patch("/api/collections/users", changes, token=server.su).status == 200
        server.make("tasks", ["title"], deleteRule="@request.auth.admin = true")
        task, other = (server.add("tasks", {"title": title}) for title in ("sweep", "dust"))

        # Ann signs in; nothing that she sends makes her an admin
        assert sign_in(server, idp, ANN, createData={"admin": True}).status == 400
        answer = sign_in(server, idp, ANN)
        assert answer.status == 200, answer
        ann, token = answer.json["record"], answer.json["token"]
        assert (ann["email"], ann["admin"]) == ("ann@example.com", False)
        path = records("tasks", task["id"])
        assert server.patch(records("users", ann["id"]), {"name": "Ann B."}, token=token).status == 200
        assert server.patch(records("users", ann["id"]), {"admin": True}, token=token).status == 404
        assert server.delete(path, token=token).status == server.delete(path).status == 404 and server.get(path).status == 200

        # she is made one, and may at once, with the token she has
        assert server.patch(records("users", ann["id"]), {"admin": True}, token=server.su).status == 200
        assert server.delete(path, token=token).status == 204 and server.get(path).status == 404

        # all of it is there tomorrow
        server.restart()
        answer = sign_in(server, idp, ANN).json
        assert (answer["record"]["id"], answer["record"]["admin"], answer["meta"]["isNew"]) == (ann["id"], True, False)
        assert server.delete(records("tasks", other["id"])).status == 404
        assert server.delete(records("tasks", other["id"]), token=answer["token"]).status == 204
        assert server.stop() == 0
