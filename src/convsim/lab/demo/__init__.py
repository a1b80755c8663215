"""What `convsim demo` shows: one network seen, shrunk, and trained with and without the penalty."""

from convsim.lab.demo.presentation import write_demo
from convsim.lab.demo.run import Demo, run_demo

__all__ = ["Demo", "run_demo", "write_demo"]
