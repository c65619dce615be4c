// Runs the signatures of a SavedModel with tensorflow::LoadSavedModel, the loader that TF Serving calls, without Python.
//
//   load_saved_model MODEL_DIR [OPERATIONS.so ...] < requests > answers
//
// Requests and answers are records: a length, 8 bytes little-endian, and that many bytes of a tensorflow.NameAttrList.
// A request has the name of a signature and the tensors of its inputs by their names; its answer has "OK" or an error
// for a name, and the tensors of all outputs. An answer is written before the next request is read. An empty record asks
// for memory: the name of its answer is the bytes that the program has allocated and not freed.

#include <malloc.h>

#include <cstdint>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/c/c_api.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/attr_value.pb.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/protobuf/meta_graph.pb.h"
#include "tensorflow/core/public/session.h"

namespace tf = tensorflow;

absl::Status Run(const tf::SavedModelBundle& bundle, const tf::NameAttrList& request, tf::NameAttrList* answer) {
  const auto& signatures = bundle.meta_graph_def.signature_def();
  const auto signature = signatures.find(request.name());
  if (signature == signatures.end()) return absl::NotFoundError("no signature " + request.name());

  std::vector<std::pair<std::string, tf::Tensor>> inputs;
  for (const auto& [name, info] : signature->second.inputs()) {
    const auto value = request.attr().find(name);
    if (value == request.attr().end()) return absl::InvalidArgumentError("no input " + name);
    tf::Tensor tensor;
    if (!tensor.FromProto(value->second.tensor())) return absl::InvalidArgumentError("no tensor in input " + name);
    inputs.emplace_back(info.name(), std::move(tensor));
  }
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature->second.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }

  std::vector<tf::Tensor> outputs;
  absl::Status status = bundle.session->Run(inputs, fetches, {}, &outputs);
  for (size_t i = 0; i < outputs.size(); i++) {
    outputs[i].AsProtoField((*answer->mutable_attr())[names[i]].mutable_tensor());
  }
  return status;
}

bool ReadRecord(std::string* record) {
  unsigned char bytes[8];
  if (!std::cin.read(reinterpret_cast<char*>(bytes), 8)) return false;
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | bytes[i];
  record->resize(length);
  return static_cast<bool>(std::cin.read(&(*record)[0], length));
}

void WriteRecord(const std::string& record) {
  for (int i = 0; i < 8; i++) std::cout.put(static_cast<char>(record.size() >> 8 * i));
  std::cout.write(record.data(), record.size());
  std::cout.flush();
}

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  for (int i = 2; i < argc; i++) {
    TF_Status* status = TF_NewStatus();
    TF_LoadLibrary(argv[i], status);
    if (TF_GetCode(status) != TF_OK) {
      std::cerr << TF_Message(status) << "\n";
      return 1;
    }
    TF_DeleteStatus(status);
  }
  tf::SavedModelBundle bundle;
  const absl::Status loaded = tf::LoadSavedModel(tf::SessionOptions(), tf::RunOptions(), argv[1], {"serve"}, &bundle);
  if (!loaded.ok()) {
    std::cerr << loaded.ToString() << "\n";
    return 1;
  }
  for (std::string record; ReadRecord(&record);) {
    tf::NameAttrList request, answer;
    if (record.empty()) {
      const struct mallinfo2 memory = mallinfo2();
      answer.set_name(std::to_string(memory.uordblks + memory.hblkhd));
    } else if (request.ParseFromString(record)) {
      answer.set_name(Run(bundle, request, &answer).ToString());
    } else {
      answer.set_name("not a request");
    }
    WriteRecord(answer.SerializeAsString());
  }
}
