"""An endless event stream to many clients beside normal traffic: nobody misses an event, nobody waits for another."""
import json
import re
import selectors
import socket
import threading

import kit
from helpers_answers import records
from helpers_beyond import beyond
from helpers_crowd import crowd

CLIENTS = 200
ROUNDS = 60


class Listeners:
    """Raw event streams read by one thread; `numbers[i]` is what client i was told, in order."""

    def __init__(self, server, count, topic):
        self.selector, self.numbers, self.left = selectors.DefaultSelector(), [[] for _ in range(count)], count
        for index in range(count):
            sock = socket.create_connection(("127.0.0.1", server.port), kit.PATIENCE)
            sock.sendall(b"GET /api/realtime HTTP/1.1\r\nHost: x\r\n\r\n")
            first = b""
            while not first.endswith(b"\n\n\r\n"):
                first += sock.recv(4096)
            id = re.search(rb'"clientId":"(\w+)"', first)[1].decode()
            assert server.post("/api/realtime", {"clientId": id, "subscriptions": [topic]}).status == 204
            self.selector.register(sock, selectors.EVENT_READ, (index, bytearray()))

    def read(self, until):
        """Reads until every client was told `until` events."""
        waiting = len(self.numbers)
        while waiting:
            ready = self.selector.select(kit.PATIENCE)
            assert ready, "no client was told anything for long"
            for key, _ in ready:
                index, buffer = key.data
                data = key.fileobj.recv(262144)
                assert data, f"the stream of client {index} ended"
                buffer += data
                while (end := buffer.find(b"\n\n")) >= 0:
                    frame = bytes(buffer[:end])
                    del buffer[:end + 2]
                    self.numbers[index].append(json.loads(frame.partition(b"data:")[2])["record"]["n"])
                    waiting -= len(self.numbers[index]) == until

    def close(self):
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()


@beyond                 # PocketBase now and then swaps two events of writes that followed each other
def test_stream_to_200_clients_beside_normal_traffic(server):
    server.make("ticks", ["n:number"])
    server.make("other", ["t"])
    listeners = Listeners(server, CLIENTS, "ticks/*")
    done = threading.Event()

    def tick():
        for number in range(ROUNDS):
            server.add("ticks", {"n": number})
        listening.join(kit.PATIENCE)
        done.set()

    def traffic(worker):
        """Creates, reads, updates and deletes until the streams are through; every answer must be right."""
        rounds = 0
        while not done.is_set() or not rounds:
            made = server.add("other", {"t": f"{worker}-{rounds}"})
            assert server.get(records("other", made["id"])).json == made
            assert server.patch(records("other", made["id"]), {"t": "x"}).json["t"] == "x"
            assert server.get(records("ticks"), params={"perPage": 5}).status == 200
            assert server.delete(records("other", made["id"])).status == 204
            rounds += 1
        return rounds
    listening = threading.Thread(target=listeners.read, args=(ROUNDS,))
    listening.start()
    rounds = crowd(4, traffic, tick)
    listeners.close()
    assert listeners.numbers == [list(range(ROUNDS))] * CLIENTS
    assert min(rounds) > 0 and server.get(records("other")).json["totalItems"] == 0
