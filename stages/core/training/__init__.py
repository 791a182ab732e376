"""The training loop, recovery after surgery, distillation, resuming.

May import: process, settings, text, architecture, tasks, forms.
"""
