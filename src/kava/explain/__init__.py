"""Analysis of the latents: decoded with the language-model head, compared with the teacher, changed by interventions."""
