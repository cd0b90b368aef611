"""What every package may use: units, files, YAML and array files, plain numerics."""
