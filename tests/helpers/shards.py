"""Pictures, and shards of WebDataset, for tests."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def png(seed, size=(8, 8), mode="L", kind="PNG", **options):
    """Returns the bytes of a picture of noise."""
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def write_shard(path, entries):
    """Writes a tar of `(name, bytes or text or object)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
