"""Engines behind one contract each: ``base`` declares, ``registry`` finds, ``worker`` isolates."""
