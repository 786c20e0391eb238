"""Interactive views that run a model in a notebook: the mask painter and the prompt explorer."""
