#!/usr/bin/env python3
"""SQLFlow Playground Server: a database in Kubernetes for every user who asks for one.

    client --mTLS--> this server --kubectl--> Kubernetes API --> MariaDB pods, Secrets, Leases

A client is known by its certificate. It asks over HTTPS for a database for one of its users; the
server has kubectl create one and answers with the connection string that SQLFlow takes.

The file reads as a request travels: the server's loop; one connection; HTTP; the API; the cluster, its
spares, orders, sweep and watches; then what these stand on: templates, Kubernetes' objects, kubectl, the TLS
files, the log and the metrics, the command line.

    thread               does                                          is waited for by
    the loop (main)      all that concerns a connection: see Server    all: so it waits for nothing itself
    handshakes, two      OpenSSL's part of the handshakes              nobody: they post what came of it
    tls files            reads the TLS files when they change          nobody: it posts them
    log                  writes the log's lines                        nobody: what does not fit is dropped
    watch, one a kind    reads a kubectl's next line                   nobody: it posts what it says
    work, twelve         one kubectl each                              who asked for what it does

The rule: one thread, the loop's, owns every connection and the whole table of the cluster. No other thread
touches them; each computes or waits, and posts what came of it (Server.post). So there are always as many
threads, however many strangers or waiting users, and no lock but the one over running kubectls.

Kubernetes is the only store. What is in memory comes from watches and may be lost at any time.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import calendar
import collections
import contextlib
import email.utils
import errno
import functools
import gc
import hashlib
import heapq
import http.client
import http.server
import ipaddress
import itertools
import json
import logging
import os
import queue
import random
import re
import resource
import secrets
import select
import selectors
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import urllib.parse
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Callable, NamedTuple, NoReturn, Union

# A Python older than 3.8 shows its user this line, which it cannot read, and why:
(OLDEST_PYTHON := (3, 9))  # This server needs Python 3.9 or later: run it with such a python3.
if sys.version_info < OLDEST_PYTHON:
    print("sqlflow_playground: this server needs Python 3.9 or later: run it with such a python3",
          file=sys.stderr)
    sys.exit(2)
try:
    import yaml
except ImportError:  # Which `run` tells.
    yaml = None  # type: ignore[assignment]

__version__ = "2.0.0"


# ---- Limits: what each bounds, what happens beyond it, why this number, what it does not cover ---------

# The request line; 414 beyond it. RFC 9112 section 3 recommends to support at least 8,000 bytes.
MAX_REQUEST_LINE_BYTES = 8 * 1024
# Request line and header fields together; 431 beyond it. curl sends about 150 bytes, browsers and
# proxies seldom more than 4 KiB. Does not bound the body.
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADER_FIELDS = 50  # 431 beyond it. Half of what Apache allows.
MAX_BODY_BYTES = 16 * 1024  # 413 beyond it. A user id is at most 64 characters, 768 bytes as JSON escapes.
# The line before a chunk, or all trailer fields behind the last; 400 beyond it. A size takes 4 characters,
# and no client is known to send extensions. Does not bound the number of chunks; each has a byte of the body.
MAX_CHUNK_LINE_BYTES = 256
MAX_USER_ID_CHARACTERS = 64  # After normalisation; 400 beyond it.

# The whole TLS handshake, the whole request head from its first byte, the whole body, the whole answer: the
# connection ends beyond each, after a 408 where one can be heard. A slow mobile link needs 2 s; whoever
# sends a byte a second gets no more than these.
HANDSHAKE_SECONDS = HEAD_SECONDS = BODY_SECONDS = ANSWER_SECONDS = 10.0
IDLE_SECONDS = 75.0  # A kept connection without a request; it is closed beyond it. As nginx has it.
# What a refused client may still be sending is read and dropped up to these, so that it sees the alert or
# the answer instead of a reset connection; then the connection ends all the same.
LINGER_SECONDS = 1.0
LINGER_BYTES = 1024 * 1024

# Taken from the network at once, of one connection; the rest waits until the others had their turn. A
# certificate and a request fit. Filled with the smallest records there are, it is 3 ms of work.
READ_BYTES = 8 * 1024
REQUESTS_A_TURN = 16  # Answered at once, of those that one connection sent ahead; likewise: some 2 ms.

# Connections without a certificate so far; beyond it the oldest one of the address (for IPv6 the /64, which
# one customer of a provider has) that holds most of them makes room, first one that was refused and told so.
# With strangers opening 1,000 connections a second from one address, one that is slow by itself has
# 256 / 1,000 = 0.25 s for its handshake, which takes 10 ms; one from another address is not touched while any
# holds more. It does not bound their rate.
MAX_HANDSHAKES = 256
# Times that a handshake's bytes are taken up; it is refused beyond it. Three do in a fast network, some ten
# in one with small packets; each costs as much as a request, and a stranger's bytes can come one by one.
MAX_HANDSHAKE_READS = 50
# Handshakes computed at once; the others wait for their turn. OpenSSL computes without Python's lock, some
# 0.3 ms for each of a handshake's two steps: the loop goes on meanwhile, and both cores are of use.
HANDSHAKE_THREADS = 2
# With the threads or in their queue, so that no more outcomes wait for the loop; the others can still make
# room. With four, the threads waited for the loop, and a tenth fewer handshakes were made.
QUEUED_HANDSHAKES = 16
# Connections with a certificate; beyond it the one idle longest makes room, and if none is idle the new one
# gets a 503. Five for each of a class of 200. Each takes some 30 KB, 70 after a long request.
MAX_CONNECTIONS = 1000
# One client's, if --max_connections_per_client does not say otherwise; likewise, but among its own. A front
# end for a class of 200 may have a connection for each; four such clients fit.
MAX_CONNECTIONS_PER_CLIENT = 250
# Connections the kernel keeps until the loop accepts them; a class that starts together overflows the
# standard library's 5. Linux cuts it to net.core.somaxconn.
LISTEN_BACKLOG = 1024
# File descriptors: the connections, three for each kubectl, and some for the rest. The process's limit is
# raised to it at start, which fails where it cannot be.
MAX_OPEN_FILES = MAX_CONNECTIONS + MAX_HANDSHAKES + 144

# How often the TLS files are looked at. A change is taken up once it has stayed for as long, so that a file
# that is being written is not read: clients that were revoked are gone after 2 to 3 of these.
RELOAD_SECONDS = 1.0
# Refused handshakes, and clients' connections on which TLS failed: so many lines of the log of each in this
# time, each for one address or client and reason and with their number, first when they come and again at its
# end; the rest is one line a reason.
REFUSALS_SECONDS = 60.0
REFUSAL_LINES = 20
MAX_REFUSALS = 1000  # Told apart in it, some 300 bytes each; further ones count as from "others".
# Before a certificate or the revocation list ends, and nobody gets in: a warning a day.
EXPIRY_WARNING_SECONDS = 30 * 86400.0
# Lines of the log that wait to be written, some 200 bytes each; more are dropped and counted. A second of a
# full load. They are written so much later at most, many at once: a thread woken for each would cost a fifth
# of all requests.
MAX_LOG_LINES = 10_000
LOG_SECONDS = 0.02

# create_db's answer, counted from the request; 503 with the reason beyond it, and creation goes on. The
# notebook plug-in hangs up after 20 s; half a second of it is the network's.
CREATE_SECONDS = 17.5
# A refused heart beat's answer is held back this long: the plug-in's loop never sleeps after one. Such a
# client makes one request a second.
REFUSED_BEAT_SECONDS = 1.0

KUBECTL_SECONDS = 30.0  # Its process group is killed beyond it. Creating a full group takes 2 s.
# Users whose objects go into one kubectl, the rest into the next: three objects each, and kubectl slows down
# to 50 requests a second after 300.
GROUP_USERS = 50
# Users whose leases one group ends, a kubectl each in turn (six, for one on a volume); they are answered
# together.
GROUP_ENDS = 10
# A group leaves when it is full; else when nobody has joined it for the first, or for the second if it has
# more than one or another runs, and at the latest after the third. So whoever is alone waits least, and a
# class, which comes within some 0.8 s, needs few kubectls: with spares, the last of 200 was served after 1.7
# to 2.1 times what bare kubectls take, and after 1.8 to 2.6 times when the first left alone.
GATHER_SECONDS = (0.02, 0.1, 0.5)
# Creating kubectls at once: a class of 200 in one go, or three fifths of it and a user who comes alone.
MAKING_KUBECTLS = 4
# Kubectls at once, but for the watches: those, two that end databases, two that read afresh, the sweep's two
# for beats and one for what is nobody's, and one that compares the template and the quota with the cluster.
WORK_THREADS = 12
# Leases whose renewal one kubectl writes, a request each: as above, it slows down after 300. Two at
# once write 1,000 in 2.7 s, one after the other 4.0.
BEATS_PER_KUBECTL = 250
BEATS_KUBECTLS = 2
# Idle leases ended, a kubectl each, three for one on a volume: 3 to 9 s. The rest is the next round's.
SWEPT_PER_ROUND = 30
# Databases that look like nobody's and are read afresh in one round; likewise.
SUSPECTS_PER_ROUND = 100
# Users whose beats came before the cluster was known, and are held until then, some 200 bytes each; more are
# dropped, and beat again.
MAX_EARLY_BEATS = 10_000
# A user's lease and Secret without a Pod that was ever seen: somebody may be at making it. Then it is lost.
HALF_MADE_SECONDS = 10.0
# A spare's Secret without its Pod, or a Pod without its Secret: it is removed beyond it. Whoever makes one
# has KUBECTL_SECONDS.
HALF_A_SPARE_SECONDS = 60.0
# A Service answers so much later than its Pod is ready: kube-proxy was seen to need 3 to 1,003 ms.
SERVICE_SECONDS = 1.0

YOUNG_SECONDS = 60.0  # A spare that starts is given away until it is so old; later it may never get ready.
SPARE_SECONDS = 300.0  # A spare that is not ready by then is removed: an image was pulled in 3 minutes.
SPARES_AT_ONCE = 10  # Made in one step; two servers that fill at once then make few too many.
EXPECTED_SECONDS = 30.0  # While a user's database starts, spares do not compete with it; for so long.
# Spares of another template are removed then, since an update's old servers still give them. Twice as long
# each time they come back, up to a week.
OTHERS_SECONDS = 600.0
REFUSED_SECONDS = 60.0  # A spare whose removal was refused is not tried again before.
NO_SPARES_SECONDS = 600.0  # After a spare made room for a user none is made for so long.

# Objects in a page of a listing, 1 to 4 MB; so many are read, and then taken into the table, at once.
PAGE_OBJECTS = 500
# Of these, one step of the loop: 0.3 ms. Whoever reads them, 3 ms, then lets others compute.
PORTION_OBJECTS = 25
PORTION_PAUSE_SECONDS = 0.001
STEP_SECONDS = 0.002  # Steps that others posted, before the connections have their turn again.
# Python's threads, when more than one computes, take turns this often. A heart beat waits for some ten turns,
# one after each call of the system: while three watches read 10,000 databases, 20 ms; with Python's 5 ms, 60.
SWITCH_SECONDS = 0.0003
# One watch; it is started again from where it was beyond it: three kubectls a minute cost 0.3 s of one core.
# One whose connection has died silently is killed the grace later: for so long the table can be stale.
WATCH_SECONDS = 60
WATCH_GRACE_SECONDS = 15
# Pauses between failing watches double from the first to the last, a little random so that replicas
# do not come all at once. The last is how long a recovered cluster may go unnoticed.
WATCH_PAUSES_SECONDS = (0.25, 5.0)
# Finishing what is in flight after SIGTERM; what is left is dropped beyond it. Longer than CREATE_SECONDS.
STOP_SECONDS = 20.0
# Writing down the last heart beats after SIGTERM, most of them meanwhile; lost beyond it. Together with
# the above shorter than the 30 s that Kubernetes gives a pod.
LAST_BEATS_SECONDS = 5.0


# ---- The server: its loop, and who is in ---------------------------------------------------------------

Step = Callable[[], object]
Job = tuple[Callable[[], Any], Callable[[Any], object]]  # What a thread does; what the loop does then.


class Server(http.server.ThreadingHTTPServer):
    """The loop, on which everything about connections happens, one step after the other.

    A step is due because a socket has something (the selector), because another thread posted it, or because
    its time has come (the heap of timers). None waits for anything, and none sees another's half-done work.
    """

    request_queue_size = LISTEN_BACKLOG

    def __init__(self, address: tuple[str, int], tls_files: dict[str, str], cluster: Cluster,
                 max_connections_per_client: int = MAX_CONNECTIONS_PER_CLIENT, ready_file: str = "") -> None:
        """Listen on (host, port); 0 connections are no limit. Raises OSError, and Refusal of a TLS file."""
        self.tls_files, self.tls_stamps = tls_files, stamps(tls_files)  # Before it is read: it may change.
        self.tls, self.cluster = load_tls(tls_files), cluster
        self.max_connections_per_client, self.ready_file = max_connections_per_client, ready_file
        self.started, self.stop_at, self.was_ready = time.monotonic(), float("inf"), False
        self.generation = 0  # Grows when it changes who is let in: an older connection may be anybody's.
        # In the order of arrival, and of coming to rest: the first is the oldest.
        self.strangers: dict[Connection, str] = {}  # With their networks, by which they stand here, too:
        self.crowds: dict[str, dict[Connection, None]] = collections.defaultdict(dict)
        self.clients: dict[Connection, str] = {}  # With their names.
        self.idle: dict[Connection, None] = {}
        self.refusals = Refusals("handshake", "refused", "address")
        self.failures = Refusals("connection", "broken", "client")
        self.reloads: queue.SimpleQueue[None] = queue.SimpleQueue()  # Of the TLS files, ordered by SIGHUP.
        self.timers: list[tuple[float, int, Step]] = []
        self.order = itertools.count()  # Of two timers of one moment the older one is first.
        self.posted: collections.deque[Step] = collections.deque()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.to_compute: dict[Connection, None] = {}  # Whose handshakes wait for a thread,
        self.computing = 0  # and how many are with one, or in the queue of these, which no kubectl holds up.
        self.handshakes: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.work: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.ticked_at = time.monotonic()
        super().__init__(address, Connection)  # type: ignore[arg-type]
        self.selector = selectors.DefaultSelector()  # With each file, the step that it makes due.
        self.bell, self.ear = socket.socketpair()
        self.rung = False
        for end in (self.bell, self.ear, self.socket):
            end.setblocking(False)
        self.selector.register(self.ear, selectors.EVENT_READ, self.hear_bell)
        cluster.loop, cluster.kubectl.post = self, self.post

    def server_bind(self) -> None:
        """Bind without looking up our own name in DNS, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # Each connection inherits it.
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    # -- the loop

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Take the steps that are due, until told to stop and all is answered, or STOP_SECONDS after."""
        for name, jobs, threads in (("handshakes", self.handshakes, HANDSHAKE_THREADS),
                                    ("work", self.work, WORK_THREADS)):
            for _ in range(threads):
                threading.Thread(target=self.do, args=(jobs,), name=name, daemon=True).start()
        self.attempt(self.keep_house)
        while not self.is_done():
            pause = max(self.timers[0][0] - time.monotonic(), 0) if self.timers else None
            for key, _ in self.selector.select(pause):
                key.data()
            self.service_actions()
        for connection in list(self.clients):
            connection.take(connection.leave)

    def is_done(self) -> bool:
        """Tell whether a stopping server has answered all and written the last beats, or their time is up."""
        now = time.monotonic()
        answered = self.stopping() and not (self.clients or self.strangers) or now >= self.stop_at
        return answered and (self.cluster.sweep.last_beats() or now >= self.stop_at + LAST_BEATS_SECONDS)

    def service_actions(self) -> None:
        """Take the steps that were posted and those whose time has come; then ask those again who wait."""
        until = time.monotonic() + STEP_SECONDS
        while self.posted and time.monotonic() < until:
            self.attempt(self.posted.popleft())
        if self.posted:
            self.ring()  # Others come in between.
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            self.attempt(heapq.heappop(self.timers)[2])
        self.attempt(self.cluster.settle)

    def attempt(self, step: Step) -> None:
        """Take a step; whatever is wrong with it, the loop goes on."""
        try:
            step()
        except Exception:
            log.error(logfmt("loop", error=traceback.format_exc()))

    def url(self) -> str:
        """Return where it listens, as an address that one can type."""
        host = str(self.server_address[0])
        return f"https://{f'[{host}]' if ':' in host else host}:{self.server_port}"

    # -- a connection comes

    def listen(self) -> None:
        """Accept connections: from the start, and again after descriptors or memory ran out."""
        if not self.stopping() and self.socket not in self.selector.get_map():
            take_one = self._handle_request_noblock  # type: ignore[attr-defined]
            self.selector.register(self.socket, selectors.EVENT_READ, take_one)  # Others' steps in between.

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without a byte read or written."""
        try:
            request, address = self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.selector.unregister(self.socket)  # Accepting at once again would spin.
            raise
        request.setblocking(False)
        return request, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Let everybody in; of too many strangers, the oldest of the network with most of them makes room."""
        if len(self.strangers) >= MAX_HANDSHAKES:
            crowd = max(self.crowds.values(), key=len)
            oldest = next((one for one in crowd if one.state == "lingering"), next(iter(crowd)))
            oldest.give_up("made room for others")
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Leave the connection to a Connection, which the loop serves."""
        self.finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what serving a connection did not expect."""
        log.error(logfmt("connection", outcome="failed", address=client_address[0],
                         error=traceback.format_exc()))

    def meet(self, stranger: Connection, network: str) -> None:
        """Count a connection as a stranger's."""
        self.strangers[stranger] = network
        self.crowds[network][stranger] = None

    # -- it becomes a client's

    def compute(self, connection: Connection) -> None:
        """Have a thread go on with a handshake; Connection.take_up gets what came of it."""
        self.to_compute[connection] = None
        self.hand_out()

    def hand_out(self) -> None:
        """Keep the threads busy, with a queue so short that few in it can have made room meanwhile."""
        while self.to_compute and self.computing < QUEUED_HANDSHAKES:
            connection = next(iter(self.to_compute))
            del self.to_compute[connection]
            self.computing += 1
            self.handshakes.put((functools.partial(shake_hands, connection.tls),
                                 functools.partial(self.take_computed, connection)))

    def take_computed(self, connection: Connection, outcome: Handshake) -> None:
        """Go on with a connection whose handshake was computed."""
        self.computing -= 1
        self.hand_out()
        connection.take(connection.take_up, outcome)

    def admit(self, connection: Connection, client: str) -> bool:
        """Count a connection as a client's, or return False for want of room. Raises ValueError."""
        issuer, serial, _, _, ends = read_certificate(connection.tls.getpeercert(True) or b"")
        ends = min(ends, self.tls.expiries.get("crl", ends))
        if connection.generation != self.generation:
            raise ValueError("the CA or the revocation list changed meanwhile")
        # OpenSSL has checked these, but not again for a session that is resumed, nor by a list of the future.
        if (issuer, serial) in self.tls.revoked:
            raise ValueError("certificate revoked")
        if ends < time.time() or self.tls.listed and issuer not in self.tls.listed:
            raise ValueError("the certificate is no longer good, or of a CA without a list")
        # A client at its own limit makes room among its own, which is room for all.
        crowded = 0 < self.max_connections_per_client <= list(self.clients.values()).count(client)
        if crowded or len(self.clients) >= MAX_CONNECTIONS:
            longest_idle = next((other for other in self.idle if not crowded or other.client == client), None)
            if not longest_idle:
                return False
            longest_idle.take(longest_idle.leave)
        connection.client, connection.serial, connection.ends = client, (issuer, serial), ends
        self.part(connection)
        self.clients[connection] = client
        return True

    def part(self, stranger: Connection) -> None:
        """Count a connection as a stranger's no longer."""
        network = self.strangers.pop(stranger)
        del self.crowds[network][stranger]
        if not self.crowds[network]:
            del self.crowds[network]

    # -- it ends

    def forget(self, connection: Connection) -> None:
        """Take a connection out of every table."""
        for table in (self.idle, self.clients, self.to_compute):
            table.pop(connection, None)
        if connection in self.strangers:
            self.part(connection)
        self.cluster.wait(connection.entry, connection, None)

    def keep_house(self) -> None:
        """Every second, do what no event tells of."""
        self.call_at(time.monotonic() + RELOAD_SECONDS, self.keep_house)
        self.listen()
        now, before, self.ticked_at = time.monotonic(), self.ticked_at, time.monotonic()
        if now - before > 5 * RELOAD_SECONDS or self.tls.lets_nobody_in():
            self.cluster.sweep.idle_since = now  # Nobody could be heard of, while it slept or nobody gets in.
        for connection in [client for client in self.idle if self.over(client)]:
            connection.take(connection.leave)
        for connection in [client for client in self.clients if client.state == "waiting"]:
            connection.take(connection.leave_if_gone)  # Its state listens for nothing.
        self.refusals.flush()
        self.failures.flush()
        self.cluster.kubectl.reap()
        if not self.was_ready and self.cluster.status()["cluster"] == "ok":
            self.was_ready = True
            gc.freeze()  # No collection looks at what is known by now: with 10,000 databases, 30 ms.
            if self.ready_file:
                open(self.ready_file, "w", encoding="utf-8").close()

    def take_files(self, tls: Tls) -> None:
        """Take new TLS files for new connections. A change of who is let in ends the older ones."""
        changed = (tls.trusted, tls.revoked) != (self.tls.trusted, self.tls.revoked)
        self.tls = tls
        if changed:
            self.generation += 1  # So those that are at a request end with its answer, unless revoked.
            for connection in list(self.clients):
                if connection in self.idle or connection.serial in tls.revoked:
                    connection.take(connection.leave)
        log.info(logfmt("tls", outcome="reloaded", generation=self.generation))

    def shutdown(self) -> None:
        """Have the loop end once all is answered, from any thread or signal, without waiting for it."""
        self.post(self.stop)

    def stop(self) -> None:
        """Stop accepting, and end the connections that are idle."""
        if not self.stopping():
            self.stop_at = time.monotonic() + STOP_SECONDS
            for moment in (self.stop_at, self.stop_at + LAST_BEATS_SECONDS):
                self.call_at(moment, lambda: None)  # Wakes the loop, which then ends.
            self.cluster.sweep.stopped = True
            with contextlib.suppress(KeyError):
                self.selector.unregister(self.socket)
            self.server_close()
            for connection in [*self.idle, *self.strangers]:
                connection.take(connection.leave)

    # -- what steps do

    def start(self, work: Callable[[], Any], then: Callable[[Any], object]) -> None:
        """Have a thread do what takes its time, and then the loop a step with what came of it."""
        self.work.put((work, then))

    def do(self, jobs: queue.SimpleQueue[Job]) -> NoReturn:
        """Do what takes its time, as a thread; what was not foreseen is a KubectlError."""
        while True:
            work, then = jobs.get()
            try:
                result = work()
            except KubectlError as error:
                result = error
            except Exception:
                log.error(logfmt("work", error=traceback.format_exc()))
                result = KubectlError("failed")
            self.post(then, result)

    def over(self, connection: Connection) -> bool:
        """Tell whether a client's connection is to end: its certificate cannot be checked again."""
        return self.stopping() or connection.generation != self.generation or time.time() > connection.ends

    def stopping(self) -> bool:
        """Tell whether the server was told to stop."""
        return self.stop_at < float("inf")

    def call_at(self, moment: float, step: Callable[..., object], *arguments: Any) -> None:
        """Have the loop take a step at a moment, by time.monotonic."""
        due: Step = functools.partial(step, *arguments)
        heapq.heappush(self.timers, (moment, next(self.order), due))

    def post(self, step: Callable[..., object], *arguments: Any) -> None:
        """Have the loop take a step. All that other threads, and handlers of signals, may do to it."""
        self.posted.append(functools.partial(step, *arguments))
        self.ring()

    def ring(self) -> None:
        """Have the loop not wait for anything, if it is about to."""
        if not self.rung:
            self.rung = True
            with contextlib.suppress(OSError):
                self.bell.send(b"\0")

    def hear_bell(self) -> None:
        """Wake up for what was posted, or for a signal's handler to run."""
        self.ear.recv(4096)
        self.rung = False


# ---- A connection --------------------------------------------------------------------------------------

MAX_RECORD_BYTES = 2 ** 14  # What one record of TLS holds at most (RFC 8446, section 5.1).
Handshake = Union[dict[str, Any], Exception]  # The certificate shown, or what is wrong or not here yet.


class Connection:
    """A stranger's connection and, after its handshake, a client's: see STATES for what it may do when.

    TLS works in memory. So the threads that compute handshakes touch no socket, one that has to go can be
    closed at any moment, and a step of the loop reads READ_BYTES at most, whatever a client sends: OpenSSL on
    a socket goes on reading for as long as records without data (KeyUpdate) come.
    """

    def __init__(self, request: socket.socket, client_address: Any, server: Server) -> None:
        self.socket, self.address, self.server = request, client_address, server
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server.tls.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.generation = server.generation
        self.client, self.serial, self.ends = "", (b"", 0), float("inf")
        self.handshake_reads, self.opening = 0, b""
        self.buffer, self.searched = b"", 0  # What has come, and how much of it holds no end of a head.
        self.head: Request | None = None  # Whose body is awaited.
        # Whose answer is awaited, its user, and their entry in the cluster's table, by slug.
        self.request, self.user, self.entry = NO_REQUEST, "-", ""
        self.unsent = b""
        self.leaving = self.lingers = False  # After what is unsent.
        self.dropped = 0
        self.listens = 0  # For which of the selector's events.
        self.alarm = float("inf")  # When one rings; there are others after it, which then do nothing.
        server.meet(self, network(client_address[0]))
        self.enter("handshake", time.monotonic() + HANDSHAKE_SECONDS)

    def hear(self) -> None:
        """Do something about bytes that have come, or that can go."""
        state = STATES[self.state]
        if not self.listens & state.waits_for:
            self.listen(0)  # They are early, and heard of again by the state that waits for them.
        else:
            self.take(state.go_on, self)

    def take(self, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step; what goes wrong in it ends this connection and nothing else."""
        try:
            if self.state != "closed":
                step(*arguments)
        except ssl.SSLError as error:  # TLS has said why, which is to be heard, whatever still arrives.
            self.server.failures.add(self.client or "-", why_refused(error))
            self.leaving = self.lingers = True
            self.take(self.write)
        except OSError:  # A client that hangs up is nothing to report.
            self.leave()
        except Exception:
            self.server.handle_error(self.socket, self.address)
            self.leave()

    # -- a stranger's handshake

    def shake(self) -> None:
        """Have the handshake go on with the bytes that have come."""
        data = self.socket.recv(READ_BYTES)
        self.handshake_reads += 1
        if not data:
            return self.give_up("hung up")
        self.opening = (self.opening + data)[:len(b"OPTIONS / HTTP/1.1")]
        if self.handshake_reads > MAX_HANDSHAKE_READS:
            return self.refuse("came in too many pieces")
        self.incoming.write(data)
        self.enter("computing")
        return self.server.compute(self)

    def take_up(self, outcome: Handshake) -> None:
        """Go on with what a handshake came to: wait for more of it, refuse it, or learn who the client is."""
        if time.monotonic() >= self.deadline:
            return self.give_up("timed out")
        if isinstance(outcome, ssl.SSLWantReadError):
            if not self.flush():
                raise ConnectionError("does not read")  # A new connection's buffers hold all that is said.
            return self.enter("handshake")
        if isinstance(outcome, Exception):
            return self.refuse(why_refused(outcome))
        try:
            room = self.server.admit(self, common_name(outcome))
        except ValueError as error:
            return self.refuse(str(error))
        self.started = time.monotonic()
        if not room:
            self.count_refusal("too many connections")
            return self.send(failed(unavailable(NO_ROOM)), keep=False)
        self.enter("idle")
        return self.advance()  # A first request may have come with the handshake's end.

    def give_up(self, reason: str) -> None:
        """End a stranger's connection without a word; one that was refused is counted already."""
        if self.state != "lingering":
            self.count_refusal(reason)
        self.close()

    def refuse(self, reason: str) -> None:
        """Count a handshake that failed, and let the stranger hear why: the alert, or in plain HTTP a 400."""
        self.count_refusal(reason)
        if plain := HTTP_REQUEST.match(self.opening):
            self.outgoing.read()
            self.unsent = response(failed(ApiError(400, NO_TLS)), keep=False, method=plain[1].decode())
        self.flush()
        self.linger()

    def count_refusal(self, reason: str) -> None:
        """Have a refused handshake counted and logged."""
        metrics.add("handshakes_refused_total", reason=reason)
        self.server.refusals.add(self.server.strangers[self], reason)

    # -- a client's requests

    def read(self) -> None:
        """Take up what has come, and answer what it completes."""
        if self.state == "idle":
            if self.server.over(self):
                return self.leave()
            self.started = time.monotonic()
        self.pull()
        return self.advance()

    def pull(self) -> bool:
        """Add a record to the buffer, with one read at most; return whether one was here. Raises OSError."""
        try:
            if not self.incoming.pending and not self.incoming.write(self.socket.recv(READ_BYTES)):
                raise ConnectionError("hung up")
            data = self.tls.read(MAX_RECORD_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        if not data:
            raise ConnectionError("said good-bye")
        self.buffer += data
        return True

    def advance(self) -> None:
        """Answer requests that have come whole, a few at most; then wait for the rest, or for one's turn."""
        for _ in range(REQUESTS_A_TURN):
            try:
                request = self.next_request()
            except ApiError as error:  # Nobody knows where the next request starts.
                return self.reject(error)
            if not request:
                return self.rest()
            self.request = request
            self.ask()
            if self.state != "idle":
                return None
        self.enter("pausing")
        return self.server.post(self.take, self.advance)

    def next_request(self) -> Request | None:
        """Take a request from what has come, or return None if there is no whole one. Raises ApiError."""
        while self.buffer or self.incoming.pending:
            if self.buffer and not self.head:
                self.head, self.buffer = take_head(self.buffer, self.searched)
                self.searched = 0 if self.head else len(self.buffer)
            if self.head:
                self.head, self.buffer, whole = take_body(self.head, self.buffer)
                if whole:
                    request, self.head = self.head, None
                    return request
            if not self.incoming.pending or not self.pull():
                break
        return None

    def rest(self) -> None:
        """Wait for the rest of a request, or for the next one: then the connection ends without loss."""
        state = "body" if self.head else "idle" if self.buffer in (b"", b"\r\n") else "head"
        if self.head and self.head.expects:
            self.tls.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.head = self.head._replace(expects=False)
        if not self.flush():
            self.enter("answering")
        elif state != self.state:  # What a state has been given is the time for all of it.
            self.enter(state)
        else:
            self.listen(selectors.EVENT_READ)

    def call(self, late: bool) -> Said | None:
        """Call the function that the request asks for. Raises ApiError, KubectlError."""
        if not self.client:
            raise ApiError(403, NAMELESS)
        function, parameters = route(self.request)
        self.user = parameters.get("user_id", "-")
        return function(self.server, Asked(self.client, self.started, late), **parameters)

    def ask(self, late: bool = False) -> None:
        """Ask the API; if it has no answer yet, again when the user's entry changes, and at the deadline."""
        outcome, cluster = outcome_of(functools.partial(self.call, late)), self.server.cluster
        if outcome:
            cluster.wait(self.entry, self, None)
            return self.answer(outcome)
        if self.state != "waiting":
            self.entry = slug(self.user)
            self.enter("waiting", self.started + CREATE_SECONDS)
            cluster.wait(self.entry, self, functools.partial(self.take, self.resume, self.ask_if_there))
        return None

    def ask_if_there(self) -> None:
        """Ask again, unless the client has gone: what it does not hear it is to be told when it is back."""
        self.leave_if_gone()
        if self.state != "closed":
            self.ask()

    def leave_if_gone(self) -> None:
        """End the connection if the client has hung up, without reading what else it may have sent."""
        poll = select.poll()
        poll.register(self.socket, getattr(select, "POLLRDHUP", select.POLLHUP))
        if poll.poll(0):
            self.leave()

    def answer(self, outcome: Outcome) -> None:
        """Log and count an answer, and send it; a refused heart beat's a moment later."""
        request, user = self.request, self.user
        self.request, self.user, self.entry = NO_REQUEST, "-", ""
        api, taken = api_name(request.path), time.monotonic() - self.started
        known = api if api in API else "-"  # What clients make up is no label.
        metrics.add("requests_total", api=known, status=str(outcome.status))
        metrics.add("request_seconds", taken, api=known)
        log.log(logging.WARNING if outcome.status >= 500 else logging.INFO, logfmt(
            "request", client=self.client or "-", method=request.method, api=api, user=user,
            status=outcome.status, ms=taken * 1000,
            **(outcome.answer if outcome.status >= 400 and isinstance(outcome.answer, dict) else {})))
        if api != "heart_beat" or outcome.status < 400:
            return self.send(outcome, request.keep_alive, request.method)
        self.enter("pausing")  # The plug-in repeats at once, for ever, what is not answered 200.
        send = functools.partial(self.send, outcome, request.keep_alive, request.method)
        return self.server.call_at(time.monotonic() + REFUSED_BEAT_SECONDS, self.take, self.resume, send)

    def resume(self, step: Step) -> None:
        """Take the step that was awaited, and then those requests that have come meanwhile."""
        step()
        if self.state == "idle":
            self.advance()

    def send(self, outcome: Outcome, keep: bool, method: str = "-") -> None:
        """Send an answer, the last one together with the good-bye."""
        self.leaving, self.lingers = not keep or self.server.over(self), not keep and outcome.status >= 400
        self.tls.write(response(outcome, not self.leaving, method))
        if self.leaving:
            self.say_good_bye()
        self.write()

    def write(self) -> None:
        """Send on; when all has gone, end the connection if that was its last answer."""
        if not self.flush():
            if self.state != "answering":
                self.enter("answering")
        elif not self.leaving:
            self.started = time.monotonic()
            self.enter("idle")
        elif self.lingers:
            self.linger()
        else:
            self.close()

    def complain(self) -> None:
        """Tell a client that its request did not arrive in time."""
        self.reject(ApiError(408, "the request did not arrive in time: send it again, faster"))

    def reject(self, error: ApiError) -> None:
        """Answer what is no whole request, the last one here; be it HEAD, without a body all the same."""
        match = HTTP_REQUEST.match(self.buffer)
        method = self.head.method if self.head else match[1].decode() if match else "-"
        self.request = NO_REQUEST._replace(method=method)
        self.answer(failed(error))

    # -- its end

    def say_good_bye(self) -> None:
        """Have TLS say that nothing follows; the client's own good-bye may come later, or never."""
        with contextlib.suppress(OSError):
            self.tls.unwrap()

    def leave(self) -> None:
        """End a connection, with a good-bye if it can take one now."""
        if self in self.server.clients:  # A stranger's TLS may be with a thread.
            self.say_good_bye()
            with contextlib.suppress(OSError):
                self.flush()
        self.close()

    def linger(self) -> None:
        """Let a refused client finish sending, within bounds: closing at once would reset the connection."""
        self.socket.shutdown(socket.SHUT_WR)
        self.enter("lingering")

    def drop(self) -> None:
        """Drop what a refused client is still sending."""
        data = self.socket.recv(MAX_RECORD_BYTES)
        self.dropped += len(data)
        if not data or self.dropped > LINGER_BYTES:
            self.close()

    def close(self) -> None:
        """Close the connection, whatever is in flight."""
        if self.state != "closed":
            self.enter("closed")
            self.listen(0)
            self.server.forget(self)
            self.server.close_request(self.socket)

    # -- what any state does

    def enter(self, name: str, deadline: float = 0.0) -> None:
        """Go over into a state: listen for what it waits for, until its deadline or another."""
        self.state, state = name, STATES[name]
        self.server.idle.pop(self, None)
        if name == "idle":
            self.server.idle[self] = None
        if deadline or state.seconds:
            self.deadline = deadline or time.monotonic() + state.seconds
            if self.deadline < self.alarm:  # Else the alarm that is set looks at the deadline when it rings.
                self.set_alarm(self.deadline)
        if state.waits_for:
            self.listen(state.waits_for)

    def listen(self, events: int) -> None:
        """Have the selector tell of these events."""
        if events == self.listens:
            return
        selector = self.server.selector
        if not self.listens:
            selector.register(self.socket, events, self.hear)
        elif events:
            selector.modify(self.socket, events, self.hear)
        else:
            selector.unregister(self.socket)
        self.listens = events

    def set_alarm(self, moment: float) -> None:
        """Have the alarm ring at a moment, if this is still there: 12,000 strangers' TLS would be 400 MB."""
        self.alarm, there = moment, weakref.ref(self)

        def ring() -> None:
            if connection := there():
                connection.ring()
        self.server.call_at(moment, ring)

    def ring(self) -> None:
        """Do what the state wants at its deadline, if that has come."""
        now, late = time.monotonic(), STATES[self.state].late
        if now < self.alarm:
            return  # The alarm was set anew for an earlier moment, and has rung.
        self.alarm = float("inf")
        if late and now >= self.deadline:
            self.take(late, self)
        if self.state != "closed" and self.alarm == float("inf"):
            self.set_alarm(self.deadline if self.deadline > now else now + LINGER_SECONDS)

    def flush(self) -> bool:
        """Send what there is to be sent, as far as the client takes it; return whether that was all."""
        if self.outgoing.pending:
            self.unsent += self.outgoing.read()
        if self.unsent:
            with contextlib.suppress(BlockingIOError):
                self.unsent = self.unsent[self.socket.send(self.unsent):]
        return not self.unsent


class State(NamedTuple):
    """One row of STATES; an event that a state does not wait for stays with the kernel until one does."""

    waits_for: int  # Of the selector's events.
    seconds: float  # For how long; 0 if the deadline of the state before goes on.
    go_on: Callable[..., object]  # Called by the selector's events; of those without, by who it waits for.
    late: Callable[[Connection], object] | None  # At the deadline.


READ, WRITE, NOTHING = selectors.EVENT_READ, selectors.EVENT_WRITE, 0
STATES = {
    "handshake": State(READ, 0, Connection.shake, lambda connection: connection.give_up("timed out")),
    # With one of the threads, or in their queue; take_up looks at the deadline.
    "computing": State(NOTHING, 0, Connection.take_up, None),
    # Nothing of a request is here. A client's only state that may be ended for others' sake.
    "idle": State(READ, IDLE_SECONDS, Connection.read, Connection.leave),
    "head": State(READ, HEAD_SECONDS, Connection.read, Connection.complain),
    "body": State(READ, BODY_SECONDS, Connection.read, Connection.complain),
    # For its user's entry in the cluster's table to change.
    "waiting": State(NOTHING, CREATE_SECONDS, Connection.ask_if_there,
                     lambda connection: connection.resume(lambda: connection.ask(late=True))),
    # For its turn, or for a refused heart beat's answer to leave.
    "pausing": State(NOTHING, 0, Connection.resume, None),
    "answering": State(WRITE, ANSWER_SECONDS, lambda connection: connection.resume(connection.write),
                       Connection.close),
    # Nothing more is said; what still comes is dropped.
    "lingering": State(READ, LINGER_SECONDS, Connection.drop, Connection.close),
    "closed": State(NOTHING, 0, Connection.close, None),
}


def shake_hands(tls: ssl.SSLObject) -> Handshake:
    """Go on with a handshake, as a thread; return the client's certificate at its end."""
    try:
        tls.do_handshake()
        return tls.getpeercert() or {}
    except Exception as error:
        return error


def network(address: str) -> str:
    """Return what a stranger cannot change at will: an IPv4 address, or an IPv6 address's /64."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((parsed, 64), strict=False))


def common_name(certificate: dict[str, Any]) -> str:
    """Return the certificate's common name, the client; empty unless there is exactly one, not empty."""
    names = [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
    return str(names[0]) if len(names) == 1 and names[0].strip() else ""


def why_refused(error: Exception) -> str:
    """Return why a handshake failed, in few words that are the same for the same reason."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return "hung up" if isinstance(error, OSError) else type(error).__name__


# Of k8s_templates/playground.yaml: it comes once a minute for ever, and an idle server's log is to be silent.
LIVENESS_PROBE = ("127.0.0.1", "peer did not return a certificate")


class Refusals:
    """Counts what TLS refused, by who it was and the reason, and logs it: see REFUSAL_LINES."""

    def __init__(self, event: str, outcome: str, who: str) -> None:
        self.event, self.outcome, self.who = event, outcome, who
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.told: set[tuple[str, str]] = set()
        self.ends = time.monotonic() + REFUSALS_SECONDS

    def add(self, who: str, reason: str) -> None:
        """Count one; it is logged by a later `flush`."""
        known = len(self.counts) < MAX_REFUSALS or (who, reason) in self.counts
        self.counts[who if known else "others", reason] += 1

    def flush(self, everything: bool = False) -> None:
        """Log who is refused for the first time and, when the time is up or everything is to be told, all."""
        if everything or time.monotonic() >= self.ends:
            self.told.clear()
            self.ends = time.monotonic() + REFUSALS_SECONDS
            self.tell(REFUSAL_LINES)
            rest: collections.Counter[tuple[str, str]] = collections.Counter()
            for (_, reason), count in self.counts.items():
                rest["others", reason] += count
            self.counts = rest
            self.tell(len(rest))
            self.told.clear()
        else:
            self.tell(REFUSAL_LINES - len(self.told))

    def tell(self, lines: int) -> None:
        """Log so many of those that were not told of, most refused first."""
        fresh = [(key, count) for key, count in self.counts.most_common() if key not in self.told]
        for (who, reason), count in fresh[:max(lines, 0)]:
            log.log(logging.DEBUG if (who, reason) == LIVENESS_PROBE else logging.INFO, logfmt(
                self.event, outcome=self.outcome, **{self.who: who}, reason=reason, count=count))
            self.told.add((who, reason))
            del self.counts[who, reason]


# ---- HTTP: RFC 9112, strictly; functions of bytes, without a socket or a clock -------------------------

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
# Without the white space around the value: a pattern with it would try each split of a long run of spaces.
HEADER_FIELD = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# The absolute form and the origin form (section 3.2): path and query. Raw bytes above 0x7f, and others in a
# query, are no part of a URI: the notebook plug-in sends what it was given, and the API says what is wrong.
TARGET = re.compile(rb"(?:(?i:https?)://" + HOST.pattern.encode() + rb"(?=[/?]|\Z)|(?=/))"
                    rb"((?:[A-Za-z0-9._~!$&'()*+,;=:@/\x80-\xff-]|%[0-9A-Fa-f]{2})*)(?:\?([^#]*))?")
# A line feed without its carriage return, a carriage return without its line feed, a NUL. A carriage
# return at the end of what has come so far may still get its line feed.
BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
LENGTH = re.compile("[0-9]{1,16}")
# A size and extensions (section 7.1), which are for nobody here.
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + TOKEN
                        + rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"))?)*')
CHUNKED = -1
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
HTTP_REQUEST = re.compile(rb"(?:\r\n)?(" + "|".join(METHODS).encode() + rb") ")


class Request(NamedTuple):
    """One request. `query` and the header fields' values are as sent, undecoded but for Latin-1."""

    method: str
    path: str
    query: bytes
    headers: dict[str, str]
    length: int  # Of the body, in bytes; CHUNKED if that is said piece by piece.
    keep_alive: bool
    expects: bool  # To be told to send the body (RFC 9110, section 10.1.1).
    body: bytes = b""


NO_REQUEST = Request("-", "-", b"", {}, 0, keep_alive=False, expects=False)  # As the log has it.


def take_head(buffer: bytes, searched: int = 0) -> tuple[Request | None, bytes]:
    """Return the request whose head starts what has come, or None if it has not ended, and the rest.

    `searched` is how many bytes are known to hold no end. Raises ApiError as soon as the head is beyond help.
    """
    start = 2 if buffer.startswith(b"\r\n") else 0  # One empty line is to be ignored (section 2.2).
    end = buffer.find(b"\r\n\r\n", max(searched - 3, start))
    if end < 0 and len(buffer) <= MAX_HEAD_BYTES + start and not BARE.search(buffer, max(searched - 1, 0)):
        return None, buffer
    return parse_head(buffer[start:end] if end >= 0 else buffer[start:]), buffer[end + 4:]


def parse_head(head: bytes) -> Request:
    """Parse a request line and header fields (RFC 9112, sections 2 to 6). Raises ApiError."""
    request_line, *lines = head.split(b"\r\n")
    if len(request_line) > MAX_REQUEST_LINE_BYTES:
        raise ApiError(414, f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes")
    if len(head) > MAX_HEAD_BYTES or len(lines) > MAX_HEADER_FIELDS:
        raise ApiError(431, f"the head is longer than {MAX_HEAD_BYTES} bytes or has more than "
                            f"{MAX_HEADER_FIELDS} header fields")
    match, fields = REQUEST_LINE.fullmatch(request_line), [HEADER_FIELD.fullmatch(line) for line in lines]
    if not match or not all(fields) and BARE.search(head):
        raise ApiError(400, "not an HTTP/1.1 request: expected a line such as GET /api/status HTTP/1.1, "
                       "lines ended by CR LF")
    method, target = match[1].decode(), match[2]
    if match[3] != b"1":
        raise ApiError(505, "this server speaks HTTP/1.1")
    headers: dict[str, str] = {}
    for field in fields:
        if not field:
            raise ApiError(400, "a header field is malformed: expected Name: value, on one line, no space "
                           "before the colon")
        name, value = field[1].decode().lower(), field[2].strip(b" \t").decode("latin-1")
        if name in headers and name in ("host", "content-length", "transfer-encoding", "expect"):
            raise ApiError(400, f"the header field {name} came twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    http_1_1 = match[4] != b"0"
    if not http_1_1:
        headers.pop("expect", None)  # Such a client knows no 100 (RFC 9110, section 10.1.1).
    if http_1_1 and "host" not in headers or not HOST.fullmatch(headers.get("host", "-")):
        raise ApiError(400, "the header field Host is missing or malformed: expected the server's name "
                            "and port")
    coding = headers.get("transfer-encoding")
    if coding is not None and ("content-length" in headers or not http_1_1):
        # Another reader than this one may see another end of the body (section 6.1).
        raise ApiError(400, "Transfer-Encoding excludes Content-Length, and HTTP/1.0: send one of the two")
    if coding is not None and coding.lower() != "chunked":
        ends = coding.lower().rpartition(",")[2].strip(" \t") == "chunked"  # Else nobody knows where.
        raise ApiError(501 if ends else 400, "the only Transfer-Encoding known here is chunked")
    length = headers.get("content-length", "0")
    if not LENGTH.fullmatch(length):
        raise ApiError(400, "Content-Length is malformed: expected one decimal number")
    if int(length) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    if method not in METHODS:
        raise ApiError(501, "this method is not known here: use GET or POST")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise ApiError(417, "the only expectation known here is 100-continue")
    form = TARGET.fullmatch(target)
    if not form:
        raise ApiError(400, "the request's target is malformed: expected a path, or https://, host and path")
    options = [option.strip().lower() for option in headers.get("connection", "").split(",")]
    # Whoever leaves a length out may send a body all the same, which is no next request.
    bounded = method in ("GET", "HEAD") or coding is not None or "content-length" in headers
    keep_alive = bounded and "close" not in options and (http_1_1 or "keep-alive" in options)
    return Request(method, (form[1] or b"/").decode("latin-1"), form[2] or b"", headers,
                   int(length) if coding is None else CHUNKED, keep_alive, "expect" in headers)


def take_body(request: Request, buffer: bytes) -> tuple[Request, bytes, bool]:
    """Take what has come of a request's body; return both, and whether that was all. Raises ApiError."""
    if request.length == CHUNKED:
        return take_chunks(request, buffer)
    if not request.length:
        return request, buffer, True
    if len(buffer) < request.length:
        return request, buffer, False
    return request._replace(body=buffer[:request.length]), buffer[request.length:], True


def take_chunks(request: Request, buffer: bytes) -> tuple[Request, bytes, bool]:
    """Take the chunks of a body that have come whole (section 7.1), as take_body."""
    body, at = bytearray(request.body), 0
    while (line := take_line(buffer, at, b"\r\n")) is not None:
        match, start = CHUNK_LINE.fullmatch(line), at + len(line) + 2
        size = int(match[1], 16) if match else 0
        if len(body) + size > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
        if match and not size:
            trailer = take_line(buffer, start - 2, b"\r\n\r\n")
            if trailer is None:
                break
            # These fields come after all that they could have a say in: they are dropped.
            if all(HEADER_FIELD.fullmatch(field) for field in trailer.split(b"\r\n")[1:]):
                return request._replace(body=bytes(body)), buffer[start + len(trailer) + 2:], True
        stop = start + size
        if not size or buffer[stop:stop + 2] not in (b"\r\n", b"\r", b""):
            raise ApiError(400, MALFORMED_CHUNKS)
        if len(buffer) < stop + 2:
            break
        body += buffer[start:stop]
        at = stop + 2
    return request._replace(body=bytes(body)), buffer[at:], False


def take_line(buffer: bytes, at: int, mark: bytes) -> bytes | None:
    """Return what stands before a mark, or None if that has not come. Raises ApiError, as take_head does."""
    end = buffer.find(mark, at)
    line = buffer[at:end] if end >= 0 else buffer[at:]
    if len(line) > MAX_CHUNK_LINE_BYTES or BARE.search(line):
        raise ApiError(400, MALFORMED_CHUNKS)
    return line if end >= 0 else None


def response(outcome: Outcome, keep: bool, method: str = "-") -> bytes:
    """Return an answer in HTTP/1.1; to HEAD without its body (RFC 9110, section 9.3.2)."""
    is_text = isinstance(outcome.answer, str)
    content = str(outcome.answer) if is_text else json.dumps(outcome.answer) + "\n"
    more = "".join(f"{name}: {value}\r\n" for name, value in outcome.headers.items())
    head = (f"{first_lines(outcome.status, is_text, keep)}Date: {outcome.date}\r\n{more}"
            f"Content-Length: {len(content.encode())}\r\n\r\n")
    return (head if method == "HEAD" else head + content).encode()


@functools.lru_cache(64)
def first_lines(status: int, is_text: bool, keep: bool) -> str:
    """Return what is the same in all answers of a kind."""
    kind = "text/plain; version=0.0.4; charset=utf-8" if is_text else "application/json"
    kept = f"keep-alive\r\nKeep-Alive: timeout={IDLE_SECONDS:.0f}" if keep else "close"
    return (f"HTTP/1.1 {status} {http.client.responses[status]}\r\nContent-Type: {kind}\r\n"
            f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: {kept}\r\n")


# ---- The API -------------------------------------------------------------------------------------------

Said = Union[dict[str, Any], str]  # What becomes JSON, or text as it is.
USER_ID_RULE = (f"a user_id is 1 to {MAX_USER_ID_CHARACTERS} letters, marks and decimal digits of any script "
                "and . _ @ -, and starts with a letter or digit")
PLAIN_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_USER_ID_CHARACTERS - 1}}}")
NO_TLS = "this server speaks HTTPS: ask for https:// instead"
NAMELESS = ("the client certificate has no common name (CN) or several, which says who you are: have another "
            "one made")
LOST = "the database was lost in the cluster, and its data went with it: this is a new one"
MOVED = "the database has moved to another address: use this data source from now on"
PASSWORD_LOST = ("the Secret of this user's database was deleted, and the password of the data with it: the "
                 "maintainer can put it back; delete_db gives the data up")
OTHER_TEMPLATE = ("this user's data is on a volume, which this server's template does not have: its "
                  "maintainer can start it with --db_template=mysql-persistent.yaml; delete_db gives it up")
NO_ADDRESS = ("the database has no IPv4 address, and SQLFlow takes no other: its maintainer can use a "
              "template with a Service, which has a name")
NO_PASSWORD = ("the database's Secret has no password that SQLFlow can take: delete_db and create_db make "
               "another one")
FOREIGN = ("the cluster has a {} {} without this playground's labels: use another user_id, or ask the "
           "maintainer to rename it, or to label it again if it was ours")
STARTING = "the database is starting: ask again, its creation goes on"
STAYS = ("the user's Lease was deleted from the cluster and does not go: ask again; if it stays, its "
         "maintainer finds why with kubectl get --output=yaml")
NOT_YOURS = "this user_id belongs to another client"
MALFORMED_CHUNKS = ("the body's chunks are malformed: expected a size in hexadecimal digits, CR LF, as many "
                    "bytes, and CR LF")
NO_ROOM = "too many connections: close idle ones, or ask again later"


class ApiError(Exception):
    """What a client is told: a status, a sentence that says what to do, and header fields."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Outcome(NamedTuple):
    """What became of a request."""

    status: int
    answer: Said
    headers: dict[str, str]
    date: str


class Asked(NamedTuple):
    """Who asks, since when (by time.monotonic), and whether an answer is due, be it that there is none."""

    client: str
    started: float
    late: bool


def outcome_of(function: Callable[[], Said | None]) -> Outcome | None:
    """Call what a request asks for, which may not know yet; an exception becomes the answer that says so."""
    try:
        answer = function()
        return None if answer is None else Outcome(200, answer, {}, http_date(int(time.time())))
    except ApiError as error:
        return failed(error)
    except KubectlError as error:
        return failed(told(error))
    except Exception:
        log.error(logfmt("request", error=traceback.format_exc()))
        return failed(ApiError(500, "this server failed: its maintainer's log says why"))


def failed(error: ApiError) -> Outcome:
    """Return an error as an answer. Who was told in one moment to come back does not come in one moment."""
    headers = {name: str(random.randint(int(value), int(value) * 3 // 2)) if name == "Retry-After" else value
               for name, value in error.headers.items()}
    return Outcome(error.status, {"error": error.message}, headers, http_date(int(time.time())))


# As RFC 9110, section 5.6.7, wants it; the answers of a second share it.
http_date = functools.lru_cache(1)(functools.partial(email.utils.formatdate, usegmt=True))


def unavailable(message: str, seconds: int = 5) -> ApiError:
    """Return a 503 that asks the client to come back in so many seconds (RFC 9110, section 10.2.3)."""
    return ApiError(503, message, Retry_After=str(seconds))


# What a client is told of a kubectl that failed, by its reason: the status, and none of its own words.
SENTENCES: dict[str, tuple[int, str]] = {
    "quota": (429, "the cluster's quota is used up: ask again when others have left, or ask the maintainer "
              "for more"),
    "policy": (502, "the cluster's policy refuses the database: its maintainer's log says which"),
    "exists": (409, "the object exists already"),
    "ending": (502, "the server's namespace is being deleted from the cluster: its maintainer must create it "
               "anew"),
    "cut": (503, "the connection to the cluster was cut: ask again"),
    "unreachable": (503, "the cluster does not answer: ask again"),
    "no dry run": (502, "the cluster cannot try this out: its maintainer's log says why"),
    "invalid": (502, "the cluster refuses the database's objects as invalid: its maintainer must correct the "
                "template"),
    "forbidden": (502, "this server lacks a right in the cluster: its maintainer must grant it"),
    "not found": (502, "the server's namespace is not in the cluster: its maintainer must create it"),
    "conflict": (503, "the object was changed meanwhile: ask again"),
    "expired": (503, "the cluster's history is being read anew: ask again"),
    "starting": (503, "this server does not know the cluster yet: ask again"),
    "template": (502, "the cluster refuses this server's template: its maintainer must correct it, and start "
                 "the server again"),
    "timeout": (503, "the cluster does not answer in time: ask again"),
    "missing": (503, "this server cannot run kubectl: its maintainer must see to it"),
    "failed": (502, "the cluster failed to do this: its maintainer's log says why"),
}


def told(error: KubectlError) -> ApiError:
    """Return what a client is told of a kubectl that failed."""
    status, message = SENTENCES[error.reason]
    wait = {429: "60", 503: "5"}.get(status)
    return ApiError(status, message, **({"Retry_After": wait} if wait else {}))


def route(request: Request) -> tuple[Callable[..., Said | None], dict[str, str]]:
    """Look a request up in the API; return its function and its parameters. Raises ApiError."""
    refuse_web_pages(request)
    name = api_name(request.path)
    if name not in API:
        known = ", ".join(f"{one[0]} {path_of(api)}" for api, one in API.items())
        raise ApiError(404, f"there is no {json.dumps(request.path[:80])} here, but {known}: GET / says more")
    method, function, takes = API[name]
    name = "/" if name == "index" else name
    allowed = [method, "HEAD"] if method == "GET" else [method]
    if request.method not in allowed:
        raise ApiError(405, f"{name} takes {method}", Allow=", ".join(allowed))
    if method == "POST" and not request.headers.keys() & {"content-length", "transfer-encoding"}:
        raise ApiError(411, "Content-Length is missing: send the body's length in bytes")
    if request.query if method == "POST" else request.body:
        raise ApiError(400, f"{name} takes {'a JSON body and no query' if method == 'POST' else 'no body'}")
    given = read_json(request.body) if method == "POST" else read_query(request.query)
    if set(given) != set(takes):
        unknown = ", ".join(json.dumps(key[:80]) for key in [key for key in given if key not in takes][:5])
        wanted = ", ".join(takes) or "no parameters"
        raise ApiError(400, f"{name} takes {wanted}, not {unknown}" if unknown
                       else f"{name} takes {wanted}, which is missing")
    return function, {key: valid_user_id(value) for key, value in given.items()}


def api_name(path: str) -> str:
    """Return what a path asks for. The plug-in puts /api/ behind an address that may end in a slash."""
    path = path[1:] if path.startswith("//") else path
    return path[len("/api/"):] if path.startswith("/api/") else "index" if path == "/" else "-"


def path_of(name: str) -> str:
    """Return the path of an API."""
    return "/" if name == "index" else f"/api/{name}"


def refuse_web_pages(request: Request) -> None:
    """Raise ApiError 403 if a page of another site has a browser ask (W3C Fetch Metadata, section 2).

    A browser shows the certificate whoever asks; no other client sends these two header fields.
    """
    def same(authority: str) -> str:
        return authority.lower().removesuffix(":443")

    origin = request.headers.get("origin")
    if (request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            or origin is not None and same(origin) != "https://" + same(request.headers.get("host", ""))):
        raise ApiError(403, "a web page of another site may not use this server: open the page from this "
                            "server's own address, or have its own server ask")


def read_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object (RFC 8259) that repeats no name. Raises ApiError 400."""
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        refuse_repeated([name for name, _ in pairs])
        return dict(pairs)

    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, 'the body is malformed: expected a JSON object in UTF-8 such as '
                            '{"user_id": "alice"}')
    return value


def read_query(query: bytes) -> dict[str, Any]:
    """Read a query's parameters, percent-encoded or raw UTF-8. Raises ApiError 400."""
    pairs: list[tuple[str, str]] = []
    for pair in query.split(b"&") if query else []:
        if b"+" in pair:
            raise ApiError(400, "the query has a plus sign, which some take for a space: send %2B or %20")
        name, equals, value = pair.partition(b"=")
        if b"%" in pair:
            name, value = urllib.parse.unquote_to_bytes(name), urllib.parse.unquote_to_bytes(value)
        try:
            pairs.append((name.decode("utf-8"), value.decode("utf-8")))
        except UnicodeDecodeError:
            equals = b""
        if not equals or b"%" in pair and re.search(rb"%(?![0-9A-Fa-f]{2})", pair):
            raise ApiError(400, "the query is malformed: expected name=value, in UTF-8 or percent-encoded")
    refuse_repeated([name for name, _ in pairs])
    return dict(pairs)


def refuse_repeated(names: list[str]) -> None:
    """Raise ApiError 400 if a name comes twice: one reader would take its first value, another the last."""
    if len(set(names)) != len(names):
        name = collections.Counter(names).most_common(1)[0][0]
        raise ApiError(400, f"{json.dumps(name[:80])} came twice: expected it once")


def valid_user_id(text: object) -> str:
    """Return the user id normalised to NFC. Raises ApiError 400 unless it keeps to USER_ID_RULE."""
    if isinstance(text, str) and PLAIN_ID.fullmatch(text):  # As most are, at a tenth of the price.
        return text
    short = isinstance(text, str) and len(text) <= 4 * MAX_USER_ID_CHARACTERS
    user_id = unicodedata.normalize("NFC", str(text)) if short else ""
    # By category: isalnum() is true for '²'.
    kinds = ["." if character in "._@-" else unicodedata.category(character) for character in user_id]
    allowed = all(kind[0] in ".LM" or kind == "Nd" for kind in kinds)
    if not 0 < len(user_id) <= MAX_USER_ID_CHARACTERS or not allowed or kinds[0][0] in ".M":
        raise ApiError(400, f"user_id is malformed: {USER_ID_RULE}")
    return user_id


def index(server: Server, asked: Asked) -> Said | None:
    """Say what there is here, and what each API takes."""
    return {"name": "SQLFlow Playground Server", "version": __version__, "apis": [
        {"method": method, "path": path_of(name), "takes": dict.fromkeys(takes, USER_ID_RULE),
         "does": (function.__doc__ or "").partition("\n")[0]}
        for name, (method, function, takes) in API.items()],
        "guides": "docs/ in this server's repository: user.md, frontend.md, maintainer.md, openapi.yaml"}


def create_db(server: Server, asked: Asked, user_id: str) -> Said | None:
    """Answer with the user's database, made if there is none, once it takes queries."""
    return server.cluster.create(user_id, asked.client, asked.started, asked.late)


def heart_beat(server: Server, asked: Asked, user_id: str) -> Said | None:
    """Take a beat, for a database or none, but not for another client's."""
    return {"user_id": user_id, **server.cluster.beat(user_id, asked.client)}


def delete_db(server: Server, asked: Asked, user_id: str) -> Said | None:
    """Remove the user's database and its data, if there is one."""
    gone = server.cluster.delete(user_id, asked.client, asked.started, asked.late)
    return {"user_id": user_id, "status": "absent"} if gone else None


def list_db(server: Server, asked: Asked) -> Said | None:
    """List the caller's own databases."""
    databases = server.cluster.databases_of(asked.client, asked.late)
    return None if databases is None else {"databases": databases}


def status(server: Server, asked: Asked) -> Said | None:
    """Say which version runs since when, whether the cluster answers, and how many spares are ready."""
    return {"version": __version__, "uptime_seconds": int(time.monotonic() - server.started),
            **server.cluster.status()}


def tell_metrics(server: Server, asked: Asked) -> Said | None:
    """Return what Prometheus scrapes. It names no user and no client."""
    connections: dict[str, float] = {"handshake": len(server.strangers), "idle": len(server.idle),
                                     "busy": len(server.clients) - len(server.idle)}
    families: dict[str, tuple[str, dict[str, float]]] = {
        "connections": ("state", connections), "databases": ("status", server.cluster.count()),
        "certificate_expiry_timestamp_seconds": ("file", server.tls.expiries),
        "build_info": ("version", {__version__: 1})}
    gauges: Samples = {family: {((label, value),): number for value, number in numbers.items()}
                       for family, (label, numbers) in families.items()}
    gauges["cluster_synchronised"] = {(): float(server.cluster.status()["cluster"] == "ok")}
    gauges["last_beat_write_timestamp_seconds"] = {(): server.cluster.sweep.beats_written_at}
    gauges["log_lines_dropped_total"] = {(): LogQueue.dropped}
    return metrics.text(gauges)


API: dict[str, tuple[str, Callable[..., Said | None], tuple[str, ...]]] = {
    "index": ("GET", index, ()),
    "create_db": ("POST", create_db, ("user_id",)),
    "heart_beat": ("GET", heart_beat, ("user_id",)),
    "delete_db": ("POST", delete_db, ("user_id",)),
    "list_db": ("GET", list_db, ()),
    "status": ("GET", status, ()),
    "metrics": ("GET", tell_metrics, ()),
}


# ---- The cluster: what is seen of leases and databases, and what a user gets by it ---------------------

PREFIX = "playground.sqlflow.org/"
DATABASE, USER = PREFIX + "database", PREFIX + "user"  # Labels.
# Annotations, of a lease and, the last three and CLIENT, of other objects. REPLACES: its user is still to be
# told that the database before was lost. ENDS: its volume is being deleted, and it goes last. ACQUIRED is the
# lease's acquireTime, by which a user's Secret is known to have been given under this lease, not under one of
# the same name that has ended. PASSWORD_HASH is of what has the data, claim and Pod, and of what leads to it:
# a Secret with another password is not its own.
USER_ID, CLIENT, ADDRESS, KEPT, ENDS, REPLACES, TEMPLATE, ACQUIRED, PASSWORD_HASH = (
    PREFIX + name for name in ("user-id", "client", "address", "kept", "ends", "replaces", "template",
                               "acquired", "password-hash"))
OURS = {"app.kubernetes.io/managed-by": "sqlflow-playground"}
SELECTOR = ",".join(f"{name}={value}" for name, value in OURS.items())
NOBODY = "Nobody"  # Whose a spare is that is being removed: no slug has a capital.
# By kind, the resource and its API's version, in the order of creation: a Pod starts with the Secret that is
# there. Deleted they are the other way round: a Pod never starts again without its Secret.
KINDS = {"Lease": ("leases", "coordination.k8s.io/v1"), "Secret": ("secrets", "v1"),
         "PersistentVolumeClaim": ("persistentvolumeclaims", "v1"), "Service": ("services", "v1"),
         "Pod": ("pods", "v1")}
# The rights that the server needs in its namespace, and to what else a template has.
# k8s_templates/playground.yaml grants them and says what for.
RIGHTS = {"leases.coordination.k8s.io": ("get", "list", "watch", "create", "update", "patch", "delete"),
          "secrets": ("get", "list", "watch", "create", "update", "delete"),
          "pods": ("get", "list", "watch", "create", "delete")}
MORE_RIGHTS = ("get", "list", "watch", "create", "delete")
OLDEST_KUBECTL = 1, 20
SAMPLE_DATA = "playground-sample-data"  # The ConfigMap that the templates mount, if it is there.
SECONDS = "%Y-%m-%dT%H:%M:%S"  # RFC 3339, but for the fraction and the zone.
# What went wrong with a request for good: asking again at once would not help. After others it is not known
# whether the objects were made; the watches will tell.
REFUSALS = ("quota", "policy", "invalid", "forbidden", "ending")


class Cluster:
    """The table of one namespace: what is seen goes in, requests are answered from it, what lacks is ordered.

    All of it is the loop's, and so are Health, Spares and Sweep: threads run ApiServer and Watch alone. Clock
    and randomness can be given to it. Whoever has to wait is asked again when the user's entry changes.

    How a user stands     lease, Secret and Pod                                    create_db
    absent                no lease                                                 gives a database
    free                  the lease names a database whose Secret is a spare's     completes the gift
    ready, starting       lease and Secret name each other, the Pod is so          answers, waits
    lost                  Pod gone, or the Secret another's, or both gone          points the lease at another
    bare                  the Secret deleted by hand                               puts it back, else as lost
    kept                  ended but for its volume                                 renews the lease
    lacking, going        parts of a persistent database are not there, or ending  makes them, waits
    over                  such a part has ended for good, or is another Secret's   deletes it
    ending                delete_db was cut short in a persistent database         goes on with it
    """

    def __init__(self, kubectl: Kubectl, template: Template, settings: Settings) -> None:
        self.kubectl, self.template, self.settings = kubectl, template, settings
        self.kinds = ["Lease", *template.kinds]
        self.loop: Any = None  # The Server, which sets it.
        self.clock: Callable[[], float] = time.monotonic
        self.wall: Callable[[], float] = time.time
        self.random = random.Random()
        self.users: dict[str, User] = {}  # By slug.
        self.databases: dict[str, Database] = {}  # By id.
        # By databases' ids, the slugs of the leases that name them.
        self.holders: dict[str, dict[str, None]] = {}
        self.by_client: dict[str, dict[str, User]] = collections.defaultdict(dict)
        self.counts: collections.Counter[str] = collections.Counter()  # Of users, by status.
        self.changed: dict[str, None] = {}  # Slugs of users who are to be looked at: see `settle`.
        self.waiting: dict[str, dict[object, Step]] = {}  # By slug, who is to be asked again.
        self.versions = dict.fromkeys(KINDS, 0)  # As far as each watch has told.
        self.unseen: dict[str, set[str]] = {}  # By kind, what a listing has not shown yet.
        self.api = ApiServer(kubectl, self.kinds)
        self.making = Group(self, self.api.carry_out, self.carried_out, GROUP_USERS, MAKING_KUBECTLS)
        self.ending = Group(self, self.api.carry_out, self.carried_out, GROUP_ENDS, 2)
        self.looking = Group(self, self.api.look_at, self.looked, 2 * GROUP_USERS, 2)
        self.health, self.spares, self.sweep = Health(self), Spares(self), Sweep(self)

    # -- what the API asks

    def create(self, user_id: str, client: str, started: float, late: bool) -> dict[str, Any] | None:
        """Return the user's data source, or None if it is not there yet. Raises ApiError, KubectlError."""
        if not self.health.known(self.kinds, late):
            return None
        user = self.user(slug(user_id))
        if user.lease:
            check_owner(user.lease, user_id, client)
            user.heard_at, user.unwritten = self.clock(), True
        # Another server may be about to end what was not written for so long.
        overdue = 0 < self.settings.idle_timeout < self.clock() - user.written_at
        ready = self.standing(user) == "ready" and not (user.order and user.order.is_end())
        if ready and not overdue:
            return self.answer(user)
        if user.failure:
            raise user.failure[0]
        if ready and not user.order and not user.stale:
            self.renew(user)
        if late:
            raise self.why_not_ready(user)
        self.advance(user, user_id, client, started)
        return None

    def advance(self, user: User, user_id: str, client: str, started: float) -> None:
        """Order what brings a user nearer to a database, if anything. Raises ApiError, KubectlError."""
        lease, standing = user.lease, self.standing(user)
        if user.order or user.failure or user.stale or self.clock() < user.not_before:
            return
        if lease:
            check_owner(lease, user_id, client)
        wish = functools.partial(self.advance, user, user_id, client, started)
        database = self.databases.get(lease.holder if lease else f"user-{user.slug}")
        if standing == "absent" and database and database.has_lost_its_password():
            standing = "bare"  # On a volume without its lease.
        lacks = standing in ("absent", "lost", "bare", "lacking")
        unsure = (user.foreign or standing in ("ending", "over")
                  or lacks and (standing != "absent" or database or self.template.persistent))
        if unsure and user.looked_at < max(started, user.changed_at):
            self.look(user, wish)  # The watches may be late, one behind the other, or know nothing of claims.
            return
        if database and not lease:
            check_volume(database, client)
        if user.foreign and lacks:
            raise ApiError(409, user.foreign)
        if standing == "free":
            self.claim(user)
        elif standing == "kept":
            self.renew(user)
        elif standing == "ending":
            self.end(user)
        elif standing == "over":
            self.clear(user)
        elif standing == "bare" and database and database.record and database.is_of(user.slug, lease):
            self.put_back(user, database.record)
        elif standing == "bare" and database and is_persistent(database.id):
            raise ApiError(409, PASSWORD_LOST)
        elif standing == "lacking" and not self.template.persistent:
            raise ApiError(409, OTHER_TEMPLATE)
        elif lacks and self.health.known(("template",), late=False):
            never_seen = (standing == "lost" and not (database and database.had_pod)
                          and not (lease and lease.holder == user.missed))
            until = user.leased_at + HALF_MADE_SECONDS
            if never_seen and self.clock() < until:  # Somebody is making it, or was interrupted.
                self.loop.call_at(until, self.touch, user)
            elif never_seen and user.looked_at < until:
                self.look(user, wish)  # What was read before the wait does not count.
            else:
                if not lease:
                    self.check_limits(client)
                self.give(user, user_id, client)

    def delete(self, user_id: str, client: str, started: float, late: bool) -> bool:
        """Order the end of a user's database; return whether there is none. Raises ApiError, KubectlError."""
        if not self.health.known(self.kinds, late):
            return False
        user = self.user(slug(user_id))
        if user.lease:
            check_owner(user.lease, user_id, client)
        if user.failure and user.failure[1] <= self.clock():  # Else it is one of creating.
            raise user.failure[0]
        rest = self.rest(user)
        if user.gone_at >= started and not rest and not (user.foreign and not user.lease):
            return True
        if user.looked_at >= started and user.foreign and not user.lease:
            raise ApiError(409, user.foreign)
        if late:
            raise unavailable("the cluster did not answer in time: ask again")
        user.wish = None
        database = self.database_of(user)
        # What goes has its id, which is never used again, and a lease that has changed does not go: a late
        # table does no harm. Of a volume, all that there is has to be known.
        sure = database and database.is_of(user.slug, user.lease) and not is_persistent(database.id)
        if user.order or user.stale:
            return False
        if not sure and user.looked_at < max(started, user.changed_at):
            self.look(user)
        elif user.lease:
            self.end(user)
        elif rest:
            self.end_rest(user, rest, user_id, client)
        return False

    def beat(self, user_id: str, client: str) -> dict[str, Any]:
        """Remember that a user was heard; say how the database is. Raises ApiError of another client's."""
        user = self.users.get(slug(user_id))
        if user and user.lease:
            check_owner(user.lease, user_id, client)
            user.heard_at, user.unwritten = self.clock(), True
        if not self.health.is_listed():
            if len(self.sweep.early_beats) < MAX_EARLY_BEATS:
                self.sweep.early_beats[user_id, client] = None
            return {"status": "unknown"}
        status = self.status_of(user) if user else "absent"
        database = self.database_of(user) if user else None
        moved = status == "ready" and user and database and self.has_moved(user, self.address(database.id))
        # One that starts as it should says nothing more.
        why = database.pod.why if status == "starting" and database and database.pod else STARTING
        return {"status": "absent" if status == "kept" else status, **({"moved": True} if moved else {}),
                **({"reason": why} if why not in ("", STARTING) else {})}

    def databases_of(self, client: str, late: bool) -> list[dict[str, Any]] | None:
        """Return a client's databases by user id, or None if they are not known. Raises KubectlError."""
        if not self.health.known(self.kinds, late):
            return None
        users = [user for user in self.by_client.get(client, {}).values() if user.lease]
        return sorted(({"user_id": user.lease.user_id if user.lease else "", "status": self.status_of(user),
                        "last_heart_beat": self.last_beat(user)} for user in users),
                      key=lambda one: one["user_id"])

    def status(self) -> dict[str, Any]:
        """Say whether the cluster answers, in words fit for a client, and how many spares are ready."""
        trouble = self.health.trouble()
        ready = sum(one.is_spare() and one.takes_queries() for one in self.spares.free.values())
        return {"cluster": SENTENCES[trouble][1] if trouble else "ok", "spares_ready": ready,
                **({"spares_trouble": self.spares.trouble} if self.spares.trouble else {})}

    def count(self) -> dict[str, float]:
        """Return how many databases are ready, are starting, are kept, and are spare."""
        return {**{status: float(self.counts[status]) for status in ("ready", "starting", "kept")},
                "spare": float(len(self.spares.free))}

    # -- how a user stands

    def status_of(self, user: User) -> str:
        """Return what a client is told: ready, starting, kept or absent."""
        standing = self.standing(user)
        if standing == "absent":
            return "starting" if user.coming else "absent"
        told = {"ready": "ready", "kept": "kept", "lost": "absent", "ending": "absent"}
        return told.get(standing, "starting")

    def standing(self, user: User) -> str:
        """Return how a user's lease, Secret and Pod stand to each other, as the class' table has it."""
        if not user.lease:
            return "absent"
        if user.lease.ends or user.lease.kept:
            return "ending" if user.lease.ends else "kept"
        database, objects = self.database_of(user), self.parts(user.lease.holder)
        if is_persistent(user.lease.holder):
            if database and database.has_lost_its_password():
                return "bare"
            if database and database.misfits():
                return "over"
            if any(part.gone for kind, part in objects.items() if kind != "Secret"):
                return "going"
            if not {"Secret", "Pod", *self.template.kinds} <= objects.keys():
                return "lacking"
        taken = database and database.secret and database.secret.user
        if not database or taken and not database.is_of(user.slug, user.lease):
            return "lost"
        if database.secret and not database.secret.user:  # Once given, it is nobody else's, label or not.
            theirs = database.secret.is_free() or database.is_of(user.slug, user.lease)
            return "free" if theirs and not database.going else "lost"
        if not database.pod or database.pod.gone:
            return "lost"
        if not database.secret:
            return "bare"
        settled = database.ready_since + (SERVICE_SECONDS if "Service" in objects else 0)
        if database.takes_queries() and self.clock() < settled:
            self.loop.call_at(settled, self.touch, user)
        return "ready" if database.takes_queries() and self.clock() >= settled else "starting"

    def answer(self, user: User) -> dict[str, Any]:
        """Return what the owner of a ready database is told, who is heard of by that. Raises ApiError."""
        assert user.lease
        database = self.databases[user.lease.holder]
        address, password = self.address(database.id), database.secret.password if database.secret else ""
        if not address or not password:
            raise ApiError(502, NO_ADDRESS if password else NO_PASSWORD)
        lost, moved = user.lease.replaces and not user.answered, self.has_moved(user, address)
        user.answered, user.missed = address, ""
        return {"user_id": user.lease.user_id,
                "data_source": f"mysql://root:{password}@tcp({address}:3306)/?maxAllowedPacket=0",
                **({"note": LOST if lost else MOVED} if lost or moved else {})}

    def has_moved(self, user: User, address: str) -> bool:
        """Tell whether a database has another address than its user was told."""
        return (user.answered or (user.lease.address if user.lease else "")) not in ("", address)

    def address(self, id: str) -> str:
        """Return where a database takes queries; empty if SQLFlow takes no such address."""
        database = self.databases[id]
        if not is_persistent(id) and "Service" not in database.objects:
            return database.pod.address if database.pod else ""
        if "Service" in self.kinds:
            service = database.objects.get("Service")
            known = service.address if service else ""
        else:  # Nobody watches it with this template.
            leases = [self.users[slug].lease for slug in self.holders.get(id, ())]
            known = next((lease.address for lease in leases if lease and lease.address), "")
        return known or f"mysql-{id}.{self.kubectl.namespace}.svc"

    def last_beat(self, user: User) -> str:
        """Return the time of the last heart beat (RFC 3339), as it was written if no newer one has come."""
        if user.lease and user.lease.renewed and not user.unwritten:
            return user.lease.renewed[:19] + "Z"
        return rfc3339(int(self.wall() - self.clock() + user.heard_at))

    def why_not_ready(self, user: User) -> ApiError | KubectlError:
        """Return why a database was not ready in time."""
        if self.clock() < user.not_before:
            return KubectlError("quota")
        database = self.database_of(user)
        parts = [part for kind, part in database.objects.items() if kind != "Secret"] if database else []
        for part in sorted(parts, key=lambda part: not part.gone):
            if part.why:
                return unavailable(part.why, 10)
        return unavailable("the cluster did not answer in time: ask again, the creation goes on", 2)

    def check_limits(self, client: str) -> None:
        """Raise ApiError 429 if one more database would be too many."""
        all_clients, own = sum(map(len, self.by_client.values())), len(self.by_client[client])
        for limit, count, whose in ((self.settings.max_databases, all_clients, "this playground"),
                                    (self.settings.max_databases_per_client, own, "one client")):
            if 0 < limit <= count:
                raise ApiError(429, f"{whose} may have {limit} databases: delete one with delete_db, or ask "
                               "the maintainer for more", Retry_After="60")

    def settle(self) -> None:
        """Count users anew whose entries have changed, and ask those again who wait for them."""
        while self.changed:
            slug, _ = self.changed.popitem()
            user = self.users.get(slug)
            for step in list(self.waiting.get(slug, {}).values()):
                step()
            if not user:
                continue
            if user.failure and user.failure[1] <= self.clock():
                user.failure = None  # Who waited has been told.
            self.counts[user.counted] -= 1
            user.counted = self.status_of(user)
            self.counts[user.counted] += 1
            if user.asked and user.counted == "ready":
                (began, origin), user.asked = user.asked, None
                metrics.add("databases_given_total", 1, **{"from": origin})
                metrics.add("data_source_seconds", self.clock() - began, **{"from": origin})
            if not (user.lease or user.order or user.failure or user.ended or user.wish
                    or user.left in self.databases or slug in self.waiting):
                self.counts[user.counted] -= 1
                del self.users[slug]

    def wait(self, slug: str, who: object, step: Step | None) -> None:
        """Have somebody asked again when a user's entry changes, or not any more."""
        if step:
            self.waiting.setdefault(slug, {})[who] = step
        elif slug in self.waiting:
            self.waiting[slug].pop(who, None)
            if not self.waiting[slug]:
                del self.waiting[slug]
                self.changed[slug] = None  # Nobody may want to know of this user any more.

    # -- what is ordered for a user

    def give(self, user: User, user_id: str, client: str) -> None:
        """Order a database for a user: a ready spare, one that is starting, or a new one.

        A lease that names what was lost is pointed at it by whoever saw its version; it is never deleted and
        made anew, which would be two moments.
        """
        lease = user.lease
        before = self.databases.get(lease.holder) if lease else None
        spare = self.spares.pick()
        id = f"user-{user.slug}" if self.template.persistent else spare.id if spare else secrets.token_hex(8)
        there = self.parts(id)
        order = Order(self.given, id, user)
        address = spare.pod.address if spare and spare.pod and spare.takes_queries() else ""
        now = micro_time(self.wall())
        # A volume is found again: its Secret, and no other of its name, is its user's under this lease.
        acquired = there["Secret"].acquired or now if "Secret" in there else now
        if not lease:
            order.creates.append(lease_of(user.slug, user_id, client, id, address, now, acquired))
        elif lease.holder != id:
            had_been_ready = lease.address or before and before.was_ready
            theirs = lease.holder != user.missed and (
                not before or not before.record or before.is_of(user.slug, lease))
            replaces = lease.replaces or bool(had_been_ready and theirs and not is_persistent(id))
            notes = {ADDRESS: address, **({REPLACES: "true"} if replaces else {})}
            order.replaces.append(rewritten(lease, notes, holderIdentity=f"mysql-{id}",
                                            acquireTime=acquired, renewTime=now))
        else:
            # Of a volume, parts are made by who sees the lease as it is: somebody may be at ending it. It is
            # counted up, since a replace that changes nothing is no write, and somebody else's no conflict.
            turns = int(item_of(lease)["spec"].get("leaseTransitions") or 0) + 1
            beat = {"renewTime": now} if user.unwritten else {}
            order.replaces.append(rewritten(lease, {KEPT: None}, acquireTime=acquired, leaseTransitions=turns,
                                            **beat))
        if spare and spare.secret:
            spare.promised = True
            order.claims.append(labelled(item_of(spare.secret), user.slug, now))
        else:
            password = there["Secret"].password if "Secret" in there else secrets.token_hex(16)
            made = self.template.objects_of(id, password, user.slug, user_id, client, acquired)
            order.creates += [item for item in made if item["kind"] not in there]
        if is_persistent(id):  # A name that others use as well: whose Secret it is, his is the volume.
            order.records = [item for item in order.creates if item["kind"] in ("Lease", "Secret")]
            order.creates = [item for item in order.creates if item not in order.records]
        origin = "new" if not spare else "spare" if spare.takes_queries() else "starting"
        user.asked = user.asked or (self.clock(), origin)
        user.coming = "" if lease else client
        self.spares.expected[user.slug] = self.clock()
        self.by_client[client][user.slug] = user
        self.start_order(self.making, order)

    def claim(self, user: User) -> None:
        """Complete a lease whose database's Secret is still free: somebody began to give it."""
        assert user.lease
        database = self.databases[user.lease.holder]
        assert database.secret
        database.promised = True
        claim = labelled(item_of(database.secret), user.slug, user.lease.acquired)
        self.start_order(self.making, Order(self.given, database.id, user, claims=[claim]))

    def put_back(self, user: User, record: Secret) -> None:
        """Make a Secret again that was deleted by hand, with the password that its Pod or volume has."""
        item = labelled(item_of(record), user.slug, record.acquired)
        del item["metadata"]["uid"], item["metadata"]["resourceVersion"]
        self.start_order(self.making, Order(self.given, "", user, creates=[item]))

    def renew(self, user: User) -> None:
        """Order that a user who is back be written down: until then another server may end what there is."""
        assert user.lease
        beat = rewritten(user.lease, {KEPT: None}, renewTime=micro_time(self.wall()))
        self.start_order(self.making, Order(self.given, "", user, replaces=[beat]))

    def mend(self, user: User, lease: Lease) -> None:
        """Write down what was answered, address and note; do what no request does.

        It makes a Pod again that a drained node took away, and completes what was given halfway.
        """
        standing = self.standing(user)
        if standing == "over" or standing == "lacking" and self.template.persistent:
            if user.looked_at < user.changed_at:  # It is made with the password of the Secret that is seen.
                self.look(user, lambda: None if user.order or not user.lease else self.mend(user, user.lease))
            elif standing == "over":
                self.clear(user)
            else:
                self.give(user, lease.user_id, lease.client)
            return
        if standing == "free" and self.clock() > user.leased_at + HALF_MADE_SECONDS:
            self.claim(user)
            return
        address = self.address(lease.holder) if lease.holder in self.databases else ""
        if address and user.answered == address and (lease.replaces or address != lease.address):
            # Nobody waits for it: what fails is tried again in the next round.
            told = rewritten(lease, {ADDRESS: address, REPLACES: None}, renewTime=micro_time(self.wall()))
            self.start_order(self.making, Order(lambda order: None, "", user, replaces=[told]))

    def clear(self, user: User) -> None:
        """Order the end of a volume's Pod or Service that is of no use: its name is wanted for another."""
        assert user.lease
        database = self.databases[user.lease.holder]
        order = Order(self.gone, database.id, user)
        order.deletes += parts_of(database.id, database.misfits())
        self.start_order(self.ending, order)

    def end(self, user: User, idle: bool = False) -> None:
        """Order the end of a user's lease, unless it changes meanwhile, and of the database that it names."""
        assert user.lease
        id = user.lease.holder
        order = Order(self.swept if idle else self.gone, id, user)
        if is_persistent(id):  # Marked first: as it was seen, nobody makes a part of a volume any more.
            kept = idle and not user.lease.ends  # The volume, its password, and the lease.
            order.replaces.append(rewritten(user.lease, {KEPT if kept else ENDS: "true"}))
            order.deletes += parts_of(id, self.parts(id), ("PersistentVolumeClaim", "Secret") if kept else ())
            # Last: without it somebody might find again what is still to be deleted.
            order.deletes += [] if kept else [("Lease", f"user-{user.slug}", user.lease.uid, 0)]
        else:
            order.deletes.append(("Lease", f"user-{user.slug}", user.lease.uid, user.lease.version))
            if id in self.databases:  # A spare, or somebody else's by now, was never given to this one.
                order.by_label = self.databases[id].is_of(user.slug, user.lease)
        self.start_order(self.ending, order)

    def rest(self, user: User) -> Database | None:
        """Return what there is of a user's database though the lease has gone.

        Of a volume, also beside a lease, which may be a late watch's, or have been made meanwhile.
        """
        volume, left = self.databases.get(f"user-{user.slug}"), self.databases.get(user.left)
        if volume and volume.owner() is not None:
            return volume
        if user.lease or not left or not left.record:
            return None
        return left if left.record.user in (user.slug, "") else None

    def end_rest(self, user: User, database: Database, user_id: str, client: str) -> None:
        """Order the end of what is left; of a volume, by a lease that says so. Raises ApiError."""
        order = Order(self.gone, database.id, user)
        if is_persistent(database.id):
            check_volume(database, client)
            lease = lease_of(user.slug, user_id, client, database.id, "", micro_time(self.wall()))
            lease["metadata"]["annotations"][ENDS] = "true"
            order.records.append(lease)
        order.by_label = not order.records
        self.start_order(self.ending, order)

    def destroy(self, id: str) -> None:
        """Order the end of a database that is nobody's."""
        self.start_order(self.ending, Order(self.gone, id, by_label=True))

    def start_order(self, group: Group, order: Order) -> None:
        """Have an order carried out with those of others."""
        if order.user:
            order.user.order = order
        group.add(order)

    def carried_out(self, orders: list[Order], crash: KubectlError | None) -> None:
        """Take up what came of orders."""
        if creating := sum(bool(order.records or order.creates) for order in orders):
            metrics.add("creations_grouped", creating)
        for order in orders:
            order.failures += [("", crash)] if crash else []
            self.loop.attempt(functools.partial(self.order_done, order))

    def order_done(self, order: Order) -> None:
        """Take up what came of an order."""
        if order.id in self.databases:
            self.databases[order.id].promised = False
        user, client = order.user, ""
        if user:  # First: whatever is wrong with what was made, the next request can go on.
            client, user.order, user.coming = user.coming, None, ""
        for item in order.made:
            self.learn_item(item)
        if user:
            before = order.lease.renewed if order.lease else ""
            leases = [item for item in order.made if item["kind"] == "Lease"]
            if any(lease["spec"].get("renewTime") != before for lease in leases):
                user.written_at = self.clock()
            if client and not (user.lease and user.lease.client == client):
                self.by_client[client].pop(user.slug, None)
            self.touch(user)
        order.then(order)

    def given(self, order: Order) -> None:
        """Go on with a user for whom something was made; or decide what it means that something was not."""
        user, made = order.user, {item["kind"] for item in order.made}
        errors = dict(order.failures)
        if not user or not errors:
            return
        # Of what was to be made it is the namespace that was not found.
        quicker = ("exists", "conflict", *(("not found",) if order.replaces or order.claims else ()))
        error = next((error for error in errors.values() if error.reason not in quicker), None)
        refused = errors["Lease"].reason in ("exists", *REFUSALS) if "Lease" in errors else False
        if refused and made and not is_persistent(order.id):
            self.destroy(order.id)  # Somebody else's lease came first; one that timed out may have been made.
        if not error:
            user.stale = True  # Somebody was quicker. What the watches do not show yet is read.
            user.missed = order.id if order.claims else user.missed
            self.look(user)
            return
        made_here = not order.claims and not is_persistent(order.id)
        if error.reason in REFUSALS and made_here and user.lease and user.lease.holder == order.id:
            if order.replaces:  # The lease was there before, and goes on to the next one.
                user.missed = order.id
                self.destroy(order.id)
            else:
                self.end(user)  # Nothing is left that counts.
        if error.reason == "quota" and self.spares.make_room():
            user.not_before = self.clock() + 1
            self.loop.call_at(user.not_before, self.touch, user)
        else:
            until = self.clock() + (60 if error.reason in ("quota", "policy") else 0)
            user.failure = error, until
            self.loop.call_at(until, self.touch, user)

    def swept(self, order: Order) -> None:
        """Take up the end of an idle lease."""
        if order.lease and not order.lease.ends and not order.failures:
            metrics.add("databases_swept_total")
            log.info(logfmt("sweep", user=order.lease.user_id, client=order.lease.client,
                            last_beat=order.lease.renewed))
        self.gone(order)

    def gone(self, order: Order) -> None:
        """Take up what came of an end."""
        user = order.user
        if database := self.databases.get(order.id):
            # What goes takes queries no more, whatever a late watch shows; what does not stays for a while.
            database.going = order.by_label and not order.failures
            database.stays_until = self.clock() + (REFUSED_SECONDS if order.failures else 0)
        if not user:
            return
        user.left = order.id if order.failures and order.by_label else ""
        if not order.failures:
            for kind, name, uid, _ in order.deletes:
                if kind != "Lease":
                    part = database.objects.get(kind) if database else None
                    if part and part.uid == uid:  # Its watch, if it has one, tells when it is not there.
                        goes = isinstance(part, Part) and kind in self.kinds
                        going = part._replace(gone=True, ready=False, over=False) if goes else None
                        self.learn(kind, name, going)
                    continue
                user.gone_at = self.clock()
                if user.lease and user.lease.uid == uid:
                    user.ended = uid
                    self.learn_lease(user, None)
        elif order.failures[0][1].reason in ("conflict", "exists"):
            user.stale = True
            self.look(user)
        else:
            user.failure = order.failures[0][1], self.clock()

    # -- reading afresh, where the watches may be late, each by itself

    def look(self, user: User, wish: Step | None = None, idle: bool = False) -> None:
        """Have what concerns a user read afresh; a wish for a database goes on with it, whoever still waits.

        Else a reading that takes longer than clients wait would never count: each wants one that is younger.
        A wish for its end does not go on: its user may have been given another one elsewhere.
        """
        user.wish = user.wish or wish  # The older one is granted first.
        if not any(look.user.slug == user.slug for look in self.looking.waiting):
            id = user.lease.holder if user.lease else f"user-{user.slug}"
            self.looking.add(Look(user, self.clock(), user.lease, id, dict(self.parts(id)), idle))

    def looked(self, looks: list[Look], found: Any) -> None:
        """Take up what was read; what was not there is gone, if nothing has been heard of it since."""
        for look in looks:  # First: whatever is wrong with what was read, the next request can go on.
            self.users.get(look.user.slug, look.user).stale = False
        items, failed = ([], {}) if isinstance(found, KubectlError) else found
        for item in items:
            self.learn_item(item)
        there = {key_of(item): item for item in items}
        for look in looks:
            user = self.users.get(look.user.slug, look.user)
            wish, user.wish = user.wish, None
            self.touch(user)
            if failure := found if isinstance(found, KubectlError) else failed.get(f"mysql-user-{user.slug}"):
                user.failure = failure, self.clock()
                continue
            id = look.id
            keys = [(kind, f"user-{user.slug}" if kind == "Lease" else f"mysql-{id}") for kind in KINDS]
            read = there.get(keys[0])
            # What it names now must be what was read with it.
            if not user.lease or read and seen_of(read)[2] == user.lease.holder:
                user.looked_at = look.ordered
            foreign = [key for key in keys if key in there and not is_ours(there[key])]
            user.foreign = FOREIGN.format(*foreign[0]) if foreign else ""
            if read and read["metadata"]["uid"] == user.ended and look.ordered > user.gone_at:
                user.foreign = STAYS
            if keys[0] not in there:
                user.gone_at = look.ordered
                if user.lease and user.lease is look.lease:
                    self.learn_lease(user, None)
            for kind, seen in look.objects.items():
                if self.parts(id).get(kind) is seen and (kind, f"mysql-{id}") not in there:
                    self.learn(kind, f"mysql-{id}", None)
            if look.idle and self.sweep.is_idle(user):
                self.end(user, idle=True)
            elif wish:
                with contextlib.suppress(ApiError, KubectlError):  # Whoever asks again is told.
                    wish()

    # -- what is seen

    def start(self) -> None:
        """Start to observe the cluster, without waiting for it."""
        for kind in self.kinds:
            threading.Thread(target=Watch(self, kind).run, name=f"watch {kind}", daemon=True).start()
        self.sweep.begin_round()
        self.spares.tend()

    def begin_listing(self, kind: str) -> None:
        """Expect all that is known of a kind to be listed."""
        leases = (f"user-{slug}" for slug, user in self.users.items() if user.lease)
        parts = (f"mysql-{id}" for id, database in self.databases.items() if kind in database.objects)
        self.unseen[kind] = set(leases if kind == "Lease" else parts)

    def take_portion(self, kind: str, portion: list[tuple[str, Seen]]) -> None:
        """Take a part of a listing, but for what was written since."""
        for name, seen in portion:
            self.unseen[kind].discard(name)
            if seen.version > self.version_of(kind, name):
                self.learn(kind, name, seen)

    def end_listing(self, kind: str, version: int) -> None:
        """Forget what was not listed, unless it was made since."""
        for name in self.unseen.pop(kind, ()):
            if self.version_of(kind, name) <= version:
                self.learn(kind, name, None)
        self.versions[kind] = version
        for user in [user for user in self.users.values() if user.ended] if kind == "Lease" else ():
            user.ended = ""
            self.touch(user)  # It may be that nothing is known of this user any more.

    def take_event(self, kind: str, name: str, seen: Seen | None, version: int) -> None:
        """Take what a watch tells, unless it is older than what was written from here: it goes on to that."""
        self.versions[kind] = version
        if name and version >= self.version_of(kind, name):
            self.learn(kind, name, seen)
        if name and not seen and kind == "Lease":
            user = self.user(name.partition("-")[2])
            user.ended = ""
            self.touch(user)

    def learn_item(self, item: dict[str, Any]) -> None:
        """Take an object that was read or written, unless its watch is further: that tells everything."""
        kind, metadata = item["kind"], item["metadata"]
        known = max(self.versions.get(kind, 0), self.version_of(kind, metadata["name"]))
        if kind in KINDS and is_ours(item) and int(metadata["resourceVersion"]) > known:
            if kind in self.unseen:  # It may go before the listing that is under way comes to it.
                self.unseen[kind].add(metadata["name"])
            self.learn(kind, metadata["name"], seen_of(item))

    def version_of(self, kind: str, name: str) -> int:
        """Return the version of an object that is known, or -1."""
        user, database = self.users.get(name.partition("-")[2]), self.databases.get(name.partition("-")[2])
        if kind == "Lease":
            seen = user.lease if user else None
        else:
            seen = database.objects.get(kind) if database else None
        return seen.version if seen else -1

    def learn(self, kind: str, name: str, seen: Seen | None) -> None:
        """Take into the table an object as it is now, or that it has gone."""
        prefix, _, key = name.partition("-")
        if kind == "Lease" and prefix == "user":
            self.learn_lease(self.user(key), seen if isinstance(seen, Lease) else None)
        elif kind != "Lease" and prefix == "mysql":
            self.learn_part(kind, self.databases.setdefault(key, Database(key, self.clock())), seen)

    def learn_lease(self, user: User, lease: Lease | None) -> None:
        """Take a user's lease as it is now."""
        lease = None if lease and lease.uid == user.ended else lease
        was, now, user.lease = user.lease, self.clock(), lease
        if was:
            self.by_client[was.client].pop(user.slug, None)
            self.holders.get(was.holder, {}).pop(user.slug, None)
            if not self.holders.get(was.holder, True):
                del self.holders[was.holder]
        if lease:
            self.by_client[lease.client][user.slug] = user
            self.holders.setdefault(lease.holder, {})[user.slug] = None
        for id in {one.holder for one in (was, lease) if one}:
            self.spares.index(id)
        if (was and (was.uid, was.holder)) != (lease and (lease.uid, lease.holder)):
            user.changed_at = now
        if lease and (not was or was.holder != lease.holder):
            user.leased_at, user.answered, user.looked_at = now, "", float("-inf")
        if not lease:
            user.asked = None
        elif not was or was.uid != lease.uid:
            user.heard_at, user.written_at = now, float("-inf")  # Nobody knows when it was written.
        elif was.renewed != lease.renewed:
            user.heard_at = user.written_at = now
        self.touch(user)

    def learn_part(self, kind: str, database: Database, seen: Seen | None) -> None:
        """Take one of a database's objects as it is now."""
        now = self.clock()
        database.take(kind, seen)
        secret, pod, ready = database.secret, database.pod, database.takes_queries()
        database.had_pod |= bool(pod)
        database.was_ready |= ready
        database.ready_since = min(database.ready_since, now) if ready else float("inf")
        database.half_since = float("inf") if secret and pod else min(database.half_since, now)
        self.spares.index(database.id)
        if secret and secret.user not in ("", NOBODY) and pod and pod.no_room and not database.made_room:
            database.made_room = self.spares.make_room() or True
        whose = [database.id[len("user-"):]] if is_persistent(database.id) else []  # Also without a lease.
        for slug in (*self.holders.get(database.id, ()), *whose):
            self.user(slug).changed_at = now
            self.changed[slug] = None
        if not database.objects:
            del self.databases[database.id]

    # -- what all of it uses

    def database_of(self, user: User) -> Database | None:
        """Return the database that a user's lease names, as far as it is seen."""
        return self.databases.get(user.lease.holder) if user.lease else None

    def parts(self, id: str) -> dict[str, Any]:
        """Return by kind what is seen of a database; nothing of one that is not there."""
        return self.databases[id].objects if id in self.databases else {}

    def user(self, slug: str) -> User:
        """Return a user's entry."""
        if slug not in self.users:
            self.users[slug] = User(slug, self.clock())
            self.changed[slug] = None  # It goes again if nothing comes of it.
        return self.users[slug]

    def touch(self, user: User) -> None:
        """Note that a user's entry may have changed."""
        self.changed[user.slug] = None


class Health:
    """Whether each kind is watched and the template is good: what is known can be relied on then."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        # Why each kind is not being watched and the template was not found good, of REASONS; empty if it is.
        self.troubles = dict.fromkeys((*cluster.kinds, "template"), "starting")
        self.unknown = set(self.troubles)  # Those that never were good so far.
        self.template_trouble = ""  # When it was checked last, of REASONS.
        self.is_new, self.told = True, set[str]()  # Troubles logged since the cluster was last good.

    def known(self, what: Iterable[str], late: bool) -> bool:
        """Tell whether these kinds, or the template, are known. Raises KubectlError if that has failed."""
        unknown = self.unknown.intersection(what)
        if unknown and (late or self.trouble(unknown) != "starting"):
            raise KubectlError(self.trouble(unknown))
        return not unknown

    def is_listed(self) -> bool:
        """Tell whether all kinds were known once, whatever has become of their watches since."""
        return self.unknown <= {"template"}

    def trouble(self, what: Iterable[str] = ()) -> str:
        """Return a trouble of these, or of all, rather one that was met than "starting"; empty if none."""
        return max((self.troubles[one] for one in what or self.troubles),
                   key=lambda trouble: (trouble not in ("", "starting"), trouble))

    def report(self, what: str, trouble: str, words: str = "") -> None:
        """Note how a kind's watch or the template's check goes; log when the cluster is lost, and back."""
        cluster, before = self.cluster, self.trouble()
        if not trouble and what in self.unknown:
            self.unknown.discard(what)
            if self.unknown == {"template"} and self.troubles["template"] == "starting":
                self.check_template()
                self.check_quota()
        self.troubles[what] = trouble
        after = self.trouble()
        cluster.changed.update(dict.fromkeys(cluster.waiting))
        cluster.kubectl.lost = after not in ("", "starting")
        if cluster.kubectl.lost and after not in self.told:  # One that comes again and again is told once.
            self.told |= {after} if after not in SILENCE else SILENCE
            what = next(one for one in (what, *self.troubles) if self.troubles[one] == after)
            log.warning(logfmt("cluster", outcome="lost", what=what, reason=SENTENCES[after][1],
                               remedy=LOST_REMEDY, **({"said": words} if words and trouble == after else {})))
        elif not after and before:
            self.told.clear()
            fields = {"databases": len(cluster.databases), "users": len(cluster.users)}
            if self.is_new:
                self.is_new = False
                log.info(logfmt("ready", address=cluster.loop.url(), **fields))
            else:
                # Whoever was warned hears of it, too.
                log.warning(logfmt("cluster", outcome="back", **fields,
                                   remedy="nothing is to be done: what was asked meanwhile is asked again"))

    def check_template(self) -> None:
        """Have the API server validate the template once: when databases are made it does not, for speed."""
        manifest = listed(self.cluster.template.objects_of(**EXAMPLE))
        self.cluster.loop.start(functools.partial(
            self.cluster.kubectl, "create", "-f", "-", "--dry-run=server", "--validate=true",
            reason="check the template, in a dry run", stdin=manifest), self.template_checked)

    def template_checked(self, result: Any) -> None:
        """Take up the template's check. What was in its way may pass, and each create_db tells of it."""
        reason = result.reason if isinstance(result, KubectlError) else ""
        if reason and reason not in TOLERATED:
            log.error(logfmt("template", path=self.cluster.template.path, error=result))
            # A wrong template stays wrong; no line comes by the second.
            again = reason in ("invalid", self.template_trouble)
            pause = WATCH_SECONDS if again else WATCH_PAUSES_SECONDS[1]
            self.cluster.loop.call_at(self.cluster.clock() + pause, self.check_template)
        self.template_trouble = reason
        troubles = {"invalid": "template", "not found": "not found", "ending": "ending"}
        self.report("template", troubles.get(reason, ""))

    def check_quota(self) -> None:
        """Warn if the namespace's quota is smaller than what the options allow."""
        def compare(found: Any) -> None:
            for quota in () if isinstance(found, KubectlError) else documents(found):
                if problem := self.cluster.template.too_many_for(quota, self.cluster.settings):
                    log.warning(logfmt("quota", name=quota["metadata"]["name"], reason=problem))
        self.cluster.loop.start(functools.partial(self.cluster.kubectl, "get", "resourcequotas", "-o", "json",
                                                  reason="compare the quota with the options"), compare)


LOST_REMEDY = ("--check with the same flags says what to do; until then heart beats and known databases are "
               "answered, and it tries again every few seconds")
TOLERATED = ("quota", "policy", "forbidden", "exists", "no dry run")
NOT_KUBERNETES = "kubectl printed what is no Kubernetes API server's"
SILENCE = {"unreachable", "timeout"}  # How a cluster does not answer: the one after the other is one loss.


def check_owner(lease: Lease, user_id: str, client: str) -> None:
    """Raise ApiError 403 or 409 if a lease is not this client's for this user."""
    if lease.client != client:
        raise ApiError(403, NOT_YOURS)
    if lease.user_id != user_id:
        raise ApiError(409, "this user_id's name in the cluster is taken by another one: use another user_id")


def check_volume(database: Database, client: str) -> None:
    """Raise ApiError 403 if a database on a volume, whose lease has gone, was another client's."""
    if database.owner() not in (None, client):
        raise ApiError(403, NOT_YOURS)


class User:
    """What is known of one user, and what is under way."""

    def __init__(self, slug: str, now: float) -> None:
        self.slug = slug
        self.lease: Lease | None = None
        self.leased_at = now  # When the lease was seen to name what it names.
        self.ended = ""  # The uid of a lease that was ended from here; a late watch may show it once more.
        self.order: Order | None = None  # At most one at a time.
        self.coming = ""  # The client to whom a first lease is being given; it counts as there.
        self.heard_at = self.written_at = now  # Here or by another server, and as is written in the lease.
        self.unwritten = False
        self.answered = ""  # The address that was told from here.
        # When what the cluster holds was last read afresh, and when it was last known to hold no lease.
        self.looked_at = self.gone_at = float("-inf")
        self.changed_at = float("-inf")  # When a watch last told of what a look had not seen.
        self.stale = False  # Somebody has changed what is known: nothing is ordered until it is read afresh.
        self.failure: tuple[ApiError | KubectlError, float] | None = None  # And until when it stands.
        self.not_before = float("-inf")  # When room may have been made.
        self.left = ""  # The id of a database that could not be ended though its lease was.
        self.missed = ""  # The id of a database that the lease names, and that went to somebody else.
        self.foreign = ""  # What is in the way of a database, and not ours to touch.
        self.wish: Step | None = None  # For a database, which waits for a reading.
        # When a database was ordered that is not ready so far, from what.
        self.asked: tuple[float, str] | None = None
        self.counted = ""


class Database:
    """What the cluster is seen to hold of one database, and what is under way with it."""

    def __init__(self, id: str, now: float) -> None:
        self.id, self.since = id, now
        self.objects: dict[str, Any] = {}  # By kind; and of these, for short,
        self.pod: Part | None = None
        # its record, but none that was made again by hand with a password that its data does not know.
        self.secret: Secret | None = None
        self.record: Secret | None = None  # The Secret as it was last seen, should it be deleted by hand.
        self.had_pod = self.was_ready = self.made_room = False
        self.ready_since = self.half_since = float("inf")  # Half: without its Secret or its Pod.
        self.promised = self.going = False  # To somebody, or away, by an order of this server.
        self.stays_until = float("-inf")  # Its removal was refused.

    def take(self, kind: str, seen: Seen | None) -> None:
        """Take one of its objects as it is now."""
        if seen:
            self.objects[kind] = seen
        else:
            self.objects.pop(kind, None)
        self.pod, secret = self.objects.get("Pod"), self.objects.get("Secret")
        hashes = {part.password_hash for kind, part in self.objects.items() if kind != "Secret"}
        knows = not secret or hashes <= {"", secret.password_hash}
        self.secret = secret if knows else None
        self.record = self.secret or (None if secret else self.record)

    def takes_queries(self) -> bool:
        """Tell whether its container is ready, and stays."""
        return bool(self.pod and self.pod.ready and not self.pod.gone)

    def is_of(self, slug: str, lease: Lease | None) -> bool:
        """Tell whether it was given to a user under this lease."""
        record = self.record
        return bool(record and lease and record.user in (slug, "") and not record.is_free()
                    and record.acquired == lease.acquired)

    def has_lost_its_password(self) -> bool:
        """Tell whether its volume is there without its Secret, and that must never be made anew."""
        claim, secret = self.objects.get("PersistentVolumeClaim"), self.objects.get("Secret")
        return bool(claim and not claim.gone
                    and not (secret and claim.password_hash in ("", secret.password_hash)))

    def owner(self) -> str | None:
        """Return the client whose a volume is, by its Secret or else its claim.

        None if nobody knows, or if all that is left of it is on its way.
        """
        if all(getattr(part, "gone", False) for part in self.objects.values()):
            return None
        secret, claim = self.objects.get("Secret") or self.record, self.objects.get("PersistentVolumeClaim")
        if secret:
            return str((item_of(secret)["metadata"].get("annotations") or {}).get(CLIENT, ""))
        return claim.client or None if claim else None

    def misfits(self) -> dict[str, Part]:
        """Return its Pod and Service that are of no use: over, or made for another Secret than there is."""
        secret = self.objects.get("Secret")
        own = {"", secret.password_hash} if secret else None
        return {kind: part for kind, part in self.objects.items() if kind in ("Pod", "Service")
                and (part.over or own and not part.gone and part.password_hash not in own)}

    def is_spare(self) -> bool:
        """Tell whether it can be given to a user, as far as is known."""
        free = self.secret and self.secret.is_free() and not self.promised and not self.going
        return bool(free and self.pod and not self.pod.gone)


class Lease(NamedTuple):
    """A user's lease of a database (Kubernetes API, coordination.k8s.io/v1)."""

    uid: str
    version: int
    holder: str  # The database's id.
    user_id: str
    client: str
    acquired: str  # When it was made or pointed at this database; see ACQUIRED.
    renewed: str  # The last heart beat, as written: compared with itself only, never with a clock.
    address: str  # The one that was answered.
    kept: bool  # Its database has ended but for its volume;
    ends: bool  # and with it, which is to be carried through whatever comes between.
    replaces: bool  # Its database stands for one that was lost, which its user was not told so far.
    text: str  # The object as it can be written again: 10,000 of dicts would make a garbage collection 50 ms.

    def is_used(self) -> bool:
        """Tell whether its database is to run."""
        return not (self.kept or self.ends)


class Secret(NamedTuple):
    """A database's record: whose it is, its password, what it was made from."""

    uid: str
    version: int
    user: str  # A slug; empty of a spare, NOBODY of one that goes.
    acquired: str  # Of the lease under which it was given.
    template: str
    password: str  # Empty if it is none that SQLFlow can paste anywhere without quoting it.
    password_hash: str
    text: str  # As of a Lease.

    def is_free(self) -> bool:
        """Tell whether it was never given; that somebody took its label away does not make it so."""
        return not self.user and not self.acquired


class Part(NamedTuple):
    """A database's Pod, Service or PersistentVolumeClaim."""

    uid: str
    version: int
    address: str
    ready: bool
    gone: bool  # It is being deleted, or has ended for good;
    over: bool  # that, and nobody has deleted it so far.
    why: str  # It is not ready, in a sentence for a client.
    no_room: bool  # No node has any for it.
    password_hash: str  # Of the password that its data was made with; empty if it has none, or is too old.
    client: str  # Whose a claim is; empty of others.


Seen = Union[Lease, Secret, Part]


# ---- Spares --------------------------------------------------------------------------------------------

class Spares:
    """Databases without a user, kept running so that the next one does not wait for theirs to start."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.free: dict[str, Database] = {}  # By id, whose Secrets are free and which no lease names.
        self.expected: dict[str, float] = {}  # Slugs of users whose databases start, and since when.
        self.coming, self.failures, self.trouble = 0, 0, ""
        self.not_before = self.room_made_at = float("-inf")
        self.others_since: dict[str, float] = {}  # Other templates' spares, by hash,
        # those that are being removed, and how often they were.
        self.others_going: set[str] = set()
        self.others_removed: collections.Counter[str] = collections.Counter()

    def pick(self) -> Database | None:
        """Return a spare: a ready one at random, so that servers seldom meet, else the oldest young one."""
        template = self.cluster.template
        if template.per_user:
            return None
        fit = [one for one in self.free.values()
               if one.is_spare() and one.secret and one.secret.template == template.hash]
        ready = [one for one in fit if one.takes_queries()]
        young = [one for one in fit if self.cluster.clock() < one.since + YOUNG_SECONDS]
        if ready:
            return self.cluster.random.choice(ready)
        return min(young, key=lambda one: one.since, default=None)

    def make_room(self) -> bool:
        """Remove a spare for a user's sake, one of least use; return whether there may be room soon."""
        now, template = self.cluster.clock(), self.cluster.template
        spares = [one for one in self.free.values() if one.is_spare() and now >= one.stays_until]
        spares.sort(key=lambda one: (bool(one.secret and one.secret.template == template.hash),
                                     one.takes_queries()))
        if spares and now > self.room_made_at + 5:  # What was removed counts until its container has ended.
            self.room_made_at, self.not_before = now, now + NO_SPARES_SECONDS
            self.remove(spares[0])
        return now < self.room_made_at + EXPECTED_SECONDS

    def index(self, id: str) -> None:
        """Count a database as free, or not: one that a lease names is on its way to somebody."""
        database = self.cluster.databases.get(id)
        self.free.pop(id, None)
        if not database or not database.secret or is_persistent(id) or id in self.cluster.holders:
            return
        if database.secret.is_free():
            self.free[id] = database

    def tend(self) -> None:
        """Every few seconds, at random so that servers seldom meet, make spares and remove useless ones."""
        cluster, now = self.cluster, self.cluster.clock()
        cluster.loop.call_at(now + cluster.random.uniform(1, 3), self.tend)
        self.expected = {slug: since for slug, since in self.expected.items()
                         if now < since + EXPECTED_SECONDS and slug in cluster.users
                         and cluster.users[slug].asked}
        if cluster.health.unknown or cluster.health.trouble() or cluster.sweep.stopped:
            return
        mine = self.sort_out(now)
        if any(spare.takes_queries() for spare in mine):
            self.failures, self.trouble = 0, ""
        wanted = 0 if cluster.template.per_user else cluster.settings.spare_databases
        for spare in sorted(mine, key=lambda one: one.id)[wanted:]:  # In one order, so that servers agree.
            if now > spare.since + YOUNG_SECONDS:
                self.remove(spare)
        making = cluster.making.running or cluster.making.waiting
        if now >= self.not_before and not self.expected and not making:
            for _ in range(min(wanted - len(mine) - self.coming, 1 if self.failures else SPARES_AT_ONCE)):
                id = secrets.token_hex(8)
                objects = cluster.template.objects_of(id, secrets.token_hex(16))
                self.coming += 1
                cluster.start_order(cluster.making, Order(self.made, id, creates=objects))

    def sort_out(self, now: float) -> list[Database]:
        """Remove spares that do not get ready, and other templates' after a while; return the others."""
        own, mine = self.cluster.template.hash, []
        others = {one.secret.template for one in self.free.values() if one.secret} - {own}
        self.others_removed.update(self.others_going - others)  # Back again, they stay twice as long.
        self.others_going &= others
        self.others_since = {hash: self.others_since.get(hash, now) for hash in others}
        for spare in list(self.free.values()):
            pod, hash = spare.pod, spare.secret.template if spare.secret else ""
            if not pod or spare.promised or spare.going or now < spare.stays_until:
                continue
            if pod.gone or not pod.ready and (spare.was_ready or now > spare.since + SPARE_SECONDS):
                self.failed(pod.why or "it did not stay")
                self.remove(spare)
            elif hash == own:
                mine.append(spare)
            elif now > self.others_since[hash] + OTHERS_SECONDS * 2 ** min(self.others_removed[hash], 10):
                self.others_going.add(hash)
                self.remove(spare)
        return mine

    def remove(self, database: Database) -> None:
        """Order the end of a spare, unless somebody gives it away first."""
        secret = database.objects.get("Secret")
        if secret and secret.user in ("", NOBODY):
            database.going = True
            claim = labelled(item_of(secret), NOBODY)
            order = Order(self.cluster.gone, database.id, replaces=[claim], by_label=True)
            self.cluster.start_order(self.cluster.ending, order)

    def made(self, order: Order) -> None:
        """Take up what came of making a spare."""
        self.coming -= 1
        if order.failures:
            self.failed(SENTENCES[order.failures[0][1].reason][1])
            database = self.cluster.databases.get(order.id)
            if database and database.secret:
                self.remove(database)

    def failed(self, why: str) -> None:
        """Make the next spare later, the more have failed."""
        self.trouble, now = why, self.cluster.clock()
        metrics.add("spares_failed_total")
        if now < self.not_before:
            return  # It is of the same attempt.
        pause = min(60 * 2 ** self.failures, 1800)
        self.failures += 1
        self.not_before = now + pause
        log.warning(logfmt("spare", outcome="failed", reason=why, next_try_seconds=pause))


# ---- Orders: what is asked of the API server, in groups, by threads that see no table ------------------

class Order:
    """What is to be done for one user or spare, in these steps; a step that fails is the last one."""

    def __init__(self, then: Callable[[Order], object], id: str = "", user: User | None = None, *,
                 replaces: Iterable[dict[str, Any]] = (), creates: Iterable[dict[str, Any]] = (),
                 claims: Iterable[dict[str, Any]] = (), by_label: bool = False) -> None:
        self.then, self.id, self.user, self.lease = then, id, user, user.lease if user else None
        self.replaces = [*replaces]  # Leases, and Secrets of spares that go: by who saw their version;
        # leases and Secrets that have to be there before the rest is made;
        self.records: list[dict[str, Any]] = []
        self.creates = [*creates]
        self.claims = [*claims]  # Secrets of spares that are given, by who saw their version;
        # by kind, name, uid and version, if that is not 0;
        self.deletes: list[tuple[str, str, str, int]] = []
        self.by_label = by_label  # and the database by its label.
        self.made: list[dict[str, Any]] = []
        self.failures: list[tuple[str, KubectlError]] = []  # With the kind.

    def is_end(self) -> bool:
        """Tell whether it takes something away."""
        return self.by_label or bool(self.deletes)


class Look(NamedTuple):
    """What is to be read afresh for a user, and what was known when that was ordered."""

    user: User
    ordered: float
    lease: Lease | None
    id: str  # Of the lease's database or, without a lease, of the one that the user may have on a volume.
    objects: dict[str, Any]
    idle: bool  # To end the lease, if that is all there is.


class Group:
    """Has the work of everyone who waits done in one go, like a database's group commit.

    Who comes waits a moment for company; who comes while as many run as may is in the next group.
    """

    def __init__(self, cluster: Cluster, work: Callable[[list[Any]], Any],
                 done: Callable[[list[Any], Any], None], size: int, most: int) -> None:
        self.cluster, self.work, self.done, self.size, self.most = cluster, work, done, size, most
        self.waiting: list[Any] = []
        self.running, self.opened_at, self.joined_at, self.gathers = 0, 0.0, 0.0, False

    def add(self, one: Any) -> None:
        """Have one thing done with the next group."""
        self.joined_at = self.cluster.clock()
        self.opened_at = self.opened_at if self.waiting else self.joined_at
        self.waiting.append(one)
        full = len(self.waiting) == self.size
        if full or not self.gathers:
            self.gathers = True
            self.cluster.loop.call_at(self.joined_at + (0 if full else GATHER_SECONDS[0]), self.leave)

    def leave(self) -> None:
        """Start the groups that are full, and then the rest, unless more may join it."""
        while self.waiting and self.running < self.most:
            company = len(self.waiting) > 1 or self.running > 0
            leaves = min(self.joined_at + GATHER_SECONDS[company], self.opened_at + GATHER_SECONDS[2])
            if self.cluster.clock() < leaves and len(self.waiting) < self.size:
                self.gathers = True
                self.cluster.loop.call_at(leaves, self.leave)
                return
            batch, self.waiting = self.waiting[:self.size], self.waiting[self.size:]
            self.opened_at = self.cluster.clock()
            self.running += 1
            self.cluster.loop.start(functools.partial(self.work, batch),
                                    functools.partial(self.finish, batch))
        self.gathers = False

    def finish(self, batch: list[Any], result: Any) -> None:
        """Take up what came of a group, and start the next one."""
        self.running -= 1
        try:
            self.done(batch, result)
        finally:
            if self.waiting and not self.gathers:
                self.leave()


class ApiServer:
    """What is asked of Kubernetes' API server by kubectl. All of it waits, on threads that see no table."""

    def __init__(self, kubectl: Kubectl, kinds: Sequence[str]) -> None:
        self.kubectl, self.kinds = kubectl, kinds

    def carry_out(self, orders: list[Order]) -> None:
        """Carry orders out.

        So a lease is there before a Secret names its user, a Secret before the Pod that starts with it, and
        what cannot be had for oneself first, since somebody has changed it, is somebody else's and stays.
        """
        for verb, step in (("replace", "replaces"), ("create", "records"), ("create", "creates"),
                           ("replace", "claims")):
            wanted = [(order, item) for order in orders if not order.failures
                      for item in getattr(order, step)]
            if wanted:
                self.write(verb, wanted)
        lost: list[tuple[str, KubectlError]] = []  # The cluster: each of the others would wait for it, too.
        for order in orders:
            for kind, name, uid, version in order.deletes:
                order.failures = order.failures or [*lost]
                if not order.failures:
                    self.delete_exactly(order, kind, name, uid, version)
                    lost = [one for one in order.failures if one[1].reason in SILENCE]
        if ends := [order for order in orders if order.by_label and not order.failures]:
            self.delete_by_label(ends)

    def write(self, verb: str, wanted: list[tuple[Order, dict[str, Any]]]) -> None:
        """Create or replace objects of orders, and note with each what was made of it and what was not."""
        failure, printed = KubectlError("failed"), b""
        users = whose(list(dict.fromkeys(order for order, _ in wanted)))
        try:
            printed = self.kubectl(verb, "-f", "-", "--validate=false", "-o", "json",
                                   reason=f"{verb} {len(wanted)} objects for {users}",
                                   stdin=listed([item for _, item in wanted]), hide=passwords_in(wanted))
        except KubectlError as error:
            printed, failure = error.printed, error
        made = {key_of(item): item for item in documents(printed)}
        # kubectl prints what it made and, in the order of the rest, an error for each.
        failed = [(order, item["kind"]) for order, item in wanted if key_of(item) not in made]
        for (order, kind), reason in zip(failed, failure.each(len(failed))):
            order.failures.append((kind, reason))
        for order, item in wanted:
            order.made += [made[key_of(item)]] if key_of(item) in made else []

    def delete_exactly(self, order: Order, kind: str, name: str, uid: str, version: int) -> None:
        """Delete one object unless it has become another one, or has been changed (API, DeleteOptions)."""
        preconditions = {"uid": uid, **({"resourceVersion": str(version)} if version else {})}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                   "preconditions": preconditions}
        try:
            self.kubectl("delete", "--raw", f"{self.path(kind)}/{name}", "-f", "-",
                         reason=f"end {kind} {name}", stdin=json.dumps(options).encode())
        except KubectlError as error:
            if error.reason != "not found":
                order.failures.append((kind, error))

    def delete_by_label(self, orders: list[Order]) -> None:
        """Delete databases by their ids, which are never used twice: what is late deletes nothing else.

        kubectl stops at what is refused: then each half is tried, so that a refusal fails nobody else.
        """
        resources = ",".join(KINDS[kind][0] for kind in ("Pod", "Service", "Secret") if kind in self.kinds)
        selector = f"{SELECTOR},{DATABASE} in ({','.join(order.id for order in orders)})"
        try:
            self.kubectl("delete", resources, "-l", selector, "--wait=false", "--ignore-not-found",
                         reason=f"end {len(orders)} databases")
        except KubectlError as error:
            if len(orders) > 1 and error.reason in ("policy", "invalid"):  # A right lacks for all alike.
                self.delete_by_label(orders[:len(orders) // 2])
                self.delete_by_label(orders[len(orders) // 2:])
            else:
                for order in orders:
                    order.failures.append(("Pod", error))

    def look_at(self, looks: list[Look]) -> Any:
        """Read users' leases, and then what they name; return the objects, and by name what failed."""
        leases = self.read([("Lease", f"user-{look.user.slug}") for look in looks])
        names = {str(item["spec"].get("holderIdentity")) for item in leases}
        names |= {f"mysql-{look.id}" for look in looks if look.lease or look.objects}
        if "PersistentVolumeClaim" in self.kinds:
            names |= {f"mysql-user-{look.user.slug}" for look in looks}
        keys = [(kind, name) for name in sorted(names) if NAME.fullmatch(name) for kind in KINDS
                if kind != "Lease" and (kind in self.kinds or is_persistent(name.partition("-")[2]))]
        found = leases + self.read([key for key in keys if key[0] in self.kinds])
        others = [key for key in keys if key[0] not in self.kinds]
        try:
            return found + self.read(others), {}
        except KubectlError as error:  # This server may have no right to what its own template does not have.
            return found, {name: error for _, name in others}

    def patch_leases(self, names: list[str], renewed: str) -> KubectlError | None:
        """Write beats into leases; return what failed, with the names of what did not."""
        leases = [{"apiVersion": KINDS["Lease"][1], "kind": "Lease", "metadata": {"name": name}}
                  for name in names]
        try:
            self.kubectl("patch", "-f", "-", "--type=merge", "-p",
                         json.dumps({"spec": {"renewTime": renewed}}), "-o", "name",
                         reason=f"write {len(names)} heart beats", stdin=listed(leases))
        except KubectlError as error:
            return error
        return None

    def find_garbage(self, suspects: dict[str, list[str]]) -> Any:
        """Read what looks like nobody's; return the ids of what is, and Secrets to be won first.

        Secrets first and leases second: who gives writes them the other way round, so that no lease that
        names a database can be missed. `suspects` are ids, with the slugs of the leases that name them.
        """
        keys = [(kind, f"mysql-{id}") for kind in ("Secret", "Pod") for id in suspects]
        items = {key_of(item): item for item in self.read(keys)}
        secrets = {id: items.get(("Secret", f"mysql-{id}")) for id in suspects}
        users = {*map(user_of, secrets.values()), *itertools.chain(*suspects.values())} - {"", NOBODY}
        leases = [seen_of(item) for item in self.read([("Lease", f"user-{user}") for user in sorted(users)])]
        named = {lease.holder for lease in leases if isinstance(lease, Lease)}
        given = {(lease.holder, lease.acquired) for lease in leases if isinstance(lease, Lease)}
        ended = [id for id, secret in secrets.items() if (id, acquired_of(secret)) not in given
                 and (user_of(secret) or acquired_of(secret) or not secret and id not in named)]
        free = {id: secret for id, secret in secrets.items()
                if secret and not user_of(secret) and id not in ended and id not in named}
        return ended, [secret for id, secret in free.items()
                       if not started_with(secret, items.get(("Pod", f"mysql-{id}")))]

    def read(self, keys: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """Read objects by kind and name; those that are not there are left out. Raises KubectlError.

        Named on the command line they would be read at 5 a second, which is kubectl's limit there.
        """
        items = [{"apiVersion": KINDS[kind][1], "kind": kind, "metadata": {"name": name}}
                 for kind, name in keys]
        return list(documents(self.kubectl("get", "-f", "-", "--ignore-not-found", "-o", "json",
                                           reason=f"read {len(items)} objects afresh",
                                           stdin=listed(items)))) if items else []

    def path(self, kind: str) -> str:
        """Return the API server's path of a kind in our namespace."""
        resource, version = KINDS[kind]
        root = "apis" if "/" in version else "api"
        return f"/{root}/{version}/namespaces/{self.kubectl.namespace}/{resource}"


def whose(orders: list[Order]) -> str:
    """Say for the log whom orders are for."""
    users = [order.user.slug for order in orders if order.user]
    spares, more = len(orders) - len(users), len(users) - 5
    return ", ".join([*users[:5], *([f"{more} more users"] if more > 0 else []),
                      *([f"{spares} spares"] if spares else [])])


# ---- Heart beats and the sweep -------------------------------------------------------------------------

class Sweep:
    """Every round writes the beats, then ends what was idle for too long and removes what is nobody's."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.early_beats: dict[tuple[str, str], None] = {}  # By user id and client.
        self.beats_at_once, self.beats_written_at = BEATS_PER_KUBECTL, cluster.wall()
        self.round: Round | None = None
        self.seeks_garbage = False
        self.stopped, self.last_beats_from = False, float("-inf")
        self.idle_since = cluster.clock()  # Nobody counts as idle since before this.

    def begin_round(self) -> None:
        """Begin a round, unless one is under way or the cluster is not known; have the next one begin."""
        cluster = self.cluster
        cluster.loop.call_at(cluster.clock() + max(cluster.settings.sweep_interval, 0.1), self.begin_round)
        if not cluster.health.is_listed() or self.round or self.stopped:
            return
        for user_id, client in self.early_beats:
            user = cluster.users.get(slug(user_id))
            if user and user.lease and (user.lease.user_id, user.lease.client) == (user_id, client):
                user.heard_at, user.unwritten = cluster.clock(), True
        self.early_beats.clear()
        self.round = Round(cluster.clock(), micro_time(cluster.wall()))
        self.write_beats(self.spacing())

    def spacing(self) -> float:
        """Return how old a written beat may be before a newer one is written, in seconds."""
        settings = self.cluster.settings
        return max(settings.sweep_interval, (settings.idle_timeout or 43_200) / 50)

    def write_beats(self, spacing: float) -> None:
        """Write the beats that are due, the longest unwritten first, in groups."""
        assert self.round
        cluster, now, tried = self.cluster, self.cluster.clock(), self.round.tried
        while self.round.writing < BEATS_KUBECTLS and not self.round.failed:
            due = [user for user in cluster.users.values() if user.unwritten and user.lease
                   and user.lease.is_used() and now - user.written_at >= spacing and user.slug not in tried]
            due = sorted(due, key=lambda user: user.written_at)[:self.beats_at_once]
            if not due:
                break
            for user in due:
                user.unwritten = False  # What is heard from here on is another beat.
                tried.add(user.slug)
            names = [f"user-{user.slug}" for user in due]
            self.round.writing += 1
            cluster.loop.start(functools.partial(cluster.api.patch_leases, names, self.round.time),
                               functools.partial(self.beats_written, due, spacing))
        if not self.round.writing:
            self.end_round()

    def beats_written(self, due: list[User], spacing: float, failure: KubectlError | None) -> None:
        """Take up which beats were written, and go on with the round."""
        assert self.round
        self.round.writing -= 1
        printed = failure.printed.decode().split() if failure else ()
        written = {name.rpartition("/")[2] for name in printed}
        for user in due:
            if not failure or f"user-{user.slug}" in written:
                user.written_at = self.cluster.clock()
            else:
                user.unwritten = True  # One that has gone is not in the next round.
        if failure and failure.reason != "not found":
            self.round.failed = True
            if failure.reason == "timeout":  # Half as many may be written in time.
                self.beats_at_once = max(len(due) // 2, 10)
        elif not self.round.failed:
            self.beats_at_once = min(2 * self.beats_at_once, BEATS_PER_KUBECTL)
        self.write_beats(spacing)

    def end_round(self) -> None:
        """Look for what is nobody's and, if all beats could be written in time, for who is idle.

        If they could not, those of other servers may not either, and who seems idle may be beating there.
        """
        assert self.round
        cluster = self.cluster
        in_time = not self.round.failed and cluster.clock() - self.round.began <= self.spacing()
        self.round = None
        if in_time:
            self.beats_written_at = cluster.wall()
        if not self.stopped:
            self.look_around(iter([*cluster.users.values(), *cluster.databases.values()]), in_time, [], [])

    def look_around(self, rest: Iterator[User | Database], in_time: bool, idle: list[User],
                    suspects: list[str]) -> None:
        """Look at all users and databases, a portion in each step of the loop; then end who is idle."""
        cluster = self.cluster
        portion = list(itertools.islice(rest, PORTION_OBJECTS))
        for one in portion:
            if isinstance(one, Database):
                suspects += [one.id] if self.is_suspect(one) else []
            elif self.is_idle(one):
                idle += [one] if in_time else []
            elif one.lease and not one.order and one.lease.is_used():
                cluster.mend(one, one.lease)
            elif one.left not in cluster.databases:
                cluster.touch(one)  # Nothing is left of it; nobody may want to know of this user any more.
        if portion:
            cluster.loop.post(self.look_around, rest, in_time, idle, suspects)
            return
        if cluster.ending.waiting:
            return  # Those whom users have ended come first; a slow cluster takes longer than a round.
        # Not always the same, should they fail.
        for user in cluster.random.sample(idle, min(len(idle), SWEPT_PER_ROUND)):
            cluster.look(user, idle=True)
        # One at a time: rounds that are shorter than a reading takes would otherwise have every thread read
        # the same, and none left to delete it, or to make anything.
        if suspects and not self.seeks_garbage:
            self.seeks_garbage = True
            some = cluster.random.sample(suspects, min(len(suspects), SUSPECTS_PER_ROUND))
            named_by = {id: list(cluster.holders.get(id, ())) for id in some}
            cluster.loop.start(functools.partial(cluster.api.find_garbage, named_by), self.remove_garbage)

    def is_idle(self, user: User) -> bool:
        """Tell whether a user was heard by nobody for too long, with time for others' beats to be seen."""
        cluster = self.cluster
        limit, since = cluster.settings.idle_timeout, max(user.heard_at, self.idle_since)
        if not user.lease or user.order or user.slug in cluster.waiting:
            return False
        if user.lease.ends:
            return True
        if user.lease.kept:  # Its end was cut short if there is more than the volume.
            objects = cluster.parts(user.lease.holder)
            return any(not objects[kind].gone for kind in ("Pod", "Service") if kind in objects)
        return 0 < limit < cluster.clock() - since - 2 * self.spacing()

    def is_suspect(self, database: Database) -> bool:
        """Tell whether a database looks as if it were nobody's."""
        now, secret = self.cluster.clock(), database.objects.get("Secret")
        if is_persistent(database.id) or database.promised or now < database.stays_until:
            return False  # Somebody's data may be in it, or its removal was refused a moment ago.
        if not secret or secret.is_free():
            return now > database.half_since + HALF_A_SPARE_SECONDS
        user = self.cluster.users.get(secret.user)
        return not (user and user.lease and user.lease.holder == database.id
                    and database.is_of(user.slug, user.lease))

    def remove_garbage(self, found: Any) -> None:
        """Have what is nobody's deleted."""
        self.seeks_garbage = False
        ended, free = ((), ()) if isinstance(found, KubectlError) else found
        for id in ended:
            self.cluster.destroy(id)
        for secret in free:
            self.cluster.learn_item(secret)
            if database := self.cluster.databases.get(key_of(secret)[1].partition("-")[2]):
                self.cluster.spares.remove(database)

    def last_beats(self) -> bool:
        """Write the beats that are not written, at most once a second; return whether there are none."""
        cluster, now = self.cluster, self.cluster.clock()
        left = any(user.unwritten and user.lease and user.lease.is_used() for user in cluster.users.values())
        if left and not self.round and now >= self.last_beats_from:
            self.last_beats_from = now + 1
            cluster.loop.call_at(self.last_beats_from, lambda: None)  # Wakes the loop, which then asks again.
            self.round = Round(now, micro_time(cluster.wall()))
            self.write_beats(0)
        return not left and not self.round


class Round:
    """A round of the sweep while its beats are being written."""

    def __init__(self, began: float, time: str) -> None:
        self.began, self.time, self.failed = began, time, False
        self.writing = 0  # Kubectls.
        self.tried: set[str] = set()  # Slugs.


# ---- Watches -------------------------------------------------------------------------------------------

class Watch:
    """Tells the table what the cluster holds of one kind, as a thread: list, then watch from there on.

    Kubernetes API Concepts, "Efficient detection of changes".
    """

    def __init__(self, cluster: Cluster, kind: str) -> None:
        self.cluster, self.kind = cluster, kind
        selector = SELECTOR if kind == "Lease" else f"{SELECTOR},{DATABASE}"
        self.path = f"{cluster.api.path(kind)}?labelSelector={urllib.parse.quote(selector)}"
        self.version, self.troubled = "", False

    def run(self) -> NoReturn:
        """Watch for ever, after failures with growing pauses."""
        pause = WATCH_PAUSES_SECONDS[0]
        while True:
            started, was_troubled = time.monotonic(), self.troubled
            self.watch()
            if was_troubled and not self.troubled:
                continue
            if time.monotonic() - started > WATCH_PAUSES_SECONDS[1]:
                pause = WATCH_PAUSES_SECONDS[0]
            else:
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, WATCH_PAUSES_SECONDS[1])

    def watch(self) -> None:
        """List, unless it is known from where on to watch, and watch once."""
        try:
            self.version = self.version or self.list_all()
            if not self.troubled:
                self.report("")
            # That it goes well again shows in the end of a watch only: many have nothing to tell.
            seconds = 1 if self.troubled else WATCH_SECONDS
            options = (f"&watch=1&resourceVersion={self.version}&allowWatchBookmarks=true"
                       f"&timeoutSeconds={seconds}")
            for line in self.cluster.kubectl.lines("get", "--raw", self.path + options,
                                                   reason=f"watch {self.kind}",
                                                   seconds=seconds + WATCH_GRACE_SECONDS):
                self.hear(json.loads(line))
            self.troubled = False
        except KubectlError as error:
            self.version = "" if error.reason == "expired" else self.version
            if error.reason not in ("expired", "cut"):
                self.report(error.reason, error.words)
        except json.JSONDecodeError as error:
            self.version = ""
            self.report("unreachable", f"{NOT_KUBERNETES}: {error}")
        except Exception:  # Whatever it was that came: the table is to be what the cluster holds.
            if not self.troubled:
                log.error(logfmt("watch", kind=self.kind, error=traceback.format_exc()))
            self.version = ""
            self.report("failed")

    def report(self, trouble: str, words: str = "") -> None:
        """Tell how it goes."""
        self.troubled = bool(trouble)
        self.cluster.loop.post(self.cluster.health.report, self.kind, trouble, words)

    def list_all(self) -> str:
        """Tell all that the cluster holds, in portions; return its resourceVersion."""
        cluster, kind, more = self.cluster, self.kind, ""
        cluster.loop.post(cluster.begin_listing, kind)
        while True:
            metadata, items = read_page(cluster.kubectl(
                "get", "--raw", f"{self.path}&limit={PAGE_OBJECTS}{more}", reason=f"list {kind}"))
            while portion := [(item["metadata"]["name"], seen_of({**item, "kind": kind}))
                              for item in itertools.islice(items, PORTION_OBJECTS)]:
                cluster.loop.post(cluster.take_portion, kind, portion)
                time.sleep(PORTION_PAUSE_SECONDS)
            if not metadata.get("continue"):
                cluster.loop.post(cluster.end_listing, kind, int(metadata["resourceVersion"]))
                return str(metadata["resourceVersion"])
            more = f"&continue={urllib.parse.quote(metadata['continue'])}"

    def hear(self, event: dict[str, Any]) -> None:
        """Tell of an event. Raises KubectlError if it is an error."""
        item, name, seen = event["object"], "", None
        if event["type"] == "ERROR":  # 410: the version is no longer in the server's history.
            raise KubectlError("expired" if item.get("code") == 410 else why(str(item.get("message"))))
        if event["type"] != "BOOKMARK":
            name, seen = item["metadata"]["name"], seen_of({**item, "kind": self.kind})
        version = int(item["metadata"]["resourceVersion"])
        self.cluster.loop.post(self.cluster.take_event, self.kind, name,
                               None if event["type"] == "DELETED" else seen, version)
        self.version = str(version)


# ---- Templates -----------------------------------------------------------------------------------------

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
PASSWORD = re.compile(r"[A-Za-z0-9_-]{24,}")  # What SQLFlow can paste anywhere without quoting it.
NAME = re.compile(r"mysql-[a-z0-9-]+")  # Of a database's objects, fit to be an argument of kubectl.
# Values no user can have, with which a template is tried.
EXAMPLE = {"id": "example--000000000000", "password": "0" * 32, "slug": "example--000000000000",
           "user_id": "an example", "client": "a client"}


class Template:
    """The Kubernetes objects of one database, with ${placeholders} in their values."""

    def __init__(self, path: str) -> None:
        """Parse and check a template. Raises OSError, or ValueError that says what is wrong."""
        self.path, self.hash = path, ""
        try:
            documents = yaml.safe_load_all(read_file(path))
            self.objects: list[dict[str, Any]] = [item for item in documents if item is not None]
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from error
        kinds = [item.get("kind") if isinstance(item, dict) else None for item in self.objects]
        if sorted(map(str, kinds)) not in (["Pod", "Secret"], ["Pod", "Secret", "Service"],
                                           ["PersistentVolumeClaim", "Pod", "Secret", "Service"]):
            raise ValueError("must hold one Pod and one Secret, at most one Service, with it at most one "
                             "PersistentVolumeClaim, and nothing else, but holds "
                             + (", ".join(map(str, kinds)) or "nothing"))
        self.kinds = [kind for kind in KINDS if kind in kinds]
        self.persistent = "PersistentVolumeClaim" in kinds
        self.objects.sort(key=lambda item: self.kinds.index(item["kind"]))
        try:
            text = json.dumps(self.objects, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError("has a value that JSON does not know, such as a date without quotes: "
                             f"{error}") from error
        try:
            for item in self.objects:
                if (item.get("metadata") or {}).get("name") != "${name}":
                    raise ValueError(f"lacks in its {item['kind']}: metadata: name: ${{name}}")
            if (self.objects[0].get("stringData") or {}).get("password") != "${password}":
                raise ValueError("lacks in its Secret: stringData: password: ${password}")
            self.objects_of(**EXAMPLE)
            self.needs = self.needs_of_one()
        except KeyError as error:
            raise ValueError(f"has an unknown placeholder ${{{error.args[0]}}}: known are name, database, "
                             "password, slug, user_id and client") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(f"has a value of another form than Kubernetes takes there: {error}") from error
        self.hash = hashlib.sha256(text.encode()).hexdigest()[:16]
        # Made for its user: nobody else can be given it, so that there are no spares.
        self.per_user = self.persistent or bool({"slug", "user_id", "client"} & {*PLACEHOLDER.findall(text)})

    def objects_of(self, id: str, password: str, slug: str = "", user_id: str = "", client: str = "",
                   acquired: str = "") -> list[dict[str, Any]]:
        """Return a database's objects with what the server relies on. Raises KeyError for a placeholder."""
        values = {"name": f"mysql-{id}", "database": id, "password": password, "slug": slug,
                  "user_id": user_id, "client": client}

        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: filled(inner) for key, inner in value.items()}
            if isinstance(value, list):
                return [filled(inner) for inner in value]
            return PLACEHOLDER.sub(lambda match: values[match[1]], value) if isinstance(value, str) else value
        objects: list[dict[str, Any]] = filled(self.objects)
        for item in objects:
            kind, metadata = item["kind"], item["metadata"]
            notes = {TEMPLATE: self.hash} if kind == "Secret" else {PASSWORD_HASH: hash_of(password)}
            if self.persistent and kind in ("Secret", "PersistentVolumeClaim"):
                notes[CLIENT] = client
            metadata["labels"] = {**(metadata.get("labels") or {}), **OURS, DATABASE: id}
            metadata["annotations"] = {**(metadata.get("annotations") or {}), **notes}
            if kind == "Secret" and slug:
                item.update(labelled(item, slug, acquired))
        return objects

    def needs_of_one(self) -> dict[str, float]:
        """Return what one database takes of a quota, by its names there (Kubernetes, "Resource Quotas")."""
        needs: dict[str, float] = collections.defaultdict(float, {KINDS[kind][0]: 1 for kind in self.kinds})
        for spec in [item.get("spec") or {} for item in self.objects]:
            for asks in (spec, *(spec.get("containers") or ())):
                for what, amounts in (asks.get("resources") or {}).items():
                    for name, amount in (amounts or {}).items():
                        needs[f"{what}.{name}"] += quantity(str(amount))
        return needs

    def databases_in(self, hard: dict[str, str]) -> float:
        """Return for how many databases a quota's limits have room."""
        needs = [(self.needs.get(name.removeprefix("count/")) or self.needs.get(f"requests.{name}"), bound)
                 for name, bound in hard.items()]
        return min((quantity(bound) // need for need, bound in needs if need), default=float("inf"))

    def too_many_for(self, quota: dict[str, Any], settings: Settings) -> str:
        """Say what is wrong if a ResourceQuota has no room for the databases that the options allow."""
        room = self.databases_in(quota["status"].get("hard") or {})
        wanted = settings.max_databases + settings.spare_databases
        return "" if room >= wanted else (f"it has room for {room:.0f} databases, --max_databases and "
                                          f"--spare_databases are {wanted}: raise it, or lower them")


def quantity(text: str) -> float:
    """Return the number that a quantity stands for (Kubernetes API, "Quantity"). Raises ValueError."""
    match = re.fullmatch(r"([-+]?[0-9]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?)([numkKMGTPE]i?|)", text)
    if not match:
        raise ValueError(f"{text!r} is no quantity such as 500m or 1Gi")
    number, suffix = match.groups()
    scale = 1024 if suffix.endswith("i") else 1000
    power = "num kMGTPE".find(suffix[0].replace("K", "k")) - 3 if suffix else 0
    return float(number) * float(scale) ** power


# ---- Kubernetes' objects: functions, without a table or a clock ----------------------------------------

def parts_of(id: str, objects: dict[str, Any], stays: Sequence[str] = ()) -> list[tuple[str, str, str, int]]:
    """Return what to delete of a database whose name is used again: by uid, as Order.deletes has it."""
    return [(kind, f"mysql-{id}", objects[kind].uid, 0)
            for kind in ("Pod", "Service", "PersistentVolumeClaim", "Secret")
            if kind in objects and kind not in stays]


LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


def slug(user_id: str) -> str:
    """Return the user id as a DNS label of at most 40 characters, the same for the same id only.

    A readable part and a hash stand for an id that is no such label.
    """
    if LABEL.fullmatch(user_id) and "--" not in user_id:
        return user_id
    readable = re.sub(r"[^a-z0-9]+", "-", user_id.lower())[:26].strip("-") or "user"
    return f"{readable}--{hashlib.sha256(user_id.encode()).hexdigest()[:12]}"


def seen_of(item: dict[str, Any]) -> Seen:
    """Reduce an object to what is kept of it. Raises LookupError, ValueError, TypeError."""
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    uid, version = metadata["uid"], int(metadata["resourceVersion"])
    annotations = metadata.get("annotations") or {}
    if item["kind"] == "Lease":
        return Lease(uid, version, str(spec.get("holderIdentity") or "").partition("mysql-")[2],
                     annotations.get(USER_ID, ""), annotations.get(CLIENT, ""),
                     spec.get("acquireTime") or "", spec.get("renewTime") or "",
                     annotations.get(ADDRESS, ""), KEPT in annotations, ENDS in annotations,
                     REPLACES in annotations, json.dumps(bare(item)))
    if item["kind"] == "Secret":
        password = password_in(item) if PASSWORD.fullmatch(password_in(item)) else ""
        return Secret(uid, version, user_of(item), acquired_of(item), annotations.get(TEMPLATE, ""),
                      password, hash_of(password), json.dumps(bare(item)))
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    addresses = [spec.get("clusterIP", ""), status.get("podIP", ""),
                 *(one["ip"] for one in status.get("podIPs") or ())]
    deleted, ended = "deletionTimestamp" in metadata, status.get("phase") in ("Failed", "Succeeded")
    return Part(uid, version, next((one for one in addresses if re.fullmatch("[0-9.]+", one)), ""),
                conditions.get("Ready", {}).get("status") == "True",
                deleted or ended, ended and not deleted,
                reason_of(item),
                conditions.get("PodScheduled", {}).get("reason") == "Unschedulable",
                annotations.get(PASSWORD_HASH, ""), annotations.get(CLIENT, ""))


def labelled(secret: dict[str, Any], user: str, acquired: str = "") -> dict[str, Any]:
    """Return a Secret that is a user's, under a lease, to be written by whoever saw its version."""
    item = bare(secret)
    metadata = item["metadata"]
    return {**item, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), USER: user},
                                 "annotations": {**(metadata.get("annotations") or {}), ACQUIRED: acquired}}}


def bare(item: dict[str, Any]) -> dict[str, Any]:
    """Return an object as it can be written again."""
    kept = {key: value for key, value in item["metadata"].items() if key in (
        "name", "uid", "resourceVersion", "labels", "annotations", "ownerReferences", "finalizers")}
    return {"apiVersion": KINDS[item["kind"]][1], "kind": item["kind"], "metadata": kept,
            **{key: item[key] for key in ("spec", "type", "data", "immutable") if key in item}}


def item_of(seen: Lease | Secret) -> dict[str, Any]:
    """Return an object as it can be written again."""
    return dict(json.loads(seen.text))


def rewritten(lease: Lease, notes: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Return a lease with these annotations, without those that are None, and these values in its spec.

    It is to be written by whoever saw its version.
    """
    item = item_of(lease)
    notes = {**(item["metadata"].get("annotations") or {}), **notes}
    item["metadata"]["annotations"] = {name: note for name, note in notes.items() if note is not None}
    item["spec"].update(spec)
    return item


def is_ours(item: dict[str, Any]) -> bool:
    """Tell whether an object carries this playground's labels."""
    labels = item["metadata"].get("labels") or {}
    return OURS.items() <= labels.items() and (item["kind"] == "Lease" or DATABASE in labels)


def is_persistent(id: str) -> bool:
    """Tell whether a database has its user's name, so that its volume is found; other ids have no dash."""
    return "-" in id


def user_of(secret: dict[str, Any] | None) -> str:
    """Return whose a Secret is; empty if it is nobody's, or none."""
    return str(((secret or {}).get("metadata", {}).get("labels") or {}).get(USER, ""))


def acquired_of(secret: dict[str, Any] | None) -> str:
    """Return when the lease was acquired under which a Secret was given."""
    return str(((secret or {}).get("metadata", {}).get("annotations") or {}).get(ACQUIRED, ""))


def lease_of(slug: str, user_id: str, client: str, id: str, address: str, now: str,
             acquired: str = "") -> dict[str, Any]:
    """Return a user's lease of a database."""
    labels = {**OURS, "app.kubernetes.io/name": "sqlflow-playground", USER: slug}
    return {"apiVersion": KINDS["Lease"][1], "kind": "Lease",
            "metadata": {"name": f"user-{slug}", "labels": labels,
                         "annotations": {USER_ID: user_id, CLIENT: client, ADDRESS: address}},
            "spec": {"holderIdentity": f"mysql-{id}", "acquireTime": acquired or now, "renewTime": now}}


def micro_time(seconds: float) -> str:
    """Format seconds since 1970 as Kubernetes' MicroTime, in UTC."""
    return time.strftime(SECONDS, time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def reason_of(part: dict[str, Any]) -> str:
    """Say why a part is not ready, in Kubernetes' own words for the reason but none of its messages."""
    if "deletionTimestamp" in part["metadata"]:
        return ("the database's volume was deleted, and goes when its pod does: delete_db gives the data up"
                if part["kind"] == "PersistentVolumeClaim" else
                f"the database's old {part['kind'].lower()} does not go (Terminating): ask again; if it "
                "stays, its maintainer finds why with kubectl describe")
    if part["kind"] != "Pod":
        return ""
    status = part.get("status") or {}
    conditions = status.get("conditions") or ()
    reasons = [one.get("reason", "") for one in conditions if one["type"] == "PodScheduled"]
    reasons += [(container.get("state") or {}).get("waiting", {}).get("reason", "")
                for container in status.get("containerStatuses") or ()]
    reason = next((one for one in reasons if one not in ("", "ContainerCreating", "PodInitializing")), "")
    if reason == "Unschedulable":
        return "the database is not ready, since no node has room for it (Unschedulable): ask again later"
    if reason:
        return (f"the database is not ready, since its container does not start ({reason}): its maintainer "
                "finds why with kubectl describe")
    # Before its first readiness probe a container is started and not ready, too, but not since its start.
    since = next((one.get("lastTransitionTime") or "" for one in conditions if one["type"] == "Ready"), "")
    if any(container.get("started") and not container.get("ready")
           and since > ((container.get("state") or {}).get("running") or {}).get("startedAt", since)
           for container in status.get("containerStatuses") or ()):
        return ("the database runs, but does not take the password of its data source, or does not answer: "
                "if root's password was changed, set it back; else its maintainer must see to it")
    return STARTING


def password_in(secret: dict[str, Any]) -> str:
    """Return a Secret's password, in whatever form somebody gave it; empty if it has none."""
    return base64.b64decode((secret.get("data") or {}).get("password", "")).decode(errors="replace")


def started_with(secret: dict[str, Any], pod: dict[str, Any] | None) -> bool:
    """Tell whether a Pod is there, and a Secret is the one that it started with."""
    database = Database("", 0)
    for item in filter(None, (secret, pod)):
        database.take(item["kind"], seen_of(item))
    return bool(database.pod and database.secret)


def hash_of(password: str) -> str:
    """Return what a password is known by and cannot be found from: it is 128 random bits."""
    return hashlib.sha256(password.encode()).hexdigest()[:16]


def listed(items: list[dict[str, Any]]) -> bytes:
    """Return objects as one List for kubectl's stdin."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode()


def documents(printed: bytes) -> Iterator[dict[str, Any]]:
    """Yield the objects that kubectl has printed, one after the other or as a List."""
    text, decoder, at = printed.decode(), json.JSONDecoder(), 0
    with contextlib.suppress(ValueError):  # What was cut off in the middle.
        while (start := text.find("{", at)) >= 0:
            item, at = decoder.raw_decode(text, start)
            yield from item["items"] if item["kind"] == "List" else [item]


def key_of(item: dict[str, Any]) -> tuple[str, str]:
    """Return what tells an object from all others of the namespace."""
    return item["kind"], item["metadata"]["name"]


def passwords_in(wanted: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    """Return the passwords in Secrets, which kubectl's words must not show."""
    return [item.get("stringData", {}).get("password") or password_in(item)
            for _, item in wanted if item["kind"] == "Secret"]


def read_page(page: bytes) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Return a listing's metadata and its items, each parsed in its turn: all at once would stop the loop.

    json.loads holds Python's lock until it is done, 30 ms for a page of large objects.
    """
    text = page.decode()
    head, _, rest = text.partition('"items":[')
    try:
        return json.loads(head + '"items":[]}')["metadata"], items_of(rest)
    except (ValueError, LookupError):  # Another order, or none at all.
        whole = json.loads(text)
        return whole["metadata"], iter(whole["items"] or ())


def items_of(text: str) -> Iterator[dict[str, Any]]:
    """Yield the items of a JSON array whose opening bracket has been read."""
    decoder, at = json.JSONDecoder(), 0
    while text[at] != "]":
        item, at = decoder.raw_decode(text, at)
        at += text[at] == ","
        yield item


# ---- kubectl -------------------------------------------------------------------------------------------

# Reasons for which kubectl fails, and how its words show it: the first that fits. SENTENCES has what a client
# is told; kubectl's own words go to the log only. What has no pattern is found out elsewhere.
REASONS = {
    "quota": r"exceeded quota",
    "forbidden": r"cannot \w+ resource|\(Unauthorized\)|must be logged in",
    "exists": r"\(AlreadyExists\)",
    "ending": r"because it is being terminated",
    # What else is forbidden is so by admission: LimitRange, PodSecurity, a webhook.
    "policy": r"\(Forbidden\)|admission webhook .* denied|denied request|error looking up service account",
    "cut": r"unexpected EOF|GOAWAY|connection lost",
    "unreachable": r"connection refused|was refused|[Uu]nable to connect|i/o timeout|Client\.Timeout|"
                   r"TLS handshake timeout|deadline exceeded|no such host|no route to host|connection reset|"
                   r": EOF|stream error|x509:|failed to download openapi|unable to handle the request|"
                   r"\((ServiceUnavailable|InternalError|TooManyRequests|ServerTimeout|Timeout)\)",
    "no dry run": r"does not support dry run",
    "invalid": r"\((Invalid|BadRequest)\)|\" is invalid:|error validating|strict decoding|error parsing",
    "not found": r"\(NotFound\)",
    "conflict": r"\(Conflict\)",
    "expired": r"\((Expired|Gone)\)",
    "failed": r"",
}


class KubectlError(Exception):
    """A kubectl that failed: why, of REASONS; its own words, for the log only; what it had printed."""

    def __init__(self, reason: str, words: str = "", printed: bytes = b"") -> None:
        super().__init__(words or reason)
        self.reason, self.words, self.printed = reason, words, printed

    def each(self, count: int) -> list[KubectlError]:
        """Return an error for each of so many objects that kubectl could not create, in their order."""
        starts = r"^(?=Error from server|error: |The \w+ \")"
        parts = [part for part in re.split(starts, self.words, flags=re.M)
                 if part.startswith(("Error from server", "error: ", "The "))]
        if len(parts) == count:
            return [KubectlError(why(part), part) for part in parts]
        # Nothing was sent to the server, or whose is whose is not known: then all may ask again.
        alike = len(parts) < 2 and self.reason not in ("exists", "quota")
        return [self if alike else KubectlError("unreachable", self.words)] * count


def why(words: str) -> str:
    """Return the reason, of REASONS, that kubectl's words show."""
    return next(reason for reason, pattern in REASONS.items() if re.search(pattern, words))


class Kubectl:
    """Runs kubectl on one namespace, for any thread that may wait; only the loop's may not."""

    def __init__(self, path: str, context: str, namespace: str = "") -> None:
        self.namespace = namespace  # Empty until it is found out with this very kubectl.
        self.command = [path, *([f"--context={context}"] if context else [])]
        # Linux can end a child with its parent, however that ends. setpriv comes with Debian; without
        # it, a watch ends at its next line, and any kubectl at its own time limit.
        setpriv = [shutil.which("setpriv") or "", "--pdeathsig", "KILL"]
        if setpriv[0] and subprocess.run([*setpriv, "true"], capture_output=True).returncode == 0:
            self.command = [*setpriv, *self.command]
        self.lock = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}  # By process id.
        self.stopped = False
        self.lost = False  # The cluster, which has a line of the log of its own: see Health.report.
        self.post: Callable[[Step], object] = lambda step: step()  # Server.post, once there is a loop.

    def __call__(self, *arguments: str, reason: str, stdin: bytes = b"", seconds: float = KUBECTL_SECONDS,
                 hide: Sequence[str] = ()) -> bytes:
        """Run kubectl to its end and return what it prints; see `stream`."""
        printed: list[bytes] = []
        try:
            printed.extend(self.stream(arguments, reason, stdin, seconds, hide))
        except KubectlError as error:
            raise KubectlError(error.reason, error.words, b"".join(printed)) from error
        return b"".join(printed)

    def lines(self, *arguments: str, reason: str, seconds: float) -> Iterator[bytes]:
        """Run kubectl and yield the lines that it prints, as they come; see `stream`."""
        rest = b""
        for data in self.stream(arguments, reason, b"", seconds, ()):
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def stream(self, arguments: Sequence[str], reason: str, stdin: bytes, seconds: float,
               hide: Sequence[str]) -> Iterator[bytes]:
        """Run kubectl and yield what it prints, as it comes. Every kubectl of this server runs here.

        `reason` is what it is run for, `seconds` its time limit and `hide` the passwords that its words must
        not show. Raises KubectlError when it fails or the time is up.
        """
        started, outcome, said = time.monotonic(), "ok", ""
        try:
            with memory_file(stdin) as given, memory_file() as words, \
                    self.start(arguments, given, words) as process:
                try:
                    assert process.stdout
                    poll = select.poll()
                    poll.register(process.stdout, select.POLLIN)
                    while poll.poll(max(started + seconds - time.monotonic(), 0) * 1000):
                        data = os.read(process.stdout.fileno(), 2 ** 16)
                        if not data:
                            break
                        yield data
                    code = process.wait(max(started + seconds - time.monotonic(), 0))
                    if code:
                        words.seek(0)
                        # Newer kubectls repeat in klog's format, five times, that they cannot connect.
                        said = "".join(line for line in words.read().decode(errors="replace").splitlines(True)
                                       if "memcache.go" not in line)
                        outcome = "timeout" if code < 0 else "missing" if code in (126, 127) else why(said)
                except subprocess.TimeoutExpired:
                    outcome = "timeout"
                finally:
                    kill(process)
                    process.wait()
                    with self.lock:
                        del self.running[process.pid]
        except (OSError, RuntimeError) as error:  # No process, file or memory to be had.
            outcome, said = "missing", str(error)
        said, taken = strike_out(said, hide), time.monotonic() - started
        verb = "watch" if any("&watch=1" in argument for argument in arguments) else arguments[0]
        self.post(lambda: metrics.add("kubectl_seconds", taken, verb=verb, outcome=outcome))
        if not self.stopped:
            expected = outcome in ("ok", "exists", "not found", "conflict", "cut")
            # Health.report tells how it goes with those that observe, and that the cluster is lost.
            told = reason.startswith(("watch ", "list ")) or self.lost and outcome in SILENCE
            log.log(logging.DEBUG if told else logging.INFO if expected else logging.WARNING, logfmt(
                "kubectl", verb=verb, reason=reason, outcome=outcome, ms=taken * 1000,
                **({"said": said} if said else {})))
        if outcome != "ok":
            raise KubectlError(outcome, said)

    def start(self, arguments: Sequence[str], stdin: IO[bytes], words: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start kubectl, its own words going to a file. Raises OSError if it cannot be started."""
        command = [*self.command, *([f"--namespace={self.namespace}"] if self.namespace else []), *arguments]
        with self.lock:
            if self.stopped:
                raise OSError("this server is stopping")
            # A group of its own, so that it ends together with the credential helpers it may start. On one
            # thread: Go would have one for each core collect a small heap's garbage, a seventh of the CPU.
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=words,
                                       start_new_session=True, env={"GOMAXPROCS": "1", **os.environ})
            self.running[process.pid] = process
            return process

    def reap(self) -> None:
        """As a container's first process, bury what was left to us; what is ours is waited for elsewhere."""
        with self.lock, contextlib.suppress(ChildProcessError):
            while os.getpid() == 1 and (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
                if dead.si_pid in self.running:
                    break  # It hides the others until then.
                os.waitpid(dead.si_pid, 0)

    def stop(self) -> None:
        """End every kubectl, and start none any more."""
        with self.lock:
            self.stopped = True
            for process in self.running.values():
                kill(process)


def memory_file(content: bytes = b"") -> IO[bytes]:
    """Return an open file without a name, in memory where the system has that: passwords are on no disk."""
    create = getattr(os, "memfd_create", None)  # Linux has it.
    file: IO[bytes] = (os.fdopen(create("kubectl"), "w+b") if create
                       else tempfile.TemporaryFile())  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process's group, unless it was waited for: its number may be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)


def strike_out(words: str, passwords: Sequence[str]) -> str:
    """Return the words without any piece of four or more characters of a password or of its base64 forms."""
    forms = [form for password in passwords for form in (
        password, *(base64.b64encode(b"\0" * shift + password.encode()).decode()[2 * shift:]
                    for shift in range(3)))]
    # The API server quotes objects in some errors, cut anywhere.
    pieces = {form[start:start + 4] for form in forms for start in range(len(form) - 3)}
    for password in filter(None, passwords):
        words = words.replace(password, "***")  # Be it of a form that the server does not make.
    return re.sub(r"[A-Za-z0-9_+/=-]{4,}", lambda match: "***" if any(
        match[0][start:start + 4] in pieces for start in range(len(match[0]) - 3)) else match[0], words)


# ---- TLS files -----------------------------------------------------------------------------------------

# OpenSSL's flags, which ssl does not name in every version: a CA between is one as well, if a file names it;
PARTIAL_CHAIN = ssl.VerifyFlags(0x80000)
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # and only whose it is and for what, not when.
NO_LIST = "none, so no certificate is revoked"
UNLISTED = "add its revocation list to --crl: until then none of its clients is let in"
LACKING = "clients who use these names refuse it: renew it with them"
# What is to be done about a file whose time has not come, and what happens until then.
FUTURE = dict.fromkeys(("ca_crt", "server_crt"), "see that all clocks are right: until then the one before "
                       "stays in use, and nobody gets in where there was none")
FUTURE["crl"] = "see that all clocks are right: what it revokes is shut out already"


class Tls(NamedTuple):
    """What the TLS files hold, at one moment."""

    context: ssl.SSLContext
    trusted: bytes  # The CA and the revocation list: who is let in.
    revoked: frozenset[tuple[bytes, int]]  # Issuers and serial numbers.
    listed: frozenset[bytes]  # Issuers of lists: with one, nobody else's clients are let in.
    begins: dict[str, float]  # By file; seconds since 1970.
    expiries: dict[str, float]
    names: tuple[str, ...]  # Of the server, as clients see them.
    unlisted: tuple[str, ...]  # CAs whose clients are kept out: another CA has a list, and they have none.

    def awaited(self) -> dict[str, float]:
        """Return when the files whose time has not come begin."""
        return {name: begin for name, begin in self.begins.items() if begin > time.time()}

    def lets_nobody_in(self) -> bool:
        """Tell whether a file has ended, or one without which there is no handshake has not begun."""
        return min(self.expiries.values()) < time.time() or bool(self.awaited().keys() - {"crl"})


def load_tls(files: dict[str, str]) -> Tls:
    """Read the TLS files by their options' names: ca_crt, server_crt, server_key, and crl, if there is one.

    The context requires a certificate of our CA from every client, in every handshake. Raises Refusal.
    """
    content, crl_file = {"crl": b""}, files.get("crl", "")
    for name, path in files.items():
        with blaming(f"--{name} {path} cannot be read", "name a file that this server may read",
                     missing="make it with gen_cert.sh server, or name another file"):
            content[name] = read_file(path) if path or name != "crl" else b""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Forward secrecy and authenticated encryption, as TLS 1.3 has it; also Mozilla's "intermediate".
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= PARTIAL_CHAIN
    # A resumed session would not look at the certificate again. TLS 1.2's can all the same: OpenSSL keeps
    # them with the context, Python cannot tell it not to, and Server.admit looks.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    begins, expiries = {}, {}
    with blaming(f"--ca_crt {files['ca_crt']} holds no certificate that can be used",
                 "name the CA's certificate in PEM"):
        # OpenSSL checks the purpose too: a certificate for servers only is no client's.
        context.load_verify_locations(files["ca_crt"])
        authorities = list(map(read_certificate, context.get_ca_certs(binary_form=True)))
        if not authorities:
            raise ValueError("it is no CA's: it may not sign others")
        begins["ca_crt"] = min(authority.begins for authority in authorities)
        ends = [authority.ends for authority in authorities]
        # One that has ended keeps nobody of the others' out.
        expiries["ca_crt"] = min((end for end in ends if end > time.time()), default=max(ends))
    if b"ENCRYPTED" in content["server_key"]:
        raise Refusal(f"--server_key {files['server_key']} is encrypted, and nobody can type its password",
                      f"decrypt it: openssl pkey -in {files['server_key']} -out FILE, and name that file")
    with blaming(f"--server_key {files['server_key']} and --server_crt {files['server_crt']} cannot be used "
                 "together", "expected a private key in PEM without a password, and its certificate"):
        # Without a password function OpenSSL would ask for one on the terminal.
        context.load_cert_chain(files["server_crt"], files["server_key"], password=lambda: "")
        chain = pem(content["server_crt"], "CERTIFICATE")
        begins["server_crt"], expiries["server_crt"] = read_certificate(chain[0])[3:]
    revoked, listed = set[tuple[bytes, int]](), set[bytes]()
    with blaming(f"--crl {crl_file} cannot be used",
                 "name the revocation list of the CA in PEM, as gen_cert.sh makes it"):
        for crl in pem(content["crl"], "X509 CRL") if crl_file else ():
            issuer, made, expiry, serials = read_crl(crl)
            if issuer not in [authority.subject for authority in authorities]:
                raise ValueError(f"it is not of a CA in {files['ca_crt']}")
            if expiry < time.time():
                raise ValueError("it has ended, and nobody would get in")
            begins["crl"] = max(made, begins.get("crl", made))
            expiries["crl"] = min(expiry, expiries.get("crl", expiry))
            revoked |= {(issuer, serial) for serial in serials}
            listed.add(issuer)
        # OpenSSL would let nobody in by a list of the future: until its time, Server.admit alone looks at it.
        if crl_file and begins["crl"] <= time.time():
            context.load_verify_locations(crl_file)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    with blaming(f"--server_crt {files['server_crt']} would be refused by every client",
                 "name a server's certificate, as gen_cert.sh server makes it, with those between it and its "
                 "CA behind it, in one file; and the CA's own too, if that is not the clients'"):
        names = names_shown(context, files["ca_crt"], chain)
    # One that signs another CA's certificate is not expected to sign clients' as well.
    parents = {authority.issuer for authority in authorities if authority.issuer != authority.subject}
    unlisted = tuple(readable_name(authority.subject) for authority in authorities
                     if listed and authority.subject not in listed | parents)
    return Tls(context, content["ca_crt"] + content["crl"], frozenset(revoked), frozenset(listed), begins,
               expiries, names, unlisted)


def names_shown(context: ssl.SSLContext, ca_crt: str, chain: list[bytes]) -> tuple[str, ...]:
    """Return the names in a server's certificate, by a handshake with a client that does not look at them.

    The client trusts the CA, what signs itself in the server's file and, if that does not do, the system's
    CAs, which take 50 ms to load. Raises ValueError if it refuses the certificate, but not for its dates:
    they are judged when their time comes.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= PARTIAL_CHAIN | NO_CHECK_TIME
    if roots := [one for one in chain if read_certificate(one).issuer == read_certificate(one).subject]:
        trusting.load_verify_locations(cadata=b"".join(roots))
    refusal = ""
    for trust in (functools.partial(trusting.load_verify_locations, ca_crt), trusting.load_default_certs):
        trust()
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(to_server, to_client, server_side=True)
        client = trusting.wrap_bio(to_client, to_server)
        try:
            for side in (client, server, client):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLCertVerificationError as error:
            refusal = error.verify_message
        else:
            alternatives: Any = (client.getpeercert() or {}).get("subjectAltName", ())
            return tuple(name for kind, name in alternatives if kind in ("DNS", "IP Address"))
    raise ValueError(refusal)


def watch_tls_files(server: Server, tls: Tls) -> NoReturn:
    """Read the TLS files when they change, their time comes or SIGHUP does, as a thread; warn of ends."""
    files, warned = server.tls_files, dict[str, float]()
    taken = before = server.tls_stamps
    read, awaited = tls, tls.awaited()  # What was read last need not be what is in use.
    while True:
        warn_of_ends(files, tls, read, warned)
        ordered = False
        with contextlib.suppress(queue.Empty):
            server.reloads.get(timeout=RELOAD_SECONDS)
            ordered = True
        find_crl(files)
        now = stamps(files)
        if ordered or now != taken and now == before or awaited.keys() - read.awaited().keys():
            taken, awaited = now, read.awaited()
            try:
                read, names = load_tls(files), set(tls.names)
                awaited = read.awaited()
                # A CA and a server's certificate whose time has not come change only what is newly revoked.
                revoked = read.revoked | tls.revoked if awaited else read.revoked
                kept = awaited.keys() - {"crl"} and not tls.lets_nobody_in()
                if (new := (tls if kept else read)._replace(revoked=revoked)) != tls:
                    tls = new
                    server.post(server.take_files, tls)
                warn_of_names(files["server_crt"], names, set(read.names))
            except Refusal as refusal:
                log.warning(logfmt("tls", outcome="kept as it was", reason=refusal))
            except Exception:
                log.error(logfmt("tls", error=traceback.format_exc()))
        before = now


def read_file(path: str) -> bytes:
    """Return what a file holds. Raises OSError, also of a pipe: there may be nobody who ever writes to it."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "Is no file")
    with open(path, "rb") as file:
        return file.read()


def find_crl(files: dict[str, str]) -> None:
    """Name the list beside the CA's certificate once it is there, unless --crl names one, or none."""
    beside = os.path.join(os.path.dirname(files["ca_crt"]), "ca.crl")
    if "crl" not in files and os.path.exists(beside):
        files["crl"] = beside


def stamps(files: dict[str, str]) -> list[tuple[int, ...]]:
    """Return what shows whether a TLS file has changed; nothing of a file that is not there."""
    found: list[tuple[int, ...]] = []
    for path in files.values():
        with contextlib.suppress(OSError):
            stat = os.stat(path)
            found.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
    return found


def warn_of_ends(files: dict[str, str], tls: Tls, read: Tls, warned: dict[str, float]) -> None:
    """Warn once a day of a file that ends soon or has not begun, and once a minute of one that has ended."""
    for name, expiry in tls.expiries.items():
        left = expiry - time.time()
        level, pause = (logging.WARNING, 86400.0) if left > 0 else (logging.ERROR, REFUSALS_SECONDS)
        if left < EXPIRY_WARNING_SECONDS and time.monotonic() > warned.get(f"{name} {level}", 0):
            warned[f"{name} {level}"] = time.monotonic() + pause
            log.log(level, logfmt("tls", file=files[name], ends=rfc3339(expiry),
                                  remedy="renew it: nobody gets in after its end"))
    for name, begin in read.awaited().items():
        if time.monotonic() > warned.get(f"{name} begins {begin}", 0):
            warned[f"{name} begins {begin}"] = time.monotonic() + 86400
            log.warning(logfmt("tls", file=files[name], begins=rfc3339(begin), remedy=FUTURE[name]))


def names_before(server_crt: str) -> set[str]:
    """Return the names that the server's certificate had at the last start, as `warn_of_names` kept them."""
    with contextlib.suppress(OSError):
        return set(read_file(f"{server_crt}.names").decode(errors="replace").splitlines())
    return set()


def warn_of_names(server_crt: str, before: set[str], names: set[str]) -> None:
    """Warn of names that a server's certificate has no longer; keep those it has for the next start."""
    if lost := before - names:
        log.warning(logfmt("tls", file=server_crt, lacks=",".join(sorted(lost)), remedy=LACKING))
    kept = f"{server_crt}.names"  # Where it cannot be written (a Secret's), a start knows none of before.
    if names != names_before(server_crt) and (os.path.isfile(kept) or not os.path.exists(kept)):
        with contextlib.suppress(OSError), open(kept, "w", encoding="utf-8") as file:
            file.write("\n".join(sorted(names)))


def pem(content: bytes, label: str) -> list[bytes]:
    """Return the DER of a PEM file's blocks of this label (RFC 7468). Raises ValueError if there is none."""
    block = rb"-----BEGIN %s-----(.+?)-----END" % label.encode()
    blocks = [base64.b64decode(text) for text in re.findall(block, content, re.S)]
    if not blocks:
        raise ValueError(f"it holds no {label} in PEM")
    return blocks


class Certificate(NamedTuple):
    """Of a certificate, what ssl does not tell of one that is in a file, or not in the form of a list's."""

    issuer: bytes
    serial: int
    subject: bytes
    begins: float  # Seconds since 1970.
    ends: float


@functools.lru_cache(MAX_CONNECTIONS)
def read_certificate(certificate: bytes) -> Certificate:
    """Read a certificate (RFC 5280, section 4.1). The same ones come again and again. Raises ValueError."""
    fields = der(der(der(certificate)[0][1])[0][1])
    fields = fields[1:] if fields[0][0] == 0xa0 else fields  # A version comes first, but for version 1.
    (_, serial), _, (_, issuer), (_, validity), (_, subject) = fields[:5]
    begins, ends = (der_time(*moment) for moment in der(validity))
    return Certificate(issuer, int.from_bytes(serial, "big"), subject, begins, ends)


def read_crl(crl: bytes) -> tuple[bytes, float, float, set[int]]:
    """Return a revocation list's issuer, begin, end and serial numbers (RFC 5280, section 5.1)."""
    fields = der(der(der(crl)[0][1])[0][1])
    fields = fields[1:] if fields[0][0] == 0x02 else fields
    (_, issuer), begins, *rest = fields[1:]
    ends = der_time(*rest.pop(0)) if rest and rest[0][0] in (0x17, 0x18) else float("inf")
    entries = der(rest[0][1]) if rest and rest[0][0] == 0x30 else []
    return issuer, der_time(*begins), ends, {int.from_bytes(der(entry)[0][1], "big") for _, entry in entries}


def readable_name(name: bytes) -> str:
    """Return a distinguished name's values as a maintainer knows them (RFC 5280, section 4.1.2.4)."""
    values = [der(der(attribute)[0][1])[1] for _, attribute in der(name)]
    return "/".join(value.decode("utf-16-be" if tag == 0x1e else "utf-8", "replace") for tag, value in values)


def der(data: bytes) -> list[tuple[int, bytes]]:
    """Return the tag and the content of each DER element (X.690, section 8.1). Raises IndexError."""
    found, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length > 0x7f:  # So many bytes of length follow.
            at += length & 0x7f
            length = int.from_bytes(data[at - (length & 0x7f):at], "big")
        found.append((tag, data[at:at + length]))
        at += length
    return found


def der_time(tag: int, content: bytes) -> float:
    """Return a time in seconds since 1970 (RFC 5280, section 4.1.2.5). Raises ValueError."""
    digits = content.decode("ascii").removesuffix("Z")
    if tag == 0x17:  # Of two digits for the year, from 1950 to 2049.
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    # Not by strptime, which takes 4 ms to be had, and has another century.
    return calendar.timegm((int(digits[:4]), *(int(digits[at:at + 2]) for at in range(4, 14, 2))))


# ---- The log and the metrics ---------------------------------------------------------------------------

log = logging.getLogger("playground")
log.addHandler(logging.NullHandler())  # Until `run` has it written to stderr.
PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+")


def logfmt(event: str, **fields: object) -> str:
    """Format an event for the log. What is not plain is JSON in either format, lest it forge a line."""
    values = {key: round(value, 1) if isinstance(value, float) else value for key, value in fields.items()}
    if LogQueue.json:
        return json.dumps({"event": event, **values}, default=str)
    line = f"event={event}"
    for key, value in values.items():
        text = str(value)
        line += f" {key}=" + (text if PLAIN.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f"))
    return line


class LogQueue(logging.Handler):
    """Has a thread write the log: a file that nobody reads fills the queue, and keeps nobody waiting."""

    dropped, json = 0, False  # Of all of this process, of which there is one.

    def __init__(self, file: int) -> None:
        super().__init__()
        self.file = file
        self.lines: collections.deque[str] = collections.deque()
        self.written = 0.0  # When all was, by time.monotonic.
        self.wanted = threading.Event()
        threading.Thread(target=self.write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, with the time in UTC, or count it as dropped."""
        if len(self.lines) >= MAX_LOG_LINES:
            LogQueue.dropped += 1
        else:
            self.lines.append(self.line(int(record.created), record.levelname, record.getMessage()))
            if not self.wanted.is_set():
                self.wanted.set()

    def line(self, seconds: int, level: str, event: str) -> str:
        """Return a line of the log for what `logfmt` has formatted."""
        if self.json:
            return f'{{"time": "{rfc3339(seconds)}", "level": "{level}", {event[1:]}\n'
        return f"time={rfc3339(seconds)} level={level} {event}\n"

    def write(self) -> NoReturn:
        """Write what is queued, as a thread, and afterwards how much was not."""
        told = 0
        while True:
            self.wanted.wait()
            time.sleep(LOG_SECONDS)
            self.wanted.clear()
            while self.lines:
                lines = [self.lines.popleft() for _ in range(min(len(self.lines), 100))]
                if LogQueue.dropped > told:
                    told = LogQueue.dropped
                    lines.append(self.line(int(time.time()), "WARNING", logfmt(
                        "log", dropped=told, reason="nobody read the log in time")))
                data = "".join(lines).encode("utf-8", "backslashreplace")
                while data:
                    try:
                        data = data[os.write(self.file, data):]
                    except BlockingIOError:  # Whoever shares the file has made it so.
                        select.select([], [self.file], [])
                    except OSError:  # Nobody reads it any more.
                        break
            self.written = time.monotonic()

    def flush_for(self, seconds: float) -> None:
        """Wait until all is written, or for so long."""
        now = time.monotonic()
        self.wanted.set()
        while self.written <= now + LOG_SECONDS and time.monotonic() < now + seconds:
            time.sleep(LOG_SECONDS / 4)


@functools.lru_cache(16)  # A second's log lines share it.
def rfc3339(seconds: float) -> str:
    """Format seconds since 1970 as RFC 3339 in UTC."""
    return time.strftime(SECONDS + "Z", time.gmtime(seconds))


# What each family of metrics tells: a counter if it ends in _total, a histogram in BUCKETS, else a gauge.
FAMILIES = {
    "requests_total": "Requests answered.",
    "request_seconds": "Time from a request's first byte to its answer.",
    "handshakes_refused_total": "TLS handshakes refused.",
    "kubectl_seconds": "Time that a kubectl ran.",
    "creations_grouped": "Users and spares whose objects one kubectl created.",
    "databases_swept_total": "Databases deleted because nobody was heard of.",
    "spares_failed_total": "Spares that could not be made or did not stay ready.",
    "databases_given_total": "Databases given to users, from what.",
    "data_source_seconds": "Time from the order of a user's database to its data source, from what.",
    "connections": "Open connections.",
    "databases": "Databases in the namespace.",
    "cluster_synchronised":
        "1 while every watch goes well and the template is known to be good, otherwise 0.",
    "last_beat_write_timestamp_seconds":
        "When heart beats were last written into the cluster, or none was waiting.",
    "certificate_expiry_timestamp_seconds": "When a certificate or the revocation list ends.",
    "log_lines_dropped_total": "Lines of the log that nobody read in time.",
    "build_info": "1; the label tells the version.",
}
# A histogram's, by their upper bounds.
BUCKETS = {
    "request_seconds": (0.001, 0.005, 0.02, 0.1, 0.5, 2, 5, 10, 18),
    "kubectl_seconds": (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 75),
    "creations_grouped": (1, 2, 5, 10, 20, 50),
    "data_source_seconds": (0.1, 0.2, 0.5, 1, 2, 5, 10, 18),
}
Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]  # By family and labels.


class Metrics:
    """What has happened since the start, for Prometheus (text format, version 0.0.4); the loop's alone."""

    def __init__(self) -> None:
        # By family and labels: a count for each bucket and above; then the sum, which is told of a counter.
        self.values: dict[str, dict[Labels, list[float]]] = {name: {} for name in FAMILIES}

    def add(self, family: str, value: float = 1, **labels: str) -> None:
        """Add to a counter, or put a value into a histogram."""
        buckets = BUCKETS.get(family, ())
        cells = self.values[family].setdefault(tuple(labels.items()), [0.0] * (len(buckets) + 2))
        cells[bisect.bisect_left(buckets, value)] += 1
        cells[-1] += value

    def text(self, gauges: Samples) -> str:
        """Return all of them, and what the gauges say now, by family and labels."""
        lines = []

        def sample(name: str, labels: Labels, value: float) -> None:
            quoted = ",".join(f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in labels)
            lines.append(f"playground_{name}{f'{{{quoted}}}' if quoted else ''} {value:.15g}")
        for name, tells in FAMILIES.items():
            kind = "counter" if name.endswith("_total") else "histogram" if name in BUCKETS else "gauge"
            lines += [f"# HELP playground_{name} {tells}", f"# TYPE playground_{name} {kind}"]
            for labels, value in gauges.get(name, {}).items():
                sample(name, labels, value)
            for labels, cells in self.values[name].items():
                if name not in BUCKETS:
                    sample(name, labels, cells[-1])
                    continue
                counts = list(itertools.accumulate(cells[:-1]))
                for bound, count in zip((*map(str, BUCKETS[name]), "+Inf"), counts):
                    sample(f"{name}_bucket", (*labels, ("le", bound)), count)
                sample(f"{name}_sum", labels, cells[-1])
                sample(f"{name}_count", labels, counts[-1])
        return "\n".join(lines) + "\n"


metrics = Metrics()
# Prometheus sees a counter grow only from a value that it has seen: these are 0 before they happen.
metrics.add("databases_swept_total", 0)
metrics.add("spares_failed_total", 0)
for origin in ("spare", "starting", "new"):
    metrics.add("databases_given_total", 0, **{"from": origin})
for api, result in itertools.product(API, (200, 429, 500, 502, 503)):
    metrics.add("requests_total", 0, api=api, status=str(result))


# ---- The command line ----------------------------------------------------------------------------------

class Refusal(Exception):
    """Why the server does not start, or take a file up: what is wrong, with its path, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")


@contextlib.contextmanager
def blaming(what: str, remedy: str, missing: str = "") -> Iterator[None]:
    """Turn what goes wrong with a file into a Refusal that names it; if it is missing, with that remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise Refusal(f"{what} ({error.strerror})", missing or remedy) from error
    except (OSError, ValueError, LookupError) as error:
        raise Refusal(f"{what} ({getattr(error, 'strerror', None) or error})", remedy) from error


class Parser(argparse.ArgumentParser):
    """Refuses what it does not understand in one line, as all else that stands in the way of a start."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise Refusal(message, "see --help")


class Settings(NamedTuple):
    """The options that are the cluster's, as on the command line."""

    max_databases: int
    max_databases_per_client: int
    idle_timeout: float
    sweep_interval: float
    spare_databases: int


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; dashes in the options' names work for underscores. Raises Refusal."""
    parser = Parser(prog="sqlflow_playground", description="Give every user of a SQLFlow playground a "
                    "database in its Kubernetes cluster, over mutual TLS.")
    seconds = functools.partial(read_number, float, 1e8, "number of seconds, such as 43200")
    limit = functools.partial(read_number, int, float("inf"), "whole number from 0 on")

    def option(name: str, default: Any, text: str, shown: str = "", **more: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, default=default,
                            help=f"{text} (default: {shown or default})", **more)

    option("host", "0.0.0.0", "address to listen on; :: for IPv6")
    option("port", 50052, "TCP port to listen on; 0 for any free one", type=limit)
    option("ca_crt", "key_store/ca/ca.crt", "PEM file: the CA whose clients are let in")
    option("server_key", "key_store/server/server.key", "PEM file: this server's private key, not encrypted")
    option("server_crt", "key_store/server/server.crt", "PEM file: this server's certificate")
    option("crl", None, "PEM file: the CA's list of revoked certificates; empty for none",
           shown="ca.crl beside the CA's certificate, where that is there")
    option("namespace", "", "namespace for the databases", shown="kubectl's own")
    option("context", "", "context of the kubeconfig", shown="kubectl's own")
    option("kubectl", "kubectl", "kubectl program, 1.20 or later")
    option("templates", os.path.join(os.path.dirname(os.path.abspath(__file__)), "k8s_templates"),
           "folder of the templates")
    option("db_template", "mysql.yaml", "template of a database, in that folder")
    option("idle_timeout", 12 * 3600.0,
           "seconds without a heart beat after which a database is deleted; 0 for never", type=seconds)
    option("sweep_interval", 60.0,
           "seconds between two rounds of writing heart beats down and deleting what is idle", type=seconds)
    option("max_databases", 1000, "databases in the namespace, all clients' together; 0 for no limit",
           type=limit)
    option("max_databases_per_client", 0, "databases of one client; 0 for no limit", type=limit)
    option("max_connections_per_client", MAX_CONNECTIONS_PER_CLIENT,
           "connections of one client at once; 0 for no limit", type=limit)
    option("spare_databases", None, "databases kept running without a user, for the next ones to come",
           shown="1; 0 if the template is made for its user", type=limit)
    option("ready_file", "", "file that is made once the cluster is known, for a readiness probe",
           shown="none")
    option("log_level", "info", "what the log tells: debug has every kubectl's end, warning trouble only",
           choices=["debug", "info", "warning", "error"], type=str.lower)
    option("log_format", "logfmt", "a log of key=value pairs, or one JSON object a line",
           choices=["logfmt", "json"])
    parser.add_argument("--check", action="store_true",
                        help="try all that the server needs, print a line for each, and exit with 0 or 1")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(arguments)


def read_number(kind: type[float], most: float, wanted: str, text: str) -> float:
    """Read a number from 0 to the most from the command line. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := kind(text)) <= most:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no {wanted}")


def find_template(options: argparse.Namespace) -> Template:
    """Return the template that new databases are made from. Raises Refusal."""
    path = os.path.join(options.templates, options.db_template)
    with blaming(f"the template {path} cannot be used",
                 "see that this server may read it, and compare it with k8s_templates/mysql.yaml",
                 missing="keep the folder k8s_templates/ beside playground.py, or see --templates and "
                 "--db_template"):
        return Template(path)


def settings_of(options: argparse.Namespace, template: Template) -> Settings:
    """Return the options that are the cluster's."""
    settings = Settings(**{name: getattr(options, name) for name in Settings._fields})
    spares = 0 if template.per_user else 1
    return settings._replace(spare_databases=spares) if settings.spare_databases is None else settings


def find_tls_files(options: argparse.Namespace) -> dict[str, str]:
    """Return the paths of the TLS files by their options' names."""
    files = {name: getattr(options, name) for name in ("ca_crt", "server_key", "server_crt", "crl")
             if getattr(options, name) is not None}
    find_crl(files)
    return files


def find_kubectl(options: argparse.Namespace) -> Kubectl:
    """Return kubectl for the context and the namespace, by default its own ones. Raises Refusal."""
    program = shutil.which(options.kubectl)
    if not program:
        raise Refusal(f"--kubectl {options.kubectl} is no program",
                      "install kubectl (https://kubernetes.io/docs/tasks/tools/), or name it")
    kubectl, namespace = Kubectl(program, options.context), options.namespace
    try:
        if not namespace or options.context:  # Which must be there.
            own = kubectl("config", "view", "--minify", "-o", "jsonpath={.contexts[0].context.namespace}",
                          reason="find the namespace", seconds=5).decode(errors="replace")
            namespace = namespace or own
    except KubectlError as error:
        # There is none in a pod, which is no error.
        if options.context or "current-context must exist" not in error.words:
            words = " ".join(error.words.split()) or error.reason
            raise Refusal(f"kubectl config view failed ({words})", "see that it works with this KUBECONFIG "
                          "and --context and with --kubectl's program, or give --namespace") from error
    inside = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    if not namespace and os.path.exists(inside):
        namespace = read_file(inside).decode().strip()
    kubectl.namespace = namespace or "default"
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", kubectl.namespace):
        raise Refusal(f"--namespace {kubectl.namespace!r} is no namespace",
                      "expected up to 63 lower-case letters, digits and dashes")
    return kubectl


def check(options: argparse.Namespace) -> int:
    """Try all that the server needs, and print a line each with what to do; return 1 if one is wrong."""
    problems = []

    def say(what: str, problem: str = "") -> None:
        problems.append(problem)
        print(f"WRONG  {what}: {problem}" if problem else f"ok     {what}", flush=True)

    def attempt(step: Callable[[], Any], what: str = "", remedy: str = "") -> Any:
        try:
            result = step()
            if what:
                say(what)
            return result
        except Refusal as refusal:
            say("start", str(refusal))
        except KubectlError as error:
            words = next(iter(error.words.splitlines()), told(error).message)
            say(what or "start", f"{words}; {remedy or told(error).message.rpartition(': ')[2]}")
        except (ValueError, LookupError) as error:
            say(what or "start", f"{NOT_KUBERNETES}: {error}; {remedy}")
        return None

    tls_files = find_tls_files(options)
    if tls := attempt(lambda: load_tls(tls_files)):
        for name, expiry in tls.expiries.items():
            days = (expiry - time.time()) // 86400
            say(f"{tls_files[name]} " + (f"ends in {days:.0f} days" if days < float("inf") else "has no end"),
                "renew it with gen_cert.sh" if days < EXPIRY_WARNING_SECONDS / 86400 else "")
        for name, begin in tls.awaited().items():
            say(f"{tls_files[name]} begins at {rfc3339(begin)}", FUTURE[name])
        say(f"{tls_files['server_crt']} is a server's, for {', '.join(tls.names) or 'nobody'}",
            "" if tls.names else "it has no subjectAltName: clients refuse it")
        if lost := names_before(tls_files["server_crt"]) - set(tls.names):
            print(f"-      it was also for {', '.join(sorted(lost))} at the last start: {LACKING}")
        if not tls_files.get("crl"):
            print(f"-      revocation list: {NO_LIST}; gen_cert.sh makes one beside the CA's certificate")
        for name in tls.unlisted:
            say(f"{tls_files['crl']} lists the CA {name!r}", UNLISTED)
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        socket.create_server((options.host, options.port), family=family).close()
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", 0) == errno.EADDRINUSE:
            print(f"-      --port {options.port}: in use, which is right if it is by this server")
        else:
            say("start", str(no_listening(options, error)))
    attempt(lambda: try_ready_file(options))
    template = attempt(lambda: find_template(options))
    kubectl = attempt(lambda: find_kubectl(options))
    if not kubectl:
        return 1
    ask = functools.partial(kubectl, reason="check")
    if client := attempt(lambda: json.loads(ask("version", "--client", "-o", "json"))["clientVersion"],
                         "kubectl runs", "name the right --kubectl"):
        old = (int(client["major"]), int(re.sub(r"\D.*", "", client["minor"]))) < OLDEST_KUBECTL
        say(f"kubectl is {client['gitVersion']}", "install 1.20 or later" if old else "")
    version = attempt(lambda: json.loads(ask("get", "--raw", "/version"))["gitVersion"],
                      "the cluster answers", "see that kubectl get pods works, or name the --context")
    if not version:
        return 1
    say(f"the cluster is Kubernetes {version}")
    more = [KINDS[kind][0] for kind in (template.kinds if template else ()) if kind not in ("Secret", "Pod")]
    rights = [(verb, name) for name, verbs in {**RIGHTS, **dict.fromkeys(more, MORE_RIGHTS)}.items()
              for verb in verbs]
    reviews = [{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "namespace": kubectl.namespace, "verb": verb, "resource": name.partition(".")[0],
                    "group": name.partition(".")[2]}}} for verb, name in rights]
    try:
        printed = ask("create", "-f", "-", "-o", "json", "--validate=false", stdin=listed(reviews))
        for (verb, name), review in zip(rights, documents(printed)):
            say(f"right to {verb} {name}", "" if review["status"].get("allowed") else
                "grant it, as k8s_templates/playground.yaml does")
    except KubectlError as error:
        say("rights", told(error).message)
    made = template and attempt(
        lambda: ask("create", "-f", "-", "--dry-run=server", "--validate=true", "-o",
                    "jsonpath={.metadata.creationTimestamp} ",
                    stdin=listed(template.objects_of(**EXAMPLE))).decode().split(),
        f"namespace {kubectl.namespace} takes the objects of {template.path}")
    if made:
        off = abs(time.time() - calendar.timegm(time.strptime(made[0], SECONDS + "Z")))
        say("clock", "" if off < 60 else f"it is {off:.0f} s off the cluster's; let NTP set it")
    else:
        print("-      clock: not looked at, since the cluster took nothing that would tell its own")
    for what, kind in (("quota", "resourcequotas"), ("sample data", f"configmaps/{SAMPLE_DATA}")):
        try:
            found = json.loads(ask("get", kind, "--ignore-not-found", "-o", "json").strip() or "{}")
        except KubectlError as error:
            print(f"-      {what}: not looked at, which needs the right to get and list "
                  f"{kind.partition('/')[0]} ({error.reason})")
            continue
        if what == "sample data" and not found:
            print(f"-      sample data: none, so databases start empty; for the tutorials' tables apply the "
                  f"ConfigMap {SAMPLE_DATA}, as README.md does")
        elif what == "sample data":
            say("sample data is there")
        for item in found.get("items", ()):
            limits, used = item["status"].get("hard", {}), item["status"].get("used", {})
            full = [name for name, hard in limits.items() if quantity(used.get(name, "0")) >= quantity(hard)]
            say(f"quota {item['metadata']['name']}: "
                + ", ".join(f"{name} {used.get(name, 0)} of {hard}" for name, hard in limits.items()),
                f"nothing is left of {', '.join(full)}; raise it, or delete databases" if full else "")
            if template and (room := template.databases_in(limits)) < float("inf"):
                users = options.max_databases
                say(f"quota {item['metadata']['name']} has room for {room:.0f} databases, so for "
                    f"{max(room - users, 0):.0f} spares when --max_databases {users} are there",
                    template.too_many_for(item, settings_of(options, template)))
        if what == "quota" and not found.get("items"):
            say("quota: none")
    return int(any(problems))


def main(arguments: list[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; return its exit status, 2 if it cannot start."""
    try:
        return run(parse_arguments(arguments))
    except Refusal as refusal:
        print(f"sqlflow_playground: {refusal}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Start, serve and end as the options say; return the exit status of a check. Raises Refusal."""
    if not yaml:
        raise Refusal("this Python has no PyYAML", "python3 -m pip install PyYAML, in a virtual environment, "
                      "or on Debian apt-get install python3-yaml")
    sys.setswitchinterval(SWITCH_SECONDS)
    if options.check:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # As others that print for head and grep.
        return check(options)
    template, tls_files = find_template(options), find_tls_files(options)
    settings = settings_of(options, template)
    if settings.spare_databases and template.per_user:
        raise Refusal(f"--spare_databases {options.spare_databases} and {template.path}, which is made for "
                      "its user, exclude each other", "leave one of them out")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with blaming(f"only {hard} open files are allowed", f"have root allow {MAX_OPEN_FILES}: by LimitNOFILE= "
                 "under systemd, else by ulimit -Hn in the shell that starts it"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MAX_OPEN_FILES) if soft >= 0 else soft, hard))
    kubectl = find_kubectl(options)
    try_ready_file(options)
    with contextlib.suppress(FileNotFoundError):
        os.remove(options.ready_file)  # A server before this one may have left it.
    lines, LogQueue.json = LogQueue(sys.stderr.fileno()), options.log_format == "json"
    logging.basicConfig(level=options.log_level.upper(), handlers=[lines])
    # No line shows these, which take as long to find out as to write (the logging HOWTO's Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    cluster = Cluster(kubectl, template, settings)
    try:
        server = Server((options.host, options.port), tls_files, cluster, options.max_connections_per_client,
                        options.ready_file)
    except (OSError, OverflowError) as error:
        raise no_listening(options, error) from error
    signal.set_wakeup_fd(server.bell.fileno(), warn_on_full_buffer=False)  # Or the loop would not hear of it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end(server))
    signal.signal(signal.SIGHUP, lambda *_: server.reloads.put(None))
    gc.freeze()
    cluster.start()
    threading.Thread(target=watch_tls_files, args=(server, server.tls), name="tls files", daemon=True).start()
    server.listen()
    log.info(logfmt("start", version=__version__, host=server.server_address[0], port=server.server_port,
                    client_ca=options.ca_crt, crl=tls_files.get("crl") or NO_LIST,
                    certificate_ends=rfc3339(server.tls.expiries["server_crt"]),
                    context=options.context or "current", namespace=kubectl.namespace, template=template.path,
                    idle_timeout=f"{options.idle_timeout:.0f}s" if options.idle_timeout else "never"))
    warn_of_names(options.server_crt, names_before(options.server_crt), set(server.tls.names))
    for name in server.tls.unlisted:
        log.warning(logfmt("tls", file=tls_files["crl"], lacks=name, remedy=UNLISTED))
    server.serve_forever()
    server.refusals.flush(everything=True)
    server.failures.flush(everything=True)
    kubectl.stop()
    lines.flush_for(1)
    os._exit(0)  # Taking the interpreter down beside threads that run on has ended in a crash.


def try_ready_file(options: argparse.Namespace) -> None:
    """See whether the file that says that the server is ready can be made. Raises Refusal."""
    path = options.ready_file
    if path and (os.path.isdir(path) or not os.access(os.path.dirname(path) or ".", os.W_OK)):
        raise Refusal(f"--ready_file {path} cannot be made",
                      "name a file in a folder that this server may write")


def no_listening(options: argparse.Namespace, error: Exception) -> Refusal:
    """Return why the server cannot listen where the options say."""
    remedies = {errno.EADDRINUSE: "name a free --port, or end what listens there: ss -ltnp shows it",
                errno.EACCES: "name a --port from 1024 on, or give this server the right to lower ones: "
                "under systemd with AmbientCapabilities=CAP_NET_BIND_SERVICE"}
    return Refusal(f"cannot listen on --host {options.host} --port {options.port} ({error})", remedies.get(
        getattr(error, "errno", 0), "name an address of this machine and a port up to 65535"))


def end(server: Server) -> None:
    """Handle a signal to end: the kernel ends what has not ended in time, the next signal all at once."""
    signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS + LAST_BEATS_SECONDS + 2)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    server.post(lambda: log.info(logfmt("stop", seconds=STOP_SECONDS)))
    server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
