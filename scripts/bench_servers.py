"""The servers that the benchmark measures: ours, one in Tornado, and nginx; all with the same certificates.

What ours is asked is answered from memory, and its kubectl is a stand-in that lists as many databases as
wanted, unless it is given a cluster.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import bench_load as load

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import playground

HERE = os.path.dirname(os.path.abspath(__file__))
# Or a changed one, to compare.
PROGRAM = os.environ.get("PLAYGROUND_BENCH_PROGRAM", f"{HERE}/../playground.py")
KUBECONFIG = os.environ.get("PLAYGROUND_TEST_KUBECONFIG", "")
# Answers one listing, then watches in silence.
STAND_IN = """#!/bin/sh
case "$*" in
*watch=1*) exec sleep 60 ;;
*statefulsets*) exec cat {folder}/{count}.StatefulSet ;;
*services*) exec cat {folder}/{count}.Service ;;
*secrets*) exec cat {folder}/{count}.Secret ;;
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
    ssl_client_certificate {store}/ca/ca.crt;
    location / {{ return 200 '{{"user_id": "alice", "status": "ready"}}\\n'; }}
  }}
}}
"""
TEMPLATE = playground.Template(f"{HERE}/../k8s_templates/mysql.yaml")
folder = ""


class Process:
    """A server that runs until the end of a with statement."""

    def __init__(self, *command: str, kubeconfig: str = "", port: int = 0) -> None:
        self.started = time.monotonic()
        self.log = tempfile.mktemp(prefix="log-", dir=folder)
        with open(self.log, "wb") as log:
            # A session of its own: Ctrl-C reaches this program alone, which ends it.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                            env={**os.environ, "KUBECONFIG": kubeconfig})
        try:
            self.port = port or int(self.wait_for(r"port=(\d+)"))
        except BaseException:
            self.__exit__()
            raise

    def wait_for(self, pattern: str) -> str:
        """Wait for a line of the log; return what the pattern's group matches. Raises SystemExit."""
        while time.monotonic() < self.started + 30 and self.process.poll() is None:
            with open(self.log, encoding="utf-8") as file:
                if found := re.search(pattern, file.read(), re.M):
                    return found[1]
            time.sleep(0.005)
        with open(self.log, encoding="utf-8") as file:
            raise SystemExit(f"bench: {self.process.args!r} does not start: {file.read()}")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def target(self) -> load.Target:
        """Where it listens."""
        return store(), self.port

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return its resident memory."""
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as file:
            return int(dict(line.split(":", 1) for line in file)["VmRSS"].split()[0]) / 1024


def path(name: str) -> str:
    """Return the path of a file of this run."""
    return os.path.join(folder, name)


def store() -> str:
    """Return the folder of the certificates."""
    return path("key_store")


def ours(databases: int = 1, *options: str, namespace: str = "", port: int = 0) -> Process:
    """Start the server, on the cluster if a namespace is given, else with so many databases known.

    With a port, without waiting for it: its log, which tells the port, is written some 20 ms late.
    """
    if not namespace:
        options = (*options, f"--kubectl={stand_in(databases)}")
    files = [f"--ca_crt={store()}/ca/ca.crt", f"--server_key={store()}/server/server.key",
             f"--server_crt={store()}/server/server.crt"]
    return Process(sys.executable, PROGRAM, "--host=127.0.0.1", f"--port={port}", *files,
                   f"--namespace={namespace or 'bench'}", "--max_connections_per_client=1000", *options,
                   kubeconfig=KUBECONFIG if namespace else "", port=port)


def filled(user: str, number: int = 0) -> list[dict[str, Any]]:
    """Return the objects of a user's database."""
    return TEMPLATE.fill({
        "name": f"mysql-{user}", "slug": user, "user_id": user, "client": "alice", "set": f"{number:016x}",
        "password": secrets.token_hex(16), "now": playground.rfc3339(time.time())})


def stand_in(databases: int) -> str:
    """Write a kubectl that lists alice's database and others, so many together; return its path."""
    program = path(f"kubectl-{databases}")
    if os.path.exists(program):
        return program
    listing: dict[str, list[Any]] = {"StatefulSet": [], "Service": [], "Secret": []}
    for number in range(databases):
        for item in filled(f"user-{number}" if number else "alice", number):
            kind = str(item.pop("kind"))
            password = item.pop("stringData", {})["password"] if kind == "Secret" else ""
            # Read from an API server, an object of ours is longer by about so much.
            item["metadata"].update(
                uid=secrets.token_hex(18), resourceVersion=str(number + 1),
                creationTimestamp=playground.rfc3339(time.time()),
                managedFields=[secrets.token_hex(1000 if kind == "StatefulSet" else 300)])
            item |= {"status": {"readyReplicas": 1}} if kind == "StatefulSet" else {}
            if kind == "Secret":
                item["data"] = {"password": base64.b64encode(password.encode()).decode()}
            if kind == "Service":
                item["spec"]["clusterIP"] = "10.0.0.1"
            listing[kind].append(item)
    for kind, items in listing.items():
        with open(path(f"{databases}.{kind}"), "w", encoding="utf-8") as file:
            json.dump({"metadata": {"resourceVersion": "1"}, "items": items}, file)
    with open(program, "w", encoding="utf-8") as file:
        file.write(STAND_IN.format(folder=folder, count=databases))
    os.chmod(program, 0o755)
    return program


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
