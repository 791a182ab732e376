"""Text: sources, the grammar of stories, tokens, labelled rows.

May import: process, settings.
"""
