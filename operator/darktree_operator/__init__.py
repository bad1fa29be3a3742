"""Makes lanes out of InferenceLane resources, and says in their status how that goes."""
