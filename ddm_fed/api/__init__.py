"""The verbs of `import ddm_fed`: thin functions over what the commands do, for notebooks.

They verify as the commands do, refuse what the commands refuse, and give the same images.
"""

from ddm_fed.api.loading import LoadedEnsemble as LoadedEnsemble
from ddm_fed.api.loading import load as load
from ddm_fed.api.sample_set import SampleSet as SampleSet
from ddm_fed.api.training import train_expert as train_expert
from ddm_fed.api.verifying import verify as verify
