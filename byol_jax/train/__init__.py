"""Training a run: the loop, its set-up, and what it measures, logs and saves on the way.

loop.py reads in the order of time; setup.py builds what it works with. pretrain.py is the call from
Python; finetune/ trains classifiers that start from an encoder. What an update computes is in
byol.py and parallel.py; what a run's folder holds, and how it is read again, is in runs/. No flags,
no models, no data formats.
"""
