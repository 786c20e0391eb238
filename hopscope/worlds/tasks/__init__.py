"""The tasks of the worlds, whose answers and circuits are known."""
