"""A causal language model bound to the core: loading, encoding, generation, memory."""
