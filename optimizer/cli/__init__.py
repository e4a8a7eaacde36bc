"""The command line: parse, call a verb, print. No logic lives here."""

from optimizer.cli.app import main

__all__ = ["main"]
