// The extension plr_kernels._cpp. Tensors come as (address, data type, rows, columns, stride): no PyTorch headers, so
// one build works with every PyTorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "exchange.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"

namespace py = pybind11;

namespace plr_kernels {
namespace {

using Address = std::uintptr_t;
using MatrixArguments = std::tuple<Address, std::string, int64_t, int64_t, int64_t>;

DataType data_type(const std::string& name) {
  if (name == "float32") return DataType::float32;
  if (name == "bfloat16") return DataType::bfloat16;
  if (name == "float16") return DataType::float16;
  throw std::invalid_argument("data type must be float32, bfloat16 or float16, got " + name);
}

template <class Number>
Number* pointer(Address address) {
  return reinterpret_cast<Number*>(address);  // NOLINT: an address from Tensor.data_ptr()
}

Matrix matrix(const MatrixArguments& arguments) {
  const auto& [address, type, rows, columns, stride] = arguments;
  return {pointer<const void>(address), data_type(type), rows, columns, stride};
}

std::optional<MutableMatrix> mutable_matrix(const std::optional<MatrixArguments>& arguments) {
  if (!arguments) return std::nullopt;
  const auto& [address, type, rows, columns, stride] = *arguments;
  return MutableMatrix{pointer<void>(address), data_type(type), stride};
}

const MutableMatrix* pointer_to(const std::optional<MutableMatrix>& matrix) { return matrix ? &*matrix : nullptr; }

const Kernels& kernels_of(const std::string& instruction_set) {
  const Kernels* kernels = find_kernels(instruction_set.c_str());
  if (kernels == nullptr) {
    throw std::invalid_argument("instruction set must be auto, avx512_bf16, avx512, avx2 or generic, and one that this CPU has; got " +
                                instruction_set);
  }
  return *kernels;
}

// What the scores of one pass take.
double multiply_adds(const Matrix& states, const Matrix& items) {
  return static_cast<double>(states.rows) * static_cast<double>(items.rows) * static_cast<double>(items.columns);
}

// Address, and the numbers from one batch entry, head, row and entry to the next.
using StridedArguments = std::tuple<Address, int64_t, int64_t, int64_t, int64_t>;
// B, H, M, P, S, D.
using AttentionSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
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
  const int64_t prefix = tensors[1].shape[2], own = tensors[3].shape[3];
  if (batch == 0 || heads == 0 || streams == 0 || dim == 0) return std::nullopt;
  const int64_t of_prefix[] = {batch, heads, prefix, dim}, of_streams[] = {batch, heads, streams, own, dim};
  for (int i = 1; i < 3; ++i) {
    if (!std::equal(of_prefix, of_prefix + 4, tensors[i].shape)) return std::nullopt;
    if (!std::equal(of_streams, of_streams + 5, tensors[i + 2].shape)) return std::nullopt;
  }
  result.sizes = {batch, heads, streams, prefix, own, dim};
  return result;
}

AttentionCall attention_call(const AttentionOperands& operands, Address lengths, double scale,
                             const std::optional<Dropout>& dropout) {
  const auto& [batch, heads, streams, prefix, own, dim] = operands.sizes;
  const int64_t* known_lengths = pointer<const int64_t>(lengths);
  for (int64_t b = 0; known_lengths != nullptr && b < batch; ++b) {
    if (known_lengths[b] < 0 || known_lengths[b] > prefix) {
      throw std::invalid_argument("prefix_lengths must be in [0, P] (P=" + std::to_string(prefix) + "), got " +
                                  std::to_string(known_lengths[b]));
    }
  }
  const auto& [query, prefix_key, prefix_value, stream_key, stream_value] = operands.inputs;
  return {operands.type, batch,        heads,      streams,      prefix,        own,   dim, query,
          prefix_key,    prefix_value, stream_key, stream_value, known_lengths, scale, dropout ? &*dropout : nullptr};
}

// Multiply-adds that take as long as the call. Each number of the prefix is used for few: fetching it from memory takes
// as long as five (one thread, D 128: 62 ps a number, 12 ps a multiply-add).
double attention_work(const AttentionCall& call, double products) {
  constexpr double per_number = 5;
  const double rows = static_cast<double>(call.batch) * static_cast<double>(call.heads);
  const double prefix = static_cast<double>(call.prefix), own = static_cast<double>(call.own);
  const double streams = static_cast<double>(call.streams);
  return products * rows * static_cast<double>(call.dim) *
         (streams * (prefix + own) + per_number * (prefix + streams * own));
}

void check_targets(const int64_t* targets, int64_t rows, int64_t items, int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row) {
    if (targets[row] != ignore_index && (targets[row] < 0 || targets[row] >= items)) {
      throw std::invalid_argument("targets must be in [0, V) or ignore_index (V=" + std::to_string(items) + "), got " +
                                  std::to_string(targets[row]));
    }
  }
}

}  // namespace

PYBIND11_MODULE(_cpp, module) {
  module.doc() = "Loops of the cpp backend; see csrc/operators.h.";

  module.def(
      "instruction_set",
      [](const std::string& wanted) -> std::optional<std::string> {
        const Kernels* kernels = find_kernels(wanted.c_str());
        if (kernels == nullptr) return std::nullopt;
        return kernels->name;
      },
      py::arg("wanted") = "auto", "The name of the instruction set that a choice stands for; None if there is none.");

  module.def("lost_openmp_threads", &lost_openmp_threads,
             "Whether this process was forked by a thread that had run operators on OpenMP threads.");

  module.def("pairwise_kl_forward", [](const std::string& instruction_set, int threads, bool rounds_float32,
                                       const MatrixArguments& states_arguments, int64_t group,
                                       const MatrixArguments& items_arguments, double temperature,
                                       Address statistics, Address tops) {
    const py::gil_scoped_release release;
    const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
    Threads team(threads, multiply_adds(states, items));
    return pairwise_kl_forward({kernels_of(instruction_set), team, rounds_float32}, states, group, items, temperature,
                               pointer<float>(statistics), pointer<int64_t>(tops));
  });

  module.def("pairwise_kl_backward",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, int64_t group, const MatrixArguments& items_arguments,
                double temperature, bool detach_reference, Address statistics, Address tops, double weight,
                const std::optional<MatrixArguments>& states_gradient,
                const std::optional<MatrixArguments>& items_gradient) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
               Threads team(threads, multiply_adds(states, items));
               pairwise_kl_backward({kernels_of(instruction_set), team, rounds_float32}, states, group, items,
                                    temperature, detach_reference, pointer<const float>(statistics),
                                    pointer<const int64_t>(tops), weight,
                                    pointer_to(for_states), pointer_to(for_items));
             });

  module.def("linear_cross_entropy_forward",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, const MatrixArguments& items_arguments, Address targets,
                double temperature, int64_t ignore_index, Address losses, Address statistics) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               check_targets(pointer<const int64_t>(targets), states.rows, items.rows, ignore_index);
               Threads team(threads, multiply_adds(states, items));
               linear_cross_entropy_forward({kernels_of(instruction_set), team, rounds_float32}, states, items,
                                            pointer<const int64_t>(targets), temperature, ignore_index,
                                            pointer<float>(losses), pointer<float>(statistics));
             });

  module.def("linear_cross_entropy_backward",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, const MatrixArguments& items_arguments, Address targets,
                double temperature, int64_t ignore_index, Address statistics, Address losses_gradient,
                const std::optional<MatrixArguments>& states_gradient,
                const std::optional<MatrixArguments>& items_gradient) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               check_targets(pointer<const int64_t>(targets), states.rows, items.rows, ignore_index);
               const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
               Threads team(threads, multiply_adds(states, items));
               linear_cross_entropy_backward({kernels_of(instruction_set), team, rounds_float32}, states, items,
                                             pointer<const int64_t>(targets), temperature, ignore_index,
                                             pointer<const float>(statistics), pointer<const float>(losses_gradient),
                                             pointer_to(for_states), pointer_to(for_items));
             });

  module.def("top_items", [](const std::string& instruction_set, int threads, bool rounds_float32,
                             const MatrixArguments& states_arguments, const MatrixArguments& items_arguments,
                             int64_t k, Address exclude, int64_t excluded_columns, Address scores, Address ids) {
    const py::gil_scoped_release release;
    const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
    // For fewer rows than this, reading the items takes longer than the multiply-adds.
    constexpr int64_t rows_per_reading = 8;
    Matrix at_least = states;
    at_least.rows = std::max(states.rows, rows_per_reading);
    Threads team(threads, multiply_adds(at_least, items));
    top_items({kernels_of(instruction_set), team, rounds_float32}, states, items, k,
              {pointer<const int64_t>(exclude), excluded_columns}, pointer<float>(scores), pointer<int64_t>(ids));
  });

  module.def("info_nce_forward", [](const std::string& instruction_set, int threads, bool rounds_float32,
                                    const MatrixArguments& view1_arguments, const MatrixArguments& view2_arguments,
                                    float norm_floor, int64_t groups, double temperature, Address statistics) {
    const py::gil_scoped_release release;
    const View view1{matrix(view1_arguments), norm_floor}, view2{matrix(view2_arguments), norm_floor};
    Threads team(threads, multiply_adds(view1.vectors, view2.vectors) / static_cast<double>(groups));
    return info_nce_forward({kernels_of(instruction_set), team, rounds_float32}, view1, view2, groups, temperature,
                            pointer<float>(statistics));
  });

  module.def("info_nce_backward",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& view1_arguments, const MatrixArguments& view2_arguments, float norm_floor,
                int64_t groups, double temperature, Address statistics, double weight,
                const std::optional<MatrixArguments>& view1_gradient,
                const std::optional<MatrixArguments>& view2_gradient) {
               const py::gil_scoped_release release;
               const View view1{matrix(view1_arguments), norm_floor}, view2{matrix(view2_arguments), norm_floor};
               const auto for_view1 = mutable_matrix(view1_gradient), for_view2 = mutable_matrix(view2_gradient);
               Threads team(threads, multiply_adds(view1.vectors, view2.vectors) / static_cast<double>(groups));
               info_nce_backward({kernels_of(instruction_set), team, rounds_float32}, view1, view2, groups, temperature,
                                 pointer<const float>(statistics), weight, pointer_to(for_view1),
                                 pointer_to(for_view2));
             });

  module.def("read_tensors", read_tensors, py::arg("tensor"), py::arg("parameter"),
             "Objects of exactly these two types are tensors; returns whether they can be read here.");

  py::class_<AttentionOperands>(module, "AttentionOperands", "The five tensors of stream_attention, as they lie in memory.")
      .def(py::init(&described_operands))
      .def_property_readonly("addresses", [](const AttentionOperands& operands) {
        std::array<Address, 5> addresses;
        for (int i = 0; i < 5; ++i) addresses[i] = reinterpret_cast<Address>(operands.inputs[i].data);
        return addresses;
      });
  module.def("attention_operands", attention_operands,
             "The same from the tensors themselves; None where they cannot be read, in place, or do not fit together.");

  module.def("stream_attention_forward",
             [](const std::string& instruction_set, int threads, const AttentionOperands& operands, Address lengths,
                double scale, const std::optional<DropoutArguments>& dropout_arguments, Address output,
                Address log_sums) {
               const py::gil_scoped_release release;
               const auto dropout = dropout_of(dropout_arguments);
               const AttentionCall call = attention_call(operands, lengths, scale, dropout);
               Threads team(threads, attention_work(call, 2));
               stream_attention_forward({kernels_of(instruction_set), team}, call, pointer<void>(output),
                                        pointer<float>(log_sums));
             });

  module.def("stream_attention_backward",
             [](const std::string& instruction_set, int threads, const AttentionOperands& operands, Address lengths,
                double scale, const std::optional<DropoutArguments>& dropout_arguments,
                const StridedArguments& output_gradient, const std::array<Address, 5>& gradients) {
               const py::gil_scoped_release release;
               const auto dropout = dropout_of(dropout_arguments);
               const AttentionCall call = attention_call(operands, lengths, scale, dropout);
               const AttentionGradients wanted{pointer<void>(gradients[0]), pointer<void>(gradients[1]),
                                               pointer<void>(gradients[2]), pointer<void>(gradients[3]),
                                               pointer<void>(gradients[4])};
               Threads team(threads, attention_work(call, 5));
               stream_attention_backward({kernels_of(instruction_set), team}, call, strided(output_gradient), wanted);
             });
}

}  // namespace plr_kernels
