"""StatefulSets: they get their pods."""

from __future__ import annotations

import hashlib
import json

from devcluster.controllers import delete, is_ready
from devcluster.errors import ApiError
from devcluster.kinds import Object
from devcluster.objects import labels_of
from devcluster.store import Change, Store


class StatefulSets:
    """The controller of StatefulSets."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def react(self, change: Change) -> bool:
        """Bring a StatefulSet's pods nearer to what it asks for, and its status to what they are."""
        meta = change.item["metadata"]
        names = [meta["name"]] if change.kind.name == "StatefulSet" else [
            owner["name"] for owner in meta.get("ownerReferences", ()) if owner["kind"] == "StatefulSet"]
        item = self.store.find("statefulsets", meta.get("namespace", ""), names[0]) if names else None
        if not item:
            return True
        meta, spec, done = item["metadata"], item["spec"], True
        digest = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()
        revision = f"{meta['name']}-{digest[:10]}"
        pods = {int(pod["metadata"]["name"].rpartition("-")[2]): pod
                for plural, pod in self.store.owned(meta["uid"]) if plural == "pods"}
        ready = {number for number, pod in pods.items() if is_ready(pod)}
        updated = {number for number, pod in pods.items()
                   if labels_of(pod).get("controller-revision-hash") == revision}
        for number in range(spec["replicas"]):
            if number not in pods:
                done = self.make_pod(item, number, revision) and done
            if spec["podManagementPolicy"] != "Parallel" and number not in ready:
                break
        surplus = sorted((number for number in pods if number >= spec["replicas"]), reverse=True)
        outdated = sorted(pods.keys() - updated - set(surplus), reverse=True) if ready == pods.keys() else []
        for number in surplus or outdated[:1]:
            if "deletionTimestamp" not in pods[number]["metadata"]:
                delete(self.store, "pods", pods[number])
                self.record(item, "Normal", "SuccessfulDelete",
                            f"delete Pod {meta['name']}-{number} in StatefulSet {meta['name']} successful")
        before = item["status"].get("currentRevision", revision)
        current = revision if pods.keys() == updated & ready else before
        of_current = pods.keys() if current == revision else pods.keys() - updated
        self.store.set_status(
            "statefulsets", item, collisionCount=0, observedGeneration=meta["generation"], replicas=len(pods),
            readyReplicas=len(ready) or None, updatedReplicas=len(updated) or None, updateRevision=revision,
            currentReplicas=len(of_current) or None, currentRevision=current)
        return done

    def make_pod(self, item: Object, number: int, revision: str) -> bool:
        """Make a StatefulSet's pod, or record why not; return whether that is done."""
        meta, template = item["metadata"], item["spec"]["template"]
        name = f"{meta['name']}-{number}"
        owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": meta["name"], "uid": meta["uid"],
                 "controller": True, "blockOwnerDeletion": True}
        labels = {**labels_of(template), "controller-revision-hash": revision,
                  "statefulset.kubernetes.io/pod-name": name}
        try:
            self.store.create("pods", meta["namespace"], {
                "metadata": {**template["metadata"], "name": name, "generateName": f"{meta['name']}-",
                             "labels": labels, "ownerReferences": [owner]},
                "spec": {**template["spec"], "hostname": name,
                         "subdomain": item["spec"].get("serviceName", "")}})
        except ApiError as error:
            self.record(item, "Warning", "FailedCreate",
                        f"create Pod {name} in StatefulSet {meta['name']} failed error: {error}")
            return False
        self.record(item, "Normal", "SuccessfulCreate",
                    f"create Pod {name} in StatefulSet {meta['name']} successful")
        return True

    def record(self, item: Object, category: str, reason: str, message: str) -> None:
        """Record an Event on a StatefulSet."""
        self.store.event("statefulsets", item, "statefulset-controller", category, reason, message)
