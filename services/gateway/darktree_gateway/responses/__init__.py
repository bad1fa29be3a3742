"""`/v1/responses`, spoken over an engine's chat, where usage is known at any moment (docs/decisions/0020)."""
