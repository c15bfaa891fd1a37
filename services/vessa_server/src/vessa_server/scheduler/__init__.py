"""The queue of looks in front of a runtime."""
