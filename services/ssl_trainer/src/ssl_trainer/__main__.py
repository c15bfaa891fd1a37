"""``python -m ssl_trainer``, which ``torchrun`` needs."""

from ssl_trainer.cli import app

app()
