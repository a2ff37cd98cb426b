"""The ``convert`` use case: a checkpoint in, the same weights in another form out."""
