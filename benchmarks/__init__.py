"""hopscope beside plain hooks, TransformerLens, nnsight and the paper's batching, in one run."""
