"""Exports outside of Python: in TensorFlow's C++ loader, which TF Serving calls, and behind TF Serving's protocol."""

import base64
import json
import shutil
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations
from conftest import WORDS
from exported import EXPORTED
from serving import cpp_loader, wire_server
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

NAMES = EXPORTED


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> str:
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to compile load_saved_model.cc with")
    return cpp_loader.compile_loader(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="module")
def signatures(exported):
    """The exports' signatures in Python, by the exports' names."""
    return {name: tf.saved_model.load(str(exported[f"{name}_export"] / "1")).signatures for name in NAMES}


@pytest.fixture(scope="module")
def loaders(exported, program):
    """The exports in C++, by their names."""
    loaders = {name: cpp_loader.CppLoader(program, exported[f"{name}_export"] / "1") for name in NAMES}
    yield loaders
    for loader in loaders.values():
        loader.close()


@pytest.fixture(scope="module")
def ports(exported, loaders):
    models = {name: wire_server.Model(loaders[name], exported[f"{name}_export"] / "1") for name in NAMES}
    with wire_server.serve(models) as ports:
        yield ports


@pytest.fixture(scope="module")
def stub(ports):
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def rest(ports):
    """Returns a function that sends a request of REST and gives the status and the JSON of the answer."""

    def send(path, body=None):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{ports[1]}/v1/models/{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return send


def strings(texts) -> np.ndarray:
    return np.array([text if isinstance(text, bytes) else text.encode() for text in texts], object)


def inputs_for(signature, number: int, length: int) -> dict[str, np.ndarray]:
    """Returns a batch of texts of at most `length` words, or of rows of `length` ids."""
    rng = np.random.default_rng(0)
    specs = signature.structured_input_signature[1]
    if "input_word_ids" in specs:
        mask = (np.arange(length) < rng.integers(1, length + 1, [number, 1])).astype(np.int32)
        ids = rng.integers(5, 20, [number, length], np.int32)
        return dict(input_word_ids=ids * mask, input_mask=mask, input_type_ids=np.zeros_like(ids))
    return {
        name: strings(" ".join(rng.choice([*WORDS, "[MASK]"], rng.integers(length + 1))) for _ in range(number))
        for name in specs
    }


def in_python(function, inputs) -> dict[str, np.ndarray]:
    specs = function.structured_input_signature[1]
    outputs = function(**{key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in outputs.items()}


def assert_same(outputs, expected):
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        if value.dtype == object:
            np.testing.assert_array_equal(outputs[key], value)
        else:
            np.testing.assert_allclose(outputs[key], value, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_cpp_loader_gives_what_python_does(signatures, loaders, name):
    functions = signatures[name]
    expected_names = {"serving_default", "embed", "token_ids"} | ({"fill_mask"} if name == "pretrain" else set())
    assert set(functions) == expected_names
    for signature, function in functions.items():
        for number, length in ((1, 1), (2, 5), (8, 30), (3, 100), (0, 7)):
            if signature == "token_ids":
                length = min(length, 32)
            inputs = inputs_for(function, number, length)
            outputs = loaders[name].run(signature, inputs)
            assert_same(outputs, in_python(function, inputs))
            assert {len(value) for value in outputs.values()} == {number}


def test_strings_of_any_bytes_arrive_whole(signatures, loaders):
    texts = strings([b"the cat\0sat", b"the\ncat", b"\xff\xfe cat \x80", b"", "cat " * 262_144])
    assert len(texts[-1]) == 2**20
    classify = signatures["classify"]["serving_default"]
    assert_same(loaders["classify"].run("serving_default", dict(text=texts)), in_python(classify, dict(text=texts)))
    with pytest.raises(cpp_loader.RequestError, match="no signature nothing"):
        loaders["classify"].run("nothing", {})
    with pytest.raises(cpp_loader.RequestError, match="no input text_b"):
        loaders["pairs"].run("serving_default", dict(text_a=texts))


def strange_text(rng) -> bytes:
    """Returns a text of a kind that users send, or that they do not; one in 50 is 1 MB long."""
    kind = rng.integers(10)
    length = 2**20 if rng.integers(50) == 0 else int(rng.integers(1, 300))
    if kind == 0:
        return rng.bytes(length)
    if kind == 1:
        return b""
    alphabet = [
        WORDS,
        ["[MASK]", "[MASK", "MASK]", "[MASK][MASK]", "[mask]", "a"],
        ["\0", "\t", "\n", "\x1b[0m", "\x7f", "\u200b", "\ufeff", "\u202e"],
        ["שלום", "مرحبا", "\u202eכן", "١٢٣", " "],
        ["😀", "👩‍👩‍👧", "🇪🇺", "e\u0301\u0301\u0301", "ﷺ", " "],
        [b"\xc3", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b" "],
        ["中", "文", "字", "ß", "İ", "Å", " "],
        ["cat", "catcatcatcatcat", "##s", "[CLS]", "[SEP]", "[PAD]"],
    ][kind - 2]
    alphabet = [part if isinstance(part, bytes) else part.encode() for part in alphabet]
    separator = [b"", b" "][rng.integers(2)]
    size = max(len(part) + len(separator) for part in alphabet)
    return separator.join(alphabet[i] for i in rng.integers(len(alphabet), size=max(length // size, 1)))


def send_strange_requests(signatures, loaders, number: int) -> list[float]:
    """Sends requests to all string signatures in turn, checks the answers; returns the MB allocated, 20 times."""
    rng = np.random.default_rng(number)
    calls = [
        (name, signature, list(function.structured_input_signature[1]))
        for name in loaders
        for signature, function in signatures[name].items()
        if signature != "token_ids"
    ]
    memory = []
    for i in range(number):
        name, signature, keys = calls[i % len(calls)]
        batch = int(rng.choice([1, 1, 1, 2, 5]))
        inputs = {key: strings(strange_text(rng) for _ in range(batch)) for key in keys}
        outputs = loaders[name].run(signature, inputs)
        for value in outputs.values():
            assert len(value) == batch
            assert value.dtype == object or np.isfinite(value).all()
        if "label" in outputs:
            np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1.0, atol=1e-5)
            best = outputs["probabilities"].argmax(axis=1)
            assert outputs["label"].tolist() == outputs["labels"][np.arange(batch), best].tolist()
        if "tokens" in outputs:
            there = (outputs["tokens"] != b"").all(axis=2)
            np.testing.assert_array_equal(there, (outputs["probabilities"] > 0).any(axis=2))
            masks = [text.count(b"[MASK]") for text in inputs["text"]]
            assert (there.sum(axis=1) <= masks).all()
            assert there.any(axis=1).sum() <= np.count_nonzero(masks)
        if (i + 1) % (number // 20) == 0:
            memory.append(sum(loader.allocated_memory() for loader in loaders.values()))
    return memory


def test_no_request_breaks_it(signatures, loaders):
    send_strange_requests(signatures, loaders, 300)


@pytest.mark.slow
@pytest.mark.parametrize(("names", "number"), [(NAMES[:4], 2_000), (("tag",), 1_000), (("question_answering",), 1_000)])
def test_memory_stays_flat(exported, program, signatures, names, number):
    # oneDNN keeps something for each shape of a batch, up to a limit that takes thousands of requests to reach.
    loaders = {name: cpp_loader.CppLoader(program, exported[f"{name}_export"] / "1", one_dnn=False) for name in names}
    memory = send_strange_requests(signatures, loaders, number)
    for loader in loaders.values():
        loader.close()
    # Requests average 27 kB: keeping the texts of the 250 or more between the middles of the last two quarters
    # would add 7 MB or more. What the first half adds is what threads allocate once.
    assert np.median(memory[15:]) - np.median(memory[10:15]) < 1, memory


def request_for(name, signature, inputs):
    request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name=name, signature_name=signature))
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(cpp_loader.proto(value))
    return request


@pytest.mark.parametrize("name", NAMES)
def test_rows_columns_and_grpc_agree_for_every_signature(signatures, stub, rest, name):
    functions = signatures[name]
    for signature, function in functions.items():
        for number in (1, 3):
            inputs = inputs_for(function, number, 6)
            expected = in_python(function, inputs)
            response = stub.Predict(request_for(name, signature, inputs), 60)
            assert (response.model_spec.name, response.model_spec.version.value) == (name, 1)
            outputs = {key: tf.make_ndarray(value) for key, value in response.outputs.items()}
            assert_same(outputs, expected)

            plain = {k: [v.decode() if isinstance(v, bytes) else v.tolist() for v in vs] for k, vs in inputs.items()}
            rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
            if len(plain) == 1:  # then they need no name
                (rows,) = plain.values()
            status, answer = rest(f"{name}:predict", dict(signature_name=signature, instances=rows))
            assert status == 200, answer
            by_rows = answer["predictions"]
            assert len(by_rows) == number
            status, answer = rest(f"{name}:predict", dict(signature_name=signature, inputs=plain))
            assert status == 200, answer
            by_columns = answer["outputs"]
            if len(expected) == 1:
                (key,) = expected
                by_rows, by_columns = [{key: row} for row in by_rows], {key: by_columns}
            for key, value in outputs.items():
                assert by_columns[key] == [row[key] for row in by_rows]
                if value.dtype == object:
                    assert np.array(by_columns[key], object).tolist() == decoded(value)
                else:  # the same float32s, to the last bit
                    np.testing.assert_array_equal(np.array(by_columns[key], value.dtype).reshape(value.shape), value)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_has_empty_answers(signatures, stub, name):
    for signature, function in signatures[name].items():
        response = stub.Predict(request_for(name, signature, inputs_for(function, 0, 6)), 60)
        assert set(response.outputs) == set(function.structured_outputs)
        for key, value in response.outputs.items():
            assert tf.make_ndarray(value).shape[0] == 0
            assert value.dtype == function.structured_outputs[key].dtype


def decoded(value):
    return value.decode() if isinstance(value, bytes) else [decoded(item) for item in value]


def test_texts_that_are_no_utf8_come_as_base64(signatures, rest):
    text = b"the cat \xff\x00 sat"
    status, answer = rest("classify:predict", dict(instances=[dict(b64=base64.b64encode(text).decode()), "the cat"]))
    assert status == 200
    expected = signatures["classify"]["serving_default"](text=tf.constant([text, b"the cat"]))
    np.testing.assert_allclose(
        [row["probabilities"] for row in answer["predictions"]], expected["probabilities"], atol=1e-5
    )


def test_every_answer_is_utf8(rest):
    def value(text):
        return dict(b64=base64.b64encode(text).decode())

    status, answer = rest("tag:predict", dict(instances=[value(b"caf\xe9 \xff\xfe sat \xe2\x82")]))
    assert (status, answer["predictions"][0]["words"]) == (200, ["caf\ufffd", "\ufffd\ufffd", "sat", "\ufffd"])
    row = dict(question=value(b"wh\xff sat"), context=value(b"\xff"))
    status, answer = rest("question_answering:predict", dict(instances=[row]))
    assert (status, answer["predictions"][0]["answer"]) == (200, "\ufffd")


def test_the_server_writes_any_bytes():
    value = np.array([["ä".encode(), b"\xff\x80"]], object)
    assert json.dumps(wire_server._json(value), ensure_ascii=False).encode(errors="surrogateescape") == (
        b'[["\xc3\xa4", "\xff\x80"]]'
    )


def test_what_is_wrong_is_said(stub, rest):
    for path, body, status, message in (
        ("nope:predict", dict(instances=["a"]), 404, "Servable not found for request: Latest(nope)"),
        ("classify:predict", dict(instances=["a"], signature_name="x"), 400, 'Serving signature name: "x" not found'),
        ("classify:predict", dict(instances=[dict(txt="a")]), 400, "does not have named input: txt"),
        ("classify:predict", dict(instances=[]), 400, "one value or more"),
        ("classify:predict", dict(instances=[1]), 400, "JSON Value: 1 is not of expected type: string"),
        ("classify:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("classify:predict", b"{", 400, "JSON Parse error"),
        ("pairs:predict", dict(instances=["a"]), 400, "the inputs must be named: text_a, text_b"),
        ("pairs:predict", dict(instances=[dict(text_a="a")]), 400, "Missing but required: {text_b}"),
        ("pairs:predict", dict(inputs=dict(text_a=["a", "b"], text_b=["a"])), 400, "INVALID_ARGUMENT"),
        ("classify:predict", dict(instances=[["a"], ["b", "c"]]), 400, "Encountered list at unexpected size"),
    ):
        got, answer = rest(path, body)
        assert (got, message in answer["error"]) == (status, True), (path, body, answer)
    for request, code, message in (
        (request_for("nope", "", {}), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (request_for("pairs", "x", {}), grpc.StatusCode.INVALID_ARGUMENT, '"x" not found in signature def'),
        (request_for("pairs", "", {}), grpc.StatusCode.INVALID_ARGUMENT, "Missing but required: {text_a,text_b}"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request, 60)
        assert error.value.code() == code
        assert message in error.value.details()


def test_metadata_and_status(ports, stub, rest):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "pairs"
    found = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, 60).metadata["signature_def"].Unpack(found)
    assert set(found.signature_def) >= {"serving_default", "embed", "token_ids"}
    assert set(found.signature_def["serving_default"].inputs) == {"text_a", "text_b"}
    for name, signature in found.signature_def.items():
        for info in [*signature.inputs.values(), *signature.outputs.values()]:
            if not name.startswith("__"):  # an operation that initializes the model
                assert info.tensor_shape.dim[0].size == -1  # so that requests can be batched
                assert info.dtype in (tf.string, tf.int32, tf.float32)
    status, answer = rest("pairs/metadata")
    assert status == 200
    assert "text_a" in answer["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_pb2.ModelSpec(name="classify"))
        (version,) = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, 60).model_version_status
    assert (version.version, version.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert rest("classify")[1]["model_version_status"][0]["state"] == "AVAILABLE"


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_requests_are_answered(exported, signatures, stub, name):
    records = list(
        tf.data.TFRecordDataset(str(exported[f"{name}_export"] / "1/assets.extra/tf_serving_warmup_requests"))
    )
    assert 4 < len(records) <= 1000  # TF Serving's own limit
    seen = set()
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == name
        sizes = {value.tensor_shape.dim[0].size for value in request.inputs.values()}
        response = stub.Predict(request, 60)
        assert {value.tensor_shape.dim[0].size for value in response.outputs.values()} == sizes
        seen.add((request.model_spec.signature_name, sizes.pop()))
    assert seen == {(signature, size) for signature in signatures[name] for size in (1, 8)}
