"""Limits what untrusted templates cost, and what they can reach: those of a file, a tokenizer or a model's folder.

`untrusted` decides where such a template renders. `metering` counts its steps in this process; `worker` renders what
cannot be counted, in a process that the operating system limits. What a template may try, and what prevents it:

- Reach Python's classes and modules: Jinja's immutable sandbox, which refuses names with underscores (`environment`).
- Read files or load other templates: there is no loader, and the worker cannot open files.
- Never end: steps are counted; the worker's processor time is limited.
- Fill the memory (`'x' * 10**9`, `range`, `join`): what is made is charged, and the worker's memory is limited.
- Print without end: the output may be so many times as long as the data.
- Change the data, or another rendering: values cannot be changed, and nothing is kept between renderings.
- Write control tokens as if the data held them: each character has an origin, and the template's are its own
  (`provenance`).
- Reach the terminal (`raise_exception`): errors are printed with their control characters made visible.

A template can still write what is wrong to train on; `templatekit check` and `audit` look for that.
"""
