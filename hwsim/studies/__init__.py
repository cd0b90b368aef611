"""Many runs: sweeps, tuning, validation against published measurements."""
