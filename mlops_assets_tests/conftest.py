"""Settings of all tests."""

import signal

from hypothesis import settings

# The same examples for everybody: what fails on one machine fails on every other. A deadline would judge the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Jobs in a shell's background begin with SIGINT ignored, and so does all that they start: nothing could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
