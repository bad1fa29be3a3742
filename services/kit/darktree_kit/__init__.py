"""What every Darktree service shares; it knows no noun of Darktree's except money."""
