"""How `make repro` runs the graph: the process forked for each stage, estimates, what a killed run left, verification.

May import: process, settings, architecture, shrinking.
"""
