"""Controllers: what a cluster does by itself."""

from __future__ import annotations

from typing import Callable

from devcluster.kinds import KINDS
from devcluster.store import Change, Store

Reactor = Callable[[Change], None]


class Controllers:
    """What a cluster does by itself: namespaces end, quotas count. One thread does it all."""

    def __init__(self, store: Store, *more: Reactor) -> None:
        self.store = store
        self.reactors: list[Reactor] = [self.finalize, self.count, *more]

    def run(self) -> None:
        """Follow the changes for ever."""
        while True:
            change = self.store.followers.get()
            for react in self.reactors:
                react(change)

    def finalize(self, change: Change) -> None:
        """Empty a namespace that ends, and let it go when it is empty."""
        meta = change.item["metadata"]
        home = self.store.find("namespaces", "", meta.get("namespace", meta["name"]))
        if home and "deletionTimestamp" in home["metadata"]:
            namespace = home["metadata"]["name"]
            with self.store.changed:
                left = [(plural, item["metadata"]["name"]) for plural in KINDS
                        for item in self.store.select(plural, namespace)]
                for plural, name in left:
                    self.store.delete(plural, namespace, name, {})
                if not left:
                    self.store.put(KINDS["namespaces"], home, None)

    def count(self, change: Change) -> None:
        """Keep the status of a namespace's quotas."""
        for quota in self.store.select("resourcequotas", change.item["metadata"].get("namespace", "-")):
            hard, namespace = quota["spec"].get("hard", {}), quota["metadata"]["namespace"]
            used = {resource: str(self.store.used(namespace, resource)) for resource in hard}
            self.store.set_status("resourcequotas", quota, hard=hard, used=used)
