"""Alembic's entry: everything is decided in darktree_kit.migrate."""

from alembic import context

from darktree_kit.migrate import run_env

run_env(context)
