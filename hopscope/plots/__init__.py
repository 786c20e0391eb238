"""The style of the figures and the pieces that they are made of."""
