"""Settings of all tests."""

from hypothesis import settings

# The same examples for everybody: what fails on one machine fails on every other.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
