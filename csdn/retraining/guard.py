"""`python guard.py COMMAND ...` becomes COMMAND, and dies with the process that started it."""

import os
import sys

from csdn.process import die_with_parent

die_with_parent()
os.execvp(sys.argv[1], sys.argv[1:])
