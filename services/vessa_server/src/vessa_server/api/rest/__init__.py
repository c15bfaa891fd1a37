"""REST: for people, scripts and browsers."""
