"""A toy run, disturbed in every way that has a remedy, must end as if nothing had happened.

`./run.sh faults` (or `python -m tests.faults`) trains the run of toy.py by the command that a user
types, disturbs it, starts the same command again until the run is complete, and compares the final
state, bit for bit, and the metrics with those of an undisturbed run.
"""
