"""The queue for flights: turns go round among clients, whoever has most waiting loses first."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from proxy.dns.fair_queue import FairQueue


def anyone(client: object) -> bool:
    return True


def drained(queue: FairQueue[str]) -> list[str]:
    out = []
    while (item := queue.pop(anyone)) is not None:
        out.append(item)
    return out


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for client, count in (("a", 4), ("b", 1), ("c", 2)):
        for number in range(count):
            queue.push(client, f"{client}{number}")
    assert len(queue) == 7
    assert drained(queue) == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]
    assert len(queue) == 0
    assert queue.pop(anyone) is None
    assert queue.longest() is None


def test_clients_that_may_not_are_passed_over() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "a0")
    queue.push("b", "b0")
    assert queue.pop(lambda client: client != "a") == "b0"
    assert queue.pop(lambda client: client != "a") is None
    assert drained(queue) == ["a0"]


def test_the_longest_loses_its_oldest() -> None:
    queue: FairQueue[str] = FairQueue()
    for client, count in (("a", 2), ("b", 3), ("c", 1)):
        for number in range(count):
            queue.push(client, f"{client}{number}")
    lost = []
    while (found := queue.longest()) is not None:
        queue.remove(*found)
        lost.append(found[1])
    assert lost == ["b0", "a0", "b1", "c0", "a1", "b2"]


@given(st.integers(0, 1 << 32))
def test_against_a_plain_model(seed: int) -> None:
    dice = random.Random(seed)
    queue: FairQueue[int] = FairQueue()
    model: dict[int, list[int]] = {}
    for number in range(200):
        match dice.randrange(5):
            case 0 | 1 | 2:
                client = dice.choice([0, 0, 0, 1, 2, dice.randrange(50)])
                queue.push(client, number)
                model.setdefault(client, []).append(number)
            case 3:
                item = queue.pop(anyone)
                if item is None:
                    assert not model
                else:
                    (client,) = [c for c, items in model.items() if items[0] == item]
                    model[client].remove(item)
            case 4:
                found = queue.longest()
                if found is None:
                    assert not model
                else:
                    client, item = found
                    assert len(model[client]) == max(map(len, model.values()))
                    assert model[client][0] == item
                    queue.remove(client, item)
                    model[client].remove(item)
        model = {client: items for client, items in model.items() if items}
        assert len(queue) == sum(map(len, model.values()))
        assert sum(len(clients) for clients in queue._by_length.values()) == len(model)
