"""A family that is one module: blocks of memory of given sizes. What it loaded and closed is written down."""

from collections.abc import Hashable, Mapping
from typing import ClassVar

from modelkit.card import ModelCard
from modelkit.device import Device
from modelkit.family import Source

SIZES = {"one": 1 << 20, "two": 2 << 20, "four": 4 << 20}


class Block:
    labels: tuple[str, ...] = ()

    def __init__(self, name: str, journal: list[str]) -> None:
        self.name = name
        self.data = bytearray(SIZES.get(name, 1 << 20))
        self.grown = 0
        self._journal = journal
        self._journal.append(f"load {name}")

    def holdings(self) -> Mapping[Hashable, int]:
        return {self: len(self.data) + self.grown}

    def close(self) -> None:
        self.data = bytearray()
        self.grown = 0
        self._journal.append(f"close {self.name}")


class ThrowawayFamily:
    packaged = tuple(ModelCard(name=name, architecture="block") for name in SIZES)
    journal: ClassVar[list[str]] = []
    fault: ClassVar[Exception | None] = None

    def matches(self, card: ModelCard) -> bool:
        return card.architecture == "block"

    def size(self, source: Source, device: Device) -> int:
        return SIZES.get(source.card.name, 1 << 20)

    def load(self, source: Source, device: Device) -> Block:
        if self.fault is not None:
            raise self.fault
        return Block(source.card.name, self.journal)
