// A history whose keys and values are kept, so that what is appended to it is computed alone.
#pragma once

#include <cstdint>
#include <vector>

#include "../buffer.h"
#include "layer.h"

namespace plr_kernels {

class Session {
 public:
  // Of an engine with these layers, which must outlive it.
  explicit Session(const std::vector<Layer>& layers) : layers_(&layers), kept_(layers.size()) {}
  Session(Session&&) = default;

  int64_t length() const { return length_; }
  int64_t room() const { return room_; }
  int64_t bytes() const;

  // Makes room for so many positions; what is kept stays.
  void reserve(int64_t positions);
  void set_length(int64_t length) { length_ = length; }

  KeysValues kept(std::size_t layer) {
    return {kept_[layer].key.data(), room_ / kPanelColumns, {kept_[layer].value.data(), room_}};
  }
  bool belongs_to(const std::vector<Layer>& layers) const { return layers_ == &layers; }

 private:
  struct Kept {
    Buffer key;    // [heads][room / 32][D][32]
    Buffer value;  // panels [room, heads · head_step]
  };

  const std::vector<Layer>* layers_;
  std::vector<Kept> kept_;
  int64_t length_ = 0;
  int64_t room_ = 0;
};

}  // namespace plr_kernels
