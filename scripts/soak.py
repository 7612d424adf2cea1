"""Soak two servers on one namespace: users and faults at random, and a look at what they leave."""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import http.client
import json
import math
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from siege import burden

import playground
from tests import harness as test

USERS, CLIENTS, SPARES = 120, ("alice", "bob", "carol", "dave"), 6
# The servers' idle timeout and rounds: so short that many are swept, and so long that two cores can write the
# beats.
IDLE_SECONDS, ROUND_SECONDS = 30.0, 3.0
# Who was heard of within this keeps the database. It is less than the idle timeout by what a beat may take to
# the other server when its kubectl is slow, stopped or killed; and kill -9 loses the beats of so long.
KEPT_SECONDS, LOST_SECONDS = 15.0, 10.0
# Until a change shows in the other server's table; and until it does after a watch was killed.
LAG_SECONDS, RELIST_SECONDS = 3.0, 10.0
# For so long a delete_db that was not answered may still be carried out: two kubectls, one after the other.
DOUBT_SECONDS = 2 * playground.KUBECTL_SECONDS
# The plug-in hangs up after the first; who keeps asking has a database after the second, whatever fails
# meanwhile.
ANSWER_SECONDS, SERVED_SECONDS = 20.0, 120.0
# A bare kubectl that takes longer says that the machine is too slow for these two, and not the servers.
SLOW_SECONDS, GAUGE_SECONDS = 1.0, 3.0
# Between two faults, on average; and how long one may be the reason for a 503.
FAULT_SECONDS, EXCUSE_SECONDS = 2.0, 45.0
SLACK_SECONDS = 60.0  # For what is due on a busy machine: the sweep deletes 30 a round.
# Until the cluster holds what it must once faults are over: who went is idle, half a spare is garbage, and
# spares that failed are made again after a pause, of which the second takes two minutes.
TIDY_SECONDS = max(IDLE_SECONDS + 4 * ROUND_SECONDS, playground.HALF_A_SPARE_SECONDS, 180) + SLACK_SECONDS
# A server's memory is level after this, and half the run: all connections have been there. A shorter run says
# nothing of it.
LEVEL_SECONDS, MAX_GROWTH_MB = 150.0, 10
# How often each fault, beside the others.
FAULTS = {"kubectl killed": 6, "kubectl stopped": 2, "watch killed": 3, "watch stopped": 2, "server ended": 2,
          "server stopped": 1, "Pod deleted": 5, "Pod evicted": 5, "Secret deleted": 4}
STATUSES = {"create_db": (200, 503), "delete_db": (200, 503), "heart_beat": (200,), "list_db": (200, 503)}
PATHS = {"Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
         "Secret": "/api/v1/namespaces/{}/secrets",
         "Pod": "/api/v1/namespaces/{}/pods"}


class Server:
    """One of the two: a process at a time, on the same port."""

    def __init__(self, name: str) -> None:
        self.name, self.port, self.late_until = name, 0, 0.0  # Until when its table may be late.
        self.resumed_at = 0.0  # From SIGSTOP; infinite until then.
        self.runs: list[test.Running] = []
        self.restarting = threading.Lock()

    def start(self) -> None:
        """Start a process."""
        options = (f"--port={self.port}", f"--idle_timeout={IDLE_SECONDS}",
                   f"--sweep_interval={ROUND_SECONDS}", f"--spare_databases={SPARES}")
        self.runs.append(test.Running(*options, python=()))
        self.port = self.runs[-1].port

    def kubectls(self) -> dict[int, str]:
        """Return what each of its kubectls does."""
        return {pid: what for pid in test.descendants(self.runs[-1].process.pid) if (what := kubectl(pid))}


def kubectl(pid: int) -> str:
    """Return what a kubectl of a server was asked to do; empty if the process is none or has gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
        program, _, arguments = file.read().replace("\0", " ").partition(f" --namespace={test.namespace} ")
        return "" if "playground.py" in program else arguments
    return ""


class Past:
    """What one database has ever been, by the API server's own word."""

    def __init__(self) -> None:
        self.password = self.user = ""  # The slug that its Secret names: once set, for ever.
        self.pod = ""  # The uid: there is never a second one.
        self.holders: set[str] = set()  # Slugs of the leases that ever named it.
        self.harmed_at = math.inf  # When somebody last took something of it by hand.


class Ledger:
    """What the API server itself says of leases and databases, past the servers and over time."""

    def __init__(self, soak: Soak) -> None:
        self.soak, self.lock = soak, threading.Lock()
        self.objects: dict[str, dict[str, Any]] = {kind: {} for kind in PATHS}
        self.pasts: dict[str, Past] = collections.defaultdict(Past)  # By what a database is called,
        self.names: dict[str, str] = {}  # and that by its password.
        self.gauged: collections.deque[tuple[float, float]] = collections.deque(maxlen=100)
        # The way to the cluster past the servers.
        self.proxy = subprocess.Popen(["kubectl", f"--kubeconfig={test.KUBECONFIG}", "proxy", "--port=0"],
                                      stdout=subprocess.PIPE)
        assert self.proxy.stdout
        self.port = int(re.findall(rb":(\d+)", self.proxy.stdout.readline())[0])

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """Ask the API server; the answer's last byte closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path.format(test.namespace), body and json.dumps(body), {
            "Connection": "close", "Content-Type": "application/merge-patch+json"})
        return connection.getresponse()

    def get(self, path: str) -> Any:
        """Read from the API server; None if it is not there."""
        with self.ask("GET", path) as response:
            answer = json.loads(response.read())
        assert response.status in (200, 404), answer
        return answer if response.status == 200 else None

    def listing(self, kind: str) -> dict[str, Any]:
        """Read all of a kind that is not being deleted, by name; but for Kubernetes' own Secrets."""
        return {item["metadata"]["name"]: {**item, "kind": kind} for item in self.get(PATHS[kind])["items"]
                if "deletionTimestamp" not in item["metadata"]
                and item["metadata"]["name"].startswith(("mysql-", "user-"))}

    def objects_of(self, slug: str) -> dict[str, dict[str, Any]]:
        """Read a user's lease and what it names; return them by kind and name."""
        lease = self.get(f"{PATHS['Lease']}/user-{slug}")
        found: dict[str, dict[str, Any]] = {"Lease": {f"user-{slug}": lease}, "Secret": {}, "Pod": {}}
        for kind in ("Secret", "Pod") if lease else ():
            name = lease["spec"]["holderIdentity"]
            found[kind][name] = self.get(f"{PATHS[kind]}/{name}")
        return found

    def watch(self, kind: str) -> None:
        """Take what happens to a kind as it happens, as a thread, until all is over."""
        version = ""
        while not self.soak.over.is_set():
            if not version:
                listing = self.get(PATHS[kind])
                version = listing["metadata"]["resourceVersion"]
                for item in listing["items"]:
                    self.take(kind, "ADDED", {**item, "kind": kind})
            with contextlib.suppress(OSError, http.client.HTTPException), \
                    self.ask("GET", f"{PATHS[kind]}?watch=1&resourceVersion={version}&timeoutSeconds=60"
                             ) as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    self.take(kind, event["type"], event["object"])

    def gauge(self) -> None:
        """Measure how long a bare kubectl takes, as a thread, until all is over."""
        while not self.soak.over.wait(GAUGE_SECONDS):
            self.gauged.append((time.monotonic(), math.inf))
            subprocess.run(["kubectl", f"--kubeconfig={test.KUBECONFIG}", "get", "--raw", "/version"],
                           capture_output=True, check=False)
            began = self.gauged.pop()[0]
            self.gauged.append((began, time.monotonic() - began))

    def slow(self, since: float) -> bool:
        """Tell whether the machine or the API server was too slow for any promise of times."""
        now = time.monotonic()
        return any(min(taken, now - began) > SLOW_SECONDS for began, taken in list(self.gauged)
                   if began + min(taken, now - began) > since)

    def take(self, kind: str, event: str, item: dict[str, Any]) -> None:
        """Take one object's change, and see that it is one that may be."""
        name, soak = item["metadata"]["name"], self.soak
        if not name.startswith(("mysql-", "user-")):
            return
        with self.lock:
            was = self.objects[kind].pop(name, None)
            if event != "DELETED":
                self.objects[kind][name] = item
            if kind == "Lease":
                holder, slug = item["spec"]["holderIdentity"], name.partition("-")[2]
                self.pasts[holder].holders.add(slug)
                if not was or event == "DELETED" or was["spec"]["holderIdentity"] != holder:
                    soak.tell(slug, f"{event} {name} of {holder}, renewed at {item['spec']['renewTime']}")
                return
            past = self.pasts[name]
        if kind == "Pod":
            past.pod = past.pod or item["metadata"]["uid"]
            if past.pod != item["metadata"]["uid"]:
                soak.wrong(f"{name} got another Pod", past.user)
            if event == "DELETED" or not was:
                soak.tell(past.user, f"{event} Pod {name} {item['status'].get('reason', '')}")
            return
        user, password = playground.user_of(item), playground.password_in(item)
        self.names[password] = name
        first, past.password = past.password or password, password
        before, past.user = past.user, past.user or user
        if event == "DELETED" or not was or before != user:
            soak.tell(user, f"{event} Secret {name}")
        if first != password:
            soak.wrong(f"{name} got another password", user)
        if before not in ("", user):
            soak.wrong(f"{name} was {before}'s, and now it is {user or 'nobody'}'s", before)
        if not before and user and past.holders - {user}:
            soak.count("databases given that another's lease had named, but not the Secret")


class Soak:
    """The servers, the faults that befall them, and what came of it."""

    def __init__(self, seed: int) -> None:
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.servers = [Server("A"), Server("B")]
        # Who lost the last beats that it heard, or had them to itself: from and until when.
        self.deaf: list[tuple[test.Running, float, float]] = []
        self.faults: collections.deque[tuple[float, str]] = collections.deque(maxlen=200)
        self.last_fault = 0.0
        self.owners: dict[str, User] = {}  # Whose the database is that has this password.
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest: dict[str, float] = collections.defaultdict(float)
        self.burdens: dict[tuple[str, str], dict[str, int]] = {}
        self.wrongs: list[str] = []
        self.ending, self.over = threading.Event(), threading.Event()
        self.judged = False  # Else the soak was broken off.
        self.tls = {client: test.tls(client) for client in CLIENTS}
        self.users = [User(self, number, seed) for number in range(USERS)]
        threading.excepthook = lambda failure: self.wrong("".join(traceback.format_exception(*failure[:3])),
                                                          failure.thread)
        self.by_slug = {user.slug: user for user in self.users}
        self.ledger = Ledger(self)

    def count(self, what: str, seconds: float = 0) -> None:
        """Count what happened, and note how long it took at most."""
        with self.lock:
            self.counts[what] += 1
            self.longest[what] = max(self.longest[what], seconds)

    def tell(self, slug: str, what: str) -> None:
        """Note what the API server says of a user, for the story."""
        if user := self.by_slug.get(slug):
            user.history.append((time.time(), f"  cluster: {what}"))

    def wrong(self, what: str, user: object = None) -> None:
        """Note something wrong, and print what led to it."""
        events, whose = [(at, f"    {fault}") for at, fault in list(self.faults) if at > time.time() - 90], ""
        user = self.by_slug.get(user) if isinstance(user, str) else user
        if isinstance(user, User):
            events, whose = sorted([*events, *list(user.history)]), f"{user.user_id} of {user.client}: "
        with self.lock:
            self.wrongs.append(what)
            print(f"WRONG {whose}{what}", flush=True)
            for at, event in events if len(self.wrongs) <= 10 else ():
                print(f"  {time.strftime('%T', time.gmtime(at))}.{int(at % 1 * 1000):03} {event}", flush=True)

    # -- faults

    def disturb(self, seconds: float) -> None:
        """Let faults happen. Server A is restarted in the first third only, so that its memory tells."""
        started, restarts = time.monotonic(), []
        while (now := time.monotonic() - started) < seconds:
            if now > max(seconds / 2, LEVEL_SECONDS) and ("A", "level") not in self.burdens:
                self.measure("level")
            time.sleep(min(self.random.expovariate(1 / FAULT_SECONDS), 10.0))
            server = self.random.choice(self.servers)
            kind = self.random.choices(list(FAULTS), list(FAULTS.values()))[0]
            if server.restarting.locked():
                continue
            if (status := server.runs[-1].process.poll()) is not None:
                raise AssertionError(f"server {server.name} ended by itself, with {status}")
            if kind.startswith(("kubectl", "watch")):
                self.strike(server, kind)
            elif not kind.startswith("server"):
                self.harm(*kind.split())
            elif kind == "server stopped":
                restarts.append(threading.Thread(target=self.suspend, args=(server,), daemon=True))
                restarts[-1].start()
            elif server is not self.servers[0] or now < seconds / 3:
                number = self.random.choice((signal.SIGKILL, signal.SIGTERM))
                restarts.append(threading.Thread(target=self.restart, args=(server, number), daemon=True))
                restarts[-1].start()
        for restart in restarts:
            restart.join()

    def fault(self, server: Server | None, kind: str, what: str = "") -> None:
        """Note a fault that is about to happen."""
        self.last_fault = time.monotonic()
        self.faults.append((time.time(), f"{server.name if server else '-'} {kind} {what}"))
        self.count(f"fault: {kind}")

    def strike(self, server: Server, kind: str) -> None:
        """Kill or stop the next kubectls that are no watches, or some watches."""
        found: list[tuple[int, str]] = []
        end = time.monotonic() + 3
        while not found and time.monotonic() < end:
            found = [(pid, what)
                     for pid, what in server.kubectls().items() if ("watch=1" in what) == ("watch" in kind)]
        for pid, what in self.random.sample(found, self.random.randint(1, len(found))) if found else ():
            # Stopped, it is as if the API server had become a black hole. After the longest of these the
            # server ends it.
            longest = playground.WATCH_SECONDS + playground.WATCH_GRACE_SECONDS
            seconds = self.random.choice((2, 5, 10, *((20, longest) if "watch" in kind else ())))
            seconds = seconds if "stop" in kind else 0
            if "get --raw" in what:
                server.late_until = max(server.late_until, time.monotonic() + seconds + RELIST_SECONDS)
            self.fault(server, kind,
                       f"{what.partition('?')[0][:120]} {f'for {seconds} s' if seconds else ''}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if seconds else signal.SIGKILL)
            if seconds:
                threading.Thread(target=self.release, args=(pid, seconds), daemon=True).start()

    def release(self, pid: int, seconds: float) -> None:
        """Let a kubectl that was stopped go on after a while."""
        self.ending.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            if kubectl(pid):
                os.kill(pid, signal.SIGCONT)

    def harm(self, kind: str, how: str) -> None:
        """Take something from a database by hand, as a maintainer does, or the node that is out of room."""
        with self.ledger.lock:
            names = [name for name, item in self.ledger.objects[kind].items()
                     if kind == "Secret" or playground.seen_of(item).ready]  # type: ignore[union-attr]
        if not names:
            return
        name = self.random.choice(sorted(names))
        past = self.ledger.pasts[name]
        past.harmed_at = time.monotonic()
        self.fault(None, f"{kind} {how}", f"{name} of {past.user or 'nobody'}")
        if user := self.by_slug.get(past.user):
            user.struck_at = past.harmed_at
        status = {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}}
        path = f"{PATHS[kind]}/{name}"
        with self.ledger.ask("DELETE", path) if how == "deleted" \
                else self.ledger.ask("PATCH", f"{path}/status", status) as response:
            response.read()
        assert response.status in (200, 202, 404), response.status

    def suspend(self, server: Server) -> None:
        """Have a server not run for a while, as on a machine that sleeps."""
        with server.restarting:
            process = server.runs[-1].process
            seconds = self.random.choice((2.0, 5.0, 15.0, IDLE_SECONDS + 10))
            self.fault(server, "server stopped", f"for {seconds:.0f} s")
            server.late_until = server.resumed_at = math.inf
            self.deaf.append((server.runs[-1], time.monotonic(), time.monotonic() + seconds + LOST_SECONDS))
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)
            server.resumed_at = time.monotonic()
            server.late_until = server.resumed_at + RELIST_SECONDS
            self.fault(server, "server resumed")

    def restart(self, server: Server, number: signal.Signals) -> None:
        """End a server and start it again."""
        with server.restarting:
            self.fault(server, f"server ended by {number.name}")
            if number == signal.SIGKILL:
                self.deaf.append((server.runs[-1], time.monotonic(), math.inf))
            self.end(server, number)
            time.sleep(self.random.uniform(0, 2))
            server.start()
            self.fault(server, "server started")

    def end(self, server: Server, number: signal.Signals) -> None:
        """End a server, and see that it leaves nothing behind."""
        process, kubectls = server.runs[-1].process, server.kubectls()
        process.send_signal(number)
        status = process.wait(playground.STOP_SECONDS + playground.LAST_BEATS_SECONDS + SLACK_SECONDS)
        test.servers.discard(process.pid)
        if status != (0 if number == signal.SIGTERM else -number):
            self.wrong(f"server {server.name} ended with {status} at {number.name}")
        time.sleep(1)
        if left := list(filter(None, map(kubectl, kubectls))):
            self.wrong(f"server {server.name} left behind: {left}")

    # -- the end

    def judge(self) -> None:
        """Hold the cluster against what users were told, once faults are over and the idle had time to go."""
        self.ending.set()
        for server in self.servers:
            server.runs[-1].known()
        time.sleep(RELIST_SECONDS)
        for server in self.servers:
            server.late_until = 0
        began, found = time.monotonic(), [("", "nothing was looked at", "")]
        while found and time.monotonic() < began + TIDY_SECONDS:
            time.sleep(1)
            found = list(self.find_fault())
        self.counts["seconds until the cluster was tidy"] = round(time.monotonic() - began)
        for what, name, slug in found:
            self.counts[what] += 1
            self.wrong(f"{what}: {name}", slug)

    def find_fault(self) -> Iterator[tuple[str, str, str]]:
        """Yield what the cluster holds that it must not, and what it lacks: what, its name, whose."""
        # Secrets first and leases last, as they are written the other way round.
        secrets, pods, leases = (self.ledger.listing(kind) for kind in ("Secret", "Pod", "Lease"))
        entitled = {user.slug: user for user in self.users if user.here}
        self.counts["users entitled to a database"] = len(entitled)
        self.counts["databases and spares in the cluster"] = len(secrets)
        named = {lease["spec"]["holderIdentity"] for lease in leases.values()}
        spares = {name for name, secret in secrets.items()
                  if name in pods and name not in named and not playground.user_of(secret)}
        for slug, user in entitled.items():
            if mismatch := user.mismatch({"Lease": leases, "Secret": secrets, "Pod": pods}, user.told):
                yield "entitled users whose database is not what they were told, or lost", mismatch, slug
        for name in leases:
            if (slug := name.partition("-")[2]) not in entitled:
                yield "leases past their idle time", name, slug
        for name in (secrets.keys() | pods.keys()) - named - spares:
            yield "orphan objects", f"{'Secret ' * (name in secrets)}{'Pod ' * (name in pods)}{name}", ""
        ready = [server.runs[-1].call("alice", "status")[1].get("spares_ready") for server in self.servers]
        if {len(spares), *ready} != {SPARES}:
            yield "spares too many or too few", f"{len(spares)}, ready say the servers: {ready}", ""

    def measure(self, when: str) -> None:
        """Note the servers' burdens."""
        for server in self.servers:
            self.burdens[server.name, when] = {**burden(server.runs[-1]), "kubectls": len(server.kubectls())}

    def rest(self) -> None:
        """See that the servers become what they were at the start when there is nothing to do."""
        deadline, more = time.monotonic() + SLACK_SECONDS, {""}
        while more and time.monotonic() < deadline:
            time.sleep(0.1)
            self.measure("end")
            more = {f"server {name} has more {what} than at the start"
                    for (name, when), start in self.burdens.items() if when == "start"
                    for what in ("threads", "files", "kubectls")
                    if self.burdens[name, "end"][what] > start[what]}
        level = self.burdens.get(("A", "level"))
        if level and self.burdens["A", "load"]["MB"] > level["MB"] + MAX_GROWTH_MB:
            more.add("server A's memory grew")
        for what in more:
            self.wrong(what)

    def read_logs(self) -> None:
        """Look for what should not be in the logs, and count what the servers did."""
        secret = {shown for one in self.ledger.names
                  for shown in (one, base64.b64encode(one.encode()).decode())}
        for line in (line for server in self.servers for run in server.runs
                     for line in run.log().splitlines()):
            if "Traceback" in line or "level=" not in line:
                self.wrong(f"a log says: {line}")
            if leaked := secret.intersection(re.findall(r"[0-9a-f]{32}|[A-Za-z0-9+/]{43}=", line)):
                self.wrong(f"a log shows the password {leaked} in: {line}")
            for what in ("sweep user=", "spare outcome=failed", "cluster outcome=lost", "kubectl verb="):
                self.counts[f"lines of the logs: {what}"] += f" event={what}" in line


class User(threading.Thread):
    """One user, who comes and goes at random, and knows what to expect."""

    def __init__(self, soak: Soak, number: int, seed: int) -> None:
        self.user_id = f"user-{number}" if number % 5 else f"Üser_{number}"
        self.slug = playground.slug(self.user_id)
        super().__init__(name=self.user_id, daemon=True)
        self.soak, self.client = soak, CLIENTS[number % len(CLIENTS)]
        self.random = random.Random(f"{seed} {number}")
        self.connections: dict[tuple[str, str], http.client.HTTPSConnection] = {}
        self.history: collections.deque[tuple[float, str]] = collections.deque(maxlen=100)
        self.here = False  # Has a database and keeps beating.
        self.struck_at = -math.inf  # When a database of this one's was harmed by hand.
        self.told = ""  # The data source.
        self.deleted: set[str] = set()  # Earlier ones.
        # With who heard each.
        self.beats: collections.deque[tuple[float, test.Running]] = collections.deque(maxlen=50)
        # Whether a table that was not late told it, and the user was heard of ever since; from when on every
        # server knows.
        self.sure, self.settled_at = False, -math.inf

    def call(self, api: str, server: Server, client: str = "") -> tuple[int, Any]:
        """Call an API; return the status (0 without an answer, -1 if nothing was sent) and the answer."""
        client, status, answer, started = client or self.client, -1, {}, time.monotonic()
        connection = self.connections.setdefault((server.name, client), http.client.HTTPSConnection(
            "localhost", server.port, context=self.soak.tls[client], timeout=60))
        try:
            if connection.sock and select.select([connection.sock], [], [], 0)[0]:  # The server closed it.
                connection.close()
            if not connection.sock:
                connection.connect()
            status = 0
            if api in ("create_db", "delete_db"):
                connection.request("POST", f"/api/{api}", json.dumps({"user_id": self.user_id}))
            else:
                connection.request("GET", f"/api/{api}"
                                   + ("" if api == "list_db"
                                      else f"?user_id={urllib.parse.quote(self.user_id)}"))
            response = connection.getresponse()
            answer, status = json.loads(response.read()), response.status
        except (OSError, http.client.HTTPException) as error:
            answer = {"error": repr(error)}
            connection.close()
        taken, late = time.monotonic() - started, server.late_until > started
        self.history.append((time.time(),
                             f"{server.name} {api}{f' by {client}' if client != self.client else ''} "
                             f"{status} after {taken:.2f} s{', its table may be late' if late else ''}: "
                             f"{json.dumps(answer)[:200]}"))
        self.soak.count(f"{api} {({0: 'without an answer', -1: 'not sent'}).get(status, status)}", taken)
        if status > 0 and status not in STATUSES[api] and client == self.client:
            self.wrong(f"{api} was answered {status}: {answer}")
        if status == 503:
            self.soak.count(f"503: {answer['error']}")
            excused = time.monotonic() <= self.soak.last_fault + EXCUSE_SECONDS
            if not response.headers["Retry-After"] or not excused:
                self.wrong(f"{api} was answered 503 without Retry-After or any fault: {answer}")
        if api == "create_db" and taken > ANSWER_SECONDS and server.resumed_at < started:
            self.late(f"create_db took {taken:.1f} s", started)
        return status, answer

    def wrong(self, what: str) -> None:
        """Note something wrong with what this user was told."""
        self.soak.wrong(what, self)

    def late(self, what: str, since: float) -> None:
        """Note that something took too long since then, which on a slow machine is not the servers' fault."""
        if self.soak.ledger.slow(since):
            self.soak.count("late, and so was a bare kubectl")
        else:
            self.wrong(what)

    def silent(self) -> float:
        """Return for how many seconds nobody may have heard of the user.

        kill -9 loses the last beats, and a server that is stopped keeps them to itself.
        """
        now, deaf = time.monotonic(), list(self.soak.deaf)
        kept = (at for at, run in self.beats if not any(
            run is one and at > since - LOST_SECONDS and now < until for one, since, until in deaf))
        return now - max(kept, default=-math.inf)

    def known(self, server: Server, since: float) -> bool:
        """Tell whether a server must have known since then that the user has the database that was told."""
        return (self.sure and self.silent() <= KEPT_SECONDS and self.harmed_at(self.told) == math.inf
                and since > max(self.settled_at, server.late_until))

    def harmed_at(self, source: str) -> float:
        """Return when a data source's database was last harmed by hand; infinite if it never was."""
        password = test.DATA_SOURCE.sub(r"\3", source)
        return self.soak.ledger.pasts[self.soak.ledger.names.get(password, "")].harmed_at

    def settle(self, seconds: float) -> None:
        """Expect nothing certain from the servers for a while."""
        self.settled_at = max(self.settled_at, time.monotonic() + seconds)

    def hear(self, run: test.Running, at: float) -> None:
        """Note that a server heard of the user, who is sure of nothing after a silence that was too long."""
        self.sure = self.sure and self.silent() <= KEPT_SECONDS
        self.beats.append((at, run))

    def create(self, server: Server | None = None) -> bool:
        """Ask for the database; return whether that was answered."""
        server = server or self.random.choice(self.soak.servers)
        run, started = server.runs[-1], time.monotonic()
        status, answer = self.call("create_db", server)
        if status != 200:
            return False
        source = answer["data_source"]
        password = test.DATA_SOURCE.sub(r"\3", source)
        with self.soak.lock:
            owner = self.soak.owners.setdefault(password, self)
        if owner is not self:
            self.wrong(f"was told the data source of {owner.user_id}: {source}")
        if self.known(server, started):
            self.soak.count("checked: the data source is the same")
            if source != self.told or "note" in answer:
                self.wrong(f"was told {answer}, and before that {self.told}")
        harmed_at = self.harmed_at(source)
        timely = started > max(self.settled_at, server.late_until) and (
            harmed_at == math.inf or started > harmed_at + LAG_SECONDS)
        if timely:
            self.soak.count("checked: the data source is what the cluster has")
            mismatch = self.mismatch(self.soak.ledger.objects_of(self.slug), source)
            if mismatch and self.harmed_at(source) == harmed_at:
                self.wrong(f"was told {source}, and {mismatch}")
            if password in self.deleted:
                self.wrong(f"was told {source} once more, which was deleted")
        past = self.soak.ledger.pasts[self.soak.ledger.names.get(password, "")]
        if past.user not in ("", self.slug):
            self.wrong(f"was told {source}, which was {past.user}'s")
        if source != self.told:
            lost = self.harmed_at(self.told) < math.inf and self.sure
            self.soak.count(f"databases lost to faults, {'with a' if 'note' in answer else 'without'} note"
                            if lost else "databases that were new to their users")
            self.settle(LAG_SECONDS)
        elif KEPT_SECONDS < self.silent() < IDLE_SECONDS + LOST_SECONDS:
            self.settle(LOST_SECONDS)  # That the user is back in time may reach the other server too late.
        self.hear(run, started)
        self.told, self.sure = source, timely
        return True

    def mismatch(self, objects: dict[str, dict[str, Any]], source: str) -> str:
        """Say how what the cluster holds does not fit a data source, if it does not."""
        lease = objects["Lease"].get(f"user-{self.slug}")
        if not lease:
            return "there is no lease"
        name, annotations = lease["spec"]["holderIdentity"], lease["metadata"]["annotations"]
        secret, pod = objects["Secret"].get(name), objects["Pod"].get(name)
        if not secret or not pod:
            return f"the lease names {name}, of which is there: Secret {bool(secret)}, Pod {bool(pod)}"
        if (annotations[playground.USER_ID], annotations[playground.CLIENT]) != (self.user_id, self.client):
            return f"the lease is another's: {annotations}"
        if playground.user_of(secret) != self.slug:
            return f"the Secret of {name} is {playground.user_of(secret) or 'nobody'}'s"
        password, seen = playground.password_in(secret), playground.seen_of(pod)
        if not isinstance(seen, playground.Part) or seen.gone or not seen.ready:
            return f"the Pod of {name} does not take queries: {pod['status']}"
        there = f":{password}@tcp({seen.address}:"
        return "" if there in source else f"the cluster has {there}"

    def beat(self) -> None:
        """Send a heart beat."""
        server = self.random.choice(self.soak.servers)
        run, started = server.runs[-1], time.monotonic()
        _, answer = self.call("heart_beat", server)
        if answer.get("status") == "absent" and self.known(server, started):
            self.wrong("was told that its database is absent")
        if answer.get("status") in ("ready", "starting"):
            self.hear(run, started)

    def list(self) -> None:
        """List the client's databases."""
        server, started = self.random.choice(self.soak.servers), time.monotonic()
        status, answer = self.call("list_db", server)
        listed = {entry["user_id"] for entry in answer.get("databases", ())}
        if strangers := listed - {user.user_id for user in self.soak.users if user.client == self.client}:
            self.wrong(f"was shown another client's: {strangers}")
        if status == 200 and self.user_id not in listed and self.known(server, started):
            self.wrong("is not in the list")

    def intrude(self) -> None:
        """See that another client gets 403, or from a table that is late at most that there is nothing."""
        server, started = self.random.choice(self.soak.servers), time.monotonic()
        if self.known(server, started):
            api = self.random.choice(("create_db", "delete_db", "heart_beat"))
            other = self.random.choice([client for client in CLIENTS if client != self.client])
            status, answer = self.call(api, server, other)
            nothing = ("unknown",) if self.known(server, started) else ("unknown", "absent")
            if status not in (403, 503, 0, -1) and not (api == "heart_beat" and answer["status"] in nothing):
                self.wrong(f"another client was answered {status}: {answer}")

    def delete(self) -> None:
        """Delete the database; ask again a few times if that is not answered."""
        for _ in range(5):
            status, _ = self.call("delete_db", self.random.choice(self.soak.servers))
            self.sure = False
            self.settle(LAG_SECONDS if status in (200, -1) else DOUBT_SECONDS)
            if status == 200:
                self.deleted.add(test.DATA_SOURCE.sub(r"\3", self.told))
                return
            self.soak.ending.wait(self.random.uniform(1, 4))

    def visit(self) -> None:
        """Get a database, work with it, and go, with or without it; but stay when the faults end."""
        started, pause = time.monotonic(), self.soak.ending.wait
        while not self.create():
            if pause(self.random.uniform(1, 5)):
                return
        self.soak.count("users who came and were served", time.monotonic() - started)
        # From when on nothing more happened to the database or to a whole server.
        calm = max(started, self.struck_at, *(server.resumed_at for server in self.soak.servers))
        if time.monotonic() - calm > SERVED_SECONDS:
            self.late("waited too long for a database", calm)
        self.here = True
        for _ in range(self.random.randint(2, 12)):
            if pause(self.random.uniform(3, 6)):
                return
            self.random.choices((self.beat, self.list, self.create, self.intrude), (12, 1, 2, 1))[0]()
        self.here = False
        if self.random.random() < 0.35:
            self.delete()
            pause(self.random.choice((0, 10)))
        else:
            pause(self.random.choice((self.random.uniform(5, 10), self.random.uniform(20, 70))))

    def run(self) -> None:
        """Come and go until the faults end; who is here then stays until all is over."""
        self.soak.ending.wait(self.random.uniform(0, 15))
        while not self.soak.ending.is_set():
            self.visit()
        while self.here and not self.soak.over.wait(self.random.uniform(3, 6)):
            self.beat() if self.sure and self.random.random() < 0.8 else self.create()
        for server in self.soak.servers if self.here and self.soak.judged else ():
            if not self.create(server):
                self.wrong("was not answered at the end")
        for connection in self.connections.values():
            connection.close()


def soak(seconds: float, seed: int, logs: str) -> int:
    """Soak; print what came of it; keep the logs if a folder is given, or if they tell; return the status."""
    print(f"{seconds:.0f} s, seed {seed}: {USERS} users of {len(CLIENTS)} clients, {SPARES} spares, idle "
          f"after {IDLE_SECONDS:.0f} s, rounds of {ROUND_SECONDS:.0f} s, namespace {test.namespace}",
          flush=True)
    this = Soak(seed)
    try:
        for kind in PATHS:
            threading.Thread(target=this.ledger.watch, args=(kind,), daemon=True).start()
        threading.Thread(target=this.ledger.gauge, daemon=True).start()
        for server in this.servers:
            server.start()
            server.runs[-1].known()
        time.sleep(2)
        this.measure("start")
        for user in this.users:
            user.start()
        this.disturb(seconds)
        this.measure("load")
        this.judge()
        this.judged = True
        this.over.set()
        for user in this.users:
            user.join()
        this.rest()
        for server in this.servers:
            this.end(server, signal.SIGTERM)
        this.read_logs()
    except Exception:
        this.wrong(traceback.format_exc())
    finally:
        this.ending.set()
        this.over.set()
        for process in (this.ledger.proxy, *(run.process for server in this.servers for run in server.runs)):
            process.kill()
            process.wait()
    for what, count in sorted(this.counts.items()):
        print(f"{count:8}  {what}{f', in {this.longest[what]:.1f} s at most' if this.longest[what] else ''}")
    print(f"{max([taken for _, taken in this.ledger.gauged], default=0):8.1f}  seconds of the slowest bare "
          "kubectl towards the end")
    for (name, when), burdens in sorted(this.burdens.items()):
        print(f"          server {name}, {when}: "
              f"{', '.join(f'{value} {what}' for what, value in burdens.items())}")
    print(f"{len(this.wrongs):8}  things wrong")
    if this.wrongs or logs:
        kept = logs or tempfile.mkdtemp(prefix="soak-")
        os.makedirs(kept, exist_ok=True)
        for server in this.servers:
            for number, run in enumerate(server.runs):
                shutil.copy(run.log_path, os.path.join(kept, f"{server.name}-{number}.log"))
        print(f"the servers' logs are in {kept}")
    return 1 if this.wrongs else 0


def main() -> int:
    """Read the command line, make certificates and a namespace, and soak."""
    # The script has the help, and what is wrong is one line.
    parser = argparse.ArgumentParser(prog="soak", usage=argparse.SUPPRESS, add_help=False)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6),
                        help="what users and faults are drawn with")
    parser.add_argument("--logs", default="", help="folder to keep the servers' logs in, in any case")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        test.set_up()
        for client in CLIENTS:
            test.gen_cert(client)
        return soak(options.seconds, options.seed, options.logs)
    finally:
        test.tear_down()


if __name__ == "__main__":
    sys.exit(main())
