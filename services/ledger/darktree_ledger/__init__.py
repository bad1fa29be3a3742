"""Holds, charges, balances and caps: the only code that moves money."""
