"""What is trained or calibrated for a policy: LoRA adapters, predictors, thresholds; training needs an extra."""
