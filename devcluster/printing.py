"""Tables: what kubectl prints of objects."""

from __future__ import annotations

import calendar
import time
from typing import Any, Callable

from devcluster.kinds import Kind, Object
from devcluster.objects import at
from devcluster.store import RFC_3339


def age(timestamp: str) -> str:
    """Return how long ago a time was, as kubectl has it."""
    seconds = max(int(time.time() - calendar.timegm(time.strptime(timestamp, RFC_3339))), 0)
    minute, hour, day = 60, 3600, 86400
    for limit, size, unit, part, part_unit in (
            (2 * minute, 1, "s", 1, ""), (10 * minute, minute, "m", 1, "s"), (3 * hour, minute, "m", 1, ""),
            (8 * hour, hour, "h", minute, "m"), (2 * day, hour, "h", 1, ""), (8 * day, day, "d", hour, "h")):
        if seconds < limit:
            rest = seconds % size // part if part_unit else 0
            return f"{seconds // size}{unit}" + (f"{rest}{part_unit}" if rest else "")
    return f"{seconds // day}d"


def born(item: Object) -> str:
    """Return an object's age."""
    return age(item["metadata"]["creationTimestamp"])


def pod_cells(pod: Object) -> list[Any]:
    """Return what is shown of a pod."""
    status, containers = pod["status"], pod["status"].get("containerStatuses", [])
    reasons = [at(container, f"state.{state}.reason") for container in containers
               for state in ("waiting", "terminated")]
    shown = next(filter(None, reasons), status.get("reason", status["phase"]))
    shown = "Terminating" if "deletionTimestamp" in pod["metadata"] else shown
    return [f"{sum(container['ready'] for container in containers)}/{len(pod['spec']['containers'])}", shown,
            sum(container["restartCount"] for container in containers), born(pod),
            status.get("podIP", "<none>"), pod["spec"].get("nodeName", "<none>"), "<none>", "<none>"]


def joined(items: Any) -> str:
    """Return cells in one."""
    return ",".join(items) or "<none>"


# Of each kind the columns of `kubectl get`, behind a bar those of -o wide alone, and what is in them after
# the name.
COLUMNS: dict[str, tuple[str, Callable[[Object], list[Any]]]] = {
    "namespaces": ("Name,Status,Age", lambda item: [item["status"]["phase"], born(item)]),
    "secrets": ("Name,Type,Data,Age", lambda item: [item["type"], len(item.get("data", {})), born(item)]),
    "persistentvolumeclaims": ("Name,Status,Age", lambda item: [item["status"]["phase"], born(item)]),
    "configmaps": ("Name,Data,Age",
                   lambda item: [len(item.get("data", {})) + len(item.get("binaryData", {})), born(item)]),
    "services": ("Name,Type,Cluster-IP,External-IP,Port(s),Age|Selector", lambda item: [
        item["spec"]["type"], item["spec"].get("clusterIP", "<none>"),
        item["spec"].get("externalName", "<none>"),
        joined(f"{port['port']}/{port['protocol']}" for port in item["spec"].get("ports", ())), born(item),
        joined(f"{key}={value}" for key, value in sorted(item["spec"].get("selector", {}).items()))]),
    "pods": ("Name,Ready,Status,Restarts,Age|IP,Node,Nominated Node,Readiness Gates", pod_cells),
    "events": ("Last Seen,Type,Reason,Object|Subobject,Source|Message|First Seen,Count,Name", lambda item: [
        age(item["lastTimestamp"]), item.get("type", ""), item.get("reason", ""),
        f"{item['involvedObject'].get('kind', '').lower()}/{item['involvedObject'].get('name')}",
        item["involvedObject"].get("fieldPath", ""),
        ", ".join(filter(None, (item["source"].get("component"), item["source"].get("host")))),
        item.get("message", ""), age(item["firstTimestamp"]), item.get("count", 1),
        item["metadata"]["name"]]),
    "leases": ("Name,Holder,Age", lambda item: [item["spec"].get("holderIdentity", ""), born(item)]),
    "resourcequotas": ("Name,Age,Request,Limit", lambda item: [born(item), *(", ".join(
        f"{name}: {item['status']['used'].get(name, 0)}/{hard}"
        for name, hard in sorted(item["status"].get("hard", {}).items())
        if name.startswith("limits.") == limits) for limits in (False, True))]),
}


def table(kind: Kind, items: list[Object], meta: Object, whole: bool) -> Object:
    """Return the Table from which kubectl prints objects; it holds them whole, or just their metadata."""
    header, cells = COLUMNS[kind.plural]
    columns = [{"name": name, "type": "integer" if name == "Restarts" else "string",
                "format": "name" if name == "Name" else "", "description": "", "priority": number % 2}
               for number, part in enumerate(header.split("|")) for name in part.split(",")]
    part: Object = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    rows = [{"cells": ([] if kind.name == "Event" else [item["metadata"]["name"]]) + cells(item),
             "object": item if whole else {**part, "metadata": item["metadata"]}} for item in items]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": columns,
            "rows": rows}
