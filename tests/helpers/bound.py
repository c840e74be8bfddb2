"""Runs `ddm-site` or `ddm-coord`, the first word, as a process that permissions bind, also root.

Permissions bind root as well once it may not override them: the capabilities for that are 1, and 2
to read.
"""

import ctypes
import os
import sys

import commands

if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0
program = sys.argv.pop(1)
sys.argv[0] = program
commands.main_of(program)()
