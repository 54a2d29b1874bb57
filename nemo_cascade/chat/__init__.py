"""Talking to a model: in a terminal (`examples/chat.py`), over an OpenAI-compatible endpoint and on a page (`nemo-cascade serve`).

A `Model` (`turns`) says one turn as a stream of events; a `Conversation` makes its calls of tools between turns. Models are weights in
this process (`embedded`) or whatever answers `/chat/completions` (`endpoint`). How it is used is in docs/chat.md.
"""
