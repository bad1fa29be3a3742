"""Makes lanes out of InferenceLane resources. Not built yet: outside a cluster, `darktree up` serves the lanes."""
