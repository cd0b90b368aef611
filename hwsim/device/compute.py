"""How long arithmetic takes."""

from __future__ import annotations

from dataclasses import dataclass

from hwsim.device.profile import Compute, Profile


@dataclass(frozen=True)
class Arithmetic:
    """Seconds of a token's arithmetic on a device; all zero where the profile knows nothing of it.

    Attributes:
        compute: the profile's section.
    """

    compute: Compute | None

    def seconds_per_operation(self, bits: float) -> float:
        """Of a multiplication or an addition with weights of so many bits."""
        if self.compute is None:
            return 0.0
        rate = self.compute.rate_for(bits)
        return 1.0 / rate if rate else 0.0

    @property
    def overhead(self) -> float:
        """Fixed cost of one kernel."""
        return (self.compute.overhead or 0.0) if self.compute else 0.0

    @property
    def selection(self) -> float:
        """Choosing a mask, for each unit that it is chosen from."""
        return (self.compute.selection or 0.0) if self.compute else 0.0

    @property
    def bookkeeping(self) -> float:
        """Keeping the cache, for each unit that is needed."""
        return (self.compute.bookkeeping or 0.0) if self.compute else 0.0


def compute_seconds(profile: Profile, operations: float, kernels: int = 1, bits: float = 16.0) -> float:
    """How long the arithmetic takes: `operations` at the profile's rate, and the fixed cost of each kernel."""
    arithmetic = Arithmetic(profile.compute)
    return operations * arithmetic.seconds_per_operation(bits) + kernels * arithmetic.overhead
