"""Attention masks: their algebra, the named ones, and how they are lowered for a model."""
