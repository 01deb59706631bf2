"""Limits the cost of untrusted templates: metered in this process, or in a worker that the operating system limits.

`metering` counts the cost of a rendering. `worker` renders in another process the templates that cannot be metered.
`untrusted` decides between the two.
"""
