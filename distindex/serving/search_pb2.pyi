from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Queries(_message.Message):
    __slots__ = ("json", "arrow")
    JSON_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    json: str
    arrow: bytes
    def __init__(self, json: _Optional[str] = ..., arrow: _Optional[bytes] = ...) -> None: ...

class ItemRequest(_message.Message):
    __slots__ = ("id", "arrow")
    ID_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    id: str
    arrow: bool
    def __init__(self, id: _Optional[str] = ..., arrow: _Optional[bool] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("json", "arrow")
    JSON_FIELD_NUMBER: _ClassVar[int]
    ARROW_FIELD_NUMBER: _ClassVar[int]
    json: str
    arrow: bytes
    def __init__(self, json: _Optional[str] = ..., arrow: _Optional[bytes] = ...) -> None: ...
