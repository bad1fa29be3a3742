"""A stand-in for Stripe's API, for tests and for buying on one machine: knows nothing of Darktree."""
