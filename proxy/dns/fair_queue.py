"""What waits for its turn, fairly among clients: one client after the other gets a turn, and whoever has most waiting
loses first when there is too much. All in constant time, because it is needed when there is a flood."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
Client = Hashable


class FairQueue(Generic[T]):
    """Items of clients. An item is at most once in it."""

    __slots__ = ("_by_length", "_clients", "_longest", "_size")

    def __init__(self) -> None:
        self._clients: OrderedDict[Client, OrderedDict[T, None]] = OrderedDict()
        self._by_length: dict[int, dict[Client, None]] = {}
        self._longest = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, client: Client, item: T) -> None:
        """Add an item behind those of its client."""
        items = self._clients.get(client)
        if items is None:
            items = self._clients[client] = OrderedDict()
        items[item] = None
        self._size += 1
        self._moved(client, len(items) - 1, len(items))

    def pop(self, may: Callable[[Client], bool]) -> T | None:
        """The first item of the client whose turn it is, among those that ``may``; None when there is none."""
        client = next(filter(may, self._clients), None)
        if client is None:
            return None
        self._clients.move_to_end(client)
        item = next(iter(self._clients[client]))
        self.remove(client, item)
        return item

    def longest(self) -> tuple[Client, T] | None:
        """The oldest item of a client with the most items: what to give up."""
        clients = self._by_length.get(self._longest)
        if not clients:
            return None
        client = next(iter(clients))
        return client, next(iter(self._clients[client]))

    def remove(self, client: Client, item: T) -> None:
        """Take an item out. Raises KeyError when it is not there."""
        items = self._clients[client]
        del items[item]
        self._size -= 1
        self._moved(client, len(items) + 1, len(items))
        if not items:
            del self._clients[client]

    def _moved(self, client: Client, before: int, after: int) -> None:
        if before:
            clients = self._by_length[before]
            del clients[client]
            if not clients:
                del self._by_length[before]
        if after:
            self._by_length.setdefault(after, {})[client] = None
        # Lengths change by one, so the next shorter one is where this client is now.
        if after > self._longest or (before == self._longest and before not in self._by_length):
            self._longest = after
