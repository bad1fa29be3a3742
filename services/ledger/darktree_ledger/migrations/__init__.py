"""The ledger's schema, as numbered steps that only go up: a ledger has no way back. Functions are beside the steps."""

ROLES = ("darktree_sealer",)
