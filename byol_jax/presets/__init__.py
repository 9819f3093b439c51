"""Presets, one file each: what, the command, what to expect and whether that was measured."""
