"""``python -m secateur`` is the command."""

from secateur.cli import script

script()
