"""Latency, classification, summaries, ROUGE, and the notes' protocol.

May import: process, settings, architecture, training.
"""
