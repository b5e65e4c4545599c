// The records of delimited text, counted without parsing it, and the first quote that RFC 4180 does not allow.
#pragma once

#include <cstddef>
#include <cstdint>

namespace plr_data {

// A field that begins with a quote ends with the next one that is not doubled, before a separator or the end of a line.
// In any other field quotes are letters; their number must be even, or the parser takes the separator for a letter, too.
// Fed with the text in blocks of any size.
class RecordScan {
 public:
  enum Problem : int { none = 0, closed_early = 1, never_closed = 2, too_long = 3, within = 4 };

  // Without `quoted` every line is a record. A quoted field may span `longest` lines.
  RecordScan(char separator, bool quoted, int64_t longest);

  void feed(const uint8_t* text, size_t length);
  void finish();

  int64_t records() const { return records_; }  // complete ones, and after finish() what follows the last line's end
  Problem problem() const { return problem_; }
  int64_t opened() const { return opened_; }  // the 1-based line of the quote where the problem begins
  int64_t line() const { return lines_ + 1; }  // the line of the problem

 private:
  enum State { outside, inside, after_quote, after_return };

  bool usual_block(const uint8_t* text);
  void block(const uint8_t* text, int length);
  void part_of_block(const uint8_t* text, size_t length);  // fewer than 64 bytes
  void end_of_mark();

  const uint8_t separator_;
  const bool quoted_;
  const int64_t longest_;
  State state_ = outside;
  Problem problem_ = none;
  bool odd_ = false;  // outside: the field, which does not begin with a quote, has an odd number of them so far
  bool at_mark_ = true;  // all so far may be the beginning of a byte order mark
  size_t marked_ = 0;    // how much of it
  uint8_t before_ = '\n';
  int64_t records_ = 0;
  int64_t lines_ = 0;  // that have ended
  int64_t opened_ = 0;
};

}  // namespace plr_data
