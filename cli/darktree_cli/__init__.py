"""The command line: it starts the platform on one machine and administers a running one, with no logic of its own."""
