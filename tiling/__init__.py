"""Plans in numpy: what a decode's shapes decide, and who gets which part of the work."""
