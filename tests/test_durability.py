"""What was acknowledged survives: kill -9 under load, uploads, and a polite stop that answers what is in flight."""
import hashlib
import http.client
import os
import socket
import threading

import pytest

from helpers_answers import records
from helpers_crowd import crowd


class Acknowledged:
    """What the server has confirmed, by client; `wait` returns once that many answers came."""

    def __init__(self):
        self.news, self.count, self.of = threading.Condition(), 0, {}

    def add(self, client, value):
        with self.news:
            self.of[client] = value
            self.count += 1
            self.news.notify_all()

    def wait(self, count):
        with self.news:
            assert self.news.wait_for(lambda: self.count >= count, 120), f"only {self.count} answers"


def until_it_dies(step):
    """Repeats a step until the server is gone."""
    try:
        while True:
            step()
    except (OSError, http.client.HTTPException):
        return


def healthy(server):
    for file in ("data.db", "auxiliary.db"):
        assert server.db("PRAGMA integrity_check", file=file) == [("ok",)]


@pytest.mark.parametrize("writers, answers", [(200, 1500), (200, 400)])
def test_kill_9_loses_no_acknowledged_write(fresh, writers, answers):
    server = fresh()
    server.make("counters", ["n:number", "text"])
    ids = [server.add("counters", {"id": f"counter{i:08}"})["id"] for i in range(writers)]
    seen = Acknowledged()

    def write(i):
        def step():
            step.n += 1
            answer = server.patch(records("counters", ids[i]), {"n": step.n, "text": f"value {step.n}"})
            assert answer.status == 200, answer
            seen.add(i, step.n)
        step.n = 0
        until_it_dies(step)

    def kill():
        seen.wait(answers)
        server.kill9()

    crowd(writers, write, kill)
    server.start()
    healthy(server)
    stored = {id: (n, text) for id, n, text in server.db("select id, n, text from counters")}
    for i, id in enumerate(ids):
        acknowledged, (n, text) = seen.of.get(i, 0), stored[id]
        assert n in (acknowledged, acknowledged + 1) and text == (f"value {n}" if n else "")
    assert server.patch(records("counters", ids[0]), {"n": -1}).json["n"] == -1


def test_kill_9_loses_no_acknowledged_create_or_delete(fresh):
    server = fresh()
    server.make("rows", ["n:number"])
    seen = Acknowledged()

    def write(i):
        created, deleted = [], []
        seen.of[i] = (created, deleted)

        def step():
            answer = server.post(records("rows"), {"n": i})
            assert answer.status == 200, answer
            created.append(answer.json["id"])
            seen.add(i, (created, deleted))
            if len(created) % 3 == 0:
                answer = server.delete(records("rows", created[-1]))
                assert answer.status == 204, answer
                deleted.append(created[-1])
        until_it_dies(step)

    crowd(64, write, lambda: (seen.wait(1000), server.kill9()))
    server.start()
    healthy(server)
    stored = {id for (id,) in server.db("select id from rows")}
    for created, deleted in seen.of.values():
        # the last one may have been deleted without an answer
        assert set(created[:-1]) - set(deleted) <= stored and not set(deleted) & stored


def test_kill_9_leaves_no_record_without_its_file(fresh):
    server = fresh()
    server.make("uploads", ["hash", {"name": "file", "type": "file"}])
    seen = Acknowledged()

    def upload(i):
        def step():
            step.n += 1
            content = f"{i} {step.n} ".encode() * 5000
            form = {"hash": hashlib.sha256(content).hexdigest(), "file": ("content.bin", content)}
            if step.id and step.n % 2:
                answer = server.patch(records("uploads", step.id), form=form)
            else:
                answer = server.post(records("uploads"), form=form)
            assert answer.status == 200, answer
            step.id = answer.json["id"]
            seen.add(i, step.n)
        step.n, step.id = 0, None
        until_it_dies(step)

    crowd(32, upload, lambda: (seen.wait(200), server.kill9()))
    server.start()
    healthy(server)
    rows = server.db("select id, hash, file from uploads")
    assert len(rows) >= 50
    for id, digest, file in rows:
        got = server.get(f"/api/files/uploads/{id}/{file}")
        assert got.status == 200 and hashlib.sha256(got.body).hexdigest() == digest


def test_kill_9_in_a_batch_leaves_all_of_it_or_nothing(fresh):
    server = fresh()
    server.settings(batch={"enabled": True, "maxRequests": 50, "timeout": 60})
    server.make("parts", ["batch"])
    seen = Acknowledged()

    def write(i):
        def step():
            step.n += 1
            body = {"batch": f"{i}-{step.n}"}
            answer = server.post("/api/batch", {"requests": [{"method": "POST", "url": records("parts"), "body": body}] * 20})
            assert answer.status == 200, answer
            seen.add(i, step.n)
        step.n = 0
        until_it_dies(step)

    crowd(16, write, lambda: (seen.wait(60), server.kill9()))
    server.start()
    healthy(server)
    stored = dict(server.db("select batch, count(*) from parts group by batch"))
    assert set(stored.values()) == {20}
    assert {f"{i}-{n}" for i, last in seen.of.items() for n in range(1, last + 1)} <= set(stored)


def test_a_polite_stop_answers_what_is_in_flight(fresh):
    server = fresh()
    server.make("notes", ["title"])
    body = b'{"title":"in flight"}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (records("notes").encode(), len(body))
    open_requests = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(20)]
    for sock in open_requests:
        sock.sendall(head)
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")    # its handler waits for the body

    process = server.process
    process.terminate()
    for sock in open_requests:
        sock.sendall(body)
    for sock in open_requests:
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"title":"in flight"' in answer
        sock.close()
    assert process.wait(60) == 0
    assert not [name for name in os.listdir(server.dir) if name.endswith("-wal")]
    assert server.db("select count(*) from notes where title = 'in flight'") == [(20,)]


def test_a_polite_stop_under_load_loses_nothing(fresh):
    server = fresh()
    server.make("rows", ["n:number"])
    seen = Acknowledged()

    def write(i):
        def step():
            answer = server.post(records("rows"), {"n": i})
            if answer.status != 200:    # a server on its way out may say so
                raise ConnectionError
            step.created.append(answer.json["id"])
            seen.add(i, step.created)
        step.created = []
        until_it_dies(step)

    codes = []
    crowd(32, write, lambda: (seen.wait(300), codes.append(server.stop())))
    assert codes == [0]
    stored = {id for (id,) in server.db("select id from rows")}
    assert {id for created in seen.of.values() for id in created} <= stored
    healthy(server)
