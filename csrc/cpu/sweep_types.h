// What the drivers of the sweep and its loops exchange: plain data, nothing of torch.
#pragma once

#include <cstdint>

namespace sparse_ops {

enum class Kind { f32, f64, f16, bf16 };

// The penalties as the loops see them: l2 and growing_l2 differ in their coefficients alone.
enum class Penalty { none, sign, linear, hypersparse };

enum class RuleKind { observe, sgd, momentum, adamw, amsgrad };

// A multiple of eight, so that a chunk starts on a byte of a packed mask; 64 KB of float32.
constexpr int64_t kSweepChunk = 1 << 14;

struct Operand {
  void* data;
  Kind kind;
};

// One piece of one weight. mask and group are null where there are none.
struct SweepChunk {
  Operand w, g, states[3];
  const uint8_t *mask, *group;
  int64_t n;
};

// A scope as the loops see it. on, off: the penalty's whole factor where the group bit is 1 and 0; all but linear
// penalties take `on`. low and high are numbers of the compute type.
struct SweepScope {
  double on, off, s, low, high;
};

struct SweepRule {
  RuleKind kind;
  Penalty penalty;
  double lr, weight_decay, grad_scale;
  bool scaled, maximize;
  double momentum, dampening;  // SGD
  bool nesterov, first_step;
  double beta1, beta2, eps, step_size, correction;  // AdamW: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)
};

struct SweepSums {
  double n, t0, t1, t2;
  int64_t above, count;
};

}  // namespace sparse_ops
