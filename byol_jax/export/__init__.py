"""Trained encoders, for use elsewhere; one file for each format."""
