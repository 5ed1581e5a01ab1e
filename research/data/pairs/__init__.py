"""Pairs of photos and which of them people prefer: lists, votes, their audit, features, a demo."""
