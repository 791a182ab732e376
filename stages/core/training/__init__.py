"""The training loop, recovery after surgery, distillation, resuming.

May import: process, settings, architecture, tasks, forms.
"""
