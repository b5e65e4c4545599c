// The extension plr.prepare._cpp: what preparing data does with strings and order, without the interpreter's lock.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "mark.h"
#include "record_scan.h"
#include "stretches.h"
#include "string_order.h"
#include "string_table.h"
#include "user_order.h"

namespace py = pybind11;

namespace plr_data {
namespace {

constexpr int64_t most_of_a_block = 1 << 18;  // interactions: threads share the blocks

// Everything that a column hands over ("__arrow_c_stream__"), released at the end.
class Column {
 public:
  explicit Column(const py::capsule& capsule) {
    auto* stream = static_cast<ArrowArrayStream*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array_stream"));
    if (stream == nullptr) throw py::error_already_set();
    ArrowSchema schema{};
    check(stream, stream->get_schema(stream, &schema));
    const std::string format = schema.format;
    schema.release(&schema);
    if (format != "vu") throw std::invalid_argument("strings must come as Arrow string views, found format " + format);
    while (true) {
      parts.emplace_back();
      check(stream, stream->get_next(stream, &parts.back()));
      if (parts.back().release == nullptr) break;
      length += parts.back().length;
    }
    parts.pop_back();
  }

  struct Part : ArrowArray {
    Part() : ArrowArray{} {}
    Part(Part&& other) noexcept : ArrowArray(other) { other.release = nullptr; }
    ~Part() {
      if (release != nullptr) release(this);
    }
  };
  std::vector<Part> parts;
  int64_t length = 0;

 private:
  static void check(ArrowArrayStream* stream, int status) {
    if (status == 0) return;
    const char* message = stream->get_last_error(stream);
    throw std::runtime_error(message == nullptr ? "the column cannot be read" : message);
  }
};

template <class Structure>
void delete_with(PyObject* capsule) {
  const char* name = PyCapsule_GetName(capsule);
  auto* held = static_cast<Structure*>(PyCapsule_GetPointer(capsule, name));
  if (held->release != nullptr) held->release(held);
  delete held;
}

// A column that can be handed over once, as an Arrow array without nulls: its memory goes with it.
template <class Held>
class ArrowColumn {
 public:
  explicit ArrowColumn(Held column) : held_(std::make_unique<Held>(std::move(column))) {}

  py::tuple arrow_c_array(const py::object&) {
    if (!held_) throw std::runtime_error("this column was handed over before");
    auto* schema = new ArrowSchema{};
    schema->format = Held::format;
    schema->name = "";
    schema->release = [](ArrowSchema* self) { self->release = nullptr; };
    auto* array = new ArrowArray{};
    array->length = held_->length();
    array->n_buffers = held_->fill(held_->buffers);
    array->buffers = held_->buffers;
    array->private_data = held_.release();
    array->release = [](ArrowArray* self) {
      delete static_cast<Held*>(self->private_data);
      self->release = nullptr;
    };
    return py::make_tuple(py::reinterpret_steal<py::object>(PyCapsule_New(schema, "arrow_schema", &delete_with<ArrowSchema>)),
                          py::reinterpret_steal<py::object>(PyCapsule_New(array, "arrow_array", &delete_with<ArrowArray>)));
  }

 private:
  std::unique_ptr<Held> held_;
};

// Strings one after the other; offsets of 64 bits.
struct Strings {
  static constexpr const char* format = "U";
  std::vector<int64_t> offsets{0};
  LargeArray<uint8_t> bytes;
  const void* buffers[3] = {};

  int64_t length() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t fill(const void** to) const {
    to[1] = offsets.data();
    to[2] = bytes.data();
    return 3;
  }
};

struct Numbers {
  static constexpr const char* format = "I";
  LargeArray<uint32_t> values;
  const void* buffers[2] = {};

  int64_t length() const { return static_cast<int64_t>(values.size()); }
  int64_t fill(const void** to) const {
    to[1] = values.data();
    return 2;
  }
};

// The numbers of a column of strings, and whether any of them is missing.
py::tuple number(StringTable& table, const py::capsule& capsule) {
  const Column column(capsule);
  Numbers numbers{LargeArray<uint32_t>(column.length)};
  uint32_t* out = numbers.values.data();
  bool missing = false;
  {
    py::gil_scoped_release unlocked;
    for (const ArrowArray& part : column.parts) {
      missing |= table.number(StringViews(part), part.length, out);
      out += part.length;
    }
  }
  return py::make_tuple(ArrowColumn(std::move(numbers)), missing);
}

// The strings in sorted order, and the rank of each number.
py::tuple ranked(const StringTable& table, int threads) {
  constexpr size_t ahead = 16;  // strings that are on their way into the cache
  Strings strings;
  py::array_t<int32_t> ranks(table.size());
  int32_t* rank_of = ranks.mutable_data();
  {
    py::gil_scoped_release unlocked;
    const LargeArray<Ordered> order = in_order(table, threads);
    const plr_kernels::Threads run(threads, work_of_one * static_cast<double>(order.size()));
    std::vector<int64_t>& offsets = strings.offsets;
    offsets.resize(order.size() + 1);
    for (size_t place = 0; place < order.size(); ++place) offsets[place + 1] = offsets[place] + order[place].length;
    strings.bytes = LargeArray<uint8_t>(offsets.back());
    in_stretches(run, order.size(), [&](size_t first, size_t last, int64_t) {
      for (size_t place = first; place < last; ++place) {
        if (place + ahead < last) table.prefetch(order[place + ahead].address, order[place + ahead].length);
        const uint32_t address = order[place].address;
        rank_of[table.number_at(address)] = static_cast<int32_t>(place);
        std::memcpy(strings.bytes.data() + offsets[place], table.string_at(address).data, order[place].length);
      }
    });
  }
  return py::make_tuple(ArrowColumn(std::move(strings)), ranks);
}

py::str string(const StringTable& table, int64_t number) {
  if (number < 0 || number >= table.size()) throw py::index_error("there is no string of this number");
  const Bytes bytes = table[number];
  return py::str(reinterpret_cast<const char*>(bytes.data), bytes.length);
}

template <class Value>
using Array = py::array_t<Value, py::array::c_style>;

template <class Value>
const Value* data_of(const std::optional<Array<Value>>& array, py::ssize_t length) {
  if (!array) return nullptr;
  if (array->ndim() != 1 || array->size() != length) throw std::invalid_argument("columns must be of one length");
  return array->data();
}

template <class Value>
using Optional = std::optional<Array<Value>>;
using Blocks = std::vector<std::tuple<Array<uint32_t>, Array<uint32_t>, Optional<int64_t>, Optional<bool>>>;

// Blocks of user, item, time and positive; all have the last two or none has. The list is emptied.
std::unique_ptr<UserOrder> user_order(py::list list, const Array<int32_t>& user_ranks, const Array<int32_t>& item_ranks,
                                      int threads) {
  py::detail::make_caster<Blocks> caster;
  if (!caster.load(list, false)) throw py::type_error("blocks must be of user, item, time and positive");
  auto given = py::detail::cast_op<Blocks&&>(std::move(caster));
  std::vector<Block> blocks;
  std::vector<size_t> part_of;  // which of those given each is
  std::vector<std::atomic<int64_t>> parts_left(given.size());
  for (size_t whole = 0; whole < given.size(); ++whole) {
    const auto& [user, item, time, positive] = given[whole];
    if (time.has_value() != std::get<2>(given[0]).has_value() || positive.has_value() != std::get<3>(given[0]).has_value()) {
      throw std::invalid_argument("blocks must have the same columns");
    }
    const Block block{user.size(), user.data(), data_of(Optional<uint32_t>(item), user.size()),
                      data_of(time, user.size()), data_of(positive, user.size())};
    for (int64_t first = 0; first < block.length; first += most_of_a_block) {
      part_of.push_back(whole);
      ++parts_left[whole];
      blocks.push_back({std::min(most_of_a_block, block.length - first), block.user + first, block.item + first,
                        block.time == nullptr ? nullptr : block.time + first,
                        block.positive == nullptr ? nullptr : block.positive + first});
    }
  }
  const Ranks users{user_ranks.data(), static_cast<uint32_t>(user_ranks.size())};
  const Ranks items{item_ranks.data(), static_cast<uint32_t>(item_ranks.size())};
  const auto consumed = [&](size_t part) {
    if (--parts_left[part_of[part]] > 0) return;
    const py::gil_scoped_acquire locked;
    given[part_of[part]] = {};
    list[part_of[part]] = py::none();
  };
  std::unique_ptr<UserOrder> order;
  {
    const py::gil_scoped_release unlocked;
    for (const Ranks& ranks : {users, items}) {
      if (std::any_of(ranks.data, ranks.data + ranks.size, [&](int32_t rank) { return static_cast<uint32_t>(rank) >= ranks.size; })) {
        throw std::out_of_range("a rank that is not below their number");
      }
    }
    order = std::make_unique<UserOrder>(blocks, users, items, threads, consumed);
  }
  list.attr("clear")();
  return order;
}

// The sorted columns: offsets of the users, item, time and positive (None where there is none), and where each stood.
py::tuple write(UserOrder& order) {
  Array<int64_t> offsets(order.users() + 1);
  Array<int32_t> item(order.size());
  Array<uint32_t> place(order.size());
  Optional<int64_t> time;
  Optional<bool> positive;
  if (order.with_time()) time.emplace(order.size());
  if (order.with_positive()) positive.emplace(order.size());
  const Columns columns{offsets.mutable_data(), item.mutable_data(), time ? time->mutable_data() : nullptr,
                        positive ? positive->mutable_data() : nullptr, place.mutable_data()};
  {
    py::gil_scoped_release unlocked;
    order.write(columns);
  }
  return py::make_tuple(offsets, item, time, positive, place);
}

void mark_chosen(Array<bool>& marks, const Array<uint32_t>& index, const std::optional<Array<bool>>& chosen) {
  const bool* choice = data_of(chosen, index.size());
  bool* out = marks.mutable_data();
  const auto count = static_cast<uint32_t>(std::min<py::ssize_t>(marks.size(), UINT32_MAX));
  py::gil_scoped_release unlocked;
  mark(out, count, index.data(), choice, index.size());
}

// Keeps the interpreter's lock: to get it back can take longer than to scan a block.
void feed(RecordScan& scan, const py::bytes& text) {
  char* data = nullptr;
  py::ssize_t length = 0;
  if (PyBytes_AsStringAndSize(text.ptr(), &data, &length) != 0) throw py::error_already_set();
  scan.feed(reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(length));
}

}  // namespace

PYBIND11_MODULE(_cpp, module) {
  module.doc() = "Strings numbered, and interactions put in order.";
  module.attr("MISSING") = StringTable::missing;
  py::class_<ArrowColumn<Strings>>(module, "Strings")
      .def("__arrow_c_array__", &ArrowColumn<Strings>::arrow_c_array, py::arg("requested_schema") = py::none());
  py::class_<ArrowColumn<Numbers>>(module, "Numbers")
      .def("__arrow_c_array__", &ArrowColumn<Numbers>::arrow_c_array, py::arg("requested_schema") = py::none());
  py::class_<StringTable>(module, "StringTable")
      .def(py::init<uint64_t, int>(), py::arg("seed"), py::arg("hash_bits") = 32)
      .def("__len__", &StringTable::size)
      .def("string", &string)
      .def("number", &number)
      .def("ranked", &ranked, py::arg("threads"));
  py::class_<UserOrder>(module, "UserOrder")
      .def(py::init(&user_order), py::arg("blocks"), py::arg("user_ranks").noconvert(),
           py::arg("item_ranks").noconvert(), py::arg("threads"))
      .def("write", &write);
  py::class_<RecordScan>(module, "RecordScan")
      .def(py::init<char, bool, int64_t>(), py::arg("separator"), py::arg("quoted"), py::arg("longest"))
      .def("feed", &feed, py::arg("text"))
      .def("finish", &RecordScan::finish)
      .def_property_readonly("records", &RecordScan::records)
      .def_property_readonly("problem", [](const RecordScan& scan) { return static_cast<int>(scan.problem()); })
      .def_property_readonly("opened", &RecordScan::opened)
      .def_property_readonly("line", &RecordScan::line);
  module.def("mark", &mark_chosen, py::arg("marks").noconvert(), py::arg("index").noconvert(),
             py::arg("chosen").noconvert());
}

}  // namespace plr_data
