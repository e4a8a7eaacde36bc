"""What runs in an interpreter that has Keras or TensorFlow, perhaps of another environment.

Nothing here imports the rest of this package, except `optimizer.processes.frames`: the interpreter
may have none of its dependencies.
"""
