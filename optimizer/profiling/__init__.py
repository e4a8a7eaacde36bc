"""Reproducible speed measurements; see ``docs/measuring.md``.

Nothing is imported here: a worker needs one module of this room, and each engine that is measured
starts one.
"""
