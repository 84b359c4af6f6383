// 3×3 convolution by Winograd's minimal filtering (winograd_transform.h): with stride 1, with stride 2 in its phases,
// and the input gradient of stride 1, which is the same convolution over the filters turned by 180°, with input and
// output channels exchanged.
//
// A block of tiles (winograd_tiles.h) goes through three phases:
//     V [point][C / width][tile][width]    transformed inputs: written once, read for every panel of output channels
//     M [point][tile][columns]             per panel and point V · U, by the register tiles of microkernel.h
//     y                                    transformed outputs + bias + residual, clamped
// The transformed weights U [panel][6 × 6][C][columns] are prepared beforehand for prediction, once per call where they
// are small or tiles are many, or piece by piece in the L2 cache where tiles are few: then the time goes to reading
// weights, and the plain ones are a quarter of the size. Threads share out blocks where these are many; else all of V
// is made first, and then they share out panels.
//
// Infinities and NaN would spread over their tile, and numbers near the end of float32's range can overflow on the way:
// where an output is not finite the whole convolution is left to the direct kernel.
// float32 sums and transforms; float32 and bfloat16 tensors. V and U are floats, or with AVX512-BF16 pairs of bfloat16
// channels: words, where C stands above. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "microkernel.h"
#include "winograd_few.h"
#include "winograd_input.h"
#include "winograd_output.h"
#include "winograd_prefetch.h"
#include "winograd_weights.h"

namespace pyserve {
namespace {

constexpr int64_t kTiles = 48;      // per block, at most: V and M of 64 channels stay in the L2 cache
constexpr int64_t kReadTiles = 24;  // with fewer in all, a transformed weight is used too little to be worth reading
constexpr int64_t kFloatsPerTile = 1 << 16;    // of U, that a tile makes worth writing to memory in the call
constexpr int64_t kPieceVectors = 2;           // per panel then: a piece of its weights stays in the L1 cache
constexpr int64_t kStepPad = 80;               // floats between the points' parts: they fall into different cache sets
constexpr int64_t kMostTransformed = 1 << 20;  // floats of U that a call makes beforehand
constexpr int64_t kMostByBlock = 1 << 22;      // floats of U that every block reads anew

// Where the transformed weights come from.
enum class WinogradWeights : int32_t {
  whole,      // memory
  pieces,     // the L1 cache: transformed a piece at a time, used for all tiles
  registers,  // winograd_few.h
};

struct WinogradPlan {
  WinogradShape shape;
  WinogradWeights weights;
  bool by_panel;  // V of all tiles first, then a panel of output channels per task
  int64_t blocks;
};

inline WinogradPlan winograd_plan(WinogradShape s, bool packed, int64_t threads) {
  const int64_t tiles = s.map.tiles(), u = s.u_size();
  WinogradPlan plan{s, WinogradWeights::whole, false, ceil_div(tiles, kTiles)};
  constexpr bool kFloats = Vec::kPerWord == 1;  // pairs are half as much to read, and more work to make
  const bool few = packed ? tiles < kReadTiles : tiles < u / kFloatsPerTile;
  if (kFloats && u > kMostTransformed && few) plan.weights = WinogradWeights::pieces;
  if (kFloats && u > kMostTransformed && tiles <= Vec::kFewTiles) plan.weights = WinogradWeights::registers;
  if (plan.weights == WinogradWeights::registers) plan.shape.panel_vectors = 1;
  if (plan.weights == WinogradWeights::pieces) {
    plan.shape.panel_vectors = kPieceVectors;
    plan.blocks = ceil_div(tiles, kMostTiles);  // each transforms the weights anew
  }
  plan.by_panel = plan.shape.panels() > 1 && (u > kMostByBlock || plan.blocks < 2 * threads);
  if (!plan.by_panel && plan.blocks > 1) plan.blocks = least(tiles, ceil_div(plan.blocks, threads) * threads);
  return plan;
}

template <class Scheme, class T>
class WinogradRun {
  static constexpr int64_t kPoints = Scheme::kPoints, kSpectrum = kPoints * kPoints;

 public:
  WinogradRun(const WinogradShape& shape, const T* input, const T* weight, const float* packed,
              const WinogradOutput<Scheme, T>& output, const Pool& pool)
      : plan_(winograd_plan(shape, packed != nullptr, pool.threads)),
        s_(plan_.shape),
        input_(input),
        weight_(weight),
        packed_(packed),
        output_(output),
        pool_(pool),
        zeros_(zero_row<T>(pool, s_.groups() * Vec::kWidth * Vec::kPerWord)),
        block_size_(ceil_div(s_.map.tiles(), plan_.blocks)),
        v_step_(s_.groups() * Vec::kWidth * block_size_ + kStepPad),
        m_step_(block_size_ * kMostColumns + kStepPad) {}

  // Whether all outputs are finite; else they are not all written.
  bool run() {
    if (!packed_ && plan_.weights == WinogradWeights::whole) {
      float* u = allocate_floats(pool_, s_.u_size());
      transform_all_weights<Scheme>(s_, weight_, u, pool_);
      packed_ = u;
    }
    plan_.by_panel ? run_by_panel() : run_by_block();
    return finite_;
  }

 private:
  struct Scratch {
    float *v, *m;
  };

  Scratch scratch(int64_t workers, int64_t v_blocks) {
    return {allocate_floats(pool_, v_blocks * kSpectrum * v_step_),
            allocate_floats(pool_, workers * kSpectrum * m_step_)};
  }
  Scratch of_worker(const Scratch& all, int64_t worker, int64_t v_block) const {
    return {all.v + v_block * kSpectrum * v_step_, all.m + worker * kSpectrum * m_step_};
  }
  static int64_t group_step(const WinogradBlock& tiles) { return tiles.count * Vec::kWidth; }
  WinogradBlock block(int64_t i) const {
    const int64_t tiles = s_.map.tiles(), first = tiles * i / plan_.blocks;
    return WinogradBlock(s_.map, first, tiles * (i + 1) / plan_.blocks - first);
  }

  void run_by_block() {
    const Scratch all = scratch(pool_.workers(plan_.blocks), pool_.workers(plan_.blocks));
    pool_.share(plan_.blocks, [&](int64_t worker, int64_t begin, int64_t end) {
      const Scratch own = of_worker(all, worker, worker);
      for (int64_t i = begin; i < end && finite_; ++i) {
        const WinogradBlock tiles = block(i), next = block(i + 1 < end ? i + 1 : i);
        TileLines input(next, input_, s_.H, s_.W, s_.depth * sizeof(T), s_.depth * sizeof(T));
        transform_inputs<Scheme>(s_, tiles, 0, tiles.count, input_, zeros_, own.v, v_step_, group_step(tiles));
        for (int64_t panel = 0; panel < s_.panels(); ++panel)
          run_panel(tiles, panel, own, i + 1 < end ? &input : nullptr);
      }
    });
  }

  void run_by_panel() {
    const int64_t tasks = s_.panels() * plan_.blocks;
    const Scratch all = scratch(pool_.workers(tasks), plan_.blocks);
    pool_(s_.map.tiles(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0, first = 0; i < plan_.blocks; ++i) {
        const WinogradBlock tiles = block(i);
        const int64_t from = most(begin, first) - first, to = least(end, first + tiles.count) - first;
        if (from < to)
          transform_inputs<Scheme>(s_, tiles, from, to, input_, zeros_, all.v + i * kSpectrum * v_step_, v_step_,
                                   group_step(tiles));
        first += tiles.count;
      }
    });
    pool_.share(tasks, [&](int64_t worker, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end && finite_; ++i)
        run_panel(block(i % plan_.blocks), i / plan_.blocks, of_worker(all, worker, i % plan_.blocks), nullptr);
    });
  }

  void run_panel(const WinogradBlock& tiles, int64_t panel, const Scratch& own, TileLines* input) {
    const int64_t width = s_.first_column(panel + 1) - s_.first_column(panel);
    const int vectors = static_cast<int>(width / Vec::kWidth);
    const WinogradSchedule schedule(tiles, Vec::rows(vectors));
    TileLines output(tiles, output_.y + s_.first_column(panel), s_.map.P, s_.map.Q, s_.columns * sizeof(T),
                     width * sizeof(T));
    const Panel p{tiles, schedule, own, panel, width, vectors, input, &output};
    if (plan_.weights == WinogradWeights::pieces) {
      for (int64_t l = 0; l < s_.depth; l += kPieceDepth) multiply_piece(p, l, least(kPieceDepth, s_.depth - l));
    } else if (plan_.weights == WinogradWeights::registers) {
      for (int64_t l = 0; l < s_.depth; l += kFewDepth) multiply_few_tiles(p, l, least(kFewDepth, s_.depth - l));
    } else {
      for (int64_t i = 0; i < kPoints; ++i)
        for (int64_t j = 0; j < kPoints; ++j) {
          const float* u = s_.u_at(packed_, panel, Scheme::weight_of(i) * kWeights + Scheme::weight_of(j));
          multiply_point(p, i, j, 0, s_.words(), u, u + s_.words() * width, s_.words() * width);
        }
    }
    for (int64_t b = 0; b < tiles.count; ++b)
      if (!output_.write_tile(s_, tiles.tile[b], own.m + b * width, m_step_, panel))
        __atomic_store_n(&finite_, false, __ATOMIC_RELAXED);
  }

  struct Panel {
    const WinogradBlock& tiles;
    const WinogradSchedule& schedule;
    const Scratch& own;
    int64_t index, width;
    int vectors;
    TileLines *input, *output;
  };

  // Input channels [l, l + count): their weights are transformed in the L1 cache, a row of the spectrum at a time.
  void multiply_piece(const Panel& p, int64_t l, int64_t count) {
    alignas(64) float gathered[kPieceDepth * kTaps * kPieceVectors * Vec::kWidth];
    alignas(64) float u[kWeights * kPieceDepth * kPieceVectors * Vec::kWidth];
    const float *taps = gathered, *next = taps;
    if (packed_)
      taps = s_.taps_at(packed_, p.index, l), next = taps + kTaps * count * p.width;
    else
      gather_taps(s_, weight_, p.index, l, count, gathered);
    const int64_t size = count * p.width, next_size = size * kTaps / kSpectrum;
    for (int64_t i = 0; i < kPoints; ++i) {
      const int64_t row = Scheme::weight_of(i);
      if (i == row) transform_filter_row<Scheme>(row, taps, count, p.width, u, size);
      for (int64_t j = 0; j < kPoints; ++j, next += next_size)
        multiply_point(p, i, j, l, count, u + Scheme::weight_of(j) * size, next, next_size);
    }
  }

  void multiply_few_tiles(const Panel& p, int64_t l, int64_t count) {
    alignas(64) float gathered[kFewDepth * kTaps * Vec::kWidth];
    const float* taps = packed_ ? s_.taps_at(packed_, p.index, l) : gathered;
    if (!packed_) gather_taps(s_, weight_, p.index, l, count, gathered);
    const int64_t group_step = WinogradRun::group_step(p.tiles);
    for (int64_t i = 0; i < kPoints; ++i) {
      const float* v = p.own.v + i * kPoints * v_step_ + l / Vec::kWidth * group_step;
      const int64_t tiles = p.tiles.last_with(Scheme::has(3, i), true);
      float* m = p.own.m + i * kPoints * m_step_;
      if (tiles > 0) multiply_few<Scheme>(i, tiles, {taps, count, v, v_step_, group_step, m, m_step_, l == 0});
    }
  }

  // M (+)= V · U at point (i, j) for input channels [l, l + count), while the floats at `next` come into the cache.
  void multiply_point(const Panel& p, int64_t i, int64_t j, int64_t l, int64_t count, const float* u, const float* next,
                      int64_t next_size) {
    const int64_t point = i * kPoints + j, group_step = WinogradRun::group_step(p.tiles);
    const float* v = p.own.v + point * v_step_ + l / Vec::kWidth * group_step;
    float* m = p.own.m + point * m_step_;
    const WinogradRows& rows = p.schedule.with(Scheme::has(3, i), Scheme::has(3, j));
    if (rows.parts == 0) return;
    const int64_t step = next_size / (count * rows.parts) * sizeof(float);
    const char* prefetch = reinterpret_cast<const char*>(next);
    const int64_t calls =
        kSpectrum * rows.parts * (plan_.weights == WinogradWeights::pieces ? ceil_div(s_.depth, kPieceDepth) : 1);
    const int64_t output_lines = ceil_div(p.output->count(), calls);
    const int64_t input_lines = p.input ? ceil_div(p.input->count(), calls * s_.panels()) : 0;
    for (int64_t part = 0; part < rows.parts; ++part, prefetch += step * count) {
      const int64_t row = rows.start[part];
      const TileProduct product{v + row * Vec::kWidth, group_step, count, u, m + row * p.width, l == 0, prefetch, step};
      tile_kernel(p.vectors, static_cast<int>(rows.start[part + 1] - row))(product);
      if (p.input) p.input->advance(input_lines, prefetch_far);
      p.output->advance(output_lines, prefetch_write);
    }
  }

  const WinogradPlan plan_;
  const WinogradShape& s_;
  const T *input_, *weight_;
  const float* packed_;
  const WinogradOutput<Scheme, T> output_;
  const Pool& pool_;
  const T* zeros_;
  int64_t block_size_, v_step_, m_step_;
  bool finite_ = true;
};

// A bias as floats, padded to whole vectors.
template <class T>
const float* winograd_bias(const WinogradShape& s, const T* bias, const Pool& pool) {
  if (bias == nullptr) return nullptr;
  float* padded = zero_row<float>(pool, s.padded());
  widen_row(bias, padded, s.columns);
  return padded;
}

template <class Scheme, class T>
bool winograd_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const WinogradShape s = winograd_forward_shape<Scheme>(p);
  const WinogradOutput<Scheme, T> output{
      winograd_bias(s, static_cast<const T*>(args.bias), pool), static_cast<const T*>(args.residual),
      static_cast<T*>(args.y), Vec::set(static_cast<float>(p.clamp.lo)), Vec::set(static_cast<float>(p.clamp.hi))};
  return WinogradRun<Scheme, T>(s, static_cast<const T*>(args.x), static_cast<const T*>(args.weight), args.packed,
                                output, pool)
      .run();
}

// Whether all of y is finite; otherwise not all of it may be written.
template <class Scheme>
bool winograd_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  return p.dtype == DType::f32 ? winograd_forward<Scheme, float>(p, args, pool)
                               : winograd_forward<Scheme, Bf16>(p, args, pool);
}

template <class T>
bool winograd_dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  const WinogradShape s = winograd_dgrad_shape(p);
  const WinogradOutput<StrideOne, T> output{nullptr, nullptr, static_cast<T*>(args.dx), Vec::set(-INFINITY),
                                            Vec::set(INFINITY)};
  return WinogradRun<StrideOne, T>(s, static_cast<const T*>(args.grad), static_cast<const T*>(args.weight), nullptr,
                                   output, pool)
      .run();
}

// Packed are the transformed weights where they are read whole, else the plain taps in panels.
template <class Scheme>
int32_t winograd_layout(const Conv2dProblem& p) {
  return static_cast<int32_t>(winograd_plan(winograd_forward_shape<Scheme>(p), true, 1).weights);
}

template <class Scheme>
int64_t winograd_packed_size(const Conv2dProblem& p) {
  const WinogradShape s = winograd_forward_shape<Scheme>(p);
  return winograd_layout<Scheme>(p) == 0 ? s.u_size() : s.taps_size();
}

template <class Scheme, class T>
void winograd_pack_as(const Conv2dProblem& p, const T* weight, float* packed, const Pool& pool) {
  const WinogradPlan plan = winograd_plan(winograd_forward_shape<Scheme>(p), true, 1);
  if (plan.weights == WinogradWeights::whole) return transform_all_weights<Scheme>(plan.shape, weight, packed, pool);
  pack_taps(plan.shape, weight, packed, pool);
}

template <class Scheme>
void winograd_pack(const Conv2dProblem& p, const void* weight, float* packed, const Pool& pool) {
  p.dtype == DType::f32 ? winograd_pack_as<Scheme>(p, static_cast<const float*>(weight), packed, pool)
                        : winograd_pack_as<Scheme>(p, static_cast<const Bf16*>(weight), packed, pool);
}

}  // namespace
}  // namespace pyserve
