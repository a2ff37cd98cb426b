"""How each family's tensors are named and packed in each kind of checkpoint."""
