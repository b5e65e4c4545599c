#include "layer.h"

#include <algorithm>
#include <cmath>

namespace plr_kernels {

namespace {

constexpr int64_t kTileRows = 256;  // rows that go through the layers' products together, from cache to cache

WeightAndBias second_half(const WeightAndBias& both, int64_t dim) {
  return {both.weight + dim * dim, both.bias + dim};
}

// key [count, D] of positions from `begin` on -> panels of its transpose, `panel_step` numbers from one panel of 32 keys
// to the next.
void transpose_keys(Panels key, int64_t begin, int64_t count, int64_t dim, float* target, int64_t panel_step) {
  for (int64_t done = 0; done < count;) {
    const int64_t position = begin + done, lane = position % kPanelColumns;
    const int64_t keys = std::min(kPanelColumns - lane, count - done);
    float* panel = target + position / kPanelColumns * panel_step + lane;
    for (int64_t d = 0; d < dim; ++d) {
      const float* column = key.data + (d / kPanelColumns * key.rows + done) * kPanelColumns + d % kPanelColumns;
      for (int64_t i = 0; i < keys; ++i) panel[d * kPanelColumns + i] = column[i * kPanelColumns];
    }
    done += keys;
  }
}

}  // namespace

int64_t Histories::longest() const {
  int64_t longest = 0;
  for (int64_t history = 0; history < count(); ++history) longest = std::max(longest, length(history));
  return longest;
}

Layer::Layer(const LayerWeights& weights, int64_t dim, int64_t heads, int64_t ffn_dim)
    : dim_(dim),
      heads_(heads),
      head_dim_(dim / heads),
      query_(weights.query, Columns::adjacent(dim), Columns::of_heads(heads, head_dim_)),
      key_(weights.key_value, Columns::adjacent(dim), Columns::of_heads(heads, head_dim_)),
      value_(second_half(weights.key_value, dim), Columns::adjacent(dim), Columns::of_heads(heads, head_dim_)),
      attention_output_(weights.attention_output, Columns::of_heads(heads, head_dim_), Columns::adjacent(dim)),
      attention_norm_(weights.attention_norm, dim, weights.attention_norm_eps),
      ffn_in_(weights.ffn_in, Columns::adjacent(dim), Columns::adjacent(ffn_dim)),
      ffn_out_(weights.ffn_out, Columns::adjacent(ffn_dim), Columns::adjacent(dim)),
      ffn_norm_(weights.ffn_norm, dim, weights.ffn_norm_eps) {}

void Layer::project(const Kernels& kernels, const Histories& histories, Panels x, const std::vector<KeysValues>& keys,
                    MutablePanels value, Arena& arena) const {
  const int64_t rows = histories.rows(), head_keys = head_dim_ * kPanelColumns;
  const MutablePanels key = arena.panels(rows, key_.out());
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int64_t count = std::min(kTileRows, rows - first);
    key_(kernels, count, from_row(x, first), from_row(key, first));
    value_(kernels, count, from_row(x, first), from_row(value, first));
  }
  for (int64_t history = 0; history < histories.count(); ++history) {
    const Panels of_history = from_row(view(key), histories.first_row[history]);
    for (int64_t head = 0; head < heads_; ++head) {
      transpose_keys(of_head(of_history, head), histories.begin[history], histories.rows(history), head_dim_,
                     keys[history].key + head * keys[history].panels * head_keys, head_keys);
    }
  }
}

std::vector<KeysValues> Layer::keys_values(const Kernels& kernels, const Histories& histories, Panels x,
                                           Arena& arena) const {
  std::vector<KeysValues> result;
  const MutablePanels value = arena.panels(histories.rows(), value_.out());
  for (int64_t history = 0; history < histories.count(); ++history) {
    const int64_t room = round_up(histories.length(history), kPanelColumns);
    result.push_back(
        {arena.take(keys_size(room)), room / kPanelColumns, from_row(value, histories.first_row[history])});
  }
  project(kernels, histories, x, result, value, arena);
  return result;
}

void Layer::keep(const Kernels& kernels, const Histories& histories, Panels x, const std::vector<KeysValues>& kept,
                 Arena& arena) const {
  const MutablePanels value = arena.panels(histories.rows(), value_.out());
  project(kernels, histories, x, kept, value, arena);
  for (int64_t history = 0; history < histories.count(); ++history) {
    for (int64_t row = 0; row < histories.rows(history); ++row) {
      copy_row(view(value), histories.first_row[history] + row, kept[history].value, histories.begin[history] + row,
               value_.out());
    }
  }
}

void Layer::encode(const Kernels& kernels, const Histories& histories, bool causal, const std::vector<KeysValues>& read,
                   MutablePanels x, Arena& arena) const {
  const int64_t rows = histories.rows();
  const MutablePanels query = arena.panels(rows, query_.out());  // becomes what was attended
  for (int64_t first = 0; first < rows; first += kTileRows) {
    query_(kernels, std::min(kTileRows, rows - first), from_row(view(x), first), from_row(query, first));
  }
  AttendCall call{};
  call.causal = causal;
  call.memory = arena.take(attend_memory(histories.longest(), 0));
  for (int64_t history = 0; history < histories.count(); ++history) {
    attend(kernels, call, histories.begin[history], histories.rows(history), histories.length(history), read[history],
           from_row(query, histories.first_row[history]));
  }
  sublayers(kernels, rows, view(query), x, arena);
}

void Layer::attend(const Kernels& kernels, AttendCall& call, int64_t begin, int64_t rows, int64_t length,
                   const KeysValues& read, MutablePanels query) const {
  call.dim = head_dim_;
  call.scale = static_cast<float>(kLog2E / std::sqrt(static_cast<double>(head_dim_)));
  for (int64_t head = 0; head < heads_; ++head) {
    call.key = read.key + head * read.panels * head_dim_ * kPanelColumns;
    call.value = of_head(view(read.value), head);
    for (int64_t first = 0; first < rows; first += kQueryRows) {
      call.rows = std::min(kQueryRows, rows - first);
      call.keys = call.causal ? begin + first + call.rows : length;
      call.output = of_head(from_row(query, first), head);
      call.query = view(call.output);
      kernels.attend(call);
    }
  }
}

void Layer::append(const Kernels& kernels, int64_t rows, Panels x, Suffix& suffix, Arena& arena) const {
  suffix.key.push_back(arena.panels(rows, key_.out()));
  suffix.value.push_back(arena.panels(rows, value_.out()));
  key_(kernels, rows, x, suffix.key.back());
  value_(kernels, rows, x, suffix.value.back());
}

void Layer::step(const Kernels& kernels, const Histories& histories, int64_t streams,
                 const std::vector<KeysValues>& read, const Suffix& suffix, MutablePanels x, Arena& arena) const {
  const int64_t rows = histories.count() * streams, head_keys = head_dim_ * kPanelColumns;
  const int64_t steps = static_cast<int64_t>(suffix.key.size());
  const MutablePanels query = arena.panels(rows, query_.out());
  query_(kernels, rows, view(x), query);
  std::vector<Panels> suffix_key(steps), suffix_value(steps);
  AttendCall call{};
  call.dim = head_dim_;
  call.scale = static_cast<float>(kLog2E / std::sqrt(static_cast<double>(head_dim_)));
  call.suffix = steps;
  call.suffix_key = suffix_key.data();
  call.suffix_value = suffix_value.data();
  call.memory = arena.take(attend_memory(histories.longest(), steps));
  for (int64_t history = 0; history < histories.count(); ++history) {
    const KeysValues& of_history = read[history];
    call.keys = histories.length(history);
    for (int64_t head = 0; head < heads_; ++head) {
      call.key = of_history.key + head * of_history.panels * head_keys;
      call.value = of_head(view(of_history.value), head);
      for (int64_t first = 0; first < streams; first += kQueryRows) {
        const int64_t row = history * streams + first;
        call.rows = std::min(kQueryRows, streams - first);
        call.output = of_head(from_row(query, row), head);
        call.query = view(call.output);
        for (int64_t s = 0; s < steps; ++s) {
          suffix_key[s] = of_head(from_row(view(suffix.key[s]), row), head);
          suffix_value[s] = of_head(from_row(view(suffix.value[s]), row), head);
        }
        kernels.attend(call);
      }
    }
  }
  sublayers(kernels, rows, view(query), x, arena);
}

void Layer::sublayers(const Kernels& kernels, int64_t rows, Panels attended, MutablePanels x, Arena& arena) const {
  const int64_t tile = std::min(kTileRows, rows);
  const MutablePanels inner = arena.panels(tile, ffn_in_.out()), outer = arena.panels(tile, ffn_out_.out());
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int64_t count = std::min(kTileRows, rows - first);
    const MutablePanels part = from_row(x, first);
    attention_output_(kernels, count, from_row(attended, first), outer);
    attention_norm_(kernels, count, view(part), view(outer), part);
    ffn_in_(kernels, count, view(part), inner);
    kernels.gelu_rows(count, ffn_in_.out(), inner);
    ffn_out_(kernels, count, view(inner), outer);
    ffn_norm_(kernels, count, view(part), view(outer), part);
  }
}

MutablePanels Layer::of_head(MutablePanels matrix, int64_t head) const {
  const int64_t column = head * head_step(head_dim_);
  return {matrix.data + column / kPanelColumns * kPanelColumns * matrix.rows + column % kPanelColumns, matrix.rows};
}

Panels Layer::of_head(Panels matrix, int64_t head) const {
  const int64_t column = head * head_step(head_dim_);
  return {matrix.data + column / kPanelColumns * kPanelColumns * matrix.rows + column % kPanelColumns, matrix.rows};
}

}  // namespace plr_kernels
