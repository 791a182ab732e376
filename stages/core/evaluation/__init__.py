"""Sentiment classification and summaries of language models, ROUGE.

May import: process, settings, architecture, training.
"""
