"""The store: every object, and every change so far."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import queue
import random
import secrets
import threading
import time
import uuid
from typing import Any, Callable, NamedTuple

from devcluster.errors import ApiError, about, bad_request, conflict, forbidden, not_found, wrong_uid
from devcluster.kinds import KINDS, NODE, Kind, Object
from devcluster.objects import Match, admit, check, decode, invalid

# Changes that a watch can resume from; 410 Gone beyond it. A database makes about 20 in its life.
MAX_HISTORY = 10_000
RFC_3339 = "%Y-%m-%dT%H:%M:%SZ"
TOO_OLD_TO_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new "
    "list without the continue parameter, or use the continue token in this response to retrieve the "
    "remainder of the results. Continuing with the provided token results in an inconsistent list - objects "
    "that were created, modified, or deleted between the time the first chunk was returned and now may show "
    "up in the list.")
OVER = ("Failed", "Succeeded")  # The phases of a pod that nothing needs to be waited for.
GIVEN = ("annotations", "labels")  # What a client may change of metadata.


class Change(NamedTuple):
    """What happened to one object: what it was, if any; what it is, if it has not gone; it, either way."""

    kind: Kind
    before: Object | None
    after: Object | None
    item: Object


def now(later: float = 0) -> str:
    """Return the time, or so many seconds later, as the API writes it."""
    return time.strftime(RFC_3339, time.gmtime(time.time() + later))


def write_token(version: int, start: tuple[str, str]) -> str:
    """Return what a client continues a list with, that has come to a namespace and name."""
    token = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": "/".join(start) + "\0"})
    return base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def read_token(token: str) -> tuple[int, tuple[str, str]]:
    """Return a list's version, and the namespace and name that it has come to. Raises ApiError 400."""
    try:
        place = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = place["start"].rstrip("\0").partition("/")
        return int(place["rv"]), (namespace, name)
    except (ValueError, KeyError, TypeError) as error:
        raise bad_request(f"invalid continue token: continue key is not valid: {error}") from None


class Store:
    """The objects, of which none is changed in place, and the changes so far; one lock guards both."""

    def __init__(self, services: str = "127.96.0.0/16") -> None:
        """Begin with the namespaces that every cluster has; Services get addresses of this network."""
        self.services = ipaddress.ip_network(services)
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[str, dict[tuple[str, str], Object]] = {plural: {} for plural in KINDS}
        self.uids: set[str] = set()
        self.history: list[Change] = []
        self.oldest = self.version = 1  # Before the first change of the history, and after the last.
        self.followers: queue.SimpleQueue[Change] = queue.SimpleQueue()  # All changes, for the controllers.
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self.create("namespaces", "", {"metadata": {"name": name}})

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        with self.changed:
            return self.objects[plural].get((namespace, name))

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """Return an object. Raises ApiError 404."""
        item = self.find(plural, namespace, name)
        if not item:
            raise not_found(KINDS[plural], name)
        return item

    def select(self, plural: str, namespace: str = "", match: Match = bool) -> list[Object]:
        """Return the objects that match, sorted; of all namespaces if none is given."""
        with self.changed:
            return [item for key, item in sorted(self.objects[plural].items())
                    if namespace in ("", key[0]) and match(item)]

    def page(self, plural: str, namespace: str, match: Match, limit: int,
             after: str) -> tuple[list[Object], Object]:
        """Return a page of a list, as it was at the moment of the first page, and the page's metadata.

        A limit of 0 is none; after is the token of the page before, if any. Raises ApiError 400 and 410.
        """
        with self.changed:
            version, start = read_token(after) if after else (self.version, ("", ""))
            version = self.version if version < 0 else version
            if version < self.oldest:
                again: Object = {"continue": write_token(-1, start)}
                raise ApiError(410, "Expired", TOO_OLD_TO_CONTINUE, **again)
            items = dict(self.objects[plural])
            for change in reversed(self.history[version - self.oldest:]):
                if change.kind.plural == plural:
                    changed = change.item["metadata"]
                    items[changed.get("namespace", ""), changed["name"]] = change.before or {}
        keys = sorted(key for key, item in items.items()
                      if item and key > start and namespace in ("", key[0]) and match(item))
        meta: Object = {"resourceVersion": str(version)}
        if limit and len(keys) > limit:
            meta["continue"] = write_token(version, keys[limit - 1])
            meta["remainingItemCount"] = len(keys) - limit
        return [items[key] for key in keys[:limit or None]], meta

    def put(self, kind: Kind, before: Object | None, after: Object | None) -> Object:
        """Make a change. The lock must be held."""
        self.version += 1
        item = after or before or {}
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        meta = item["metadata"]
        if after:
            self.objects[kind.plural][meta.get("namespace", ""), meta["name"]] = item
            self.uids.add(meta["uid"])
        else:
            del self.objects[kind.plural][meta.get("namespace", ""), meta["name"]]
            self.uids.discard(meta["uid"])
        change = Change(kind, before, item if after else None, item)
        self.history.append(change)
        if len(self.history) > 2 * MAX_HISTORY:
            del self.history[:MAX_HISTORY]
            self.oldest += MAX_HISTORY
        self.followers.put(change)
        self.changed.notify_all()
        return item

    def expire(self) -> None:
        """Lose the history, as by etcd's compaction."""
        with self.changed:
            self.history, self.oldest, self.version = [], self.version + 1, self.version + 1
            self.changed.notify_all()

    def create(self, plural: str, namespace: str, item: Object, dry_run: bool = False) -> Object:
        """Add an object. Raises ApiError 403, 404, 409 or 422, and Malformed."""
        kind = KINDS[plural]
        item = decode(kind.name, {"metadata": {}, **item, "kind": kind.name, "apiVersion": kind.api_version})
        given = item["metadata"]
        name = given.get("name") or given.get("generateName", "") + "".join(
            secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5 if "generateName" in given else 0))
        item["metadata"] = {
            **{key: given[key] for key in ("generateName", *GIVEN) if given.get(key)},
            **({"name": name} if name else {}), **({"namespace": namespace} if namespace else {}),
            "creationTimestamp": now(), "uid": str(uuid.uuid4())}
        with self.changed:
            if namespace and "deletionTimestamp" in self.get("namespaces", "", namespace)["metadata"]:
                raise forbidden(kind, name, f"unable to create new content in namespace {namespace} because "
                                            "it is being terminated")
            self.check_quotas(kind, namespace, name)
            self.complete(kind, item)
            check(kind, item)
            if self.find(plural, namespace, name):
                message = f'{kind.resource} "{name}" already exists'
                raise ApiError(409, "AlreadyExists", message, about(kind, name))
            return item if dry_run else self.put(kind, None, item)

    def complete(self, kind: Kind, item: Object) -> None:
        """Fill in what does not come from the client. Raises ApiError 422."""
        if kind.name == "Secret":
            plain = {key: base64.b64encode(value.encode()).decode()
                     for key, value in item.pop("stringData", {}).items()}
            if plain or "data" in item:
                item["data"] = {**item.get("data", {}), **plain}
        elif kind.name == "Pod":
            item["status"] = {"phase": "Pending", "qosClass": admit(item["spec"])}
        elif kind.name == "Namespace":
            item["status"] = {"phase": "Active"}
        elif kind.name == "Service" and item["spec"]["type"] != "ExternalName":
            taken = {service["spec"].get("clusterIP")
                     for service in self.objects["services"].values()} - {"None"}
            address = item["spec"].get("clusterIP", "")
            while not address or address in taken and "clusterIP" not in item["spec"]:
                address = str(self.services[random.randrange(1, self.services.num_addresses - 1)])
            outside = address != "None" and ipaddress.ip_address(address) not in self.services
            if address in taken or outside:
                why = "already allocated" if address in taken else \
                    f"not in the valid range. The range of valid IPs is {self.services}"
                invalid(kind, item["metadata"]["name"], [{
                    "reason": "FieldValueInvalid", "field": "spec.clusterIPs",
                    "message": f'Invalid value: []string{{"{address}"}}: failed to allocated ip:{address} '
                               f"with error:provided IP is {why}"}])
            item["spec"].update(clusterIP=address, clusterIPs=[address])

    def used(self, namespace: str, resource: str) -> int:
        """Return how many there are of what a quota calls services or count/leases.coordination.k8s.io."""
        plural = resource.rpartition("count/")[2].partition(".")[0]
        items = self.select(plural, namespace) if plural in KINDS else []
        return sum(resource != "pods" or item["status"]["phase"] not in OVER for item in items)

    def check_quotas(self, kind: Kind, namespace: str, name: str) -> None:
        """Raise ApiError 403 if one more of a kind would be too many."""
        for quota in self.select("resourcequotas", namespace) if namespace else ():
            hard = quota["spec"].get("hard", {})
            for resource in hard.keys() & {kind.plural, f"count/{kind.resource}"}:
                used = self.used(namespace, resource)
                if used + 1 > int(hard[resource]):
                    raise forbidden(
                        kind, name, f"exceeded quota: {quota['metadata']['name']}, requested: {resource}=1, "
                                    f"used: {resource}={used}, limited: {resource}={hard[resource]}")

    def replace(self, plural: str, namespace: str, name: str, item: Object, dry_run: bool = False) -> Object:
        """Put an object in the place of another. Raises ApiError 400, 404, 409 or 422, and Malformed."""
        kind, meta = KINDS[plural], item.get("metadata") or {}
        if meta.get("name") != name:
            raise bad_request(f"the name of the object ({meta.get('name')}) does not match the name on the "
                              f"URL ({name})")
        with self.changed:
            if kind.name == "Lease" and not self.find(plural, namespace, name):
                if meta.get("uid"):
                    raise wrong_uid(kind, namespace, name, meta["uid"], "")
                # A resourceVersion, which can only be stale, does not hinder it.
                return self.create(plural, namespace, item, dry_run)
            if kind.name == "Lease" and not meta.get("resourceVersion"):
                message = "Invalid value: 0x0: must be specified for an update"
                field = "metadata.resourceVersion"
                cause = {"reason": "FieldValueInvalid", "message": message, "field": field}
                raise ApiError(422, "Invalid", f'{kind.resource} "{name}" is invalid: {field}: {message}',
                               {**about(kind, name), "causes": [cause]})
            return self.update(plural, namespace, name, lambda _: item, dry_run)

    def update(self, plural: str, namespace: str, name: str, change: Callable[[Object], Object],
               dry_run: bool = False) -> Object:
        """Change all of an object but its status, through a function of what it is.

        Raises ApiError 404, 409 or 422, and Malformed.
        """
        with self.changed:
            kind, before = KINDS[plural], self.get(plural, namespace, name)
            old = before["metadata"]
            after = decode(kind.name, {**change(before), "kind": kind.name, "apiVersion": kind.api_version})
            new = after.setdefault("metadata", {})
            if new.get("resourceVersion", old["resourceVersion"]) != old["resourceVersion"]:
                raise conflict(kind, name, kind.resource, "the object has been modified; please apply your "
                                                          "changes to the latest version and try again")
            if new.get("uid", old["uid"]) != old["uid"]:
                raise wrong_uid(kind, namespace, name, new["uid"], old["uid"])
            after["metadata"] = {**{key: value for key, value in old.items() if key not in GIVEN},
                                 **{key: new[key] for key in GIVEN if new.get(key)}}
            if kind.name == "Service":
                for field in before["spec"].keys() & {"clusterIP", "clusterIPs"}:
                    after["spec"].setdefault(field, before["spec"][field])
            elif kind.name == "Secret":
                self.complete(kind, after)
            if "status" in before:
                after["status"] = before["status"]
            check(kind, after, before)
            return after if dry_run or after == before else self.put(kind, before, after)

    def set_status(self, plural: str, item: Object, **status: Any) -> None:
        """Set parts of an object's status, if it is still there."""
        with self.changed:
            before = self.find(plural, item["metadata"].get("namespace", ""), item["metadata"]["name"])
            if before and before["metadata"]["uid"] == item["metadata"]["uid"]:
                wanted = {**before["status"], **status}
                if wanted != before["status"]:
                    self.put(KINDS[plural], before, {**before, "status": wanted})

    def delete(self, plural: str, namespace: str, name: str, options: Object) -> Object:
        """Delete an object, or begin to; return it, or a Status if it has gone. Raises ApiError 404, 409."""
        with self.changed:
            kind, item = KINDS[plural], self.get(plural, namespace, name)
            meta = item["metadata"]
            for field, called, why in (("uid", "UID", "deleted and then recreated"),
                                       ("resourceVersion", "ResourceVersion", "modified")):
                wanted = (options.get("preconditions") or {}).get(field, meta[field])
                if wanted != meta[field]:
                    raise conflict(kind, name, kind.full_name, (
                        f"the {called} in the precondition ({wanted}) does not match the {called} in record "
                        f"({meta[field]}). The object might have been {why}"))
            grace = options.get("gracePeriodSeconds")
            if kind.name == "Pod" and grace is None:
                grace = item["spec"]["terminationGracePeriodSeconds"]
            grace = int(grace or 0)
            if options.get("dryRun"):
                grace = 0
            ends = kind.name == "Namespace" and not options.get("dryRun")
            runs = kind.name == "Pod" and "nodeName" in item["spec"] and item["status"]["phase"] not in OVER
            if ends or grace and runs:
                if "deletionTimestamp" in meta:
                    return item
                ending: Object = {"deletionTimestamp": now(grace)}
                if not ends:
                    ending["deletionGracePeriodSeconds"] = grace
                status = {"phase": "Terminating"} if ends else item["status"]
                return self.put(kind, item, {**item, "metadata": {**meta, **ending}, "status": status})
            if not options.get("dryRun"):
                self.put(kind, item, None)
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": about(kind, name, uid=meta["uid"])}

    def event(self, pod: Object, component: str, category: str, reason: str, message: str,
              field: str) -> None:
        """Record an Event on a pod, or count it once more."""
        meta = pod["metadata"]
        digest = hashlib.sha256(" ".join((meta["uid"], reason, message)).encode()).hexdigest()
        name = f"{meta['name']}.{digest[:16]}"
        with self.changed, contextlib.suppress(ApiError):
            if self.find("events", meta["namespace"], name):
                self.update("events", meta["namespace"], name,
                            lambda event: {**event, "count": event["count"] + 1, "lastTimestamp": now()})
                return
            self.create("events", meta["namespace"], {
                "metadata": {"name": name}, "type": category, "reason": reason, "message": message,
                "count": 1, "firstTimestamp": now(), "lastTimestamp": now(),
                "source": {"component": component, **({"host": NODE} if component == "kubelet" else {})},
                "involvedObject": {"apiVersion": "v1", "kind": "Pod",
                                   **{key: meta[key] for key in (
                                       "name", "namespace", "resourceVersion", "uid")},
                                   **({"fieldPath": field} if field else {})}})
