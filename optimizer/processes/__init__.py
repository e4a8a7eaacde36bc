"""The one room that starts processes: children that run our code, and tools of the system.

`call` runs one function in a child and returns what it returns; `Child` is a child that goes on
answering over its pipes. Both start a fresh interpreter that never searches the current folder and
never imports the user's script, in a process group of its own, and that group ends with this process,
however this process ends.
"""

from optimizer.processes.calls import Limits, call, give_up
from optimizer.processes.child import Child, ChildFailed, ending
from optimizer.processes.launching import cpus_for
from optimizer.processes.memory import give_back_memory, memory_bytes
from optimizer.processes.tools import output_of

__all__ = [
    "Child",
    "ChildFailed",
    "Limits",
    "call",
    "cpus_for",
    "ending",
    "give_back_memory",
    "give_up",
    "memory_bytes",
    "output_of",
]
