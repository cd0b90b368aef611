"""Statistics of traces: calibration, coactivation, hit-rate curves, locality."""
