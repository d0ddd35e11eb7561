"""`python guard.py COMMAND ...` becomes COMMAND, which Linux kills when its parent process ends."""

import os
import sys

from csdn.runtime.process import set_parent_death_signal

set_parent_death_signal()
os.execvp(sys.argv[1], sys.argv[1:])
