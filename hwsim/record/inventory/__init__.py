"""What a model has and what a token reads, counted from its modules and from one forward pass."""

from hwsim.record.inventory.attention import Projections
from hwsim.record.inventory.expert_functions import ExpertFunctions
from hwsim.record.inventory.experts import FoundExperts
from hwsim.record.inventory.inventory import Counted, Inventory, LayerParts, take_inventory
from hwsim.record.inventory.matrices import base, transposed
from hwsim.record.inventory.mlp import Mlp, activation, activations, split

__all__ = [
    "Counted",
    "ExpertFunctions",
    "FoundExperts",
    "Inventory",
    "LayerParts",
    "Mlp",
    "Projections",
    "activation",
    "activations",
    "base",
    "split",
    "take_inventory",
    "transposed",
]
