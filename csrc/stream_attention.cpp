// Attention of streams to a shared prefix and to their own suffix: one batch entry and head (b, h) after the other,
// each by one thread, which alone writes everything of (b, h). So nothing is added across threads.
#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "buffer.h"
#include "operators.h"

namespace plr_kernels {

namespace {

// Calls visit(number, memory) for every (b, h), numbered b · H + h, with a workspace per thread.
template <class Visit>
void visit_batch_heads(const Context& context, const AttentionCall& call, const Visit& visit) {
  const int64_t batch_heads = call.batch * call.heads;
  const int64_t size = round_up(AttentionWorkspace::size(call), kLanes);
  Buffer memory(size * context.threads.count());
  // Some tasks for each thread, so that one which started late does less.
  constexpr int64_t tasks_per_thread = 16;
  const int64_t tasks =
      std::min<int64_t>(batch_heads, context.threads.count() == 1 ? 1 : tasks_per_thread * context.threads.count());
  context.threads.run(tasks, [&](int64_t task, int thread) {
    for (int64_t number = batch_heads * task / tasks; number < batch_heads * (task + 1) / tasks; ++number) {
      visit(number, memory.data() + thread * size);
    }
  });
}

// Whether the gradients are worth writing past the caches, and can be.
bool fills_caches(const AttentionCall& call, const AttentionGradients& wanted) {
  constexpr int64_t most_kept = int64_t{16} << 20;  // bytes: half of a common last cache
  constexpr int64_t line = 64;
  const int64_t row_bytes = call.dim * bytes_of(call.type);
  const int64_t prefix_bytes = call.batch * call.heads * call.prefix * row_bytes;
  const int64_t stream_bytes = call.batch * call.heads * call.streams * call.suffix * row_bytes;
  int64_t bytes = 0;
  bool aligned = row_bytes % line == 0;
  const auto add = [&](const void* gradient, int64_t size) {
    if (gradient == nullptr) return;
    bytes += size;
    aligned = aligned && reinterpret_cast<std::uintptr_t>(gradient) % line == 0;
  };
  add(wanted.prefix_key, prefix_bytes);
  add(wanted.prefix_value, prefix_bytes);
  add(wanted.stream_key, stream_bytes);
  add(wanted.stream_value, stream_bytes);
  return call.type == DataType::float32 && aligned && bytes > most_kept;
}

}  // namespace

void stream_attention_forward(const Context& context, const AttentionCall& call, void* output, float* lse) {
  visit_batch_heads(context, call, [&](int64_t number, float* memory) {
    context.kernels.attention_forward(call, number, memory, output, lse);
  });
}

void stream_attention_backward(const Context& context, const AttentionCall& call, const Strided& output_gradient,
                               AttentionGradients wanted) {
  wanted.past_cache = fills_caches(call, wanted);
  visit_batch_heads(context, call, [&](int64_t number, float* memory) {
    context.kernels.attention_backward(call, number, memory, output_gradient, wanted);
  });
}

}  // namespace plr_kernels
