"""Load for the benchmark: kept connections, as fast as they are answered or at a rate of its own.

Kept to system calls and OpenSSL: a request costs this client a small part of what it costs a server in
Python, which the benchmark prints. A handshake costs a client in Python as much as a server, so new
connections are bench_connect.c's.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Callable

ANSWER_BYTES = 16 * 1024
Target = tuple[str, int]  # A key store, and a port of 127.0.0.1.


@functools.cache
def trusting(store: str) -> ssl.SSLContext:
    """Return alice's side of TLS."""
    context = ssl.create_default_context(cafile=f"{store}/ca/ca.crt")
    context.load_cert_chain(f"{store}/alice/alice.crt", f"{store}/alice/alice.key")
    return context


def connect(target: Target) -> ssl.SSLSocket:
    """Open a connection as alice."""
    store, port = target
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return trusting(store).wrap_socket(connection, server_hostname="localhost")


def request(api: str, user_id: str) -> bytes:
    """Return a request as a front end sends it."""
    if api not in ("create_db", "delete_db"):
        query = f"?user_id={user_id}" if api == "heart_beat" else ""
        return f"GET /api/{api}{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    body = f'{{"user_id": "{user_id}"}}'
    return (f"POST /api/{api} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()


def receive(connection: ssl.SSLSocket) -> bytes:
    """Return one answer, status line and all. Raises OSError if the connection ends inside it."""
    answer = b""
    while True:
        data = connection.recv(ANSWER_BYTES)
        if not data:
            raise OSError("the connection ended")
        answer += data
        head, end, body = answer.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0]):
            return answer


def call(target: Target, api: str, user_id: str = "alice") -> bytes:
    """Return the answer to one request on a new connection. Raises OSError."""
    with connect(target) as connection:
        connection.sendall(request(api, user_id))
        return receive(connection)


def must_be_200(answer: bytes) -> None:
    """Raise SystemExit for any other answer."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"bench: a request was answered {answer[:300]!r}")


def new_connections(target: Target, at_a_time: int, seconds: float) -> tuple[float, float]:
    """Keep so many heart beats under way, always a new connection each; return the same as `closed_loop`."""
    store, port = target
    command = ["bench_connect", str(port), f"{store}/alice/alice.crt", f"{store}/alice/alice.key",
               str(at_a_time), str(seconds)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit("bench: the client of new connections failed")
    rate, share = map(float, result.stdout.split())
    return rate, share


def closed_loop(target: Target, connections: int, seconds: float) -> tuple[float, float]:
    """Keep a beat under way on each connection; return answers a second, and our share of a core."""
    beat, poll = request("heart_beat", "alice"), select.epoll()
    opened = {connection.fileno(): connection for connection in (connect(target) for _ in range(connections))}
    for number, connection in opened.items():
        poll.register(number, select.EPOLLIN)
        connection.sendall(beat)
    started, cpu, count = time.monotonic(), time.process_time(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        for number, _ in poll.poll():
            must_be_200(receive(opened[number]))
            opened[number].sendall(beat)
            count += 1
    share = (time.process_time() - cpu) / elapsed
    for connection in opened.values():
        connection.close()
    poll.close()
    return count / elapsed, share


def open_loop(target: Target, connections: int, a_second: float, seconds: float) -> list[float]:
    """Send beats when they are due, answered or not; return the ms from when each was due to its answer.

    They come at random as from many users (a Poisson process, always the same one). One that is due while all
    connections wait for answers queues here, and its time counts: there is no coordinated omission.
    """
    beat, poll, dice = request("heart_beat", "alice"), select.epoll(), random.Random(1)
    free = [connect(target) for _ in range(connections)]
    opened = {connection.fileno(): connection for connection in free}
    for number in opened:
        poll.register(number, select.EPOLLIN)
    taken: list[float] = []
    waiting: collections.deque[float] = collections.deque()
    under_way: dict[int, float] = {}
    due = time.monotonic()
    end = due + seconds
    while due < end or under_way or waiting:
        now = time.monotonic()
        while due <= now and due < end:
            waiting.append(due)
            due += dice.expovariate(a_second)
        while waiting and free:
            connection = free.pop(0)
            under_way[connection.fileno()] = waiting.popleft()
            connection.sendall(beat)
        for number, _ in poll.poll(max(due - time.monotonic(), 0) if due < end else 10):
            must_be_200(receive(opened[number]))
            taken.append((time.monotonic() - under_way.pop(number)) * 1000)
            free.append(opened[number])
    for connection in opened.values():
        connection.close()
    poll.close()
    return taken


def longest_wait(target: Target, seconds_apart: float, over: Callable[[bytes], bool]) -> tuple[float, bytes]:
    """Send beats on one connection until an answer is the last one; return the ms that the slowest took.

    It is connected to as soon as it can be: the server may just have been started.
    """
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            connection = connect(target)
            break
        time.sleep(0.002)
    longest, beat = 0.0, request("heart_beat", "alice")
    with connection:
        while True:
            started = time.monotonic()
            connection.sendall(beat)
            answer = receive(connection)
            longest = max(longest, time.monotonic() - started)
            if over(answer):
                return longest * 1000, answer
            time.sleep(max(started + seconds_apart - time.monotonic(), 0))


def one_by_one(target: Target, apis: tuple[str, ...], count: int) -> dict[str, list[float]]:
    """Call APIs in turns on one kept connection; return the milliseconds of each call."""
    taken: dict[str, list[float]] = {api: [] for api in apis}
    with connect(target) as connection:
        for _ in range(count):
            for api in apis:
                started = time.perf_counter()
                connection.sendall(request(api, "alice"))
                must_be_200(receive(connection))
                taken[api].append((time.perf_counter() - started) * 1000)
    return taken
