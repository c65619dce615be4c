"""What the graph of a SavedModel is made of, read without loading it."""

import os
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Operations that read or write files, or call code in this process: loading or calling a SavedModel may run them.
UNSAFE_OPERATIONS = {
    *("WriteFile", "PrintV2", "SaveDataset", "SaveDatasetV2", "DatasetToTFRecord", "CreateSummaryFileWriter"),
    *("CreateSummaryDbWriter", "DistributedSave", "Save", "SaveSlices", "CacheDataset", "CacheDatasetV2"),
    *("SnapshotDataset", "SnapshotDatasetV2", "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3", "DebugNanCount"),
    *("DebugNumericSummary", "DebugNumericSummaryV2", "DataServiceDatasetV3", "DataServiceDatasetV4"),
    *("ReadFile", "MatchingFiles", "MatchingFilesDataset", "LoadDataset", "Restore", "RestoreSlice", "ImmutableConst"),
    *("TFRecordDataset", "TFRecordDatasetV2", "TextLineDataset", "CSVDataset", "CSVDatasetV2", "RecordInput"),
    *("FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "TFRecordReaderV2", "TextLineReaderV2"),
    *("WholeFileReaderV2", "FixedLengthRecordReaderV2", "LMDBReader", "LoadAndRemapMatrix"),
    *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "FileSystemSetConfiguration"),
    *("SqlDataset", "ExperimentalSqlDataset", "LMDBDataset", "ExperimentalLMDBDataset", "ExperimentalCSVDataset"),
    *("ExperimentalMatchingFilesDataset", "SnapshotDatasetReader", "SnapshotChunkDataset", "ListSnapshotChunksDataset"),
    *("TFRecordReader", "TextLineReader", "WholeFileReader", "FixedLengthRecordReader"),
    *("PyFunc", "PyFuncStateless", "EagerPyFunc"),
}
# Every SavedModel has these, in functions that only its saver calls; loading it does not run those.
SAVER_OPERATIONS = {"MergeV2Checkpoints", "RestoreV2", "SaveV2"}


def _read(path: str) -> saved_model_pb2.SavedModel:
    model = saved_model_pb2.SavedModel()
    with tf.io.gfile.GFile(os.path.join(path, "saved_model.pb"), "rb") as f:
        model.ParseFromString(f.read())
    return model


def nodes(path: str) -> tuple[list[tf.compat.v1.NodeDef], set[str]]:
    """Returns all nodes of the SavedModel at `path`, including those in functions, and the names of its functions."""
    graphs = [meta_graph.graph_def for meta_graph in _read(path).meta_graphs]
    functions = [function for graph in graphs for function in graph.library.function]
    found = [node for graph in graphs for node in graph.node]
    found += [node for function in functions for node in function.node_def]
    return found, {function.signature.name for function in functions}


def operations(path: str) -> set[str]:
    """Returns the names of the operations of the SavedModel at `path`."""
    found, functions = nodes(path)
    return {node.op for node in found} - functions


def unsafe_operations(path: str) -> set[str]:
    """Returns the names of operations in the SavedModel at `path` that read or write files, or call this process.

    A guard against mistakes and simple attacks, not a sandbox: operations that are not listed may do harm, too.
    """
    model, found = _read(path), set()
    for graph in model.meta_graphs:
        functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
        called = {name for nodes in functions.values() for node in nodes for name in _calls(node)}
        called |= {*graph.object_graph_def.concrete_functions}
        if len(model.meta_graphs) > 1 or not graph.HasField("object_graph_def"):  # loaded as one graph, the saver too
            called |= {*functions}
        found |= {node.op for node in graph.graph_def.node} & (UNSAFE_OPERATIONS | SAVER_OPERATIONS)
        for name, nodes in functions.items():
            unsafe = UNSAFE_OPERATIONS | (SAVER_OPERATIONS if name in called else set())
            found |= {node.op for node in nodes} & unsafe
    return found


def _calls(node: tf.compat.v1.NodeDef) -> Iterator[str]:
    """Yields the names of the functions that a node calls, and of its operation, which may be one."""
    yield node.op
    for attribute in node.attr.values():
        yield from (function.name for function in (attribute.func, *attribute.list.func))
