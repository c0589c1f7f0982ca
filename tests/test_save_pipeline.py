"""The save pipeline: named events before, after and after the commit, in order, and nothing of the last on a rollback."""
import pytest

from unit import pocketbase as pb

VERBS = ("create", "update", "delete")
NAMES = [f"{kind}_{phase.format(verb)}" for verb in VERBS for kind in ("record", "model")
         for phase in ("{}", "{}_execute", "after_{}_success", "after_{}_error")] + ["record_validate", "model_validate"]


@pytest.fixture
def app(tmp_path):
    app = pb.App(tmp_path / "pb_data").open()
    notes = pb.collection_from_data({"name": "notes", "type": "base", "fields": [{"name": "title", "type": "text", "required": True}]})
    app.schema_transaction(lambda tx: app.adopt_schema(tx, pb.save_collection(tx, app.schema, notes, None, pb.now_text())))
    yield app
    app.close()


@pytest.fixture
def heard(app):
    """What fires, `>` going in and `<` coming out."""
    events = []

    def listen(name):
        def handler(event):
            events.append("> " + name)
            event.next()
            events.append("< " + name)
        app.events.on(name, handler)
    for name in NAMES:
        listen(name)
    return events


def note(app, title="x"):
    record = pb.Record(app.schema.find("notes"))
    record["title"] = title
    return record


def save(app, record):
    return app.transaction(lambda tx: pb.save_record(app, tx, record))


def test_a_create_validates_writes_and_tells_after_the_commit(app, heard):
    save(app, note(app))
    assert heard == ["> record_create", "> model_create", "> record_validate", "> model_validate", "< model_validate", "< record_validate",
                     "> record_create_execute", "> model_create_execute", "< model_create_execute", "< record_create_execute",
                     "< model_create", "< record_create",
                     "> record_after_create_success", "> model_after_create_success", "< model_after_create_success", "< record_after_create_success"]


def test_a_refused_create_stops_where_it_failed(app, heard):
    with pytest.raises(pb.ApiError):
        save(app, note(app, ""))
    assert heard == ["> record_create", "> model_create", "> record_validate", "> model_validate",
                     "> record_after_create_error", "> model_after_create_error", "< model_after_create_error", "< record_after_create_error"]


def test_a_delete_is_not_validated(app, heard):
    record = save(app, note(app))
    heard.clear()
    app.transaction(lambda tx: pb.delete_record(app, tx, record))
    assert heard == ["> record_delete", "> model_delete", "> record_delete_execute", "> model_delete_execute", "< model_delete_execute",
                     "< record_delete_execute", "< model_delete", "< record_delete",
                     "> record_after_delete_success", "> model_after_delete_success", "< model_after_delete_success", "< record_after_delete_success"]


def test_a_rollback_tells_of_the_error_and_never_of_success(app, heard):
    def work(tx):
        pb.save_record(app, tx, note(app))
        raise RuntimeError("later in the same transaction")
    with pytest.raises(RuntimeError):
        app.transaction(work)
    assert not [name for name in heard if "success" in name] and "> record_after_create_error" in heard
    assert app.store.read("SELECT count(*) FROM notes") == [(0,)]


def test_success_waits_for_the_outer_commit(app):
    seen = []
    app.events.on("record_after_create_success", lambda event: seen.append(app.store.read("SELECT count(*) FROM notes")[0][0]))

    def work(tx):
        for title in ("a", "b"):
            tx.transaction(lambda inner, title=title: pb.save_record(app, inner, note(app, title)))
        assert seen == []
    app.transaction(work)
    assert seen == [2, 2]


def test_a_failed_inner_transaction_takes_only_its_own_events_along(app):
    seen = []
    app.events.on("record_after_create_success", lambda event: seen.append(event.record["title"]))

    def failing(inner):
        pb.save_record(app, inner, note(app, "lost"))
        raise RuntimeError

    def work(tx):
        pb.save_record(app, tx, note(app, "kept"))
        with pytest.raises(RuntimeError):
            tx.transaction(failing)
    app.transaction(work)
    assert seen == ["kept"] and app.store.read("SELECT title FROM notes") == [("kept",)]


def test_a_handler_can_refuse_a_save_and_change_it(app):
    def handler(event):
        if event.record["title"] == "bad":
            raise pb.bad_request("not today")
        event.record["title"] += "!"
        event.next()
    app.events.on("record_create", handler, tags=("notes",))
    with pytest.raises(pb.ApiError, match="not today|400"):
        save(app, note(app, "bad"))
    assert save(app, note(app, "good"))["title"] == "good!"
    assert app.store.read("SELECT title FROM notes") == [("good!",)]


def test_handlers_run_by_priority_and_only_for_their_collections(app):
    order = []
    for name, priority, tags in (("late", 5, ()), ("early", -5, ("notes",)), ("other", 0, ("users",)), ("middle", 0, ())):
        app.events.on("record_create", lambda event, name=name: (order.append(name), event.next()), priority=priority, tags=tags)
    save(app, note(app))
    assert order == ["early", "middle", "late"]


def test_a_failing_success_listener_harms_nobody(app):
    app.events.on("record_after_create_success", lambda event: 1 / 0)
    assert save(app, note(app)).id
    assert save(app, note(app)).id
    assert app.store.read("SELECT count(*) FROM notes") == [(2,)]
