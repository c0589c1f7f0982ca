"""Many clients at once."""
import concurrent.futures
import contextlib
import http.client
import json
import socket
import threading

from kit import Response


def crowd(size, work, *more):
    """Runs work(0), work(1), ... work(size - 1) and every callable of `more` on a thread each, all starting at the same moment.

    Returns the results of `work` in order; the first exception of any thread is raised again.
    """
    gate = threading.Barrier(size + len(more))

    def run(task, *args):
        gate.wait(60)
        return task(*args)

    with concurrent.futures.ThreadPoolExecutor(size + len(more)) as pool:
        others = [pool.submit(run, task) for task in more]
        mine = [pool.submit(run, work, number) for number in range(size)]
        for each in others:
            each.result()
        return [each.result() for each in mine]


def salvo(server, method, path, bodies, token=None):
    """Sends one JSON request per body on a connection each, all completed by their last bytes within a millisecond or so.

    Threads of one interpreter take turns; here the requests really meet in the server. Returns the answers in order.
    """
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n" + (f"Authorization: {token}\r\n" if token else "")
    with contextlib.ExitStack() as stack:
        socks = []
        for body in bodies:
            text = json.dumps(body).encode()
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text[:-1])
            socks.append((sock, text[-1:]))
        for sock, last in socks:
            sock.sendall(last)
        return [_answer(sock) for sock, _ in socks]


def _answer(sock):
    response = http.client.HTTPResponse(sock)
    try:
        response.begin()
        return Response(response.status, response.headers, response.read())
    finally:
        response.close()
