"""The coordinator's side."""

from coordinator.flower_app import make_app

app = make_app()
