"""Analyses of questions over documents: order, masks, attention, paths."""
