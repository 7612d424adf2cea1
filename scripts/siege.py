"""Besiege a server with strangers of every kind, while a certified client measures its heart beats."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import random
import socket
import ssl
import statistics
import sys
import time
from typing import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests import harness as test

EACH_A_SECOND = 200
# Connections open at once, of each kind: six kinds share the 28,232 ports that Linux gives out.
KEPT = 4000
SETTLE_SECONDS = 15.0  # After the siege, for the deadlines of what is still open.
BEATS_SECONDS = 10.0

Attack = Callable[[int], socket.socket]


def connect(port: int, said: bytes = b"") -> socket.socket:
    """Open a connection as a stranger who says so much and nothing more."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    connection.sendall(said)
    return connection


def half_a_hello(port: int) -> socket.socket:
    """Send the first half of a ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return connect(port, outgoing.read()[:150])


def handshake(port: int, context: ssl.SSLContext) -> socket.socket:
    """Go through a handshake that the server must refuse."""
    connection = connect(port)
    try:
        connection = context.wrap_socket(connection, server_hostname="localhost")
        connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n")
        if connection.recv(1):
            print("siege: a stranger was answered", flush=True)
    except OSError:
        pass
    return connection


def attack(name: str, kind: Attack, port: int, seconds: float, done: multiprocessing.Queue[str]) -> None:
    """Attack so often a second, keeping connections open as long as the server does; report how often."""
    kept: collections.deque[socket.socket] = collections.deque()
    failed, started, number = 0, time.monotonic(), 0
    while (now := time.monotonic() - started) < seconds:
        if number > now * EACH_A_SECOND:
            time.sleep(0.002)
            continue
        number += 1
        try:
            kept.append(kind(port))
        except OSError:
            failed += 1
        while len(kept) > KEPT:
            kept.popleft().close()
    for connection in kept:
        connection.close()
    done.put(f"{name} {number}" + (f" ({failed} failed)" if failed else ""))


def beats(server: test.Running, seconds: float) -> list[float]:
    """Send heart beats, a connection and a handshake each; return the milliseconds that each took."""
    taken, context, end = [], test.tls("alice"), time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        with context.wrap_socket(connect(server.port), server_hostname="localhost") as connection:
            connection.sendall(b"GET /api/heart_beat?user_id=alice HTTP/1.1\r\nHost: x\r\n"
                               b"Connection: close\r\n\r\n")
            answer = test.receive_all(connection)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"siege: a heart beat was not answered: {answer!r}")
        taken.append((time.monotonic() - started) * 1000)
        time.sleep(random.uniform(0, 0.02))
    return taken


def burden(server: test.Running) -> dict[str, int]:
    """Return the server's memory, threads and open files."""
    pid = server.process.pid
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {"MB": int(lines["VmRSS"].split()[0]) // 1024, "threads": int(lines["Threads"]),
            "files": len(os.listdir(f"/proc/{pid}/fd"))}


def main() -> int:
    """Measure before, during and after; return the exit status."""
    seconds = float(sys.argv[1])
    test.set_up()
    test.gen_cert("alice", store="other_store")
    other = test.tls("")
    other.load_cert_chain(test.path("other_store/alice/alice.crt"), test.path("other_store/alice/alice.key"))
    nobody = test.tls("")
    kinds: dict[str, Attack] = {
        "say nothing": connect, "half a ClientHello": half_a_hello,
        "random bytes": lambda port: connect(port, os.urandom(200)),
        "plain HTTP": lambda port: connect(port, b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"),
        "no certificate": lambda port: handshake(port, nobody),
        "another CA's": lambda port: handshake(port, other)}
    done: multiprocessing.Queue[str] = multiprocessing.Queue()
    with test.Running(kubeconfig=test.path("dead.kubeconfig"), python=()) as server:
        beats(server, 2)
        before, quiet = burden(server), beats(server, BEATS_SECONDS)
        attackers = [multiprocessing.Process(target=attack, args=(name, kind, server.port, seconds, done))
                     for name, kind in kinds.items()]
        for process in attackers:
            process.start()
        besieged, most = [], dict.fromkeys(before, 0)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            besieged += beats(server, min(1.0, seconds))
            most = {name: max(most[name], value) for name, value in burden(server).items()}
        strangers = sorted(done.get() for _ in attackers)
        for process in attackers:
            process.join()
        time.sleep(SETTLE_SECONDS)
        after = burden(server)
        lines = server.lines("handshake outcome=refused")
    print(f"{len(besieged)} heart beats in {seconds:.0f} s, all answered, besieged by: "
          f"{', '.join(strangers)}")
    tails = []
    for name, taken in (("undisturbed", quiet), ("besieged", besieged)):
        tails.append(statistics.quantiles(taken, n=100)[98])
        print(f"  {name:12} p50 {statistics.median(taken):6.1f} ms   p99 {tails[-1]:6.1f} ms   most "
              f"{max(taken):6.1f} ms")
    ratio = tails[1] / tails[0]
    print(f"  p99 besieged / undisturbed: {ratio:.1f}")
    for name, value in before.items():
        print(f"  {name:8} before {value:5}   most {most[name]:5}   after {after[name]:5}")
    print(f"  lines of the log about them: {len(lines)}")
    back = after["threads"] <= before["threads"] + 2 and after["files"] <= before["files"] + 2
    constant = most["threads"] <= before["threads"]
    return 0 if ratio <= 4 and back and constant and after["MB"] < before["MB"] + 50 else 1


if __name__ == "__main__":
    try:
        status = main()
    finally:
        test.tear_down()
    sys.exit(status)
