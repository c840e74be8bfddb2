"""The site's side."""

from sites.transport.flower_app import make_app

app = make_app()
