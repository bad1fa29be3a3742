"""Grafana's dashboards of Darktree, each a module of panels. `make dashboards` writes them into the chart."""
