"""`python guard.py COMMAND ...` becomes COMMAND, and dies with the process that started it."""

import os
import sys

from csdn.runtime.process import set_parent_death_signal

set_parent_death_signal()
os.execvp(sys.argv[1], sys.argv[1:])
