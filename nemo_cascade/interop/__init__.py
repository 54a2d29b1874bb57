"""Doors to NeMo's other programs, a module each; none imports its package before it is used."""
