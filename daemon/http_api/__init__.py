"""The HTTP front: each dialect parses into ``contract.GenerateRequest`` and formats its events."""
