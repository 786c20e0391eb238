"""Prompts as tokens with named positions, captured states, and greedy answers."""
