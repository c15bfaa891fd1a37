"""Where in each volume the structures are: VESSA teaches a small network that finds it."""
