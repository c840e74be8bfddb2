"""The coordinator's side."""

from coordinator.inbox.flower_app import make_app

app = make_app()
