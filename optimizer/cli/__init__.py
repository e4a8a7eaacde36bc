"""The command line: parse, call the room, print. No logic lives here."""

from optimizer.cli.app import main

__all__ = ["main"]
