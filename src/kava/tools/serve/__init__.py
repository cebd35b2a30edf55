"""`kava serve`: serve a trained model through OpenAI-compatible chat and completions endpoints."""
