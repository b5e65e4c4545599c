#include "states.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "panels.h"

namespace plr_kernels {

Order listed_order(std::vector<int64_t> rows) {
  rows.resize(round_up(static_cast<int64_t>(rows.size()), kPanelColumns), -1);
  return rows;
}

Order grouped_order(int64_t batch, int64_t group) {
  Order order;
  for (int64_t first = 0; first < batch; first += kLanes) {
    for (int64_t member = 0; member < group; ++member) {
      for (int64_t entry = first; entry < first + kLanes; ++entry) {
        order.push_back(entry < batch ? entry * group + member : -1);
      }
    }
  }
  return listed_order(std::move(order));
}

namespace {

// Calls visit(panel) for every 32 of `count` states; a thread takes enough of them to be worth waking up for.
template <class Visit>
void for_panels(const Threads& threads, int64_t count, int64_t dim, const Visit& visit) {
  constexpr int64_t numbers_per_task = 1 << 17;
  const int64_t panels = count / kPanelColumns;
  const int64_t tasks = std::clamp<int64_t>(count * dim / numbers_per_task, 1, std::max<int64_t>(panels, 1));
  threads.run(tasks, [&](int64_t task, int) {
    for (int64_t panel = panels * task / tasks; panel < panels * (task + 1) / tasks; ++panel) visit(panel);
  });
}

void pack_singles(const Kernels& kernels, const Matrix& matrix, double scale, int64_t first, States& states) {
  float* rows = states.rows.data() + first * kPanelColumns;
  for (int64_t i = 0; i < kPanelColumns; ++i) {
    const int64_t row = states.order[first + i];
    if (row >= 0) {
      kernels.load_rows(matrix, row, 1, rows + i * kPanelColumns, states.count);
    } else {
      for (int64_t d = 0; d < states.dim; d += kPanelColumns) {
        std::fill_n(rows + i * kPanelColumns + d * states.count, kPanelColumns, 0.0f);
      }
    }
  }
  float* transposed = states.transposed.data() + first * states.dim;
  for (int64_t d = 0; d < states.dim; ++d) {
    const float* column = rows + d / kPanelColumns * kPanelColumns * states.count + d % kPanelColumns;
    for (int64_t i = 0; i < kPanelColumns; ++i) {
      transposed[d * kPanelColumns + i] = static_cast<float>(column[i * kPanelColumns] * scale);
    }
  }
}

void pack_pairs(const Kernels& kernels, const Matrix& matrix, int64_t first, States& states) {
  const uint16_t* source[kPanelColumns];
  Bfloat16Rows rows(kernels, matrix, kPanelColumns);
  for (int64_t i = 0; i < kPanelColumns; ++i) {
    const int64_t row = states.order[first + i];
    source[i] = row >= 0 ? rows.row(row) : nullptr;
  }
  for (int64_t i = 0; i < kPanelColumns; i += 2) {
    kernels.pairs.pair_rows(source[i], source[i + 1], states.dim, (first + i) / 2, states.rows.data(),
                            states.count / 2);
  }
  float* transposed = states.transposed.data() + first * states.depth;
  for (int64_t i = 0; i < kPanelColumns; ++i) {
    for (int64_t d = 0; d < states.dim; d += 2) {
      uint16_t pair[2] = {};
      if (source[i] != nullptr)
        std::memcpy(pair, source[i] + d, std::min<int64_t>(2, states.dim - d) * sizeof(pair[0]));
      std::memcpy(transposed + d / 2 * kPanelColumns + i, pair, sizeof(pair));
    }
  }
}

void pack_parts(const Kernels& kernels, const Matrix& matrix, double scale, int64_t first, States& states) {
  const float* source[kPanelColumns];
  Float32Rows rows(kernels, matrix, kPanelColumns);
  for (int64_t i = 0; i < kPanelColumns; ++i) {
    const int64_t row = states.order[first + i];
    source[i] = row >= 0 ? rows.row(row) : nullptr;
  }
  std::vector<float> scaled(2 * states.dim);
  Buffer cells(panels_size(kPanelColumns, states.depth));
  for (int64_t i = 0; i < kPanelColumns; i += 2) {
    kernels.parts.split_rows(source[i], source[i + 1], states.dim, first + i, {nullptr, 0},
                             {states.rows.data(), states.cells(states.count)});
    for (int64_t d = 0; d < states.dim; ++d) {
      for (int64_t next = 0; next < 2; ++next) {
        const float number = source[i + next] == nullptr ? 0.0f : source[i + next][d];
        scaled[next * states.dim + d] = static_cast<float>(number * scale);
      }
    }
    kernels.parts.split_rows(scaled.data(), scaled.data() + states.dim, states.dim, i, {cells.data(), kPanelColumns},
                             {nullptr, 0});
  }
  float* transposed = states.transposed.data() + first * states.depth;
  for (int64_t cell = 0; cell < states.depth; ++cell) {
    const float* column = cells.data() + cell / kPanelColumns * kPanelColumns * kPanelColumns + cell % kPanelColumns;
    // Copied as bits: as numbers, pairs may be anything.
    for (int64_t i = 0; i < kPanelColumns; ++i) {
      std::memcpy(transposed + cell * kPanelColumns + i, column + i * kPanelColumns, sizeof(float));
    }
  }
}

// The largest magnitude of a matrix' numbers; infinite or NaN where one is not finite.
float largest_of(const Context& context, const Matrix& matrix) {
  constexpr int64_t numbers_per_task = 1 << 18;
  const int64_t tasks = std::clamp<int64_t>(matrix.rows * matrix.columns / numbers_per_task, 1, 1024);
  std::vector<float> of_task(tasks);
  context.threads.run(tasks, [&](int64_t task, int) {
    const int64_t first = matrix.rows * task / tasks;
    of_task[task] = context.kernels.parts.largest(matrix, first, matrix.rows * (task + 1) / tasks - first);
  });
  float largest = 0.0f;
  for (const float number : of_task) {
    if (!(number <= largest)) largest = number;
    if (std::isnan(largest)) break;
  }
  return largest;
}

}  // namespace

bool takes_pairs(const Context& context, const Matrix& states, const Matrix& items) {
  constexpr int64_t least_dim = 32, least_items = 1024;
  const auto exact = [](const Matrix& matrix) { return matrix.type == DataType::bfloat16 && matrix.norms == nullptr; };
  const auto rounded = [&](const Matrix& matrix) { return matrix.type == DataType::float32 && context.rounds_float32; };
  return context.kernels.pairs.gemm != nullptr && states.columns >= least_dim && items.rows >= least_items &&
         ((exact(states) && exact(items)) || (rounded(states) && rounded(items)));
}

Arithmetic choose_arithmetic(const Context& context, const Matrix& states, const Matrix& items, double scale) {
  if (takes_pairs(context, states, items)) return Arithmetic::pairs;
  constexpr int64_t least_dim = 32, least_items = 1024, least_states = 64;
  constexpr float largest = 1 << 30, smallest = 1 / largest;
  const auto suits = [&](const Matrix& matrix, double factor) {
    const float magnitude = largest_of(context, matrix) * static_cast<float>(factor);
    return magnitude >= smallest && magnitude <= largest;
  };
  const bool parts = context.kernels.parts.gemm != nullptr && states.type == DataType::float32 &&
                     items.type == DataType::float32 && states.columns >= least_dim && items.rows >= least_items &&
                     states.rows >= least_states && suits(states, 1.0) && suits(states, scale) && suits(items, 1.0);
  return parts ? Arithmetic::parts : Arithmetic::singles;
}

Arithmetic within(Arithmetic arithmetic, double largest_gradient) {
  constexpr double largest = int64_t{1} << 60;
  // NaN is not within.
  return arithmetic == Arithmetic::parts && !(largest_gradient <= largest) ? Arithmetic::singles : arithmetic;
}

States pack_states(const Context& context, const Matrix& matrix, Order order, double scale, Arithmetic arithmetic) {
  const int64_t count = static_cast<int64_t>(order.size());
  const int64_t dim = matrix.columns;
  const int64_t depth = cells_of(arithmetic, dim);
  States states{std::move(order),
                count,
                dim,
                arithmetic,
                depth,
                Buffer(panels_size(cells_of(arithmetic, count), dim)),
                Buffer(panels_size(depth, count)),
                arithmetic == Arithmetic::pairs ? static_cast<float>(scale) : 1.0f};
  for_panels(context.threads, count, dim, [&](int64_t panel) {
    switch (arithmetic) {
      case Arithmetic::singles:
        return pack_singles(context.kernels, matrix, scale, panel * kPanelColumns, states);
      case Arithmetic::pairs:
        return pack_pairs(context.kernels, matrix, panel * kPanelColumns, states);
      case Arithmetic::parts:
        return pack_parts(context.kernels, matrix, scale, panel * kPanelColumns, states);
    }
  });
  return states;
}

Buffer packed_column(const States& states, const float* column) {
  Buffer result(states.count, 0.0f);
  for (int64_t state = 0; state < states.count; ++state) {
    if (states.order[state] >= 0) result[state] = column[states.order[state]];
  }
  return result;
}

void store_gradient(const Kernels& kernels, const Matrix& matrix, int64_t first, int64_t count, float* panels,
                    int64_t panels_rows, float scale, const MutableMatrix& target) {
  if (matrix.norms == nullptr) {
    kernels.store_rows(panels, panels_rows, count, matrix.columns, scale, target, first);
    return;
  }
  Buffer unit(panels_size(1, matrix.columns));
  for (int64_t i = 0; i < count; ++i) {
    float* row = panels + i * kPanelColumns;
    if (!(matrix.norms[first + i] < matrix.norm_floor)) {  // a shorter vector is only scaled
      kernels.load_rows(matrix, first + i, 1, unit.data(), 1);
      kernels.remove_component(row, panels_rows * kPanelColumns, unit.data(), matrix.columns);
    }
    kernels.store_rows(row, panels_rows, 1, matrix.columns, scale / divisor_of(matrix, first + i), target, first + i);
  }
}

void store_states_gradient(const Context& context, const States& states, const Matrix& matrix, Buffer& panels,
                           float scale, const MutableMatrix& target) {
  for_panels(context.threads, states.count, states.dim, [&](int64_t panel) {
    for (int64_t i = panel * kPanelColumns; i < (panel + 1) * kPanelColumns; ++i) {
      if (states.order[i] < 0) continue;
      store_gradient(context.kernels, matrix, states.order[i], 1, panels.data() + i * kPanelColumns, states.count,
                     scale, target);
    }
  });
}

}  // namespace plr_kernels
