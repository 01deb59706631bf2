"""A tracing just-in-time compiler for templates.

Most examples of a data set are rendered alike: the same text around other words. So one example of each *shape* is
*recorded*: the template renders it with *symbolic texts*, which write down in a *trace* what the template does with
them. An *operation* makes a text from another. A *guard* is a question about a text, with the answer on which the rest
of the trace depends. The traces of a shape are compiled into one function, the *trace tree*, and an example that passes
the guards of a trace is rendered by that function alone. An example that fails a guard leaves the tree at a *side exit*
and is *interpreted*, that is, rendered by Jinja. A recording is *aborted* where the template uses a text in a way that
no operation or guard expresses. For example:

    template     Q: {{ instruction | trim }}      recorded with the instruction " Two plus two? "
                 A: {{ response }}                and the response "Four."

    trace        t0 = content0.strip()            an operation
                 t0                               a guard: true, so t0 is not empty
    text         'Q: ' t0 '\\nA: ' content1        pieces: constants and variables

    next example                                  " Who? ", "Me." passes the guard
    its text     'Q: ' 'Who?' '\\nA: ' 'Me.'       the same pieces, filled in

| module | content |
|---|---|
| `trace` | traces: operations and guards |
| `symbolic_text`, `symbolic_values`, `finished_text` | the values that a template sees while it is recorded |
| `recording_environment`, `recorder` | the Jinja sandbox over symbolic text, and the rendering of one example in it |
| `compiled_trace`, `trace_tree` | the samples of a trace; all traces of a shape as one function |
| `compiler` | decides for each example: run a compiled trace, interpret, record |
"""
