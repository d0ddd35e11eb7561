"""What every test may rely on, however the suite was started."""

import signal

# A shell starts background jobs with Ctrl-C ignored, and programs pass that on: the stages that tests
# interrupt would not hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
