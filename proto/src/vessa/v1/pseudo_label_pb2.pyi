from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_UINT16: _ClassVar[DataType]
    DATA_TYPE_INT16: _ClassVar[DataType]
    DATA_TYPE_UINT32: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]

class MaskEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASK_ENCODING_UNSPECIFIED: _ClassVar[MaskEncoding]
    MASK_ENCODING_RAW: _ClassVar[MaskEncoding]
    MASK_ENCODING_BIT_PACKED: _ClassVar[MaskEncoding]
    MASK_ENCODING_RUN_LENGTH: _ClassVar[MaskEncoding]

class CacheState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_STATE_UNSPECIFIED: _ClassVar[CacheState]
    CACHE_STATE_HIT: _ClassVar[CacheState]
    CACHE_STATE_MISS: _ClassVar[CacheState]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT16: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_UINT32: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority
MASK_ENCODING_UNSPECIFIED: MaskEncoding
MASK_ENCODING_RAW: MaskEncoding
MASK_ENCODING_BIT_PACKED: MaskEncoding
MASK_ENCODING_RUN_LENGTH: MaskEncoding
CACHE_STATE_UNSPECIFIED: CacheState
CACHE_STATE_HIT: CacheState
CACHE_STATE_MISS: CacheState

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImageRef(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    def __init__(self, sha256: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("encoded", "tensor", "ref")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    tensor: Tensor
    ref: ImageRef
    def __init__(self, encoded: _Optional[bytes] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., ref: _Optional[_Union[ImageRef, _Mapping]] = ...) -> None: ...

class StudentMask(_message.Message):
    __slots__ = ("label_map", "probabilities")
    LABEL_MAP_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    label_map: LabelMap
    probabilities: Tensor
    def __init__(self, label_map: _Optional[_Union[LabelMap, _Mapping]] = ..., probabilities: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class VolumeRef(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    def __init__(self, sha256: _Optional[str] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class SegmentOptions(_message.Message):
    __slots__ = ("top_k", "template_ids", "return_probabilities", "explain", "policy_off", "priority")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    POLICY_OFF_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    template_ids: _containers.RepeatedScalarFieldContainer[str]
    return_probabilities: bool
    explain: bool
    policy_off: _containers.RepeatedScalarFieldContainer[str]
    priority: Priority
    def __init__(self, top_k: _Optional[int] = ..., template_ids: _Optional[_Iterable[str]] = ..., return_probabilities: _Optional[bool] = ..., explain: _Optional[bool] = ..., policy_off: _Optional[_Iterable[str]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("top", "left", "height", "width", "quarter_turns")
    TOP_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    QUARTER_TURNS_FIELD_NUMBER: _ClassVar[int]
    top: int
    left: int
    height: int
    width: int
    quarter_turns: int
    def __init__(self, top: _Optional[int] = ..., left: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., quarter_turns: _Optional[int] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("row", "column", "class_name")
    ROW_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    row: int
    column: int
    class_name: str
    def __init__(self, row: _Optional[int] = ..., column: _Optional[int] = ..., class_name: _Optional[str] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("top", "left", "height", "width", "class_name")
    TOP_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    top: int
    left: int
    height: int
    width: int
    class_name: str
    def __init__(self, top: _Optional[int] = ..., left: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., class_name: _Optional[str] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("request_id", "image", "text", "class_names", "student_mask", "options", "volume", "bank", "volume_ref", "region", "window", "points", "boxes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    STUDENT_MASK_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    VOLUME_REF_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    image: Image
    text: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    student_mask: StudentMask
    options: SegmentOptions
    volume: _containers.RepeatedCompositeFieldContainer[Image]
    bank: str
    volume_ref: VolumeRef
    region: Region
    window: Window
    points: _containers.RepeatedCompositeFieldContainer[Point]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    def __init__(self, request_id: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., text: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ..., student_mask: _Optional[_Union[StudentMask, _Mapping]] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., volume: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., bank: _Optional[str] = ..., volume_ref: _Optional[_Union[VolumeRef, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ...) -> None: ...

class SegmentVolumeRequest(_message.Message):
    __slots__ = ("header", "slice")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    header: VolumeHeader
    slice: VolumeSlice
    def __init__(self, header: _Optional[_Union[VolumeHeader, _Mapping]] = ..., slice: _Optional[_Union[VolumeSlice, _Mapping]] = ...) -> None: ...

class VolumeHeader(_message.Message):
    __slots__ = ("request_id", "text", "class_names", "options", "bank", "num_slices", "ref", "window")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    NUM_SLICES_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    options: SegmentOptions
    bank: str
    num_slices: int
    ref: VolumeRef
    window: Window
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[SegmentOptions, _Mapping]] = ..., bank: _Optional[str] = ..., num_slices: _Optional[int] = ..., ref: _Optional[_Union[VolumeRef, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class VolumeSlice(_message.Message):
    __slots__ = ("index", "image", "student_mask", "points", "boxes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STUDENT_MASK_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    index: int
    image: Image
    student_mask: StudentMask
    points: _containers.RepeatedCompositeFieldContainer[Point]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    def __init__(self, index: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., student_mask: _Optional[_Union[StudentMask, _Mapping]] = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ...) -> None: ...

class LabelMap(_message.Message):
    __slots__ = ("height", "width", "num_classes", "encoding", "payload")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    num_classes: int
    encoding: MaskEncoding
    payload: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., num_classes: _Optional[int] = ..., encoding: _Optional[_Union[MaskEncoding, str]] = ..., payload: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UsedTemplate(_message.Message):
    __slots__ = ("template_id", "class_name", "similarity")
    TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    template_id: str
    class_name: str
    similarity: float
    def __init__(self, template_id: _Optional[str] = ..., class_name: _Optional[str] = ..., similarity: _Optional[float] = ...) -> None: ...

class ClassResult(_message.Message):
    __slots__ = ("class_name", "predicted_iou", "explanation")
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    class_name: str
    predicted_iou: float
    explanation: str
    def __init__(self, class_name: _Optional[str] = ..., predicted_iou: _Optional[float] = ..., explanation: _Optional[str] = ...) -> None: ...

class CacheReport(_message.Message):
    __slots__ = ("image_features", "template_features")
    IMAGE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    image_features: CacheState
    template_features: CacheState
    def __init__(self, image_features: _Optional[_Union[CacheState, str]] = ..., template_features: _Optional[_Union[CacheState, str]] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "milliseconds")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    milliseconds: float
    def __init__(self, stage: _Optional[str] = ..., milliseconds: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "field", "retry_after_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    field: str
    retry_after_seconds: float
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("request_id", "label_map", "confidence", "classes", "templates", "stage_times", "model_digest", "bank_version", "cache", "image_ref", "probabilities", "error", "slice_index", "volume_ref", "region")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMES_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BANK_VERSION_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_REF_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SLICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    VOLUME_REF_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    label_map: LabelMap
    confidence: Tensor
    classes: _containers.RepeatedCompositeFieldContainer[ClassResult]
    templates: _containers.RepeatedCompositeFieldContainer[UsedTemplate]
    stage_times: _containers.RepeatedCompositeFieldContainer[StageTime]
    model_digest: str
    bank_version: str
    cache: CacheReport
    image_ref: ImageRef
    probabilities: Tensor
    error: Error
    slice_index: int
    volume_ref: VolumeRef
    region: Region
    def __init__(self, request_id: _Optional[str] = ..., label_map: _Optional[_Union[LabelMap, _Mapping]] = ..., confidence: _Optional[_Union[Tensor, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassResult, _Mapping]]] = ..., templates: _Optional[_Iterable[_Union[UsedTemplate, _Mapping]]] = ..., stage_times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., model_digest: _Optional[str] = ..., bank_version: _Optional[str] = ..., cache: _Optional[_Union[CacheReport, _Mapping]] = ..., image_ref: _Optional[_Union[ImageRef, _Mapping]] = ..., probabilities: _Optional[_Union[Tensor, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., slice_index: _Optional[int] = ..., volume_ref: _Optional[_Union[VolumeRef, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class Template(_message.Message):
    __slots__ = ("template_id", "name", "height", "width", "class_names", "window")
    TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    template_id: str
    name: str
    height: int
    width: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    window: Window
    def __init__(self, template_id: _Optional[str] = ..., name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class ClassDefinition(_message.Message):
    __slots__ = ("name", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class AddTemplateRequest(_message.Message):
    __slots__ = ("image", "label_map", "classes", "name", "bank", "window")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    image: Image
    label_map: LabelMap
    classes: _containers.RepeatedCompositeFieldContainer[ClassDefinition]
    name: str
    bank: str
    window: Window
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., label_map: _Optional[_Union[LabelMap, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassDefinition, _Mapping]]] = ..., name: _Optional[str] = ..., bank: _Optional[str] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class AddTemplateResponse(_message.Message):
    __slots__ = ("template", "bank_version", "created")
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    BANK_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    template: Template
    bank_version: str
    created: bool
    def __init__(self, template: _Optional[_Union[Template, _Mapping]] = ..., bank_version: _Optional[str] = ..., created: _Optional[bool] = ...) -> None: ...

class GetTemplateRequest(_message.Message):
    __slots__ = ("template_id", "bank")
    TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    template_id: str
    bank: str
    def __init__(self, template_id: _Optional[str] = ..., bank: _Optional[str] = ...) -> None: ...

class GetTemplateResponse(_message.Message):
    __slots__ = ("template", "image", "label_map")
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_FIELD_NUMBER: _ClassVar[int]
    template: Template
    image: Image
    label_map: LabelMap
    def __init__(self, template: _Optional[_Union[Template, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., label_map: _Optional[_Union[LabelMap, _Mapping]] = ...) -> None: ...

class ListTemplatesRequest(_message.Message):
    __slots__ = ("bank",)
    BANK_FIELD_NUMBER: _ClassVar[int]
    bank: str
    def __init__(self, bank: _Optional[str] = ...) -> None: ...

class ListTemplatesResponse(_message.Message):
    __slots__ = ("templates", "classes", "bank_version")
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    BANK_VERSION_FIELD_NUMBER: _ClassVar[int]
    templates: _containers.RepeatedCompositeFieldContainer[Template]
    classes: _containers.RepeatedCompositeFieldContainer[ClassDefinition]
    bank_version: str
    def __init__(self, templates: _Optional[_Iterable[_Union[Template, _Mapping]]] = ..., classes: _Optional[_Iterable[_Union[ClassDefinition, _Mapping]]] = ..., bank_version: _Optional[str] = ...) -> None: ...

class DeleteTemplateRequest(_message.Message):
    __slots__ = ("template_id", "bank")
    TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    template_id: str
    bank: str
    def __init__(self, template_id: _Optional[str] = ..., bank: _Optional[str] = ...) -> None: ...

class DeleteTemplateResponse(_message.Message):
    __slots__ = ("bank_version",)
    BANK_VERSION_FIELD_NUMBER: _ClassVar[int]
    bank_version: str
    def __init__(self, bank_version: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ("bank",)
    BANK_FIELD_NUMBER: _ClassVar[int]
    bank: str
    def __init__(self, bank: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_image_bytes", "max_image_side", "max_classes", "max_top_k", "max_stream_in_flight", "max_request_pixels")
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_CLASSES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_PIXELS_FIELD_NUMBER: _ClassVar[int]
    max_image_bytes: int
    max_image_side: int
    max_classes: int
    max_top_k: int
    max_stream_in_flight: int
    max_request_pixels: int
    def __init__(self, max_image_bytes: _Optional[int] = ..., max_image_side: _Optional[int] = ..., max_classes: _Optional[int] = ..., max_top_k: _Optional[int] = ..., max_stream_in_flight: _Optional[int] = ..., max_request_pixels: _Optional[int] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "model_name", "model_digest", "model_parameters", "canvas_size", "bank_version", "num_templates", "classes", "limits", "cache_backend", "runtime", "device", "dtype", "device_memory_bytes", "bank", "banks", "policy_version", "policy_rules")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    CANVAS_SIZE_FIELD_NUMBER: _ClassVar[int]
    BANK_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BACKEND_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    BANKS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_RULES_FIELD_NUMBER: _ClassVar[int]
    version: str
    model_name: str
    model_digest: str
    model_parameters: int
    canvas_size: int
    bank_version: str
    num_templates: int
    classes: _containers.RepeatedCompositeFieldContainer[ClassDefinition]
    limits: Limits
    cache_backend: str
    runtime: str
    device: str
    dtype: str
    device_memory_bytes: int
    bank: str
    banks: _containers.RepeatedScalarFieldContainer[str]
    policy_version: str
    policy_rules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., model_name: _Optional[str] = ..., model_digest: _Optional[str] = ..., model_parameters: _Optional[int] = ..., canvas_size: _Optional[int] = ..., bank_version: _Optional[str] = ..., num_templates: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[ClassDefinition, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., cache_backend: _Optional[str] = ..., runtime: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., device_memory_bytes: _Optional[int] = ..., bank: _Optional[str] = ..., banks: _Optional[_Iterable[str]] = ..., policy_version: _Optional[str] = ..., policy_rules: _Optional[_Iterable[str]] = ...) -> None: ...
