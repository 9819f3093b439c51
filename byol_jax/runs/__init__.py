"""A run: its config, what is built from it, and its folder.

config.py, build.py and inputs.py turn settings into a learner and batches, with what kinds/ knows
about a kind of data; resolve.py and limits.py check settings, tree.py finds them by key. run.py and
checkpoint.py read and write the folder of a run; encoder.py is its encoder, for use and export;
paths.py, manifest.py and processes.py serve them. No training and no export formats here. Only
checkpoint.py imports Orbax, and nothing here imports TensorFlow.
"""
