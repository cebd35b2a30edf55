"""What the latents think: read off by the language-model head, compared with the teacher, disturbed."""
