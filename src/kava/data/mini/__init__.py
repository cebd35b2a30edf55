"""The built-in word problems of the mini experiment and their tokenizer."""
