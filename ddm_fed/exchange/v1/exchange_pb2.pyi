from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BundleState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUNDLE_STATE_UNSPECIFIED: _ClassVar[BundleState]
    BUNDLE_STATE_UPLOADING: _ClassVar[BundleState]
    BUNDLE_STATE_ARRIVED: _ClassVar[BundleState]
    BUNDLE_STATE_ADMITTED: _ClassVar[BundleState]
    BUNDLE_STATE_REFUSED: _ClassVar[BundleState]

class EnrolmentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENROLMENT_STATE_UNSPECIFIED: _ClassVar[EnrolmentState]
    ENROLMENT_STATE_WAITING: _ClassVar[EnrolmentState]
    ENROLMENT_STATE_MEMBER: _ClassVar[EnrolmentState]
BUNDLE_STATE_UNSPECIFIED: BundleState
BUNDLE_STATE_UPLOADING: BundleState
BUNDLE_STATE_ARRIVED: BundleState
BUNDLE_STATE_ADMITTED: BundleState
BUNDLE_STATE_REFUSED: BundleState
ENROLMENT_STATE_UNSPECIFIED: EnrolmentState
ENROLMENT_STATE_WAITING: EnrolmentState
ENROLMENT_STATE_MEMBER: EnrolmentState

class GetPlanRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPlanResponse(_message.Message):
    __slots__ = ("plan_envelope",)
    PLAN_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    plan_envelope: bytes
    def __init__(self, plan_envelope: _Optional[bytes] = ...) -> None: ...

class GetRosterRequest(_message.Message):
    __slots__ = ("known_version",)
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    known_version: int
    def __init__(self, known_version: _Optional[int] = ...) -> None: ...

class GetRosterResponse(_message.Message):
    __slots__ = ("roster_envelopes", "has_more")
    ROSTER_ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    roster_envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    has_more: bool
    def __init__(self, roster_envelopes: _Optional[_Iterable[bytes]] = ..., has_more: bool = ...) -> None: ...

class GetLogRequest(_message.Message):
    __slots__ = ("first_leaf",)
    FIRST_LEAF_FIELD_NUMBER: _ClassVar[int]
    first_leaf: int
    def __init__(self, first_leaf: _Optional[int] = ...) -> None: ...

class GetLogResponse(_message.Message):
    __slots__ = ("leaf_envelopes", "checkpoint")
    LEAF_ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    leaf_envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: bytes
    def __init__(self, leaf_envelopes: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class GetReferenceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetReferenceResponse(_message.Message):
    __slots__ = ("reference_envelope", "data")
    REFERENCE_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    reference_envelope: bytes
    data: bytes
    def __init__(self, reference_envelope: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "hint")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    hint: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class BeginUploadRequest(_message.Message):
    __slots__ = ("submission_envelope",)
    SUBMISSION_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    submission_envelope: bytes
    def __init__(self, submission_envelope: _Optional[bytes] = ...) -> None: ...

class BeginUploadResponse(_message.Message):
    __slots__ = ("submission_sha256", "state", "committed_bytes", "receipt_envelope")
    SUBMISSION_SHA256_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    submission_sha256: str
    state: BundleState
    committed_bytes: int
    receipt_envelope: bytes
    def __init__(self, submission_sha256: _Optional[str] = ..., state: _Optional[_Union[BundleState, str]] = ..., committed_bytes: _Optional[int] = ..., receipt_envelope: _Optional[bytes] = ...) -> None: ...

class WriteUploadRequest(_message.Message):
    __slots__ = ("submission_sha256", "offset", "data")
    SUBMISSION_SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    submission_sha256: str
    offset: int
    data: bytes
    def __init__(self, submission_sha256: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteUploadResponse(_message.Message):
    __slots__ = ("committed_bytes",)
    COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    committed_bytes: int
    def __init__(self, committed_bytes: _Optional[int] = ...) -> None: ...

class QueryWriteStatusRequest(_message.Message):
    __slots__ = ("submission_sha256",)
    SUBMISSION_SHA256_FIELD_NUMBER: _ClassVar[int]
    submission_sha256: str
    def __init__(self, submission_sha256: _Optional[str] = ...) -> None: ...

class QueryWriteStatusResponse(_message.Message):
    __slots__ = ("state", "committed_bytes", "receipt_envelope", "refusal")
    STATE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    state: BundleState
    committed_bytes: int
    receipt_envelope: bytes
    refusal: Refusal
    def __init__(self, state: _Optional[_Union[BundleState, str]] = ..., committed_bytes: _Optional[int] = ..., receipt_envelope: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class CommitUploadRequest(_message.Message):
    __slots__ = ("submission_sha256",)
    SUBMISSION_SHA256_FIELD_NUMBER: _ClassVar[int]
    submission_sha256: str
    def __init__(self, submission_sha256: _Optional[str] = ...) -> None: ...

class CommitUploadResponse(_message.Message):
    __slots__ = ("state", "receipt_envelope", "refusal")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    state: BundleState
    receipt_envelope: bytes
    refusal: Refusal
    def __init__(self, state: _Optional[_Union[BundleState, str]] = ..., receipt_envelope: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("federation", "site", "state", "waiting_for", "plan_sha256", "roster_version", "log_size", "has_reference")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOG_SIZE_FIELD_NUMBER: _ClassVar[int]
    HAS_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    federation: str
    site: str
    state: str
    waiting_for: str
    plan_sha256: str
    roster_version: int
    log_size: int
    has_reference: bool
    def __init__(self, federation: _Optional[str] = ..., site: _Optional[str] = ..., state: _Optional[str] = ..., waiting_for: _Optional[str] = ..., plan_sha256: _Optional[str] = ..., roster_version: _Optional[int] = ..., log_size: _Optional[int] = ..., has_reference: bool = ...) -> None: ...

class GetEnsembleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EnsembleFile(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class GetEnsembleResponse(_message.Message):
    __slots__ = ("ensemble_sha256", "files")
    ENSEMBLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ensemble_sha256: str
    files: _containers.RepeatedCompositeFieldContainer[EnsembleFile]
    def __init__(self, ensemble_sha256: _Optional[str] = ..., files: _Optional[_Iterable[_Union[EnsembleFile, _Mapping]]] = ...) -> None: ...

class ReadEnsembleRequest(_message.Message):
    __slots__ = ("ensemble_sha256", "name", "offset")
    ENSEMBLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ensemble_sha256: str
    name: str
    offset: int
    def __init__(self, ensemble_sha256: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ReadEnsembleResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("request_envelope",)
    REQUEST_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    request_envelope: bytes
    def __init__(self, request_envelope: _Optional[bytes] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: EnrolmentState
    def __init__(self, state: _Optional[_Union[EnrolmentState, str]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("expert_sha256", "states", "times", "classes")
    EXPERT_SHA256_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    expert_sha256: str
    states: bytes
    times: bytes
    classes: bytes
    def __init__(self, expert_sha256: _Optional[str] = ..., states: _Optional[bytes] = ..., times: _Optional[bytes] = ..., classes: _Optional[bytes] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("expert_sha256", "velocities", "evaluations_left")
    EXPERT_SHA256_FIELD_NUMBER: _ClassVar[int]
    VELOCITIES_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_LEFT_FIELD_NUMBER: _ClassVar[int]
    expert_sha256: str
    velocities: bytes
    evaluations_left: int
    def __init__(self, expert_sha256: _Optional[str] = ..., velocities: _Optional[bytes] = ..., evaluations_left: _Optional[int] = ...) -> None: ...
