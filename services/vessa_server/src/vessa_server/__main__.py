"""``python -m vessa_server``, which ``torchrun`` needs."""

from vessa_server.cli import app

app()
