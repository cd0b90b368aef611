"""Sweeps: grids of replays and closed loops, in processes or on a cluster, with all results kept in a store."""

from hwsim.studies.sweep.backends import BACKENDS
from hwsim.studies.sweep.spec import Spec, make_spec, read_spec
from hwsim.studies.sweep.store import Store
from hwsim.studies.sweep.sweeping import Swept, sweep

__all__ = ["BACKENDS", "Spec", "Store", "Swept", "make_spec", "read_spec", "sweep"]
