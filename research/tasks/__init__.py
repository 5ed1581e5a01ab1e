"""Tasks: what is learnt, and how it is judged."""
