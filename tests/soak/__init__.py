"""A real daemon under random requests: ``python -m tests.soak --minutes 30``."""
