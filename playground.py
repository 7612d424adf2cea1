#!/usr/bin/env python3
"""SQLFlow Playground Server: a database in Kubernetes for every user who asks for one.

    client --mTLS--> this server --kubectl--> Kubernetes API --> MariaDB pod, Service, Secret

A client is known by its certificate. It asks over HTTPS for a database for one of its users; the
server has kubectl create one and answers with the connection string that SQLFlow takes.

The file reads as a request travels: limits; TLS and connections; HTTP; the API; what the cluster
is known to hold; templates; kubectl; the command line. Who waits for whom:

    thread                waits for                     bounded by
    leader                a new connection, or the      HANDSHAKE_SECONDS or IDLE_SECONDS for each connection
                          next bytes of any other
    handshake threads     nothing: they compute
    one a slow request    its client                    HEAD_, BODY_, ANSWER_SECONDS
                          its user's database           CREATE_SECONDS, whatever the cluster does
    watch, one a kind     kubectl's next line           WATCH_SECONDS, then the process group is killed
    group workers         one kubectl for all who wait  KUBECTL_SECONDS, then the process group is killed
    keep house, sweep     the clock                     RELOAD_SECONDS, --sweep_interval

The leader answers by itself what can be answered at once; before it has to wait for anything else it has
another thread lead (Leader/Followers: Schmidt and others, Pattern-Oriented Software Architecture 2). So a
request is a slow one from the moment when it calls `step_aside`, and one thread answers all the others.

Kubernetes is the only store. What is in memory comes from three watches and may be lost at any time.
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
import http.client
import http.server
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
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Callable, NamedTuple, NoReturn

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

# The whole TLS handshake, the whole request head from its first byte, the whole body, the whole
# answer: the connection ends beyond each (after a 408 where one can be heard), that of a handshake up to a
# second later. A slow mobile link needs 2 s; whoever sends a byte a second gets no more than these.
HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
ANSWER_SECONDS = 10.0
# A kept connection without a request; it is closed beyond it. As long as nginx keeps them.
IDLE_SECONDS = 75.0
# What a refused client may still be sending is read and dropped up to these, so that it sees the
# answer instead of a reset connection; then the connection ends all the same.
DRAIN_SECONDS = 1.0
DRAIN_BYTES = 1024 * 1024

# Connections without a certificate so far; beyond it the oldest one of the address that holds most of
# them makes room. With strangers opening 1,000 connections a second from one address, one that is slow
# by itself has 256 / 1,000 = 0.25 s for its handshake, which takes 10 ms; one from another address is
# not touched at all while any address holds more. It does not bound the rate of handshakes.
MAX_HANDSHAKES = 256
# Times that a handshake's bytes are taken up; it is refused beyond it. Three do in a fast network, some ten in one
# with small packets; each costs as much as a request, and a stranger's bytes can come one by one.
MAX_HANDSHAKE_READS = 50
# Handshakes computed at once; the others wait for their turn. OpenSSL computes without Python's lock, some 0.3 ms
# for each of a handshake's two steps: with two threads the leader goes on meanwhile, and both cores are of use.
HANDSHAKE_THREADS = 2
# Connections with a certificate; beyond it the one idle longest makes room, and if none is idle the
# new one gets a 503. Five for each of a class of 200. Each takes some 30 KB, 70 after a long request, and a
# thread while a request is slow, of 100 KB.
MAX_CONNECTIONS = 1000
# Connections of one client, if --max_connections_per_client does not say otherwise; beyond it that client's
# longest idle one makes room, or its new one gets a 503. A front end for a class of 200 may have a
# connection for each; four such clients fit.
MAX_CONNECTIONS_PER_CLIENT = 250
# Connections the kernel keeps until the leader accepts them; a class that starts together overflows the standard
# library's 5. Linux cuts it to net.core.somaxconn.
LISTEN_BACKLOG = 1024
# File descriptors: the connections, three pipes for each kubectl, and some for the rest. The process's
# limit is raised to it at start, which fails where it cannot be.
MAX_OPEN_FILES = MAX_CONNECTIONS + MAX_HANDSHAKES + 144

# How often the TLS files are looked at. A change is taken up once it has stayed for as long, so that a file
# that is being written is not read: clients that were revoked are gone after 2 to 3 of these.
RELOAD_SECONDS = 1.0
# Refused handshakes of one address for one reason are one line of the log in this time, with their number;
# so is a certificate that has ended.
REFUSALS_SECONDS = 60.0
# Addresses and reasons told apart in it, some 300 bytes each; further addresses are counted as "others".
MAX_REFUSALS = 1000
# Before a certificate or the revocation list ends, and nobody gets in: a warning a day.
EXPIRY_WARNING_SECONDS = 30 * 86400.0

# create_db's answer, counted from the request; 503 with the reason beyond it, and creation goes on.
# The notebook plug-in hangs up after 20 s; half a second of it is the network's.
CREATE_SECONDS = 17.5
# Before that time is up, this much is for asking the cluster why a database is not ready.
REASON_SECONDS = 2.5
# A refused heart beat's answer is held back this long: the plug-in's loop never sleeps after one. Such
# a client holds one thread and makes one request a second.
REFUSED_BEAT_SECONDS = 1.0
# What was just created shows in the watches within milliseconds; only beyond this is it missing again.
SETTLE_SECONDS = 2.0

# One kubectl; its process group is killed beyond it. Creating a full group takes 2 s.
KUBECTL_SECONDS = 30.0
# Users whose objects go into one kubectl: three objects each, and kubectl slows down to 50 requests a
# second after 300. The rest go into the next.
GROUP_USERS = 50
# A group leaves when nobody has joined it for the first, and at the latest after the second. A class that starts
# together comes within some 0.1 s, to a busy machine up to 20 ms apart; a kubectl of its own for a user who is a
# moment early would take 0.2 s. Who comes alone waits for the first, in 1.5 s altogether.
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


# ---- Errors and the log -----------------------------------------------------------------------------

log = logging.getLogger("playground")
log.addHandler(logging.NullHandler())  # Until `main` has it written to stderr.
PLAIN = re.compile(r"[A-Za-z0-9_./:@+=-]+")


def logfmt(event: str, **fields: object) -> str:
    """Format an event and key=value pairs for the log; values that are not plain become JSON strings, so that none can forge a line."""
    def quote(value: object) -> str:
        text = f"{value:.1f}" if isinstance(value, float) else str(value)
        return text if PLAIN.fullmatch(text) and "=" not in text else json.dumps(text).replace("\x7f", "\\u007f")
    return " ".join([event, *(f"{key}={quote(value)}" for key, value in fields.items())])


class LogLine(logging.Formatter):
    """Formats a record as one line, with the time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return f"time={rfc3339(int(record.created))} level={record.levelname} event={record.getMessage()}"


class ApiError(Exception):
    """What a client is told: a status, a sentence that says what to do, and header fields."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class NotReady(ApiError):
    """Why a database is not ready at some moment."""


class Refusal(Exception):
    """Why the server does not start, or does not take a file up: what is wrong, with its path, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")


@contextlib.contextmanager
def blaming(what: str, remedy: str) -> Iterator[None]:
    """Turn what goes wrong with a file into a Refusal that names it."""
    try:
        yield
    except (OSError, ValueError, LookupError) as error:
        raise Refusal(f"{what} ({getattr(error, 'strerror', None) or error})", remedy) from error


def unavailable(message: str, seconds: int = 5) -> ApiError:
    """Return a 503 that asks the client to come back in so many seconds (RFC 9110, section 10.2.3)."""
    return ApiError(503, message, Retry_After=str(seconds))


class Family(NamedTuple):
    """A family of metrics: its type, what it tells, and the upper bounds of a histogram's buckets."""

    kind: str
    help: str
    buckets: tuple[float, ...] = ()


FAMILIES = {
    "requests_total": Family("counter", "Requests answered."),
    "request_seconds": Family("histogram", "Time from a request's first byte to its answer.", (0.001, 0.005, 0.02, 0.1, 0.5, 2, 5, 10, 18)),
    "handshakes_refused_total": Family("counter", "TLS handshakes refused."),
    "kubectl_seconds": Family("histogram", "Time that a kubectl ran.", (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 75)),
    "creations_grouped": Family("histogram", "Users whose databases one kubectl created.", (1, 2, 5, 10, 20, 50)),
    "databases_swept_total": Family("counter", "Databases deleted because nobody was heard of."),
    "connections": Family("gauge", "Open connections."),
    "databases": Family("gauge", "Databases in the namespace."),
    "cluster_synchronised": Family("gauge", "1 while every watch goes well and the template is known to be good, otherwise 0."),
    "last_beat_write_timestamp_seconds": Family("gauge", "When heart beats were last written into the cluster, or none was waiting."),
    "certificate_expiry_timestamp_seconds": Family("gauge", "When a certificate or the revocation list ends."),
    "build_info": Family("gauge", "1; the label tells the version."),
}


Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]  # By family and labels.


class Metrics:
    """What has happened since the start, for Prometheus (its text format, version 0.0.4)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # By family and labels: a counter's value; or a histogram's count for each bucket and above, and the sum.
        self.values: dict[str, dict[Labels, list[float]]] = collections.defaultdict(dict)

    def add(self, family: str, value: float = 1, **labels: str) -> None:
        """Add to a counter, or put a value into a histogram."""
        buckets = FAMILIES[family].buckets
        with self.lock:
            cells = self.values[family].setdefault(tuple(labels.items()), [0.0] * (len(buckets) + 2 if buckets else 1))
            cells[-1] += value
            if buckets:
                cells[bisect.bisect_left(buckets, value)] += 1

    def text(self, gauges: Samples) -> str:
        """Return all of them, and what the gauges say now, by family and labels."""
        with self.lock:
            values = {name: {labels: list(cells) for labels, cells in family.items()} for name, family in self.values.items()}
        lines = []

        def sample(name: str, labels: Labels, value: float) -> None:
            quoted = ",".join(f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in labels)
            lines.append(f"playground_{name}{f'{{{quoted}}}' if quoted else ''} {value:.15g}")
        for name, family in FAMILIES.items():
            lines += [f"# HELP playground_{name} {family.help}", f"# TYPE playground_{name} {family.kind}"]
            for labels, value in gauges.get(name, {}).items():
                sample(name, labels, value)
            for labels, cells in values.get(name, {}).items():
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


# ---- TLS and connections ----------------------------------------------------------------------------

class Tls(NamedTuple):
    """What the TLS files hold, at one moment."""

    context: ssl.SSLContext
    trusted: bytes  # The CA and the revocation list: who is let in.
    revoked: frozenset[int]  # Serial numbers.
    expiries: dict[str, float]  # By file; seconds since 1970.


def load_tls(files: dict[str, str]) -> Tls:
    """Read the TLS files by their options' names: ca_crt, server_crt, server_key, and crl, which may be empty.

    The context requires a certificate of our CA from every client, in every handshake. Raises Refusal.
    """
    content = {}
    for name, path in files.items():
        with blaming(f"--{name} {path} cannot be read", "make it with gen_cert.sh server, or name another file"):
            content[name] = read_file(path) if path or name != "crl" else b""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would not look at the certificate again. TLS 1.2's can all the same: OpenSSL keeps them
    # with the context, Python cannot tell it not to, and Server.welcome looks.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    with blaming(f"--ca_crt {files['ca_crt']} holds no certificate that can be used", "name the CA's certificate in PEM"):
        # OpenSSL checks the purpose too: a certificate for servers only is no client's.
        context.load_verify_locations(files["ca_crt"])
        authorities = context.get_ca_certs(binary_form=True)
        expiries = {"ca_crt": min(map(certificate_expiry, authorities))}
    with blaming(f"--server_key {files['server_key']} and --server_crt {files['server_crt']} cannot be used together",
                 "expected a private key in PEM without a password, and the certificate that was made for it"):
        # Without a password function OpenSSL would ask for one on the terminal.
        context.load_cert_chain(files["server_crt"], files["server_key"], password=lambda: "")
        expiries["server_crt"] = certificate_expiry(pem(content["server_crt"], "CERTIFICATE")[0])
    revoked: set[int] = set()
    with blaming(f"--crl {files['crl']} cannot be used", "name the revocation list of the CA in PEM, as gen_cert.sh makes it"):
        for crl in pem(content["crl"], "X509 CRL") if files["crl"] else ():
            issuer, made, expiry, serials = read_crl(crl)
            if not any(issuer in authority for authority in authorities):
                raise ValueError(f"it is not of the CA in {files['ca_crt']}")
            if not made <= time.time() < expiry:
                raise ValueError(f"it {'has ended' if expiry < time.time() else 'is of the future'}, and nobody would get in")
            expiries["crl"] = min(expiry, expiries.get("crl", expiry))
            revoked |= serials
        if files["crl"]:
            context.load_verify_locations(files["crl"])
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return Tls(context, content["ca_crt"] + content["crl"], frozenset(revoked), expiries)


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


def der(data: bytes) -> list[tuple[int, bytes]]:
    """Return the tag and the content of each DER element, one after another (X.690, section 8.1). Raises IndexError."""
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
    """Return a UTCTime or GeneralizedTime in seconds since 1970 (RFC 5280, section 4.1.2.5). Raises ValueError."""
    return calendar.timegm(time.strptime(content.decode("ascii"), "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"))


def certificate_expiry(certificate: bytes) -> float:
    """Return when a certificate ends (RFC 5280, section 4.1). Python's ssl tells it of the other side's only."""
    fields = der(der(der(certificate)[0][1])[0][1])
    validity = fields[4 if fields[0][0] == 0xa0 else 3]  # A version comes first, but for version 1.
    return der_time(*der(validity[1])[1])


def read_crl(crl: bytes) -> tuple[bytes, float, float, set[int]]:
    """Return a revocation list's issuer, when it begins and ends, and the serial numbers in it (RFC 5280, section 5.1)."""
    fields = der(der(der(crl)[0][1])[0][1])
    fields = fields[1:] if fields[0][0] == 0x02 else fields
    (_, issuer), begins, *rest = fields[1:]
    ends = der_time(*rest.pop(0)) if rest and rest[0][0] in (0x17, 0x18) else float("inf")
    entries = der(rest[0][1]) if rest and rest[0][0] == 0x30 else []
    return issuer, der_time(*begins), ends, {int.from_bytes(der(entry)[0][1], "big") for _, entry in entries}


def common_name(certificate: dict[str, Any]) -> str:
    """Return the certificate's common name, the client. Raises ValueError unless there is exactly one, not empty."""
    names = [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
    if len(names) != 1 or not names[0].strip():
        raise ValueError("the certificate has no common name or several")
    return str(names[0])


# The same certificates come again and again, and reading a time takes as long as parsing a request.
certificate_end = functools.lru_cache(MAX_CONNECTIONS)(ssl.cert_time_to_seconds)


class Peer(NamedTuple):
    """Who is at the other end of a connection, and of which generation of the TLS files it is."""

    name: str  # A client's common name; before there is a certificate, the address.
    serial: int
    generation: int
    since: float  # By time.monotonic.


class Refusals:
    """Counts refused handshakes, and logs those of an address and a reason in one line a minute."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: dict[tuple[str, str], int] = {}
        self.logged: dict[tuple[str, str], float] = {}

    def add(self, address: str, reason: str) -> None:
        """Count one; it is logged by the next `flush`."""
        metrics.add("handshakes_refused_total", reason=reason)
        with self.lock:
            key = (address, reason) if len(self.counts) < MAX_REFUSALS or (address, reason) in self.counts else ("others", reason)
            self.counts[key] = self.counts.get(key, 0) + 1

    def flush(self, everything: bool = False) -> None:
        """Log what is due, or all that there is."""
        now = time.monotonic()
        with self.lock:
            self.logged = {} if everything else {key: moment for key, moment in self.logged.items() if moment > now - REFUSALS_SECONDS}
            due = [(key, self.counts.pop(key)) for key in self.counts.keys() - self.logged.keys()]
            self.logged.update((key, now) for key, _ in due)
        for (address, reason), count in due:
            log.info(logfmt("handshake", outcome="refused", address=address, reason=reason, count=count))


class Leader:
    """Does what comes up, one thing after the other; one thread leads at a time.

    What comes up is a new connection, bytes on another one, or a handshake that was computed: by threads that do
    nothing else, so that Python's code goes on running in the same processor's cache.
    """

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()  # With each file, what to do when it can be read.
        self.to_compute: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.computed: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.bell, self.ear = socket.socketpair()  # A byte for each that is computed.
        self.selector.register(self.ear, selectors.EVENT_READ, self.take_computed)

    def start(self) -> None:
        """Start the threads."""
        for job in (self.lead, *[self.compute] * HANDSHAKE_THREADS):
            threading.Thread(target=job, daemon=True).start()

    def lead(self) -> None:
        """Do what comes up until another thread leads."""
        current.leader = self
        while current.leader:
            try:
                for key, _ in self.selector.select():
                    key.data()
                    if not current.leader:
                        break  # The next one sees what else has come up.
            except Exception:  # Somebody has to lead, whatever happens.
                log.error(logfmt("lead", error=traceback.format_exc()))

    def hand_over(self, connection: Connection) -> None:
        """Have another thread lead, and leave this one to a connection. Raises ApiError 503 if there is no thread to be had."""
        connection.ignore()
        try:
            threading.Thread(target=self.lead, daemon=True).start()
        except RuntimeError as error:
            connection.listen()
            log.error(logfmt("lead", error=error))
            raise unavailable("this server is out of threads: ask again later") from error
        current.leader = None

    def compute(self) -> NoReturn:
        """Compute handshakes."""
        while True:
            connection = self.to_compute.get()
            connection.compute()
            self.computed.put(connection)
            self.bell.send(b"\0")

    def take_computed(self) -> None:
        """Go on with a connection whose handshake was computed."""
        self.ear.recv(1)
        connection = self.computed.get()
        connection.serve(connection.shake_hands)


class Current(threading.local):
    """What the current thread is doing."""

    leader: Leader | None = None  # As whom it leads.
    connection: Connection  # Whom it serves.


current = Current()


def step_aside() -> None:
    """Have another thread lead, if this one does. To be called before anything is waited for. Raises ApiError 503."""
    if current.leader:
        current.leader.hand_over(current.connection)


def may_wait() -> bool:
    """Step aside; return False if there is no thread to be had, and nothing may be waited for."""
    try:
        step_aside()
        return True
    except ApiError:
        return False


class Server(http.server.ThreadingHTTPServer):
    """Accepts connections, bounds them, and knows who is at their other ends."""

    request_queue_size = LISTEN_BACKLOG

    def __init__(self, address: tuple[str, int], tls_files: dict[str, str], cluster: Cluster,
                 max_connections_per_client: int = MAX_CONNECTIONS_PER_CLIENT, ready_file: str = "") -> None:
        """Listen on (host, port). Raises OSError if it is in use or not ours to listen on, and Refusal of a TLS file."""
        self.ready_file = ready_file
        self.tls_files, self.tls, self.cluster = tls_files, load_tls(tls_files), cluster
        self.max_connections_per_client = max_connections_per_client
        self.started = time.monotonic()
        self.stopping = False
        self.reloading = threading.Lock()
        # How often it has changed who is let in. A connection of an older generation may be anybody's.
        self.generation = 0
        self.refusals = Refusals()
        self.leader = Leader()
        self.lock = threading.Lock()
        # Each in the order of arrival, so that the first is the oldest.
        self.strangers: dict[socket.socket, Peer] = {}
        self.clients: dict[socket.socket, Peer] = {}
        self.idle: dict[socket.socket, float] = {}  # Since when, by time.monotonic.
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Connection)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind without looking up our own name in DNS, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def server_activate(self) -> None:
        """Listen; what comes is accepted from `listen` on."""
        super().server_activate()
        self.socket.setblocking(False)

    def listen(self) -> None:
        """Accept connections: from the start, and again after descriptors or memory ran out."""
        with self.lock:
            if not self.stopping and self.socket not in self.leader.selector.get_map():
                self.leader.selector.register(self.socket, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        """Take up a connection that has come, as BaseServer.serve_forever would."""
        try:
            request, client_address = self.get_request()
        except OSError:
            return
        try:
            self.process_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
            self.shutdown_request(request)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without a byte read or written."""
        try:
            connection, address = self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                with contextlib.suppress(KeyError):
                    self.leader.selector.unregister(self.socket)  # It stays in the backlog: accepting at once again would spin.
            raise
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            connection.setblocking(False)
        except OSError:
            connection.close()
            self.refusals.add(address[0], "hung up")
            raise
        with self.lock:
            if len(self.strangers) >= MAX_HANDSHAKES:
                crowded = collections.Counter(stranger.name for stranger in self.strangers.values()).most_common(1)[0][0]
                oldest = next(connection for connection, stranger in self.strangers.items() if stranger.name == crowded)
                self.dismiss(oldest)
            self.strangers[connection] = Peer(address[0], 0, self.generation, time.monotonic())
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Wait for what the stranger has to say."""
        Connection(request, client_address, self).listen()

    def welcome(self, connection: socket.socket, name: str, certificate: dict[str, Any]) -> bool:
        """Count a connection that has shown a certificate; return False if there is no room for it. Raises ValueError."""
        serial, now = int(certificate["serialNumber"], 16), time.time()
        with self.lock:
            stranger = self.strangers.get(connection)  # It stays one if there is no room, and is bounded with them.
            if not stranger:
                raise ValueError("made room for others")
            if stranger.generation != self.generation:
                raise ValueError("the CA or the revocation list changed meanwhile")
            # OpenSSL has checked these, but not again for a session that is resumed.
            ends = min(certificate_end(certificate["notAfter"]), self.tls.expiries.get("crl", float("inf")))
            if serial in self.tls.revoked or ends < now:
                raise ValueError("the certificate of the resumed session is no longer good")
            own = {client for client, peer in self.clients.items() if peer.name == name}
            for full, those in ((len(own) >= self.max_connections_per_client, own), (len(self.clients) >= MAX_CONNECTIONS, self.idle)):
                if full:
                    longest_idle = next((client for client in self.idle if client in those), None)
                    if longest_idle is None:
                        return False
                    self.dismiss(longest_idle)
            self.clients[connection] = self.strangers.pop(connection)._replace(name=name, serial=serial)
            return True

    def wake(self, connection: socket.socket) -> bool:
        """Mark a connection as busy with a request; return whether it is still a client's."""
        with self.lock:
            self.idle.pop(connection, None)
            return connection in self.clients

    def dismiss(self, connection: socket.socket) -> None:
        """Hang up on a connection, and have nothing done that it has already asked for. The lock must be held."""
        for table in (self.strangers, self.clients, self.idle):
            table.pop(connection, None)
        hang_up(connection)

    def rest(self, connection: Connection) -> None:
        """Leave a connection to the leader until its next request; it may be hung up on without loss."""
        with self.lock:
            if self.ending(connection.request):
                hang_up(connection.request)  # The leader then reads an end of file.
            else:
                self.idle.setdefault(connection.request, time.monotonic())  # Part of a record does not start it anew.
        connection.listen()

    def ending(self, connection: socket.socket) -> bool:
        """Tell whether a connection is to end with its answer."""
        peer = self.clients.get(connection)
        return self.stopping or not peer or peer.generation != self.generation

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and close it."""
        with self.lock:
            for table in (self.strangers, self.clients, self.idle):
                table.pop(request, None)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what serving a connection did not expect."""
        log.error(logfmt("connection", outcome="failed", address=client_address[0], error=traceback.format_exc()))

    def reload(self) -> None:
        """Take the TLS files up for new connections. A change of who is let in ends the older ones.

        Those of revoked certificates and idle ones end at once, others with their answer: Python cannot check
        a peer again. Files that cannot be used leave everything as it was.
        """
        with self.reloading:  # Whoever read the files last has the last word.
            try:
                tls = load_tls(self.tls_files)
            except Refusal as refusal:
                log.warning(logfmt("tls", outcome="kept as it was", reason=refusal))
                return
            with self.lock:
                changed, self.tls = tls.trusted != self.tls.trusted, tls
                if changed:
                    self.generation += 1
                    for connection, peer in list(self.clients.items()):
                        if connection in self.idle or peer.serial in tls.revoked:
                            self.dismiss(connection)
            log.info(logfmt("tls", outcome="reloaded", generation=self.generation))

    def keep_house(self) -> NoReturn:
        """Take TLS files up that have changed, warn before they end, log who was refused, end idle connections, say that all is ready."""
        warned: dict[tuple[str, bool], float] = {}
        taken = before = self.stamps()
        while True:
            time.sleep(RELOAD_SECONDS)
            try:
                self.end_overdue()
                self.listen()
                now = self.stamps()
                if now != taken and now == before:
                    taken = now
                    self.reload()
                before = now
                self.warn_of_ends(warned)
                self.refusals.flush()
                if self.ready_file and self.cluster.status() == "ok":
                    open(self.ready_file, "w", encoding="utf-8").close()
                    self.ready_file = ""
            except Exception:
                log.error(logfmt("keep_house", error=traceback.format_exc()))

    def warn_of_ends(self, warned: dict[tuple[str, bool], float]) -> None:
        """Warn of a file that ends soon, once a day, or has ended; `warned` says when that was done, by time.monotonic."""
        for name, expiry in self.tls.expiries.items():
            left = expiry - time.time()
            ended, pause = left <= 0, 86400 if left > 0 else REFUSALS_SECONDS
            if left < EXPIRY_WARNING_SECONDS and time.monotonic() - warned.get((name, ended), float("-inf")) > pause:
                warned[name, ended] = time.monotonic()
                log.log(logging.ERROR if ended else logging.WARNING, logfmt(
                    "tls", file=self.tls_files[name], ends=rfc3339(expiry), remedy="renew it: nobody gets in after its end"))

    def end_overdue(self) -> None:
        """Hang up on connections whose handshake has taken HANDSHAKE_SECONDS, or that have rested for IDLE_SECONDS."""
        now = time.monotonic()
        with self.lock:
            for stranger in itertools.takewhile(lambda one: self.strangers[one].since < now - HANDSHAKE_SECONDS, self.strangers):
                hang_up(stranger)
            for client in list(itertools.takewhile(lambda one: self.idle[one] < now - IDLE_SECONDS, self.idle)):
                self.dismiss(client)

    def stamps(self) -> list[tuple[int, ...]]:
        """Return what shows whether a TLS file has changed; nothing of a file that is not there."""
        found: list[tuple[int, ...]] = []
        for path in filter(None, self.tls_files.values()):
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                found.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
        return found

    def stop(self) -> None:
        """Stop accepting, end the connections that are idle, and the others with their answer."""
        with self.lock:
            self.stopping = True
            with contextlib.suppress(KeyError):
                self.leader.selector.unregister(self.socket)
            for connection in list(self.idle):
                self.dismiss(connection)
            for connection in self.strangers:
                hang_up(connection)
        self.server_close()


def hang_up(connection: socket.socket) -> None:
    """End a connection that another thread is using, which reads an end of file after what has already come.

    Closing it here would free its descriptor's number under that thread's feet.
    """
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


# ---- HTTP: RFC 9112, strictly ------------------------------------------------------------------------

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


class Request(NamedTuple):
    """One request's head. `query` and the header fields' values are as sent, undecoded but for Latin-1."""

    method: str
    path: str
    query: bytes
    headers: dict[str, str]
    length: int | None
    keep_alive: bool


def parse_head(head: bytes) -> Request:
    """Parse a request line and header fields without the empty line that ends them (RFC 9112, sections 2 to 6).

    Raises ApiError; the connection must then close, for nobody knows where the next request starts.
    """
    request_line, *lines = head.split(b"\r\n")
    if len(request_line) > MAX_REQUEST_LINE_BYTES:
        raise ApiError(414, f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes")
    if len(head) > MAX_HEAD_BYTES or len(lines) > MAX_HEADER_FIELDS:
        raise ApiError(431, f"the head is longer than {MAX_HEAD_BYTES} bytes or has more than {MAX_HEADER_FIELDS} header fields")
    match = REQUEST_LINE.fullmatch(request_line)
    if not match or BARE.search(head):
        raise ApiError(400, "not an HTTP/1.1 request: expected a line such as GET /api/status HTTP/1.1, lines ended by CR LF")
    method, target = match[1].decode(), match[2]
    if match[3] != b"1":
        raise ApiError(505, "this server speaks HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        field = HEADER_FIELD.fullmatch(line)
        if not field:
            raise ApiError(400, "a header field is malformed: expected Name: value, on one line, no space before the colon")
        name, value = field[1].decode().lower(), field[2].strip(b" \t").decode("latin-1")
        if name in headers and name in ("host", "content-length", "transfer-encoding", "expect"):
            raise ApiError(400, f"the header field {name} came twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    http_1_1 = match[4] != b"0"
    if not http_1_1:
        headers.pop("expect", None)  # Such a client knows no 100 (RFC 9110, section 10.1.1).
    if http_1_1 and "host" not in headers or not HOST.fullmatch(headers.get("host", "-")):
        raise ApiError(400, "the header field Host is missing or malformed: expected the server's name and port")
    if "transfer-encoding" in headers:
        raise ApiError(501, "Transfer-Encoding is not supported: send the body with a Content-Length")
    length = headers.get("content-length")
    if length is not None and not re.fullmatch("[0-9]{1,16}", length):
        raise ApiError(400, "Content-Length is malformed: expected one decimal number")
    if length is not None and int(length) > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    if method not in METHODS:
        raise ApiError(501, "this method is not known here: use GET or POST")
    if length is None and method == "POST":
        raise ApiError(411, "Content-Length is missing: send the body's length in bytes")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise ApiError(417, "the only expectation known here is 100-continue")
    # The absolute form, https://host/path, must be understood as well (section 3.2.2).
    path, _, query = re.sub(rb"^https?://[^/?]+", b"", target, flags=re.I).partition(b"?")
    closes = "close" in [option.strip().lower() for option in headers.get("connection", "").split(",")]
    return Request(method, path.decode("latin-1"), query, headers, None if length is None else int(length), http_1_1 and not closes)


def why_refused(error: Exception) -> str:
    """Return why a handshake failed, in few words that are the same for the same reason."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return "hung up" if isinstance(error, OSError) else str(error)


# What one record of TLS holds at most (RFC 8446, section 5.1).
MAX_RECORD_BYTES = 2 ** 14
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError)


# As RFC 9110, section 5.6.7, wants it; the answers of a second share it.
http_date = functools.lru_cache(1)(functools.partial(email.utils.formatdate, usegmt=True))


class Connection:
    """One client's connection, or a stranger's until the handshake is done.

    TLS works in memory: what has come is read at once, whatever records it is made of, and an answer is one write.
    """

    def __init__(self, request: socket.socket, address: Any, server: Server) -> None:
        self.request, self.address, self.server = request, address, server
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server.tls.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.client = ""  # Before the handshake.
        self.handshake_reads = 0
        self.buffer = b""
        self.awaited = False  # Whether the leader waits for its next bytes.
        self.computing = False  # Whether its handshake is with the threads that compute it.
        self.outcome: Exception | None = None  # What that came to.

    def listen(self) -> None:
        """Have the leader wait for the next bytes, which it may serve before this returns."""
        if not self.awaited:
            self.server.leader.selector.register(self.request, selectors.EVENT_READ, self.hear)
            self.awaited = True

    def ignore(self) -> None:
        """Leave the connection to the current thread."""
        if self.awaited:
            self.server.leader.selector.unregister(self.request)
            self.awaited = False

    def serve(self, step: Callable[[], bool]) -> None:
        """Take a step, and end the connection if nothing may follow."""
        current.connection = self
        stays = False
        try:
            stays = step()
            if not stays:
                self.say_good_bye()
        except (OSError, ApiError):
            pass  # A client that hangs up or is slow is nothing to report; that no thread is to be had has been.
        except Exception:
            self.server.handle_error(self.request, self.address)
        if not stays:
            self.ignore()
            self.server.shutdown_request(self.request)

    def hear(self) -> None:
        """Do something about bytes that have come."""
        if not self.awaited:
            return  # It was closed after the selector had told of them.
        if self.computing:
            self.ignore()  # They are early.
        else:
            self.serve(self.answer_all if self.client else self.have_computed)

    def have_computed(self) -> bool:
        """Have the handshake go on with the bytes that have come; return False if there are none."""
        self.handshake_reads += 1
        try:
            if not self.take_in():
                raise ConnectionError("ended inside the handshake")
            if self.handshake_reads > MAX_HANDSHAKE_READS:
                raise ValueError("came in too many pieces")
        except BlockingIOError:
            return True
        except (OSError, ValueError) as error:
            return self.refuse(error)
        self.computing = True
        self.server.leader.to_compute.put(self)
        return True

    def compute(self) -> None:
        """Go on with the handshake."""
        try:
            if self.request not in self.server.strangers:
                raise ValueError("made room for others")
            self.tls.do_handshake()
        except Exception as error:
            self.outcome = error

    def shake_hands(self) -> bool:
        """Take up what the handshake came to, and learn who the client is; return False if it is nobody we know, or there is no room."""
        self.computing = False
        outcome, self.outcome = self.outcome, None
        try:
            if isinstance(outcome, ssl.SSLWantReadError):
                self.flush()
                self.listen()
                return True
            if outcome:
                return self.refuse(outcome)
            certificate = self.tls.getpeercert() or {}
            client = common_name(certificate)
            room = self.server.welcome(self.request, client, certificate)
        except (OSError, ValueError) as error:
            return self.refuse(error)
        self.client = client
        if not room:
            self.send(503, {"error": "too many connections: close idle ones, or ask again later"}, {"Retry-After": "5"}, close=True)
            self.drain()
            return False
        return self.answer_all()  # A first request may have come with the handshake's end.

    def refuse(self, error: Exception) -> bool:
        """Count a handshake that failed; return False."""
        peer = self.server.strangers.get(self.request)
        late = peer and peer.since < time.monotonic() - HANDSHAKE_SECONDS
        self.server.refusals.add(self.address[0], "made room for others" if not peer else "timed out" if late else why_refused(error))
        return False

    def answer_all(self) -> bool:
        """Answer the requests that have come; return whether others may follow."""
        try:
            if not self.pull() or not self.server.wake(self.request):
                return False
            while self.buffer not in (b"", b"\r\n") or self.incoming.pending:
                if self.buffer in (b"", b"\r\n"):  # An empty line may come before a request that may never come.
                    if not self.pull():
                        return False
                elif not self.answer_one():
                    return False
                elif self.buffer:
                    may_wait()  # Those who send ahead have a thread of their own to answer them; or everybody waits.
        except WOULD_BLOCK:
            pass  # The rest is not here yet.
        self.flush()
        self.server.rest(self)
        return True

    def answer_one(self) -> bool:
        """Read one request and answer it; return whether another may follow."""
        started = time.monotonic()
        method, api, user, keep_alive, headers = "-", "-", "-", False, {}
        try:
            request = parse_head(self.read_head(started + HEAD_SECONDS))
            method = request.method
            body = self.read_body(request)
            keep_alive = request.keep_alive
            api = request.path[len("/api/"):] if request.path.startswith("/api/") else "-"
            function, parameters = route(api, request, body)
            user = parameters.get("user_id", "-")
            status, answer = 200, function(self.server, self.client, started + CREATE_SECONDS, **parameters)
        except ApiError as error:
            status, answer, headers = error.status, {"error": error.message}, error.headers
        except socket.timeout:
            status, answer = 408, {"error": "the request did not arrive in time: send it again, faster"}
        except OSError:
            raise
        except Exception:
            log.error(logfmt("request", client=self.client, api=api, error=traceback.format_exc()))
            status, answer = 500, {"error": "this server failed: its maintainer's log says why"}
        taken = time.monotonic() - started
        known = api if api in API else "-"  # What clients make up is no label.
        metrics.add("requests_total", api=known, status=str(status))
        metrics.add("request_seconds", taken, api=known)
        log.log(logging.WARNING if status >= 500 else logging.INFO, logfmt(
            "request", client=self.client, method=method, api=api, user=user, status=status, ms=taken * 1000))
        if api == "heart_beat" and status >= 400 and may_wait():
            time.sleep(REFUSED_BEAT_SECONDS)  # The plug-in repeats at once, for ever, what is not answered 200.
        close = not keep_alive or self.server.ending(self.request)
        self.send(status, answer, headers, close, body=method != "HEAD")
        if not keep_alive and status >= 400:
            self.drain()
        return not close

    def take_in(self) -> bool:
        """Read what has come from the network; return False at its end. Raises BlockingIOError if nothing has."""
        data = self.request.recv(MAX_RECORD_BYTES)
        self.incoming.write(data)
        return bool(data)

    def pull(self) -> bool:
        """Add the next record to the buffer; return False if the client has ended. Raises one of WOULD_BLOCK if it has not come.

        It reads from the network once at most, so that whoever sends without end does not have the leader for that long.
        """
        if not self.incoming.pending and not self.take_in():
            return False
        data = self.tls.read(MAX_RECORD_BYTES)
        self.buffer += data
        return bool(data)

    def wait(self, event: int, deadline: float) -> None:
        """Wait until the network takes or gives something. Raises socket.timeout at the deadline."""
        step_aside()
        poll, remaining = select.poll(), deadline - time.monotonic()
        poll.register(self.request, event)
        if remaining <= 0 or not poll.poll(remaining * 1000):
            raise socket.timeout()

    def receive(self, deadline: float) -> bool:
        """Wait for the next record; return False if the client has ended. Raises socket.timeout at the deadline."""
        while True:
            try:
                return self.pull()
            except WOULD_BLOCK:
                self.flush()
                self.wait(select.POLLIN, deadline)

    def flush(self) -> None:
        """Send what TLS has to say. Raises OSError if the client does not take it in ANSWER_SECONDS."""
        data, deadline = memoryview(self.outgoing.read()), time.monotonic() + ANSWER_SECONDS
        while data:
            try:
                data = data[self.request.send(data):]
            except BlockingIOError:
                self.wait(select.POLLOUT, deadline)

    def say_good_bye(self) -> None:
        """Send what is left, and TLS's own end. Raises OSError if the client does not take it in ANSWER_SECONDS."""
        with contextlib.suppress(OSError):
            self.tls.unwrap()  # The client's own may come later, or never.
        self.flush()

    def read_head(self, deadline: float) -> bytes:
        """Take a request's head out of the buffer, reading on until it is there or is beyond help; parse_head says why."""
        while len(self.buffer) < 2 and self.receive(deadline):
            pass
        if self.buffer.startswith(b"\r\n"):  # One empty line before a request is to be ignored (section 2.2).
            self.buffer = self.buffer[2:]
        searched = 0
        while ((end := self.buffer.find(b"\r\n\r\n", max(searched - 3, 0))) < 0 and len(self.buffer) <= MAX_HEAD_BYTES
               and not BARE.search(self.buffer, max(searched - 1, 0))):
            searched = len(self.buffer)
            if not self.receive(deadline):
                raise ConnectionError("ended inside a request's head")
        end = len(self.buffer) if end < 0 else end
        head, self.buffer = self.buffer[:end], self.buffer[end + 4:]
        return head

    def read_body(self, request: Request) -> bytes:
        """Take a request's body out of the buffer, reading on until it is there."""
        length = request.length or 0
        if length > len(self.buffer) and "expect" in request.headers:
            self.tls.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.flush()
        deadline = time.monotonic() + BODY_SECONDS
        while len(self.buffer) < length:
            if not self.receive(deadline):
                raise ConnectionError("ended inside a request's body")
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return body

    def send(self, status: int, answer: dict[str, Any] | str, headers: dict[str, str], close: bool, body: bool = True) -> None:
        """Send an answer, the last one together with the good-bye. Raises OSError if the client does not take it in ANSWER_SECONDS."""
        text, kind = (answer, "text/plain; version=0.0.4; charset=utf-8") if isinstance(answer, str) else (
            json.dumps(answer) + "\n", "application/json")
        content = text.encode() if body else b""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + ("Connection: close\r\n" if close else "")
        head = (f"HTTP/1.1 {status} {http.client.responses[status]}\r\nDate: {http_date(int(time.time()))}\r\n"
                f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
                f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{more}\r\n")
        self.tls.write(head.encode() + content)
        if not close:
            self.flush()

    def drain(self) -> None:
        """Let a refused client finish sending, within bounds: closing at once would reset the connection before it reads."""
        self.say_good_bye()
        if not may_wait():
            return
        deadline, left = time.monotonic() + DRAIN_SECONDS, DRAIN_BYTES
        self.request.shutdown(socket.SHUT_WR)
        while left > 0 and (remaining := deadline - time.monotonic()) > 0:
            self.request.settimeout(remaining)
            data = self.request.recv(MAX_BODY_BYTES)
            if not data:
                break
            left -= len(data)


# ---- The API -----------------------------------------------------------------------------------------

USER_ID_RULE = (f"a user_id is 1 to {MAX_USER_ID_CHARACTERS} letters, marks and decimal digits of any script and . _ @ -"
                ", and starts with a letter or digit")


def valid_user_id(text: object) -> str:
    """Return the user id normalised to NFC. Raises ApiError 400 unless it keeps to USER_ID_RULE."""
    user_id = unicodedata.normalize("NFC", text) if isinstance(text, str) and len(text) <= 4 * MAX_USER_ID_CHARACTERS else ""
    # The categories, not isalnum(), which is true for '²'.
    categories = [unicodedata.category(character) for character in user_id]
    allowed = (category[0] in "LM" or category == "Nd" or character in "._@-" for category, character in zip(categories, user_id))
    if not 0 < len(user_id) <= MAX_USER_ID_CHARACTERS or not all(allowed) or categories[0][0] != "L" and categories[0] != "Nd":
        raise ApiError(400, f"user_id is malformed: {USER_ID_RULE}")
    return user_id


def refuse_repeated(names: list[str]) -> None:
    """Raise ApiError 400 if a parameter's name comes twice: one reader would take the first value, another the last."""
    if len(set(names)) == len(names):
        return
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise ApiError(400, f"{json.dumps(name[:80])} came twice: expected it once")


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
        raise ApiError(400, 'the body is malformed: expected a JSON object in UTF-8 such as {"user_id": "alice"}')
    return value


def read_query(query: bytes) -> dict[str, Any]:
    """Read a query's parameters, percent-encoded or raw UTF-8. Raises ApiError 400."""
    pairs: list[tuple[str, str]] = []
    for pair in query.split(b"&") if query else []:
        name, equals, value = (urllib.parse.unquote_to_bytes(part) for part in pair.partition(b"="))
        try:
            pairs.append((name.decode("utf-8"), value.decode("utf-8")))
        except UnicodeDecodeError:
            equals = b""
        if not equals or re.search(rb"%(?![0-9A-Fa-f]{2})|\+", pair):
            raise ApiError(400, "the query is malformed: expected name=value, in UTF-8 or percent-encoded")
    refuse_repeated([name for name, _ in pairs])
    return dict(pairs)


def route(name: str, request: Request, body: bytes) -> tuple[Callable[..., dict[str, Any] | str], dict[str, str]]:
    """Look a request up in the API; return its function and its parameters. Raises ApiError."""
    if name not in API:
        raise ApiError(404, "there is no such API: " + ", ".join(f"{known[0]} /api/{api}" for api, known in API.items()))
    method, function, takes = API[name]
    if request.method != method:
        raise ApiError(405, f"{name} takes {method}", Allow=method)
    if request.query if method == "POST" else body:
        raise ApiError(400, f"{name} takes {'a JSON body and no query' if method == 'POST' else 'no body'}")
    given = read_json(body) if method == "POST" else read_query(request.query)
    if set(given) != set(takes):
        unknown = ", ".join(json.dumps(key[:80]) for key in [key for key in given if key not in takes][:5])
        wanted = ", ".join(takes) or "no parameters"
        raise ApiError(400, f"{name} takes {wanted}, not {unknown}" if unknown else f"{name} takes {wanted}, which is missing")
    return function, {key: valid_user_id(value) for key, value in given.items()}


def create_db(server: Server, client: str, deadline: float, user_id: str) -> dict[str, Any]:
    """Answer with the user's database, made if there is none, once it takes queries."""
    return server.cluster.create(user_id, client, deadline)


def heart_beat(server: Server, client: str, deadline: float, user_id: str) -> dict[str, Any]:
    """Take a beat, for a database or none, but not for another client's."""
    return {"user_id": user_id, "status": server.cluster.beat(user_id, client)}


def delete_db(server: Server, client: str, deadline: float, user_id: str) -> dict[str, Any]:
    """Remove the user's database and its data, if there is one."""
    server.cluster.delete(user_id, client, deadline)
    return {"user_id": user_id, "status": "absent"}


def list_db(server: Server, client: str, deadline: float) -> dict[str, Any]:
    """List the caller's own databases."""
    return {"databases": server.cluster.databases_of(client, deadline)}


def status(server: Server, client: str, deadline: float) -> dict[str, Any]:
    """Say which version this is, since when it runs and whether the cluster answers."""
    return {"version": __version__, "uptime_seconds": int(time.monotonic() - server.started), "cluster": server.cluster.status()}


def tell_metrics(server: Server, client: str, deadline: float) -> str:
    """Return what Prometheus scrapes. It names no user and no client."""
    with server.lock:
        connections: dict[str, float] = {"handshake": len(server.strangers), "idle": len(server.idle),
                                         "busy": len(server.clients) - len(server.idle)}
    labelled: dict[str, tuple[str, dict[str, float]]] = {
        "connections": ("state", connections), "databases": ("status", server.cluster.count()),
        "certificate_expiry_timestamp_seconds": ("file", server.tls.expiries), "build_info": ("version", {__version__: 1})}
    gauges: Samples = {family: {((label, value),): number for value, number in numbers.items()}
                       for family, (label, numbers) in labelled.items()}
    gauges["cluster_synchronised"] = {(): float(server.cluster.status() == "ok")}
    gauges["last_beat_write_timestamp_seconds"] = {(): server.cluster.beats_written_at}
    return metrics.text(gauges)


API: dict[str, tuple[str, Callable[..., dict[str, Any] | str], tuple[str, ...]]] = {
    "create_db": ("POST", create_db, ("user_id",)),
    "heart_beat": ("GET", heart_beat, ("user_id",)),
    "delete_db": ("POST", delete_db, ("user_id",)),
    "list_db": ("GET", list_db, ()),
    "status": ("GET", status, ()),
    "metrics": ("GET", tell_metrics, ()),
}
# Prometheus sees a counter grow only from a value that it has seen: these are 0 before they happen.
metrics.add("databases_swept_total", 0)
for api, result in itertools.product(API, (200, 429, 500, 502, 503)):
    metrics.add("requests_total", 0, api=api, status=str(result))


# ---- What the cluster is known to hold ---------------------------------------------------------------

PREFIX = "playground.sqlflow.org/"
USER, USER_ID, CLIENT, LAST_BEAT = PREFIX + "user", PREFIX + "user-id", PREFIX + "client", PREFIX + "last-heart-beat"
# The same on what was made for the same Secret, and so for the same password; another on every other set.
SET = PREFIX + "set"
OURS = {"app.kubernetes.io/managed-by": "sqlflow-playground"}
RFC_3339 = "%Y-%m-%dT%H:%M:%SZ"
SELECTOR = ",".join(f"{name}={value}" for name, value in OURS.items())
# What outlives the sweep carries it: a persistent database's claim and password.
KEEP = PREFIX + "keep"
# In the order of creation: a pod starts with the Secret that is there, so that a Secret missing beside a
# StatefulSet or a claim is known to have been deleted. Every template has all of them but the claim.
KINDS = {"Secret": "secret", "PersistentVolumeClaim": "persistentvolumeclaim", "Service": "service", "StatefulSet": "statefulset.apps"}


# The rights that the server needs in its namespace. k8s_templates/playground.yaml grants them and says what for.
RIGHTS = {"statefulsets.apps": ("get", "list", "watch", "create", "patch", "delete"),
          "services": ("get", "list", "watch", "create", "delete"), "secrets": ("get", "list", "watch", "create", "delete"),
          "pods": ("list",), "events": ("list",)}
CLAIM_RIGHTS = {"persistentvolumeclaims": ("get", "list", "watch", "create", "delete")}  # With a template that has a claim.
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


@functools.lru_cache(16)  # A second's log lines share it.
def rfc3339(seconds: float) -> str:
    """Format seconds since 1970 as RFC 3339 in UTC."""
    return time.strftime(RFC_3339, time.gmtime(seconds))


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
            set_id=annotations.get(SET, ""), user_id=annotations.get(USER_ID, ""), client=annotations.get(CLIENT, ""),
            last_beat=annotations.get(LAST_BEAT, ""), keep=KEEP in annotations, leaving="deletionTimestamp" in metadata,
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
        # When its user was last heard of, here or as another server wrote it down, and whether that is still to be
        # written down. By time.monotonic: a wall clock may step, and other servers have other ones.
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
            raise ApiError(409, "this user_id's name in the cluster is taken by another one: use another user_id")

    def leaving(self) -> bool:
        """Tell whether some object of the set is being deleted."""
        return any(item.leaving for item in self.objects.values())

    def credentials(self) -> tuple[str, str] | None:
        """Return the set's id and password, from its Secret or from memory, or None if it has none that can be had."""
        if secret := self.objects.get("Secret"):
            return secret.set_id, secret.password
        started = self.objects.keys() & {"StatefulSet", "PersistentVolumeClaim"}
        return self.remembered if started and self.remembered[1] else None

    def lacking(self) -> set[str]:
        """Return the template's kinds that the set has not. A StatefulSet made from a template without a claim needs none."""
        unclaimed = "StatefulSet" in self.objects and not self.objects["StatefulSet"].claims
        return set(self.kinds) - self.objects.keys() - ({"PersistentVolumeClaim"} if unclaimed else set())

    def alien(self) -> list[str]:
        """Return the kinds whose objects were not made for the set's password."""
        set_id, _ = self.credentials() or (None, "")
        return [kind for kind, item in self.objects.items() if item.set_id != set_id]

    def last_beat(self) -> str | None:
        """Return the time of the last heart beat (RFC 3339), as written down if it was; None of a database that is kept."""
        if "StatefulSet" not in self.objects:
            return None
        written = self.objects["StatefulSet"].last_beat
        return written if is_time(written) and not self.unwritten else rfc3339(time.time() - time.monotonic() + self.heard_at)

    def kept(self) -> bool:
        """Tell whether all that is left is what the sweep leaves: a claim, with its data, and its password."""
        return "StatefulSet" not in self.objects and "PersistentVolumeClaim" in self.objects and not self.leaving()

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
    """Something under way with a database; whoever waits for it holds on to it, and sees what became of it."""

    def __init__(self, database: Database, owner: tuple[str, str], group: Group) -> None:
        self.database, self.owner, self.group = database, owner, group
        self.done = False
        self.failure: ApiError | None = None


class Group:
    """Does the work of everyone who waits in one go, like a database's group commit.

    While its workers are busy, what is submitted gathers; a worker that gets free takes up to `size`, after it
    has waited for company for a moment. `do` notes what fails with the work that failed; what it raises fails for all.
    """

    def __init__(self, cluster: Cluster, do: Callable[[list[Work]], None], size: int, workers: int = 1) -> None:
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
            failure: ApiError | None = None
            if not group:
                continue  # Another worker took it.
            try:
                self.do(group)
            except ApiError as error:
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

    def __init__(self, kubectl: Kubectl, template: Template, max_databases: int, max_databases_per_client: int,
                 idle_timeout: float, sweep_interval: float) -> None:
        self.kubectl, self.template, self.kinds = kubectl, template, template.kinds
        # StatefulSets first, for deleting: what is running ends before its password goes.
        self.resources = ",".join(KINDS[kind] for kind in reversed(self.kinds))
        self.idle_timeout, self.sweep_interval = idle_timeout, sweep_interval
        self.max_databases, self.max_databases_per_client = max_databases, max_databases_per_client
        self.lock = threading.RLock()
        self.databases: dict[str, Database] = {}
        # Why each kind is not being watched and the template was not found good, of REASONS; empty when it is.
        self.troubles = dict.fromkeys((*self.kinds, "template"), "starting")
        self.unknown = set(self.troubles)  # Those that never were good so far.
        self.early_beats: set[tuple[str, str]] = set()
        self.beats_written_at = time.time()
        self.synchronised = threading.Condition(self.lock)
        self.creating = Group(self, self.create_group, GROUP_USERS, CREATING_KUBECTLS)
        self.deleting = Group(self, self.delete_group, 2 * GROUP_USERS)
        self.sweeping = Group(self, self.sweep_group, SWEPT_PER_ROUND)
        self.ending = (self.deleting, self.sweeping)  # create_db comes after them: what it asks for is there anew, or still.
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

    def create(self, user_id: str, client: str, deadline: float) -> dict[str, Any]:
        """Return the user's data source once the database takes queries. Raises ApiError, by the deadline."""
        with self.attending(user_id, client, deadline) as (database, turns):
            work: Work | None = None
            for _ in turns:
                # Why it was not ready when somebody else's time was up is no answer yet.
                early = work and isinstance(work.failure, NotReady) and time.monotonic() < deadline - REASON_SECONDS
                if work and work.failure and work.group not in self.ending and not early:
                    raise work.failure
                if database.status() == "ready" and not (database.work and database.work.group in self.ending):
                    if work and work.done and work.group is self.keeping or not self.overdue(database):
                        return self.answer(database, (user_id, client))
                    if not database.work:
                        self.keeping.submit(database, (user_id, client))
                elif not database.work:
                    self.advance(database, (user_id, client), deadline)
                work = database.work
            raise unavailable("the cluster did not answer in time: ask again, the creation goes on", 2)

    def delete(self, user_id: str, client: str, deadline: float) -> None:
        """Delete the user's set of objects; return once the cluster has taken that on. Raises ApiError, by the deadline."""
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
        """Remember that the user was heard; return ready, starting, absent, or unknown while the cluster is."""
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
        """Return the client's databases, by user id. Raises ApiError 502 or 503 if the cluster is not known by the deadline."""
        with self.lock:
            self.wait_known(self.kinds, deadline)
            owned = {owner[0]: database for database in self.databases.values()
                     if (owner := database.owner()) and owner[1] == client and not database.leaving()}
            return [{"user_id": user_id, "status": database.status_or_kept(), "last_heart_beat": database.last_beat()}
                    for user_id, database in sorted(owned.items()) if database.kept() or "StatefulSet" in database.objects]

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
    def attending(self, user_id: str, client: str, deadline: float) -> Iterator[tuple[Database, Iterator[None]]]:
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
        """Yield at once and whenever something may have changed, until the deadline. Raises ApiError 403 or 409."""
        while True:
            database.check(user_id, client)
            yield
            now = time.monotonic()
            moments = [moment for moment in (database.settles_at, deadline - REASON_SECONDS, deadline) if moment > now]
            if deadline <= now:
                return
            step_aside()
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
            raise unavailable("the database was stopped, scaled to 0: its maintainer must scale it to 1 again", 60)
        elif database.lacking():
            self.wait_known(("template",), deadline - REASON_SECONDS)
            if not database.work:
                if not objects:
                    self.check_quota(owner[1])
                database.requested_by = owner
                self.creating.submit(database, owner)

    def answer(self, database: Database, owner: tuple[str, str]) -> dict[str, Any]:
        """Return what the owner of a ready database is told. Raises ApiError 409 if the password cannot be answered."""
        password, host = database.objects["Secret"].password, database.objects["Service"].host
        if not password:
            raise replaced(database)
        if not re.fullmatch(r"[0-9.]+", host):  # SQLFlow takes no IPv6 address, and a headless Service has none.
            host = f"{database.name}.{self.kubectl.namespace}.svc"
        database.hear()
        anew, database.note_for = database.note_for == owner, None
        return {"user_id": owner[0], "data_source": f"mysql://root:{password}@tcp({host}:3306)/?maxAllowedPacket=0",
                **({"note": REMADE} if anew else {})}

    def check_quota(self, client: str) -> None:
        """Raise ApiError 429 if one more database would be too many."""
        owners = [owner[1] for database in self.databases.values() if not database.leaving() and (owner := database.owner())]
        for limit, count, whose in ((self.max_databases, len(owners), "this playground"),
                                    (self.max_databases_per_client, owners.count(client), "one client")):
            if 0 < limit <= count:
                raise ApiError(429, f"{whose} may have {limit} databases: delete one with delete_db, or ask the maintainer for more",
                               Retry_After="60")

    def forget(self, database: Database) -> None:
        """Drop a database's entry when there is nothing to know about it."""
        if not (database.objects or database.waiting or database.work):
            self.databases.pop(database.name, None)

    def observed(self) -> bool:
        """Tell whether every kind has been listed once."""
        return self.unknown <= {"template"}

    def wait_known(self, what: Iterable[str], deadline: float) -> None:
        """Wait for the first listings of kinds, or the template's check. Raises ApiError 502 or 503 when they fail, at once."""
        while unknown := self.unknown.intersection(what):
            trouble, remaining = self.trouble(unknown), deadline - time.monotonic()
            if trouble != "starting" or remaining <= 0:
                raise KubectlError(trouble)
            step_aside()
            self.synchronised.wait(remaining)

    def trouble(self, what: Iterable[str]) -> str:
        """Return a trouble, of REASONS, rather one that was met than one not looked for yet; empty if there is none."""
        return max((self.troubles[one] for one in what), key=lambda trouble: (trouble not in ("", "starting"), trouble))

    def report(self, what: str, trouble: str) -> None:
        """Note how a kind's watch or the template's check goes."""
        with self.lock:
            self.troubles[what] = trouble
            self.unknown -= {what} if not trouble else set()
            self.synchronised.notify_all()

    # -- watching (Kubernetes API Concepts, "Efficient detection of changes")

    def watch(self, kind: str) -> NoReturn:
        """Keep one kind's table what the cluster holds: list, then watch from there; list anew after any failure."""
        path = f"{self.path(kind)}?labelSelector={urllib.parse.quote(SELECTOR)}"
        version, pause = "", WATCH_PAUSES_SECONDS[0]
        while True:
            started = time.monotonic()
            try:
                if not version:
                    listing = json.loads(b"".join(self.kubectl("get", "--raw", path)))
                    with self.lock:
                        self.take(self.known(self.databases.values()), [{**item, "kind": kind} for item in listing["items"]], (kind,))
                        self.report(kind, "")
                    log.info(logfmt("watch", kind=kind, listed=len(listing["items"])))
                    version = listing["metadata"]["resourceVersion"]
                options = f"&watch=1&resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}"
                for line in self.kubectl("get", "--raw", path + options, seconds=WATCH_SECONDS + WATCH_GRACE_SECONDS):
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # 410 Gone: the version is no longer in the server's history.
                        raise KubectlError("expired")
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self.observe(event["object"], event["type"] == "DELETED")
            except (KubectlError, ValueError, LookupError, TypeError, AttributeError) as error:
                version = ""
                self.report(kind, error.reason if isinstance(error, KubectlError) else "failed")
                log.warning(logfmt("watch", kind=kind, outcome=error.reason if isinstance(error, KubectlError) else repr(error)))
            if time.monotonic() - started > WATCH_PAUSES_SECONDS[1]:
                pause = WATCH_PAUSES_SECONDS[0]
            else:
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, WATCH_PAUSES_SECONDS[1])

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
                        log.warning(logfmt("heart_beat", user=now.user_id, client=now.client, last_beat=now.last_beat[:80],
                                           reason="it is no time in RFC 3339, and is taken for now"))
                # What was deleted from here stays so; a watch may show it alive for a moment.
                database.objects[kind] = now._replace(leaving=now.leaving or before.leaving and before.uid == now.uid)
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

    def take(self, known: dict[Database, dict[str, Seen]], items: list[dict[str, Any]], kinds: Iterable[str] = ()) -> None:
        """Take a listing of these databases and kinds in place of what was known before; what the watches showed since is newer."""
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
        """Create what these users' sets lack with one kubectl, and note what fails with the work that it fails.

        Of several servers that create for one user at once, the one whose Secret the cluster takes decides: what others
        made is alien to that Secret, is answered by nobody, and makes room again in `repair_group`.
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
                wanted += [(work, item) for item in self.template.fill(values) if item["kind"] in database.made]
        if not wanted:
            return
        metrics.add("creations_grouped", len(group))
        printed: set[str] = set()
        manifest = listed([item for _, item in wanted])
        try:
            for line in self.kubectl("create", "-f", "-", "--validate=false", "-o", "name", stdin=manifest, hide=passwords):
                printed.add(line.decode().strip())
            return
        except KubectlError as error:
            # kubectl prints the objects that it made and, in the order of the rest, an error for each.
            failed = [(work, item) for work, item in wanted if f"{KINDS[item['kind']]}/{work.database.name}" not in printed]
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
        """Read these users' objects by their names. One that is there without our labels fails its work. Raises KubectlError."""
        if not group:
            return
        known = self.known(work.database for work in group)
        names = [f"{KINDS[kind]}/{work.database.name}" for work in group for kind in reversed(self.kinds)]
        answer = b"".join(self.kubectl("get", *names, "--ignore-not-found", "-o", "json")) or b'{"items": []}'
        items = json.loads(answer)
        items = items.get("items", [items])
        with self.lock:
            ours = [item for item in items if OURS.items() <= (item["metadata"].get("labels") or {}).items()]
            self.take(known, ours)
            foreign = {item["metadata"]["name"]: item["kind"] for item in items if item not in ours}
            for work in group:
                if kind := foreign.get(work.database.name):
                    work.failure = ApiError(409, f"the cluster has a {kind} {work.database.name} without this playground's labels: use "
                                            "another user_id, or ask the maintainer to rename it, or to label it again if it was ours")

    def repair_group(self, group: list[Work]) -> None:
        """Delete, by uid, what was not made for the Secret that is there: nobody knows the password that it started with."""
        self.read(group)  # The three watches may show different moments.
        for work in group:
            with self.lock:
                lost = {kind: work.database.objects[kind] for kind in work.database.alien()}
                secret = work.database.objects.get("Secret")
                # Beside a Secret, two servers' creating and deleting crossed, which takes no longer than one kubectl; or
                # somebody replaced the Secret, and the data is in use.
                if secret and any(time.time() - item.created > KUBECTL_SECONDS for kind, item in lost.items() if kind != "Service"):
                    work.failure = work.failure or replaced(work.database)
                elif "PersistentVolumeClaim" in lost and not secret:
                    work.failure = work.failure or ApiError(
                        409, f"the Secret {work.database.name} was deleted, and the password of this user's data with it: the maintainer "
                        "can put it back; delete_db gives the data up")
            try:
                for kind, item in lost.items() if not work.failure else ():
                    log.warning(logfmt("repair", user=item.user_id, client=item.client, deletes=f"{KINDS[kind]}/{work.database.name}",
                                       uid=item.uid, reason="not made for the Secret that is there; any data in it is gone"))
                    if not item.leaving and self.delete_one(work.database, kind, item) and kind == "StatefulSet":
                        work.database.note_for = item.user_id, item.client
            except KubectlError as error:
                work.failure = error

    def delete_one(self, database: Database, kind: str, item: Seen, **preconditions: str) -> bool:
        """Delete an object unless it has become another one; return whether it was there. Raises KubectlError."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                   "preconditions": {"uid": item.uid, **preconditions}}
        try:
            b"".join(self.kubectl("delete", "--raw", f"{self.path(kind)}/{database.name}", "-f", "-", stdin=json.dumps(options).encode()))
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
        """Delete many users' databases. The table may be late: whose they are, and that there are none, is read afresh."""
        known = self.known(work.database for work in group)
        self.take(known, json.loads(b"".join(self.kubectl("get", self.resources, "-l", in_users(group), "-o", "json")))["items"])
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
        """Delete many users' objects that carry our labels, StatefulSets first, with one kubectl. Raises KubectlError."""
        if not group:
            return
        known = self.known(work.database for work in group)
        deleted = {line.decode().strip() for line in self.kubectl(
            "delete", self.resources, "-l", in_users(group), "--wait=false", "--ignore-not-found", "-o", "name")}
        for database, objects in known.items():
            found = {kind: item for kind, item in objects.items() if f"{KINDS[kind]}/{database.name}" in deleted}
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
            heard = [database for database in self.databases.values() if database.unwritten and "StatefulSet" in database.objects]
        if not self.write(heard):
            self.beats_written_at = time.time()

    def write(self, heard: list[Database]) -> KubectlError | None:
        """Write beats down; return why some could not be, but for those whose StatefulSet has gone."""
        failure: KubectlError | None = None
        beat = f"{LAST_BEAT}={rfc3339(time.time())}"
        for start in range(0, len(heard), BEATS_PER_KUBECTL):
            group = {f"{KINDS['StatefulSet']}/{database.name}": database for database in heard[start:start + BEATS_PER_KUBECTL]}
            manifest = listed([{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": database.name}}
                               for database in group.values()])
            for database in group.values():
                database.unwritten = False  # What is heard from here on is the next round's.
            try:
                for line in self.kubectl("annotate", "--overwrite", "-f", "-", beat, "-o", "name", stdin=manifest):
                    group.pop(line.decode().strip(), None)
            except KubectlError as error:
                failure = failure or (None if error.reason == "not found" else error)
                for database in group.values():  # What has gone meanwhile is not in the next round.
                    database.unwritten = True
        return failure

    def overdue(self, database: Database) -> bool:
        """Tell whether another server may be about to sweep a database: by what is written, its user has been idle for too long."""
        written = database.objects["StatefulSet"].last_beat
        return bool(self.idle_timeout) and is_time(written) and (
            time.time() - calendar.timegm(time.strptime(written, RFC_3339)) > self.idle_timeout)

    def keep_group(self, group: list[Work]) -> None:
        """Write down that the users of overdue databases are back: other servers may sweep these until then."""
        with self.lock:
            for work in group:
                work.database.hear()
        if failure := self.write([work.database for work in group]):
            raise failure
        self.read(group)  # What was swept before it has gone.

    def idle(self, database: Database) -> dict[str, Seen]:
        """Return what is to be deleted of a database whose user has not been heard of for too long, on any server."""
        # Two rounds more: in one the other server writes its beat, and in one this server sees it.
        limit = self.idle_timeout + 2 * self.sweep_interval
        if not self.idle_timeout or database.waiting or time.monotonic() - database.heard_at <= limit:
            return {}
        kept = {kind for kind, item in database.objects.items() if item.keep}
        # A claim's password stays with it, also one that was made from a template without a claim.
        kept |= {"Secret"} if "PersistentVolumeClaim" in kept else set()
        return {kind: item for kind, item in database.objects.items() if kind not in kept and not item.leaving}

    def submit_idle(self) -> None:
        """Have databases deleted that are idle, and what is left of half-made ones."""
        with self.lock:
            idle = [database for database in self.databases.values() if not database.work and self.idle(database)]
            for database in random.sample(idle, min(len(idle), SWEPT_PER_ROUND)):  # Not always the same first, should they fail.
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
                if stateful_set and not self.delete_one(work.database, "StatefulSet", stateful_set, resourceVersion=stateful_set.version):
                    continue
                for kind, item in doomed.items():
                    self.delete_one(work.database, kind, item)
                if stateful_set or doomed:
                    user_id, client = work.owner
                    metrics.add("databases_swept_total")
                    log.info(logfmt("sweep", user=user_id, client=client, last_beat=stateful_set.last_beat if stateful_set else "-"))

    def explain_group(self, group: list[Work]) -> None:
        """Find out why these users' databases are not ready, with one read of pods and one of events."""
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/"
        reasons: dict[str, ApiError] = {}  # By the database's name, or by the uid of its StatefulSet.

        def get(resource: str) -> list[dict[str, Any]]:
            answer = b"".join(self.kubectl("get", "--raw", path + resource, seconds=REASON_SECONDS / 2))
            items: list[dict[str, Any]] = json.loads(answer)["items"]
            return items
        with contextlib.suppress(KubectlError, ValueError, LookupError):
            for pod in get(f"pods?labelSelector={urllib.parse.quote(in_users(group))}"):
                reasons["mysql-" + pod["metadata"]["labels"][USER]] = NotReady(503, pod_reason(pod), Retry_After="10")
            if len(reasons) < len(group):
                for event in get("events?fieldSelector=involvedObject.kind%3DStatefulSet%2Creason%3DFailedCreate"):
                    if re.search("try again|being deleted", event.get("message", "")):
                        continue  # An old pod of that name has not gone yet; Kubernetes tries again by itself.
                    quota = "exceeded quota" in event.get("message", "")
                    reasons[event["involvedObject"]["uid"]] = NotReady(429, REASONS["quota"][1], Retry_After="60") if quota else NotReady(
                        503, "the cluster refuses the database's pod: its maintainer finds why with kubectl get events", Retry_After="30")
        for work in group:
            database, uids = work.database, [item.uid for item in work.database.objects.values()]
            going = "the old database has not gone yet" if database.leaving() else "the database is not ready yet"
            unknown = NotReady(503, f"{going}: ask again, the creation goes on", Retry_After="2")
            work.failure = next((reasons[key] for key in (database.name, *uids) if key in reasons), unknown)

    def check_template(self) -> None:
        """Have the API server validate the template once: a misspelt field passes in create_group, which skips that for speed."""
        with self.lock:
            self.synchronised.wait_for(self.observed)
        manifest = listed(self.template.fill({**EXAMPLE, "now": rfc3339(0)}))
        while "template" in self.unknown:
            try:
                b"".join(self.kubectl("create", "-f", "-", "--dry-run=server", "--validate=true", stdin=manifest))
                self.report("template", "")
            except KubectlError as error:
                # A right or room that is lacking may come, and each create_db tells; a wrong template stays wrong.
                passing = error.reason in ("quota", "forbidden", "exists")
                self.report("template", "" if passing else "template" if error.reason == "invalid" else error.reason)
                log.error(logfmt("template", path=self.template.path, error=error))
                time.sleep(WATCH_SECONDS if error.reason == "invalid" else WATCH_PAUSES_SECONDS[1])


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
    return ApiError(409, f"somebody replaced the Secret {database.name}, and the database may have another password: put the old one "
                    "back, or delete_db and create_db make the database anew, without its data")


def pod_reason(pod: dict[str, Any]) -> str:
    """Say why a pod is not ready, in Kubernetes' own words for the reason but none of its messages."""
    if "deletionTimestamp" in pod["metadata"]:
        return "the database's old pod does not go (Terminating): ask again; if it stays, its maintainer finds why with kubectl describe"
    status = pod.get("status", {})
    reasons = [condition.get("reason", "") for condition in status.get("conditions", []) if condition["type"] == "PodScheduled"]
    reasons += [container.get("state", {}).get("waiting", {}).get("reason", "") for container in status.get("containerStatuses", [])]
    reason = next((reason for reason in reasons if reason not in ("", "ContainerCreating", "PodInitializing")), "")
    if reason == "Unschedulable":
        return "the database is not ready, since no node of the cluster has room for it (Unschedulable): ask again later"
    if reason:
        return f"the database is not ready, since its container does not start ({reason}): its maintainer finds why with kubectl describe"
    return "the database is starting: ask again, its creation goes on"


# ---- Templates ----------------------------------------------------------------------------------------

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
PASSWORD = re.compile(r"[A-Za-z0-9_-]{24,}")  # What SQLFlow can paste anywhere without quoting it.
# Values no user can have, with which a template is tried.
EXAMPLE = {"name": "mysql-example--000000000000", "slug": "example--000000000000", "user_id": "an example", "client": "a client",
           "set": "0" * 16, "password": "0" * 32, "now": "a time"}


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
                self.objects: list[dict[str, Any]] = [item for item in yaml.safe_load_all(file) if item is not None]
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from error
        kinds = [item.get("kind") if isinstance(item, dict) else None for item in self.objects]
        self.kinds = [kind for kind in KINDS if kind in kinds]
        if sorted(map(str, kinds)) not in (sorted(KINDS), sorted(KINDS.keys() - {"PersistentVolumeClaim"})):
            raise ValueError("must hold one Secret, one Service, one StatefulSet, at most one PersistentVolumeClaim and nothing else, "
                             f"but holds {', '.join(map(str, kinds)) or 'nothing'}")
        self.objects.sort(key=lambda item: self.kinds.index(item["kind"]))
        labels = {**OURS, USER: "${slug}"}
        metadata = {"name": "${name}", "labels": labels, "annotations": {USER_ID: "${user_id}", CLIENT: "${client}", SET: "${set}"}}
        kept = {"metadata": {"annotations": {KEEP: "true"}}} if "PersistentVolumeClaim" in kinds else {}
        more: dict[str, Any] = {
            "Secret": {"stringData": {"password": "${password}"}, **kept}, "PersistentVolumeClaim": kept,
            "Service": {"spec": {"selector": labels}},
            "StatefulSet": {"metadata": {"annotations": {LAST_BEAT: "${now}"}},
                            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}}}
        for item in self.objects:
            for lack in (*lacks({"metadata": metadata}, item), *lacks(more[item["kind"]], item)):
                raise ValueError(f"lacks in its {item['kind']}: {lack}")
        try:
            json.dumps(self.fill(EXAMPLE), allow_nan=False)
        except KeyError as error:
            raise ValueError(f"has an unknown placeholder ${{{error.args[0]}}}: known are {', '.join(EXAMPLE)}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"has a value that JSON does not know, such as a date without quotes: {error}") from error

    def fill(self, values: dict[str, str]) -> list[dict[str, Any]]:
        """Return the objects with their placeholders filled in. Raises KeyError for one that is not among the values."""
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
    "quota": (r"exceeded quota", "the cluster's quota is used up: ask again when others have left, or ask the maintainer for more", 429),
    "exists": (r"\(AlreadyExists\)", "the object exists already", 409),
    "ending": (r"because it is being terminated", "the server's namespace is being deleted from the cluster: its maintainer must create "
               "it anew", 502),
    "unreachable": (r"connection refused|was refused|[Uu]nable to connect|i/o timeout|Client\.Timeout|TLS handshake timeout|"
                    r"deadline exceeded|no such host|no route to host|connection reset|: EOF|stream error|x509:|failed to download openapi|"
                    r"\((ServiceUnavailable|InternalError|TooManyRequests|ServerTimeout|Timeout)\)",
                    "the cluster does not answer: ask again", 503),
    "invalid": (r"\((Invalid|BadRequest)\)|\" is invalid:|error validating|strict decoding|error parsing",
                "the cluster refuses the database's objects as invalid: its maintainer must correct the template", 502),
    "forbidden": (r"\((Forbidden|Unauthorized)\)|must be logged in", "this server lacks a right in the cluster: "
                  "its maintainer must grant it", 502),
    "not found": (r"\(NotFound\)", "the server's namespace is not in the cluster: its maintainer must create it", 502),
    "conflict": (r"\(Conflict\)", "the object was changed meanwhile: ask again", 503),
    "expired": (r"\((Expired|Gone)\)", "the cluster's history is being read anew: ask again", 503),
    "starting": (r"(?!)", "this server does not know the cluster yet: ask again", 503),
    "template": (r"(?!)", "the cluster refuses this server's template: its maintainer must correct it, and start the server again", 502),
    "timeout": (r"(?!)", "the cluster does not answer in time: ask again", 503),
    "missing": (r"(?!)", "this server cannot run kubectl: its maintainer must see to it", 503),
    "failed": (r"", "the cluster failed to do this: its maintainer's log says why", 502),
}


class KubectlError(ApiError):
    """A kubectl that failed: the reason, one of REASONS, and its own words, for the log only."""

    def __init__(self, reason: str, words: str = "") -> None:
        _, message, status = REASONS[reason]
        super().__init__(status, message, **({"Retry_After": "60" if status == 429 else "5"} if status in (429, 503) else {}))
        self.reason, self.words = reason, words

    def __str__(self) -> str:
        return self.words or self.message

    def each(self, count: int) -> list[KubectlError]:
        """Return an error for each of so many objects that kubectl could not create, in their order."""
        parts = [part for part in re.split(r"^(?=Error from server|error: |The \w+ \")", self.words, flags=re.M)
                 if part.startswith(("Error from server", "error: ", "The "))]
        if len(parts) == count:
            return [KubectlError(why(part), part) for part in parts]
        # Nothing was sent to the server, or whose is whose is not known: then all may ask again.
        return [self if len(parts) < 2 and self.reason not in ("exists", "quota") else KubectlError("unreachable", self.words)] * count


def why(words: str) -> str:
    """Return the reason, of REASONS, that kubectl's words show."""
    return next(reason for reason, (pattern, _, _) in REASONS.items() if re.search(pattern, words))


def strike_out(words: str, passwords: Sequence[str]) -> str:
    """Return the words without any piece of four or more characters of a password or of its base64 forms.

    The API server quotes objects in some errors, cut anywhere.
    """
    forms = [form for password in passwords for form in (
        password, *(base64.b64encode(b"\0" * shift + password.encode()).decode()[2 * shift:] for shift in range(3)))]
    pieces = {form[start:start + 4] for form in forms for start in range(len(form) - 3)}
    return re.sub(r"[A-Za-z0-9_+/=-]{4,}", lambda match: "***" if any(
        match[0][start:start + 4] in pieces for start in range(len(match[0]) - 3)) else match[0], words)


class Kubectl:
    """Runs kubectl on one namespace."""

    def __init__(self, path: str, context: str, namespace: str) -> None:
        self.namespace = namespace
        self.command = [path, *([f"--context={context}"] if context else [])]
        # Linux can end a child with its parent, however that ends. setpriv comes with Debian; without
        # it, a watch ends at its next line, and any kubectl at its own time limit.
        setpriv = [shutil.which("setpriv") or "", "--pdeathsig", "KILL"]
        if setpriv[0] and subprocess.run([*setpriv, "true"], capture_output=True).returncode == 0:
            self.command = [*setpriv, *self.command]
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def stop(self) -> None:
        """End every kubectl, and start none any more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                kill(process)

    def __call__(self, *arguments: str, stdin: bytes = b"", seconds: float = KUBECTL_SECONDS, hide: Sequence[str] = ()) -> Iterator[bytes]:
        """Run kubectl and yield the lines it prints, as they come.

        `seconds` is its time limit and `hide` the passwords that its words must not show. Raises
        KubectlError when it fails or the time is up. Every kubectl of this server runs here.
        """
        started, outcome, said = time.monotonic(), "ok", ""
        try:
            with tempfile.TemporaryFile() as words, self.start(arguments, words) as process:
                killer = threading.Timer(seconds, kill, [process])
                killer.daemon = True
                try:
                    killer.start()
                    assert process.stdin and process.stdout
                    with contextlib.suppress(BrokenPipeError), process.stdin:
                        process.stdin.write(stdin)  # kubectl reads it whole before it prints.
                    yield from process.stdout
                    if process.wait():
                        words.seek(0)
                        # Newer kubectls repeat in klog's format, five times, that they cannot connect.
                        said = "".join(line for line in words.read().decode(errors="replace").splitlines(True) if "memcache.go" not in line)
                        killed, missing = process.returncode < 0, process.returncode in (126, 127)
                        outcome = "timeout" if killed else "missing" if missing else why(said)
                finally:
                    killer.cancel()
                    kill(process)
                    with self.lock:
                        self.running.discard(process)
        except (OSError, RuntimeError) as error:  # No process, thread, file or memory to be had.
            outcome, said = "missing", str(error)
        said = strike_out(said, hide)
        target, _, query = next((argument for argument in arguments[1:] if argument[0] != "-" and argument != "name"), "-").partition("?")
        verb = "watch" if "&watch=1" in query else arguments[0]
        taken = time.monotonic() - started
        metrics.add("kubectl_seconds", taken, verb=verb, outcome=outcome)
        log.log(logging.INFO if outcome in ("ok", "exists", "not found", "conflict") else logging.WARNING, logfmt(
            "kubectl", verb=verb, target=target, outcome=outcome, ms=taken * 1000, **({"said": said} if said else {})))
        if outcome != "ok":
            raise KubectlError(outcome, said)

    def start(self, arguments: Sequence[str], words: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start kubectl, its own words going to a file. Raises OSError if it cannot be started."""
        command = [*self.command, *([f"--namespace={self.namespace}"] if self.namespace else []), *arguments]
        with self.lock:
            if self.stopped:
                raise OSError("this server is stopping")
            # A group of its own, so that it ends together with the credential helpers it may start.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, start_new_session=True)
            self.running.add(process)
            return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process's group, unless the process was waited for and its number may be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)


# ---- The command line ---------------------------------------------------------------------------------

def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; dashes in the options' names work for underscores."""
    parser = argparse.ArgumentParser(prog="sqlflow_playground", description="Give every user of a SQLFlow playground a database "
                                     "in its Kubernetes cluster, over mutual TLS.")

    def option(name: str, default: Any, text: str, shown: str = "", **more: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, default=default, help=f"{text} (default: {shown or default})", **more)

    option("host", "0.0.0.0", "address to listen on; :: for IPv6")
    option("port", 50052, "TCP port to listen on; 0 for any free one", type=int)
    option("ca_crt", "key_store/ca/ca.crt", "PEM file: the CA whose clients are let in")
    option("server_key", "key_store/server/server.key", "PEM file: this server's private key, not encrypted")
    option("server_crt", "key_store/server/server.crt", "PEM file: this server's certificate")
    option("crl", "", "PEM file: the CA's list of revoked certificates", shown="none: no certificate is revoked")
    option("namespace", "", "namespace for the databases", shown="kubectl's own")
    option("context", "", "context of the kubeconfig", shown="kubectl's own")
    option("kubectl", "kubectl", "kubectl program, 1.20 or later")
    option("templates", os.path.join(os.path.dirname(os.path.abspath(__file__)), "k8s_templates"), "folder of the templates")
    option("db_template", "mysql.yaml", "template of a database, in that folder")
    option("idle_timeout", 12 * 3600.0, "seconds without a heart beat after which a database is deleted; 0 for never", type=seconds)
    option("sweep_interval", 60.0, "seconds between two rounds of writing heart beats down and deleting what is idle", type=seconds)
    option("max_databases", 1000, "databases in the namespace, all clients' together; 0 for no limit", type=int)
    option("max_databases_per_client", 0, "databases of one client; 0 for no limit", type=int)
    option("max_connections_per_client", MAX_CONNECTIONS_PER_CLIENT, "connections of one client at once", type=int)
    option("ready_file", "", "file that is made once the cluster is known, for a readiness probe", shown="none")
    parser.add_argument("--check", action="store_true", help="try all that the server needs, print a line for each, and exit with 0 or 1")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(arguments)


def seconds(text: str) -> float:
    """Read a number of seconds from the command line. Raises ValueError."""
    value = float(text)
    if not 0 <= value <= 1e8:
        raise ValueError
    return value


def find_template(options: argparse.Namespace) -> Template:
    """Return the template that new databases are made from. Raises Refusal."""
    path = os.path.join(options.templates, options.db_template)
    with blaming(f"the template {path} cannot be used", "see --templates and --db_template, and compare it with k8s_templates/mysql.yaml"):
        return Template(path)


def find_tls_files(options: argparse.Namespace) -> dict[str, str]:
    """Return the paths of the TLS files by their options' names."""
    return {name: getattr(options, name) for name in ("ca_crt", "server_key", "server_crt", "crl")}


def find_kubectl(options: argparse.Namespace) -> Kubectl:
    """Return kubectl for the namespace and the context. Raises Refusal."""
    program = shutil.which(options.kubectl)
    if not program:
        raise Refusal(f"--kubectl {options.kubectl} is no program", "install kubectl (https://kubernetes.io/docs/tasks/tools/), or name it")
    options.kubectl = program
    return Kubectl(program, options.context, find_namespace(options))


def find_namespace(options: argparse.Namespace) -> str:
    """Return the namespace that kubectl itself would use. Raises Refusal."""
    inside = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    namespace: str = options.namespace
    try:
        if not namespace or options.context:  # Which must be there.
            own = b"".join(Kubectl(options.kubectl, options.context, "")(
                "config", "view", "--minify", "-o", "jsonpath={.contexts[0].context.namespace}", seconds=5)).decode()
            namespace = namespace or own
    except KubectlError as error:
        if options.context or "current-context must exist" not in error.words:  # There is none in a pod, which is no error.
            words = " ".join(error.words.split()) or error.reason
            raise Refusal(f"kubectl config view failed ({words})", "give --namespace, and a --context that kubectl knows") from error
    if not namespace and os.path.exists(inside):
        with open(inside, encoding="utf-8") as file:
            namespace = file.read().strip()
    namespace = namespace or "default"
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", namespace):
        raise Refusal(f"--namespace {namespace!r} is no namespace", "expected up to 63 lower-case letters, digits and dashes")
    return namespace


def check(options: argparse.Namespace) -> int:
    """Try all that the server needs, and print a line for each with what to do; return 0 if nothing is wrong, otherwise 1."""
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
        return b"".join(kubectl(*arguments, stdin=stdin)).decode().strip()

    def attempt(what: str, *arguments: str, stdin: bytes = b"", remedy: str = "") -> str:
        try:
            answer = ask(*arguments, stdin=stdin)
        except KubectlError as error:
            words = next(iter(error.words.splitlines()), error.message)
            say(what, f"{words}; {remedy or error.message.rpartition(': ')[2]}")
            return ""
        say(what)
        return answer

    tls_files = find_tls_files(options)
    if tls := prepare(lambda _: load_tls(tls_files)):
        for name, expiry in tls.expiries.items():
            days = int((expiry - time.time()) // 86400)
            say(f"{tls_files[name]} ends in {days} days", "renew it with gen_cert.sh" if days < EXPIRY_WARNING_SECONDS / 86400 else "")
        try:
            names = ", ".join(name for _, name in presented(tls, tls_files["ca_crt"]).get("subjectAltName", ()))
            say(f"{tls_files['server_crt']} is a server's, of the CA in {tls_files['ca_crt']}, for {names}")
        except ssl.SSLError as error:
            say(tls_files["server_crt"], f"clients would refuse it ({why_refused(error)}); make it with gen_cert.sh server")
    template: Template | None = prepare(find_template)
    kubectl: Kubectl = prepare(find_kubectl)
    if not kubectl:
        return 1
    if version := attempt("kubectl runs", "version", "--client", "-o", "json"):
        client = json.loads(version)["clientVersion"]
        old = (int(client["major"]), int(re.sub(r"\D.*", "", client["minor"]))) < OLDEST_KUBECTL
        say(f"kubectl is {client['gitVersion']}", "install 1.20 or later" if old else "")
    version = attempt("the cluster answers", "get", "--raw", "/version", remedy="see that kubectl get pods works, or name the --context")
    if not version:
        return 1
    say(f"the cluster is Kubernetes {json.loads(version)['gitVersion']}")
    for kind, verbs in {**RIGHTS, **(CLAIM_RIGHTS if template and "PersistentVolumeClaim" in template.kinds else {})}.items():
        for verb in verbs:
            problem = ""
            try:
                ask("auth", "can-i", verb, kind)
            except KubectlError as error:  # To say no is a failure to kubectl.
                problem = "grant it, as k8s_templates/playground.yaml does" if error.reason == "failed" else error.message
            say(f"right to {verb} {kind}", problem)
    made = template and attempt(
        f"namespace {kubectl.namespace} takes the objects of {template.path}",
        "create", "-f", "-", "--dry-run=server", "--validate=true", "-o", "jsonpath={.metadata.creationTimestamp} ",
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
            print(f"-      {what}: not looked at, which needs the right to get and list {kind.partition('/')[0]} ({error.reason})")
            continue
        if what == "sample data" and not found:
            print("-      sample data: none, so databases start empty; for the tutorials' tables apply the ConfigMap of playground.yaml")
        elif what == "sample data":
            say("sample data is there")
        for item in found.get("items", ()):
            limits, used = item["status"].get("hard", {}), item["status"].get("used", {})
            full = [name for name, hard in limits.items() if quantity(used.get(name, "0")) >= quantity(hard)]
            say(f"quota {item['metadata']['name']}: " + ", ".join(f"{name} {used.get(name, 0)} of {hard}" for name, hard in limits.items()),
                f"nothing is left of {', '.join(full)}; raise it, or delete databases" if full else "")
        if what == "quota" and not found.get("items"):
            say("quota: none")
    return 1 if wrong else 0


def quantity(text: str) -> float:
    """Return the number that a quantity stands for (Kubernetes API, "Quantity")."""
    number, suffix = re.fullmatch(r"([-+.0-9]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]*)", text).groups()  # type: ignore[union-attr]
    scale = 1024 if suffix.endswith("i") else 1000
    return float(number) * float(scale) ** ("num kMGTPE".find(suffix[0].replace("K", "k")) - 3 if suffix else 0)


def presented(tls: Tls, ca_crt: str) -> dict[str, Any]:
    """Return the server's certificate as a client sees it that trusts the CA. Raises ssl.SSLError if it would refuse it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=ca_crt)
    context.check_hostname = False
    server, client = tls.context.wrap_bio(to_server, to_client, server_side=True), context.wrap_bio(to_client, to_server)
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
    """Start, serve and end as the options say; return the exit status. Raises Refusal."""
    if options.check:
        return check(options)
    template, tls_files = find_template(options), find_tls_files(options)
    load_tls(tls_files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with blaming(f"only {hard} open files are allowed", f"start it after ulimit -n {MAX_OPEN_FILES}"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MAX_OPEN_FILES) if soft >= 0 else soft, hard))
    kubectl = find_kubectl(options)
    if options.ready_file:
        with blaming(f"--ready_file {options.ready_file} cannot be made", "name a file in a folder that this server may write"):
            open(options.ready_file, "w", encoding="utf-8").close()
            os.remove(options.ready_file)  # A server before this one may have left it.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # No line shows these, and finding them out takes as long as writing it (the logging HOWTO's Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    cluster = Cluster(kubectl, template, options.max_databases, options.max_databases_per_client,
                      options.idle_timeout, options.sweep_interval)
    try:
        server = Server((options.host, options.port), tls_files, cluster, options.max_connections_per_client, options.ready_file)
    except (OSError, OverflowError) as error:
        raise Refusal(f"cannot listen on --host {options.host} --port {options.port} ({error})",
                      "name an address of this machine and a free port") from error
    # Any thread may be given the signal, and would not wake this one from anything but reading a file.
    signalled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    cluster.start()
    server.leader.start()
    threading.Thread(target=server.keep_house, name="keep house", daemon=True).start()
    server.listen()
    log.info(logfmt("start", version=__version__, host=server.server_address[0], port=server.server_port, client_ca=options.ca_crt,
                    crl=options.crl or "none", certificate_ends=rfc3339(server.tls.expiries["server_crt"]),
                    context=options.context or "current", namespace=kubectl.namespace, template=template.path,
                    idle_timeout=f"{options.idle_timeout:.0f}s" if options.idle_timeout else "never"))
    while os.read(signalled, 1) == bytes([signal.SIGHUP]):
        server.reload()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # The next one ends the server at once.
    log.info(logfmt("stop", seconds=STOP_SECONDS))
    deadline = time.monotonic() + STOP_SECONDS
    last = threading.Timer(STOP_SECONDS + LAST_BEATS_SECONDS, kubectl.stop)
    last.daemon = True
    last.start()
    server.stop()
    cluster.write_beats()
    while (server.clients or server.strangers) and time.monotonic() < deadline:
        time.sleep(0.02)
    cluster.write_beats()
    server.refusals.flush(everything=True)
    kubectl.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
