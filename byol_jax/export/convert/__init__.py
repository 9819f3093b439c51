"""Weights of other programs' networks as trees of ours, and back; nothing here runs their code."""
