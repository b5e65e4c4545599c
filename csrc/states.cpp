#include "states.h"

#include <algorithm>
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
void for_panels(Threads& threads, int64_t count, int64_t dim, const Visit& visit) {
  constexpr int64_t numbers_per_task = 1 << 17;
  const int64_t panels = count / kPanelColumns;
  const int64_t tasks = std::clamp<int64_t>(count * dim / numbers_per_task, 1, std::max<int64_t>(panels, 1));
  threads.run(tasks, [&](int64_t task, int) {
    for (int64_t panel = panels * task / tasks; panel < panels * (task + 1) / tasks; ++panel) visit(panel);
  });
}

}  // namespace

States pack_states(const Kernels& kernels, const Matrix& matrix, Order order, double scale, Threads& threads) {
  const int64_t count = static_cast<int64_t>(order.size());
  const int64_t dim = matrix.columns;
  States states{std::move(order), count, dim, Buffer(panels_size(count, dim)), Buffer(panels_size(dim, count))};
  for_panels(threads, count, dim, [&](int64_t panel) {
    const int64_t first = panel * kPanelColumns;
    float* rows = states.rows.data() + first * kPanelColumns;
    for (int64_t i = 0; i < kPanelColumns; ++i) {
      const int64_t row = states.order[first + i];
      if (row >= 0) {
        kernels.load_rows(matrix, row, 1, rows + i * kPanelColumns, count);
      } else {
        for (int64_t d = 0; d < dim; d += kPanelColumns) {
          std::fill_n(rows + i * kPanelColumns + d * count, kPanelColumns, 0.0f);
        }
      }
    }
    float* transposed = states.transposed.data() + first * dim;
    for (int64_t d = 0; d < dim; ++d) {
      const float* column = rows + d / kPanelColumns * kPanelColumns * count + d % kPanelColumns;
      for (int64_t i = 0; i < kPanelColumns; ++i) {
        transposed[d * kPanelColumns + i] = static_cast<float>(column[i * kPanelColumns] * scale);
      }
    }
  });
  return states;
}

void unpack_states(const Kernels& kernels, const States& states, const Buffer& panels, int64_t rows, float scale,
                   const MutableMatrix& target, Threads& threads) {
  fill_zero(target, rows, states.dim);
  for_panels(threads, states.count, states.dim, [&](int64_t panel) {
    for (int64_t i = panel * kPanelColumns; i < (panel + 1) * kPanelColumns; ++i) {
      if (states.order[i] < 0) continue;
      kernels.store_rows(panels.data() + i * kPanelColumns, states.count, 1, states.dim, scale, target,
                         states.order[i]);
    }
  });
}

}  // namespace plr_kernels
