"""Makes model directories: recipe -> inputs -> plan (pure) -> write -> verify."""
