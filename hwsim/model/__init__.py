"""The shape of a model: its layers, matrices and bytes, and the LoRA adapter that it may carry."""
