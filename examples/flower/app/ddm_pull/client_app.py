"""The site's side."""

from sites.flower_app import make_app

app = make_app()
