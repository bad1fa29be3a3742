"""Darktree."""
