"""Failed logins, counted per name and address, and what they cost whoever goes on guessing.

Only failures are limited: a right password, token or key passes whatever came before it from the same address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import deque
from collections.abc import Callable

MAX_FAILURES, WINDOW_S = 10, 60.0
TURN_S, MOST_WAIT_S = 0.5, 4.0

Who = tuple[str, str]  # the name that was given, "" for a token or a key; and the network


def who(name: str, address: str) -> Who:
    """IPv6 gives a household 2^64 addresses: they count as one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return name, address
    if ip.version == 6 and ip.ipv4_mapped is None:
        return name, str(ipaddress.ip_network((ip, 64), strict=False))
    return name, str(ip)


class Failures:
    """Kept in memory, bounded: the one that failed first is forgotten where there are too many."""

    MAX_CLIENTS = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Who, deque[float]] = {}

    def add(self, one: Who) -> None:
        if one not in self._seen and len(self._seen) >= self.MAX_CLIENTS:
            self._seen.pop(next(iter(self._seen)))
        self._seen.setdefault(one, deque(maxlen=MAX_FAILURES)).append(self._clock())

    def forget(self, one: Who) -> None:
        self._seen.pop(one, None)

    def wait_s(self, one: Who) -> int:
        """Whole seconds until a failure of this one is no longer one too many; 0 when it is none now."""
        seen = self._seen.get(one, deque())
        if len(seen) < MAX_FAILURES:
            return 0
        left = seen[0] + WINDOW_S - self._clock()
        if left <= 0:
            return 0
        return int(left) + 1


class Turns:
    """Passwords are short, so whoever has failed too often tries one after the other, TURN_S each: guessing takes years.

    The right one passes when its turn comes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[Who, float] = {}

    async def take(self, one: Who) -> bool:
        """Wait for the next turn of this one; False at once where too many wait for theirs."""
        now = self._clock()
        if len(self._due) >= Failures.MAX_CLIENTS:
            self._due = {other: due for other, due in self._due.items() if due > now}
        due = max(now, self._due.get(one, 0.0)) + TURN_S
        if due - now > MOST_WAIT_S:
            return False
        self._due[one] = due
        await asyncio.sleep(due - now)
        return True
