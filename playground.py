#!/usr/bin/env python3
"""SQLFlow Playground Server: a database in Kubernetes for every user who asks for one.

    client --mTLS--> this server --kubectl--> Kubernetes API --> MariaDB pod, Service, Secret

A client is known by its certificate. It asks over HTTPS for a database for one of its users; the
server has kubectl create one and answers with the connection string that SQLFlow takes.

The file reads as a request travels: the server's loop; one connection; HTTP; the API; the cluster;
then what these stand on: templates, kubectl, the TLS files, the log and the metrics, the command line.

    thread               does                                          is waited for by
    the loop (main)      all that concerns a connection: see Server    nobody, and waits for nobody
    handshakes, two      OpenSSL's part of the handshakes              nobody: they post what came of it
    tls files            reads the TLS files when they change          nobody: it posts them
    log                  writes the log's lines                        nobody: what does not fit is dropped
    watch, one a kind    reads a kubectl's next line                   nobody
    groups, sweep        wait for one kubectl for all who want one     whoever asked for a database
    one a slow request   waits for its user's database                 its client

The rule: one thread, the loop's, owns every connection. No other thread touches them; each computes or
waits, and posts what came of it (Server.post). So strangers, however many, are no thread and no lock.

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

import yaml

__version__ = "1.0.0"


# ---- Limits: what each bounds, what happens beyond it, why this number, what it does not cover -------

# The request line; 414 beyond it. RFC 9112 section 3 recommends to support at least 8,000 bytes.
MAX_REQUEST_LINE_BYTES = 8 * 1024
# Request line and header fields together; 431 beyond it. curl sends about 150 bytes, browsers and
# proxies seldom more than 4 KiB. Does not bound the body.
MAX_HEAD_BYTES = 16 * 1024
# Header fields; 431 beyond it. Half of what Apache allows.
MAX_HEADER_FIELDS = 50
# The body; 413 beyond it. A user id is at most 64 characters, 768 bytes as JSON escapes.
MAX_BODY_BYTES = 16 * 1024
# Characters of a user id after normalisation; 400 beyond it.
MAX_USER_ID_CHARACTERS = 64

# The whole TLS handshake, the whole request head from its first byte, the whole body, the whole answer: the
# connection ends beyond each, after a 408 where one can be heard. A slow mobile link needs 2 s; whoever
# sends a byte a second gets no more than these.
HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
ANSWER_SECONDS = 10.0
# A kept connection without a request; it is closed beyond it. As long as nginx keeps them.
IDLE_SECONDS = 75.0
# What a refused client may still be sending is read and dropped up to these, so that it sees the alert or
# the answer instead of a reset connection; then the connection ends all the same.
LINGER_SECONDS = 1.0
LINGER_BYTES = 1024 * 1024

# Taken from the network at once, of one connection; the rest waits until the others had their turn. A
# certificate and a request fit. Filled with the smallest records there are, it is 3 ms of work.
READ_BYTES = 8 * 1024
# Requests of one connection answered at once, of those that it sent ahead: some 2 ms. As for READ_BYTES.
REQUESTS_A_TURN = 16

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
# Connections with a certificate; beyond it the one idle longest makes room, and if none is idle the new one
# gets a 503. Five for each of a class of 200. Each takes some 30 KB, 70 after a long request.
MAX_CONNECTIONS = 1000
# Connections of one client, if --max_connections_per_client does not say otherwise; beyond it that client's
# longest idle one makes room, or its new one gets a 503. A front end for a class of 200 may have a connection
# for each; four such clients fit.
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
# Refused handshakes: so many lines of the log in this time, each for one address and reason and with their
# number, first when they come and again at its end; the rest is one line a reason.
REFUSALS_SECONDS = 60.0
REFUSAL_LINES = 20
# Addresses and reasons told apart in it, some 300 bytes each; further addresses are counted as "others".
MAX_REFUSALS = 1000
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
# Before that time is up, this much is for asking the cluster why a database is not ready.
REASON_SECONDS = 2.5
# A refused heart beat's answer is held back this long: the plug-in's loop never sleeps after one. Such a
# client makes one request a second.
REFUSED_BEAT_SECONDS = 1.0
# What was just created shows in the watches within milliseconds; only beyond this is it missing again.
SETTLE_SECONDS = 2.0

# One kubectl; its process group is killed beyond it. Creating a full group takes 2 s.
KUBECTL_SECONDS = 30.0
# Users whose objects go into one kubectl: three objects each, and kubectl slows down to 50 requests a
# second after 300. The rest go into the next.
GROUP_USERS = 50
# A group leaves when nobody has joined it for the first, and at the latest after the second. A class that
# starts together comes within some 0.1 s, to a busy machine up to 20 ms apart; a kubectl of its own for a
# user who is a moment early would take 0.2 s. Who comes alone waits for the first, in 1.5 s altogether.
GATHER_SECONDS = (0.03, 0.3)
# Creating kubectls at once. With two, a user who comes alone does not wait for a class in front.
CREATING_KUBECTLS = 2
# StatefulSets whose heart beat one kubectl writes down, a request each: as above, it slows down after 300.
BEATS_PER_KUBECTL = 250
# Idle databases deleted in one round, three kubectls each, one after the other: some 6 s, for which a
# user who returns meanwhile has to wait. The rest is the next round's.
SWEPT_PER_ROUND = 30
# Users whose beats came before the cluster was known, and are held until then; more are dropped, and
# beat again. Some 200 bytes each.
MAX_EARLY_BEATS = 10_000

# Objects in a page of a listing, 1 to 4 MB; so many are read, and then taken into the table, at once.
PAGE_OBJECTS = 500
# Of these, in one go while nobody can look into the table: some 2 ms.
PORTION_OBJECTS = 100
# One watch; it is started again from where it was beyond it. Starting three kubectls a minute costs 0.3 s
# of one core. One whose connection has died silently is killed the grace later: for so long the table can
# be stale.
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


# ---- The server: its loop, and who is in --------------------------------------------------------------

Step = Callable[[], object]


class Server(http.server.ThreadingHTTPServer):
    """The loop, on which everything about connections happens, one step after the other.

    A step is due because a socket has something (the selector), because another thread posted it, or because
    its time has come (the heap of timers). None waits for anything; what has to be computed or waited for is
    given to another thread, which posts a step. So no step needs a lock, and none sees another's half-done
    work.
    """

    request_queue_size = LISTEN_BACKLOG

    def __init__(self, address: tuple[str, int], tls_files: dict[str, str], cluster: Cluster,
                 max_connections_per_client: int = MAX_CONNECTIONS_PER_CLIENT, ready_file: str = "") -> None:
        """Listen on (host, port); 0 connections are no limit.

        Raises OSError if the port is in use or not ours to listen on, and Refusal of a TLS file.
        """
        self.tls_files, self.tls, self.cluster = tls_files, load_tls(tls_files), cluster
        self.max_connections_per_client, self.ready_file = max_connections_per_client, ready_file
        self.started, self.stop_at = time.monotonic(), float("inf")
        # How often it has changed who is let in. A connection of an older generation may be anybody's.
        self.generation = 0
        # In the order of arrival, and of coming to rest: the first is the oldest.
        self.strangers: dict[Connection, None] = {}
        self.clients: dict[Connection, None] = {}
        self.idle: dict[Connection, None] = {}
        self.held: collections.Counter[str] = collections.Counter()  # Connections by client.
        self.to_compute: dict[Connection, None] = {}  # Whose handshakes wait for a thread,
        self.computing = 0  # and how many are with one.
        self.handshakes: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.refusals = Refusals()
        self.reloads: queue.SimpleQueue[None] = queue.SimpleQueue()  # Of the TLS files, ordered by SIGHUP.
        self.timers: list[tuple[float, int, Step]] = []
        self.order = itertools.count()  # Of two timers of one moment the older one is first.
        self.posted: collections.deque[Step] = collections.deque()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Connection)  # type: ignore[arg-type]
        self.selector = selectors.DefaultSelector()  # With each file, the step that it makes due.
        self.bell, self.ear = socket.socketpair()
        self.rung = False
        for end in (self.bell, self.ear, self.socket):
            end.setblocking(False)
        self.selector.register(self.ear, selectors.EVENT_READ, self.hear_bell)

    def server_bind(self) -> None:
        """Bind without looking up our own name in DNS, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    # -- the loop

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Take the steps that are due, until told to stop and all is answered, or STOP_SECONDS after."""
        for _ in range(HANDSHAKE_THREADS):
            threading.Thread(target=self.compute_handshakes, name="handshakes", daemon=True).start()
        self.attempt(self.keep_house)
        while not self.stopping() or (self.clients or self.strangers) and time.monotonic() < self.stop_at:
            pause = max(self.timers[0][0] - time.monotonic(), 0) if self.timers else None
            for key, events in self.selector.select(pause):
                key.data(events)
            self.service_actions()

    def service_actions(self) -> None:
        """Take the steps that were posted, and those whose time has come."""
        for _ in range(len(self.posted)):  # What these post is for the next time: others come in between.
            self.attempt(self.posted.popleft())
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            self.attempt(heapq.heappop(self.timers)[2])

    def attempt(self, step: Step) -> None:
        """Take a step; whatever is wrong with it, the loop goes on."""
        try:
            step()
        except Exception:
            log.error(logfmt("loop", error=traceback.format_exc()))

    def post(self, step: Step) -> None:
        """Have the loop take a step. All that other threads, and handlers of signals, may do to it."""
        self.posted.append(step)
        if not self.rung:
            self.rung = True
            with contextlib.suppress(OSError):
                self.bell.send(b"\0")

    def hear_bell(self, events: int) -> None:
        """Wake up for what was posted, or for a signal's handler to run."""
        self.ear.recv(4096)
        self.rung = False

    def call_at(self, moment: float, step: Step) -> None:
        """Have the loop take a step at a moment, by time.monotonic."""
        heapq.heappush(self.timers, (moment, next(self.order), step))

    # -- a connection comes

    def listen(self) -> None:
        """Accept connections: from the start, and again after descriptors or memory ran out."""
        if not self.stopping() and self.socket not in self.selector.get_map():
            self.selector.register(self.socket, selectors.EVENT_READ, self.accept)

    def accept(self, events: int) -> None:
        """Take up one connection, as BaseServer's own loop would; the next one, after others' steps."""
        self._handle_request_noblock()  # type: ignore[attr-defined]

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without a byte read or written."""
        try:
            request, address = self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # It stays in the backlog: accepting at once again would spin.
                self.selector.unregister(self.socket)
            raise
        try:
            request.setblocking(False)
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        except OSError:
            request.close()
            raise
        return request, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Let everybody in; of too many strangers, the oldest of the network with most of them makes room."""
        if len(self.strangers) >= MAX_HANDSHAKES:
            crowd = collections.Counter(stranger.network for stranger in self.strangers).most_common(1)[0][0]
            crowded = (stranger for stranger in self.strangers if stranger.network == crowd)
            min(crowded, key=lambda stranger: stranger.state != "lingering").make_room()
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Leave the connection to a Connection, which the loop serves."""
        self.finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what serving a connection did not expect."""
        log.error(logfmt("connection", outcome="failed", address=client_address[0],
                         error=traceback.format_exc()))

    # -- it becomes a client's

    def compute(self, connection: Connection) -> None:
        """Have a thread go on with a handshake; it posts to Connection.take_up what came of it."""
        self.to_compute[connection] = None
        self.hand_out()

    def hand_out(self) -> None:
        """Keep the threads busy, with a queue so short that few in it can have made room meanwhile."""
        while self.to_compute and self.computing < 2 * HANDSHAKE_THREADS:
            connection = next(iter(self.to_compute))
            del self.to_compute[connection]
            self.computing += 1
            self.handshakes.put(connection)

    def compute_handshakes(self) -> NoReturn:
        """Compute handshakes, as a thread; of a connection it uses nothing but the TLS in memory."""
        while True:
            connection = self.handshakes.get()
            self.post(functools.partial(self.take_computed, connection, shake_hands(connection.tls)))

    def take_computed(self, connection: Connection, outcome: Handshake) -> None:
        """Go on with a connection whose handshake was computed."""
        self.computing -= 1
        self.hand_out()
        connection.take(connection.take_up, outcome)

    def admit(self, connection: Connection, client: str, certificate: dict[str, Any]) -> bool:
        """Count a connection as a client's, or return False for want of room. Raises ValueError."""
        serial, ends = int(certificate["serialNumber"], 16), certificate_end(certificate["notAfter"])
        if connection.generation != self.generation:
            raise ValueError("the CA or the revocation list changed meanwhile")
        # OpenSSL has checked these, but not again for a session that is resumed.
        if serial in self.tls.revoked or min(ends, self.tls.expiries.get("crl", ends)) < time.time():
            raise ValueError("the certificate of the resumed session is no longer good")
        # A client at its own limit makes room among its own, which is room for all.
        crowded = 0 < self.max_connections_per_client <= self.held[client]
        if crowded or len(self.clients) >= MAX_CONNECTIONS:
            longest_idle = next((other for other in self.idle if not crowded or other.client == client), None)
            if not longest_idle:
                return False
            longest_idle.take(longest_idle.leave)
        connection.client, connection.serial, connection.ends = client, serial, ends
        del self.strangers[connection]
        self.clients[connection] = None
        self.held[client] += 1
        return True

    # -- it ends

    def forget(self, connection: Connection) -> None:
        """Take a connection out of every table."""
        for table in (self.strangers, self.idle, self.to_compute):
            table.pop(connection, None)
        if connection in self.clients:
            del self.clients[connection]
            self.held[connection.client] -= 1
            if not self.held[connection.client]:
                del self.held[connection.client]

    def over(self, connection: Connection) -> bool:
        """Tell whether a client's connection is to end: its certificate cannot be checked again."""
        return (self.stopping() or connection.generation != self.generation
                or time.time() > min(connection.ends, self.tls.expiries.get("crl", float("inf"))))

    def keep_house(self) -> None:
        """Every second, do what no event tells of."""
        self.call_at(time.monotonic() + RELOAD_SECONDS, self.keep_house)
        self.listen()
        for connection in [client for client in self.idle if self.over(client)]:
            connection.take(connection.leave)
        self.refusals.flush()
        self.cluster.kubectl.reap()
        if self.ready_file and self.cluster.status() == "ok":
            open(self.ready_file, "w", encoding="utf-8").close()
            self.ready_file = ""

    def take_files(self, tls: Tls) -> None:
        """Take new TLS files for new connections. A change of who is let in ends the older ones.

        Those of revoked certificates and idle ones end at once, others with their answer.
        """
        changed, self.tls = tls.trusted != self.tls.trusted, tls
        if changed:
            self.generation += 1
            for connection in list(self.clients):
                if connection in self.idle or connection.serial in tls.revoked:
                    connection.take(connection.leave)
        log.info(logfmt("tls", outcome="reloaded", generation=self.generation))

    def bridge(self, job: Callable[[], Said], then: Callable[[Outcome], object]) -> None:
        """Have a thread of its own wait for a slow answer."""
        def wait() -> None:
            outcome = outcome_of(job)
            self.post(lambda: then(outcome))
        try:
            threading.Thread(target=wait, daemon=True).start()
        except RuntimeError:
            out = failed(unavailable("this server is out of threads: ask again later"))
            self.post(lambda: then(out))

    def shutdown(self) -> None:
        """Have the loop end once all is answered, from any thread or signal, without waiting for it."""
        self.post(self.stop)

    def stop(self) -> None:
        """Stop accepting, and end the connections that are idle."""
        if not self.stopping():
            self.stop_at = time.monotonic() + STOP_SECONDS
            self.call_at(self.stop_at, lambda: None)  # Wakes the loop, which then ends.
            with contextlib.suppress(KeyError):
                self.selector.unregister(self.socket)
            self.server_close()
            for connection in [*self.idle, *self.strangers]:
                connection.take(connection.leave)

    def stopping(self) -> bool:
        """Tell whether the server was told to stop."""
        return self.stop_at < float("inf")


# ---- A connection ------------------------------------------------------------------------------------

# What one record of TLS holds at most (RFC 8446, section 5.1).
MAX_RECORD_BYTES = 2 ** 14
NOT_YET = (BlockingIOError, ssl.SSLWantReadError)
# The certificate that was shown, or what is wrong or not here yet.
Handshake = Union[dict[str, Any], Exception]


class Connection:
    """A stranger's connection and, after its handshake, a client's: see STATES for what it may do when.

    TLS works in memory. So the threads that compute handshakes touch no socket, one that has to go can be
    closed at any moment, and a step of the loop reads READ_BYTES at most, whatever a client sends: OpenSSL on
    a socket goes on reading for as long as records without data (KeyUpdate) come.
    """

    def __init__(self, request: socket.socket, client_address: Any, server: Server) -> None:
        self.socket, self.address, self.server = request, client_address, server
        self.network = network(client_address[0])
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server.tls.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.generation = server.generation
        self.client, self.serial, self.ends = "", 0, float("inf")
        self.handshake_reads, self.opening = 0, b""
        # What has come of a request, and how much of it holds no end of a head.
        self.buffer, self.searched = b"", 0
        self.head: Request | None = None  # Whose body is awaited.
        self.exchange = NO_EXCHANGE
        self.unsent = b""
        self.leaving = self.lingers = False  # After what is unsent.
        self.dropped = 0
        self.listens = 0  # For which of the selector's events.
        self.state = "handshake"
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self.set_alarm(self.deadline)
        server.strangers[self] = None
        self.enter("handshake")

    # -- what any state does

    def enter(self, name: str) -> None:
        """Go over into a state: listen for what it waits for, with its deadline."""
        self.state, state = name, STATES[name]
        self.server.idle.pop(self, None)
        if name == "idle":
            self.server.idle[self] = None
        if state.seconds:
            self.deadline = time.monotonic() + state.seconds
            if self.deadline < self.alarm:  # Else the alarm that is set looks at the deadline when it rings.
                self.set_alarm(self.deadline)
        if state.waits_for:
            self.listen(state.waits_for)

    def listen(self, events: int) -> None:
        """Have the selector tell of these events."""
        if events == self.listens:
            return
        selector, was, self.listens = self.server.selector, self.listens, events
        if not was:
            selector.register(self.socket, events, self.hear)
        elif events:
            selector.modify(self.socket, events, self.hear)
        else:
            selector.unregister(self.socket)

    def hear(self, events: int) -> None:
        """Do something about bytes that have come, or that can go."""
        state = STATES[self.state]
        if not events & state.waits_for:
            self.listen(0)  # They are early, and heard of again by the state that waits for them.
        else:
            self.take(state.go_on, self)

    def set_alarm(self, moment: float) -> None:
        """Have the alarm ring at a moment, if this is still there: 12,000 strangers' TLS would be 400 MB."""
        self.alarm, there = moment, weakref.ref(self)

        def ring() -> None:
            if connection := there():
                connection.ring()
        self.server.call_at(moment, ring)

    def ring(self) -> None:
        """Do what the state wants at its deadline, if that has come."""
        now = time.monotonic()
        if self.state == "closed" or now < self.alarm:
            return  # The alarm was set anew for an earlier moment, and has rung.
        self.alarm = float("inf")
        if now >= self.deadline and STATES[self.state].late:
            self.take(STATES[self.state].late, self)  # type: ignore[arg-type]
        if self.state != "closed" and self.alarm == float("inf"):
            self.set_alarm(self.deadline if self.deadline > now else now + LINGER_SECONDS)

    def take(self, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step; what goes wrong in it ends this connection and nothing else."""
        try:
            if self.state != "closed":
                step(*arguments)
        except OSError:  # A client that hangs up is nothing to report.
            with contextlib.suppress(OSError):
                self.flush()  # TLS may have said why.
            self.close()
        except Exception:
            self.server.handle_error(self.socket, self.address)
            self.close()

    def flush(self) -> bool:
        """Send what there is to be sent, as far as the client takes it; return whether that was all."""
        if self.outgoing.pending:
            self.unsent += self.outgoing.read()
        if self.unsent:
            with contextlib.suppress(BlockingIOError):
                self.unsent = self.unsent[self.socket.send(self.unsent):]
        return not self.unsent

    # -- a stranger's handshake

    def shake(self) -> None:
        """Have the handshake go on with the bytes that have come."""
        data = self.socket.recv(READ_BYTES)
        self.handshake_reads += 1
        if not data:
            self.count_refusal("hung up")
            return self.close()
        self.opening = (self.opening + data)[:len(b"OPTIONS / HTTP/1.1")]
        if self.handshake_reads > MAX_HANDSHAKE_READS:
            return self.refuse("came in too many pieces")
        self.incoming.write(data)
        self.enter("computing")
        return self.server.compute(self)

    def take_up(self, outcome: Handshake) -> None:
        """Go on with what a handshake came to: wait for more of it, refuse it, or learn who the client is."""
        if time.monotonic() >= self.deadline:
            return self.time_out()
        if isinstance(outcome, ssl.SSLWantReadError):
            if not self.flush():
                raise ConnectionError("does not read")  # A new connection's buffers hold all that is said.
            return self.enter("handshake")
        if isinstance(outcome, Exception):
            return self.refuse(why_refused(outcome))
        try:
            room = self.server.admit(self, common_name(outcome), outcome)
        except ValueError as error:
            return self.refuse(str(error))
        self.started = time.monotonic()
        if not room:
            self.count_refusal("too many connections")
            return self.send(failed(unavailable(NO_ROOM)), keep=False)
        self.enter("idle")
        return self.advance()  # A first request may have come with the handshake's end.

    def time_out(self) -> None:
        """End a handshake that takes too long."""
        self.count_refusal("timed out")
        self.close()

    def make_room(self) -> None:
        """End a stranger's connection for another's sake."""
        if self.state != "lingering":
            self.count_refusal("made room for others")
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
        self.server.refusals.add(self.network, reason)

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
        """Add the next record to the buffer, by one read of the network at most; return whether it was here.

        Raises ConnectionError at the connection's end.
        """
        try:
            if not self.incoming.pending and not self.incoming.write(self.socket.recv(READ_BYTES)):
                raise ConnectionError("hung up")
            data = self.tls.read(MAX_RECORD_BYTES)
        except NOT_YET:
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
                return self.answer(failed(error))
            if not request:
                return self.rest()
            self.serve(request)
            if self.state != "idle":
                return None
        self.enter("waiting")
        return self.server.post(functools.partial(self.take, self.advance))

    def next_request(self) -> Request | None:
        """Take a request from what has come, or return None if there is no whole one. Raises ApiError."""
        while True:
            if not self.head:
                self.head, self.buffer = take_head(self.buffer, self.searched)
                self.searched = 0 if self.head else len(self.buffer)
            if self.head and len(self.buffer) >= self.head.length:
                request, length, self.head = self.head, self.head.length, None
                body, self.buffer = self.buffer[:length], self.buffer[length:]
                return request._replace(body=body)
            if not self.incoming.pending or not self.pull():
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

    def serve(self, request: Request) -> None:
        """Have the API answer a request: now, or once it can."""
        self.exchange = Exchange(request.method, api_name(request.path), "-", request.keep_alive)
        outcome = outcome_of(lambda: self.call(request))
        if not callable(outcome.answer):
            return self.answer(outcome)
        self.enter("waiting")
        return self.server.bridge(outcome.answer,
                                  lambda later: self.take(self.resume, lambda: self.answer(later)))

    def call(self, request: Request) -> Answer:
        """Call the function that a request asks for. Raises ApiError."""
        if not self.client:
            raise ApiError(403, NAMELESS)
        function, parameters = route(request)
        self.exchange = self.exchange._replace(user=parameters.get("user_id", "-"))
        return function(self.server, self.client, self.started + CREATE_SECONDS, **parameters)

    def answer(self, outcome: Outcome) -> None:
        """Log and count an answer, and send it; a refused heart beat's a moment later."""
        exchange, self.exchange = self.exchange, NO_EXCHANGE
        taken = time.monotonic() - self.started
        known = exchange.api if exchange.api in API else "-"  # What clients make up is no label.
        metrics.add("requests_total", api=known, status=str(outcome.status))
        metrics.add("request_seconds", taken, api=known)
        log.log(logging.WARNING if outcome.status >= 500 else logging.INFO, logfmt(
            "request", client=self.client or "-", method=exchange.method, api=exchange.api,
            user=exchange.user, status=outcome.status, ms=taken * 1000))
        send = functools.partial(self.send, outcome, exchange.keep_alive, exchange.method)
        if exchange.api != "heart_beat" or outcome.status < 400:
            return send()
        self.enter("waiting")  # The plug-in repeats at once, for ever, what is not answered 200.
        return self.server.call_at(time.monotonic() + REFUSED_BEAT_SECONDS,
                                   lambda: self.take(self.resume, send))

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
        self.answer(failed(ApiError(408, "the request did not arrive in time: send it again, faster")))

    # -- its end

    def say_good_bye(self) -> None:
        """Have TLS say that nothing follows; the client's own good-bye may come later, or never."""
        with contextlib.suppress(OSError):
            self.tls.unwrap()

    def leave(self) -> None:
        """End a connection on which nothing is in flight."""
        if self in self.server.clients:  # A stranger's TLS may be with a thread.
            self.say_good_bye()
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


class State(NamedTuple):
    """One row of STATES; an event that a state does not wait for stays with the kernel until one does."""

    waits_for: int  # Of the selector's events.
    seconds: float  # For how long; 0 if the deadline of the state before goes on.
    go_on: Callable[..., object]  # Called by the selector's events; of those without, by who it waits for.
    late: Callable[[Connection], object] | None  # At the deadline.


READ, WRITE, NOTHING = selectors.EVENT_READ, selectors.EVENT_WRITE, 0
STATES = {
    "handshake": State(READ, 0, Connection.shake, Connection.time_out),
    # With one of the threads, or in their queue; take_up looks at the deadline.
    "computing": State(NOTHING, 0, Connection.take_up, None),
    # Nothing of a request is here. The only state that may be ended for others' sake.
    "idle": State(READ, IDLE_SECONDS, Connection.read, Connection.leave),
    "head": State(READ, HEAD_SECONDS, Connection.read, Connection.complain),
    "body": State(READ, BODY_SECONDS, Connection.read, Connection.complain),
    # Its answer is awaited from elsewhere, which has a deadline of its own; or its turn is.
    "waiting": State(NOTHING, 0, Connection.answer, None),
    "answering": State(WRITE, ANSWER_SECONDS, lambda connection: connection.resume(connection.write),
                       Connection.close),
    # Nothing more is said; what still comes is dropped.
    "lingering": State(READ, LINGER_SECONDS, Connection.drop, Connection.close),
    "closed": State(NOTHING, 0, Connection.close, None),
}


class Exchange(NamedTuple):
    """What is told of a request in the log, and decides about the connection after its answer."""

    method: str
    api: str
    user: str
    keep_alive: bool


NO_EXCHANGE = Exchange("-", "-", "-", False)


def shake_hands(tls: ssl.SSLObject) -> Handshake:
    """Go on with a handshake; return the client's certificate at its end."""
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


# The same certificates come again and again, and reading a time takes as long as parsing a request.
certificate_end = functools.lru_cache(MAX_CONNECTIONS)(ssl.cert_time_to_seconds)


class Refusals:
    """Counts refused handshakes by address and reason, and logs them: see REFUSAL_LINES."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.told: set[tuple[str, str]] = set()
        self.ends = time.monotonic() + REFUSALS_SECONDS

    def add(self, address: str, reason: str) -> None:
        """Count one; it is logged by a later `flush`."""
        metrics.add("handshakes_refused_total", reason=reason)
        known = len(self.counts) < MAX_REFUSALS or (address, reason) in self.counts
        self.counts[address if known else "others", reason] += 1

    def flush(self, everything: bool = False) -> None:
        """Log who is refused for the first time and, when the time is up or everything is to be told, all."""
        if everything or time.monotonic() >= self.ends:
            self.told.clear()
            self.ends = time.monotonic() + REFUSALS_SECONDS
            self.tell(REFUSAL_LINES)
            rest: collections.Counter[str] = collections.Counter()
            for (_, reason), count in self.counts.items():
                rest[reason] += count
            self.counts = collections.Counter({("others", reason): count for reason, count in rest.items()})
            self.tell(len(self.counts))
            self.told.clear()
        else:
            self.tell(REFUSAL_LINES - len(self.told))

    def tell(self, lines: int) -> None:
        """Log so many of those that were not told of, most refused first."""
        fresh = [(key, count) for key, count in self.counts.most_common() if key not in self.told]
        for (address, reason), count in fresh[:max(lines, 0)]:
            log.info(logfmt("handshake", outcome="refused", address=address, reason=reason, count=count))
            self.told.add((address, reason))
            del self.counts[address, reason]


# ---- HTTP: RFC 9112, strictly; functions of bytes, without a socket or a clock -------------------------

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Raw bytes above 0x7f are no part of a URI; the notebook plug-in sends them all the same.
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
# Without the white space around the value: a pattern with it would try each split of a long run of spaces.
HEADER_FIELD = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# A line feed without its carriage return, a carriage return without its line feed, a NUL. A carriage
# return at the end of what has come so far may still get its line feed.
BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
HTTP_REQUEST = re.compile(rb"(" + "|".join(METHODS).encode() + rb") ")


class Request(NamedTuple):
    """One request. `query` and the header fields' values are as sent, undecoded but for Latin-1."""

    method: str
    path: str
    query: bytes
    headers: dict[str, str]
    length: int  # Of the body, in bytes.
    keep_alive: bool
    expects: bool  # To be told to send the body (RFC 9110, section 10.1.1).
    body: bytes = b""


def take_head(buffer: bytes, searched: int = 0) -> tuple[Request | None, bytes]:
    """Return the request whose head starts what has come, or None if it has not ended, and the rest.

    `searched` is how many bytes are known to hold no end. Raises ApiError as soon as the head is beyond help.
    """
    # One empty line before a request is to be ignored (section 2.2).
    start = 2 if buffer.startswith(b"\r\n") else 0
    end = buffer.find(b"\r\n\r\n", max(searched - 3, start))
    if end < 0 and len(buffer) <= MAX_HEAD_BYTES + start and not BARE.search(buffer, max(searched - 1, 0)):
        return None, buffer
    return parse_head(buffer[start:end] if end >= 0 else buffer[start:]), buffer[end + 4:]


def parse_head(head: bytes) -> Request:
    """Parse a request line and header fields without the empty line behind them (RFC 9112, sections 2 to 6).

    Raises ApiError; the connection must then close, for nobody knows where the next request starts.
    """
    request_line, *lines = head.split(b"\r\n")
    if len(request_line) > MAX_REQUEST_LINE_BYTES:
        raise ApiError(414, f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes")
    if len(head) > MAX_HEAD_BYTES or len(lines) > MAX_HEADER_FIELDS:
        raise ApiError(431, f"the head is longer than {MAX_HEAD_BYTES} bytes or has more than "
                            f"{MAX_HEADER_FIELDS} header fields")
    match = REQUEST_LINE.fullmatch(request_line)
    if not match or BARE.search(head):
        raise ApiError(400, "not an HTTP/1.1 request: expected a line such as GET /api/status HTTP/1.1, "
                       "lines ended by CR LF")
    method, target = match[1].decode(), match[2]
    if match[3] != b"1":
        raise ApiError(505, "this server speaks HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        field = HEADER_FIELD.fullmatch(line)
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
    if "transfer-encoding" in headers:
        raise ApiError(501, "Transfer-Encoding is not supported: send the body with a Content-Length")
    length = headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,16}", length):
        raise ApiError(400, "Content-Length is malformed: expected one decimal number")
    if int(length) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    if method not in METHODS:
        raise ApiError(501, "this method is not known here: use GET or POST")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise ApiError(417, "the only expectation known here is 100-continue")
    # The absolute form, https://host/path, must be understood as well (section 3.2.2).
    path, _, query = re.sub(rb"^https?://[^/?]+", b"", target, flags=re.I).partition(b"?")
    closes = "close" in [option.strip().lower() for option in headers.get("connection", "").split(",")]
    # Whoever leaves a length out may send a body all the same, which is no next request.
    bounded = method in ("GET", "HEAD") or "content-length" in headers
    return Request(method, path.decode("latin-1"), query, headers, int(length),
                   http_1_1 and not closes and bounded, "expect" in headers)


def response(outcome: Outcome, keep: bool, method: str = "-") -> bytes:
    """Return an answer in HTTP/1.1; to HEAD without its body, nor the length (RFC 9110, section 9.3.2)."""
    content, kind = (outcome.answer.encode(), "text/plain; version=0.0.4; charset=utf-8") if isinstance(
        outcome.answer, str) else (json.dumps(outcome.answer).encode() + b"\n", "application/json")
    length, content = ("", b"") if method == "HEAD" else (f"Content-Length: {len(content)}\r\n", content)
    more = "".join(f"{name}: {value}\r\n" for name, value in outcome.headers.items())
    head = (f"HTTP/1.1 {outcome.status} {http.client.responses[outcome.status]}\r\nDate: {outcome.date}\r\n"
            f"Content-Type: {kind}\r\n{length}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            f"{more}{'' if keep else 'Connection: close' + chr(13) + chr(10)}\r\n")
    return head.encode() + content


# ---- The API -----------------------------------------------------------------------------------------

Said = Union[dict[str, Any], str]  # What becomes JSON, or text as it is.
Answer = Union[Said, Callable[[], Said]]  # The latter has to be waited for.
USER_ID_RULE = (f"a user_id is 1 to {MAX_USER_ID_CHARACTERS} letters, marks and decimal digits of any script "
                "and . _ @ -, and starts with a letter or digit")
NO_TLS = "this server speaks HTTPS: ask for https:// instead"
NAMELESS = ("the client certificate has no common name (CN) or several, which says who you are: have another "
            "one made")
NO_ROOM = "too many connections: close idle ones, or ask again later"


class ApiError(Exception):
    """What a client is told: a status, a sentence that says what to do, and header fields."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class NotReady(ApiError):
    """Why a database is not ready at some moment."""


class Outcome(NamedTuple):
    """What became of a request."""

    status: int
    answer: Answer
    headers: dict[str, str]
    date: str


def outcome_of(function: Callable[[], Answer]) -> Outcome:
    """Call what a request asks for; an exception becomes the answer that says so."""
    try:
        return Outcome(200, function(), {}, http_date(int(time.time())))
    except ApiError as error:
        return failed(error)
    except KubectlError as error:
        return failed(told(error))
    except Exception:
        log.error(logfmt("request", error=traceback.format_exc()))
        return failed(ApiError(500, "this server failed: its maintainer's log says why"))


def failed(error: ApiError) -> Outcome:
    """Return an error as an answer."""
    return Outcome(error.status, {"error": error.message}, error.headers, http_date(int(time.time())))


# As RFC 9110, section 5.6.7, wants it; the answers of a second share it.
http_date = functools.lru_cache(1)(functools.partial(email.utils.formatdate, usegmt=True))


def unavailable(message: str, seconds: int = 5) -> ApiError:
    """Return a 503 that asks the client to come back in so many seconds (RFC 9110, section 10.2.3)."""
    return ApiError(503, message, Retry_After=str(seconds))


def told(error: KubectlError) -> ApiError:
    """Return what a client is told of a kubectl that failed: none of its own words."""
    _, message, status = REASONS[error.reason]
    wait = {429: "60", 503: "5"}.get(status)
    return ApiError(status, message, **({"Retry_After": wait} if wait else {}))


def route(request: Request) -> tuple[Callable[..., Answer], dict[str, str]]:
    """Look a request up in the API; return its function and its parameters. Raises ApiError."""
    refuse_web_pages(request)
    name = api_name(request.path)
    if name not in API:
        shown = json.dumps(request.path[:80])
        raise ApiError(404, f"there is no {shown} here, but "
                       + ", ".join(f"{one[0]} /api/{api}" for api, one in API.items()))
    method, function, takes = API[name]
    if request.method != method:
        raise ApiError(405, f"{name} takes {method}", Allow=method)
    if method == "POST" and "content-length" not in request.headers:
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
    """Return what a path asks for. The plug-in adds /api/ to an address that may end in a slash itself."""
    found = re.fullmatch("/{1,2}api/(.*)", path, re.S)
    return found[1] if found else "-"


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
        name, equals, value = (urllib.parse.unquote_to_bytes(part) for part in pair.partition(b"="))
        try:
            pairs.append((name.decode("utf-8"), value.decode("utf-8")))
        except UnicodeDecodeError:
            equals = b""
        if not equals or re.search(rb"%(?![0-9A-Fa-f]{2})", pair):
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
    short = isinstance(text, str) and len(text) <= 4 * MAX_USER_ID_CHARACTERS
    user_id = unicodedata.normalize("NFC", str(text)) if short else ""
    # The categories, not isalnum(), which is true for '²'.
    categories = [unicodedata.category(character) for character in user_id]
    allowed = (category[0] in "LM" or category == "Nd" or character in "._@-"
               for category, character in zip(categories, user_id))
    if (not 0 < len(user_id) <= MAX_USER_ID_CHARACTERS or not all(allowed)
            or categories[0][0] != "L" and categories[0] != "Nd"):
        raise ApiError(400, f"user_id is malformed: {USER_ID_RULE}")
    return user_id


def create_db(server: Server, client: str, deadline: float, user_id: str) -> Answer:
    """Answer with the user's database, made if there is none, once it takes queries."""
    ready = server.cluster.ready(user_id, client)
    return ready or (lambda: server.cluster.create(user_id, client, deadline))


def heart_beat(server: Server, client: str, deadline: float, user_id: str) -> Answer:
    """Take a beat, for a database or none, but not for another client's."""
    return {"user_id": user_id, "status": server.cluster.beat(user_id, client)}


def delete_db(server: Server, client: str, deadline: float, user_id: str) -> Answer:
    """Remove the user's database and its data, if there is one."""
    def delete() -> Said:
        server.cluster.delete(user_id, client, deadline)
        return {"user_id": user_id, "status": "absent"}
    return delete


def list_db(server: Server, client: str, deadline: float) -> Answer:
    """List the caller's own databases."""
    def listed() -> Said:
        return {"databases": server.cluster.databases_of(client, deadline)}
    return listed() if server.cluster.observed() else listed


def status(server: Server, client: str, deadline: float) -> Answer:
    """Say which version this is, since when it runs and whether the cluster answers."""
    return {"version": __version__, "uptime_seconds": int(time.monotonic() - server.started),
            "cluster": server.cluster.status()}


def tell_metrics(server: Server, client: str, deadline: float) -> Answer:
    """Return what Prometheus scrapes. It names no user and no client."""
    connections: dict[str, float] = {"handshake": len(server.strangers), "idle": len(server.idle),
                                     "busy": len(server.clients) - len(server.idle)}
    labelled: dict[str, tuple[str, dict[str, float]]] = {
        "connections": ("state", connections), "databases": ("status", server.cluster.count()),
        "certificate_expiry_timestamp_seconds": ("file", server.tls.expiries),
        "build_info": ("version", {__version__: 1})}
    gauges: Samples = {family: {((label, value),): number for value, number in numbers.items()}
                       for family, (label, numbers) in labelled.items()}
    gauges["cluster_synchronised"] = {(): float(server.cluster.status() == "ok")}
    gauges["last_beat_write_timestamp_seconds"] = {(): server.cluster.beats_written_at}
    gauges["log_lines_dropped_total"] = {(): LogQueue.dropped}
    return metrics.text(gauges)


API: dict[str, tuple[str, Callable[..., Answer], tuple[str, ...]]] = {
    "create_db": ("POST", create_db, ("user_id",)),
    "heart_beat": ("GET", heart_beat, ("user_id",)),
    "delete_db": ("POST", delete_db, ("user_id",)),
    "list_db": ("GET", list_db, ()),
    "status": ("GET", status, ()),
    "metrics": ("GET", tell_metrics, ()),
}


# ---- What the cluster is known to hold ---------------------------------------------------------------

PREFIX = "playground.sqlflow.org/"
USER, USER_ID, CLIENT = PREFIX + "user", PREFIX + "user-id", PREFIX + "client"
LAST_BEAT = PREFIX + "last-heart-beat"
# The same on what was made for the same Secret, and so for the same password; another on every other set.
SET = PREFIX + "set"
OURS = {"app.kubernetes.io/managed-by": "sqlflow-playground"}
RFC_3339 = "%Y-%m-%dT%H:%M:%SZ"
SELECTOR = ",".join(f"{name}={value}" for name, value in OURS.items())
# What outlives the sweep carries it: a persistent database's claim and password.
KEEP = PREFIX + "keep"
# In the order of creation: a pod starts with the Secret that is there, so that a Secret missing beside a
# StatefulSet or a claim is known to have been deleted. Every template has all of them but the claim.
KINDS = {"Secret": "secret", "PersistentVolumeClaim": "persistentvolumeclaim", "Service": "service",
         "StatefulSet": "statefulset.apps"}


# The rights that the server needs in its namespace; k8s_templates/playground.yaml grants them and says why.
RIGHTS = {"statefulsets.apps": ("get", "list", "watch", "create", "patch", "delete"),
          "services": ("get", "list", "watch", "create", "delete"),
          "secrets": ("get", "list", "watch", "create", "delete"),
          "pods": ("list",), "events": ("list",)}
# With a template that has a claim.
CLAIM_RIGHTS = {"persistentvolumeclaims": ("get", "list", "watch", "create", "delete")}
OLDEST_KUBECTL = 1, 20
SAMPLE_DATA = "playground-sample-data"  # The ConfigMap that the templates mount, if it is there.


def slug(user_id: str) -> str:
    """Return the user id as a DNS label of at most 40 characters, the same for the same id only.

    A StatefulSet's name may have 52 characters, since its pods carry it in a label with a hash behind
    it: "mysql-" and 40 fit. A readable part and a hash stand for an id that is no such label.
    """
    if re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", user_id) and "--" not in user_id:
        return user_id
    readable = re.sub(r"[^a-z0-9]+", "-", user_id.lower())[:26].strip("-") or "user"
    return f"{readable}--{hashlib.sha256(user_id.encode()).hexdigest()[:12]}"


def is_time(text: str) -> bool:
    """Tell whether a text is a time as this server writes it."""
    with contextlib.suppress(ValueError):
        time.strptime(text, RFC_3339)
        return True
    return False


REMADE = "the database was made anew: its password had been lost in the cluster, and its data went with it"


class Seen(NamedTuple):
    """What is kept of an object in the cluster; 1,000 databases have 3,000 of these."""

    uid: str
    version: str
    created: float
    set_id: str
    user_id: str
    client: str
    last_beat: str
    keep: bool  # It outlives the sweep.
    leaving: bool
    ready: bool  # Of a StatefulSet: its pod is.
    stopped: bool  # Of a StatefulSet: somebody scaled it to 0.
    claims: bool  # Of a StatefulSet: its pod mounts a claim.
    password: str  # Of a Secret; empty if it is none that SQLFlow can paste anywhere without quoting it.
    host: str  # Of a Service.

    @classmethod
    def of(cls, item: dict[str, Any]) -> Seen:
        """Reduce an object as the API server sends it."""
        metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
        annotations = metadata.get("annotations") or {}
        volumes = ((spec.get("template") or {}).get("spec") or {}).get("volumes") or ()
        return cls(
            uid=metadata["uid"], version=metadata["resourceVersion"],
            created=calendar.timegm(time.strptime(metadata["creationTimestamp"], RFC_3339)),
            set_id=annotations.get(SET, ""), user_id=annotations.get(USER_ID, ""),
            client=annotations.get(CLIENT, ""),
            last_beat=annotations.get(LAST_BEAT, ""), keep=KEEP in annotations,
            leaving="deletionTimestamp" in metadata,
            ready=status.get("readyReplicas", 0) > 0, stopped=spec.get("replicas", 1) == 0,
            claims=any("persistentVolumeClaim" in volume for volume in volumes),
            password=decoded((item.get("data") or {}).get("password", "")), host=spec.get("clusterIP", ""))


class Database:
    """One user's set of objects as the watches show it, and what is under way with it here."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name, self.kinds = name, cluster.kinds
        self.objects: dict[str, Seen] = {}
        self.changed = threading.Condition(cluster.lock)
        self.waiting = 0
        # When its user was last heard of, here or as another server wrote it down, and whether that is still
        # to be written down. By time.monotonic: a wall clock may step, and other servers have other ones.
        self.heard_at = time.monotonic()
        self.unwritten = False
        # The password that the set of this id started with, should its Secret be deleted by hand.
        self.remembered = ("", "")
        # What is under way, for whom it is being created, and what was made but may not show until when.
        self.work: Work | None = None
        self.requested_by: tuple[str, str] | None = None
        self.made: set[str] = set()
        self.settles_at = 0.0
        # Whom to tell that the database was made anew, without its data.
        self.note_for: tuple[str, str] | None = None

    def hear(self) -> None:
        """Note that the user is there."""
        self.heard_at, self.unwritten = time.monotonic(), True

    def owner(self) -> tuple[str, str] | None:
        """Return the user id and the client that the set belongs to, or None if there is no set."""
        for kind in reversed(KINDS):
            if kind in self.objects:
                return self.objects[kind].user_id, self.objects[kind].client
        return self.requested_by

    def check(self, user_id: str, client: str) -> None:
        """Raise ApiError 403 or 409 if there is a set and it is not this client's database for this user."""
        owner = self.owner() or (user_id, client)
        if owner[1] != client:
            raise ApiError(403, "this user_id belongs to another client")
        if owner[0] != user_id:
            raise ApiError(409, "this user_id's name in the cluster is taken by another one: use another "
                                "user_id")

    def leaving(self) -> bool:
        """Tell whether some object of the set is being deleted."""
        return any(item.leaving for item in self.objects.values())

    def credentials(self) -> tuple[str, str] | None:
        """Return the set's id and password, from its Secret or from memory, or None if none can be had."""
        if secret := self.objects.get("Secret"):
            return secret.set_id, secret.password
        started = self.objects.keys() & {"StatefulSet", "PersistentVolumeClaim"}
        return self.remembered if started and self.remembered[1] else None

    def lacking(self) -> set[str]:
        """Return the template's kinds that the set has not. A StatefulSet without a claim needs none."""
        unclaimed = "StatefulSet" in self.objects and not self.objects["StatefulSet"].claims
        return set(self.kinds) - self.objects.keys() - ({"PersistentVolumeClaim"} if unclaimed else set())

    def alien(self) -> list[str]:
        """Return the kinds whose objects were not made for the set's password."""
        set_id, _ = self.credentials() or (None, "")
        return [kind for kind, item in self.objects.items() if item.set_id != set_id]

    def last_beat(self) -> str | None:
        """Return the time of the last heart beat (RFC 3339), or None of a database that is kept."""
        if "StatefulSet" not in self.objects:
            return None
        written = self.objects["StatefulSet"].last_beat
        if is_time(written) and not self.unwritten:
            return written
        return rfc3339(time.time() - time.monotonic() + self.heard_at)

    def kept(self) -> bool:
        """Tell whether all that is left is what the sweep leaves: a claim, with its data and password."""
        found = self.objects.keys() & {"StatefulSet", "PersistentVolumeClaim"}
        return found == {"PersistentVolumeClaim"} and not self.leaving()

    def status(self) -> str:
        """Return ready, starting or absent."""
        if "StatefulSet" not in self.objects or self.leaving():
            return "starting" if self.work else "absent"
        whole = not self.lacking() and not self.alien()
        return "ready" if whole and self.objects["StatefulSet"].ready else "starting"

    def status_or_kept(self) -> str:
        """Return the status; of one that is absent, but whose data is there, kept."""
        return "kept" if self.kept() else self.status()


class Work:
    """Something under way with a database; whoever waits for it holds on to it, and sees what comes of it."""

    def __init__(self, database: Database, owner: tuple[str, str], group: Group) -> None:
        self.database, self.owner, self.group = database, owner, group
        self.done = False
        self.failure: ApiError | KubectlError | None = None


class Group:
    """Does the work of everyone who waits in one go, like a database's group commit.

    While its workers are busy, what is submitted gathers; a worker that gets free takes up to `size`, after
    it has waited for company for a moment. `do` notes what fails with the work that failed; what it raises
    fails for all.
    """

    def __init__(self, cluster: Cluster, do: Callable[[list[Work]], None], size: int,
                 workers: int = 1) -> None:
        self.cluster, self.do, self.size = cluster, do, size
        self.waiting: list[Work] = []
        self.submitted = threading.Condition(cluster.lock)
        for _ in range(workers):
            threading.Thread(target=self.run, name=do.__name__, daemon=True).start()

    def submit(self, database: Database, owner: tuple[str, str]) -> Work:
        """Queue a database on which nothing is under way, for its owner. The lock must be held."""
        work = database.work = Work(database, owner, self)
        self.waiting.append(work)
        self.submitted.notify()
        return work

    def run(self) -> NoReturn:
        """Work for ever; one of these a worker."""
        while True:
            with self.submitted:
                self.submitted.wait_for(lambda: self.waiting)
            pause, end, joined = GATHER_SECONDS[0], time.monotonic() + GATHER_SECONDS[1], 0
            while joined < min(len(self.waiting), self.size) and time.monotonic() < end:
                joined = len(self.waiting)
                time.sleep(pause)
            with self.submitted:
                group, self.waiting = self.waiting[:self.size], self.waiting[self.size:]
            failure: ApiError | KubectlError | None = None
            if not group:
                continue  # Another worker took it.
            try:
                self.do(group)
            except (ApiError, KubectlError) as error:
                failure = error
            except Exception:
                log.error(logfmt("group", error=traceback.format_exc()))
                failure = KubectlError("failed")
            with self.submitted:
                for work in group:
                    database, work.done, work.failure = work.database, True, work.failure or failure
                    database.work, database.settles_at = None, time.monotonic() + SETTLE_SECONDS
                    if work.failure or database.objects:
                        database.requested_by = None  # Else whose it is shows with its objects, in a moment.
                    database.changed.notify_all()
                    self.cluster.forget(database)


class Cluster:
    """The databases in one namespace: observed by three watches, changed by groups of kubectl."""

    def __init__(self, kubectl: Kubectl, template: Template, max_databases: int,
                 max_databases_per_client: int, idle_timeout: float, sweep_interval: float) -> None:
        self.kubectl, self.template, self.kinds = kubectl, template, template.kinds
        # StatefulSets first, for deleting: what is running ends before its password goes.
        self.resources = ",".join(KINDS[kind] for kind in reversed(self.kinds))
        self.idle_timeout, self.sweep_interval = idle_timeout, sweep_interval
        self.max_databases, self.max_databases_per_client = max_databases, max_databases_per_client
        self.lock = threading.RLock()
        self.databases: dict[str, Database] = {}
        # Why each kind is not watched and the template was not found good, of REASONS; empty when it is.
        self.troubles = dict.fromkeys((*self.kinds, "template"), "starting")
        self.unknown = set(self.troubles)  # Those that never were good so far.
        self.early_beats: set[tuple[str, str]] = set()
        self.beats_written_at = time.time()
        self.synchronised = threading.Condition(self.lock)
        self.creating = Group(self, self.create_group, GROUP_USERS, CREATING_KUBECTLS)
        self.deleting = Group(self, self.delete_group, 2 * GROUP_USERS)
        self.sweeping = Group(self, self.sweep_group, SWEPT_PER_ROUND)
        # create_db comes after them: what it asks for is there anew, or still.
        self.ending = (self.deleting, self.sweeping)
        self.keeping = Group(self, self.keep_group, GROUP_USERS)
        self.repairing = Group(self, self.repair_group, GROUP_USERS)
        self.explaining = Group(self, self.explain_group, 2 * GROUP_USERS)

    def path(self, kind: str) -> str:
        """Return the API server's path of a kind in our namespace."""
        resource, _, group = KINDS[kind].partition(".")
        return f"{f'/apis/{group}' if group else '/api'}/v1/namespaces/{self.kubectl.namespace}/{resource}s"

    def start(self) -> None:
        """Start to observe the cluster, without waiting for it."""
        for kind in self.kinds:
            threading.Thread(target=self.watch, args=(kind,), name=f"watch {kind}", daemon=True).start()
        threading.Thread(target=self.check_template, name="check template", daemon=True).start()
        threading.Thread(target=self.sweep, name="sweep", daemon=True).start()

    # -- what the API functions call

    def ready(self, user_id: str, client: str) -> dict[str, Any] | None:
        """Return the data source if the database takes queries and nothing is under way. Raises ApiError."""
        with self.lock:
            database = self.databases.get("mysql-" + slug(user_id))
            if database and self.observed():
                database.check(user_id, client)
                if database.status() == "ready" and not database.work and not self.overdue(database):
                    return self.answer(database, (user_id, client))
            return None

    def create(self, user_id: str, client: str, deadline: float) -> dict[str, Any]:
        """Return the user's data source once the database takes queries. Raises ApiError, by the deadline."""
        with self.attending(user_id, client, deadline) as (database, turns):
            work: Work | None = None
            for _ in turns:
                # Why it was not ready when somebody else's time was up is no answer yet.
                early = (work and isinstance(work.failure, NotReady)
                         and time.monotonic() < deadline - REASON_SECONDS)
                if work and work.failure and work.group not in self.ending and not early:
                    raise work.failure
                ends = database.work and database.work.group in self.ending
                if database.status() == "ready" and not ends:
                    if work and work.done and work.group is self.keeping or not self.overdue(database):
                        return self.answer(database, (user_id, client))
                    if not database.work:
                        self.keeping.submit(database, (user_id, client))
                elif not database.work:
                    self.advance(database, (user_id, client), deadline)
                work = database.work
            raise unavailable("the cluster did not answer in time: ask again, the creation goes on", 2)

    def delete(self, user_id: str, client: str, deadline: float) -> None:
        """Delete the user's objects; return once the cluster took that on. Raises ApiError."""
        with self.attending(user_id, client, deadline) as (database, turns):
            work: Work | None = None
            for _ in turns:
                if work and work.done:
                    if work.failure:
                        raise work.failure
                    return
                if not work and not database.work:
                    work = self.deleting.submit(database, (user_id, client))
            raise unavailable("the cluster did not answer in time: ask again")

    def beat(self, user_id: str, client: str) -> str:
        """Note that the user was heard; return ready, starting, absent, or unknown while the cluster is."""
        with self.lock:
            database = self.databases.get("mysql-" + slug(user_id))
            if database:
                database.check(user_id, client)
                database.hear()
            if not self.observed():
                if len(self.early_beats) < MAX_EARLY_BEATS:
                    self.early_beats.add((user_id, client))
                return "unknown"
            return database.status() if database else "absent"

    def databases_of(self, client: str, deadline: float) -> list[dict[str, Any]]:
        """Return the client's databases. Raises KubectlError if the cluster is not known by the deadline."""
        with self.lock:
            self.wait_known(self.kinds, deadline)
            owned = {owner[0]: database for database in self.databases.values()
                     if (owner := database.owner()) and owner[1] == client and not database.leaving()}
            return [{"user_id": user_id, "status": database.status_or_kept(),
                     "last_heart_beat": database.last_beat()}
                    for user_id, database in sorted(owned.items())
                    if database.kept() or "StatefulSet" in database.objects]

    def status(self) -> str:
        """Return ok, or what is wrong with the cluster, in words fit for a client."""
        with self.lock:
            trouble = self.trouble(self.troubles)
            return REASONS[trouble][1] if trouble else "ok"

    def count(self) -> dict[str, float]:
        """Return how many databases are ready, are starting, and are kept."""
        with self.lock:
            statuses = [database.status_or_kept() for database in self.databases.values()]
        return {status: float(statuses.count(status)) for status in ("ready", "starting", "kept")}

    # -- one user's database

    @contextlib.contextmanager
    def attending(self, user_id: str, client: str,
                  deadline: float) -> Iterator[tuple[Database, Iterator[None]]]:
        """Hold the lock and a database's entry in the table; give the entry and its turns: see `turns`."""
        with self.lock:
            self.wait_known(self.kinds, deadline - REASON_SECONDS)
            name = "mysql-" + slug(user_id)
            database = self.databases.setdefault(name, Database(self, name))
            database.waiting += 1
            try:
                yield database, self.turns(database, user_id, client, deadline)
            finally:
                database.waiting -= 1
                self.forget(database)

    def turns(self, database: Database, user_id: str, client: str, deadline: float) -> Iterator[None]:
        """Yield at once and when something may have changed, until the deadline. Raises ApiError."""
        while True:
            database.check(user_id, client)
            yield
            now = time.monotonic()
            moments = [moment for moment in (database.settles_at, deadline - REASON_SECONDS, deadline)
                       if moment > now]
            if deadline <= now:
                return
            database.changed.wait(min(moments) - now)

    def advance(self, database: Database, owner: tuple[str, str], deadline: float) -> None:
        """Begin what brings a set nearer to being whole, if anything. Raises ApiError 429."""
        now, objects = time.monotonic(), database.objects
        if now >= deadline - REASON_SECONDS:
            self.explaining.submit(database, owner)
        elif database.leaving() or now < database.settles_at and not database.made <= objects.keys():
            pass  # What goes or was just made shows in the watches soon.
        elif database.alien():
            self.repairing.submit(database, owner)
        elif any(item.stopped for item in objects.values()):
            raise unavailable(
                "the database was stopped, scaled to 0: its maintainer must scale it to 1 again", 60)
        elif database.lacking():
            self.wait_known(("template",), deadline - REASON_SECONDS)
            if not database.work:
                if not objects:
                    self.check_quota(owner[1])
                database.requested_by = owner
                self.creating.submit(database, owner)

    def answer(self, database: Database, owner: tuple[str, str]) -> dict[str, Any]:
        """Return what the owner of a ready database is told. Raises ApiError 409 for a lost password."""
        password, host = database.objects["Secret"].password, database.objects["Service"].host
        if not password:
            raise replaced(database)
        # SQLFlow takes no IPv6 address, and a headless Service has none.
        if not re.fullmatch(r"[0-9.]+", host):
            host = f"{database.name}.{self.kubectl.namespace}.svc"
        database.hear()
        anew, database.note_for = database.note_for == owner, None
        source = f"mysql://root:{password}@tcp({host}:3306)/?maxAllowedPacket=0"
        return {"user_id": owner[0], "data_source": source,
                **({"note": REMADE} if anew else {})}

    def check_quota(self, client: str) -> None:
        """Raise ApiError 429 if one more database would be too many."""
        owners = [owner[1] for database in self.databases.values()
                  if not database.leaving() and (owner := database.owner())]
        for limit, count, whose in ((self.max_databases, len(owners), "this playground"),
                                    (self.max_databases_per_client, owners.count(client), "one client")):
            if 0 < limit <= count:
                raise ApiError(429, f"{whose} may have {limit} databases: delete one with delete_db, or ask "
                                    "the maintainer for more",
                               Retry_After="60")

    def forget(self, database: Database) -> None:
        """Drop a database's entry when there is nothing to know about it."""
        if not (database.objects or database.waiting or database.work):
            self.databases.pop(database.name, None)

    def observed(self) -> bool:
        """Tell whether every kind has been listed once."""
        return self.unknown <= {"template"}

    def wait_known(self, what: Iterable[str], deadline: float) -> None:
        """Wait for the first listings of kinds, or the template's check. Raises KubectlError if they fail."""
        while unknown := self.unknown.intersection(what):
            trouble, remaining = self.trouble(unknown), deadline - time.monotonic()
            if trouble != "starting" or remaining <= 0:
                raise KubectlError(trouble)
            self.synchronised.wait(remaining)

    def trouble(self, what: Iterable[str]) -> str:
        """Return a trouble, of REASONS, rather one that was met than "starting"; empty if there is none."""
        return max((self.troubles[one] for one in what),
                   key=lambda trouble: (trouble not in ("", "starting"), trouble))

    def report(self, what: str, trouble: str) -> None:
        """Note how a kind's watch or the template's check goes."""
        with self.lock:
            self.troubles[what] = trouble
            self.unknown -= {what} if not trouble else set()
            self.synchronised.notify_all()

    # -- watching (Kubernetes API Concepts, "Efficient detection of changes")

    def watch(self, kind: str) -> NoReturn:
        """Keep one kind's table what the cluster holds, as a thread: list, then watch on from there."""
        version, pause, troubled = "", WATCH_PAUSES_SECONDS[0], False
        while True:
            started = time.monotonic()
            try:
                if not version:
                    version = self.take_listing(kind)
                elif troubled:  # That the cluster answers again shows in no watch in which nothing happens.
                    self.kubectl("get", "--raw", f"{self.listing(kind)}&limit=1")
                troubled = False
                self.report(kind, "")
                options = (f"&watch=1&resourceVersion={version}&allowWatchBookmarks=true"
                           f"&timeoutSeconds={WATCH_SECONDS}")
                for line in self.kubectl.lines("get", "--raw", self.listing(kind) + options,
                                               seconds=WATCH_SECONDS + WATCH_GRACE_SECONDS):
                    version = self.take_event(line)
            except KubectlError as error:
                log.warning(logfmt("watch", kind=kind, outcome=error.reason))
                if error.reason == "expired":
                    version = ""
                elif error.reason != "cut":
                    troubled = True
                    self.report(kind, error.reason)
            except Exception:  # Whatever it was that came: the table is to be what the cluster holds.
                log.error(logfmt("watch", kind=kind, error=traceback.format_exc()))
                version = ""
                self.report(kind, "failed")
            if time.monotonic() - started > WATCH_PAUSES_SECONDS[1]:
                pause = WATCH_PAUSES_SECONDS[0]
            else:
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, WATCH_PAUSES_SECONDS[1])

    def listing(self, kind: str) -> str:
        """Return the API server's path of our objects of a kind."""
        return f"{self.path(kind)}?labelSelector={urllib.parse.quote(SELECTOR)}"

    def take_listing(self, kind: str) -> str:
        """Take what the cluster holds of a kind in place of what was known; return its resourceVersion."""
        known = self.known(self.databases.values())
        items: list[dict[str, Any]] = []
        more = ""
        while True:
            page = self.kubectl("get", "--raw", f"{self.listing(kind)}&limit={PAGE_OBJECTS}{more}")
            metadata, found = read_page(page)
            items += [{**item, "kind": kind} for item in found]
            if not metadata.get("continue"):
                break
            more = f"&continue={urllib.parse.quote(metadata['continue'])}"
        self.take(known, items, (kind,))
        log.info(logfmt("watch", kind=kind, listed=len(items)))
        return str(metadata["resourceVersion"])

    def take_event(self, line: bytes) -> str:
        """Take a line of a watch; return the version to go on from. Raises KubectlError if it has none."""
        event = json.loads(line)
        if event["type"] == "ERROR":
            if event["object"].get("code") == 410:  # The version is no longer in the server's history.
                raise KubectlError("expired")
            raise KubectlError(why(str(event["object"].get("message"))))
        if event["type"] != "BOOKMARK":
            self.observe(event["object"], event["type"] == "DELETED")
        return str(event["object"]["metadata"]["resourceVersion"])

    def observe(self, item: dict[str, Any], gone: bool = False) -> None:
        """Take one object as it is now, or as it was when it went."""
        kind, name, now = item["kind"], item["metadata"]["name"], Seen.of(item)
        if not name.startswith("mysql-"):
            return
        with self.lock:
            database = self.databases.setdefault(name, Database(self, name))
            before = database.objects.get(kind, now)
            if not gone:
                database.requested_by = None if not database.work else database.requested_by
                if before is now or (before.uid, before.last_beat) != (now.uid, now.last_beat):
                    database.heard_at = time.monotonic()  # Made, or written down by another server, just now.
                    if kind == "StatefulSet" and not is_time(now.last_beat):
                        log.warning(logfmt("heart_beat", user=now.user_id, client=now.client,
                                           last_beat=now.last_beat[:80],
                                           reason="it is no time in RFC 3339, and is taken for now"))
                # What was deleted from here stays so; a watch may show it alive for a moment.
                leaving = now.leaving or before.leaving and before.uid == now.uid
                database.objects[kind] = now._replace(leaving=leaving)
                if now.password:
                    database.remembered = now.set_id, now.password
            elif before.uid == now.uid:
                database.objects.pop(kind, None)
            database.changed.notify_all()
            self.forget(database)

    def known(self, databases: Iterable[Database]) -> dict[Database, dict[str, Seen]]:
        """Return what is known of databases now, before they are read."""
        with self.lock:
            return {database: dict(database.objects) for database in databases}

    def take(self, known: dict[Database, dict[str, Seen]], items: list[dict[str, Any]],
             kinds: Iterable[str] = ()) -> None:
        """Take a listing in place of what was known before; what the watches showed since is newer."""
        with self.lock:
            found = {(item["metadata"]["name"], item["kind"]): item for item in items}
            for database, before in known.items():
                for kind in kinds or self.kinds:
                    item, now = found.pop((database.name, kind), None), database.objects.get(kind)
                    if now is before.get(kind):
                        if item:
                            self.observe(item)
                        elif now:
                            del database.objects[kind]
                            database.changed.notify_all()
                self.forget(database)
            for item in found.values():
                self.observe(item)

    # -- groups: one kubectl for all who wait

    def create_group(self, group: list[Work]) -> None:
        """Create what these users' sets lack with one kubectl, and note what fails with its work.

        Of several servers that create for one user at once, the one whose Secret the cluster takes decides:
        what others made is alien to that Secret, is answered by nobody, and makes room in `repair_group`.
        """
        wanted: list[tuple[Work, dict[str, Any]]] = []
        passwords = []
        with self.lock:
            for work in group:
                database, (user_id, client) = work.database, work.owner
                set_id, password = database.credentials() or (secrets.token_hex(8), secrets.token_hex(16))
                values = {"name": database.name, "slug": slug(user_id), "user_id": user_id, "client": client,
                          "set": set_id, "password": password, "now": rfc3339(time.time())}
                database.made = database.lacking()
                passwords.append(password)
                wanted += [(work, item) for item in self.template.fill(values)
                           if item["kind"] in database.made]
        if not wanted:
            return
        self.kubectl.post(lambda: metrics.add("creations_grouped", len(group)))
        manifest = listed([item for _, item in wanted])
        try:
            self.kubectl("create", "-f", "-", "--validate=false", "-o", "name", stdin=manifest,
                         hide=passwords)
            return
        except KubectlError as error:
            printed = set(error.printed.decode().split())
            # kubectl prints the objects that it made and, in the order of the rest, an error for each.
            failed = [(work, item) for work, item in wanted
                      if f"{KINDS[item['kind']]}/{work.database.name}" not in printed]
            errors = error.each(len(failed))
        taken: list[Work] = []
        for (work, _), failure in zip(failed, errors):
            if failure.reason == "exists":  # Another server's; or somebody's who does not know of us.
                taken.append(work)
            else:
                work.failure = work.failure or failure
        taken = list(dict.fromkeys(taken))
        try:
            self.read(taken)
        except KubectlError as error:
            for work in taken:
                work.failure = work.failure or error
        # What was made beside a stranger's object is no use to anybody, if all the rest was made now.
        if useless := [work for work in taken if work.failure and len(work.database.made) == len(self.kinds)]:
            with contextlib.suppress(KubectlError):
                self.remove(useless)

    def read(self, group: list[Work]) -> None:
        """Read these users' objects by name; one without our labels fails its work. Raises KubectlError."""
        if not group:
            return
        known = self.known(work.database for work in group)
        names = [f"{KINDS[kind]}/{work.database.name}" for work in group for kind in reversed(self.kinds)]
        answer = self.kubectl("get", *names, "--ignore-not-found", "-o", "json") or b'{"items": []}'
        items = json.loads(answer)
        items = items.get("items", [items])
        with self.lock:
            ours = [item for item in items if OURS.items() <= (item["metadata"].get("labels") or {}).items()]
            self.take(known, ours)
            foreign = {item["metadata"]["name"]: item["kind"] for item in items if item not in ours}
            for work in group:
                if kind := foreign.get(work.database.name):
                    work.failure = ApiError(409, f"the cluster has a {kind} {work.database.name} without "
                                                 "this playground's labels: use another user_id, or ask "
                                                 "the maintainer to rename it, or to label it again if it "
                                                 "was ours")

    def repair_group(self, group: list[Work]) -> None:
        """Delete, by uid, what was not made for the Secret that is there: nobody knows its password."""
        self.read(group)  # The three watches may show different moments.
        for work in group:
            with self.lock:
                lost = {kind: work.database.objects[kind] for kind in work.database.alien()}
                secret = work.database.objects.get("Secret")
                # Beside a Secret, two servers' creating and deleting crossed, which takes no longer than one
                # kubectl; or somebody replaced the Secret, and the data is in use.
                if secret and any(time.time() - item.created > KUBECTL_SECONDS
                                  for kind, item in lost.items() if kind != "Service"):
                    work.failure = work.failure or replaced(work.database)
                elif "PersistentVolumeClaim" in lost and not secret:
                    work.failure = work.failure or ApiError(
                        409, f"the Secret {work.database.name} was deleted, and the password of this user's "
                             "data with it: the maintainer can put it back; delete_db gives the data up")
            try:
                for kind, item in lost.items() if not work.failure else ():
                    log.warning(logfmt("repair", user=item.user_id, client=item.client,
                                       deletes=f"{KINDS[kind]}/{work.database.name}", uid=item.uid, reason=
                                       "not made for the Secret that is there; any data in it is gone"))
                    deleted = not item.leaving and self.delete_one(work.database, kind, item)
                    if deleted and kind == "StatefulSet":
                        work.database.note_for = item.user_id, item.client
            except KubectlError as error:
                work.failure = error

    def delete_one(self, database: Database, kind: str, item: Seen, **preconditions: str) -> bool:
        """Delete an object unless it is another one; return whether it was there. Raises KubectlError."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                   "preconditions": {"uid": item.uid, **preconditions}}
        try:
            self.kubectl("delete", "--raw", f"{self.path(kind)}/{database.name}", "-f", "-",
                         stdin=json.dumps(options).encode())
        except KubectlError as error:
            if error.reason not in ("not found", "conflict"):
                raise
            return False
        self.mark_leaving(database, {kind: item.uid})
        return True

    def mark_leaving(self, database: Database, uids: dict[str, str]) -> None:
        """Note what was deleted from here; a watch may show it alive for a moment."""
        with self.lock:
            database.made = set()  # Nobody waits for it to show any more.
            database.objects = {kind: item._replace(leaving=item.leaving or item.uid == uids.get(kind))
                                for kind, item in database.objects.items()}
            database.changed.notify_all()

    def delete_group(self, group: list[Work]) -> None:
        """Delete many users' databases. The table may be late: whose they are is read afresh."""
        known = self.known(work.database for work in group)
        answer = self.kubectl("get", self.resources, "-l", in_users(group), "-o", "json")
        self.take(known, json.loads(answer)["items"])
        # What the watches know and the selector did not find has gone, or its label for the user was edited.
        self.read([work for work in group if known[work.database].keys() > work.database.objects.keys()])
        with self.lock:
            for work in group:
                work.database.note_for = None
                try:
                    work.database.check(*work.owner)
                except ApiError as error:
                    work.failure = work.failure or error
        self.remove([work for work in group if not work.failure and work.database.objects])

    def remove(self, group: list[Work]) -> None:
        """Delete many users' objects that carry our labels with one kubectl. Raises KubectlError."""
        if not group:
            return
        known = self.known(work.database for work in group)
        deleted = set(self.kubectl("delete", self.resources, "-l", in_users(group), "--wait=false",
                                   "--ignore-not-found",
                                   "-o", "name").decode().split())
        for database, objects in known.items():
            found = {kind: item for kind, item in objects.items()
                     if f"{KINDS[kind]}/{database.name}" in deleted}
            self.mark_leaving(database, {kind: item.uid for kind, item in found.items()})
            for kind, item in objects.items() - found.items():
                self.delete_one(database, kind, item)

    # -- heart beats and the sweep

    def sweep(self) -> NoReturn:
        """Every round write down the beats, and then have deleted what has been idle for too long."""
        while True:
            time.sleep(max(self.sweep_interval, 0.1))
            try:
                self.write_beats()
                self.submit_idle()
            except Exception:
                log.error(logfmt("sweep", error=traceback.format_exc()))

    def write_beats(self) -> None:
        """Write the beats of this round into the cluster, where a restart and other servers find them."""
        with self.lock:
            if not self.observed():
                return
            for database in self.databases.values():
                if database.owner() in self.early_beats:
                    database.hear()
            self.early_beats.clear()
            heard = [database for database in self.databases.values()
                     if database.unwritten and "StatefulSet" in database.objects]
        if not self.write(heard):
            self.beats_written_at = time.time()

    def write(self, heard: list[Database]) -> KubectlError | None:
        """Write beats down; return why some could not be, but for those whose StatefulSet has gone."""
        failure: KubectlError | None = None
        beat = f"{LAST_BEAT}={rfc3339(time.time())}"
        for start in range(0, len(heard), BEATS_PER_KUBECTL):
            group = {f"{KINDS['StatefulSet']}/{database.name}": database
                     for database in heard[start:start + BEATS_PER_KUBECTL]}
            manifest = listed([{"apiVersion": "apps/v1", "kind": "StatefulSet",
                                "metadata": {"name": database.name}}
                               for database in group.values()])
            for database in group.values():
                database.unwritten = False  # What is heard from here on is the next round's.
            try:
                self.kubectl("annotate", "--overwrite", "-f", "-", beat, "-o", "name", stdin=manifest)
            except KubectlError as error:
                for name in error.printed.decode().split():
                    group.pop(name, None)
                failure = failure or (None if error.reason == "not found" else error)
                for database in group.values():  # What has gone meanwhile is not in the next round.
                    database.unwritten = True
        return failure

    def overdue(self, database: Database) -> bool:
        """Tell whether another server may be about to sweep a database: by what is written, it is idle."""
        written = database.objects["StatefulSet"].last_beat
        return bool(self.idle_timeout) and is_time(written) and (
            time.time() - calendar.timegm(time.strptime(written, RFC_3339)) > self.idle_timeout)

    def keep_group(self, group: list[Work]) -> None:
        """Write down that the users of overdue databases are back, which until then others may sweep."""
        with self.lock:
            for work in group:
                work.database.hear()
        if failure := self.write([work.database for work in group]):
            raise failure
        self.read(group)  # What was swept before it has gone.

    def idle(self, database: Database) -> dict[str, Seen]:
        """Return what is to be deleted of a database whose user has not been heard of for too long."""
        # Two rounds more: in one the other server writes its beat, and in one this server sees it.
        limit = self.idle_timeout + 2 * self.sweep_interval
        if not self.idle_timeout or database.waiting or time.monotonic() - database.heard_at <= limit:
            return {}
        kept = {kind for kind, item in database.objects.items() if item.keep}
        # A claim's password stays with it, also one that was made from a template without a claim.
        kept |= {"Secret"} if "PersistentVolumeClaim" in kept else set()
        return {kind: item for kind, item in database.objects.items()
                if kind not in kept and not item.leaving}

    def submit_idle(self) -> None:
        """Have databases deleted that are idle, and what is left of half-made ones."""
        with self.lock:
            idle = [database for database in self.databases.values()
                    if not database.work and self.idle(database)]
            # Not always the same first, should they fail.
            for database in random.sample(idle, min(len(idle), SWEPT_PER_ROUND)):
                self.sweeping.submit(database, database.owner() or ("", ""))

    def sweep_group(self, group: list[Work]) -> None:
        """Delete idle databases, each unless its user is heard of before the API server has deleted it."""
        self.read(group)  # A beat counts that the watch does not show yet.
        for work in group:
            with self.lock:
                doomed = {} if work.failure else self.idle(work.database)
            # A beat that is written from here on changes the version, and saves its database.
            stateful_set = doomed.pop("StatefulSet", None)
            with contextlib.suppress(KubectlError):  # It is in the log, and the next round tries again.
                if stateful_set and not self.delete_one(work.database, "StatefulSet", stateful_set,
                                                        resourceVersion=stateful_set.version):
                    continue
                for kind, item in doomed.items():
                    self.delete_one(work.database, kind, item)
                if stateful_set or doomed:
                    user_id, client = work.owner
                    self.kubectl.post(lambda: metrics.add("databases_swept_total"))
                    log.info(logfmt("sweep", user=user_id, client=client,
                                    last_beat=stateful_set.last_beat if stateful_set else "-"))

    def explain_group(self, group: list[Work]) -> None:
        """Find out why these users' databases are not ready, with one read of pods and one of events."""
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/"
        reasons: dict[str, ApiError] = {}  # By the database's name, or by the uid of its StatefulSet.

        def get(resource: str) -> list[dict[str, Any]]:
            answer = self.kubectl("get", "--raw", path + resource, seconds=REASON_SECONDS / 2)
            items: list[dict[str, Any]] = json.loads(answer)["items"]
            return items
        with contextlib.suppress(KubectlError, ValueError, LookupError):
            for pod in get(f"pods?labelSelector={urllib.parse.quote(in_users(group))}"):
                name = "mysql-" + pod["metadata"]["labels"][USER]
                reasons[name] = NotReady(503, pod_reason(pod), Retry_After="10")
            if len(reasons) < len(group):
                chosen = "involvedObject.kind%3DStatefulSet%2Creason%3DFailedCreate"
                for event in get(f"events?fieldSelector={chosen}"):
                    if re.search("try again|being deleted", event.get("message", "")):
                        # An old pod of that name has not gone yet; Kubernetes tries again by itself.
                        continue
                    if "exceeded quota" in event.get("message", ""):
                        reason = NotReady(429, REASONS["quota"][1], Retry_After="60")
                    else:
                        reason = NotReady(503, "the cluster refuses the database's pod: its maintainer finds "
                                               "why with kubectl get events", Retry_After="30")
                    reasons[event["involvedObject"]["uid"]] = reason
        for work in group:
            database, uids = work.database, [item.uid for item in work.database.objects.values()]
            going = "old database has not gone yet" if database.leaving() else "database is not ready yet"
            unknown = NotReady(503, f"the {going}: ask again, the creation goes on", Retry_After="2")
            work.failure = next((reasons[key] for key in (database.name, *uids) if key in reasons), unknown)

    def check_template(self) -> None:
        """Have the API server validate the template once: create_group skips that for speed."""
        with self.lock:
            self.synchronised.wait_for(self.observed)
        manifest = listed(self.template.fill({**EXAMPLE, "now": rfc3339(0)}))
        while "template" in self.unknown:
            try:
                self.kubectl("create", "-f", "-", "--dry-run=server", "--validate=true", stdin=manifest)
                self.report("template", "")
            except KubectlError as error:
                # A right or room may come, and each create_db tells; a wrong template stays wrong.
                passing = error.reason in ("quota", "forbidden", "exists")
                self.report("template",
                            "" if passing else "template" if error.reason == "invalid" else error.reason)
                log.error(logfmt("template", path=self.template.path, error=error))
                time.sleep(WATCH_SECONDS if error.reason == "invalid" else WATCH_PAUSES_SECONDS[1])


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


def listed(items: list[dict[str, Any]]) -> bytes:
    """Return objects as one List for kubectl's stdin."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode()


def in_users(group: list[Work]) -> str:
    """Return the label selector of these users' objects and pods."""
    return f"{SELECTOR},{USER} in ({','.join(work.database.name[len('mysql-'):] for work in group)})"


def decoded(data: str) -> str:
    """Decode a Secret's password; empty if it is not of PASSWORD's form."""
    with contextlib.suppress(ValueError):
        password = base64.b64decode(data).decode("ascii")
        return password if PASSWORD.fullmatch(password) else ""
    return ""


def replaced(database: Database) -> ApiError:
    """Return the 409 for a Secret that is not the one that the database started with."""
    return ApiError(409, f"somebody replaced the Secret {database.name}, and the database may have another "
                         "password: put the old one back, or delete_db and create_db make the database anew, "
                         "without its data")


def pod_reason(pod: dict[str, Any]) -> str:
    """Say why a pod is not ready, in Kubernetes' own words for the reason but none of its messages."""
    if "deletionTimestamp" in pod["metadata"]:
        return ("the database's old pod does not go (Terminating): ask again; if it stays, its maintainer "
                "finds why with kubectl describe")
    status = pod.get("status", {})
    reasons = [condition.get("reason", "")
               for condition in status.get("conditions", []) if condition["type"] == "PodScheduled"]
    reasons += [container.get("state", {}).get("waiting", {}).get("reason", "")
                for container in status.get("containerStatuses", [])]
    reason = next((reason for reason in reasons
                   if reason not in ("", "ContainerCreating", "PodInitializing")), "")
    if reason == "Unschedulable":
        return ("the database is not ready, since no node of the cluster has room for it (Unschedulable): "
                "ask again later")
    if reason:
        return (f"the database is not ready, since its container does not start ({reason}): its maintainer "
                "finds why with kubectl describe")
    return "the database is starting: ask again, its creation goes on"


# ---- Templates ----------------------------------------------------------------------------------------

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
PASSWORD = re.compile(r"[A-Za-z0-9_-]{24,}")  # What SQLFlow can paste anywhere without quoting it.
# Values no user can have, with which a template is tried.
EXAMPLE = {"name": "mysql-example--000000000000", "slug": "example--000000000000",
           "user_id": "an example", "client": "a client", "set": "0" * 16, "password": "0" * 32,
           "now": "a time"}


def lacks(expected: dict[str, Any], found: Any, path: str = "") -> Iterator[str]:
    """Yield what of a nested dictionary is not found in another, as path: value."""
    for key, value in expected.items():
        inner = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            yield from lacks(value, inner, f"{path}{key}: ")
        elif inner != value:
            yield f"{path}{key}: {value}"


class Template:
    """The Kubernetes objects of one database, with ${placeholders} in their values."""

    def __init__(self, path: str) -> None:
        """Parse and check a template. Raises OSError, or ValueError that says what is wrong."""
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                documents = yaml.safe_load_all(file)
                self.objects: list[dict[str, Any]] = [item for item in documents if item is not None]
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from error
        kinds = [item.get("kind") if isinstance(item, dict) else None for item in self.objects]
        self.kinds = [kind for kind in KINDS if kind in kinds]
        if sorted(map(str, kinds)) not in (sorted(KINDS), sorted(KINDS.keys() - {"PersistentVolumeClaim"})):
            raise ValueError("must hold one Secret, one Service, one StatefulSet, at most one "
                             "PersistentVolumeClaim and nothing else, but holds "
                             f"{', '.join(map(str, kinds)) or 'nothing'}")
        self.objects.sort(key=lambda item: self.kinds.index(item["kind"]))
        labels = {**OURS, USER: "${slug}"}
        metadata = {"name": "${name}", "labels": labels,
                    "annotations": {USER_ID: "${user_id}", CLIENT: "${client}", SET: "${set}"}}
        kept = {"metadata": {"annotations": {KEEP: "true"}}} if "PersistentVolumeClaim" in kinds else {}
        more: dict[str, Any] = {
            "Secret": {"stringData": {"password": "${password}"}, **kept}, "PersistentVolumeClaim": kept,
            "Service": {"spec": {"selector": labels}},
            "StatefulSet": {"metadata": {"annotations": {LAST_BEAT: "${now}"}},
                            "spec": {"selector": {"matchLabels": labels},
                                     "template": {"metadata": {"labels": labels}}}}}
        for item in self.objects:
            for lack in (*lacks({"metadata": metadata}, item), *lacks(more[item["kind"]], item)):
                raise ValueError(f"lacks in its {item['kind']}: {lack}")
        try:
            json.dumps(self.fill(EXAMPLE), allow_nan=False)
        except KeyError as error:
            raise ValueError(f"has an unknown placeholder ${{{error.args[0]}}}: known are "
                             f"{', '.join(EXAMPLE)}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"has a value that JSON does not know, such as a date without quotes: {error}") from error

    def fill(self, values: dict[str, str]) -> list[dict[str, Any]]:
        """Return the objects with their placeholders filled in. Raises KeyError for an unknown one."""
        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: filled(inner) for key, inner in value.items()}
            if isinstance(value, list):
                return [filled(inner) for inner in value]
            return PLACEHOLDER.sub(lambda match: values[match[1]], value) if isinstance(value, str) else value
        objects: list[dict[str, Any]] = filled(self.objects)
        return objects


# ---- kubectl ------------------------------------------------------------------------------------------

# Reasons for which kubectl fails: how its words show it (the first that fits), and what a client is
# told. kubectl's own words go to the log only.
REASONS: dict[str, tuple[str, str, int]] = {
    "quota": (r"exceeded quota",
              "the cluster's quota is used up: ask again when others have left, or ask the maintainer for "
              "more", 429),
    "exists": (r"\(AlreadyExists\)", "the object exists already", 409),
    "ending": (r"because it is being terminated",
               "the server's namespace is being deleted from the cluster: its maintainer must create it anew",
               502),
    "cut": (r"unexpected EOF|GOAWAY|connection lost",
            "the connection to the cluster was cut: ask again", 503),
    "unreachable": (r"connection refused|was refused|[Uu]nable to connect|i/o timeout|Client\.Timeout|"
                    r"TLS handshake timeout|deadline exceeded|no such host|no route to host|connection reset|"
                    r": EOF|stream error|"
                    r"x509:|failed to download openapi|unable to handle the request|"
                    r"\((ServiceUnavailable|InternalError|TooManyRequests|ServerTimeout|Timeout)\)",
                    "the cluster does not answer: ask again", 503),
    "invalid": (r"\((Invalid|BadRequest)\)|\" is invalid:|error validating|strict decoding|error parsing",
                "the cluster refuses the database's objects as invalid: its maintainer must correct the "
                "template", 502),
    "forbidden": (r"\((Forbidden|Unauthorized)\)|must be logged in",
                  "this server lacks a right in the cluster: its maintainer must grant it", 502),
    "not found": (r"\(NotFound\)",
                  "the server's namespace is not in the cluster: its maintainer must create it", 502),
    "conflict": (r"\(Conflict\)", "the object was changed meanwhile: ask again", 503),
    "expired": (r"\((Expired|Gone)\)", "the cluster's history is being read anew: ask again", 503),
    "starting": (r"(?!)", "this server does not know the cluster yet: ask again", 503),
    "template": (r"(?!)",
                 "the cluster refuses this server's template: its maintainer must correct it, and start the "
                 "server again", 502),
    "timeout": (r"(?!)", "the cluster does not answer in time: ask again", 503),
    "missing": (r"(?!)", "this server cannot run kubectl: its maintainer must see to it", 503),
    "failed": (r"", "the cluster failed to do this: its maintainer's log says why", 502),
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
    return next(reason for reason, (pattern, _, _) in REASONS.items() if re.search(pattern, words))


class Kubectl:
    """Runs kubectl on one namespace, for any thread that may wait; only the loop's may not."""

    def __init__(self, path: str, context: str, namespace: str) -> None:
        self.namespace = namespace
        self.command = [path, *([f"--context={context}"] if context else [])]
        # Linux can end a child with its parent, however that ends. setpriv comes with Debian; without
        # it, a watch ends at its next line, and any kubectl at its own time limit.
        setpriv = [shutil.which("setpriv") or "", "--pdeathsig", "KILL"]
        if setpriv[0] and subprocess.run([*setpriv, "true"], capture_output=True).returncode == 0:
            self.command = [*setpriv, *self.command]
        self.lock = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}  # By process id.
        self.stopped = False
        self.post: Callable[[Step], object] = lambda step: step()  # Server.post, once there is a loop.

    def __call__(self, *arguments: str, stdin: bytes = b"", seconds: float = KUBECTL_SECONDS,
                 hide: Sequence[str] = ()) -> bytes:
        """Run kubectl to its end and return what it prints; see `stream`."""
        printed: list[bytes] = []
        try:
            printed.extend(self.stream(arguments, stdin, seconds, hide))
        except KubectlError as error:
            raise KubectlError(error.reason, error.words, b"".join(printed)) from error
        return b"".join(printed)

    def lines(self, *arguments: str, seconds: float) -> Iterator[bytes]:
        """Run kubectl and yield the lines that it prints, as they come; see `stream`."""
        rest = b""
        for data in self.stream(arguments, b"", seconds, ()):
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def stream(self, arguments: Sequence[str], stdin: bytes, seconds: float,
               hide: Sequence[str]) -> Iterator[bytes]:
        """Run kubectl and yield what it prints, as it comes. Every kubectl of this server runs here.

        `seconds` is its time limit and `hide` the passwords that its words must not show. Raises
        KubectlError when it fails or the time is up.
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
                    with self.lock:
                        kill(process)
                    process.wait()
                    with self.lock:
                        del self.running[process.pid]
        except (OSError, RuntimeError) as error:  # No process, file or memory to be had.
            outcome, said = "missing", str(error)
        said, taken = strike_out(said, hide), time.monotonic() - started
        named = (argument for argument in arguments[1:] if argument[0] != "-" and argument != "name")
        target, _, query = next(named, "-").partition("?")
        verb = "watch" if "&watch=1" in query else arguments[0]
        self.post(lambda: metrics.add("kubectl_seconds", taken, verb=verb, outcome=outcome))
        expected = self.stopped or outcome in ("ok", "exists", "not found", "conflict")
        log.log(logging.INFO if expected else logging.WARNING, logfmt(
            "kubectl", verb=verb, target=target, outcome=outcome, ms=taken * 1000,
            **({"said": said} if said else {})))
        if outcome != "ok":
            raise KubectlError(outcome, said)

    def start(self, arguments: Sequence[str], stdin: IO[bytes], words: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start kubectl, its own words going to a file. Raises OSError if it cannot be started."""
        command = [*self.command, *([f"--namespace={self.namespace}"] if self.namespace else []), *arguments]
        with self.lock:
            if self.stopped:
                raise OSError("this server is stopping")
            # A group of its own, so that it ends together with the credential helpers it may start.
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=words,
                                       start_new_session=True)
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
    """Return the words without any piece of four or more characters of a password or of its base64 forms.

    The API server quotes objects in some errors, cut anywhere.
    """
    forms = [form for password in passwords for form in (
        password, *(base64.b64encode(b"\0" * shift + password.encode()).decode()[2 * shift:]
                    for shift in range(3)))]
    pieces = {form[start:start + 4] for form in forms for start in range(len(form) - 3)}
    return re.sub(r"[A-Za-z0-9_+/=-]{4,}", lambda match: "***" if any(
        match[0][start:start + 4] in pieces for start in range(len(match[0]) - 3)) else match[0], words)


# ---- TLS files -----------------------------------------------------------------------------------------

class Tls(NamedTuple):
    """What the TLS files hold, at one moment."""

    context: ssl.SSLContext
    trusted: bytes  # The CA and the revocation list: who is let in.
    revoked: frozenset[int]  # Serial numbers.
    expiries: dict[str, float]  # By file; seconds since 1970.
    # CAs whose clients nobody lets in, since another CA has a list and they have none.
    unlisted: tuple[str, ...]


def load_tls(files: dict[str, str]) -> Tls:
    """Read the TLS files by their options' names: ca_crt, server_crt, server_key, and crl, if not empty.

    The context requires a certificate of our CA from every client, in every handshake. Raises Refusal.
    """
    content = {}
    for name, path in files.items():
        with blaming(f"--{name} {path} cannot be read",
                     "make it with gen_cert.sh server, or name another file"):
            content[name] = read_file(path) if path or name != "crl" else b""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would not look at the certificate again. TLS 1.2's can all the same: OpenSSL keeps
    # them with the context, Python cannot tell it not to, and Server.admit looks.
    context.options |= (ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
                        | ssl.OP_NO_RENEGOTIATION)
    context.num_tickets = 0
    with blaming(f"--ca_crt {files['ca_crt']} holds no certificate that can be used",
                 "name the CA's certificate in PEM"):
        # OpenSSL checks the purpose too: a certificate for servers only is no client's.
        context.load_verify_locations(files["ca_crt"])
        authorities = list(map(read_certificate, context.get_ca_certs(binary_form=True)))
        if not authorities:
            raise ValueError("it is no CA's: it may not sign others")
        expiries = {"ca_crt": min(expiry for _, expiry in authorities)}
    with blaming(f"--server_key {files['server_key']} and --server_crt {files['server_crt']} cannot be used "
                 "together",
                 "expected a private key in PEM without a password, and its certificate"):
        # Without a password function OpenSSL would ask for one on the terminal.
        context.load_cert_chain(files["server_crt"], files["server_key"], password=lambda: "")
        expiries["server_crt"] = read_certificate(pem(content["server_crt"], "CERTIFICATE")[0])[1]
    revoked: set[int] = set()
    listed: set[bytes] = set()
    with blaming(f"--crl {files['crl']} cannot be used",
                 "name the revocation list of the CA in PEM, as gen_cert.sh makes it"):
        for crl in pem(content["crl"], "X509 CRL") if files["crl"] else ():
            issuer, made, expiry, serials = read_crl(crl)
            if issuer not in [subject for subject, _ in authorities]:
                raise ValueError(f"it is not of the CA in {files['ca_crt']}")
            if not made <= time.time() < expiry:
                raise ValueError(f"it {'has ended' if expiry < time.time() else 'is of the future'}, and "
                                 "nobody would get in")
            expiries["crl"] = min(expiry, expiries.get("crl", expiry))
            revoked |= serials
            listed.add(issuer)
        if files["crl"]:
            context.load_verify_locations(files["crl"])
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    unlisted = tuple(readable_name(subject) for subject, _ in authorities
                     if files["crl"] and subject not in listed)
    return Tls(context, content["ca_crt"] + content["crl"], frozenset(revoked), expiries, unlisted)


def watch_tls_files(server: Server, tls: Tls) -> NoReturn:
    """Read the TLS files when they change or SIGHUP comes, as a thread, and warn before they end.

    Files that cannot be used leave everything as it was.
    """
    files, warned = server.tls_files, dict[str, float]()
    taken = before = stamps(files)
    while True:
        warn_of_ends(files, tls, warned)
        ordered = True
        try:
            server.reloads.get(timeout=RELOAD_SECONDS)
        except queue.Empty:
            ordered = False
        now = stamps(files)
        if ordered or now != taken and now == before:
            taken = now
            try:
                tls = load_tls(files)
                server.post(functools.partial(server.take_files, tls))
            except Refusal as refusal:
                log.warning(logfmt("tls", outcome="kept as it was", reason=refusal))
            except Exception:
                log.error(logfmt("tls", error=traceback.format_exc()))
        before = now


def stamps(files: dict[str, str]) -> list[tuple[int, ...]]:
    """Return what shows whether a TLS file has changed; nothing of a file that is not there."""
    found: list[tuple[int, ...]] = []
    for path in filter(None, files.values()):
        with contextlib.suppress(OSError):
            stat = os.stat(path)
            found.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
    return found


def warn_of_ends(files: dict[str, str], tls: Tls, warned: dict[str, float]) -> None:
    """Warn once a day of a file that ends soon, and once a minute of one that has ended."""
    for name, expiry in tls.expiries.items():
        left = expiry - time.time()
        key = name if left > 0 else f"{name} has ended"
        if left < EXPIRY_WARNING_SECONDS and time.monotonic() > warned.get(key, 0):
            warned[key] = time.monotonic() + (86400 if left > 0 else REFUSALS_SECONDS)
            log.log(logging.ERROR if left <= 0 else logging.WARNING, logfmt(
                "tls", file=files[name], ends=rfc3339(expiry),
                remedy="renew it: nobody gets in after its end"))


def read_file(path: str) -> bytes:
    """Return a file's content. Raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def pem(content: bytes, label: str) -> list[bytes]:
    """Return the DER of a PEM file's blocks of this label (RFC 7468). Raises ValueError if there is none."""
    block = rb"-----BEGIN %s-----(.+?)-----END" % label.encode()
    blocks = [base64.b64decode(text) for text in re.findall(block, content, re.S)]
    if not blocks:
        raise ValueError(f"it holds no {label} in PEM")
    return blocks


def read_certificate(certificate: bytes) -> tuple[bytes, float]:
    """Return a certificate's subject and its end (RFC 5280, section 4.1): ssl tells them of peers only."""
    fields = der(der(der(certificate)[0][1])[0][1])
    fields = fields[1:] if fields[0][0] == 0xa0 else fields  # A version comes first, but for version 1.
    return fields[4][1], der_time(*der(fields[3][1])[1])


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
    values = [der(der(attribute)[0][1])[1][1] for _, attribute in der(name)]
    return "/".join(value.decode("utf-8", "replace") for value in values)


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
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return calendar.timegm(time.strptime(content.decode("ascii"), form))


# ---- The log and the metrics ---------------------------------------------------------------------------

log = logging.getLogger("playground")
log.addHandler(logging.NullHandler())  # Until `run` has it written to stderr.
PLAIN = re.compile(r"[A-Za-z0-9_./:@+=-]+")


def logfmt(event: str, **fields: object) -> str:
    """Format an event and key=value pairs for the log; what is not plain as JSON, lest it forge a line."""
    def quote(value: object) -> str:
        text = f"{value:.1f}" if isinstance(value, float) else str(value)
        plain = PLAIN.fullmatch(text) and "=" not in text
        return text if plain else json.dumps(text).replace("\x7f", "\\u007f")
    return " ".join([event, *(f"{key}={quote(value)}" for key, value in fields.items())])


class LogQueue(logging.Handler):
    """Has a thread write the log: a file that nobody reads fills the queue, and keeps nobody waiting."""

    dropped = 0  # By all of this process, of which there is one.

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
            self.lines.append(f"time={rfc3339(int(record.created))} level={record.levelname} "
                              f"event={record.getMessage()}\n")
            if not self.wanted.is_set():
                self.wanted.set()

    def write(self) -> NoReturn:
        """Write what is queued, as a thread, and afterwards how much was not."""
        told = 0
        while True:
            self.wanted.wait()
            time.sleep(LOG_SECONDS)
            self.wanted.clear()
            while self.lines:
                lines = [self.lines.popleft() for _ in range(min(len(self.lines), 100))]
                if not self.lines and LogQueue.dropped > told:
                    told, now = LogQueue.dropped, rfc3339(int(time.time()))
                    lines.append(f"time={now} level=WARNING event=log dropped={told} "
                                 'reason="nobody read the log in time"\n')
                data = "".join(lines).encode("utf-8", "backslashreplace")
                with contextlib.suppress(OSError):  # Nobody reads it any more.
                    while data:
                        data = data[os.write(self.file, data):]
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
    return time.strftime(RFC_3339, time.gmtime(seconds))


class Family(NamedTuple):
    """A family of metrics: its type, what it tells, and the upper bounds of a histogram's buckets."""

    kind: str
    help: str
    buckets: tuple[float, ...] = ()


FAMILIES = {
    "requests_total": Family("counter", "Requests answered."),
    "request_seconds": Family("histogram", "Time from a request's first byte to its answer.",
                              (0.001, 0.005, 0.02, 0.1, 0.5, 2, 5, 10, 18)),
    "handshakes_refused_total": Family("counter", "TLS handshakes refused."),
    "kubectl_seconds": Family("histogram", "Time that a kubectl ran.",
                              (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 75)),
    "creations_grouped": Family("histogram", "Users whose databases one kubectl created.",
                                (1, 2, 5, 10, 20, 50)),
    "databases_swept_total": Family("counter", "Databases deleted because nobody was heard of."),
    "connections": Family("gauge", "Open connections."),
    "databases": Family("gauge", "Databases in the namespace."),
    "cluster_synchronised": Family(
        "gauge", "1 while every watch goes well and the template is known to be good, otherwise 0."),
    "last_beat_write_timestamp_seconds": Family(
        "gauge", "When heart beats were last written into the cluster, or none was waiting."),
    "certificate_expiry_timestamp_seconds": Family(
        "gauge", "When a certificate or the revocation list ends."),
    "log_lines_dropped_total": Family("counter", "Lines of the log that nobody read in time."),
    "build_info": Family("gauge", "1; the label tells the version."),
}


Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]  # By family and labels.


class Metrics:
    """What has happened since the start, for Prometheus (text format, version 0.0.4); the loop's alone."""

    def __init__(self) -> None:
        # By family and labels: a counter's value; or a histogram's count for each bucket, above, and the sum.
        self.values: dict[str, dict[Labels, list[float]]] = collections.defaultdict(dict)

    def add(self, family: str, value: float = 1, **labels: str) -> None:
        """Add to a counter, or put a value into a histogram."""
        buckets = FAMILIES[family].buckets
        cells = self.values[family].setdefault(tuple(labels.items()),
                                               [0.0] * (len(buckets) + 2 if buckets else 1))
        cells[-1] += value
        if buckets:
            cells[bisect.bisect_left(buckets, value)] += 1

    def text(self, gauges: Samples) -> str:
        """Return all of them, and what the gauges say now, by family and labels."""
        lines = []

        def sample(name: str, labels: Labels, value: float) -> None:
            quoted = ",".join(f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in labels)
            lines.append(f"playground_{name}{f'{{{quoted}}}' if quoted else ''} {value:.15g}")
        for name, family in FAMILIES.items():
            lines += [f"# HELP playground_{name} {family.help}", f"# TYPE playground_{name} {family.kind}"]
            for labels, value in gauges.get(name, {}).items():
                sample(name, labels, value)
            for labels, cells in self.values[name].items():
                if not family.buckets:
                    sample(name, labels, cells[0])
                    continue
                counts = list(itertools.accumulate(cells[:-1]))
                for bound, count in zip((*map(str, family.buckets), "+Inf"), counts):
                    sample(f"{name}_bucket", (*labels, ("le", bound)), count)
                sample(f"{name}_sum", labels, cells[-1])
                sample(f"{name}_count", labels, counts[-1])
        return "\n".join(lines) + "\n"


metrics = Metrics()
# Prometheus sees a counter grow only from a value that it has seen: these are 0 before they happen.
metrics.add("databases_swept_total", 0)
for api, result in itertools.product(API, (200, 429, 500, 502, 503)):
    metrics.add("requests_total", 0, api=api, status=str(result))


# ---- The command line ---------------------------------------------------------------------------------

class Refusal(Exception):
    """Why the server does not start, or take a file up: what is wrong, with its path, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")


@contextlib.contextmanager
def blaming(what: str, remedy: str) -> Iterator[None]:
    """Turn what goes wrong with a file into a Refusal that names it."""
    try:
        yield
    except (OSError, ValueError, LookupError) as error:
        raise Refusal(f"{what} ({getattr(error, 'strerror', None) or error})", remedy) from error


class Parser(argparse.ArgumentParser):
    """Refuses what it does not understand in one line, as all else that stands in the way of a start."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise Refusal(message, "see --help")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; dashes in the options' names work for underscores. Raises Refusal."""
    parser = Parser(prog="sqlflow_playground",
                    description="Give every user of a SQLFlow playground a database in its "
                    "Kubernetes cluster, over mutual TLS.")

    def option(name: str, default: Any, text: str, shown: str = "", **more: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, default=default,
                            help=f"{text} (default: {shown or default})", **more)

    option("host", "0.0.0.0", "address to listen on; :: for IPv6")
    option("port", 50052, "TCP port to listen on; 0 for any free one", type=int)
    option("ca_crt", "key_store/ca/ca.crt", "PEM file: the CA whose clients are let in")
    option("server_key", "key_store/server/server.key", "PEM file: this server's private key, not encrypted")
    option("server_crt", "key_store/server/server.crt", "PEM file: this server's certificate")
    option("crl", "", "PEM file: the CA's list of revoked certificates",
           shown="none: no certificate is revoked")
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
           "connections of one client at once; 0 for no limit",
           type=limit)
    option("ready_file", "", "file that is made once the cluster is known, for a readiness probe",
           shown="none")
    parser.add_argument("--check", action="store_true",
                        help="try all that the server needs, print a line for each, and exit with 0 or 1")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(arguments)


def seconds(text: str) -> float:
    """Read a number of seconds from the command line. Raises ValueError."""
    value = float(text)
    if not 0 <= value <= 1e8:
        raise ValueError
    return value


def limit(text: str) -> int:
    """Read a number that bounds something from the command line; 0 is no bound. Raises ValueError."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def find_template(options: argparse.Namespace) -> Template:
    """Return the template that new databases are made from. Raises Refusal."""
    path = os.path.join(options.templates, options.db_template)
    with blaming(f"the template {path} cannot be used",
                 "see --templates and --db_template, and compare it with k8s_templates/mysql.yaml"):
        return Template(path)


def find_tls_files(options: argparse.Namespace) -> dict[str, str]:
    """Return the paths of the TLS files by their options' names."""
    return {name: getattr(options, name) for name in ("ca_crt", "server_key", "server_crt", "crl")}


def find_kubectl(options: argparse.Namespace) -> Kubectl:
    """Return kubectl for the namespace and the context. Raises Refusal."""
    program = shutil.which(options.kubectl)
    if not program:
        raise Refusal(f"--kubectl {options.kubectl} is no program",
                      "install kubectl (https://kubernetes.io/docs/tasks/tools/), or name it")
    options.kubectl = program
    return Kubectl(program, options.context, find_namespace(options))


def find_namespace(options: argparse.Namespace) -> str:
    """Return the namespace that kubectl itself would use. Raises Refusal."""
    inside = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    namespace: str = options.namespace
    try:
        if not namespace or options.context:  # Which must be there.
            own = Kubectl(options.kubectl, options.context, "")(
                "config", "view", "--minify", "-o", "jsonpath={.contexts[0].context.namespace}",
                seconds=5).decode()
            namespace = namespace or own
    except KubectlError as error:
        # There is none in a pod, which is no error.
        if options.context or "current-context must exist" not in error.words:
            words = " ".join(error.words.split()) or error.reason
            raise Refusal(f"kubectl config view failed ({words})",
                          "give --namespace, and a --context that kubectl knows") from error
    if not namespace and os.path.exists(inside):
        with open(inside, encoding="utf-8") as file:
            namespace = file.read().strip()
    namespace = namespace or "default"
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", namespace):
        raise Refusal(f"--namespace {namespace!r} is no namespace",
                      "expected up to 63 lower-case letters, digits and dashes")
    return namespace


def check(options: argparse.Namespace) -> int:
    """Try all that the server needs, and print a line each with what to do; return 1 if one is wrong."""
    wrong = 0

    def say(what: str, problem: str = "") -> None:
        nonlocal wrong
        wrong += bool(problem)
        print(f"WRONG  {what}: {problem}" if problem else f"ok     {what}", flush=True)

    def prepare(function: Callable[[argparse.Namespace], Any]) -> Any:
        try:
            return function(options)
        except Refusal as refusal:
            say("start", str(refusal))
            return None

    def ask(*arguments: str, stdin: bytes = b"") -> str:
        return kubectl(*arguments, stdin=stdin).decode().strip()

    def attempt(what: str, *arguments: str, stdin: bytes = b"", remedy: str = "") -> str:
        try:
            answer = ask(*arguments, stdin=stdin)
        except KubectlError as error:
            words = next(iter(error.words.splitlines()), told(error).message)
            say(what, f"{words}; {remedy or told(error).message.rpartition(': ')[2]}")
            return ""
        say(what)
        return answer

    tls_files = find_tls_files(options)
    if tls := prepare(lambda _: load_tls(tls_files)):
        for name, expiry in tls.expiries.items():
            days = int((expiry - time.time()) // 86400)
            say(f"{tls_files[name]} ends in {days} days",
                "renew it with gen_cert.sh" if days < EXPIRY_WARNING_SECONDS / 86400 else "")
        try:
            alternatives = presented(tls, tls_files["ca_crt"]).get("subjectAltName", ())
            names = ", ".join(name for _, name in alternatives)
            say(f"{tls_files['server_crt']} is a server's, of the CA in {tls_files['ca_crt']}, for {names}")
        except ssl.SSLError as error:
            say(tls_files["server_crt"],
                f"clients would refuse it ({why_refused(error)}); make it with gen_cert.sh server")
        for name in tls.unlisted:
            say(f"{tls_files['crl']} lists the CA {name!r}", UNLISTED)
    template: Template | None = prepare(find_template)
    kubectl: Kubectl = prepare(find_kubectl)
    if not kubectl:
        return 1
    if version := attempt("kubectl runs", "version", "--client", "-o", "json"):
        client = json.loads(version)["clientVersion"]
        old = (int(client["major"]), int(re.sub(r"\D.*", "", client["minor"]))) < OLDEST_KUBECTL
        say(f"kubectl is {client['gitVersion']}", "install 1.20 or later" if old else "")
    version = attempt("the cluster answers", "get", "--raw", "/version",
                      remedy="see that kubectl get pods works, or name the --context")
    if not version:
        return 1
    say(f"the cluster is Kubernetes {json.loads(version)['gitVersion']}")
    claims = template and "PersistentVolumeClaim" in template.kinds
    for kind, verbs in {**RIGHTS, **(CLAIM_RIGHTS if claims else {})}.items():
        for verb in verbs:
            problem = ""
            try:
                ask("auth", "can-i", verb, kind)
            except KubectlError as error:
                # To say no is a failure to kubectl.
                problem = told(error).message
                if error.reason == "failed":
                    problem = "grant it, as k8s_templates/playground.yaml does"
            say(f"right to {verb} {kind}", problem)
    made = template and attempt(
        f"namespace {kubectl.namespace} takes the objects of {template.path}",
        "create", "-f", "-", "--dry-run=server", "--validate=true", "-o",
        "jsonpath={.metadata.creationTimestamp} ",
        stdin=listed(template.fill({**EXAMPLE, "now": rfc3339(0)})))
    if made:
        off = abs(time.time() - calendar.timegm(time.strptime(made.split()[0], RFC_3339)))
        say("clock", "" if off < 60 else f"it is {off:.0f} s off the cluster's; let NTP set it")
    else:
        print("-      clock: not looked at, since the cluster took nothing that would tell its own")
    for what, kind in (("quota", "resourcequotas"), ("sample data", f"configmaps/{SAMPLE_DATA}")):
        try:
            found = json.loads(ask("get", kind, "--ignore-not-found", "-o", "json") or "{}")
        except KubectlError as error:
            print(f"-      {what}: not looked at, which needs the right to get and list "
                  f"{kind.partition('/')[0]} ({error.reason})")
            continue
        if what == "sample data" and not found:
            print("-      sample data: none, so databases start empty; for the tutorials' tables apply the "
                  "ConfigMap of playground.yaml")
        elif what == "sample data":
            say("sample data is there")
        for item in found.get("items", ()):
            limits, used = item["status"].get("hard", {}), item["status"].get("used", {})
            full = [name for name, hard in limits.items() if quantity(used.get(name, "0")) >= quantity(hard)]
            say(f"quota {item['metadata']['name']}: "
                + ", ".join(f"{name} {used.get(name, 0)} of {hard}" for name, hard in limits.items()),
                f"nothing is left of {', '.join(full)}; raise it, or delete databases" if full else "")
        if what == "quota" and not found.get("items"):
            say("quota: none")
    return 1 if wrong else 0


UNLISTED = "add its revocation list to --crl: until then none of its clients is let in"


def quantity(text: str) -> float:
    """Return the number that a quantity stands for (Kubernetes API, "Quantity")."""
    match = re.fullmatch(r"([-+.0-9]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]*)", text)
    number, suffix = match.groups()  # type: ignore[union-attr]
    scale = 1024 if suffix.endswith("i") else 1000
    power = "num kMGTPE".find(suffix[0].replace("K", "k")) - 3 if suffix else 0
    return float(number) * float(scale) ** power


def presented(tls: Tls, ca_crt: str) -> dict[str, Any]:
    """Return the certificate that a client sees which trusts the CA. Raises SSLError if it refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=ca_crt)
    context.check_hostname = False
    server = tls.context.wrap_bio(to_server, to_client, server_side=True)
    client = context.wrap_bio(to_client, to_server)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert() or {}


def main(arguments: list[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; return its exit status, 2 if it cannot start."""
    try:
        return run(parse_arguments(arguments))
    except Refusal as refusal:
        print(f"sqlflow_playground: {refusal}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Start, serve and end as the options say; return the exit status of a check. Raises Refusal."""
    if options.check:
        return check(options)
    template, tls_files = find_template(options), find_tls_files(options)
    load_tls(tls_files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with blaming(f"only {hard} open files are allowed", f"start it after ulimit -n {MAX_OPEN_FILES}"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MAX_OPEN_FILES) if soft >= 0 else soft, hard))
    kubectl = find_kubectl(options)
    if options.ready_file:
        with blaming(f"--ready_file {options.ready_file} cannot be made",
                     "name a file in a folder that this server may write"):
            open(options.ready_file, "w", encoding="utf-8").close()
            os.remove(options.ready_file)  # A server before this one may have left it.
    lines = LogQueue(sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    # No line shows these, which take as long to find out as to write (the logging HOWTO's Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    cluster = Cluster(kubectl, template, options.max_databases, options.max_databases_per_client,
                      options.idle_timeout, options.sweep_interval)
    try:
        server = Server((options.host, options.port), tls_files, cluster, options.max_connections_per_client,
                        options.ready_file)
    except (OSError, OverflowError) as error:
        raise Refusal(f"cannot listen on --host {options.host} --port {options.port} ({error})",
                      "name an address of this machine and a free port") from error
    kubectl.post = server.post
    signal.set_wakeup_fd(server.bell.fileno(), warn_on_full_buffer=False)  # Or the loop would not hear of it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end(server))
    signal.signal(signal.SIGHUP, lambda *_: server.reloads.put(None))
    cluster.start()
    threading.Thread(target=watch_tls_files, args=(server, server.tls), name="tls files", daemon=True).start()
    server.listen()
    log.info(logfmt("start", version=__version__, host=server.server_address[0], port=server.server_port,
                    client_ca=options.ca_crt, crl=options.crl or "none",
                    certificate_ends=rfc3339(server.tls.expiries["server_crt"]),
                    context=options.context or "current", namespace=kubectl.namespace, template=template.path,
                    idle_timeout=f"{options.idle_timeout:.0f}s" if options.idle_timeout else "never"))
    for name in server.tls.unlisted:
        log.warning(logfmt("tls", file=options.crl, lacks=name, remedy=UNLISTED))
    server.serve_forever()
    with contextlib.suppress(RuntimeError):  # Without a thread to be had these beats are lost.
        beats = threading.Thread(target=cluster.write_beats, daemon=True)
        beats.start()
        beats.join(max(server.stop_at - time.monotonic(), 0) + LAST_BEATS_SECONDS)
    server.refusals.flush(everything=True)
    kubectl.stop()
    lines.flush_for(1)
    os._exit(0)  # Taking the interpreter down beside threads that run on has ended in a crash.


def end(server: Server) -> None:
    """Handle a signal to end: the kernel ends what has not ended in time, the next signal all at once."""
    signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS + LAST_BEATS_SECONDS + 2)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    server.post(lambda: log.info(logfmt("stop", seconds=STOP_SECONDS)))
    server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
