"""The inspection page."""
