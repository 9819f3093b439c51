"""Fine-tuning: a classifier that starts from a pre-trained encoder, all of it trained on labels.

choices.py has the settings that the paper tries, tuner.py is the update, and sweep.py trains one
classifier for each choice of settings and keeps the best, a `runs.encoder.Classifier`.
"""
