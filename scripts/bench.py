"""Measure the server beside Tornado and nginx, and a class of 200; print a table and a JSON object.

The machine may be busy with other things: the servers take turns within each round, what is compared is the
median over the rounds of the ratio within a round, and each line ends with the machine's load.
"""

from __future__ import annotations

import argparse
import calendar
import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import bench_load as load
import bench_servers as servers

CLASS = 200
KUBECTLS = 4  # Bare ones at once: as many as ours creates with.
BEATING = 1000
GROWN = 10_000
PLUG_IN_SECONDS = 17.5  # The notebook plug-in hangs up after 20; the rest is the network's.
AT_A_TIME = 16
NOT_LESS, NOT_MORE = "at least", "at most"
# Each figure in its order, and what it has to be; without a number it is only reported.
FIGURES: dict[str, tuple[str, float] | None] = {
    "connect_vs_tornado": (NOT_LESS, 1.5), "connect_vs_nginx": (NOT_LESS, 0.6),
    "keepalive_vs_tornado": (NOT_LESS, 1.5), "p99_vs_tornado": (NOT_MORE, 1.0),
    # With --against: no worse than the other version by more than 3 %.
    "connect_vs_other": (NOT_LESS, 0.97), "keepalive_vs_other": (NOT_LESS, 0.97),
    "p99_vs_other": (NOT_MORE, 1.03), "start_vs_other": (NOT_MORE, 1.03),
    "idle_rss_vs_other": (NOT_MORE, 1.03), "rss_1000_db_vs_other": (NOT_MORE, 1.03),
    "warm_create_ms": None, "warm_create_vs_beat": (NOT_MORE, 2), "cold_create_overhead_ms": (NOT_MORE, 150),
    "spare_ms": (NOT_MORE, 60), "spare_to_query_ms": (NOT_MORE, 400),
    "class_200_spares": (NOT_MORE, 2.0), "class_200_vs_kubectl": (NOT_MORE, 1.15),
    "class_200_failures": (NOT_MORE, 0), "beats_1000_s": (NOT_MORE, 4),
    "idle_rss_mb": None, "rss_1000_db_mb": None, "start_ms": (NOT_MORE, 400),
    # With --growth.
    "known_10000_s": (NOT_MORE, 4), "known_10000_pause_ms": (NOT_MORE, 20),
    "relist_10000_pause_ms": (NOT_MORE, 20), "rss_10000_db_mb": (NOT_MORE, 250),
    "list_db_10000_ms": (NOT_MORE, 5), "metrics_10000_ms": (NOT_MORE, 5)}
figures: dict[str, float] = {}


def show(what: str, values: list[float], unit: str, more: str = "") -> None:
    """Print a line of the table: the median, the least and the most, the machine's load."""
    print(f"{what:47} {statistics.median(values):9.2f} {unit:5} {min(values):9.2f} .. {max(values):<9.2f} "
          f"{os.getloadavg()[0]:5.1f}  {more}", flush=True)


def verdict() -> None:
    """Print each figure beside what it has to be."""
    print()
    for key in FIGURES.keys() & figures.keys():
        figures[key] = round(figures[key], 3)
    for key, bound in FIGURES.items():
        if key in figures and bound:
            word, limit = bound
            met = figures[key] >= limit if word == NOT_LESS else figures[key] <= limit
            print(f"{key:25} {figures[key]:10.3f}   {word} {limit:<6g} {'met' if met else 'MISSED'}")
        elif key in figures:
            print(f"{key:25} {figures[key]:10.3f}")
    print(json.dumps({key: figures[key] for key in FIGURES if key in figures}))


# ---- Servers, beside others ---------------------------------------------------------------------------

def loaded(loop: Callable[[load.Target, int, float], tuple[float, float]], server: servers.Process,
           seconds: float) -> tuple[float, float, float]:
    """Send beats; return answers a second, the server's ms of CPU for each, the client's share of a core."""
    cpu, started = server.cpu(), time.monotonic()
    rate, client = loop(server.target, AT_A_TIME, seconds)
    return rate, (server.cpu() - cpu) / (time.monotonic() - started) / rate * 1000, client


@contextlib.contextmanager
def started(versions: dict[str, servers.Version]) -> Iterator[dict[str, servers.Process]]:
    """Start ours and its peers."""
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(version.serve()) for name, version in versions.items()}
        for server in peers.values():
            wait_until_known(server)
        peers["Tornado"] = stack.enter_context(servers.tornado())
        peers["nginx"] = stack.enter_context(servers.nginx())
        yield peers


def compare(versions: dict[str, servers.Version], rounds: int, seconds: float) -> float:
    """Measure throughput in turns; return the best rate of Tornado on kept connections.

    Each round has processes of its own: of one program, one is faster than another by up to a fifth.
    """
    loops = {"new connections": (load.new_connections, {
        "Tornado": "connect_vs_tornado", "nginx": "connect_vs_nginx", "the other": "connect_vs_other"}),
             "kept connections": (load.closed_loop, {
        "Tornado": "keepalive_vs_tornado", "the other": "keepalive_vs_other"})}
    seen: dict[str, dict[str, list[tuple[float, float, float]]]] = {
        what: collections.defaultdict(list) for what in loops}
    for number in range(rounds):
        with started(versions) as peers:
            for what, (loop, keys) in loops.items():
                names = [name for name in peers if name in ("ours", *keys)]
                for name in names:
                    loaded(loop, peers[name], 0.1)  # Warm.
                # Each goes first in its turn: who follows whom makes a difference, too.
                for name in in_turn(names, number):
                    seen[what][name].append(loaded(loop, peers[name], seconds))
    for what, (_, keys) in loops.items():
        costs = {}
        for name, results in seen[what].items():
            rate, cost, client = (statistics.median(column) for column in zip(*results))
            costs[name] = cost
            show(f"{what}, {AT_A_TIME} at a time: {name}", [result[0] for result in results], "/s",
                 f"{cost:.2f} ms of CPU each, {cost * rate / 10:.0f} %; the client's "
                 f"{client / rate * 1000:.2f} ms, {100 * client:.0f} %")
        for peer, key in keys.items():
            if peer in seen[what]:
                put_ratio(key, peer, [result[0] for result in seen[what]["ours"]],
                          [result[0] for result in seen[what][peer]],
                          f"{costs['ours'] / costs[peer]:.2f} of its CPU each")
        busiest = max(result[2] for results in seen[what].values() for result in results)
        print(f"  the client is not the limit: it takes {100 * busiest:.0f} % of a core at most", flush=True)
    return max(result[0] for result in seen["kept connections"]["Tornado"])


def in_turn(names: list[str], number: int) -> list[str]:
    """Return the names in another order in each round."""
    first = number % len(names)
    return names[first:] + names[:first]


def put_ratio(key: str, peer: str, ours: list[float], theirs: list[float], more: str = "") -> None:
    """Show and keep what ours is to a peer's, round by round."""
    ratios = [one / other for one, other in zip(ours, theirs)]
    show(f"  ours / {peer}", ratios, "", more)
    figures[key] = statistics.median(ratios)


def tails(peers: dict[str, servers.Process], rate: float, rounds: int, seconds: float) -> None:
    """Compare the 99th percentiles at the same offered load."""
    seen: dict[str, list[float]] = {name: [] for name in peers if name != "nginx"}
    for number in range(rounds):
        for name in in_turn(list(seen), number):
            taken = load.open_loop(peers[name].target, 4 * AT_A_TIME, rate, seconds)
            seen[name].append(statistics.quantiles(taken, n=100)[98])
    for name, values in seen.items():
        show(f"p99 at {rate:.0f} heart beats a second: {name}", values, "ms")
    for name, key in (("Tornado", "p99_vs_tornado"), ("the other", "p99_vs_other")):
        if name in seen:
            put_ratio(key, name, seen["ours"], seen[name])


def warm(server: servers.Process, count: int) -> None:
    """Measure create_db of a known database beside heart_beat."""
    taken = load.one_by_one(server.target, ("heart_beat", "create_db"), count)
    for api, values in taken.items():
        cuts = statistics.quantiles(values, n=100)
        show(f"{api}, known database, one by one", values, "ms", f"p90 {cuts[89]:.2f}")
    figures["warm_create_ms"] = statistics.median(taken["create_db"])
    figures["warm_create_vs_beat"] = figures["warm_create_ms"] / statistics.median(taken["heart_beat"])


def memory_and_start(versions: dict[str, servers.Version], rounds: int) -> None:
    """Measure the time to the first answer, and the memory, empty and with 1,000 databases, 500 clients."""
    seen: dict[str, dict[str, list[float]]] = {key: {name: [] for name in versions}
                                               for key in ("start", "idle_rss", "rss_1000_db")}
    for number in range(rounds):
        for name in in_turn(list(versions), number):
            start, idle = start_once(versions[name])
            seen["start"][name].append(start)
            seen["idle_rss"][name].append(idle)
    for name, version in versions.items():
        with version.serve(1000) as server, contextlib.ExitStack() as idle_ones:
            wait_until_known(server)
            for _ in range(500):
                connection = idle_ones.enter_context(load.connect(server.target))
                connection.sendall(load.request("heart_beat", "alice"))
                load.must_be_200(load.receive(connection))
            seen["rss_1000_db"][name].append(server.rss_mb())
    for key, what, unit in (("start", "from exec to the first 200", "ms"), ("idle_rss", "memory, idle", "MB"),
                            ("rss_1000_db", "memory, 1,000 databases, 500 clients", "MB")):
        for name, values in seen[key].items():
            show(f"{what}: {name}", values, unit)
        figures[f"{key}_{unit.lower()}"] = statistics.median(seen[key]["ours"])
        if "the other" in versions:
            put_ratio(f"{key}_vs_other", "the other", seen[key]["ours"], seen[key]["the other"])


def start_once(version: servers.Version) -> tuple[float, float]:
    """Return the ms from exec to the first 200, and the MB of memory a moment later."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with version.serve(0, port) as server:
        while server.process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                load.must_be_200(load.call(server.target, "status"))
                break
            time.sleep(0.002)
        else:
            raise SystemExit(f"bench: {version.directory}'s server does not start: {server.logged()}")
        taken = (time.monotonic() - server.started) * 1000
        time.sleep(0.2)
        return taken, server.rss_mb()


def wait_until_known(server: servers.Process) -> None:
    """Wait until a server knows its cluster."""
    wait_for(lambda: b'"cluster": "ok"' in load.call(server.target, "status"), "the cluster is not known")


def wait_for(condition: Callable[[], object], complaint: str, pause: float = 0.02) -> None:
    """Wait until a condition holds, for 2 minutes. Raises SystemExit."""
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {complaint}")
        time.sleep(pause)


# ---- As it grows --------------------------------------------------------------------------------------

def growth(peers: dict[str, servers.Process], seconds: float) -> None:
    """Measure throughput, latency and memory at growing numbers of databases and of connections."""
    for databases in (1, 10, 100, 1000):
        with servers.OURS.serve(databases) as server:
            wait_until_known(server)
            rates(server, databases, seconds)
    ten_thousand(seconds)
    for connections in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        seen = {name: load.closed_loop(server.target, connections, seconds)[0]
                for name, server in peers.items()}
        print(f"{connections:5} connections "
              + "   ".join(f"{name} {rate:7.0f} /s" for name, rate in seen.items()), flush=True)


def rates(server: servers.Process, databases: int, seconds: float) -> None:
    """Print how a server does that knows so many databases."""
    one = load.one_by_one(server.target, ("heart_beat", "create_db"), 300)
    beat, made = (statistics.median(one[api]) for api in ("heart_beat", "create_db"))
    new, kept = (loaded(loop, server, seconds)[0] for loop in (load.new_connections, load.closed_loop))
    print(f"{databases:5} databases   new {new:7.0f} /s   kept {kept:7.0f} /s   "
          f"heart_beat {beat:.2f} ms   create_db {made:.2f} ms   {server.rss_mb():.0f} MB", flush=True)


def ten_thousand(seconds: float) -> None:
    """Measure how long many databases take to be known, and who has to wait meanwhile."""
    servers.stand_in(GROWN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with servers.OURS.serve(GROWN, port) as server:
        pause, _ = load.longest_wait(server.target, 0.002, lambda answer: b'"unknown"' not in answer)
        known = time.monotonic() - server.started
        wait_until_known(server)
        end = time.monotonic() + 2
        at_rest, _ = load.longest_wait(server.target, 0.002, lambda _: time.monotonic() > end)
        lists = server.logged().count('reason="list ')
        told = threading.Thread(target=servers.expire, args=(GROWN,))
        told.start()
        told.join()  # It is a busy thread of the client's own.
        end = time.monotonic() + max(3 * known, 3)
        relist, _ = load.longest_wait(server.target, 0.002, lambda _: time.monotonic() > end)
        if server.logged().count('reason="list ') != 2 * lists:
            raise SystemExit(f"bench: not all was listed anew: {server.logged()[-2000:]}")
        taken = load.one_by_one(server.target, ("list_db", "metrics"), 200)
        owned = json.loads(load.call(server.target, "list_db").partition(b"\r\n\r\n")[2])["databases"]
        show(f"{GROWN} databases, until they are known", [known], "s")
        show("  slowest heart beat meanwhile", [pause], "ms")
        show("  slowest while all is listed anew", [relist], "ms")
        show("  slowest when nothing happens", [at_rest], "ms")
        show("  memory, at its most", [server.rss_mb("VmHWM")], "MB", f"{server.rss_mb():.0f} MB now")
        show(f"  list_db of an owner of {len(owned)}", taken["list_db"], "ms")
        show("  metrics", taken["metrics"], "ms")
        rates(server, GROWN, seconds)
        figures.update(known_10000_s=known, known_10000_pause_ms=pause, relist_10000_pause_ms=relist,
                       rss_10000_db_mb=server.rss_mb("VmHWM"),
                       list_db_10000_ms=statistics.median(taken["list_db"]),
                       metrics_10000_ms=statistics.median(taken["metrics"]))


# ---- On a cluster -------------------------------------------------------------------------------------

Items = list[dict[str, Any]]


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl on the cluster; return what it prints."""
    return subprocess.run(["kubectl", *arguments], input=stdin, stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "KUBECONFIG": servers.KUBECONFIG}).stdout


def send(namespace: str, verb: str, items: Items) -> None:
    """Create or replace objects with one bare kubectl, that does as little as ours has it do."""
    kubectl("-n", namespace, verb, "-f", "-", "--validate=false", "-o", "name",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def send_at_once(namespace: str, *steps: tuple[str, list[Items]]) -> None:
    """Have a few bare kubectls at once, each for its part of the users, take one step after the other."""
    def send_part(number: int) -> None:
        for verb, of_users in steps:
            if part := [item for items in of_users[number::KUBECTLS] for item in items]:
                send(namespace, verb, part)
    with concurrent.futures.ThreadPoolExecutor(KUBECTLS) as pool:
        list(pool.map(send_part, range(KUBECTLS)))


@contextlib.contextmanager
def watching(namespace: str, resource: str, jsonpath: str) -> Iterator[dict[str, float]]:
    """Have a bare kubectl watch; fill in when it has said what of an object, by time.monotonic."""
    seen: dict[str, float] = {}
    watch = subprocess.Popen(["kubectl", "-n", namespace, "get", resource, "--watch",
                              "--output-watch-events=false", "-o",
                              f'jsonpath={{.metadata.name}} {jsonpath}{{"\\n"}}'],
                             stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "KUBECONFIG": servers.KUBECONFIG}, start_new_session=True)
    out: IO[str] = watch.stdout  # type: ignore[assignment]

    def read() -> None:
        for line in out:
            seen.setdefault(line.strip(), time.monotonic())
    reader = threading.Thread(target=read)
    reader.start()
    try:
        time.sleep(0.5)  # It runs by then; if not, it is seen in its first list.
        yield seen
    finally:
        watch.kill()
        watch.wait()
        reader.join()
        out.close()


def watching_pods(namespace: str) -> contextlib.AbstractContextManager[dict[str, float]]:
    """Have a bare kubectl watch which Pods are ready."""
    return watching(namespace, "pods", '{.status.conditions[?(@.type=="Ready")].status}')


def all_ready(count: int, seen: dict[str, float]) -> float:
    """Wait until so many Pods are ready; return when the last one was."""
    def ready() -> list[float]:
        return sorted(moment for line, moment in list(seen.items()) if line.endswith(" True"))
    wait_for(lambda: len(ready()) >= count, "databases do not get ready", pause=0.002)
    return ready()[count - 1]


def rest() -> None:
    """Wait until the machine is idle: what was made and deleted before keeps an API server busy."""
    def idle() -> bool:
        before = ticks()
        time.sleep(0.5)
        spent, unused = (after - was for after, was in zip(ticks(), before))
        return unused > 0.8 * spent
    wait_for(idle, "the machine does not come to rest")


def ticks() -> tuple[int, int]:
    """Return the time that the processors were there for, and that they were idle."""
    with open("/proc/stat", encoding="ascii") as file:
        numbers = list(map(int, file.readline().split()[1:9]))
    return sum(numbers), numbers[3] + numbers[4]


def create(server: servers.Process, user: str) -> bytes:
    """Ask for a database until there is one; return the first answer's status, if it came in time."""
    started = time.monotonic()
    answer = load.call(server.target, "create_db", user)
    first = answer[:12] if time.monotonic() < started + PLUG_IN_SECONDS else b"too late"
    while not answer.startswith(b"HTTP/1.1 200 "):
        if time.monotonic() > started + 120:
            raise SystemExit(f"bench: create_db is answered {answer!r}")
        time.sleep(0.1)
        answer = load.call(server.target, "create_db", user)
    return first


def create_at_once(server: servers.Process, users: Iterable[str]) -> tuple[float, list[bytes]]:
    """Have users ask at once; return the seconds until the last has a database, and the first answers."""
    with concurrent.futures.ThreadPoolExecutor(CLASS) as pool:
        started = time.monotonic()
        answers = list(pool.map(lambda user: create(server, user), users))
        return time.monotonic() - started, answers


def clear(namespace: str) -> None:
    """Delete all leases and databases, and wait until they have gone."""
    selector = "labelSelector=app.kubernetes.io/managed-by%3Dsqlflow-playground"
    root = f"namespaces/{namespace}"
    for path in (f"/apis/coordination.k8s.io/v1/{root}/leases", f"/api/v1/{root}/pods",
                 f"/api/v1/{root}/secrets"):
        kubectl("delete", "--raw", f"{path}?{selector}")
    wait_for(lambda: not kubectl("-n", namespace, "get", "leases,pods,secrets", "-o", "name", "-l",
                                 "app.kubernetes.io/managed-by=sqlflow-playground"), "databases do not go")


@contextlib.contextmanager
def a_namespace() -> Iterator[str]:
    """Make a namespace, and delete it."""
    name = f"playground-bench-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    try:
        wait_for(lambda: kubectl("-n", name, "get", "serviceaccounts", "-o", "name"), "no service account")
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def on_a_cluster(which: str, singles: int, rounds: int) -> None:
    """Measure databases that are given: new ones and spares, one by one and to a class at once."""
    print(f"cluster: {which}", flush=True)
    failures: list[bytes] = []
    with a_namespace() as namespace, a_namespace() as other:
        new_databases(namespace, other, singles)
        pairs: dict[str, list[tuple[float, float]]] = {"without spares": [], "with spares": []}
        for lesson in range(rounds):
            for name, measure in (("without spares", class_without), ("with spares", class_with)):
                ours, bare, answers = measure(namespace, other, f"class-{lesson}")
                pairs[name].append((ours, bare))
                failures += [answer for answer in answers if answer != b"HTTP/1.1 200"]
        for (name, values), key in zip(pairs.items(), ("class_200_vs_kubectl", "class_200_spares")):
            mine, theirs = map(list, zip(*values))
            show(f"a class of {CLASS} {name}: ours", mine, "s")
            show(f"a class of {CLASS} {name}: bare kubectls", theirs, "s")
            put_ratio(key, "bare kubectls", mine, theirs)
        figures["class_200_failures"] = len(failures)
        print(f"  not answered 200 within {PLUG_IN_SECONDS} s: {len(failures)}"
              f" {dict(collections.Counter(answer.decode() for answer in failures))}", flush=True)
        spares(namespace, other, singles)
        beats(other, rounds)


def new_databases(namespace: str, other: str, count: int) -> None:
    """Measure new databases, one by one, without spares."""
    mine, theirs, after = [], [], []
    with servers.on_cluster(namespace, "--spare_databases=0") as server, watching_pods(namespace) as seen, \
            watching_pods(other) as seen_others:
        wait_until_known(server)
        for number in range(count):
            started = time.monotonic()
            create(server, f"new-{number}")
            answered = time.monotonic()
            mine.append((answered - started) * 1000)
            after.append((answered - all_ready(number + 1, seen)) * 1000)
            started = time.monotonic()
            send(other, "create", servers.database(f"bare-{number}"))
            theirs.append((all_ready(number + 1, seen_others) - started) * 1000)
    show("new database: ours", mine, "ms")
    show("new database: bare kubectl", theirs, "ms")
    show("  our answer, after its watch has seen it ready", after, "ms", "(at most 300)")
    figures["cold_create_overhead_ms"] = statistics.median(mine) - statistics.median(theirs)
    clear(namespace)
    clear(other)


def class_without(namespace: str, other: str, lesson: str) -> tuple[float, float, list[bytes]]:
    """Have a class ask at once without spares, and bare kubectls create the same."""
    users = [f"{lesson}-{number}" for number in range(CLASS)]
    with servers.on_cluster(namespace, "--spare_databases=0") as server:
        wait_until_known(server)
        rest()
        ours, answers = create_at_once(server, users)
    clear(namespace)
    with watching_pods(other) as seen:
        rest()
        started = time.monotonic()
        send_at_once(other, ("create", [servers.database(user) for user in users]))
        bare = all_ready(CLASS, seen) - started
    clear(other)
    return ours, bare, answers


def class_with(namespace: str, other: str, lesson: str) -> tuple[float, float, list[bytes]]:
    """Have a class ask at once with a spare for each, and bare kubectls write down the same."""
    users = [f"{lesson}-{number}" for number in range(CLASS)]
    make_spares(namespace)
    with servers.on_cluster(namespace, f"--spare_databases={CLASS}") as server:
        wait_for_spares(server, CLASS)
        rest()
        ours, answers = create_at_once(server, users)
    clear(namespace)
    leases, claims = given(other, users)
    rest()
    started = time.monotonic()
    send_at_once(other, ("create", leases), ("replace", claims))
    bare = time.monotonic() - started
    clear(other)
    return ours, bare, answers


def make_spares(namespace: str) -> None:
    """Make a spare for each of a class, as a server would in a minute, and wait until they are ready."""
    with watching_pods(namespace) as seen:
        send_at_once(namespace, ("create", [servers.database() for _ in range(CLASS)]))
        all_ready(CLASS, seen)


def wait_for_spares(server: servers.Process, count: int) -> None:
    """Wait until a server has so many spares that are ready."""
    wait_until_known(server)
    wait_for(lambda: f'"spares_ready": {count}'.encode() in load.call(server.target, "status"),
             "spares do not get ready")


def given(namespace: str, users: list[str]) -> tuple[list[Items], list[Items]]:
    """Make spares' Secrets; return what gives them to users: leases to create, and Secrets to replace."""
    items = [servers.database()[0] for _ in users]
    send_at_once(namespace, ("create", [[item] for item in items]))
    read = {item["metadata"]["name"]: item for item in json.loads(
        kubectl("-n", namespace, "get", "secrets", "-o", "json"))["items"]}
    claims, leases = [], []
    for user, item in zip(users, items):
        name = item["metadata"]["name"]
        leases.append([servers.lease(user, name.partition("-")[2])])
        claims.append([servers.claimed(read[name], leases[-1][0])])
    return leases, claims


def spares(namespace: str, other: str, count: int) -> None:
    """Measure spares that are given one by one."""
    mine, theirs = [], []
    leases, claims = given(other, [f"bare-{number}" for number in range(count)])
    with servers.on_cluster(namespace, "--spare_databases=2") as server:
        for number in range(count):
            wait_for_spares(server, 2)
            started = time.monotonic()
            create(server, f"spare-{number}")
            answered = time.monotonic()
            mine.append((answered - started) * 1000)
            wait_for_spares(server, 2)
            started = time.monotonic()
            send(other, "create", leases[number])
            send(other, "replace", claims[number])
            theirs.append((time.monotonic() - started) * 1000)
    show("a spare: ours", mine, "ms")
    show("a spare: bare kubectls", theirs, "ms")
    figures["spare_ms"] = statistics.median(mine) - statistics.median(theirs)
    clear(namespace)
    clear(other)


def beats(namespace: str, rounds: int) -> None:
    """Measure how long it takes until the beats of many users are written."""
    users = [f"beating-{number}" for number in range(BEATING)]
    send_at_once(namespace, ("create", [[servers.lease(user, secrets.token_hex(8))] for user in users]))
    taken, beat_of_user = [], {user: load.request("heart_beat", user) for user in users}
    # A fiftieth of the timeout: a beat is written when the written one is older.
    often = ("--sweep_interval=5", "--idle_timeout=250")
    with servers.on_cluster(namespace, "--spare_databases=0", *often) as server, \
            watching(namespace, "leases", "{.spec.renewTime}") as seen:
        wait_until_known(server)
        for _ in range(rounds):
            told = len(seen) + BEATING
            with load.connect(server.target) as connection:
                for beat in beat_of_user.values():
                    connection.sendall(beat)
                    load.must_be_200(load.receive(connection))
            wait_for(functools.partial(has, seen, told), "beats are not written")
            # All that a round writes has the round's time. There may be two.
            ends: dict[str, float] = {}
            for line, moment in list(seen.items())[told - BEATING:]:
                ends[line.partition(" ")[2]] = moment
            offset = time.time() - time.monotonic()
            taken.append(sum(end + offset - seconds_of(written) for written, end in ends.items()))
    show(f"the beats of {BEATING} users, until all are written", taken, "s")
    figures["beats_1000_s"] = statistics.median(taken)
    clear(namespace)


def has(seen: dict[str, float], count: int) -> bool:
    """Tell whether a watch has told so much."""
    return len(seen) >= count


def seconds_of(written: str) -> float:
    """Return a time of Kubernetes', in seconds since 1970."""
    whole, _, fraction = written.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction}")


def to_query(count: int) -> None:
    """Measure the time from create_db to an answer of a real MariaDB, on a dev cluster."""
    taken, created = [], []
    with servers.devcluster() as cluster, \
            servers.on_cluster("default", "--spare_databases=2", kubeconfig=cluster.said) as server:
        for number in range(count):
            wait_for_spares(server, 2)
            with load.connect(server.target) as connection:
                started = time.monotonic()
                connection.sendall(load.request("create_db", f"user-{number}"))
                answer = load.receive(connection)
            load.must_be_200(answer)
            created.append((time.monotonic() - started) * 1000)
            parts = re.search(r"root:(.*)@tcp\((.*):3306\)", answer.decode())
            password, host = parts.groups() if parts else ("", "")
            rows = subprocess.run(["mariadb", f"--host={host}", "--user=root", "--batch",
                                   "--execute=SELECT 'a row'"], stdout=subprocess.PIPE, check=True,
                                  env={**os.environ, "MYSQL_PWD": password}).stdout
            taken.append((time.monotonic() - started) * 1000)
            if not rows.endswith(b"a row\n"):
                raise SystemExit(f"bench: MariaDB answered {rows!r}")
            load.must_be_200(load.call(server.target, "delete_db", f"user-{number}"))
    show("a spare with a real MariaDB: create_db", created, "ms")
    show("  to the first row of a SELECT", taken, "ms")
    figures["spare_to_query_ms"] = statistics.median(taken)


def main() -> None:
    """Measure as the options say."""
    parser = argparse.ArgumentParser(prog="scripts/bench", add_help=False)  # The script has the help.
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--against", metavar="DIRECTORY")
    parser.add_argument("--only", choices=("servers", "cluster"))
    parser.add_argument("--cluster", default="")
    options = parser.parse_args()
    rounds, seconds = (2, 0.3) if options.quick else (7, 2)
    for name in ("server", "alice"):
        subprocess.run([f"{servers.HERE}/../gen_cert.sh", name], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "KEY_STORE": servers.store()})
    versions = {"ours": servers.OURS}
    if options.against:
        versions["the other"] = servers.of_checkout(os.path.abspath(options.against))
    print(f"{'':47} {'median':>9} {'':5} {'least':>9} .. {'most':9} {'load':>5}", flush=True)
    if options.only != "cluster":
        best = compare(versions, rounds, seconds)
        with started(versions) as peers:
            tails(peers, best / 2, rounds, 2 * seconds)
            warm(peers["ours"], 300 if options.quick else 1000)
            if options.growth:
                growth(peers, seconds)
        memory_and_start(versions, rounds)
    if options.only != "servers":
        to_query(3 if options.quick else 9)
        on_a_cluster(options.cluster, 3 if options.quick else 9, 1 if options.quick else 5)
    verdict()


def interrupted(*_: Any) -> None:
    """End as after Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    servers.folder = tempfile.mkdtemp(prefix="playground-bench-")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(servers.folder)
