"""HTTP: the API's paths, lists and watches, and its faults."""

from __future__ import annotations

import contextlib
import http.server
import json
import random
import re
import socket
import socketserver
import ssl
import sys
import time
import urllib.parse
from typing import Any

from devcluster.errors import NOWHERE, ApiError, Malformed, bad_request, forbidden
from devcluster.kinds import KINDS, VERSION, Kind, Object
from devcluster.node import Node
from devcluster.objects import Match, at, decode, from_wire, merge, selection, wire_fields
from devcluster.openapi import openapi
from devcluster.printing import table
from devcluster.store import Store

# A TLS handshake, and a kept connection without a request; the connection ends beyond each.
HANDSHAKE_SECONDS, IDLE_SECONDS = 10.0, 120.0
# A request's body; 413 beyond it. As much as a real API server takes; a Secret or ConfigMap holds 1 MiB.
MAX_BODY_BYTES = 3 * 1024 * 1024
# A watch that asks for no timeoutSeconds ends between this and twice as much, as on a real API server.
WATCH_SECONDS = 1800.0
# Between a watch's bookmarks, and from the last one to its end, as on a real API server.
BOOKMARK_SECONDS, LAST_BOOKMARK_SECONDS = 60.0, 2.0

GROUPS = ("authorization.k8s.io", "coordination.k8s.io")
FAULTS = {"latency_seconds", "errors", "drop_connections", "silence_watches", "end_watches", "expire_watches",
          "never_ready", "room", "kill_pods", "oom_pods", "evict_pods", "move_pods"}


def encoded(body: Object) -> bytes:
    """Return an object as the API sends it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections on loopback; a thread each does the rest, the TLS handshake included."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, context: ssl.SSLContext, tokens: dict[str, str], store: Store,
                 node: Node) -> None:
        """Listen on a port of 127.0.0.1; each user has a token. Raises OSError."""
        self.context, self.store, self.node = context, store, node
        self.users = {token: user for user, token in tokens.items()}
        self.faults: Object = {}
        self.watches_ended = 0.0
        super().__init__(("127.0.0.1", port), Connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without a byte read or written."""
        connection, address = super().get_request()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def order(self, faults: Object) -> Object:
        """Have these faults from now on, and do what is ordered once."""
        if unknown := faults.keys() - FAULTS:
            raise bad_request(f"unknown fault: {', '.join(sorted(unknown))}")
        with self.store.changed:
            self.faults = faults
            if faults.pop("expire_watches", False):
                self.store.expire()
            if faults.pop("end_watches", False):
                self.watches_ended = time.monotonic()
            self.store.changed.notify_all()
        self.node.order(faults)
        return faults


class Connection(http.server.BaseHTTPRequestHandler):
    """One client's connection: its requests, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        """Shake hands."""
        self.request.settimeout(HANDSHAKE_SECONDS)
        self.request.do_handshake()
        self.request.settimeout(IDLE_SECONDS)
        super().setup()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: kubectl -v=8 shows what was asked and answered."""

    def take_request(self) -> None:
        """Answer one request, or go wrong as ordered."""
        self.store, faults = self.server.store, self.server.faults
        self.url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(self.url.query, keep_blank_values=True))
        try:
            self.body = self.read_body()
            if self.url.path != "/devcluster/faults":
                time.sleep(faults.get("latency_seconds", 0))
                if faults.get("drop_connections"):
                    self.close_connection = True
                    return
                if faults.get("errors", 0) > 0 and self.url.path.startswith("/api"):
                    faults["errors"] -= 1
                    raise ApiError(500, "InternalError", "Internal error occurred: as ordered",
                                   {"causes": [{"message": "as ordered"}]})
            self.route([urllib.parse.unquote(part) for part in self.url.path.strip("/").split("/")])
        except ApiError as error:
            self.answer(error.status, error.code)
        except Malformed as error:
            error_of = re.findall(r"v1\.(\w+)", error.words)
            failure = error.error(error_of[0] if error_of else "object", self.body.decode(errors="replace"))
            self.answer(failure.status, failure.code)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = take_request

    def read_body(self) -> bytes:
        """Return the request's body; kubectl sends its stdin in chunks. Raises ApiError 413."""
        chunked, body = "chunked" in self.headers.get("Transfer-Encoding", ""), b""
        size = int(self.headers.get("Content-Length") or 0)
        while size and not chunked or chunked and (size := int(self.rfile.readline().partition(b";")[0], 16)):
            if len(body) + size > MAX_BODY_BYTES:
                self.close_connection = True
                raise ApiError(413, "RequestEntityTooLarge",
                               f"Request entity too large: limit is {MAX_BODY_BYTES}")
            body += self.rfile.read(size)
            if not chunked:
                return body
            self.rfile.readline()
        if chunked:
            self.rfile.readline()
        return body

    def read_object(self) -> Object:
        """Return the object in the body. Raises ApiError 400."""
        try:
            if self.body.startswith(b"k8s\0"):
                envelope = dict(wire_fields(self.body[4:]))
                api_version, kind = (dict(wire_fields(envelope[1]))[number].decode() for number in (1, 2))
                return {"apiVersion": api_version, "kind": kind, **from_wire(kind, envelope.get(2, b""))}
            item = json.loads(self.body)
            if isinstance(item, dict):
                return item
            raise ValueError("not an object")
        except (ValueError, KeyError) as error:
            raise bad_request("the object provided is unrecognized: couldn't get version/kind; json parse "
                              f"error: {error}") from None

    def answer(self, body: Object | bytes, code: int = 200) -> None:
        """Send a whole answer."""
        data = body if isinstance(body, bytes) else encoded(body)
        content_type = "application/octet-stream" if body is data else "application/json"
        self.wfile.write(
            f"HTTP/1.1 {code} {self.responses.get(code, ('',))[0]}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def begin(self, content_type: str) -> None:
        """Begin an answer that has no length."""
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n".encode())

    def send(self, data: bytes) -> None:
        """Send a piece of it; an empty one ends it."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def user(self) -> str:
        """Return who asks. Raises ApiError 401."""
        token = self.headers.get("Authorization", "").rpartition(" ")[2]
        if token and token not in self.server.users:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return self.server.users.get(token, "system:anonymous")

    def route(self, parts: list[str]) -> None:
        """Answer a request by its path and the user's rights (Kubernetes, "API Concepts")."""
        user, path = self.user(), self.url.path
        core, group = parts[0] == "api", parts[1] if parts[0] == "apis" and len(parts) > 1 else ""
        version, *rest = parts[1 if core else 2:] or [""]
        namespace, rest = (rest[1], rest[2:]) if rest[:1] == ["namespaces"] and len(rest) > 2 else ("", rest)
        plural, name, sub = (*rest, "", "", "")[:3]
        kind = KINDS.get(plural)
        if not (core or group) or version != "v1" or not kind or kind.group != group or len(rest) > 3:
            public: tuple[str, ...] = ("/version", "/healthz", "/livez", "/readyz")
            public += ("/api", "/openapi") if user == "nobody" else ()
            if user != "admin" and not path.startswith(public):
                message = f'forbidden: User "{user}" cannot {self.command.lower()} path "{path}"'
                raise ApiError(403, "Forbidden", message, {})
            return self.answer(self.static(path, user))
        several = "watch" if self.query.get("watch") in ("1", "true") else "list"
        verb = {"GET": "get" if name else several, "POST": "create", "PUT": "update", "PATCH": "patch",
                "DELETE": "delete" if name else "deletecollection"}[self.command]
        if user != "admin":
            where = namespace or (name if plural == "namespaces" else "")
            scope = f'in the namespace "{where}"' if where else "at the cluster scope"
            asked = plural + (sub and f"/{sub}")
            message = f'User "{user}" cannot {verb} resource "{asked}" in API group "{group}" {scope}'
            raise forbidden(kind, name, message)
        if (plural, sub, verb) == ("pods", "log", "get"):
            return self.log(self.store.get(plural, namespace, name))
        if sub:
            raise NOWHERE
        if verb in ("list", "watch", "deletecollection"):
            return self.several(kind, namespace, verb)
        if (verb == "create") == bool(name) or bool(namespace) == (plural == "namespaces"):
            message = "the server does not allow this method on the requested resource"
            raise ApiError(405, "MethodNotAllowed", message, {})
        return self.one(kind, namespace, name, verb)

    def one(self, kind: Kind, namespace: str, name: str, verb: str) -> None:
        """Create, read, change or delete one object."""
        plural, dry_run, code = kind.plural, "dryRun" in self.query, 200
        content_type = self.headers.get("Content-Type", "").partition(";")[0]
        body = self.read_object() if self.body else {}
        if verb == "delete":
            self.answer(self.store.delete(plural, namespace, name, {**self.query, **body}))
            return
        if verb == "create":
            if body.get("kind", kind.name) != kind.name:
                raise bad_request(f'{body["kind"]} in version "v1" cannot be handled as a {kind.name}: '
                                  f"converting (v1.{body['kind']}) to (core.{kind.name}): unknown conversion")
            if at(body, "metadata.namespace") not in (None, "", namespace):
                raise bad_request("the namespace of the provided object does not match the namespace sent on "
                                  "the request")
            item, code = self.store.create(plural, namespace, body, dry_run), 201
        elif verb == "update":
            item = self.store.replace(plural, namespace, name, body, dry_run)
        elif verb == "get":
            item = self.store.get(plural, namespace, name)
        elif content_type in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            shape = kind.name if "strategic" in content_type else "*"
            item = self.store.update(plural, namespace, name, lambda old: merge(old, body, shape), dry_run)
        else:
            raise ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        self.answer(self.shown(kind, item), code)

    def shown(self, kind: Kind, item: Object) -> Object:
        """Return an object, as a Table if the client asks for one."""
        if "as=Table" not in self.headers.get("Accept", ""):
            return item
        meta = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
        return table(kind, [item], meta, self.query.get("includeObject") == "Object")

    def several(self, kind: Kind, namespace: str, verb: str) -> None:
        """List, watch or delete objects."""
        match = selection(kind, self.query.get("labelSelector", ""), self.query.get("fieldSelector", ""))
        version, exact = self.query.get("resourceVersion") or "0", self.query.get("resourceVersionMatch")
        if not version.isdigit():
            raise ApiError(500, "", f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: '
                                    f'parsing "{version}": invalid syntax')
        if verb == "watch" and exact:  # Go's newer clients ask for the list in the watch, or else without.
            message = "Forbidden: resourceVersionMatch is forbidden for watch"
            cause = {"reason": "FieldValueForbidden", "message": message, "field": "resourceVersionMatch"}
            message = f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: {message}'
            raise ApiError(422, "Invalid", message, {
                "group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]})
        if verb == "watch":
            return self.watch(kind, namespace, match, int(version))
        limit, after = self.query.get("limit") or "0", self.query.get("continue", "")
        if not re.fullmatch(r"-?\d+", limit, re.A):
            raise bad_request(f'strconv.ParseInt: parsing "{limit}": invalid syntax')
        if after and self.query.get("resourceVersion"):
            raise bad_request("specifying resource version is not allowed when using continue")
        with self.store.changed:
            current = self.store.version
            if int(version) > current:
                cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
                message = f"Timeout: Too large resource version: {version}, current: {current}"
                raise ApiError(504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})
            if exact == "Exact" and int(version) < self.store.oldest:
                raise ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")
            # From its cache, which is what version 0 asks for, a real API server answers whole lists.
            whole = verb == "deletecollection" or self.query.get("resourceVersion") == "0"
            most = 0 if whole else max(int(limit), 0)
            items, meta = self.store.page(kind.plural, namespace, match, most, after)
            if self.query.get("labelSelector") or self.query.get("fieldSelector"):
                meta.pop("remainingItemCount", None)
            for item in items if verb == "deletecollection" else ():
                options = {**self.query, **(self.read_object() if self.body else {})}
                where = item["metadata"].get("namespace", "")
                self.store.delete(kind.plural, where, item["metadata"]["name"], options)
        if "as=Table" in self.headers.get("Accept", ""):
            return self.answer(table(kind, items, meta, self.query.get("includeObject") == "Object"))
        bare = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")}
                for item in items]
        return self.answer({"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": meta,
                            "items": bare})

    def watch(self, kind: Kind, namespace: str, match: Match, version: int) -> None:
        """Send what happens from a version on, or from the present state on if that is 0."""
        store, server, started = self.store, self.server, time.monotonic()
        ends = started + float(self.query.get("timeoutSeconds") or WATCH_SECONDS * random.uniform(1, 2))
        bookmarks = self.query.get("allowWatchBookmarks") in ("1", "true")
        bookmark_at = min(started + BOOKMARK_SECONDS, ends - LAST_BOOKMARK_SECONDS) if bookmarks else ends

        def tell(category: str, item: Object) -> None:
            shown = item if "code" in item else self.shown(kind, item)
            self.send(encoded({"type": category, "object": shown}))

        def selected(item: Object | None) -> bool:
            return bool(item and namespace in ("", item["metadata"].get("namespace")) and match(item))
        self.begin("application/json")
        with store.changed:
            present = [] if version else store.select(kind.plural, namespace, match)
            version = version or store.version
        for item in present:
            tell("ADDED", item)
        while time.monotonic() < ends and server.watches_ended < started:
            with store.changed:
                if store.version == version and server.watches_ended < started:
                    store.changed.wait(max(min(bookmark_at, ends) - time.monotonic(), 0))
                changes, oldest, current = store.history[max(version - store.oldest,
                                                             0):], store.oldest, store.version
            if server.faults.get("silence_watches"):
                time.sleep(0.1)
                continue
            if version < oldest:
                tell("ERROR",
                     ApiError(410, "Expired", f"too old resource version: {version} ({oldest})").status)
                break
            version = max(version, current)
            for change in changes:
                was, still = selected(change.before), selected(change.after)
                if change.kind is kind and (was or still):
                    tell("MODIFIED" if was and still else "ADDED" if still else "DELETED", change.item)
            if bookmarks and bookmark_at <= time.monotonic() < ends:
                last = ends - LAST_BOOKMARK_SECONDS
                bookmark_at = min(bookmark_at + BOOKMARK_SECONDS, last) if bookmark_at < last else ends
                self.send(encoded({"type": "BOOKMARK", "object": {
                    "kind": kind.name, "apiVersion": kind.api_version,
                    "metadata": {"resourceVersion": str(version)}}}))
        self.send(b"")

    def log(self, pod: Object) -> None:
        """Send what a pod's container printed."""
        names = [container["name"] for container in pod["spec"]["containers"]]
        name = self.query.get("container") or names[0]
        if name not in names:
            raise bad_request(f"container {name} is not valid for pod {pod['metadata']['name']}")
        self.begin("text/plain")
        with contextlib.suppress(FileNotFoundError), open(self.server.node.log_path(pod, name), "rb") as file:
            lines = file.readlines()
            following = True
            while lines or following:
                data = b"".join(lines[-int(self.query.get("tailLines", 0)):])
                self.query.pop("tailLines", None)
                if data:
                    self.send(data)
                following = self.query.get("follow") == "true" and pod["metadata"]["uid"] in self.store.uids
                time.sleep(0.2 if following else 0)
                lines = file.readlines()
        self.send(b"")

    def static(self, path: str, user: str) -> Object | bytes:
        """Return what is not an object's: what there is, who may do what, the faults. Raises ApiError 404."""
        if path == "/devcluster/faults":
            return self.server.order(self.read_object()) if self.command == "POST" else self.server.faults
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" and self.command == "POST":
            return self.review(user)

        def resources(group: str, *more: Object) -> Object:
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/v1".strip("/"),
                    "resources": [
                *({"name": kind.plural, "singularName": "", "namespaced": kind.name != "Namespace",
                   "kind": kind.name,
                   "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update",
                             "watch"],
                   "shortNames": kind.short.split(), "categories": ["all"] if kind.in_all else []}
                  for kind in KINDS.values() if kind.group == group), *more]}
        groups = [{"name": group, "versions": [version], "preferredVersion": version}
                  for group in GROUPS
                  for version in [{"groupVersion": f"{group}/v1", "version": "v1"}]]
        answers: dict[str, Object | bytes] = {
            "/version": {"major": "1", "minor": "20", "gitVersion": VERSION, "platform": sys.platform},
            "/healthz": b"ok", "/livez": b"ok", "/readyz": b"ok", "/openapi/v2": openapi(),
            "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
            "/api/v1": resources("",
                                 {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod",
                                  "verbs": ["get"]}),
            **{f"/apis/{group}/v1": resources(group) for group in GROUPS},
            "/apis/authorization.k8s.io/v1": resources("authorization.k8s.io", {
                "name": "selfsubjectaccessreviews", "singularName": "", "namespaced": False,
                "kind": "SelfSubjectAccessReview",
                "verbs": ["create"]}),
        }
        if path not in answers:
            raise NOWHERE
        return answers[path]

    def review(self, user: str) -> Object:
        """Return whether a user may do what a SelfSubjectAccessReview asks. Raises ApiError 422."""
        item = decode("SelfSubjectAccessReview", {"spec": {}, **self.read_object()})
        if len(item["spec"].keys() & {"resourceAttributes", "nonResourceAttributes"}) != 1:
            field = "spec.resourceAttributes"
            message = ('Invalid value: "null": exactly one of nonResourceAttributes or resourceAttributes '
                       "must be specified")
            raise ApiError(422, "Invalid", f'.authorization.k8s.io "" is invalid: {field}: {message}', {
                "group": "authorization.k8s.io",
                "causes": [{"reason": "FieldValueInvalid", "message": message, "field": field}]})
        return {**item, "metadata": {"creationTimestamp": None}, "status": {"allowed": user == "admin"}}
