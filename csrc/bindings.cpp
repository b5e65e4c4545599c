// The extension plr_kernels._cpp. The first arguments of every operator are the instruction set and the number of
// threads.
#include "bindings.h"

#include <algorithm>

#include "operators.h"

namespace py = pybind11;

namespace plr_kernels {
namespace {

// What the scores of one pass take.
double multiply_adds(const Matrix& states, const Matrix& items) {
  return static_cast<double>(states.rows) * static_cast<double>(items.rows) * static_cast<double>(items.columns);
}

void check_targets(const int64_t* targets, int64_t rows, int64_t items, int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row) {
    if (targets[row] != ignore_index && (targets[row] < 0 || targets[row] >= items)) {
      throw std::invalid_argument("targets must be in [0, V) or ignore_index (V=" + std::to_string(items) +
                                  "), found " + std::to_string(targets[row]));
    }
  }
}

// Without ignore_index.
void check_targets(const int64_t* targets, int64_t rows, int64_t items) {
  for (int64_t row = 0; row < rows; ++row) {
    if (targets[row] < 0 || targets[row] >= items) {
      throw std::invalid_argument("targets must be in [0, V) (V=" + std::to_string(items) + "), found " +
                                  std::to_string(targets[row]));
    }
  }
}

void check_drawn(const int64_t* drawn, int64_t histories, int64_t streams) {
  for (int64_t history = 0; history < histories; ++history) {
    if (drawn[history] < 0 || drawn[history] >= streams) {
      throw std::invalid_argument("drawn must be in [0, M) (M=" + std::to_string(streams) + "), found " +
                                  std::to_string(drawn[history]));
    }
  }
}

void check_candidates(const CandidateLists& candidates, int64_t rows, int64_t items) {
  for (int64_t i = 0; i < candidates.count * (candidates.shared ? 1 : rows); ++i) {
    if (candidates.ids[i] < -1 || candidates.ids[i] >= items) {
      throw std::invalid_argument("candidates must be in [0, V), or -1 as padding (V=" + std::to_string(items) +
                                  "), found " + std::to_string(candidates.ids[i]));
    }
  }
}

double candidate_work(const Matrix& states, int64_t count) {
  return static_cast<double>(states.rows) * static_cast<double>(count) * static_cast<double>(states.columns);
}

// What ranking takes, in multiply-adds.
double ranking_work(const Matrix& states, const Matrix& items) {
  // For fewer rows than this, reading the items takes longer than the multiply-adds.
  constexpr int64_t rows_per_reading = 8;
  Matrix at_least = states;
  at_least.rows = std::max(states.rows, rows_per_reading);
  return multiply_adds(at_least, items);
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

  module.def("pairwise_kl_forward",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, int64_t group, const MatrixArguments& items_arguments,
                double temperature, Address statistics, Address argmax) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               Threads team(threads, multiply_adds(states, items));
               return pairwise_kl_forward({kernels_of(instruction_set), team, rounds_float32}, states, group, items,
                                          temperature, pointer<float>(statistics), pointer<int64_t>(argmax));
             });

  module.def(
      "pairwise_kl_backward",
      [](const std::string& instruction_set, int threads, bool rounds_float32, const MatrixArguments& states_arguments,
         int64_t group, const MatrixArguments& items_arguments, double temperature, bool detach_reference,
         Address statistics, Address argmax, double loss_gradient,
         const std::optional<MatrixArguments>& states_gradient, const std::optional<MatrixArguments>& items_gradient) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
        const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
        Threads team(threads, multiply_adds(states, items));
        pairwise_kl_backward({kernels_of(instruction_set), team, rounds_float32}, states, group, items, temperature,
                             detach_reference, pointer<const float>(statistics), pointer<const int64_t>(argmax),
                             loss_gradient, pointer_to(for_states), pointer_to(for_items));
      });

  module.def(
      "pairwise_kl_gradients",
      [](const std::string& instruction_set, int threads, bool rounds_float32, const MatrixArguments& states_arguments,
         int64_t group, const MatrixArguments& items_arguments, double temperature, bool detach_reference,
         int64_t chunk_states, const std::optional<MatrixArguments>& states_gradient,
         const std::optional<MatrixArguments>& items_gradient) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
        const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
        Threads team(threads, multiply_adds(states, items));
        return pairwise_kl_gradients({kernels_of(instruction_set), team, rounds_float32}, states, group, items,
                                     temperature, detach_reference, chunk_states, pointer_to(for_states),
                                     pointer_to(for_items));
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

  module.def(
      "linear_cross_entropy_backward",
      [](const std::string& instruction_set, int threads, bool rounds_float32, const MatrixArguments& states_arguments,
         const MatrixArguments& items_arguments, Address targets, double temperature, int64_t ignore_index,
         Address statistics, Address losses_gradient, const std::optional<MatrixArguments>& states_gradient,
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

  module.def(
      "cross_entropy_gradients",
      [](const std::string& instruction_set, int threads, bool rounds_float32, const MatrixArguments& states_arguments,
         const MatrixArguments& items_arguments, Address targets, int64_t streams, Address log_weights,
         double temperature, int64_t ignore_index, bool mean, int64_t chunk_states, Address losses,
         const std::optional<MatrixArguments>& states_gradient, Address weights_gradient,
         const std::optional<MatrixArguments>& items_gradient) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
        check_targets(pointer<const int64_t>(targets), states.rows / streams, items.rows, ignore_index);
        const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
        Threads team(threads, multiply_adds(states, items));
        cross_entropy_gradients({kernels_of(instruction_set), team, rounds_float32}, states, items,
                                pointer<const int64_t>(targets), streams, pointer<const float>(log_weights),
                                temperature, ignore_index, mean, chunk_states, pointer<float>(losses),
                                pointer_to(for_states), pointer<float>(weights_gradient), pointer_to(for_items));
      });

  module.def(
      "consistent_cross_entropy_gradients",
      [](const std::string& instruction_set, int threads, bool rounds_float32, const MatrixArguments& states_arguments,
         const MatrixArguments& items_arguments, Address targets, Address drawn, Address log_weights, int64_t streams,
         double temperature, double weight, int64_t ignore_index, int64_t chunk_states, Address losses,
         const std::optional<MatrixArguments>& states_gradient, Address weights_gradient,
         const std::optional<MatrixArguments>& items_gradient) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
        const ConsistentRows rows{pointer<const int64_t>(targets), pointer<const int64_t>(drawn),
                                  pointer<const float>(log_weights), streams, ignore_index};
        const int64_t histories = states.rows / (2 * streams);
        check_targets(rows.targets, histories, items.rows, ignore_index);
        check_drawn(rows.drawn, histories, streams);
        const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
        Threads team(threads, multiply_adds(states, items));
        return consistent_cross_entropy_gradients({kernels_of(instruction_set), team, rounds_float32}, states, items,
                                                  rows, temperature, weight, chunk_states, pointer<float>(losses),
                                                  pointer_to(for_states), pointer<float>(weights_gradient),
                                                  pointer_to(for_items));
      });

  module.def(
      "candidate_cross_entropy_forward",
      [](const std::string& instruction_set, int threads, const MatrixArguments& states_arguments,
         const MatrixArguments& items_arguments, Address targets, Address ids, int64_t count, bool shared,
         Address log_q, bool softmax, double positive_power, double temperature, int64_t ignore_index, Address losses,
         Address weights, Address target_weights) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
        const CandidateLists candidates{pointer<const int64_t>(ids), count, shared, pointer<const float>(log_q)};
        check_targets(pointer<const int64_t>(targets), states.rows, items.rows, ignore_index);
        check_candidates(candidates, states.rows, items.rows);
        Threads team(threads, candidate_work(states, count));
        candidate_cross_entropy_forward({kernels_of(instruction_set), team}, states, items,
                                        pointer<const int64_t>(targets), candidates,
                                        {softmax, positive_power, temperature, ignore_index}, pointer<float>(losses),
                                        pointer<float>(weights), pointer<float>(target_weights));
      });

  module.def(
      "candidate_cross_entropy_backward",
      [](const std::string& instruction_set, int threads, const MatrixArguments& states_arguments,
         const MatrixArguments& items_arguments, Address targets, Address ids, int64_t count, bool shared,
         Address log_q, bool softmax, double positive_power, double temperature, int64_t ignore_index, Address weights,
         Address target_weights, Address losses_gradient, const std::optional<MatrixArguments>& states_gradient,
         const std::optional<MatrixArguments>& items_gradient) {
        const py::gil_scoped_release release;
        const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
        const CandidateLists candidates{pointer<const int64_t>(ids), count, shared, pointer<const float>(log_q)};
        check_targets(pointer<const int64_t>(targets), states.rows, items.rows, ignore_index);
        check_candidates(candidates, states.rows, items.rows);
        const auto for_states = mutable_matrix(states_gradient), for_items = mutable_matrix(items_gradient);
        Threads team(threads, candidate_work(states, count));
        candidate_cross_entropy_backward({kernels_of(instruction_set), team}, states, items,
                                         pointer<const int64_t>(targets), candidates,
                                         {softmax, positive_power, temperature, ignore_index},
                                         pointer<const float>(weights), pointer<const float>(target_weights),
                                         pointer<const float>(losses_gradient), pointer_to(for_states),
                                         pointer_to(for_items));
      });

  module.def("top_items", [](const std::string& instruction_set, int threads, bool rounds_float32,
                             const MatrixArguments& states_arguments, const MatrixArguments& items_arguments, int64_t k,
                             Address exclude, int64_t excluded_columns, Address where, Address scores, Address ids) {
    const py::gil_scoped_release release;
    const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
    Threads team(threads, ranking_work(states, items));
    top_items({kernels_of(instruction_set), team, rounds_float32}, states, items, k,
              {pointer<const int64_t>(exclude), excluded_columns, pointer<const bool>(where)}, pointer<float>(scores),
              pointer<int64_t>(ids));
  });

  module.def("target_rank",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, const MatrixArguments& items_arguments, Address targets,
                Address exclude, int64_t excluded_columns, Address greater, Address equal) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               check_targets(pointer<const int64_t>(targets), states.rows, items.rows);
               Threads team(threads, ranking_work(states, items));
               target_rank({kernels_of(instruction_set), team, rounds_float32}, states, items,
                           pointer<const int64_t>(targets), {pointer<const int64_t>(exclude), excluded_columns},
                           pointer<int64_t>(greater), pointer<int64_t>(equal));
             });

  module.def("target_mixture_rank",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, Address log_weights, int64_t streams,
                const MatrixArguments& items_arguments, Address targets, double temperature, Address exclude,
                int64_t excluded_columns, Address greater, Address equal) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               check_targets(pointer<const int64_t>(targets), states.rows / streams, items.rows);
               Threads team(threads, ranking_work(states, items));
               target_mixture_rank({kernels_of(instruction_set), team, rounds_float32}, states,
                                   pointer<const float>(log_weights), streams, items, pointer<const int64_t>(targets),
                                   temperature, {pointer<const int64_t>(exclude), excluded_columns},
                                   pointer<int64_t>(greater), pointer<int64_t>(equal));
             });

  module.def("top_mixture_items",
             [](const std::string& instruction_set, int threads, bool rounds_float32,
                const MatrixArguments& states_arguments, Address log_weights, int64_t streams,
                const MatrixArguments& items_arguments, int64_t k, double temperature, Address exclude,
                int64_t excluded_columns, Address where, Address scores, Address ids) {
               const py::gil_scoped_release release;
               const Matrix states = matrix(states_arguments), items = matrix(items_arguments);
               Threads team(threads, ranking_work(states, items));
               return top_mixture_items({kernels_of(instruction_set), team, rounds_float32}, states,
                                        pointer<const float>(log_weights), streams, items, k, temperature,
                                        {pointer<const int64_t>(exclude), excluded_columns, pointer<const bool>(where)},
                                        pointer<float>(scores), pointer<int64_t>(ids));
             });

  module.def("info_nce_forward", [](const std::string& instruction_set, int threads, bool rounds_float32,
                                    const MatrixArguments& view1_arguments, const MatrixArguments& view2_arguments,
                                    float norm_floor, Address labels, int64_t label_columns, int64_t groups,
                                    double temperature, Address statistics) {
    const py::gil_scoped_release release;
    const View view1{matrix(view1_arguments), norm_floor}, view2{matrix(view2_arguments), norm_floor};
    Threads team(threads, multiply_adds(view1.vectors, view2.vectors) / static_cast<double>(groups));
    return info_nce_forward({kernels_of(instruction_set), team, rounds_float32}, view1, view2,
                            {pointer<const int64_t>(labels), label_columns}, groups, temperature,
                            pointer<float>(statistics));
  });

  module.def("info_nce_backward", [](const std::string& instruction_set, int threads, bool rounds_float32,
                                     const MatrixArguments& view1_arguments, const MatrixArguments& view2_arguments,
                                     float norm_floor, Address labels, int64_t label_columns, int64_t groups,
                                     double temperature, Address statistics, double loss_gradient, const std::optional<MatrixArguments>& view1_gradient,
                                     const std::optional<MatrixArguments>& view2_gradient) {
    const py::gil_scoped_release release;
    const View view1{matrix(view1_arguments), norm_floor}, view2{matrix(view2_arguments), norm_floor};
    const auto for_view1 = mutable_matrix(view1_gradient), for_view2 = mutable_matrix(view2_gradient);
    Threads team(threads, multiply_adds(view1.vectors, view2.vectors) / static_cast<double>(groups));
    info_nce_backward({kernels_of(instruction_set), team, rounds_float32}, view1, view2,
                      {pointer<const int64_t>(labels), label_columns}, groups, temperature,
                      pointer<const float>(statistics), loss_gradient, pointer_to(for_view1), pointer_to(for_view2));
  });

  bind_stream_attention(module);
  bind_engine(module);
}

}  // namespace plr_kernels
