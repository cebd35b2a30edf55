"""The playground: ask a model in the browser, watch its latents, turn T and M."""
