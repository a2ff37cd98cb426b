"""What the three programs agree on, as plain data. Imports nothing of MindPort and nothing heavy."""
