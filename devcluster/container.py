"""A container: a process with the folders, the environment and the address of its pod.

It has no root, network or users of its own. So that it behaves as in its image all the same, a mount path in
its command, or in a *.sh file of a ConfigMap or Secret, stands for the folder that is mounted there, and
127.0.0.1 for the pod's address; the programs of the image are wrapped so that they start with the image's
settings instead of this machine's.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from typing import IO, Any, Callable

from devcluster.kinds import Object

# Where the image has folders of its own, which a volume may cover.
IMAGE_PATHS = ("/var/lib/mysql", "/run/mysqld", "/docker-entrypoint-initdb.d", "/tmp")
ENTRYPOINT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "docker-entrypoint.sh")
SERVERS, INSTALLERS = ("mariadbd", "mysqld"), ("mariadb-install-db", "mysql_install_db")
CLIENTS = ("mariadb", "mysql", "mariadb-admin", "mysqladmin", "mariadb-check", "mariadb-dump", "mysqldump")
WRAPPER = """#!/bin/sh
[ "${1:-}" != --no-defaults ] || shift
exec %s --no-defaults %s "$@" %s
"""


# Of volumes in memory, each a size and a folder; what follows -- is run.
MOUNT = """while [ "$1" != -- ]; do mount -t tmpfs -o size="$1",mode=1777 tmpfs "$2"; shift 2; done
shift; exec "$@\""""


# The system tables are the same each time, and two thirds of a first start's work: what one pod has made with
# the same options, the others copy, without the zeros in it. Most of its files are *.frm, which are linked,
# since MariaDB writes into none but puts another in its place: to make a file can take ext4 a millisecond.
INSTALLER = """#!/bin/sh
set -e
[ "${{1:-}}" != --no-defaults ] || shift
data={data} folder={folder} cache={cache}
made=$cache/$(echo "$*" | sed "s|$data||g; s|$folder||g" | cksum | tr ' ' -)
mkdir -p "$cache"
(
  flock 9
  [ -d "$made" ] || {{
    {program} --no-defaults "$@" {user} >&2
    rm -rf "$made.new"
    cp -r --sparse=always "$data" "$made.new"
    rm -rf "$made.new/first-start" "$made.new/lost+found"
    mv "$made.new" "$made"
  }}
) 9>"$cache/lock"
cd "$made"
find . -name '*.frm' -exec cp --parents --link --remove-destination -t "$data" {{}} + 2>/dev/null ||
  find . -name '*.frm' -exec cp --parents -t "$data" {{}} + # Into memory, which is another file system.
find . -type f ! -name '*.frm' -exec cp --parents -t "$data" {{}} +
"""


class NotYet(Exception):
    """A container that cannot be started so far: a kubelet's reason, and words."""


class Container:
    """One run of a pod's container."""

    def __init__(self, pod: Object, container: Object, address: str, folder: str, path: str,
                 find: Callable[[str, str], Object | None], claim: Callable[[str], str]) -> None:
        """Make its folders below the pod's, and its environment.

        path is where programs are; find gives an object of the pod's namespace, claim the folder of a
        PersistentVolumeClaim. Raises NotYet.
        """
        self.pod, self.spec, self.address, self.folder, self.find = pod, container, address, folder, find
        self.process: subprocess.Popen[bytes] | None = None
        self.in_memory: dict[str, str] = {}  # Volumes, and the sizes of them in bytes.
        self.mount(claim)
        self.programs(path)
        self.environment = self.variables(f"{folder}/bin:{path}")

    # -- what it finds

    def mount(self, claim: Callable[[str], str]) -> None:
        """Make the folders of its mount paths: its volumes', or its own, which are new. Raises NotYet."""
        volumes = {volume["name"]: volume for volume in self.pod["spec"].get("volumes", ())}
        self.paths = {path: f"{self.folder}/image{path}" for path in IMAGE_PATHS}
        projected = []
        shutil.rmtree(f"{self.folder}/image", ignore_errors=True)
        os.makedirs(f"{self.folder}/image")
        for mount in self.spec.get("volumeMounts", ()):
            volume, folder = volumes[mount["name"]], f"{self.folder}/volumes/{mount['name']}"
            if "persistentVolumeClaim" in volume:
                folder = claim(volume["persistentVolumeClaim"]["claimName"])
            os.makedirs(folder, exist_ok=True)
            projected.append((volume, folder))
            if (volume.get("emptyDir") or {}).get("medium") == "Memory":
                self.in_memory[folder] = str(size_of(volume["emptyDir"].get("sizeLimit", "64Mi")))
            path = mount["mountPath"].rstrip("/")
            self.paths[path] = os.path.join(folder, mount.get("subPath", "")).rstrip("/")
        for volume, folder in projected:  # Now that all paths are known, which its files may name.
            self.project(volume, folder)
        for folder in self.paths.values():
            os.makedirs(folder, exist_ok=True)

    def project(self, volume: Object, folder: str) -> None:
        """Write a ConfigMap's or Secret's files into a volume's folder. Raises NotYet."""
        for plural, field, key in (("configmaps", "configMap", "name"), ("secrets", "secret", "secretName")):
            if source := volume.get(field):
                data = self.needed(plural, source, source[key])
                items = {item["key"]: item["path"] for item in source.get("items", ())}
                for name in items or data:
                    file_path = f"{folder}/{items.get(name, name)}"
                    text = data.get(name, b"")
                    if file_path.endswith(".sh"):
                        text = self.localise(text.decode(errors="surrogateescape")).encode(
                            errors="surrogateescape")
                    os.makedirs(os.path.dirname(file_path), exist_ok=True)
                    with open(file_path, "wb") as file:
                        file.write(text)
                    os.chmod(file_path, source["defaultMode"])

    def needed(self, plural: str, source: Object, name: str) -> dict[str, bytes]:
        """Return what is in a Secret or ConfigMap. Raises NotYet if it is missing and not optional."""
        item = self.find(plural, name)
        if not item and not source.get("optional"):
            raise NotYet("CreateContainerConfigError", f'{plural[:-1]} "{name}" not found')
        data, packed = ((item or {}).get(field, {}) for field in ("data", "binaryData"))
        return {**{key: base64.b64decode(value) if plural == "secrets" else value.encode()
                   for key, value in data.items()},
                **{key: base64.b64decode(value) for key, value in packed.items()}}

    def variables(self, path: str) -> dict[str, str]:
        """Return its environment. Raises NotYet."""
        result = {"PATH": path, "HOME": f"{self.folder}/image", "HOSTNAME": self.pod["metadata"]["name"],
                  "LANG": "C.UTF-8", "TMPDIR": self.paths["/tmp"],
                  "MYSQL_UNIX_PORT": f"{self.paths['/run/mysqld']}/mysqld.sock",
                  "DEVCLUSTER_INITDB": self.paths["/docker-entrypoint-initdb.d"]}
        for variable in self.spec.get("env", ()):
            result[variable["name"]] = self.localise(variable.get("value", ""))
            for reference, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if source := variable.get("valueFrom", {}).get(reference):
                    data = self.needed(plural, source, source.get("name", ""))
                    if source["key"] not in data and not source.get("optional"):
                        raise NotYet("CreateContainerConfigError",
                                     f"couldn't find key {source['key']} in {plural[:-1]} {source['name']}")
                    result[variable["name"]] = data.get(source["key"], b"").decode()
        return result

    def programs(self, path: str) -> None:
        """Write what stands on its PATH before this machine's programs."""
        run, data = self.paths["/run/mysqld"], self.paths["/var/lib/mysql"]
        user = ["--user=root"] if os.geteuid() == 0 else []
        settings = ["--basedir=/usr", f"--datadir={data}", f"--socket={run}/mysqld.sock",
                    f"--pid-file={run}/mysqld.pid", "--skip-name-resolve", "--character-set-server=utf8mb4",
                    "--collation-server=utf8mb4_general_ci"]
        # SQL must not read and write this machine's files, least of all when root runs it.
        last = [f"--bind-address={self.address}", f"--secure-file-priv={self.folder}", *user]
        wrappers: list[tuple[tuple[str, ...], list[str], list[str], list[str]]] = [
            (SERVERS, with_this_thread(), settings, last), (INSTALLERS, [], user, []), (CLIENTS, [], [], [])]
        cache = f"{os.path.dirname(os.path.dirname(self.folder))}/installed"
        os.makedirs(f"{self.folder}/bin", exist_ok=True)
        for names, before, first, behind in wrappers:
            for name in names:
                if program := shutil.which(name, path=path):
                    text = WRAPPER % (shlex.join([*before, program]), shlex.join(first), shlex.join(behind))
                    if names == INSTALLERS:
                        text = INSTALLER.format(
                            program=program, user=shlex.join(user), data=shlex.quote(data),
                            folder=shlex.quote(self.folder), cache=shlex.quote(cache))
                    with open(f"{self.folder}/bin/{name}", "w", encoding="utf-8") as file:
                        file.write(text)
                    os.chmod(file.name, 0o755)
        with contextlib.suppress(FileExistsError):
            os.symlink(ENTRYPOINT, f"{self.folder}/bin/docker-entrypoint.sh")

    def localise(self, word: str) -> str:
        """Return a word of its command, or a script, as it is on this machine."""
        paths = "|".join(re.escape(path) for path in sorted(self.paths, key=len, reverse=True))
        return re.sub(rf"(?<![\w./-])(?:{paths})(?![\w.-])|\b127\.0\.0\.1\b",
                      lambda match: self.paths.get(match[0], self.address), word)

    # -- what it does

    def start(self, log: IO[bytes]) -> None:
        """Start its process, which ends with the calling thread, and so with this process. Raises OSError."""
        command = self.spec.get("command") or ["docker-entrypoint.sh"]
        arguments = self.spec.get("args") or ([] if self.spec.get("command") else ["mariadbd"])
        words = [*with_this_thread(), *self.with_volumes_in_memory(),
                 *map(self.localise, [*command, *arguments])]
        self.process = subprocess.Popen(words, env=self.environment, cwd=f"{self.folder}/image", stdout=log,
                                        stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)

    def with_volumes_in_memory(self) -> list[str]:
        """Return what starts a program with its volumes in memory, if mounting them is allowed."""
        mounts = [word for folder, size in self.in_memory.items() for word in (size, folder)]
        alone = ["unshare", "--mount", "sh", "-ec", MOUNT, "sh"]
        if not mounts or subprocess.run([*alone, *mounts, "--", "true"], capture_output=True).returncode:
            return []
        return [*alone, *mounts, "--"]

    def exited(self) -> bool:
        """Return whether its process has ended."""
        return not self.process or self.process.poll() is not None

    def kill(self) -> None:
        """Kill all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            if self.process:
                os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, grace_seconds: float) -> int:
        """End it, with SIGKILL after so long; return its exit code as Kubernetes has it."""
        assert self.process
        if not self.exited():
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
        self.kill()
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def probe(self, probe: Object) -> str:
        """Run a probe once; return what is wrong, or nothing."""
        try:
            if "tcpSocket" in probe:
                place = self.address, port_of(self.pod, probe["tcpSocket"]["port"])
                socket.create_connection(place, probe["timeoutSeconds"]).close()
            elif "exec" in probe:
                run = subprocess.run([self.localise(word) for word in probe["exec"]["command"]],
                                     env=self.environment, cwd=f"{self.folder}/image", capture_output=True,
                                     stdin=subprocess.DEVNULL, timeout=probe["timeoutSeconds"])
                said = (run.stdout + run.stderr).decode(errors="replace").strip()
                return (said or f"exit {run.returncode}") if run.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return ""


def with_this_thread() -> list[str]:
    """Return what starts a program that is killed when the thread that started it ends, however it does."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig=KILL"] if setpriv else []


def size_of(quantity: str) -> int:
    """Return a quantity in bytes."""
    match = re.fullmatch(r"(\d+)([KMG]i)?", str(quantity))
    return int(match[1]) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30}[match[2]] if match else 64 << 20


def port_of(pod: Object, port: Any) -> int:
    """Return a pod's port by its number or its name. Raises ValueError."""
    named = {item.get("name"): item["containerPort"] for container in pod["spec"]["containers"]
             for item in container.get("ports", ())}
    return int(named.get(port, port))
