"""Latency, classification, summaries, ROUGE, and the protocol of the seeds' notebook.

May import: process, settings, architecture, training.
"""
