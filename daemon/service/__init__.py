"""Transport-free use cases: the generate request's path, and control of models."""
