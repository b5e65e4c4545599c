#include "session.h"

#include <algorithm>
#include <utility>

namespace plr_kernels {

namespace {

// Numbers in blocks of `from`, at the beginnings of blocks of `to`; the rest is 0.
Buffer widened(const Buffer& source, int64_t from, int64_t size, int64_t to_size, int64_t blocks) {
  Buffer result(to_size, 0.0f);
  if (from > 0) {
    for (int64_t block = 0; block < blocks; ++block) {
      std::copy_n(source.data() + block * (size / blocks), size / blocks, result.data() + block * (to_size / blocks));
    }
  }
  return result;
}

}  // namespace

int64_t Session::bytes() const {
  int64_t numbers = 0;
  for (const Layer& layer : *layers_) numbers += layer.keys_size(room_) + layer.values_size(room_);
  return numbers * static_cast<int64_t>(sizeof(float));
}

void Session::reserve(int64_t positions) {
  if (positions <= room_) return;
  const int64_t room = round_up(positions, kPanelColumns);
  std::vector<Kept> wider;
  for (std::size_t i = 0; i < layers_->size(); ++i) {
    const Layer& layer = (*layers_)[i];
    wider.push_back({widened(kept_[i].key, room_, layer.keys_size(room_), layer.keys_size(room), layer.heads()),
                     widened(kept_[i].value, room_, layer.values_size(room_), layer.values_size(room),
                             layer.values_size(1) / kPanelColumns)});
  }
  kept_ = std::move(wider);
  room_ = room;
}

}  // namespace plr_kernels
