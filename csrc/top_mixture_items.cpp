// top_mixture_items: the most probable items under a mixture of M streams' distributions, in one sweep of the items
// where a certificate holds.
//
// The sweep finds for every stream Z_m, its log-sum-exp, and the K' items with the largest scores d_m, the last of which
// has t_m. With C the union of a row's lists, an item outside of C has d_m <= t_m in every stream, hence
//
//     s(v) = log2 Σ_m exp2(o_m + scale · d_m) <= U = log2 Σ_m exp2(o_m + scale · t_m),      o_m = log2(weight_m) − Z_m.
//
// Scores d are float32 numbers, the same in the sweep and when they are computed again for C. From them s is computed
// in double precision and then rounded, to be compared as a float32 number: where the k-th best of C is above U, it is
// above all that is outside of C. Other rows are swept again, with Z_m known and the k-th best of C as a bound.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "best_items.h"
#include "buffer.h"
#include "exclusions.h"
#include "mixture.h"
#include "operators.h"
#include "packed_items.h"
#include "panels.h"
#include "score_sweeps.h"
#include "states.h"

namespace plr_kernels {

namespace {

struct MixtureCall {
  const Matrix& states;  // [rows · streams, dim]
  const float* log_weights;
  int64_t streams;
  double scale;
  const Matrix& items;
  ExcludedIds excluded;
  BestItemsOutput output;
  int64_t list_length;  // K'

  int64_t rows() const { return states.rows / streams; }
};

// K' where products are blocked: longer lists prove more, and take a larger part of the time.
int64_t blocked_list_length(int64_t k) { return 2 * k + 32; }

float as_score(double log2_probability) { return static_cast<float>(log2_probability * kLn2); }

// A row that needs a second sweep: its offsets, and what the k-th best item reaches at least.
struct OpenRow {
  int64_t row;  // of the chunk
  StreamOffsets offsets;
  float bound;
};

// All scores are NaN: the first k items that are not excluded.
void write_nan(const MixtureCall& call, int64_t row) {
  const int64_t* first = call.excluded.ids + row * call.excluded.columns;
  std::vector<int64_t> left_out(first, first + call.excluded.columns);
  std::sort(left_out.begin(), left_out.end());
  std::vector<Key> keys;
  for (int64_t item = 0; item < call.items.rows && static_cast<int64_t>(keys.size()) < call.output.k; ++item) {
    if (call.excluded.allowed != nullptr && !call.excluded.allowed[item]) continue;
    if (std::binary_search(left_out.begin(), left_out.end(), item)) continue;
    keys.push_back(key_of(std::numeric_limits<float>::quiet_NaN(), item));
  }
  call.output.write(row, keys);
}

// Writes a row from its streams' lists, or says what a second sweep needs. lists(m, keys) fetches a list, best first;
// scores_of(ids, d) computes the scores d [ids, streams] of listed items. Returns whether the row is done.
template <class Lists, class ScoresOf>
bool finish_row(const MixtureCall& call, int64_t row, const StreamOffsets& offsets, const Lists& lists,
                const ScoresOf& scores_of, float& bound) {
  const int64_t streams = call.streams, k = call.output.k;
  if (std::any_of(offsets.values.begin(), offsets.values.end(), [](double offset) { return std::isnan(offset); })) {
    write_nan(call, row);
    return true;
  }
  std::vector<float> worst(streams, -std::numeric_limits<float>::infinity());
  std::vector<Key> keys, best;
  std::vector<int64_t> ids;
  for (int64_t m = 0; m < streams; ++m) {
    lists(m, keys);
    if (static_cast<int64_t>(keys.size()) == call.list_length) worst[m] = score_of(keys.back());
    for (const Key key : keys) ids.push_back(id_of(key));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::vector<float> d(ids.size() * streams);
  scores_of(ids, d.data());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const float score = as_score(offsets.log2_probability(d.data() + i * streams));
    if (score != -std::numeric_limits<float>::infinity()) best.push_back(key_of(score, ids[i]));
  }
  const int64_t count = std::min<int64_t>(k, best.size());
  std::partial_sort(best.begin(), best.begin() + count, best.end(), std::greater<Key>());
  best.resize(count);
  const double limit = offsets.log2_probability(worst.data());
  const float largest_outside = as_score(limit + 1e-12 * (1 + std::abs(limit)));  // more than sums in double may err
  bound = count == k ? score_of(best.back()) : -std::numeric_limits<float>::infinity();
  if (!(limit == -std::numeric_limits<double>::infinity() || bound > largest_outside)) return false;
  call.output.write(row, best);
  return true;
}

// What finds the items of rows with known Z that may reach their bounds: in float32, with a margin for its rounding.
struct Finder {
  explicit Finder(const std::vector<OpenRow>& rows) {
    for (const OpenRow& row : rows) {
      // Where there are fewer than k to compare with, all reach it.
      const bool has_bound = std::isfinite(row.bound);
      const double reference = has_bound ? row.bound / kLn2 : 0.0;
      for (const double offset : row.offsets.values) {
        anchors.push_back(Anchor::at_total(offset, row.offsets.scale, reference));
      }
      // The bound was rounded in units of its size. Of the terms near it exponents are small, and each term and their
      // sum is rounded a few times.
      const double margin = 0x1p-21 * (std::abs(reference) + 8 + static_cast<double>(row.offsets.values.size()));
      thresholds.push_back(has_bound ? static_cast<float>(1.0 - margin) : -1.0f);
    }
  }

  std::vector<Anchor> anchors;    // [rows, streams], relative to the bound
  std::vector<float> thresholds;  // [rows]: items at most this probable, of 1 for the bound, are not among the best
};

void write_best(const MixtureCall& call, const BestItems& best, int64_t first_row, const std::vector<OpenRow>& open) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < open.size(); ++i) {
    best.best(static_cast<int64_t>(i), keys);
    call.output.write(first_row + open[i].row, keys);
  }
}

void push_exact(BestItems& best, int thread, int64_t i, const OpenRow& row, const float* d, int64_t id) {
  const float score = as_score(row.offsets.log2_probability(d));
  if (score != -std::numeric_limits<float>::infinity()) best.push(thread, i, score, id);
}

// ------------------------------------------------------------------------------------------ few rows

// By a sweep in which the states of open row i are those from places[i] · streams on.
template <class Sweep>
void sweep_open_rows(const Context& context, const MixtureCall& call, const Sweep& sweep, const Exclusions& exclusions,
                     const std::vector<OpenRow>& open, const std::vector<int64_t>& places) {
  const int64_t streams = call.streams, block_items = sweep.block_items();
  const Finder finder(open);
  const int64_t anchors_step = streams * kAnchorNumbers * kLanes;
  Buffer anchors(static_cast<int64_t>(open.size()) * anchors_step);
  for (std::size_t i = 0; i < finder.anchors.size(); ++i) {
    for (int64_t lane = 0; lane < kLanes; ++lane) finder.anchors[i].store(anchors.data(), static_cast<int64_t>(i), lane);
  }
  BestItems best(context, static_cast<int64_t>(open.size()), call.output.k, call.items.rows, block_items);
  Buffer mixed(block_items * context.threads.count());
  sweep.run([&](int64_t, int thread, int64_t first_item, int64_t count, float* block) {
    const int64_t vectors = round_up(count, kLanes) / kLanes;
    float* p = mixed.data() + thread * block_items;
    std::vector<const float*> of_streams(streams);
    std::vector<float> d(streams);
    std::vector<uint32_t> found(block_items);
    for (std::size_t i = 0; i < open.size(); ++i) {
      const int64_t row = open[i].row;
      for (int64_t m = 0; m < streams; ++m) {
        float* scores = block + (places[i] * streams + m) * block_items;
        std::fill(scores + count, scores + vectors * kLanes, 0.0f);
        of_streams[m] = scores;
      }
      float not_finite[kLanes] = {}, thresholds[kLanes];
      std::fill_n(thresholds, kLanes, finder.thresholds[i]);
      context.kernels.mix_streams(of_streams.data(), streams, kLanes, vectors, kernel_scale(call.scale),
                                  anchors.data() + static_cast<int64_t>(i) * anchors_step, p, not_finite);
      std::fill(p + count, p + vectors * kLanes, kNoCandidate);
      exclusions.visit(first_item, row, row + 1, [&](int64_t, int64_t item) { p[item] = kNoCandidate; });
      const int64_t survivors = context.kernels.find_above(p, kLanes, vectors, thresholds, found.data());
      for (int64_t j = 0; j < survivors; ++j) {
        for (int64_t m = 0; m < streams; ++m) d[m] = of_streams[m][found[j]];
        push_exact(best, thread, static_cast<int64_t>(i), open[i], d.data(), first_item + found[j]);
      }
    }
  });
  write_best(call, best, 0, open);
}

// As the first time: what one vector's scores are depends on whether it is alone, and the time is that of reading the
// items.
void second_sweep(const Context& context, const MixtureCall& call, const GemvSweep& sweep, const Exclusions& exclusions,
                  const std::vector<OpenRow>& open) {
  std::vector<int64_t> places;
  for (const OpenRow& each : open) places.push_back(each.row);
  sweep_open_rows(context, call, sweep, exclusions, open, places);
}

// With the open rows' states alone.
void second_sweep(const Context& context, const MixtureCall& call, const PackedSweep& sweep,
                  const Exclusions& exclusions, const std::vector<OpenRow>& open) {
  const int64_t count = static_cast<int64_t>(open.size()), dim = call.states.columns;
  Buffer states(count * call.streams * dim);
  float* state = states.data();
  std::vector<int64_t> places;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t m = 0; m < call.streams; ++m) {
      state = std::copy_n(static_cast<const float*>(row_of(call.states, open[i].row * call.streams + m)), dim, state);
    }
    places.push_back(i);
  }
  const Matrix of_open{states.data(), DataType::float32, count * call.streams, dim, dim};
  sweep_open_rows(context, call, PackedSweep(context, of_open, sweep.items()), exclusions, open, places);
}

// By a sweep with a state's scores side by side.
template <class Sweep>
int64_t by_rows(const Context& context, const MixtureCall& call, const Sweep& sweep) {
  const int64_t rows = call.rows(), streams = call.streams;
  const int64_t block_items = sweep.block_items();
  const Exclusions exclusions(call.excluded, 0, rows, call.items.rows, block_items);
  BestItems lists(context, sweep.states(), call.list_length, call.items.rows, block_items);
  LogSumExp lse(context, sweep, call.scale);
  sweep.run([&](int64_t task, int thread, int64_t first_item, int64_t count, float* block) {
    const bool last = sweep.ends_task(task, first_item, count);
    for (int64_t state = 0; state < sweep.states(); ++state) {
      float* scores = block + state * block_items;
      const int64_t row = state / streams;
      lse.add_row(task, thread, state, scores, count, last);
      exclusions.visit(first_item, row, row + 1, [&](int64_t, int64_t item) { scores[item] = kNoCandidate; });
      lists.add_row(thread, state, scores, count, first_item);
    }
  });
  const std::vector<double> z = lse.of_states();
  std::vector<StreamOffsets> offsets;
  std::vector<float> bounds(rows);
  std::vector<char> done(rows);
  for (int64_t row = 0; row < rows; ++row) {
    offsets.emplace_back(call.log_weights + row * streams, streams, z.data() + row * streams, 1, call.scale);
  }
  context.threads.run(rows, [&](int64_t row, int) {
    done[row] = finish_row(
        call, row, offsets[row], [&](int64_t m, std::vector<Key>& keys) { lists.best(row * streams + m, keys); },
        [&](const std::vector<int64_t>& items, float* d) { sweep.of_items(items, row * streams, streams, d); },
        bounds[row]);
  });
  std::vector<OpenRow> open;
  for (int64_t row = 0; row < rows; ++row) {
    if (!done[row]) open.push_back({row, offsets[row], bounds[row]});
  }
  if (!open.empty()) second_sweep(context, call, sweep, exclusions, open);
  return static_cast<int64_t>(open.size());
}

// ------------------------------------------------------------------------------------------ many rows

// One row a lane.
void second_sweep(const Context& context, const MixtureCall& call, int64_t first_row, const Exclusions& exclusions,
                  const std::vector<OpenRow>& open, bool paired) {
  const int64_t streams = call.streams, unit = streams * kLanes, count = static_cast<int64_t>(open.size());
  Order order = grouped_order(count, streams);
  for (int64_t& state : order) {
    if (state >= 0) state = (first_row + open[state / streams].row) * streams + state % streams;
  }
  const GemmSweep sweep(context, call.states, std::move(order), call.items, paired);
  const int64_t block_items = sweep.block_items(), groups = divided_up(count, kLanes);
  const Finder finder(open);
  Buffer anchors(groups * kAnchorNumbers * unit, 0.0f);
  Buffer thresholds(groups * kLanes, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; ++i) {
    thresholds[i] = finder.thresholds[i];
    for (int64_t m = 0; m < streams; ++m) {
      finder.anchors[i * streams + m].store(anchors.data(), i / kLanes * streams + m, i % kLanes);
    }
  }
  BestItems best(context, count, call.output.k, call.items.rows, block_items);
  Buffer mixed(block_items * kLanes * context.threads.count());
  const int64_t tasks = std::min<int64_t>(sweep.blocks(), 16 * context.threads.count());
  sweep.run(tasks, states_per_block(unit, kPanelColumns), [&](int64_t, const ScoreBlock& block) {
    float* p = mixed.data() + block.thread * block_items * kLanes;
    std::vector<const float*> of_streams(streams);
    std::vector<float> d(streams);
    std::vector<uint32_t> found(block_items * kLanes);
    const int64_t end = std::min(groups, (block.first_state + block.states) / unit);
    for (int64_t group = block.first_state / unit; group < end; ++group) {
      for (int64_t m = 0; m < streams; ++m) of_streams[m] = &block.at(block.first_item, group * unit + m * kLanes);
      float not_finite[kLanes] = {};
      context.kernels.mix_streams(of_streams.data(), streams, kPanelColumns, block.items, kernel_scale(call.scale),
                                  anchors.data() + group * kAnchorNumbers * unit, p, not_finite);
      const int64_t last = std::min(count, (group + 1) * kLanes);
      for (int64_t i = group * kLanes; i < last; ++i) {
        exclusions.visit(block.first_item, open[i].row, open[i].row + 1, [&](int64_t, int64_t item) {
          p[item * kLanes + i % kLanes] = kNoCandidate;
        });
      }
      const int64_t survivors =
          context.kernels.find_above(p, kLanes, block.items, thresholds.data() + group * kLanes, found.data());
      for (int64_t j = 0; j < survivors; ++j) {
        const int64_t item = found[j] / kLanes, lane = found[j] % kLanes, i = group * kLanes + lane;
        if (i >= count) continue;  // NaN in a lane that is no row
        for (int64_t m = 0; m < streams; ++m) d[m] = of_streams[m][item * kPanelColumns + lane];
        push_exact(best, block.thread, i, open[i], d.data(), block.first_item + item);
      }
    }
  });
  write_best(call, best, first_row, open);
}

// Rows [first_row, first_row + rows). The states of 16 rows are a group of `streams` Vectors.
int64_t by_gemm(const Context& context, const MixtureCall& call, int64_t first_row, int64_t rows, bool paired) {
  const int64_t streams = call.streams, unit = streams * kLanes;
  Order order = grouped_order(rows, streams);
  for (int64_t& state : order) state += state >= 0 ? first_row * streams : 0;
  const GemmSweep sweep(context, call.states, std::move(order), call.items, paired);
  const int64_t block_items = sweep.block_items();
  const Exclusions exclusions(call.excluded, first_row, rows, call.items.rows, block_items);
  BestItems lists(context, sweep.states(), call.list_length, call.items.rows, block_items);
  for (int64_t state = 0; state < sweep.states(); ++state) {
    if (sweep.order()[state] < 0) lists.close(state);
  }
  LogSumExp lse(context, sweep, call.scale);
  sweep.run(LogSumExp::tasks(sweep), kPanelColumns, [&](int64_t task, const ScoreBlock& block) {
    lse.add_block(task, block);
    exclusions.visit_forbidden(block.first_item, [&](int64_t item) {
      std::fill_n(&block.at(block.first_item + item, block.first_state), block.states, kNoCandidate);
    });
    for (int64_t state = block.first_state; state < block.first_state + block.states; state += kLanes) {
      float* scores = &block.at(block.first_item, state);
      const int64_t first = state / unit * kLanes, last = std::min(rows, first + kLanes);
      exclusions.visit_listed(block.first_item, first, last, [&](int64_t row, int64_t item) {
        scores[item * kPanelColumns + row - first] = kNoCandidate;
      });
      lists.add_lanes(block.thread, state, scores, kPanelColumns, block.items, block.first_item);
    }
  });

  const std::vector<double> z = lse.of_states();
  std::vector<StreamOffsets> offsets;
  std::vector<float> bounds(rows);
  std::vector<char> done(rows);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first_state = row / kLanes * unit + row % kLanes;
    offsets.emplace_back(call.log_weights + (first_row + row) * streams, streams, z.data() + first_state, kLanes,
                         call.scale);
  }
  const int64_t tasks = std::min<int64_t>(rows, 4 * context.threads.count());
  context.threads.run(tasks, [&](int64_t task, int) {
    Buffer copied(sweep.copied_item()), scores(kPanelColumns);
    for (int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; ++row) {
      const int64_t first_state = row / kLanes * unit + row % kLanes;
      done[row] = finish_row(
          call, first_row + row, offsets[row],
          [&](int64_t m, std::vector<Key>& keys) { lists.best(first_state + m * kLanes, keys); },
          [&](const std::vector<int64_t>& items, float* d) {
            for (const int64_t item : items) {
              int64_t panel = -1;
              for (int64_t m = 0; m < streams; ++m) {
                const int64_t state = first_state + m * kLanes;
                if (state / kPanelColumns != panel) {
                  panel = state / kPanelColumns;
                  sweep.of_item(item, panel * kPanelColumns, copied.data(), scores.data());
                }
                *d++ = scores[state % kPanelColumns];
              }
            }
          },
          bounds[row]);
    }
  });
  std::vector<OpenRow> open;
  for (int64_t row = 0; row < rows; ++row) {
    if (!done[row]) open.push_back({row, offsets[row], bounds[row]});
  }
  if (!open.empty()) second_sweep(context, call, first_row, exclusions, open, paired);
  return static_cast<int64_t>(open.size());
}

}  // namespace

int64_t top_mixture_items(const Context& context, const Matrix& states, const float* log_weights, int64_t streams,
                          const Matrix& items, int64_t k, double temperature, const ExcludedIds& excluded,
                          float* scores, int64_t* ids) {
  check_items_fit_keys(items.rows);
  const int64_t rows = states.rows / streams;
  if (rows == 0) return 0;
  const bool few = GemvSweep::suits(states, streams);
  const int64_t list_length = std::min(items.rows, few ? 4 * k + 128 : blocked_list_length(k));
  const double scale = kLog2E / temperature;
  const MixtureCall call{states, log_weights, streams, scale, items, excluded, {scores, ids, k}, list_length};
  if (few) return by_rows(context, call, GemvSweep(context, states, items));
  const bool paired = GemmSweep::takes_pairs(context, states, items);
  const int64_t together = BestItems::rows_together(call.list_length, items.rows, streams);
  int64_t swept_twice = 0;
  for (int64_t first = 0; first < rows; first += together) {
    swept_twice += by_gemm(context, call, first, std::min(together, rows - first), paired);
  }
  return swept_twice;
}

int64_t top_mixture_items(const Context& context, const Matrix& states, const float* log_weights, int64_t streams,
                          const PackedItems& items, int64_t k, double temperature, const ExcludedIds& excluded,
                          float* scores, int64_t* ids) {
  check_items_fit_keys(items.matrix().rows);
  const int64_t rows = states.rows / streams;
  const int64_t together = std::max<int64_t>(1, PackedSweep::kMostStates / streams);
  int64_t swept_twice = 0;
  for (int64_t first = 0; first < rows; first += together) {
    const Matrix part = rows_of(states, first * streams, std::min(together, rows - first) * streams);
    const MixtureCall call{part,
                           log_weights + first * streams,
                           streams,
                           kLog2E / temperature,
                           items.matrix(),
                           excluded.from_row(first),
                           {scores + first * k, ids + first * k, k},
                           std::min(items.matrix().rows, blocked_list_length(k))};
    swept_twice += by_rows(context, call, PackedSweep(context, part, items));
  }
  return swept_twice;
}

}  // namespace plr_kernels
