// What is done to a result before it is stored.
#pragma once

#include "../common.h"

namespace sparse_ops {

enum class Activation { none, relu, gelu };

inline Activation activation_of(const std::string& name) {
  return name == "relu" ? Activation::relu : name == "gelu" ? Activation::gelu : Activation::none;
}

}  // namespace sparse_ops
