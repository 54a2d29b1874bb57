"""What runs inside the sandbox: the fork-server and what it does to each program before that may begin.

These files travel into the sandbox as one zip and run under its own Python (3.9 or newer), so they import the standard
library and one another only. `values` is used on both sides of the wall.
"""
