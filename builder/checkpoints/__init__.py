"""Reads checkpoints by their headers, and brings weights to their place."""
