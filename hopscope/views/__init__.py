"""Interactive views of results, masks and prompts, for notebooks and for pages without a server.

Nothing is imported here, so that a picture does not wait for widgets.
"""
