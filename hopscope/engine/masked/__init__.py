"""Prompts that share documents, read in many orders and under many masks at once."""
