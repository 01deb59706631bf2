"""Helpers for several tests: available tokenizers, views of a record, and transformers' own rendering."""
