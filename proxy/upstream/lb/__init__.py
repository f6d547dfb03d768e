"""Load-balancing policies: one file a policy, found by its Envoy name. All state belongs to one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from proxy.config import model
from proxy.upstream.lb.least_request import LeastRequest
from proxy.upstream.lb.random import Random
from proxy.upstream.lb.round_robin import RoundRobin

if TYPE_CHECKING:
    from proxy.upstream.cluster import Host

LoadBalancer = LeastRequest | Random | RoundRobin

POLICIES: dict[str, Callable[[model.Cluster, Sequence[Host]], LoadBalancer]] = {
    model.ROUND_ROBIN: RoundRobin,
    model.LEAST_REQUEST: LeastRequest,
    model.RANDOM: Random,
}
