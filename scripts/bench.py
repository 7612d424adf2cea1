"""Measure the server beside Tornado and nginx, and a class of 200; print a table and a JSON object.

The machine may be busy with other things: the servers take turns within each round, and what is compared is
the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
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
from collections.abc import Callable, Iterator
from typing import IO, Any

import bench_load as load
import bench_servers as servers

CLASS = 200
PLUG_IN_SECONDS = 20.0  # The notebook plug-in hangs up after these.
AT_A_TIME = 16
KEYS = ("connect_vs_tornado", "connect_vs_nginx", "keepalive_vs_tornado", "p99_vs_tornado", "warm_create_ms",
        "cold_create_overhead_ms",
        "class_200_vs_kubectl", "class_200_failures", "idle_rss_mb", "rss_1000_db_mb", "start_ms")
figures: dict[str, float] = {}


def show(what: str, values: list[float], unit: str, more: str = "") -> None:
    """Print a line of the table: the median, the least and the most."""
    print(f"{what:47} {statistics.median(values):9.2f} {unit:5} {min(values):9.2f} .. {max(values):<9.2f} "
          f"{more}", flush=True)


def loaded(loop: Callable[[load.Target, int, float], tuple[float, float]], server: servers.Process,
           seconds: float) -> tuple[float, float, float]:
    """Send beats; return answers a second, the server's ms of CPU for each, the client's share of a core."""
    cpu, started = server.cpu(), time.monotonic()
    rate, client = loop(server.target, AT_A_TIME, seconds)
    return rate, (server.cpu() - cpu) / (time.monotonic() - started) / rate * 1000, client


def compare(peers: dict[str, servers.Process], rounds: int, seconds: float) -> float:
    """Measure throughput in turns; return the best rate of Tornado on kept connections."""
    best = 0.0
    for what, loop, keys in (("new connections", load.new_connections,
                              {"Tornado": "connect_vs_tornado", "nginx": "connect_vs_nginx"}),
                             ("kept connections", load.closed_loop, {"Tornado": "keepalive_vs_tornado"})):
        seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("ours", *keys)}
        for name in seen:
            loaded(loop, peers[name], 0.1)  # Warm.
        for _ in range(rounds):
            for name, results in seen.items():
                results.append(loaded(loop, peers[name], seconds))
        for name, results in seen.items():
            rate, cost, client = (statistics.median(column) for column in zip(*results))
            show(f"{what}, {AT_A_TIME} at a time: {name}", [result[0] for result in results], "/s",
                 f"{cost:.2f} ms of CPU each, {cost * rate / 10:.0f} %; the client's "
                 f"{client / rate * 1000:.2f} ms, {100 * client:.0f} %")
        for peer, key in keys.items():
            ratios = [one[0] / other[0] for one, other in zip(seen["ours"], seen[peer])]
            figures[key] = statistics.median(ratios)
            show(f"  ours / {peer}", ratios, "")
        busiest = max(result[2] for results in seen.values() for result in results)
        print(f"  the client is not the limit: it takes {100 * busiest:.0f} % of a core at most", flush=True)
        best = max(result[0] for result in seen["Tornado"])
    return best


def tails(peers: dict[str, servers.Process], rate: float, rounds: int, seconds: float) -> None:
    """Compare the 99th percentiles at the same offered load."""
    seen: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, server in peers.items():
            taken = load.open_loop(server.target, 4 * AT_A_TIME, rate, seconds)
            seen[name].append(statistics.quantiles(taken, n=100)[98])
    for name, values in seen.items():
        show(f"p99 at {rate:.0f} heart beats a second: {name}", values, "ms")
    ratios = [one / other for one, other in zip(seen["ours"], seen["Tornado"])]
    show("  ours / Tornado", ratios, "")
    figures["p99_vs_tornado"] = statistics.median(ratios)


def warm(server: servers.Process, count: int) -> None:
    """Measure create_db of a known database beside heart_beat."""
    taken = load.one_by_one(server.target, ("heart_beat", "create_db"), count)
    for api, values in taken.items():
        cuts = statistics.quantiles(values, n=100)
        show(f"{api}, known database, one by one", values, "ms", f"p90 {cuts[89]:.2f}")
    figures["warm_create_ms"] = statistics.median(taken["create_db"])
    print("  create_db / heart_beat: "
          f"{figures['warm_create_ms'] / statistics.median(taken['heart_beat']):.2f} (at most 2)", flush=True)


def memory_and_start(rounds: int) -> None:
    """Measure the time to the first answer, and the memory, empty and with 1,000 databases, 500 clients."""
    starts = []
    for number in range(rounds):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with servers.ours(0, port=port) as server:
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    load.must_be_200(load.call(server.target, "status"))
                    break
                time.sleep(0.002)
            starts.append((time.monotonic() - server.started) * 1000)
            if number == 0:
                time.sleep(0.2)
                figures["idle_rss_mb"] = server.rss_mb()
    show("from exec to the first 200", starts, "ms")
    figures["start_ms"] = statistics.median(starts)
    with servers.ours(1000) as server, contextlib.ExitStack() as idle:
        server.wait_for("(kind=Secret listed=1000)")
        for _ in range(500):
            connection = idle.enter_context(load.connect(server.target))
            connection.sendall(load.request("heart_beat", "alice"))
            load.must_be_200(load.receive(connection))
        figures["rss_1000_db_mb"] = server.rss_mb()
    show("memory, idle", [figures["idle_rss_mb"]], "MB")
    show("memory, 1,000 databases, 500 connections", [figures["rss_1000_db_mb"]], "MB")


# ---- On a cluster ------------------------------------------------------------------------------------

def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl on the cluster; return what it prints."""
    return subprocess.run(["kubectl", *arguments], input=stdin, stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "KUBECONFIG": servers.KUBECONFIG}).stdout


@contextlib.contextmanager
def watching(namespace: str) -> Iterator[dict[str, float]]:
    """Have a bare kubectl watch; fill in when it has seen which StatefulSet ready, by time.monotonic."""
    ready: dict[str, float] = {}
    watch = subprocess.Popen(["kubectl", "-n", namespace, "get", "statefulsets", "--watch",
                              "--output-watch-events=false", "-o",
                              'jsonpath={.metadata.name} {.status.readyReplicas}{"\\n"}'],
                             stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "KUBECONFIG": servers.KUBECONFIG}, start_new_session=True)
    out: IO[str] = watch.stdout  # type: ignore[assignment]

    def read() -> None:
        for line in out:
            name, _, replicas = line.strip().partition(" ")
            if replicas == "1":
                ready.setdefault(name, time.monotonic())
    reader = threading.Thread(target=read)
    reader.start()
    try:
        time.sleep(0.5)  # It runs by then; if not, it is seen in its first list.
        yield ready
    finally:
        watch.kill()
        watch.wait()
        reader.join()
        out.close()


def wait_for(names: set[str], ready: dict[str, float]) -> float:
    """Wait until all are ready; return when the last one was."""
    deadline = time.monotonic() + 120
    while not names <= ready.keys():
        if time.monotonic() > deadline:
            raise SystemExit("bench: databases do not get ready")
        time.sleep(0.002)
    return max(ready[name] for name in names)


def bare(namespace: str, users: list[str], ready: dict[str, float]) -> float:
    """Create databases with one bare kubectl; return the seconds until a watch sees the last one ready."""
    manifest = json.dumps({"apiVersion": "v1", "kind": "List",
                           "items": [item for user in users for item in servers.filled(user)]})
    started = time.monotonic()
    kubectl("-n", namespace, "create", "-f", "-", stdin=manifest)
    return wait_for({f"mysql-{user}" for user in users}, ready) - started


def create(server: servers.Process, user: str, answers: list[bytes]) -> None:
    """Ask for a database until there is one, a connection each; note a first answer in the plug-in's time."""
    started = time.monotonic()
    answer = load.call(server.target, "create_db", user)
    answers.append(answer[:12] if time.monotonic() < started + PLUG_IN_SECONDS else b"too late")
    while not answer.startswith(b"HTTP/1.1 200 "):
        if time.monotonic() > started + 120:
            raise SystemExit(f"bench: create_db is answered {answer!r}")
        time.sleep(0.1)
        answer = load.call(server.target, "create_db", user)


def clear(namespaces: tuple[str, ...]) -> None:
    """Delete all databases, and wait until they have gone."""
    ours = ("-l", "app.kubernetes.io/managed-by=sqlflow-playground")
    for namespace in namespaces:
        kubectl("-n", namespace, "delete", "statefulsets,services,secrets", *ours, "--wait=false")
    for namespace in namespaces:
        while kubectl("-n", namespace, "get", "statefulsets,pods,services,secrets", *ours, "-o", "name"):
            time.sleep(0.5)


@contextlib.contextmanager
def a_namespace() -> Iterator[str]:
    """Make a namespace, and delete it."""
    name = f"playground-bench-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def on_a_cluster(which: str, singles: int, rounds: int) -> None:
    """Measure new databases, one by one and a class at once."""
    print(f"cluster: {which}", flush=True)
    with a_namespace() as namespace, a_namespace() as other, servers.ours(namespace=namespace) as server:
        while b'"cluster": "ok"' not in load.call(server.target, "status"):
            time.sleep(0.1)
        mine, theirs, after = [], [], []
        with watching(namespace) as ready:
            for number in range(singles):
                started = time.monotonic()
                create(server, f"single-{number}", [])
                answered = time.monotonic()
                mine.append(answered - started)
                after.append(answered - wait_for({f"mysql-single-{number}"}, ready))
                theirs.append(bare(namespace, [f"bare-{number}"], ready))
        show("new database: ours", [value * 1000 for value in mine], "ms")
        show("new database: bare kubectl", [value * 1000 for value in theirs], "ms")
        show("  our answer, after its watch has seen it ready", [value * 1000 for value in after], "ms",
             "(at most 300)")
        figures["cold_create_overhead_ms"] = (statistics.median(mine) - statistics.median(theirs)) * 1000
        classes, bares = [], []
        answers: list[bytes] = []
        for lesson in range(rounds):
            if lesson:
                clear((namespace, other))  # A cluster is slower with every pod that it holds.
            threads = [threading.Thread(target=create, args=(server, f"class-{lesson}-{number}", answers))
                       for number in range(CLASS)]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            classes.append(time.monotonic() - started)
            with watching(other) as ready:
                bares.append(bare(other, [f"bare-{number}" for number in range(CLASS)], ready))
        show(f"a class of {CLASS}: ours", classes, "s")
        show(f"a class of {CLASS}: bare kubectl", bares, "s")
        figures["class_200_vs_kubectl"] = statistics.median(one / other for one, other in zip(classes, bares))
        failed = [answer for answer in answers if answer != b"HTTP/1.1 200"]
        figures["class_200_failures"] = len(failed) + CLASS * rounds - len(answers)
        print(f"  not answered 200 within {PLUG_IN_SECONDS:.0f} s: {figures['class_200_failures']:.0f}"
              f" {dict(collections.Counter(answer.decode() for answer in failed))}", flush=True)


def growth(peers: dict[str, servers.Process], seconds: float) -> None:
    """Measure throughput, latency and memory at growing numbers of databases and of connections."""
    for databases in (1, 10, 100, 1000):
        with servers.ours(databases) as server:
            server.wait_for(f"(kind=Secret listed={databases})")
            one = load.one_by_one(server.target, ("heart_beat", "create_db"), 300)
            beat, made = (statistics.median(one[api]) for api in ("heart_beat", "create_db"))
            new, kept = (loaded(loop, server, seconds)[0]
                         for loop in (load.new_connections, load.closed_loop))
            print(f"{databases:5} databases   new {new:7.0f} /s   kept {kept:7.0f} /s   "
                  f"heart_beat {beat:.2f} ms   create_db {made:.2f} ms   {server.rss_mb():.0f} MB",
                  flush=True)
    for connections in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        rates = {name: load.closed_loop(server.target, connections, seconds)[0]
                 for name, server in peers.items()}
        print(f"{connections:5} connections "
              + "   ".join(f"{name} {rate:7.0f} /s" for name, rate in rates.items()), flush=True)


def main() -> None:
    """Measure as the options say."""
    parser = argparse.ArgumentParser(prog="scripts/bench",
                                     description="Measure the server; the last line is one JSON object.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, in 45 s")
    parser.add_argument("--growth", action="store_true",
                        help="also at 1 to 1,000 databases and 1 to 256 connections")
    parser.add_argument("--cluster", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds, seconds = (2, 0.3) if options.quick else (7, 2)
    for name in ("server", "alice"):
        subprocess.run([f"{servers.HERE}/../gen_cert.sh", name], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "KEY_STORE": servers.store()})
    print(f"{'':47} {'median':>9} {'':5} {'least':>9} .. most", flush=True)
    with servers.ours() as server, servers.tornado() as tornado, servers.nginx() as nginx:
        server.wait_for("(kind=Secret listed=1)")
        peers = {"ours": server, "Tornado": tornado, "nginx": nginx}
        best = compare(peers, rounds, seconds)
        tails({"ours": server, "Tornado": tornado}, best / 2, rounds, 2 * seconds)
        warm(server, 300 if options.quick else 1000)
        if options.growth:
            growth(peers, seconds)
    memory_and_start(rounds)
    on_a_cluster(options.cluster, 1 if options.quick else 9, 1 if options.quick else 2)
    print(json.dumps({key: round(figures[key], 3) for key in KEYS}))


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
