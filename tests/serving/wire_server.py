"""A server on this machine that speaks TF Serving's protocol: gRPC with the official stubs, and REST.

It answers as TF Serving 2.20 does by its source, errors included, as far as `shatter_tf.export` needs: Predict,
GetModelMetadata and GetModelStatus; JSON by rows and by columns. TensorFlow's C++ loader does the computing.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2
from tensorflow_serving.apis import get_model_status_pb2 as status_pb2
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from serving.cpp_loader import CppLoader, RequestError

_HTTP_STATUS = {grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.INVALID_ARGUMENT: 400}


class ServingError(Exception):
    def __init__(self, message: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT):
        super().__init__(message)
        self.code = code


class Model:
    """A loaded SavedModel: `path` ends in its version."""

    def __init__(self, loader: CppLoader, path: Path):
        self.loader, self.version = loader, int(path.name)
        saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        (meta_graph,) = saved_model.meta_graphs
        self.signatures = dict(meta_graph.signature_def)

    def signature(self, name: str):
        if name not in self.signatures:
            raise ServingError(f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def predict(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given, wanted = set(inputs), set(self.signature(name).inputs)
        if given != wanted:
            given, wanted, extra, missing = (
                ",".join(sorted(names)) for names in (given, wanted, given - wanted, wanted - given)
            )
            raise ServingError(
                f"input size does not match signature: {{{given}}} != {{{wanted}}}. Sent extra: {{{extra}}}. "
                f"Missing but required: {{{missing}}}."
            )
        try:
            return self.loader.run(name, inputs)
        except RequestError as error:
            raise ServingError(str(error)) from error


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: dict[str, Model]):
        self._models = models

    def Predict(self, request, context):
        with _aborting(context):
            name = request.model_spec.signature_name or "serving_default"
            model = find(self._models, request.model_spec.name)
            outputs = model.predict(name, {key: tf.make_ndarray(value) for key, value in request.inputs.items()})
            response = predict_pb2.PredictResponse(model_spec=request.model_spec)
            response.model_spec.signature_name, response.model_spec.version.value = name, model.version
            for key, value in outputs.items():
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return response

    def GetModelMetadata(self, request, context):
        with _aborting(context):
            return _metadata(self._models, request.model_spec.name)

    def GetModelStatus(self, request, context):
        with _aborting(context):
            return _status(self._models, request.model_spec.name)


@contextlib.contextmanager
def _aborting(context):
    try:
        yield
    except ServingError as error:
        context.abort(error.code, str(error))


def find(models: dict[str, Model], name: str) -> Model:
    if name not in models:
        raise ServingError(f"Servable not found for request: Latest({name})", grpc.StatusCode.NOT_FOUND)
    return models[name]


def _metadata(models, name):
    model = find(models, name)
    response = metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name, response.model_spec.version.value = name, model.version
    signatures = metadata_pb2.SignatureDefMap()
    for key, signature in model.signatures.items():
        signatures.signature_def[key].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _status(models, name):
    response = status_pb2.GetModelStatusResponse()
    version = response.model_version_status.add(version=find(models, name).version)
    version.state = status_pb2.ModelVersionStatus.AVAILABLE
    return response


def predict_json(model: Model, body: dict) -> dict:
    """Answers a request of rows ("instances") or columns ("inputs")."""
    name = body.get("signature_name", "serving_default")
    types = {key: tf.as_dtype(info.dtype) for key, info in model.signature(name).inputs.items()}
    if ("instances" in body) == ("inputs" in body):
        raise ServingError("Missing 'inputs' or 'instances' key" if "inputs" not in body else "expecting only one key")
    by_rows = "instances" in body
    values = body["instances"] if by_rows else body["inputs"]
    if by_rows:
        if not isinstance(values, list) or not values:
            raise ServingError("'instances' must be a list of one value or more")
        if _is_named(values[0]):
            if any(not _is_named(row) or set(row) != set(values[0]) for row in values):
                raise ServingError("instances name different inputs")
            values = {key: [row[key] for row in values] for key in values[0]}
    if not _is_named(values):
        if len(types) != 1:
            raise ServingError(f"the inputs must be named: {', '.join(sorted(types))}")
        values = {next(iter(types)): values}
    for key in values:
        if key not in types:
            raise ServingError(f"JSON object: does not have named input: {key}")
    outputs = model.predict(name, {key: _tensor(value, types[key]) for key, value in values.items()})
    if by_rows and len({len(value) for value in outputs.values()}) != 1:
        raise ServingError("outputs have inconsistent batch sizes")
    columns = {key: _json(value) for key, value in outputs.items()}
    if len(columns) == 1:
        (result,) = columns.values()
    elif by_rows:
        result = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        result = columns
    return {"predictions" if by_rows else "outputs": result}


def _is_named(value) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _tensor(value, dtype: tf.DType) -> np.ndarray:
    def leaf(value):
        if isinstance(value, list):
            return [leaf(item) for item in value]
        if dtype != tf.string:
            if isinstance(value, int):
                return value
        elif isinstance(value, dict):
            return base64.b64decode(value["b64"])
        elif isinstance(value, str):
            return value.encode()
        raise ServingError(f"JSON Value: {json.dumps(value)} is not of expected type: {dtype.name}")

    try:
        tensor = np.array(leaf(value), dtype.as_numpy_dtype)
    except ValueError as error:
        raise ServingError("Encountered list at unexpected size") from error
    if any(isinstance(item, list) for item in tensor.flat):
        raise ServingError("Encountered list at unexpected size")
    return tensor


def _json(value: np.ndarray):
    if value.dtype == np.float32:
        # The shortest decimal that gives the same float32 back, where TF Serving takes six or nine digits.
        value = np.array([float(str(number)) for number in value.ravel()]).reshape(value.shape)
    if value.dtype == object:
        # Bytes that are not UTF-8 are sent as they are.
        texts = [string.decode(errors="surrogateescape") for string in value.ravel()]
        value = np.array(texts, object).reshape(value.shape)
    return value.tolist()


class _RestHandler(http.server.BaseHTTPRequestHandler):
    models: dict[str, Model]

    def do_GET(self):
        def answer():
            match = self._match(r"(/metadata)?")
            make = _metadata if match[2] else _status
            return json_format.MessageToDict(make(self.models, match[1]), preserving_proto_field_name=True)

        self._send(answer)

    def do_POST(self):
        def answer():
            model = find(self.models, self._match(":predict")[1])
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            except ValueError as error:
                raise ServingError(f"JSON Parse error: {error}") from error
            return predict_json(model, body)

        self._send(answer)

    def _match(self, end: str):
        match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/\d+)?" + end, self.path)
        if not match:
            raise ServingError(f"Malformed request: {self.command} {self.path}")
        return match

    def _send(self, answer):
        try:
            status, body = 200, answer()
        except ServingError as error:
            status, body = _HTTP_STATUS[error.code], {"error": str(error)}
        body = json.dumps(body, ensure_ascii=False).encode(errors="surrogateescape")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(models: dict[str, Model]):
    """Serves models by their names while the context lasts; gives the ports of gRPC and REST."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Service(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Service(models), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    handler = type("Handler", (_RestHandler,), {"models": models})
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=rest.serve_forever)
    thread.start()
    try:
        yield port, rest.server_port
    finally:
        rest.shutdown()
        rest.server_close()
        thread.join()
        server.stop(None).wait()
