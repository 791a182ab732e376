"""How `make repro` runs the graph: estimates, leftovers of a killed run, verification.

May import: process, settings, architecture.
"""
