// What is done to a sum before it is stored.
#include "gelu_body.h"

// relu keeps a NaN, as torch does.
template <typename A, typename V>
static inline V activated(V sum, ConvActivation activation) {
  if (activation == ConvActivation::relu) return sum < 0 ? V{} : sum;
  if (activation == ConvActivation::gelu) {
    if constexpr (sizeof(A) == 4)
      return gelu_of(sum);
    else
      for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(A)); ++i) sum[i] = gelu_one(sum[i]);
  }
  return sum;
}
