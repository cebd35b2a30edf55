"""The playground: a web page to ask a model questions, see what its latents decode to, and change T and M."""
