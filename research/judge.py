"""The old name of ``python -m research.leaderboard``, which it runs."""

from __future__ import annotations

import sys

from research import leaderboard
from research.config import cli

if __name__ == "__main__":
    print("research.judge is called research.leaderboard now", file=sys.stderr)
    cli.command(leaderboard.USAGE, leaderboard.main)
