"""The engine: edits, hooks, caches, attention, and the sweep over many versions of a prompt."""
