"""One run: options, settings, replay, result."""
