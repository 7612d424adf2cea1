"""Addresses for pods and Services, on loopback: a range that no other dev cluster on this machine has."""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Iterator

# A range is two networks, 127.N.0.0/16 for Services and 127.N+1.0.0/16 for pods: of these numbers, 79 ranges.
NUMBERS = range(96, 254, 2)
# Who has a range is bound to this port of its first address, and lets go with the process, however that ends.
CLAIM_PORT = DATABASE_PORT = 3306


class Range:
    """A range of addresses, which is this process's as long as this object is there."""

    def __init__(self) -> None:
        """Take the first one that is free. Raises OSError."""
        for number in NUMBERS:
            self.services = ipaddress.IPv4Network(f"127.{number}.0.0/16")
            self.pods = ipaddress.IPv4Network(f"127.{number + 1}.0.0/16")
            # UDP, which no database listens on, not even one that has the port on all addresses.
            self.claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                self.claim.bind((str(self.pods[1]), CLAIM_PORT))
                break
            except OSError:
                self.claim.close()
        else:
            raise OSError(f"all {len(NUMBERS)} ranges of loopback addresses are taken, or there are none")
        self.next: Iterator[ipaddress.IPv4Address] = itertools.cycle(list(self.pods.hosts())[1:])

    def check(self) -> None:
        """Raise OSError if no pod could listen, since another server has a database's port everywhere."""
        with socket.socket() as pods:
            try:
                pods.bind((str(self.pods[1]), DATABASE_PORT))
            except OSError:
                raise OSError(f"port {DATABASE_PORT} is in use on all addresses: stop the server that has "
                              "it, have it listen on 127.0.0.1 alone, or give --hollow, which runs no "
                              "databases") from None

    def take(self, taken: set[str]) -> str:
        """Return a pod's address: the one that was not used for longest, and is none of these."""
        return next(str(address) for address in self.next if str(address) not in taken)
