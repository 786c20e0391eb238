"""Keeps the module paths of earlier versions working."""
