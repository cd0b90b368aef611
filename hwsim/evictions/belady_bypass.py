"""Belady's rule with the right to refuse admission: the bound that no rule passes, on fixed masks of any size.

Keeping a unit from one use to the next takes one place in between and saves one read. So the largest number of hits is
the largest number of such intervals of which no more than the capacity overlap. Wherever too many overlap, dropping the
one that ends last is optimal (Carlisle and Lloyd 1995, "On the k-coloring of intervals").
"""

from __future__ import annotations

from typing import ClassVar

from hwsim.evictions import Admission
from hwsim.evictions.belady import Belady


class BeladyBypass(Belady):
    """As belady, but a needed unit enters only if it is needed again sooner than somebody there: the true bound."""

    admission: ClassVar[Admission] = "bypass"
