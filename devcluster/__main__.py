"""The command line."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word until `main` sees to it.

import argparse
import base64
import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from typing import NoReturn

try:
    import yaml
except ImportError:
    print("devcluster: it needs PyYAML: pip install PyYAML, or apt-get install python3-yaml", file=sys.stderr)
    sys.exit(2)

from devcluster.addresses import Range
from devcluster.controllers import Controllers
from devcluster.http import Server
from devcluster.node import Node
from devcluster.services import Proxy
from devcluster.store import Store

PREFIX = "devcluster-"  # What the folders are called that are made here.
# Between making a lock and taking it no more time passes than this.
LOCK_SECONDS = 2.0


def main() -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; return the exit status."""
    parser = Parser(prog="devcluster", description="A Kubernetes API in one process, on loopback.")
    parser.add_argument("--port", type=port_number, default=0,
                        help="TCP port of 127.0.0.1 (default: any free one)")
    parser.add_argument("--state", help="folder for the kubeconfig and the pods' data; it is kept "
                                        "(default: a temporary one)")
    parser.add_argument("--hollow", action="store_true",
                        help="run no databases: every pod is ready after a second")
    options = parser.parse_args()
    os.umask(0o077)
    state = os.path.abspath(options.state) if options.state else ""
    # Any thread may be given the signal, and would not wake this one from anything but reading a file.
    signalled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        clear_left_behind()
        state = state or tempfile.mkdtemp(prefix=PREFIX)
        os.makedirs(state, exist_ok=True)
        take(state)
        for name in ("pods", "installed"):  # MariaDB may be another one by now.
            shutil.rmtree(f"{state}/{name}", ignore_errors=True)
        addresses = Range()
        store = Store(str(addresses.services))
        node = Node(store, state, options.hollow, addresses)
        if node.mariadbd:
            addresses.check()
        tokens = {user: secrets.token_urlsafe(24) for user in ("admin", "nobody")}
        with Server(options.port, make_certificate(state), tokens, store, node) as server:
            reactors = [node.react]
            if node.mariadbd:
                reactors.append(Proxy(store).react)
            for run in (Controllers(store, *reactors).run, server.serve_forever):
                threading.Thread(target=run, daemon=True).start()
            port = server.server_address[1]
            print(f"export KUBECONFIG={write_kubeconfig(state, port, tokens)}", flush=True)
            pods = f"run {node.mariadbd}" if node.mariadbd else f"are hollow ({node.why_hollow})"
            print(f"# A Kubernetes API is on https://127.0.0.1:{port}. Its pods have addresses of "
                  f"{addresses.pods} and {pods}. Ctrl-C ends it.", flush=True)
            os.read(signalled, 1)
            server.shutdown()
        node.stop()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"devcluster: it cannot serve: {error}", file=sys.stderr)
        return 2
    finally:
        if state and not options.state:
            shutil.rmtree(state, ignore_errors=True)
    return 0


class Parser(argparse.ArgumentParser):
    """Refuses what it does not understand in one line, as all else that keeps it from serving."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        self.exit(2, f"devcluster: {message}: see --help\n")


def port_number(text: str) -> int:
    """Return a port of the command line. Raises ValueError or ArgumentTypeError."""
    if not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: from 1 to 65535, or 0 for any free one")
    return int(text)


def take(state: str) -> None:
    """Make a folder this process's, until it ends. Raises OSError."""
    try:
        fcntl.flock(os.open(f"{state}/lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"{state} is another dev cluster's, which runs") from None


def clear_left_behind() -> None:
    """Remove the folders of those that were killed: whoever is alive has a lock on theirs."""
    for path in glob.glob(f"{tempfile.gettempdir()}/{PREFIX}*/lock"):
        with contextlib.suppress(OSError), open(path, "r+") as lock:
            if time.time() - os.stat(path).st_mtime > LOCK_SECONDS:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def make_certificate(state: str) -> ssl.SSLContext:
    """Make a certificate for this machine alone; return a context with it.

    Raises OSError or CalledProcessError.
    """
    key, certificate = f"{state}/tls.key", f"{state}/tls.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-days", "365", "-subj", "/CN=devcluster", "-addext",
                    "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def write_kubeconfig(state: str, port: int, tokens: dict[str, str]) -> str:
    """Write a kubeconfig with a context for each user; return its path."""
    with open(f"{state}/tls.crt", "rb") as certificate:
        cluster = {"server": f"https://127.0.0.1:{port}",
                   "certificate-authority-data": base64.b64encode(certificate.read()).decode()}
    context = {"cluster": "devcluster", "namespace": "default"}
    with open(f"{state}/kubeconfig", "w", encoding="utf-8") as file:
        yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "admin",
            "clusters": [{"name": "devcluster", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}} for user, token in tokens.items()],
            "contexts": [{"name": user, "context": {**context, "user": user}} for user in tokens]}, file)
    return f"{state}/kubeconfig"


if __name__ == "__main__":
    sys.exit(main())
