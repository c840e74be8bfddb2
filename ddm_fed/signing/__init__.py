"""Who said it: keys and the DSSE envelope. The only door to `cryptography`."""

from ddm_fed.signing.envelope import ENROLMENT_PAYLOAD as ENROLMENT_PAYLOAD
from ddm_fed.signing.envelope import PLAN_PAYLOAD as PLAN_PAYLOAD
from ddm_fed.signing.envelope import ROSTER_PAYLOAD as ROSTER_PAYLOAD
from ddm_fed.signing.envelope import SignedPayload as SignedPayload
from ddm_fed.signing.envelope import open_envelope as open_envelope
from ddm_fed.signing.envelope import peek_payload as peek_payload
from ddm_fed.signing.envelope import pre_authentication_encoding as pre_authentication_encoding
from ddm_fed.signing.envelope import seal as seal
from ddm_fed.signing.export_key import ExportKey as ExportKey
from ddm_fed.signing.export_key import verify_export_signature as verify_export_signature
from ddm_fed.signing.keys import PASSPHRASE_VARIABLE as PASSPHRASE_VARIABLE
from ddm_fed.signing.keys import SigningKey as SigningKey
from ddm_fed.signing.keys import VerifyKey as VerifyKey
from ddm_fed.signing.trust import Trust as Trust
from ddm_fed.signing.trust import establish_trust as establish_trust
from ddm_fed.signing.trust import require_in_force as require_in_force
