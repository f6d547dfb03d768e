"""From the pressure on a resource (0: idle, 1: exhausted) to how strongly an action or load-shed point acts."""

from __future__ import annotations

from struct import pack, unpack

from proxy.config.overload_model import Reaction, Trigger


def single(value: float) -> float:
    """Rounded to single precision, in which Envoy keeps these values (and its percentages show it)."""
    return float(unpack("f", pack("f", value))[0])


def scale(trigger: Trigger, pressure: float) -> float:
    """0 (inactive) to 1 (saturated)."""
    if trigger.saturation is None:
        return 1.0 if pressure >= trigger.threshold else 0.0
    if pressure <= trigger.threshold:
        return 0.0
    if pressure >= trigger.saturation:
        return 1.0
    return single((pressure - trigger.threshold) / (trigger.saturation - trigger.threshold))


class ReactionState:
    """An action or load-shed point with its triggers: the one that asks for most counts."""

    __slots__ = ("_scales", "_triggers", "name", "value")

    def __init__(self, reaction: Reaction) -> None:
        self.name = reaction.name
        self._triggers = {trigger.resource: trigger for trigger in reaction.triggers}
        self._scales = dict.fromkeys(self._triggers, 0.0)
        self.value = 0.0

    def update(self, resource: str, pressure: float) -> float | None:
        """Take note of a resource's pressure; what its trigger says now, None if that is what it said before."""
        trigger = self._triggers.get(resource)
        if trigger is None:
            return None
        now = scale(trigger, pressure)
        if now == self._scales[resource]:
            return None
        self._scales[resource] = now
        self.value = max(self._scales.values())
        return now
