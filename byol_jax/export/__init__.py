"""Trained encoders for use elsewhere: one file for each format, with `save(encoder, directory)`.

features.py writes embeddings of a data set instead of the encoder; inference.py is what formats
that carry the computation share. convert/ translates weights of other programs, both ways. What is
here knows runs and their encoders, but neither the training loop nor flags.
"""
