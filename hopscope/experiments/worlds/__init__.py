"""Analyses of small trained models whose circuit is known."""
