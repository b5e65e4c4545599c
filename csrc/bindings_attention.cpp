// The part of the extension that belongs to stream_attention: tensors read in place where that can be, else described
// by the Python side.
#include <algorithm>
#include <array>
#include <vector>

#include "attention.h"
#include "bindings.h"
#include "exchange.h"
#include "operators.h"

namespace py = pybind11;

namespace plr_kernels {
namespace {

// Address, and the numbers from one batch entry, head, row and entry to the next.
using StridedArguments = std::tuple<Address, int64_t, int64_t, int64_t, int64_t>;
// B, H, M, P, S, D.
using AttentionSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// Address of int64 [B], or of [B, M] where there is one for each query.
using LengthsArguments = std::tuple<Address, bool>;
// Seed, threshold, 1 / (1 − dropout_p).
using DropoutArguments = std::tuple<int64_t, uint64_t, double>;

Strided strided(const StridedArguments& arguments) {
  const auto& [address, batch_stride, head_stride, row_stride, entry_stride] = arguments;
  return {pointer<const void>(address), batch_stride, head_stride, row_stride, entry_stride};
}

std::optional<Dropout> dropout_of(const std::optional<DropoutArguments>& arguments) {
  if (!arguments) return std::nullopt;
  const auto& [seed, threshold, inverse_keep] = *arguments;
  return Dropout{static_cast<uint64_t>(seed), threshold, static_cast<float>(inverse_keep)};
}

// The five tensors of stream_attention.
struct AttentionOperands {
  DataType type;
  AttentionSizes sizes;
  std::array<Strided, 5> inputs;
};

AttentionOperands described_operands(const std::string& type, const AttentionSizes& sizes,
                                     const std::array<StridedArguments, 5>& inputs) {
  AttentionOperands result{data_type(type), sizes, {}};
  std::transform(inputs.begin(), inputs.end(), result.inputs.begin(), strided);
  return result;
}

// What reads tensors, and of which types; null until `read_tensors`, and where PyTorch has nothing to read them with.
struct TensorReader {
  const exchange::Interface* interface = nullptr;
  PyTypeObject* types[2] = {};  // kept for ever
};
TensorReader tensor_reader;

// Objects of exactly these two types are tensors. Returns whether they can be read.
bool read_tensors(const py::type& tensor, const py::type& parameter) {
  constexpr const char* name = "__dlpack_c_exchange_api__";
  if (!py::hasattr(tensor, name)) return false;
  const py::object capsule = tensor.attr(name);
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return false;
  const auto* interface = exchange::known(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (interface == nullptr || interface->tensor_of == nullptr) return false;
  tensor_reader = {interface,
                   {reinterpret_cast<PyTypeObject*>(py::type(tensor).release().ptr()),
                    reinterpret_cast<PyTypeObject*>(py::type(parameter).release().ptr())}};
  return true;
}

// A tensor in the CPU's memory with that many dimensions, or none: where it is something else, or cannot be read.
std::optional<exchange::Tensor> read_tensor(const py::handle& object, int32_t dimensions) {
  if (tensor_reader.interface == nullptr) return std::nullopt;
  const PyTypeObject* type = Py_TYPE(object.ptr());
  if (type != tensor_reader.types[0] && type != tensor_reader.types[1]) return std::nullopt;
  exchange::Tensor tensor;
  if (tensor_reader.interface->tensor_of(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  if (tensor.device_type != exchange::kCPU || tensor.dimensions != dimensions || tensor.strides == nullptr ||
      tensor.lanes != 1) {
    return std::nullopt;
  }
  return tensor;
}

std::optional<DataType> data_type(const exchange::Tensor& tensor) {
  if (tensor.number_type == exchange::kFloat && tensor.bits == 32) return DataType::float32;
  if (tensor.number_type == exchange::kFloat && tensor.bits == 16) return DataType::float16;
  if (tensor.number_type == exchange::kBfloat && tensor.bits == 16) return DataType::bfloat16;
  return std::nullopt;
}

// The five tensors as they are, where they fit together, have something to compute and can be read in place; else none.
std::optional<AttentionOperands> attention_operands(const py::handle& query, const py::handle& prefix_key,
                                                    const py::handle& prefix_value, const py::handle& stream_key,
                                                    const py::handle& stream_value) {
  const py::handle objects[] = {query, prefix_key, prefix_value, stream_key, stream_value};
  exchange::Tensor tensors[5];
  AttentionOperands result{};
  for (int i = 0; i < 5; ++i) {
    const auto tensor = read_tensor(objects[i], i < 3 ? 4 : 5);
    if (!tensor) return std::nullopt;
    tensors[i] = *tensor;
    if (tensor->number_type != tensors[0].number_type || tensor->bits != tensors[0].bits) return std::nullopt;
    const int last = tensor->dimensions - 1;
    if (tensor->strides[last] != 1 && tensor->shape[last] != 1) return std::nullopt;
    result.inputs[i] = {static_cast<const char*>(tensor->data) + tensor->byte_offset, tensor->strides[0],
                        tensor->strides[1], tensor->strides[2], last == 4 ? tensor->strides[3] : 0};
  }
  const auto type = data_type(tensors[0]);
  if (!type) return std::nullopt;
  result.type = *type;
  const int64_t* of_query = tensors[0].shape;
  const int64_t batch = of_query[0], heads = of_query[1], streams = of_query[2], dim = of_query[3];
  const int64_t prefix = tensors[1].shape[2], suffix = tensors[3].shape[3];
  if (batch == 0 || heads == 0 || streams == 0 || dim == 0) return std::nullopt;
  const int64_t of_prefix[] = {batch, heads, prefix, dim}, of_streams[] = {batch, heads, streams, suffix, dim};
  for (int i = 1; i < 3; ++i) {
    if (!std::equal(of_prefix, of_prefix + 4, tensors[i].shape)) return std::nullopt;
    if (!std::equal(of_streams, of_streams + 5, tensors[i + 2].shape)) return std::nullopt;
  }
  result.sizes = {batch, heads, streams, prefix, suffix, dim};
  return result;
}

// The lengths of a call, checked; lives as long as it does.
struct Lengths {
  const int64_t* of_batch = nullptr;  // [B], the longest of each batch entry
  const int64_t* of_queries = nullptr;
  double mean = 0;
  std::vector<int64_t> longest;

  Lengths(const AttentionSizes& sizes, const std::optional<LengthsArguments>& arguments) {
    const auto& [batch, heads, streams, prefix, suffix, dim] = sizes;
    mean = static_cast<double>(prefix);
    if (!arguments) return;
    const auto& [address, per_query] = *arguments;
    const auto* given = pointer<const int64_t>(address);
    const int64_t of_each = per_query ? streams : 1;
    longest.resize(batch);
    double sum = 0;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t m = 0; m < of_each; ++m) {
        const int64_t length = given[b * of_each + m];
        if (length < 0 || length > prefix) {
          throw std::invalid_argument("prefix_lengths must be in [0, P] (P=" + std::to_string(prefix) + "), found " +
                                      std::to_string(length));
        }
        longest[b] = std::max(longest[b], length);
        sum += static_cast<double>(length);
      }
    }
    mean = sum / static_cast<double>(std::max<int64_t>(batch * of_each, 1));
    of_batch = longest.data();
    of_queries = per_query ? given : nullptr;
  }
};

AttentionCall attention_call(const AttentionOperands& operands, const Lengths& lengths, double scale,
                             const std::optional<Dropout>& dropout) {
  const auto& [batch, heads, streams, prefix, suffix, dim] = operands.sizes;
  const auto& [query, prefix_key, prefix_value, stream_key, stream_value] = operands.inputs;
  AttentionCall call{};
  call.type = operands.type;
  call.batch = batch;
  call.heads = heads;
  call.streams = streams;
  call.prefix = prefix;
  call.suffix = suffix;
  call.dim = dim;
  call.query = query;
  call.prefix_key = prefix_key;
  call.prefix_value = prefix_value;
  call.stream_key = stream_key;
  call.stream_value = stream_value;
  call.lengths = lengths.of_batch;
  call.query_lengths = lengths.of_queries;
  call.scale = scale;
  call.dropout = dropout ? &*dropout : nullptr;
  return call;
}

// Multiply-adds that take as long as the call. Each number of the prefix is used for few: fetching it from memory takes
// as long as five (one thread, D 128: 62 ps a number, 12 ps a multiply-add).
double attention_work(const AttentionCall& call, const Lengths& lengths, double products) {
  constexpr double per_number = 5;
  const double rows = static_cast<double>(call.batch) * static_cast<double>(call.heads);
  const double prefix = static_cast<double>(call.prefix), suffix = static_cast<double>(call.suffix);
  const double streams = static_cast<double>(call.streams);
  return products * rows * static_cast<double>(call.dim) *
         (streams * (lengths.mean + suffix) + per_number * (prefix + streams * suffix));
}

}  // namespace

void bind_stream_attention(py::module_& module) {
  module.def("read_tensors", read_tensors, py::arg("tensor"), py::arg("parameter"),
             "Objects of exactly these two types are tensors; returns whether they can be read here.");

  py::class_<AttentionOperands>(module, "AttentionOperands",
                                "The five tensors of stream_attention, as they lie in memory.")
      .def(py::init(&described_operands))
      .def_property_readonly("addresses", [](const AttentionOperands& operands) {
        std::array<Address, 5> addresses;
        for (int i = 0; i < 5; ++i) addresses[i] = reinterpret_cast<Address>(operands.inputs[i].data);
        return addresses;
      });
  module.def("attention_operands", attention_operands,
             "The same from the tensors themselves; None where they cannot be read, in place, or do not fit together.");

  module.def("stream_attention_forward",
             [](const std::string& instruction_set, int threads, const AttentionOperands& operands,
                const std::optional<LengthsArguments>& lengths_arguments, double scale,
                const std::optional<DropoutArguments>& dropout_arguments, Address output, Address lse) {
               const py::gil_scoped_release release;
               const auto dropout = dropout_of(dropout_arguments);
               const Lengths lengths(operands.sizes, lengths_arguments);
               const AttentionCall call = attention_call(operands, lengths, scale, dropout);
               Threads team(threads, attention_work(call, lengths, 2));
               stream_attention_forward({kernels_of(instruction_set), team}, call, pointer<void>(output),
                                        pointer<float>(lse));
             });

  module.def("stream_attention_backward",
             [](const std::string& instruction_set, int threads, const AttentionOperands& operands,
                const std::optional<LengthsArguments>& lengths_arguments, double scale,
                const std::optional<DropoutArguments>& dropout_arguments,
                const StridedArguments& output_gradient, const std::array<Address, 5>& gradients) {
               const py::gil_scoped_release release;
               const auto dropout = dropout_of(dropout_arguments);
               const Lengths lengths(operands.sizes, lengths_arguments);
               const AttentionCall call = attention_call(operands, lengths, scale, dropout);
               const AttentionGradients wanted{pointer<void>(gradients[0]), pointer<void>(gradients[1]),
                                               pointer<void>(gradients[2]), pointer<void>(gradients[3]),
                                               pointer<void>(gradients[4])};
               Threads team(threads, attention_work(call, lengths, 5));
               stream_attention_backward({kernels_of(instruction_set), team}, call, strided(output_gradient), wanted);
             });
}

}  // namespace plr_kernels
