"""Runs these migrations; what every service's `env.py` has in common is in the kit."""

from alembic import context

from darktree_kit.migrate import run_env

run_env(context)
