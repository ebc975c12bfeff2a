"""The rules of Google's AIPs that a generated client depends on, checked over our descriptors.

Each exception stands beside its rule, with its reason.
"""

import keyword
import re

from google.api import client_pb2
from google.longrunning import operations_pb2

from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason
from services.rpc.errors import CODES
from tests.contract.protos.declared import DURATION, TIMESTAMP, Contract, Field

# AIP-142 keeps `_time` for points in time; these two are spans whose field has another word for it.
SPANS_NAMED_TIME = {
    "cpu_time": "CPU time is what every profiler and kernel calls it",
    "monotonic_time": "a clock without an epoch; a Timestamp would look like a date",
}
# AIP-140 wants no prepositions; these are the terms that readers of the figures know.
TERMS_WITH_PREPOSITIONS = {"in_flight_count", "requests_per_second", "order_by"}
PREPOSITIONS = re.compile(
    r"(^|_)(after|at|before|between|but|by|during|except|for|from|in|into|of|on|over|per|since|to|toward|under"
    r"|upon|with|within|without)(_|$)"
)
# Enums that belong to no message, with the reason.
TOP_LEVEL_ENUMS = {
    "appsupervisor.errors.v1.ErrorReason": "it is the vocabulary of a string field of Google's"
}
# Macros of common headers and builds, and keywords of Python, that generated code would trip over.
MACROS_AND_KEYWORDS = {
    "TRUE", "FALSE", "NULL", "EOF", "NAN", "INFINITY", "HUGE_VAL", "DOMAIN", "SING", "OVERFLOW", "UNDERFLOW",
    "DEBUG", "NDEBUG", "RELEASE", "ERROR", "NO_ERROR", "DELETE", "IN", "OUT", "OPTIONAL", "IGNORE", "STRICT",
    "CONST", "VOID", "INTERFACE", "ABSOLUTE", "RELATIVE", "TRANSPARENT", "OPAQUE", "EXCEPTION", "ASSERT",
    *(word.upper() for word in keyword.kwlist), *keyword.kwlist,
}  # fmt: skip
# Plurals that don't end in s.
PLURALS = {"retained_data"}
STANDARD_TYPES = {
    "request_id": Field.TYPE_STRING,
    "page_size": Field.TYPE_INT32,
    "page_token": Field.TYPE_STRING,
    "next_page_token": Field.TYPE_STRING,
    "filter": Field.TYPE_STRING,
    "order_by": Field.TYPE_STRING,
    "etag": Field.TYPE_STRING,
    "validate_only": Field.TYPE_BOOL,
    "allow_missing": Field.TYPE_BOOL,
    "name": Field.TYPE_STRING,
    "parent": Field.TYPE_STRING,
    "display_name": Field.TYPE_STRING,
    "uid": Field.TYPE_STRING,
    "generation": Field.TYPE_INT64,
    "epoch": Field.TYPE_INT64,
    "revision": Field.TYPE_INT64,
    "reconciling": Field.TYPE_BOOL,
}


def last(name: str) -> str:
    return name.rpartition(".")[2]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def test_everything_declared_has_a_comment(contract: Contract) -> None:
    assert len(contract.messages) > 20, "the protos were not read"
    assert contract.uncommented == []


def test_points_in_time_end_in_time_and_nothing_else_does(contract: Contract) -> None:
    wrong = [
        item.path
        for item in contract.fields()
        if item.name.endswith("_time") != (item.proto.type_name == TIMESTAMP)
        and item.name not in SPANS_NAMED_TIME
    ]
    assert wrong == []


def test_spans_are_durations(contract: Contract) -> None:
    spans = re.compile(r"(^|_)(timeout|interval|period|backoff|ttl|age|delay|lag|budget|latency)($|_)")
    wrong = [
        item.path
        for item in contract.fields()
        if spans.search(item.name) and item.proto.type_name != DURATION and not item.name.endswith("_count")
    ]
    assert wrong == []


def test_an_enum_begins_with_its_unspecified_value(contract: Contract) -> None:
    for name, enum in contract.enums.items():
        assert enum.value[0].number == 0, name
        assert enum.value[0].name == f"{snake(last(name)).upper()}_UNSPECIFIED", name


def test_an_enum_is_nested_in_the_message_it_belongs_to(contract: Contract) -> None:
    top_level = {name for name in contract.enums if name.rpartition(".")[0] not in contract.messages}
    assert top_level == set(TOP_LEVEL_ENUMS)


def test_no_word_is_a_macro_of_c_or_a_keyword_of_python(contract: Contract) -> None:
    words = {f"{name}.{value.name}" for name, enum in contract.enums.items() for value in enum.value}
    words |= set(contract.messages) | {item.path for item in contract.fields()}
    assert [word for word in sorted(words) if last(word) in MACROS_AND_KEYWORDS] == []


def test_fields_are_named_without_prepositions(contract: Contract) -> None:
    wrong = [
        item.path
        for item in contract.fields()
        if PREPOSITIONS.search(item.name) and item.name not in TERMS_WITH_PREPOSITIONS
    ]
    assert wrong == []


def test_standard_fields_have_their_standard_types(contract: Contract) -> None:
    wrong = [
        item.path
        for item in contract.fields()
        if item.name in STANDARD_TYPES and not item.is_scalar(STANDARD_TYPES[item.name])
    ]
    assert wrong == []


def test_repeated_fields_are_named_in_the_plural(contract: Contract) -> None:
    maps = {name for name, message in contract.messages.items() if message.options.map_entry}
    wrong = [
        item.path
        for item in contract.fields()
        if item.repeated
        and item.proto.type_name.lstrip(".") not in maps
        and not item.name.endswith("s")
        and item.name not in PLURALS
    ]
    assert wrong == []


def test_a_method_takes_the_request_named_after_it(contract: Contract) -> None:
    for name, method in contract.methods.items():
        assert last(method.input_type) == f"{last(name)}Request", name


def test_get_and_list_methods_have_the_standard_shape(contract: Contract) -> None:
    resources = contract.resources()
    for name, method in contract.methods.items():
        request = contract.fields_of(method.input_type.lstrip("."))
        answer = method.output_type.lstrip(".")
        if last(name).startswith("Get") and answer in resources:
            assert set(request) - {"view"} == {"name"}, name  # a view is AIP-157
            assert "REQUIRED" in request["name"].behaviors, name
        if last(name).startswith("List"):
            assert {"page_size", "page_token"} <= set(request), name
            assert last(answer) == f"{last(name)}Response", name
            response = contract.fields_of(answer)
            assert "next_page_token" in response, name
            first = next(iter(response.values()))
            assert first.repeated, name
            assert first.proto.number == 1, name
            assert first.name == snake(last(name).removeprefix("List")), name
            assert first.proto.type_name.lstrip(".") in resources, name


READS = ("Get", "List", "Watch", "Tail")
TOLD_OF_A_COMMAND = (
    "Precondition: ",
    "On success: ",
    "Idempotent",
    "Cancelling ",
    "Rolled back: ",
    "Errors: ",
)


def test_the_comment_of_a_command_tells_all_that_its_caller_has_to_know(contract: Contract) -> None:
    commands = {name: text for name, text in contract.comments.items() if not last(name).startswith(READS)}
    assert len(commands) > 10
    for name, text in commands.items():
        lines = [line.removeprefix(" ") for line in text.splitlines()]
        untold = [word for word in TOLD_OF_A_COMMAND if not any(line.startswith(word) for line in lines)]
        assert untold == [], name


def test_every_method_has_a_signature_that_names_fields_of_its_request(contract: Contract) -> None:
    for name, method in contract.methods.items():
        signatures = method.options.Extensions[client_pb2.method_signature]
        assert signatures, name
        fields = contract.fields_of(method.input_type.lstrip("."))
        assert {field for one in signatures for field in one.split(",") if field} <= set(fields), name


def test_whatever_a_request_holds_says_who_owns_it(contract: Contract) -> None:
    marks = {"REQUIRED", "OPTIONAL", "OUTPUT_ONLY", "IMMUTABLE", "IDENTIFIER"}
    assert [item.path for item in contract.sent() if not item.behaviors & marks] == []
    masks = [item for item in contract.sent() if item.name == "update_mask"]
    assert masks
    assert all(item.behaviors == {"OPTIONAL"} for item in masks)


def test_a_uid_is_a_uuid(contract: Contract) -> None:
    uids = [item for item in contract.fields() if item.name == "uid"]
    assert len(uids) > 1
    assert [item.path for item in uids if item.format != "UUID4"] == []


def test_each_file_says_where_every_language_puts_it(contract: Contract) -> None:
    prefixes: dict[str, str] = {}
    for file in contract.files.file:
        parts = [part.capitalize() for part in file.package.split(".")[1:]]
        options = file.options
        assert options.csharp_namespace == ".".join(["AppSupervisor", *parts]), file.name
        assert options.php_namespace == "\\".join(["AppSupervisor", *parts]), file.name
        assert options.ruby_package == "::".join(["AppSupervisor", *parts]), file.name
        assert options.java_package == f"dev.{file.package}", file.name
        assert options.go_package.startswith(f"appsupervisor.dev/gen/{file.package.replace('.', '/')};"), (
            file.name
        )
        assert re.fullmatch("[A-Z]{3,}", options.objc_class_prefix), file.name
        package = prefixes.setdefault(options.objc_class_prefix, file.package)
        assert package == file.package, "two packages would clash in Objective-C"
    assert len(prefixes) == len({file.package for file in contract.files.file}), "one prefix per package"


def test_a_streaming_answer_is_the_response_named_after_its_method(contract: Contract) -> None:
    for name, method in contract.methods.items():
        if method.server_streaming:
            assert last(method.output_type) == f"{last(name)}Response", name
        # Not every client can stream requests; the one that does is the control plane's own.
        assert method.client_streaming == (last(name) == "HoldLease"), name


def test_a_long_running_method_names_its_result_and_its_metadata(contract: Contract) -> None:
    long_running = {
        name: method
        for name, method in contract.methods.items()
        if method.output_type == ".google.longrunning.Operation"
    }
    assert long_running
    for name, method in long_running.items():
        info = method.options.Extensions[operations_pb2.operation_info]
        package = name.rpartition(".")[0].rpartition(".")[0]
        for kind in (info.response_type, info.metadata_type):
            # One of another package is named in full (AIP-151).
            assert (kind if "." in kind else f"{package}.{kind}") in contract.messages, name
        assert "request_id" in contract.fields_of(method.input_type.lstrip(".")), name


def test_create_methods_take_the_id_and_a_request_id(contract: Contract) -> None:
    for name, method in contract.methods.items():
        if last(name).startswith("Create"):
            kind = snake(last(name).removeprefix("Create"))
            request = contract.fields_of(method.input_type.lstrip("."))
            assert {kind, f"{kind}_id", "request_id", "validate_only"} <= set(request), name


def test_what_callers_change_can_be_repeated_and_tried_without_effect(contract: Contract) -> None:
    reads = ("Get", "List", "Watch", "Tail", "Explain")
    for name, method in contract.methods.items():
        service = name.rpartition(".")[0]
        # Nodes register by incarnation, and are told by epochs: those are repeats of their own.
        if ".runtime." in service or last(name).startswith((*reads, "RegisterNode")):
            continue
        request = contract.fields_of(method.input_type.lstrip("."))
        assert {"request_id", "validate_only"} <= set(request), name


def test_a_resource_has_an_identifier_and_a_pattern(contract: Contract) -> None:
    assert contract.resources()
    # Collections are written in camelCase (AIP-122).
    collection = r"[a-z][A-Za-z]*/\{[a-z_]+\}"
    for name, resource in contract.resources().items():
        assert "IDENTIFIER" in contract.fields_of(name)["name"].behaviors, name
        assert resource.type == f"appsupervisor.dev/{last(name)}", name
        assert resource.pattern, name
        assert all(re.fullmatch(f"{collection}(/{collection})*", p) for p in resource.pattern), name
        assert resource.singular == last(name)[0].lower() + last(name)[1:], name
        assert resource.plural, name


def test_references_say_which_resource_they_mean(contract: Contract) -> None:
    resources = contract.resources()
    types = {resource.type for resource in resources.values()}
    singular = {snake(resource.singular) for resource in resources.values()}
    for item in contract.fields():
        if not item.is_scalar(Field.TYPE_STRING):
            continue
        request = item.message.endswith("Request")
        names_one = (request and item.name in {"name", "parent"}) or item.name in singular
        if names_one:
            assert item.reference is not None, f"{item.path} has no resource_reference"
        if item.reference is not None:
            assert (item.reference.type or item.reference.child_type) in types, item.path


def test_what_the_system_reports_is_marked_output_only(contract: Contract) -> None:
    reported = {"uid", "state", "health", "conditions", "reconciling", "observed_generation", "last_error"}
    # A node tells its own identity, incarnation and addresses: they are what its caller owns.
    told_by_node = {"appsupervisor.fleet.v1.Node.uid"}
    for resource in contract.resources():
        for item in contract.fields_of(resource).values():
            system = item.name in reported or item.name.endswith(("_time", "_count"))
            if system and item.path not in told_by_node:
                assert item.behaviors == {"OUTPUT_ONLY"}, item.path


def test_secrets_are_input_only(contract: Contract) -> None:
    secret = [item for item in contract.fields() if item.name.startswith("secret_") and item.repeated]
    assert {item.name for item in secret} == {"secret_env"}
    assert all("INPUT_ONLY" in item.behaviors for item in secret)


def test_every_error_reason_has_its_code_and_every_code_its_reason() -> None:
    assert set(CODES) == set(ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}


def test_a_reasons_comment_begins_with_its_code(contract: Contract) -> None:
    comments = {}
    for file in contract.files.file:
        if file.package == "appsupervisor.errors.v1":
            for location in file.source_code_info.location:
                path = list(location.path)
                if path[:2] == [5, 0] and path[2:3] == [2] and len(path) == 4:
                    comments[file.enum_type[0].value[path[3]].name] = location.leading_comments.strip()
    for reason, code in CODES.items():
        start = comments[reason].split(":")[0]
        assert start.startswith((code.name, "The app", "In conditions")), f"{reason}: {comments[reason]}"
