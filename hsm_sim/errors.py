"""Every refusal of the HSM: ``Rejected`` with a ``Code``, which has a name for the native door and a CKR number for the PKCS#11 door.

    raise Rejected(Code.KEY_NOT_FOUND, "there is no key root")
    Code.KEY_NOT_FOUND == "key_not_found"; Code.KEY_NOT_FOUND.ckr == 0x60

The names are stable. The numbers are those of PKCS#11 v3.0, 5.1 (``CKR_*``); what PKCS#11 has no word for gets the
number whose meaning for a caller is nearest.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """What went wrong. ``str(code)`` goes over the native socket, ``code.ckr`` over the PKCS#11 one."""

    ckr: int

    def __new__(cls, name: str, ckr: int = 0) -> Code:
        code = str.__new__(cls, name)
        code._value_, code.ckr = name, ckr
        return code

    # The device and the whole request
    BAD_REQUEST = "bad_request", 0x7
    GENERAL_ERROR = "general_error", 0x5
    FUNCTION_FAILED = "function_failed", 0x6
    FUNCTION_NOT_SUPPORTED = "function_not_supported", 0x54
    HOST_MEMORY = "host_memory", 0x2
    SLOT_ID_INVALID = "slot_id_invalid", 0x3
    NO_EVENT = "no_event", 0x8
    BUFFER_TOO_SMALL = "buffer_too_small", 0x150
    CRYPTOKI_NOT_INITIALIZED = "cryptoki_not_initialized", 0x190
    STATE_UNSAVEABLE = "state_unsaveable", 0x180
    RANDOM_SEED_NOT_SUPPORTED = "random_seed_not_supported", 0x120
    DEVICE_ERROR = "device_error", 0x30
    DEVICE_MEMORY = "device_memory", 0x31
    DEVICE_REMOVED = "device_removed", 0x32
    TOKEN_NOT_PRESENT = "token_not_present", 0xE0
    TOKEN_WRITE_PROTECTED = "token_write_protected", 0xE2
    STORAGE = "storage", 0x30
    STOPPING = "stopping", 0x32
    LOG_FULL = "log_full", 0x30
    TAMPERED = "tampered", 0x30
    RATE_LIMITED = "rate_limited", 0x6

    # Sessions and operations in them
    SESSION_CLOSED = "session_closed", 0xB0
    SESSION_COUNT = "session_count", 0xB1
    SESSION_HANDLE_INVALID = "session_handle_invalid", 0xB3
    SESSION_PARALLEL_NOT_SUPPORTED = "session_parallel_not_supported", 0xB4
    SESSION_READ_ONLY = "session_read_only", 0xB5
    SESSION_EXISTS = "session_exists", 0xB6
    SESSION_READ_ONLY_EXISTS = "session_read_only_exists", 0xB7
    SESSION_READ_WRITE_SO_EXISTS = "session_read_write_so_exists", 0xB8
    OPERATION_ACTIVE = "operation_active", 0x90
    OPERATION_NOT_INITIALIZED = "operation_not_initialized", 0x91

    # Who may
    PIN_INCORRECT = "pin_incorrect", 0xA0
    PIN_INVALID = "pin_invalid", 0xA1
    PIN_LEN_RANGE = "pin_len_range", 0xA2
    PIN_LOCKED = "pin_locked", 0xA4
    LOCKED = "locked", 0x101
    USER_ALREADY_LOGGED_IN = "user_already_logged_in", 0x100
    USER_NOT_LOGGED_IN = "user_not_logged_in", 0x101
    USER_PIN_NOT_INITIALIZED = "user_pin_not_initialized", 0x102
    USER_TYPE_INVALID = "user_type_invalid", 0x103
    USER_ANOTHER_ALREADY_LOGGED_IN = "user_another_already_logged_in", 0x104
    PERMISSION_DENIED = "permission_denied", 0x1B
    ACTION_PROHIBITED = "action_prohibited", 0x1B
    QUORUM_MISSING = "quorum_missing", 0x1B

    # Objects and keys
    KEY_NOT_FOUND = "key_not_found", 0x60
    KEY_HANDLE_INVALID = "key_handle_invalid", 0x60
    OBJECT_HANDLE_INVALID = "object_handle_invalid", 0x82
    KEY_EXISTS = "key_exists", 0x6
    KEY_DAMAGED = "key_damaged", 0x30
    KEY_SIZE_RANGE = "key_size_range", 0x62
    KEY_TYPE_INCONSISTENT = "key_type_inconsistent", 0x63
    KEY_FUNCTION_NOT_PERMITTED = "key_function_not_permitted", 0x68
    LIMIT_REACHED = "limit_reached", 0x68
    KEY_NOT_WRAPPABLE = "key_not_wrappable", 0x69
    KEY_UNEXTRACTABLE = "key_unextractable", 0x6A
    WRAPPED_KEY_INVALID = "wrapped_key_invalid", 0x110
    WRAPPED_KEY_LEN_RANGE = "wrapped_key_len_range", 0x112
    WRAPPING_KEY_HANDLE_INVALID = "wrapping_key_handle_invalid", 0x113
    WRAPPING_KEY_TYPE_INCONSISTENT = "wrapping_key_type_inconsistent", 0x115
    UNWRAPPING_KEY_HANDLE_INVALID = "unwrapping_key_handle_invalid", 0xF0
    UNWRAPPING_KEY_TYPE_INCONSISTENT = "unwrapping_key_type_inconsistent", 0xF2

    # Templates
    ATTRIBUTE_READ_ONLY = "attribute_read_only", 0x10
    ATTRIBUTE_SENSITIVE = "attribute_sensitive", 0x11
    ATTRIBUTE_TYPE_INVALID = "attribute_type_invalid", 0x12
    ATTRIBUTE_VALUE_INVALID = "attribute_value_invalid", 0x13
    TEMPLATE_INCOMPLETE = "template_incomplete", 0xD0
    TEMPLATE_INCONSISTENT = "template_inconsistent", 0xD1
    CURVE_NOT_SUPPORTED = "curve_not_supported", 0x140
    DOMAIN_PARAMS_INVALID = "domain_params_invalid", 0x130

    # Mechanisms and data
    MECHANISM_INVALID = "mechanism_invalid", 0x70
    MECHANISM_PARAM_INVALID = "mechanism_param_invalid", 0x71
    DATA_INVALID = "data_invalid", 0x20
    DATA_LEN_RANGE = "data_len_range", 0x21
    ENCRYPTED_DATA_INVALID = "encrypted_data_invalid", 0x40
    ENCRYPTED_DATA_LEN_RANGE = "encrypted_data_len_range", 0x41
    SIGNATURE_INVALID = "signature_invalid", 0xC0
    SIGNATURE_LEN_RANGE = "signature_len_range", 0xC1


class Rejected(Exception):
    """A request that is answered with an error: ``code``, and a sentence that names no secret and says what to do."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text
