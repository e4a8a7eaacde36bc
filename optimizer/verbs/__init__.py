"""The verbs: one module each, with the function that the command line and `import optimizer` call.

A verb opens its inputs, calls the packages that do the work, and returns a typed result. ``run``,
the main job, calls the other verbs. Nothing is exported here, because a verb's module and function
have the same name; the public API is `optimizer`.
"""
