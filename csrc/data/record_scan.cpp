#include "record_scan.h"

#include <algorithm>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace plr_data {
namespace {

constexpr int width = 64;  // bytes that are looked at together, a bit for each
constexpr size_t mark_length = 3;
constexpr uint8_t byte_order_mark[mark_length] = {0xef, 0xbb, 0xbf};

// The bits of the bytes that are `wanted`; all 64 bytes are read.
uint64_t bits_of(const uint8_t* text, uint8_t wanted) {
  uint64_t bits = 0;
#ifdef __SSE2__
  const __m128i pattern = _mm_set1_epi8(static_cast<char>(wanted));
  for (int part = 0; part < width / 16; ++part) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text + 16 * part));
    const auto found = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, pattern)));
    bits |= static_cast<uint64_t>(found) << (16 * part);
  }
#else
  for (int byte = 0; byte < width; ++byte) bits |= static_cast<uint64_t>(text[byte] == wanted) << byte;
#endif
  return bits;
}

// The bits from `first` on; those from `last` on, too, are left out.
uint64_t between(uint64_t bits, int first, int last) {
  if (last < width) bits &= (uint64_t{1} << last) - 1;
  return first < width ? bits >> first : 0;
}

// How many bits are set. Without its own instruction the compiler's would be a call.
int64_t count(uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555;
  bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
  return static_cast<int64_t>(((bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
}

// Each bit becomes whether an odd number of bits is set up to it.
uint64_t parity(uint64_t bits) {
  for (int shift = 1; shift < width; shift *= 2) bits ^= bits << shift;
  return bits;
}

}  // namespace

RecordScan::RecordScan(char separator, bool quoted, int64_t longest)
    : separator_(static_cast<uint8_t>(separator)), quoted_(quoted), longest_(longest) {}

void RecordScan::feed(const uint8_t* text, size_t length) {
  if (at_mark_) {
    while (length > 0 && marked_ < mark_length && *text == byte_order_mark[marked_]) ++text, --length, ++marked_;
    if (length == 0 && marked_ < mark_length) return;
    end_of_mark();
  }
  while (length >= width && problem_ == none) {
    if (!usual_block(text)) block(text, width);
    text += width, length -= width;
  }
  if (length > 0 && problem_ == none) part_of_block(text, length);
}

void RecordScan::finish() {
  if (at_mark_) end_of_mark();
  if (problem_ != none) return;
  if (state_ == inside) problem_ = never_closed;
  if (odd_) problem_ = within;
  if (before_ != '\n') ++records_;
}

// What looked like a byte order mark, and is not one, belongs to the first field.
void RecordScan::end_of_mark() {
  at_mark_ = false;
  if (marked_ > 0 && marked_ < mark_length) part_of_block(byte_order_mark, marked_);
}

void RecordScan::part_of_block(const uint8_t* text, size_t length) {
  uint8_t padded[width] = {};
  std::memcpy(padded, text, length);
  block(padded, static_cast<int>(length));
}

// Takes 64 bytes in which every other quote opens a field; false, and nothing is taken, where it is not so.
bool RecordScan::usual_block(const uint8_t* text) {
  const uint64_t newlines = bits_of(text, '\n');
  const uint64_t quotes = quoted_ ? bits_of(text, '"') : 0;
  const int64_t ended = count(newlines);
  if (odd_) return false;
  if (quotes == 0 && state_ == outside) {
    records_ += ended;
    lines_ += ended;
    before_ = text[width - 1];
    return true;
  }
  if (ended + (state_ == outside ? 0 : lines_ + 1 - opened_) >= longest_) return false;
  const uint64_t bounds = newlines | bits_of(text, separator_);
  const uint64_t within = parity(quotes) ^ (state_ == inside ? ~uint64_t{0} : 0);
  const uint64_t opening = quotes & within;
  const uint64_t closing = quotes & ~within;
  const uint64_t again = quotes << 1 | (state_ == after_quote);  // behind a quote; two are one, written twice
  const uint64_t behind = closing << 1 | (state_ == after_quote);
  const uint64_t begins = bounds << 1 | (before_ == separator_ || before_ == '\n');
  const uint64_t returns = behind & ~(bounds | quotes);  // what else may stand there: the first half of a line's end
  if (returns != 0 && (returns & ~bits_of(text, '\r')) != 0) return false;
  const uint64_t behind_return = returns << 1 | (state_ == after_return);
  if ((opening & ~(begins | again)) != 0 || (behind_return & ~newlines) != 0) return false;
  constexpr uint64_t last = uint64_t{1} << (width - 1);
  state_ = (within & last) != 0             ? inside
           : (closing & last) != 0          ? after_quote
           : (returns & last) != 0          ? after_return
                                            : outside;
  const uint64_t first = opening & ~again;
  if (state_ != outside && first != 0) {
    opened_ = lines_ + 1 + count(between(newlines, 0, width - 1 - __builtin_clzll(first)));
  }
  records_ += (newlines & within) == 0 ? ended : count(newlines & ~within);
  lines_ += ended;
  before_ = text[width - 1];
  return true;
}

void RecordScan::block(const uint8_t* text, int length) {
  const uint64_t newlines = between(bits_of(text, '\n'), 0, length);
  const uint64_t quotes = quoted_ ? between(bits_of(text, '"'), 0, length) : 0;
  int at = 0;
  while (at < length) {
    switch (state_) {
      case outside:
      case inside: {
        const uint64_t ahead = between(quotes, at, width);
        const int quote = ahead == 0 ? length : at + __builtin_ctzll(ahead);
        if (odd_ && between(newlines | bits_of(text, separator_), at, quote) != 0) {
          problem_ = within;
          return;
        }
        const int64_t passed = count(between(newlines, at, quote));
        lines_ += passed;
        if (state_ == outside) records_ += passed;
        if (state_ == inside && lines_ + 1 - opened_ >= longest_) {
          problem_ = too_long;
          return;
        }
        at = quote + 1;
        if (quote == length) break;
        if (state_ == inside) {
          state_ = after_quote;
        } else {
          const uint8_t former = quote == 0 ? before_ : text[quote - 1];
          const bool begins = former == separator_ || former == '\n';
          state_ = begins ? inside : outside;
          odd_ = !begins && !odd_;
          if (begins || odd_) opened_ = lines_ + 1;
        }
        break;
      }
      case after_quote:
        if (text[at] == '"') {
          state_ = inside;
          ++at;
        } else if (text[at] == '\r') {
          state_ = after_return;
          ++at;
        } else if (text[at] == separator_ || text[at] == '\n') {
          state_ = outside;
        } else {
          problem_ = closed_early;
          return;
        }
        break;
      case after_return:
        if (text[at] != '\n') {
          problem_ = closed_early;
          return;
        }
        state_ = outside;
        break;
    }
  }
  before_ = text[length - 1];
}

}  // namespace plr_data
