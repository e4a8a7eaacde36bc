"""The verbs: one module each, with the function that the command line and `import optimizer` call.

A verb opens what it needs, calls its rooms, and returns a typed result. ``run``, the main job, calls
the others. Nothing is exported here, so that a module and its function cannot be taken for each
other; `optimizer` is the public door.
"""
