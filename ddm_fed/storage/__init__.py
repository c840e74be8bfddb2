"""Bytes on disk: whole files, digests, tensors, and folders that one process may change."""
