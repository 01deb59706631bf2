"""What several tests share: tiny tokenizers, nasty texts, records, and the properties as functions."""
