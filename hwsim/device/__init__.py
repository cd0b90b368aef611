"""Hardware: profiles, what Flash and arithmetic cost by them, and their measurement."""
