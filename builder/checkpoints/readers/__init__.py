"""Reads checkpoints of every known file format as named views, by their headers."""
