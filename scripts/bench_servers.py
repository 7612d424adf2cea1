"""The servers that the benchmark measures: ours, one in Tornado, and nginx; all with the same certificates.

What ours is asked is answered from memory, and its kubectl is a stand-in that lists as many databases as
wanted, unless it is given a cluster.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import bench_load as load

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import playground

HERE = os.path.dirname(os.path.abspath(__file__))
KUBECONFIG = os.environ.get("PLAYGROUND_TEST_KUBECONFIG", "")
# Lists in pages, watches in silence until it is told by a FIFO what to say, replaces whatever it is given.
STAND_IN = """#!/bin/sh
case "$*" in *" replace "*) exec cat ;; esac
for path; do :; done
resource=${{path%%\\?*}}
resource=${{resource##*/}}
case $path in
*watch=1*) timeout --foreground 60 cat {folder}/$resource.watch || : ;;
*continue=*) exec cat {folder}/$resource.${{path##*continue=}} ;;
*limit=*) exec cat {folder}/$resource.0 ;;
esac
"""
NGINX = """daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; default_type application/json;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} ssl backlog=1024;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets off; ssl_session_cache off; ssl_verify_client on;
    ssl_certificate {store}/server/server.crt; ssl_certificate_key {store}/server/server.key;
    ssl_client_certificate {store}/ca/ca.crt; ssl_crl {store}/ca/ca.crl;
    location / {{ return 200 '{{"user_id": "alice", "status": "ready"}}\\n'; }}
  }}
}}
"""
TEMPLATE = playground.Template(f"{HERE}/../k8s_templates/mysql.yaml")
OWNED = 10  # Databases that are alice's; the others are a front end's.
folder = ""


class Process:
    """A server that runs until the end of a with statement."""

    def __init__(self, *command: str, kubeconfig: str = "", port: int = 0, says: str = r"port=(\d+)",
                 directory: str = ".") -> None:
        self.started = time.monotonic()
        self.log = tempfile.mktemp(prefix="log-", dir=folder)
        with open(self.log, "wb") as log:
            # A session of its own: Ctrl-C reaches this program alone, which ends it.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                            cwd=directory, env={**environment(), "KUBECONFIG": kubeconfig})
        try:
            self.said = str(port) if port else self.wait_for(says)
        except BaseException:
            self.__exit__()
            raise

    def wait_for(self, pattern: str) -> str:
        """Wait for a line of the log; return what the pattern's group matches. Raises SystemExit."""
        while time.monotonic() < self.started + 30 and self.process.poll() is None:
            if found := re.search(pattern, self.logged(), re.M):
                return found[1]
            time.sleep(0.005)
        raise SystemExit(f"bench: {self.process.args!r} does not start: {self.logged()}")

    def logged(self) -> str:
        """Return its log."""
        with open(self.log, encoding="utf-8") as file:
            return file.read()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def target(self) -> load.Target:
        """Where it listens."""
        return store(), int(self.said)

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self, which: str = "VmRSS") -> float:
        """Return its resident memory; VmHWM is the most that it ever was."""
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as file:
            return int(dict(line.split(":", 1) for line in file)[which].split()[0]) / 1024


def environment() -> dict[str, str]:
    """Return what programs are started with: Python keeps what it has compiled, as once installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": path("compiled")}


class Version(NamedTuple):
    """A checkout's playground.py, and what lists it databases in the form that it makes them."""

    directory: str
    stand_in: Callable[[int], str]
    options: tuple[str, ...] = ()

    def serve(self, databases: int = 1, port: int = 0) -> Process:
        """Start it with so many databases known.

        With a port, without waiting for it: the log, which tells the port, is written some 20 ms late.
        """
        return start(self.directory, "--namespace=bench", f"--kubectl={self.stand_in(databases)}",
                     *self.options, port=port)


def start(directory: str, *options: str, kubeconfig: str = "", port: int = 0) -> Process:
    """Start a checkout's python -m playground."""
    files = [f"--ca_crt={store()}/ca/ca.crt", f"--server_key={store()}/server/server.key",
             f"--server_crt={store()}/server/server.crt", f"--crl={store()}/ca/ca.crl"]
    return Process(sys.executable, "-m", "playground", "--host=127.0.0.1", f"--port={port}", *files,
                   "--max_connections_per_client=1000", *options, kubeconfig=kubeconfig, port=port,
                   directory=directory)


def on_cluster(namespace: str, *options: str, kubeconfig: str = "") -> Process:
    """Start ours on the cluster, or on another one."""
    return start(OURS.directory, f"--namespace={namespace}", "--max_databases=0", *options,
                 kubeconfig=kubeconfig or KUBECONFIG)


def of_checkout(directory: str) -> Version:
    """Return the version that another checkout holds."""
    mine = {name: sys.modules.pop(name) for name in ("playground", "bench_load", "bench_servers")}
    sys.path.insert(0, f"{directory}/scripts")
    try:
        theirs = importlib.import_module("bench_servers")
    finally:
        sys.path.remove(f"{directory}/scripts")
        sys.modules.update(mine)
    os.mkdir(path("other"))
    vars(theirs)["folder"] = path("other")
    return Version(directory, theirs.stand_in)


def path(name: str) -> str:
    """Return the path of a file of this run."""
    return os.path.join(folder, name)


def store() -> str:
    """Return the folder of the certificates."""
    return path("key_store")


def database(user: str = "", client: str = "alice") -> list[dict[str, Any]]:
    """Return a spare's objects, or a user's with the lease, in the order in which ours makes them."""
    id, password = secrets.token_hex(8), secrets.token_hex(16)
    if not user:
        return TEMPLATE.objects_of(id, password)
    given = lease(user, id, client)
    return [given, *TEMPLATE.objects_of(id, password, user, user, client, given["spec"]["acquireTime"])]


def lease(user: str, id: str, client: str = "alice") -> dict[str, Any]:
    """Return a user's lease of a database."""
    return playground.lease_of(user, user, client, id, "127.0.0.1", playground.micro_time(time.time()))


def claimed(secret: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return a spare's Secret as it is a user's who was given this lease."""
    return playground.labelled({"kind": "Secret", **secret}, given["metadata"]["labels"][playground.USER],
                               given["spec"]["acquireTime"])


def stand_in(databases: int) -> str:
    """Write a kubectl that lists alice's database and others, so many together; return its path."""
    there = path(f"{databases}-databases")
    program = f"{there}/kubectl"
    if os.path.exists(program):
        return program
    os.mkdir(there)
    listing: dict[str, list[Any]] = {"leases": [], "secrets": [], "pods": []}
    for number in range(databases):
        user = f"user-{number}" if number else "alice"
        for item in database(user, "alice" if number < OWNED else "front-end"):
            listing[playground.KINDS[item["kind"]][0]].append(as_read(item, number + 1))
    for resource, items in listing.items():
        write_pages(there, resource, items, databases)
        os.mkfifo(f"{there}/{resource}.watch")
    with open(program, "w", encoding="utf-8") as file:
        file.write(STAND_IN.format(folder=there))
    os.chmod(program, 0o755)
    return program


def write_pages(there: str, resource: str, items: list[Any], version: int) -> None:
    """Write a listing as an API server answers it, in pages, instead of the one that is there, if any."""
    size = playground.PAGE_OBJECTS
    for page in range(max(-(-len(items) // size), 1)):
        more = {"continue": str(page + 1)} if (page + 1) * size < len(items) else {}
        with open(f"{there}/{resource}.new", "w", encoding="utf-8") as file:
            json.dump({"kind": "List", "metadata": {"resourceVersion": str(version), **more},
                       "items": items[page * size:(page + 1) * size]}, file, separators=(",", ":"))
        os.replace(file.name, f"{there}/{resource}.{page}")


def expire(databases: int) -> None:
    """Have all watches of a stand-in told to list anew, when all leases have been renewed."""
    there = path(f"{databases}-databases")
    leases = []
    for page in range(max(-(-databases // playground.PAGE_OBJECTS), 1)):
        with open(f"{there}/leases.{page}", encoding="utf-8") as file:
            leases += json.load(file)["items"]
    for item in leases:
        item["metadata"]["resourceVersion"] = str(int(item["metadata"]["resourceVersion"]) + databases)
        item["spec"]["renewTime"] = playground.micro_time(time.time())
    write_pages(there, "leases", leases, 2 * databases)
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
    for resource in ("leases", "secrets", "pods"):
        with open(f"{there}/{resource}.watch", "w", encoding="utf-8") as watch:
            watch.write(json.dumps(gone) + "\n")


def as_read(item: dict[str, Any], version: int) -> dict[str, Any]:
    """Return an object as an API server lists it, of about the size that it has there."""
    now, kind = playground.rfc3339(int(time.time())), item["kind"]
    metadata = {**item["metadata"], "namespace": "bench", "uid": secrets.token_hex(18),
                "resourceVersion": str(version), "creationTimestamp": now}
    address = f"10.{version >> 14}.{version >> 7 & 127}.{version & 127}"
    if kind == "Lease":
        metadata["annotations"] = {**metadata["annotations"], playground.ADDRESS: address}
    if kind == "Secret":
        password = base64.b64encode(item["stringData"]["password"].encode()).decode()
        item = {**item, "type": "Opaque", "data": {"password": password}}
    item = {key: value for key, value in item.items() if key not in ("kind", "apiVersion", "stringData")}
    if kind == "Pod":
        container = item["spec"]["containers"][0]
        item["status"] = {
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": address, "startTime": now,
            "qosClass": "Burstable",
            "conditions": [{"type": name, "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
                           for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")],
            "containerStatuses": [{"name": container["name"], "image": container["image"], "ready": True,
                                   "restartCount": 0, "started": True, "lastState": {}, "imageID": "",
                                   "state": {"running": {"startedAt": now}}}]}
    written = {"manager": "kubectl-create", "operation": "Update", "apiVersion": "v1", "time": now,
               "fieldsType": "FieldsV1", "fieldsV1": fields(item)}
    return {**item, "metadata": {**metadata, "managedFields": [written]}}


def fields(value: Any) -> dict[str, Any]:
    """Return which fields an object has, as an API server notes down who wrote them."""
    if isinstance(value, dict):
        return {f"f:{key}": fields(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {f"k:{json.dumps(next(iter(inner.values())))}": fields(inner) for inner in value}
    return {}


OURS = Version(f"{HERE}/..", stand_in, ("--spare_databases=0",))


def tornado() -> Process:
    """Start the server in Tornado."""
    return Process(sys.executable, f"{HERE}/bench_tornado.py", store())


def nginx() -> Process:
    """Start nginx, which answers a constant."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    configuration = path("nginx.conf")
    with open(configuration, "w", encoding="utf-8") as file:
        file.write(NGINX.format(folder=folder, store=store(), port=port))
    server = Process("nginx", "-p", folder, "-c", configuration, port=port)
    time.sleep(0.3)
    return server


def devcluster() -> Process:
    """Start a dev cluster, whose pods run MariaDB; what it says is its kubeconfig's path."""
    return Process(sys.executable, "-m", "devcluster", says="export KUBECONFIG=(.*)")
