"""`kava serve`: a trained model behind OpenAI's chat and completions interface."""
