#include "chain.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "registry.h"

namespace pyserve {
namespace {

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("run_chain: the program ") + what);
}

// Reads words one by one.
class Words {
 public:
  Words(const int64_t* at, const int64_t* end) : at_(at), end_(end) {}
  int64_t next() {
    require(at_ < end_, "is cut off");
    return *at_++;
  }
  double next_double() {
    const int64_t bits = next();
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  Clamp next_clamp() {
    const double lo = next_double();
    return {lo, next_double()};
  }
  const int64_t* take(int64_t count) {
    require(count >= 0 && count <= end_ - at_, "is cut off");
    const int64_t* from = at_;
    at_ += count;
    return from;
  }

 private:
  const int64_t *at_, *end_;
};

class Run {
 public:
  Run(const Chain& chain, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
      const std::vector<ChainConstant>& constants, char* workspace, const Pool& pool)
      : chain_(chain), inputs_(inputs), outputs_(outputs), constants_(constants), workspace_(workspace), pool_(pool) {}

  // For the images from `first` on that the step takes at a time.
  void step(const ChainStep& step, int64_t first) {
    first_ = first, count_ = step.images;
    Words words(step.words, step.end);
    const ChainValue x = value(words.next()), y = value(words.next());
    switch (step.kind) {
      case StepKind::conv2d:
        return conv2d(x, y, words);
      case StepKind::max_pool2d:
        return max_pool2d(x, y, words);
      case StepKind::average_pool2d:
        return run<Op::average_pool2d>({x.N, x.H, x.W, x.C, y.H, y.W, 0, 0, 0, 0, 0, 0, chain_.dtype}, {in(x), out(y)});
      case StepKind::linear:
        return linear(x, y, words);
      case StepKind::bias_relu:
        return bias_relu(x, y, words);
      case StepKind::flatten:
        return flatten(x, y);
    }
    require(false, "has an unknown step");
  }

 private:
  // Its part for the present images.
  ChainValue value(int64_t index) const {
    require(index >= 0 && index < static_cast<int64_t>(chain_.values.size()), "names a value that it does not have");
    ChainValue v = chain_.values[static_cast<size_t>(index)];
    if (count_ == chain_.images) return v;
    require(v.N == chain_.images || v.N == count_, "has a value of other images");
    v.skipped = v.N == count_ ? 0 : first_ * v.image() * chain_.element_size();
    v.N = count_;
    return v;
  }
  const void* in(const ChainValue& v) const {
    return v.place == Place::input ? static_cast<const char*>(inputs_[static_cast<size_t>(v.at)]) + v.skipped : out(v);
  }
  const void* in(int64_t index, int64_t numel) const {
    if (index < 0) return nullptr;
    const ChainValue v = value(index);
    require(v.numel() == numel, "adds values of different sizes");
    return in(v);
  }
  char* out(const ChainValue& v) const {
    require(v.place != Place::input, "writes to an input");
    char* base = v.place == Place::output ? static_cast<char*>(outputs_[static_cast<size_t>(v.at)]) : workspace_ + v.at;
    return base + v.skipped;
  }
  const void* constant(int64_t index, int64_t numel) const {
    if (index < 0) return nullptr;
    require(index < static_cast<int64_t>(constants_.size()), "names a constant that it was not given");
    const ChainConstant& c = constants_[static_cast<size_t>(index)];
    require(c.numel == numel, "was given a constant of another size");
    return c.data;
  }

  template <Op op>
  void run(const ProblemOf<op>& problem, const ArgsOf<op>& args) const {
    const Choice<op> choice = choose_cpu<op>(problem);
    count_call(choice.variant);
    choice.run(problem, args, pool_);
  }

  void conv2d(const ChainValue& x, const ChainValue& y, Words& words) const {
    const int64_t residual = words.next(), weight = words.next(), packed = words.next(), bias = words.next();
    const int64_t variant = words.next();
    Conv2dProblem p{};
    p.N = x.N, p.H = x.H, p.W = x.W, p.C = x.C, p.K = y.C, p.dtype = chain_.dtype;
    for (int64_t* field : {&p.R, &p.S, &p.stride_h, &p.stride_w, &p.pad_h, &p.pad_w, &p.dilation_h, &p.dilation_w,
                           &p.groups, &p.pool.size, &p.pool.stride, &p.pool.pad})
      *field = words.next();
    p.clamp = words.next_clamp();
    require(p.groups > 0 && p.stride_h > 0 && p.stride_w > 0 && (p.pool.size == 0 || p.pool.stride > 0),
            "has a convolution without groups or strides");
    p.P = conv2d_output_size(p.H, p.R, p.stride_h, p.pad_h, p.dilation_h);
    p.Q = conv2d_output_size(p.W, p.S, p.stride_w, p.pad_w, p.dilation_w);
    require(p.pooled(p.P) == y.H && p.pooled(p.Q) == y.W, "has a convolution whose sizes do not fit");
    const auto chosen = static_cast<Variant>(variant);
    const Packing* packing = packing_of(chosen);
    count_call(chosen);
    kernel_of<Op::conv2d>(chosen)(
        p,
        {in(x), constant(weight, p.K * p.R * p.S * p.group_c()), constant(bias, p.K), in(residual, y.numel()), out(y),
         static_cast<const float*>(constant(packed, packing ? packing->size(p) : 0))},
        pool_);
  }

  void max_pool2d(const ChainValue& x, const ChainValue& y, Words& words) const {
    PoolingProblem p{x.N, x.H, x.W, x.C, y.H, y.W, 0, 0, 0, 0, 0, 0, chain_.dtype};
    for (int64_t* field : {&p.R, &p.S, &p.stride_h, &p.stride_w, &p.pad_h, &p.pad_w}) *field = words.next();
    run<Op::max_pool2d>(p, {in(x), out(y)});
  }

  void linear(const ChainValue& x, const ChainValue& y, Words& words) const {
    const int64_t weight = words.next(), bias = words.next(), C = x.H * x.W * x.C;
    run<Op::linear>({x.N, C, y.C, chain_.dtype, words.next_clamp()},
                    {in(x), constant(weight, y.C * C), constant(bias, y.C), out(y)});
  }

  void bias_relu(const ChainValue& x, const ChainValue& y, Words& words) const {
    const int64_t residual = words.next();
    run<Op::bias_relu>({x.N * x.H * x.W, x.C, 1, chain_.dtype, words.next_clamp()},
                       {in(x), nullptr, in(residual, x.numel()), out(y)});
  }

  // [H][W][C] to [C][H][W], which is what PyTorch's flatten makes of it.
  void flatten(const ChainValue& x, const ChainValue& y) const {
    const char* from = static_cast<const char*>(in(x));
    char* to = out(y);
    require(x.numel() == y.numel(), "flattens to another size");
    const int64_t pixels = x.H * x.W, size = chain_.element_size();
    if (pixels == 1) {
      std::memcpy(to, from, static_cast<size_t>(x.numel() * size));
      return;
    }
    pool_(x.N * x.C, 4096 / pixels + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < pixels; ++j)
          std::memcpy(to + (i * pixels + j) * size, from + ((i / x.C * pixels + j) * x.C + i % x.C) * size,
                      static_cast<size_t>(size));
    });
  }

  const Chain& chain_;
  const std::vector<const void*>& inputs_;
  const std::vector<void*>& outputs_;
  const std::vector<ChainConstant>& constants_;
  char* workspace_;
  const Pool& pool_;
  int64_t first_ = 0, count_ = 0;
};

}  // namespace

Chain::Chain(const int64_t* program, int64_t count) {
  Words words(program, program + count);
  dtype = static_cast<DType>(words.next());
  require(dtype == DType::f32 || dtype == DType::bf16, "has an element type that it cannot have");
  images = words.next(), workspace_bytes = words.next();
  const int64_t value_count = words.next(), step_count = words.next();
  for (int64_t i = 0; i < value_count; ++i) {
    ChainValue v{};
    v.place = static_cast<Place>(words.next());
    for (int64_t* field : {&v.at, &v.dims, &v.N, &v.H, &v.W, &v.C}) *field = words.next();
    require(v.at >= 0 && v.N > 0 && v.H > 0 && v.W > 0 && v.C > 0, "has an empty value");
    require(v.place != Place::workspace || v.at + v.numel() * element_size() <= workspace_bytes,
            "has a value outside of its workspace");
    values.push_back(v);
  }
  for (int64_t i = 0; i < step_count; ++i) {
    const auto kind = static_cast<StepKind>(words.next());
    const int64_t at_a_time = words.next(), size = words.next();
    require(at_a_time > 0 && images > 0 && images % at_a_time == 0,
            "takes a part of the images that does not divide them");
    const int64_t* from = words.take(size);
    steps.push_back({kind, at_a_time, from, from + size});
  }
}

int64_t Chain::count(Place place) const {
  int64_t found = 0;
  for (const ChainValue& v : values) found += v.place == place;
  return found;
}

void Chain::run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                const std::vector<ChainConstant>& constants, void* workspace, const Pool& pool,
                const std::function<void()>& between) const {
  Run run(*this, inputs, outputs, constants, static_cast<char*>(workspace), pool);
  count_chain();
  for (auto begin = steps.begin(); begin != steps.end();) {
    const auto end = std::find_if(begin, steps.end(), [&](const ChainStep& s) { return s.images != begin->images; });
    for (int64_t first = 0; first < images; first += begin->images)
      for (auto step = begin; step != end; ++step) {
        run.step(*step, first);
        between();
      }
    begin = end;
  }
}

}  // namespace pyserve
