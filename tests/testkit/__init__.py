"""What several tests share: tokenizers at hand, what to look at in a record, and transformers' own rendering."""
