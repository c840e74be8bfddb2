"""The way out of a site: draft, review, approval, release. Each needs the one before."""
