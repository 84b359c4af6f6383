#include "choices.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "registry.h"

namespace pyserve {
namespace {

constexpr int kPositionBits = 6;

constexpr uint64_t log2_of(int64_t value) { return 63 - __builtin_clzll(static_cast<uint64_t>(value) | 1); }
constexpr uint64_t at_most(int64_t value, int64_t most) { return static_cast<uint64_t>(value < most ? value : most); }

// Equal for equal classes; the positions last, so that the classes that differ in them alone are neighbours.
constexpr uint64_t key_of(const ProblemClass& c) {
  uint64_t key = static_cast<uint64_t>(c.isa);
  key = key << 4 | static_cast<uint64_t>(c.op);
  key = key << 3 | static_cast<uint64_t>(c.dtype);
  key = key << 7 | at_most(c.R, 127);
  key = key << 7 | at_most(c.S, 127);
  key = key << 4 | at_most(c.stride_h, 15);
  key = key << 4 | at_most(c.stride_w, 15);
  key = key << 2 | static_cast<uint64_t>(c.grouping);
  key = key << 6 | log2_of(c.C);
  key = key << 6 | log2_of(c.K);
  return key << kPositionBits | log2_of(c.positions);
}

struct Row {
  uint64_t key;
  Variant variant;
};

// Rows in the order of their keys. Never destroyed: threads may still be computing when the process exits.
class Table {
 public:
  explicit Table(std::vector<Row> rows) : rows_(std::move(rows)) {
    std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) { return a.key < b.key; });
  }

  Variant find(uint64_t key) const {
    const auto above =
        std::lower_bound(rows_.begin(), rows_.end(), key, [](const Row& row, uint64_t k) { return row.key < k; });
    const bool has_above = above != rows_.end() && above->key >> kPositionBits == key >> kPositionBits;
    const bool has_below = above != rows_.begin() && (above - 1)->key >> kPositionBits == key >> kPositionBits;
    if (!has_above && !has_below) return Variant::count;
    if (!has_below || (has_above && above->key - key <= key - (above - 1)->key)) return above->variant;
    return (above - 1)->variant;
  }

 private:
  std::vector<Row> rows_;
};

const Table& committed() {
  static const Table* table = new Table({
#if defined(__x86_64__)
#define ROW(isa, op, dtype, R, S, stride_h, stride_w, grouping, C, K, positions, variant)                   \
  {key_of({Isa::isa, Op::op, DType::dtype, R, S, stride_h, stride_w, Grouping::grouping, C, K, positions}), \
   Variant::op##_##variant},
#include "cpu/choices.inc"
#undef ROW
#endif
  });
  return *table;
}

std::atomic<const Table*> of_machine{nullptr};
std::atomic<int64_t> generation{0};

const char* const kDTypes[] = {"f32", "bf16", "f64", "f16"};
const char* const kGroupings[] = {"dense", "grouped", "depthwise"};
constexpr Op kOps[] = {Op::conv2d, Op::conv2d_dgrad, Op::conv2d_wgrad};
const char* const kOpNames[] = {"conv2d", "conv2d_dgrad", "conv2d_wgrad"};

// The fields of a row, one by one.
class Fields {
 public:
  explicit Fields(const std::string& row) : row_(row), stream_(row) {}

  std::string next() {
    std::string field;
    if (!std::getline(stream_ >> std::ws, field, ',')) fail("fewer fields than twelve");
    return field;
  }
  int64_t next_size() {
    const std::string field = next();
    if (field.empty() || field.size() > 15 || field.find_first_not_of("0123456789") != std::string::npos)
      fail("'" + field + "' where a size belongs");
    return std::stoll(field);
  }
  template <size_t n>
  size_t next_of(const char* const (&names)[n]) {
    const std::string field = next();
    for (size_t i = 0; i < n; ++i)
      if (field == names[i]) return i;
    fail("'" + field + "', which it does not know");
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument("the row '" + row_ + "' has " + what);
  }

 private:
  const std::string& row_;
  std::istringstream stream_;
};

Row parsed(const std::string& text) {
  Fields fields(text);
  ProblemClass c{};
  const std::string isa = fields.next();
  const std::optional<Isa> known = isa_named(isa);
  if (!known) fields.fail("the ISA '" + isa + "', which this build lacks");
  c.isa = *known;
  const size_t op = fields.next_of(kOpNames);
  c.op = kOps[op];
  c.dtype = static_cast<DType>(fields.next_of(kDTypes));
  for (int64_t* field : {&c.R, &c.S, &c.stride_h, &c.stride_w}) *field = fields.next_size();
  c.grouping = static_cast<Grouping>(fields.next_of(kGroupings));
  for (int64_t* field : {&c.C, &c.K, &c.positions}) *field = fields.next_size();
  const std::string variant = fields.next(), name = std::string(kOpNames[op]) + "_" + variant;
  const auto& list = variant_list();
  for (size_t i = 0; i < list.size(); ++i)
    if (name == list[i].name && !list[i].is_cuda) return {key_of(c), static_cast<Variant>(i)};
  fields.fail("the variant '" + variant + "', which this build lacks");
}

}  // namespace

ProblemClass class_of(Isa isa, Op op, const Conv2dProblem& p) {
  const Grouping grouping = p.groups == 1 ? Grouping::dense : p.depthwise() ? Grouping::depthwise : Grouping::grouped;
  return {isa, op, p.dtype, p.R, p.S, p.stride_h, p.stride_w, grouping, p.C, p.K, p.N * p.P * p.Q};
}

std::string class_text(const ProblemClass& c) {
  std::ostringstream text;
  text << isa_name(c.isa) << ", " << kOpNames[static_cast<size_t>(c.op)] << ", "
       << kDTypes[static_cast<size_t>(c.dtype)] << ", " << c.R << ", " << c.S << ", " << c.stride_h << ", "
       << c.stride_w << ", " << kGroupings[static_cast<size_t>(c.grouping)];
  for (const int64_t size : {c.C, c.K, c.positions}) text << ", " << (int64_t{1} << log2_of(size));
  return text.str();
}

MeasuredChoice measured_choice(const ProblemClass& c) {
  const uint64_t key = key_of(c);
  if (const Table* table = of_machine.load(std::memory_order_acquire)) {
    const Variant variant = table->find(key);
    if (variant != Variant::count) return {variant, true};
  }
  return {committed().find(key), false};
}

void load_choices(const std::vector<std::string>& rows) {
  std::vector<Row> found;
  found.reserve(rows.size());
  for (const std::string& row : rows) found.push_back(parsed(row));
  of_machine.store(found.empty() ? nullptr : new Table(std::move(found)), std::memory_order_release);
  generation.fetch_add(1);
}

int64_t choices_generation() { return generation.load(); }

}  // namespace pyserve
