"""UniMatch V2."""
