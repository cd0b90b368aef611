"""Times of arithmetic on a device."""

from __future__ import annotations

from dataclasses import dataclass

from hwsim.device.profile import Compute, Profile


@dataclass(frozen=True)
class Arithmetic:
    """Times of a token's arithmetic on a device, in seconds; 0 for everything that the profile does not state.

    Attributes:
        compute: the profile's section.
    """

    compute: Compute | None

    def seconds_per_operation(self, bits: float) -> float:
        """Seconds of one multiplication or addition with weights of `bits` bits."""
        if self.compute is None:
            return 0.0
        rate = self.compute.rate_for(bits)
        return 1.0 / rate if rate else 0.0

    @property
    def overhead(self) -> float:
        """Seconds of fixed cost of one kernel."""
        return (self.compute.overhead or 0.0) if self.compute else 0.0

    @property
    def selection(self) -> float:
        """Seconds to choose a mask, per unit that it is chosen from."""
        return (self.compute.selection or 0.0) if self.compute else 0.0

    @property
    def bookkeeping(self) -> float:
        """Seconds of cache bookkeeping, per needed unit."""
        return (self.compute.bookkeeping or 0.0) if self.compute else 0.0


def compute_seconds(profile: Profile, operations: float, kernels: int = 1, bits: float = 16.0) -> float:
    """Seconds of arithmetic: `operations` at the profile's rate, and the fixed cost of each kernel."""
    arithmetic = Arithmetic(profile.compute)
    return operations * arithmetic.seconds_per_operation(bits) + kernels * arithmetic.overhead
