"""Opens private images, as nothing else does: everything that comes out is `Private`.

Pixels become [-1, 1] by a rule that depends on the dtype alone, never on the values: a rule that
looked at the values would let one image change all others, and no privacy bound would hold.

Nothing is changed or left out without a word: `DataReport` holds the words.
"""

from sites.data.latents import encode_images as encode_images
from sites.data.latents import encode_part as encode_part
from sites.data.latents import wait_for_images as wait_for_images
from sites.data.loading import load_images as load_images
from sites.data.loading import names_of as names_of
from sites.data.report import DataReport as DataReport
