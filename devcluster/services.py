"""Services: connections to a Service's address are led to its pods."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import threading
from typing import Any

from devcluster.container import port_of
from devcluster.controllers import is_ready
from devcluster.kinds import Object
from devcluster.objects import labels_of
from devcluster.store import Change, Store


class Proxy:
    """Leads connections to a Service's address to one of its ready pods, as kube-proxy has a kernel do."""

    def __init__(self, store: Store) -> None:
        self.store, self.loop = store, asyncio.new_event_loop()
        self.loop.slow_callback_duration = float("inf")  # A busy machine is slow, and nothing is wrong.
        self.listening: dict[str, list[asyncio.AbstractServer]] = {}
        threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True).start()

    def react(self, change: Change) -> bool:
        """Listen for a Service as long as there is one."""
        if change.kind.name == "Service":
            asyncio.run_coroutine_threadsafe(self.listen(change), self.loop).result()
        return True

    async def listen(self, change: Change) -> None:
        """Listen anew."""
        meta, spec = change.item["metadata"], change.item["spec"]
        for server in self.listening.pop(meta["uid"], ()):
            server.close()
        if change.after and spec.get("selector") and spec.get("clusterIP", "None") != "None":
            for port in spec["ports"]:
                lead = functools.partial(self.lead, meta["namespace"], spec["selector"], port["targetPort"])
                with contextlib.suppress(OSError):  # A low port, and not root.
                    server = await asyncio.start_server(lead, spec["clusterIP"], port["port"])
                    self.listening.setdefault(meta["uid"], []).append(server)

    async def lead(self, namespace: str, selector: Object, port: Any, reader: asyncio.StreamReader,
                   writer: asyncio.StreamWriter) -> None:
        """Join a connection with one to a pod."""
        pods = self.store.select("pods", namespace,
                                 lambda pod: is_ready(pod) and selector.items() <= labels_of(pod).items())
        try:
            pod = random.choice(pods)
            inner_reader, inner_writer = await asyncio.open_connection(
                pod["status"]["podIP"], port_of(pod, port))
        except (IndexError, ValueError, OSError):
            writer.transport.abort()
            return

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
