"""Programs that run inside a peer's own environment; they import nothing of MindPort."""
