"""From one pinned digest to every key, and the log of what was admitted."""

from ddm_fed.trust.chain import RosterChain as RosterChain
from ddm_fed.trust.chain import Trust as Trust
from ddm_fed.trust.chain import claimed_pin as claimed_pin
from ddm_fed.trust.chain import establish_chain as establish_chain
from ddm_fed.trust.chain import establish_trust as establish_trust
from ddm_fed.trust.chain import missing_signatures as missing_signatures
from ddm_fed.trust.chain import pin_of as pin_of
from ddm_fed.trust.chain import require_in_force as require_in_force
from ddm_fed.trust.chain import require_next as require_next
from ddm_fed.trust.chain import usable_keys as usable_keys
from ddm_fed.trust.checkpoint import Checkpoint as Checkpoint
from ddm_fed.trust.checkpoint import InclusionProof as InclusionProof
from ddm_fed.trust.checkpoint import open_checkpoint as open_checkpoint
from ddm_fed.trust.checkpoint import read_proof as read_proof
from ddm_fed.trust.checkpoint import sign_checkpoint as sign_checkpoint
from ddm_fed.trust.checkpoint import write_proof as write_proof
from ddm_fed.trust.merkle import MerkleTree as MerkleTree
from ddm_fed.trust.merkle import leaf_hash as leaf_hash
from ddm_fed.trust.merkle import node_hash as node_hash
from ddm_fed.trust.merkle import verify_inclusion as verify_inclusion
