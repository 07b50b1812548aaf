"""What was measured on, and at which precision: part of the key of every latency."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class DeviceInfo:
    """Identity of a device as one backend sees it. Entries of different identities never mix.

    Attributes:
        backend: Name of the backend, such as ``onnxruntime``.
        backend_version: Version of the library behind it.
        name: Model of the processor or GPU.
        settings: What else changes a latency (threads, pinning, power mode), in words.
    """

    backend: str
    backend_version: str
    name: str
    settings: str = ""

    def in_mode(self, power_mode: str | None) -> DeviceInfo:
        """Returns the device in a power mode: another mode is another device to a latency."""
        if power_mode is None:
            return self
        words = [self.settings, f"power mode {power_mode}"]
        return replace(self, settings=", ".join(filter(None, words)))

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> DeviceInfo:
        """Returns the device that ``to_json`` wrote."""
        return DeviceInfo(
            str(data["backend"]),
            str(data["backend_version"]),
            str(data["name"]),
            str(data.get("settings", "")),
        )

    def __str__(self) -> str:
        """Returns a short form for messages."""
        settings = f", {self.settings}" if self.settings else ""
        return f"{self.name} ({self.backend} {self.backend_version}{settings})"
