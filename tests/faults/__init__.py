"""A toy run, disturbed in every way there is a remedy for, must end as if nothing had happened.

`./run.sh faults` (or `python -m tests.faults`) trains the run of toy.py by the command that a user
types, disturbs it, goes on with the same command until the run is complete, and compares all of
the final state, bit for bit, and the readings with those of a run that nothing disturbed.
"""
