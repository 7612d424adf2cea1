"""Controllers: what a cluster does by itself."""

from __future__ import annotations

import contextlib
import queue
from typing import Callable

from devcluster.errors import ApiError
from devcluster.kinds import KINDS, Object
from devcluster.store import Change, Store

# What a controller could not do is tried again after this.
RESYNC_SECONDS = 1.0

Reactor = Callable[[Change], bool]  # Reacts to a change; returns whether it is done with it.


class Controllers:
    """What a cluster does by itself: garbage goes, namespaces end, quotas count. One thread does it all."""

    def __init__(self, store: Store, *more: Reactor) -> None:
        self.store = store
        self.reactors: list[Reactor] = [self.collect, self.finalize, self.count, *more]

    def run(self) -> None:
        """Follow the changes for ever; those that a reactor is not done with come again."""
        failed: list[Change] = []
        while True:
            try:
                changes = [self.store.followers.get(timeout=RESYNC_SECONDS)]
            except queue.Empty:
                changes, failed = failed, []
            for change in changes:
                done = [react(change) for react in self.reactors]
                if not all(done):
                    failed.append(change)

    def collect(self, change: Change) -> bool:
        """Delete what belonged to an object that has gone."""
        meta = change.item["metadata"]
        for plural, item in self.store.owned(meta["uid"]) if not change.after else ():
            delete(self.store, plural, item)
        owners = {owner["uid"] for owner in meta.get("ownerReferences", ())}
        if change.after and owners - self.store.uids:
            delete(self.store, change.kind.plural, change.item)
        return True

    def finalize(self, change: Change) -> bool:
        """Empty a namespace that ends, and let it go when it is empty."""
        meta = change.item["metadata"]
        home = self.store.find("namespaces", "", meta.get("namespace", meta["name"]))
        if home and "deletionTimestamp" in home["metadata"]:
            with self.store.changed:
                left = [(plural, item) for plural in KINDS
                        for item in self.store.select(plural, home["metadata"]["name"])]
                for plural, item in left:
                    delete(self.store, plural, item)
                if not left:
                    self.store.put(KINDS["namespaces"], home, None)
        return True

    def count(self, change: Change) -> bool:
        """Keep the status of a namespace's quotas."""
        for quota in self.store.select("resourcequotas", change.item["metadata"].get("namespace", "-")):
            hard, namespace = quota["spec"].get("hard", {}), quota["metadata"]["namespace"]
            used = {resource: str(self.store.used(namespace, resource)) for resource in hard}
            self.store.set_status("resourcequotas", quota, hard=hard, used=used)
        return True


def delete(store: Store, plural: str, item: Object) -> None:
    """Delete an object, if it is still the same one."""
    meta = item["metadata"]
    with contextlib.suppress(ApiError):
        store.delete(plural, meta.get("namespace", ""), meta["name"], {"preconditions": {"uid": meta["uid"]}})


def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready, and is to stay."""
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"].get("conditions", ()))
