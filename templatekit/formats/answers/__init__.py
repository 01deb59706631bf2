"""Answers, there and back: the form in which a template writes what a model answers, and reading an answer by it.

- `grammar`: an answer's form as a value: the literals between its fields
- `notation`: how values of arguments are written: as JSON, in Python's way, or with quotes of a template's own
- `probing`: finds a template's grammar by rendering small answers
- `call_forms`: finds how it writes tool calls
- `literals`: the literals that can follow each field, ready to be found in a text that comes in
- `parsing`: reads an answer by a grammar, at once or as it comes in
- `response_template`: says a grammar in the form that transformers reads
"""
