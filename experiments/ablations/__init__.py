"""The tables of docs/ablations.md: what they vary, and how they are made."""
