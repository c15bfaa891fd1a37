"""``python -m vessa_client``: the command ``vessa``."""

from vessa_client.cli import app

app(prog_name="vessa")
