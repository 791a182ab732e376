"""How `make repro` runs the graph: the process forked for each stage, estimates, leftovers of a killed run, verification.

May import: process, settings, architecture.
"""
