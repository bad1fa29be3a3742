"""The console: what a customer's people see and do in a browser. Pages are made here, and work without scripts."""
