"""How much memory a search takes, and how much of the text a divergence; `make check` estimates by the same numbers."""

COMPARED = 2048  # tokens or images whose answers are compared: a divergence needs fewer than a score
STATES = 2e9  # bytes of the original's residual streams that stay in memory
MOMENTS = 4e9  # bytes of moments that stay in memory between windows or methods
