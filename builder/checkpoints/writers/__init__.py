"""Writes views as checkpoint files of every known format, as streams of bytes from front to back."""
