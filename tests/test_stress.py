"""Under load: every answer is right, and small reads stay quick beside scans, logins, slow senders and thousands of idle connections.

The one figure asserted here is an order of magnitude: reads take a millisecond or two on their own, and a server that lets others wait for a scan
or a password hash needs seconds.
"""
import random
import resource
import socket
import threading
import time

import pytest

import kit
from helpers_answers import items
from helpers_answers import records
from helpers_beyond import beyond
from helpers_crowd import crowd

CLIENTS, ROWS, QUICK = 64, 3000, 0.5
SCAN = {"filter": "@collection.rows:a.text ?~ @collection.rows:b.text", "skipTotal": "1"}    # ROWS x ROWS comparisons: seconds

UNFINISHED = b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Slow: a", b"POST /api/batch HTTP/1.1\r\nContent-Length: 99"    # dripped byte by byte


@pytest.fixture(scope="module")
def api():
    """A server with three thousand rows, allowed to open thousands of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with kit.Server() as server:
            server.make("rows", ["text", "n:number"])
            server.make("one", ["text"])
            server.make("written", ["text", "n:number"])
            fill = f"with recursive i(n) as (select 0 union all select n + 1 from i where n < {ROWS - 1}) select printf('row%012d', n), printf('text of row %d, %s', n, hex(n)), n from i"
            assert server.post("/api/sql", {"query": f"insert into rows (id, text, n) {fill}"}, token=server.su).status == 200
            server.add("one", {"id": "one000000000001", "text": "x"})
            server.add_user("user@example.com")
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read(api, n):
    """Reads one record or a short list, checks the answer, and returns the seconds it took."""
    start = time.perf_counter()
    if n % 2:
        answer = api.get(records("rows", f"row{n:012}"))
        right = answer.status == 200 and answer.json["n"] == n
    else:
        answer = api.get(records("rows"), params={"filter": f"n = {n}", "perPage": 5})
        right = answer.status == 200 and items(answer, "n") == [n] and answer.json["totalItems"] == 1
    seconds = time.perf_counter() - start
    assert right, answer
    return seconds


def scan(api):
    answer = api.get(records("one"), params=SCAN, token=api.su)
    assert items(answer) == ["one000000000001"]


def reads_beside(api, *others, clients=8):
    """Reads until the other callables, which run beside, have ended; returns the sorted times."""
    running, lock = len(others), threading.Lock()

    def counted(task):
        nonlocal running
        try:
            task()
        finally:
            with lock:
                running -= 1

    def reader(i):
        choose, times = random.Random(i).randrange, []
        while running or len(times) < 20:
            times.append(read(api, choose(ROWS)))
        return times

    return sorted(sum(crowd(clients, reader, *(lambda task=task: counted(task) for task in others)), []))


def assert_quick(times):
    p99 = times[len(times) * 99 // 100]
    assert p99 < QUICK, f"p50 {times[len(times) // 2]:.3f}s, p99 {p99:.3f}s, worst {times[-1]:.3f}s of {len(times)} reads"


def test_every_answer_is_right_when_reads_writes_and_scans_mix(api):
    def work(i):
        choose = random.Random(i).randrange
        mine = api.post(records("written"), {"text": str(i), "n": 0}).json["id"]
        for step in range(10):
            read(api, choose(ROWS))
            answer = api.patch(records("written", mine), {"n": step + 1})
            assert answer.status == 200 and (answer.json["text"], answer.json["n"]) == (str(i), step + 1)
            assert api.get(records("written", mine)).json == answer.json
        return int(items(api.get(records("written"), params={"filter": f"text = '{i}'"}), "n")[0])

    assert crowd(CLIENTS, work, lambda: scan(api)) == [10] * CLIENTS
    assert api.get(records("written")).json["totalItems"] == CLIENTS


def test_reads_stay_quick_during_scans(api):
    assert_quick(reads_beside(api, lambda: scan(api), lambda: scan(api)))


def test_writes_stay_quick_during_scans(api):
    times = []

    def write():
        for _ in range(100):
            start = time.perf_counter()
            assert api.post(records("written"), {"text": "beside"}).status == 200
            times.append(time.perf_counter() - start)

    reads_beside(api, lambda: scan(api), write, clients=2)
    assert_quick(sorted(times))


@beyond
def test_reads_stay_quick_while_fifty_clients_log_in(api):
    assert_quick(reads_beside(api, *[lambda: api.login("users", "user@example.com")] * 50))


def test_reads_stay_quick_beside_slow_and_idle_connections(api):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = [socket.create_connection(("127.0.0.1", api.port), 60) for _ in range(min(5000, soft - 1000))]
    slow = [socket.create_connection(("127.0.0.1", api.port), 60) for _ in range(500)]
    try:
        def drip():
            for sent in range(len(UNFINISHED[0])):
                for i, sock in enumerate(slow):
                    try:
                        sock.send(UNFINISHED[i % 2][sent:sent + 1])
                    except OSError:    # the server may lose its patience with them
                        pass

        assert_quick(reads_beside(api, drip))
        for sock in random.Random(1).sample(idle, 50):
            sock.sendall(b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    finally:
        for sock in idle + slow:
            sock.close()
    assert api.get("/api/health").status == 200
