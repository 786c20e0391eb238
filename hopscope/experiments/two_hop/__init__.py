"""Analyses of two-hop queries, one module each."""
