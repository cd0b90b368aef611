"""The shape of a model: its layers, matrices and bytes, and the LoRA adapter that it may carry."""

from hwsim.model.shape import Bits, ModelShape

__all__ = ["Bits", "ModelShape"]
