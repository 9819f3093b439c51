"""Fine-tuning: a classifier that starts from a pre-trained encoder, all of it trained on labels.

tuner.py is the update, sweep.py trains one classifier for each choice of settings and keeps the
best. The result is a `runs.encoder.Classifier`.
"""
