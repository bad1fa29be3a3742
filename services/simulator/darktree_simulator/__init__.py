"""A lane without a GPU: vLLM's HTTP surface with exact token accounting, a set speed, and faults on demand."""
