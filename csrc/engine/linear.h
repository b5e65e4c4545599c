// Linear layers and LayerNorms with their weights packed as the products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../buffer.h"
#include "../encoder.h"
#include "../kernels.h"
#include "../panels.h"

namespace plr_kernels {

// Weights as PyTorch has them, row-contiguous float32: [out, in] and [out]; a LayerNorm's are both [d].
struct WeightAndBias {
  const float* weight;
  const float* bias;
};

// Where the columns of a matrix stand: `groups` of `width` neighbours, `step` numbers from one to the next, with zeros
// between them.
struct Columns {
  int64_t groups;
  int64_t width;
  int64_t step;

  static Columns adjacent(int64_t count) { return {1, count, count}; }
  static Columns of_heads(int64_t heads, int64_t dim) { return {heads, dim, head_step(dim)}; }

  int64_t count() const { return groups * width; }
  int64_t size() const { return groups * step; }
  int64_t place(int64_t column) const { return column / width * step + column % width; }
};

class Linear {
 public:
  Linear(const WeightAndBias& source, Columns in, Columns out)
      : in_(in.size()),
        out_(round_up(out.size(), kLanes)),
        weight_(panels_size(in_, out_), 0.0f),
        bias_(round_up(out_, kPanelColumns), 0.0f) {
    for (int64_t row = 0; row < out.count(); ++row) {
      const int64_t column = out.place(row);
      float* panel = weight_.data() + column / kPanelColumns * kPanelColumns * in_ + column % kPanelColumns;
      for (int64_t i = 0; i < in.count(); ++i) {
        panel[in.place(i) * kPanelColumns] = source.weight[row * in.count() + i];
      }
      bias_[column] = source.bias[row];
    }
  }

  int64_t out() const { return out_; }

  // c = a weightᵀ + bias, with zeros in columns that are none up to a multiple of 16.
  void operator()(const Kernels& kernels, int64_t rows, Panels a, MutablePanels c) const {
    kernels.fill_rows(bias_.data(), out_, rows, c);
    kernels.gemm(rows, out_, in_, a, {weight_.data(), in_}, 1.0f, true, c);
  }

 private:
  int64_t in_;
  int64_t out_;
  Buffer weight_;  // panels [in, out]
  Buffer bias_;
};

class Norm {
 public:
  Norm(const WeightAndBias& source, int64_t dim, float eps)
      : dim_(dim), eps_(eps), weight_(round_up(dim, kLanes), 0.0f), bias_(round_up(dim, kLanes), 0.0f) {
    std::copy_n(source.weight, dim, weight_.data());
    std::copy_n(source.bias, dim, bias_.data());
  }

  // c = LayerNorm(a + b); c may be a.
  void operator()(const Kernels& kernels, int64_t rows, Panels a, Panels b, MutablePanels c) const {
    kernels.normalize_rows(rows, dim_, a, b, weight_.data(), bias_.data(), eps_, c);
  }

 private:
  int64_t dim_;
  float eps_;
  Buffer weight_;
  Buffer bias_;
};

}  // namespace plr_kernels
