"""What a model is trained for and scored on: one interface, and its implementations.

May import: process.
"""
