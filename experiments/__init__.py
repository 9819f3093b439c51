"""Entry points: pretrain, evaluate, export; each is run as `python -m experiments.NAME`."""
