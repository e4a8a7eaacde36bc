"""Starts all processes: children that run our code, and system tools.

`call` runs one function in a child and returns its result. `Child` is a long-running child that
answers requests over pipes. Both start a fresh interpreter that never searches the current folder
and never imports the user's script. Each child leads its own process group, which is killed when
this process ends, however it ends.
"""

from optimizer.processes.calls import Limits, call, give_up
from optimizer.processes.child import Child, ChildFailed, describe_exit
from optimizer.processes.home import hint_for_temporary_files, home_variable
from optimizer.processes.launching import cpus_for
from optimizer.processes.memory import memory_bytes, release_memory
from optimizer.processes.resources import (
    available_memory,
    cpu_quota,
    hardware_threads,
    limit_library_threads,
    memory_limit,
    total_memory,
    usable_cores,
)
from optimizer.processes.tools import output_of

__all__ = [
    "Child",
    "ChildFailed",
    "Limits",
    "available_memory",
    "call",
    "cpu_quota",
    "cpus_for",
    "describe_exit",
    "give_up",
    "hardware_threads",
    "hint_for_temporary_files",
    "home_variable",
    "limit_library_threads",
    "memory_bytes",
    "memory_limit",
    "output_of",
    "release_memory",
    "total_memory",
    "usable_cores",
]
