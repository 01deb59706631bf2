"""Text → ids and weights: the tokenizer, the cuts, what is trained, what is too long."""
