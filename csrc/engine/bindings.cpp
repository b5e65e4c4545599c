// The class Engine of the extension. Its description is a dict of numbers and of addresses of float32 arrays.
#include "../bindings.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "../packed_items.h"
#include "engine.h"

namespace py = pybind11;

namespace plr_kernels {
namespace {

using WeightAndBiasArguments = std::pair<Address, Address>;

WeightAndBias weight_and_bias(const py::handle& source) {
  const auto [weight, bias] = source.cast<WeightAndBiasArguments>();
  return {pointer<const float>(weight), pointer<const float>(bias)};
}

const float* numbers(const py::handle& source) { return pointer<const float>(source.cast<Address>()); }

LayerWeights layer_weights(const py::handle& source) {
  return {weight_and_bias(source["query"]),
          weight_and_bias(source["key_value"]),
          weight_and_bias(source["attention_output"]),
          weight_and_bias(source["attention_norm"]),
          weight_and_bias(source["ffn_in"]),
          weight_and_bias(source["ffn_out"]),
          weight_and_bias(source["ffn_norm"]),
          source["attention_norm_eps"].cast<float>(),
          source["ffn_norm_eps"].cast<float>()};
}

Pooling pooling(const std::string& name) {
  if (name == "mean") return Pooling::mean;
  if (name == "last") return Pooling::last;
  if (name == "mean_with_start") return Pooling::mean_with_start;
  throw std::invalid_argument("pooling must be mean, last or mean_with_start, found " + name);
}

FastState fast_state(const std::string& name) {
  if (name == "none") return FastState::none;
  if (name == "added") return FastState::added;
  if (name == "component") return FastState::component;
  if (name == "ranking") return FastState::ranking;
  throw std::invalid_argument("fast_state must be none, added, component or ranking, found " + name);
}

ReasoningWeights reasoning_weights(const py::handle& source) {
  ReasoningWeights result;
  if (source.is_none()) return result;
  result.streams = source["streams"].cast<int64_t>();
  result.steps = source["steps"].cast<int64_t>();
  if (result.steps > 0) {
    result.step_inputs = numbers(source["step_inputs"]);
  } else {
    result.heads = weight_and_bias(source["heads"]);
  }
  result.pooling = pooling(source["pooling"].cast<std::string>());
  result.fast_state = fast_state(source["fast_state"].cast<std::string>());
  result.mixes_distributions = source["mixes_distributions"].cast<bool>();
  if (!source["gate"].is_none()) {
    const WeightAndBias gate = weight_and_bias(source["gate"]);
    result.gate = gate.weight;
    result.gate_bias = gate.bias;
  }
  return result;
}

std::unique_ptr<Engine> make_engine(const std::string& instruction_set, const py::dict& source,
                                    const MatrixArguments& table) {
  EngineWeights weights{source["dim"].cast<int64_t>(),
                        source["heads"].cast<int64_t>(),
                        source["ffn_dim"].cast<int64_t>(),
                        source["max_length"].cast<int64_t>(),
                        source["causal"].cast<bool>(),
                        source["cosine"].cast<bool>(),
                        numbers(source["position"]),
                        weight_and_bias(source["input_norm"]),
                        source["input_norm_eps"].cast<float>(),
                        {},
                        reasoning_weights(source["reasoning"])};
  for (const py::handle& layer : source["layers"]) weights.layers.push_back(layer_weights(layer));
  return std::make_unique<Engine>(kernels_of(instruction_set), weights, matrix(table));
}

// With the kernels that they are ranked by.
struct RankedItems {
  const Kernels& kernels;
  PackedItems packed;
};

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<Session>(module, "Session", "What an engine keeps of a history; see csrc/engine/session.h.")
      .def_property_readonly("length", &Session::length)
      .def_property_readonly("bytes", &Session::bytes);

  py::class_<Engine>(module, "Engine", "From histories to what ranks the items for them; see csrc/engine/engine.h.")
      .def(py::init(&make_engine))
      .def("states", [](const Engine& engine, int threads, Address ids, Address offsets, int64_t histories,
                        Address states, Address log_weights) {
        const py::gil_scoped_release release;
        const auto* starts = pointer<const int64_t>(offsets);
        const Threads team = Threads::of_its_own(threads, engine.work(starts[histories] - starts[0], histories));
        engine.states(team, pointer<const int64_t>(ids), starts, histories, pointer<float>(states),
                      pointer<float>(log_weights));
      })
      .def("new_session", &Engine::new_session, py::keep_alive<0, 1>())
      .def("append", [](const Engine& engine, int threads, const std::vector<Session*>& sessions, Address ids,
                        Address offsets, Address states, Address log_weights) {
        const py::gil_scoped_release release;
        const auto* starts = pointer<const int64_t>(offsets);
        const auto count = static_cast<int64_t>(sessions.size());
        const Threads team = Threads::of_its_own(threads, engine.work(starts[count] - starts[0], count));
        engine.append(team, sessions, pointer<const int64_t>(ids), starts, pointer<float>(states),
                      pointer<float>(log_weights));
      });

  py::class_<RankedItems>(module, "PackedItems", "Items to be ranked; see csrc/packed_items.h.")
      .def(py::init([](const std::string& instruction_set, const MatrixArguments& items, bool quantize) {
        const Kernels& kernels = kernels_of(instruction_set);
        return std::make_unique<RankedItems>(RankedItems{kernels, PackedItems(kernels, matrix(items), quantize)});
      }))
      .def("quantized_states",
           [](const RankedItems& items, int64_t k) { return items.packed.quantized_states(items.kernels, k); })
      .def("top", [](const RankedItems& items, int threads, const MatrixArguments& states_arguments,
                     Address log_weights, int64_t streams, int64_t k, double temperature, Address exclude,
                     int64_t excluded_columns, Address allowed, int64_t quantized_states, Address scores,
                     Address ids) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), &all = items.packed.matrix();
        // For fewer states than these, reading the items takes longer than the multiply-adds.
        const double rows = static_cast<double>(std::max<int64_t>(states.rows, 8));
        const Threads team = Threads::of_its_own(
            threads, rows * static_cast<double>(all.rows) * static_cast<double>(all.columns));
        const Context context{items.kernels, team};
        const ExcludedIds excluded{pointer<const int64_t>(exclude), excluded_columns, pointer<const bool>(allowed)};
        QuantizedCounts counts;
        if (log_weights == 0) {
          counts = top_items(context, states, items.packed, k, excluded, quantized_states, pointer<float>(scores),
                             pointer<int64_t>(ids));
        } else {
          top_mixture_items(context, states, pointer<const float>(log_weights), streams, items.packed, k, temperature,
                            excluded, pointer<float>(scores), pointer<int64_t>(ids));
        }
        return std::make_pair(counts.rows, counts.rescored);
      });
}

}  // namespace plr_kernels
