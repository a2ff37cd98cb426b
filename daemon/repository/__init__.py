"""What is on disk (``disk``) and what is loaded (``registry``: a state machine per version)."""
