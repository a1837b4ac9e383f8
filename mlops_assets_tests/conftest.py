"""Settings of all tests."""

import signal

from hypothesis import settings

# The same examples for everybody: what fails on one machine fails on every other. A deadline would judge the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Jobs in a shell's background begin with SIGINT ignored, those of nohup with SIGHUP, and so does all that they start:
# nothing could be interrupted.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
