"""Speed, measured side by side: ``python -m research.benchmark NAME``."""
